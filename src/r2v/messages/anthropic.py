"""Anthropic's Messages protocol to and from the neutral form, in both directions: clients that speak it, models that do.

Thinking blocks belong to the model that wrote them: they are kept when that model reads them again and dropped for another.
Calls and their results stay pairs: a result without a call, or a call without a result before the next turn, is refused by
Anthropic's API, so such leftovers become plain text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from r2v.messages.conversation import BadRequest, Json, Request, text_of
from r2v.messages.protocol import ProtocolAdapter, event, pieces

STOP = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
FINISH = {
    "end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls",
    "refusal": "content_filter",
}  # fmt: skip
SAME = ("temperature", "top_p", "max_tokens")


def from_messages(raw: Json) -> Json:
    """A Messages request as a chat-completion body. Raises BadRequest."""
    if not isinstance(raw.get("messages"), list) or not raw["messages"]:
        raise BadRequest("`messages` must be a list of at least one message")
    messages: list[Json] = []
    if raw.get("system"):
        messages.append({"role": "system", "content": text_of(raw["system"])})
    for message in raw["messages"]:
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
            raise BadRequest("a message must have the role user or assistant")
        blocks = message.get("content")
        blocks = [{"type": "text", "text": blocks}] if isinstance(blocks, str) else blocks
        if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
            raise BadRequest("the content of a message must be text or a list of blocks")
        messages += _assistant(blocks) if message["role"] == "assistant" else _user(blocks)
    body: Json = {"messages": messages, "model": raw.get("model", "r2v"), "stream": raw.get("stream", False)}
    body |= {key: raw[key] for key in SAME if key in raw}
    if raw.get("stop_sequences"):
        body["stop"] = raw["stop_sequences"]
    tools = raw.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRequest("`tools` must be a list of objects")
    if server := [str(tool.get("type")) for tool in tools if "input_schema" not in tool]:
        raise BadRequest(f"tools that run on Anthropic's servers ({', '.join(server)}) cannot be routed")
    if tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {"name": t["name"], "description": t.get("description", ""), "parameters": t["input_schema"]},
            }
            for t in tools
        ]
    choice = raw.get("tool_choice")
    if isinstance(choice, dict):
        kind = choice.get("type")
        body["tool_choice"] = (
            {"type": "function", "function": {"name": choice.get("name")}}
            if kind == "tool"
            else {"auto": "auto", "any": "required", "none": "none"}.get(str(kind), "auto")
        )
        if choice.get("disable_parallel_tool_use"):
            body["parallel_tool_calls"] = False
    return body


def _assistant(blocks: list[Json]) -> list[Json]:
    calls = [
        {
            "id": block.get("id"),
            "type": "function",
            "function": {"name": block.get("name"), "arguments": json.dumps(block.get("input") or {}, ensure_ascii=False)},
        }
        for block in blocks
        if block.get("type") == "tool_use"
    ]
    words = "\n".join(str(block.get("text", "")) for block in blocks if block.get("type") == "text")
    message: Json = {"role": "assistant", "content": words or None}
    if calls:
        message["tool_calls"] = calls
    thinking = [block for block in blocks if block.get("type") in ("thinking", "redacted_thinking")]
    if thinking:
        message["thinking_blocks"] = thinking
    return [message]


def _user(blocks: list[Json]) -> list[Json]:
    found: list[Json] = []
    rest: list[Json] = []
    for block in blocks:
        if block.get("type") == "tool_result":
            words = text_of(block.get("content"))
            found.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": words})
        elif block.get("type") == "image":
            rest.append({"type": "image_url", "image_url": {"url": _image_url(block.get("source") or {})}})
        else:
            rest.append({"type": "text", "text": str(block.get("text", f"[{block.get('type', 'part')}]"))})
    if rest:
        plain = all(part["type"] == "text" for part in rest)
        found.append({"role": "user", "content": "\n".join(part["text"] for part in rest) if plain else rest})
    return found


def _image_url(source: Json) -> str:
    return str(source.get("url") or f"data:{source.get('media_type')};base64,{source.get('data')}")


def to_messages(body: Json, *, model: str, max_tokens: int) -> Json:
    """A chat-completion body as a Messages request for an upstream."""
    system, messages = [], []
    for message in body["messages"]:
        role, content = message["role"], message.get("content")
        if role in ("system", "developer"):
            system.append(text_of(content))
        elif role == "assistant":
            messages.append({"role": "assistant", "content": _blocks_of_assistant(message, model)})
        elif role in ("tool", "function"):
            block = {"type": "tool_result", "tool_use_id": message.get("tool_call_id"), "content": text_of(content)}
            messages.append({"role": "user", "content": [block]})
        else:
            messages.append({"role": "user", "content": _blocks_of_user(content)})
    raw: Json = {"model": model, "messages": _paired(_merged(messages)), "max_tokens": max_tokens}
    for key in ("max_tokens", "max_completion_tokens"):
        if body.get(key):
            raw["max_tokens"] = body[key]
    if any(system):
        raw["system"] = "\n\n".join(text for text in system if text)
    raw |= {key: min(body[key], 1.0) for key in ("temperature", "top_p") if body.get(key) is not None}
    if body.get("stop"):
        raw["stop_sequences"] = [body["stop"]] if isinstance(body["stop"], str) else body["stop"]
    if tools := [tool["function"] for tool in body.get("tools") or [] if "function" in tool]:
        raw["tools"] = [
            {
                "name": t["name"],
                "description": t.get("description", ""),
                "input_schema": {"type": "object", **(t.get("parameters") or {})},
            }
            for t in tools
        ]
        choice = body.get("tool_choice", "auto")
        kind: Json = (
            {"type": "tool", "name": choice["function"]["name"]}
            if isinstance(choice, dict)
            else {"type": {"required": "any", "none": "none"}.get(choice, "auto")}
        )
        if body.get("parallel_tool_calls") is False and kind["type"] != "none":
            kind["disable_parallel_tool_use"] = True
        raw["tool_choice"] = kind
    return raw


def _blocks_of_assistant(message: Json, model: str) -> list[Json]:
    blocks: list[Json] = list(message.get("thinking_blocks") or []) if message.get("r2v_model") == model else []
    if words := text_of(message.get("content")).strip():
        blocks.append({"type": "text", "text": words})
    blocks += _tool_uses(message)
    return blocks or [{"type": "text", "text": "(nothing)"}]


def _tool_uses(message: Json) -> list[Json]:
    """The calls of an assistant message as blocks."""
    return [
        {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": _object(function.get("arguments"))}
        for call in message.get("tool_calls") or []
        for function in [call.get("function") or {}]
    ]


def _object(arguments: Any) -> Json:
    """Tool input must be an object; what a model wrote instead is kept as text."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, TypeError):
        value = None
    return value if isinstance(value, dict) else {"arguments": str(arguments)}


