"""OpenAI's Chat Completions: the neutral form itself, its answers, and its streams in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from r2v.messages.conversation import Json, Request, arguments_text, new_id, parse, text_of
from r2v.messages.protocol import DONE, Piece, ProtocolAdapter, References, Reply, Served, data, pieces

NO_TOKENS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def completion(reply: Reply, served: Served) -> Json:
    """A chat completion with one choice."""
    return {
        "id": f"chatcmpl-{served.id}", "object": "chat.completion", "created": served.created, "model": served.model,
        "choices": [{**reply.choice, "index": 0}],
        "usage": reply.usage or NO_TOKENS,
    }  # fmt: skip


def chunks(answer: Json, include_usage: bool, extra: Json, size: int = 400) -> list[Json]:
    """The same answer as stream chunks: role, text, calls, the end; `extra` goes into the last one."""
    choice = answer["choices"][0]
    message = choice["message"]
    head = {"id": answer["id"], "object": "chat.completion.chunk", "created": answer["created"], "model": answer["model"]}

    def chunk(delta: Json, finish: str | None = None) -> Json:
        return head | chunk_of(delta, finish)

    found = [chunk({"role": "assistant", "content": ""})]
    for text in pieces(text_of(message.get("content")), size):
        found.append(chunk({"content": text}))
    for key in ("reasoning_content", "refusal"):
        if message.get(key):
            found.append(chunk({key: message[key]}))
    if choice.get("logprobs"):
        found.append(chunk({}))
        found[-1]["choices"][0]["logprobs"] = choice["logprobs"]
    for i, call in enumerate(message.get("tool_calls") or []):
        if (function := call.get("function")) is None:  # of a tool that takes free text
            found.append(chunk({"tool_calls": [{"index": i, **call}]}))
            continue
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


def offered(body: Json, dropped: list[str]) -> tuple[list[Json], str | Json]:
    """The functions that a model of another protocol may call, and its choice among them: a word, or an object with the
    `name` of one. The names of tools of other kinds, which such a model does not know, are added to `dropped`.
    """
    functions = []
    for tool in body.get("tools") or []:
        if (function := tool.get("function")) is not None:
            functions.append(function)
        else:
            dropped.append(f"tools.{(tool.get('custom') or {}).get('name') or tool.get('type')}")
    choice = body.get("tool_choice") or "auto"
    if isinstance(choice, str):
        return functions, choice
    if allowed := choice.get("allowed_tools"):
        names = {(tool.get("function") or {}).get("name") for tool in allowed.get("tools") or []}
        return [function for function in functions if function["name"] in names], allowed.get("mode") or "auto"
    if (function := choice.get("function")) is None:
        dropped.append("tool_choice")
        return functions, "auto"
    return functions, function


def chunk_of(delta: Json, finish: str | None = None) -> Json:
    """A chunk of a stream, as far as its choice goes."""
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


class StreamAccumulator:
    """Puts the chunks of a streamed answer together again."""

    def __init__(self) -> None:
        self.usage: Json = {}
        self._words: dict[str, list[str]] = {"content": [], "reasoning_content": [], "refusal": []}
        self._finish_reason: str | None = None
        self._calls: list[Json] = []
        self._open: dict[int, Json] = {}
        """The call that parts with this index belong to."""
        self._logprobs: list[Json] = []

    def add(self, chunk: Json) -> None:
        """Takes a chunk, in which each call then has an index of its own."""
        self.usage = {**chunk["usage"]} if chunk.get("usage") else self.usage
        for choice in (chunk.get("choices") or [])[:1]:
            delta = choice.get("delta") or {}
            for key, words in self._words.items():
                if delta.get(key):
                    words.append("" + delta[key])  # a TypeError for what is no text
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            self._logprobs += (choice.get("logprobs") or {}).get("content") or []
            for part in delta.get("tool_calls") or []:
                self._add_call(part)

    def _add_call(self, part: Json) -> None:
        """Servers leave out the index of whole calls, or give all of them the same; some leave out the id, or give the
        arguments as an object.
        """
        custom, identity, index = part.get("custom"), part.get("id"), part.get("index") or 0
        function = part.get("function") or {}
        if isinstance(function.get("arguments"), dict):
            function["arguments"] = arguments_text(function["arguments"])
        call = self._open.get(index)
        named_again = call is not None and function.get("name") and call["arguments"]
        if call is None or named_again or (identity and not call["made"] and call["id"] != identity):
            identity, made = identity or new_id(), not identity
            call = {"id": identity, "made": made, "custom": False, "name": [], "arguments": [], "index": len(self._calls)}
            self._open[index], part["id"] = call, identity
            self._calls.append(call)
        elif call["made"]:
            part.pop("id", None)  # clients know the one that was made
        part["index"] = call["index"]
        said = {"name": custom.get("name"), "arguments": custom.get("input")} if custom else function
        call["custom"] = call["custom"] or bool(custom)
        for key in ("name", "arguments"):
            if said.get(key):
                call[key].append("" + said[key])

    @property
    def ended(self) -> bool:
        """Whether the finish reason has come."""
        return self._finish_reason is not None

    @property
    def choice(self) -> Json:
        """The answer as a whole."""
        words = {key: "".join(parts) for key, parts in self._words.items()}
        message: Json = {"role": "assistant", "content": words.pop("content") or None}
        message |= {key: text for key, text in words.items() if text}
        if self._calls:
            message["tool_calls"] = list(map(_call, self._calls))
        choice: Json = {"index": 0, "message": message, "finish_reason": self._finish_reason or "stop"}
        return choice | ({"logprobs": {"content": self._logprobs}} if self._logprobs else {})


def _call(call: Json) -> Json:
    """What was gathered of a call."""
    name, written = "".join(call["name"]), "".join(call["arguments"])
    if call["custom"]:
        return {"id": call["id"], "type": "custom", "custom": {"name": name, "input": written}}
    return {"id": call["id"], "type": "function", "function": {"name": name, "arguments": written}}


class _Encoder:
    """See `StreamEncoder`: the chunks are what this protocol streams."""

    def __init__(self, request: Request, served: Served) -> None:
        self._request, self._served = request, served
        self._head = {"id": f"chatcmpl-{served.id}", "object": "chat.completion.chunk", "created": served.created}

    def add(self, piece: Piece) -> Iterator[bytes]:
        if piece.chunk is not None and piece.chunk.get("choices"):
            yield data(self._chunk(piece.chunk))

    def end(self, reply: Reply, rest: Sequence[Piece], facts: Json) -> Iterator[bytes]:
        for piece in rest:
            if piece.chunk is not None and piece.chunk.get("choices"):
                yield data({**self._chunk(piece.chunk), "r2v": facts})
        if self._request.include_usage:
            last = {
                **self._head,
                "model": self._served.model,
                "choices": [],
                "usage": reply.usage or NO_TOKENS,
                "r2v": facts,
            }
            yield data(last)
        yield DONE

    def _chunk(self, chunk: Json) -> Json:
        choice = chunk["choices"][0]
        if not self._request.logprobs:
            choice = {key: value for key, value in choice.items() if key != "logprobs"}
        return {
            **{k: v for k, v in chunk.items() if k != "usage"},
            **self._head,
            "model": self._served.model,
            "choices": [choice],
        }


ERRORS = {
    400: "invalid_request_error", 401: "authentication_error", 402: "insufficient_quota", 403: "permission_error",
    404: "not_found_error", 413: "invalid_request_error", 429: "rate_limit_error",
}  # fmt: skip
"""Types of OpenAI's errors; all others are `server_error`."""


def openai_error(message: str, status: int, code: str | None) -> Json:
    """An error as OpenAI's APIs write it."""
    return {"error": {"message": message, "type": ERRORS.get(status, "server_error"), "param": None, "code": code}}


class ChatCompletions(ProtocolAdapter):
    name = "chat"
    path = "/chat/completions"

    def parse(self, body: bytes, headers: Mapping[str, str] | None = None, references: References | None = None) -> Request:
        return parse(body)

    def neutral(self, source: Json) -> tuple[Json, list[str]]:
        return source, []

    def whole(self, reply: Reply, request: Request, served: Served) -> Json:
        return completion(reply, served)

    def held(self, reply: Reply, request: Request, served: Served, facts: Json) -> Iterator[bytes]:
        for chunk in chunks(completion(reply, served), request.include_usage, facts):
            yield data(chunk)
        yield DONE

    def encoder(self, request: Request, served: Served, protocol: str) -> _Encoder:
        return _Encoder(request, served)

    def error(self, message: str, status: int, code: str | None = None) -> Json:
        return openai_error(message, status, code)

    def broken(self, message: str, status: int, code: str | None) -> bytes:
        return data(openai_error(message, status, code)) + DONE


CHAT = ChatCompletions()
