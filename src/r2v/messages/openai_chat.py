"""OpenAI's Chat Completions: the neutral form itself, its answers, and its streams in both directions."""

from __future__ import annotations

from collections.abc import Iterator

from r2v.messages.conversation import Json, Request, parse
from r2v.messages.protocol import DONE, ProtocolAdapter, data, pieces


def completion(choice: Json, usage: Json | None, *, model: str, identity: str, created: int) -> Json:
    """A chat completion with one choice."""
    return {
        "id": f"chatcmpl-{identity}", "object": "chat.completion", "created": created, "model": model,
        "choices": [{**choice, "index": 0}],
        "usage": usage or {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }  # fmt: skip


def chunks(answer: Json, include_usage: bool, extra: Json, size: int = 400) -> list[Json]:
    """The same answer as stream chunks: role, text, calls, the end; `extra` goes into the last one."""
    choice = answer["choices"][0]
    message = choice["message"]
    head = {"id": answer["id"], "object": "chat.completion.chunk", "created": answer["created"], "model": answer["model"]}

    def chunk(delta: Json, finish: str | None = None) -> Json:
        return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    found = [chunk({"role": "assistant", "content": ""})]
    for text in pieces(message.get("content") or "", size):
        found.append(chunk({"content": text}))
    for key in ("reasoning_content", "refusal"):
        if message.get(key):
            found.append(chunk({key: message[key]}))
    for i, call in enumerate(message.get("tool_calls") or []):
        function = call.get("function") or {}
        begin = {
            "index": i,
            "id": call.get("id"),
            "type": "function",
            "function": {"name": function.get("name"), "arguments": ""},
        }
        found.append(chunk({"tool_calls": [begin]}))
        for text in pieces(function.get("arguments") or "", size):
            found.append(chunk({"tool_calls": [{"index": i, "function": {"arguments": text}}]}))
    found.append({**chunk({}, choice.get("finish_reason") or "stop"), "r2v": extra})
    if include_usage:
        found.append({**head, "choices": [], "usage": answer["usage"], "r2v": extra})
    return found


class StreamAccumulator:
    """Puts the chunks of a streamed answer together again."""

    def __init__(self) -> None:
        self._text = ""
        self._finish_reason: str | None = None
        self._calls: dict[int, Json] = {}

    def add(self, choice: Json) -> None:
        """`choice` is the first one of a chunk."""
        delta = choice.get("delta") or {}
        self._text += delta.get("content") or ""
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        for part in delta.get("tool_calls") or []:
            call = self._calls.setdefault(
                part.get("index", 0), {"type": "function", "function": {"name": "", "arguments": ""}}
            )
            if part.get("id"):
                call["id"] = part["id"]
            function = part.get("function") or {}
            call["function"]["name"] += function.get("name") or ""
            call["function"]["arguments"] += function.get("arguments") or ""

    @property
    def choice(self) -> Json:
        """The answer as a whole."""
        message: Json = {"role": "assistant", "content": self._text or None}
        if self._calls:
            message["tool_calls"] = [self._calls[i] for i in sorted(self._calls)]
        return {"index": 0, "message": message, "finish_reason": self._finish_reason or "stop"}


class _Encoder:
    """See `StreamEncoder`: the chunks are what this protocol streams."""

    def add(self, chunk: Json) -> Iterator[bytes]:
        yield data(chunk)
        if chunk["choices"][0].get("finish_reason"):
            yield DONE


def openai_error(message: str, status: int, code: str | None = "") -> Json:
    """An error as OpenAI's APIs write it."""
    kinds = {401: "authentication_error", 400: "invalid_request_error", 402: "budget_error"}
    return {"error": {"message": message, "type": kinds.get(status, "r2v_error"), "param": None, "code": code}}


class ChatCompletions(ProtocolAdapter):
    path = "/chat/completions"

    def parse(self, body: bytes) -> Request:
        return parse(body)

    def body(self, source: Json) -> Json:
        return source

    def whole(self, completion: Json, request: Request) -> Json:
        return completion

    def held(self, completion: Json, request: Request, facts: Json) -> Iterator[bytes]:
        for chunk in chunks(completion, request.include_usage, facts):
            yield data(chunk)
        yield DONE

    def encoder(self) -> _Encoder:
        return _Encoder()

    def error(self, message: str, status: int) -> Json:
        return openai_error(message, status)

    def broken(self, message: str, status: int, code: str | None) -> bytes:
        return data(openai_error(message, status, str(code))) + DONE


CHAT = ChatCompletions()