def _blocks_of_user(content: Any) -> list[Json]:
    if not isinstance(content, list):
        return [{"type": "text", "text": _words(content)}]
    blocks: list[Json] = []
    for part in content:
        if part.get("type") == "image_url":
            url = str((part.get("image_url") or {}).get("url", ""))
            if url.startswith("data:") and ";base64," in url:
                kind, data = url[5:].split(";base64,", 1)
                blocks.append({"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}})
            else:
                blocks.append({"type": "image", "source": {"type": "url", "url": url}})
        else:
            blocks.append({"type": "text", "text": _words([part])})
    return blocks or [{"type": "text", "text": "(nothing)"}]


def _words(content: Any) -> str:
    """Text that the API takes: it refuses blank blocks."""
    text = text_of(content)
    return text if text.strip() else "(nothing)"


def _merged(messages: list[Json]) -> list[Json]:
    """Neighbours of one role become one message; the first is the user's."""
    found: list[Json] = []
    for message in messages:
        if found and found[-1]["role"] == message["role"]:
            found[-1] = {**found[-1], "content": [*found[-1]["content"], *message["content"]]}
        else:
            found.append(message)
    if not found or found[0]["role"] == "assistant":
        found.insert(0, {"role": "user", "content": [{"type": "text", "text": "(begin)"}]})
    return found


def _paired(messages: list[Json]) -> list[Json]:
    """Every call is answered in the next message and every result answers a call in the one before; results come first."""
    found: list[Json] = []
    for i, message in enumerate(messages):
        blocks = message["content"]
        if message["role"] == "assistant":
            following = messages[i + 1]["content"] if i + 1 < len(messages) else []
            open_calls = {b["tool_use_id"] for b in following if b["type"] == "tool_result"}
            kept = []
            for b in blocks:
                lost = b["type"] == "tool_use" and b["id"] not in open_calls
                kept.append(_as_text(b) if lost else b)
                if b["type"] == "tool_use":
                    open_calls.discard(b["id"])  # a second call of the same name tag has no result of its own
            blocks = kept
        else:
            called = {b["id"] for b in found[-1]["content"] if b["type"] == "tool_use"} if found else set()
            results, rest, seen = [], [], set()
            for b in blocks:
                if b["type"] == "tool_result" and b["tool_use_id"] in called and b["tool_use_id"] not in seen:
                    seen.add(b["tool_use_id"])
                    results.append(b)
                else:
                    rest.append(_as_text(b) if b["type"] == "tool_result" else b)
            blocks = [*results, *rest]
        found.append({**message, "content": blocks})
    return found


def _as_text(block: Json) -> Json:
    """A call or a result that has lost its other half, in words."""
    if block["type"] == "tool_use":
        return {"type": "text", "text": f"[called {block['name']} with {json.dumps(block['input'], ensure_ascii=False)}]"}
    return {"type": "text", "text": f"[result of a tool: {block['content']}]"}


def choice_of(answer: Json, model: str) -> tuple[Json, Json]:
    """(choice, usage) in the neutral form from a Messages answer. Raises ValueError when it is something else."""
    if answer.get("type") != "message" or not isinstance(answer.get("content"), list):
        raise ValueError("not a message")
    (message,) = _assistant(answer["content"])
    message["r2v_model"] = model
    raw = answer.get("usage") or {}
    fresh, output = raw.get("input_tokens") or 0, raw.get("output_tokens") or 0
    cached, written = raw.get("cache_read_input_tokens") or 0, raw.get("cache_creation_input_tokens") or 0
    prompt = fresh + cached + written  # Anthropic counts the three apart
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_creation_tokens": written},
    }
    return {"message": message, "finish_reason": FINISH.get(str(answer.get("stop_reason")), "stop")}, usage


def answer_of(answer: Json) -> Json:
    """A Messages answer for a client, from a chat completion."""
    choice = answer["choices"][0]
    message, usage = choice["message"], answer["usage"]
    blocks: list[Json] = list(message.get("thinking_blocks") or [])
    if message.get("content"):
        blocks.append({"type": "text", "text": text_of(message["content"])})
    blocks += _tool_uses(message)
    details = usage.get("prompt_tokens_details") or {}
    cached, written = details.get("cached_tokens") or 0, details.get("cache_creation_tokens") or 0
    return {
        "id": answer["id"].replace("chatcmpl-", "msg_"),
        "type": "message",
        "role": "assistant",
        "model": answer["model"],
        "content": blocks,
        "stop_reason": STOP.get(str(choice.get("finish_reason")), "end_turn"),
        "stop_sequence": None,
        "usage": {
            "input_tokens": (usage.get("prompt_tokens") or 0) - cached - written,
            "output_tokens": usage.get("completion_tokens") or 0,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": written,
        },
    }


def _events(message: Json, extra: Json) -> Iterator[tuple[str, Json]]:
    """The same answer as stream events."""
    empty = {**message, "content": [], "stop_reason": None, "usage": {**message["usage"], "output_tokens": 0}}
    yield "message_start", {"type": "message_start", "message": empty}
    for i, block in enumerate(message["content"]):
        kind = block["type"]
        start: Json
        deltas: list[Json]
        if kind == "text":
            start, deltas = {"type": "text", "text": ""}, [{"type": "text_delta", "text": t} for t in pieces(block["text"])]
        elif kind == "tool_use":
            start = {**block, "input": {}}
            arguments = json.dumps(block["input"], ensure_ascii=False)
            deltas = [{"type": "input_json_delta", "partial_json": t} for t in pieces(arguments)]
        elif kind == "thinking":
            start = {"type": "thinking", "thinking": "", "signature": ""}
            deltas = [{"type": "thinking_delta", "thinking": t} for t in pieces(block.get("thinking", ""))]
            deltas.append({"type": "signature_delta", "signature": block.get("signature", "")})
        else:
            start, deltas = block, []
        yield "content_block_start", {"type": "content_block_start", "index": i, "content_block": start}
        for delta in deltas:
            yield "content_block_delta", {"type": "content_block_delta", "index": i, "delta": delta}
        yield "content_block_stop", {"type": "content_block_stop", "index": i}
    delta = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    usage = {"output_tokens": message["usage"]["output_tokens"]}
    yield "message_delta", {"type": "message_delta", "delta": delta, "usage": usage, "r2v": extra}
    yield "message_stop", {"type": "message_stop"}


class _Encoder:
    """See `StreamEncoder`."""

    def __init__(self) -> None:
        self._begun, self._block = False, -1
        self._kind: str | int | None = None
        """Of the block that is open: text, or the number of a call."""

    def add(self, chunk: Json) -> Iterator[bytes]:
        for name, content in self._events(chunk):
            yield event(name, content)

    def _events(self, chunk: Json) -> Iterator[tuple[str, Json]]:
        if not self._begun:
            self._begun = True
            usage = {"input_tokens": 0, "output_tokens": 0}
            start = {"id": chunk["id"].replace("chatcmpl-", "msg_"), "type": "message", "role": "assistant", "content": []}
            start |= {"model": chunk.get("model"), "stop_reason": None, "stop_sequence": None, "usage": usage}
            yield "message_start", {"type": "message_start", "message": start}
        choice = chunk["choices"][0]
        delta = choice.get("delta") or {}
        if text := delta.get("content"):
            yield from self._open("text", {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": text})
        for part in delta.get("tool_calls") or []:
            function = part.get("function") or {}
            block = {"type": "tool_use", "id": part.get("id"), "name": function.get("name"), "input": {}}
            yield from self._open(part.get("index", 0), block)
            if function.get("arguments"):
                yield self._delta({"type": "input_json_delta", "partial_json": function["arguments"]})
        if choice.get("finish_reason"):
            yield from self._close()
            usage = chunk.get("usage") or {}
            tokens = {"input_tokens": usage.get("prompt_tokens", 0), "output_tokens": usage.get("completion_tokens", 0)}
            ended = {"stop_reason": STOP.get(choice["finish_reason"], "end_turn"), "stop_sequence": None}
            yield "message_delta", {"type": "message_delta", "delta": ended, "usage": tokens, "r2v": chunk.get("r2v")}
            yield "message_stop", {"type": "message_stop"}

    def _open(self, kind: str | int, block: Json) -> Iterator[tuple[str, Json]]:
        if kind != self._kind:
            yield from self._close()
            self._block, self._kind = self._block + 1, kind
            start = {"type": "content_block_start", "index": self._block, "content_block": block}
            yield "content_block_start", start

    def _close(self) -> Iterator[tuple[str, Json]]:
        if self._kind is not None:
            yield "content_block_stop", {"type": "content_block_stop", "index": self._block}
        self._kind = None

    def _delta(self, delta: Json) -> tuple[str, Json]:
        return "content_block_delta", {"type": "content_block_delta", "index": self._block, "delta": delta}


class Messages(ProtocolAdapter):
    path = "/messages"

    def body(self, source: Json) -> Json:
        return from_messages(source)

    def whole(self, completion: Json, request: Request) -> Json:
        return answer_of(completion)

    def held(self, completion: Json, request: Request, facts: Json) -> Iterator[bytes]:
        for name, content in _events(answer_of(completion), facts):
            yield event(name, content)

    def encoder(self) -> _Encoder:
        return _Encoder()

    def error(self, message: str, status: int) -> Json:
        kinds = {401: "authentication_error", 400: "invalid_request_error", 413: "request_too_large"}
        return _error(kinds.get(status, "api_error"), message)

    def broken(self, message: str, status: int, code: str | None) -> bytes:
        return event("error", _error("api_error", message))


def _error(kind: str, message: str) -> Json:
    return {"type": "error", "error": {"type": kind, "message": message}}


MESSAGES = Messages()
