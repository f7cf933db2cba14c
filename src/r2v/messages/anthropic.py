"""Anthropic's Messages protocol as clients speak it, to and from the neutral form."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from r2v.messages.conversation import BadRequest, Json, Request, object_of, said_by, text_of
from r2v.messages.protocol import Piece, ProtocolAdapter, Reply, Served, event, pieces

STOP = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
SAME = ("temperature", "top_p", "max_tokens")
CONVERTED = (*SAME, "model", "messages", "system", "stream", "stop_sequences", "tools", "tool_choice", "output_config")
ENDS = ("stop_reason", "stop_sequence", "stop_details")
"""What is said of an answer when it ends."""
WHOLE = 20_000
"""Characters of a call's arguments up to which it is seen that they are whole before the stream ends."""
ERRORS = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip
"""Types of Anthropic's errors; all others are `api_error`."""


def from_messages(raw: Json) -> tuple[Json, list[str]]:
    """A Messages request as a chat-completion body, and the names of what that cannot say. Raises BadRequest."""
    if not isinstance(raw.get("messages"), list) or not raw["messages"]:
        raise BadRequest("`messages` must be a list of at least one message")
    dropped = [key for key in raw if key not in CONVERTED]
    messages: list[Json] = []
    if raw.get("system"):
        messages.append({"role": "system", "content": text_of(raw["system"])})
    for message in raw["messages"]:
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant", "system"):
            raise BadRequest("a message must have the role user, assistant or system")
        blocks = message.get("content")
        blocks = [{"type": "text", "text": blocks}] if isinstance(blocks, str) else blocks
        if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
            raise BadRequest("the content of a message must be text or a list of blocks")
        if any("cache_control" in block for block in blocks):
            dropped.append("cache_control")
        if message["role"] == "assistant":
            messages += assistant(blocks, dropped)
        elif message["role"] == "user":
            messages += _user(blocks, dropped)
        else:
            messages.append(_system(text_of(blocks), first=not messages or messages[-1]["role"] == "system"))
    body: Json = {"messages": messages, "model": raw.get("model", "r2v"), "stream": raw.get("stream", False)}
    body |= {key: raw[key] for key in SAME if key in raw}
    if raw.get("stop_sequences"):
        body["stop"] = raw["stop_sequences"]
    body |= _format(raw.get("output_config"), dropped)
    if tools := _tools(raw.get("tools") or [], dropped):
        body |= {"tools": tools, **_tool_choice(raw.get("tool_choice"))}
    return body, dropped


def _system(words: str, *, first: bool) -> Json:
    """Instructions amid the conversation are the user's: most chat templates refuse them as the system's."""
    return {"role": "system", "content": words} if first else {"role": "user", "content": f"<system>\n{words}\n</system>"}


def _format(config: Any, dropped: list[str]) -> Json:
    config = config if isinstance(config, dict) else {}
    dropped += [f"output_config.{key}" for key in config if key != "format"]
    form = config.get("format")
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        return {}
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": form.get("schema") or {}}}
    }


def _tools(tools: Any, dropped: list[str]) -> list[Json]:
    """Those that have a schema: the others run on Anthropic's servers, or are known to its models alone."""
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRequest("`tools` must be a list of objects")
    dropped += [f"tools.{tool.get('name') or tool.get('type')}" for tool in tools if "input_schema" not in tool]
    return [
        {
            "type": "function",
            "function": {"name": t["name"], "description": t.get("description", ""), "parameters": t["input_schema"]},
        }
        for t in tools
        if "input_schema" in t
    ]


def _tool_choice(choice: Any) -> Json:
    if not isinstance(choice, dict):
        return {}
    if choice.get("type") == "tool":
        wanted: Any = {"type": "function", "function": {"name": choice.get("name")}}
    else:
        wanted = {"any": "required", "none": "none"}.get(str(choice.get("type")), "auto")
    return {"tool_choice": wanted} | ({"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {})


def assistant(blocks: list[Json], dropped: list[str]) -> list[Json]:
    """A model's blocks as one message of the neutral form; the types of what that cannot say are added to `dropped`."""
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
    dropped += [str(b.get("type")) for b in blocks if b.get("type") not in ("text", "tool_use")]
    return [message]


def _user(blocks: list[Json], dropped: list[str]) -> list[Json]:
    """Results of tools as messages of their own, which hold text alone: their images follow as the user's."""
    found: list[Json] = []
    rest: list[Json] = []
    for block in blocks:
        if block.get("type") == "tool_result":
            inner = block.get("content")
            parts = [part for part in inner if isinstance(part, dict)] if isinstance(inner, list) else []
            words = text_of(inner)
            words = f"[tool error] {words}" if block.get("is_error") else words
            found.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": words})
            rest += [_part(part, dropped) for part in parts if part.get("type") != "text"]
        else:
            rest.append(_part(block, dropped))
    if rest:
        plain = all(part["type"] == "text" for part in rest)
        found.append({"role": "user", "content": "\n".join(part["text"] for part in rest) if plain else rest})
    return found


def _part(block: Json, dropped: list[str]) -> Json:
    source = block.get("source") or {}
    if block.get("type") == "image" and source.get("type") != "file":
        url = source.get("url") or f"data:{source.get('media_type')};base64,{source.get('data')}"
        return {"type": "image_url", "image_url": {"url": str(url)}}
    if block.get("type") == "document" and source.get("type") == "text":
        return {"type": "text", "text": str(source.get("data"))}
    if "text" not in block:
        dropped.append(str(block.get("type")))
    return {"type": "text", "text": str(block.get("text", f"[{block.get('type', 'part')}]"))}


def tool_uses(message: Json) -> list[Json]:
    """The calls of an assistant message as blocks."""
    return [
        {
            "type": "tool_use",
            "id": call.get("id"),
            "name": name,
            "input": object_of(arguments),
        }
        for call in message.get("tool_calls") or []
        for name, arguments in [said_by(call)]
    ]


def stop_reason(choice: Json) -> str:
    """Why an answer ended, as Anthropic says it. OpenAI ends a call that the client forces with `stop`."""
    finish = str(choice.get("finish_reason"))
    if choice["message"].get("refusal"):
        return "refusal"
    return "tool_use" if finish == "stop" and choice["message"].get("tool_calls") else STOP.get(finish, "end_turn")


def usage_of(usage: Json) -> Json:
    """The usage of a chat completion as Anthropic counts it."""
    details = usage.get("prompt_tokens_details") or {}
    cached, written = details.get("cached_tokens") or 0, details.get("cache_creation_tokens") or 0
    return {
        "input_tokens": (usage.get("prompt_tokens") or 0) - cached - written,
        "output_tokens": usage.get("completion_tokens") or 0,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": written,
    }


def answer_of(reply: Reply, served: Served) -> Json:
    """A Messages answer for a client."""
    head = {"id": f"msg_{served.id}", "model": served.model}
    own = None
    if reply.protocol == "messages" and reply.own is not None:
        own = {"usage": usage_of(reply.usage), **reply.own, **head}
    if own is not None and not reply.parsed_calls:
        return own
    message = reply.choice["message"]
    blocks: list[Json] = list(message.get("thinking_blocks") or [])
    if words := text_of(message.get("content")) + (message.get("refusal") or ""):  # both, as they are streamed
        blocks.append({"type": "text", "text": words})
    if own is not None:
        return {**own, "content": blocks + tool_uses(message), "stop_reason": "tool_use"}
    return {
        **head,
        "type": "message",
        "role": "assistant",
        "content": blocks + tool_uses(message),
        "stop_reason": stop_reason(reply.choice),
        "stop_sequence": None,
        "usage": usage_of(reply.usage),
    }


def _events(message: Json, extra: Json) -> Iterator[tuple[str, Json]]:
    """The same answer as stream events."""
    ended = {key: message[key] for key in ENDS if key in message}
    empty = {**message, **dict.fromkeys(ended), "content": [], "usage": {**message["usage"], "output_tokens": 0}}
    yield "message_start", {"type": "message_start", "message": empty}
    for i, block in enumerate(message["content"]):
        kind = block["type"]
        start: Json
        deltas: list[Json]
        if kind == "text":
            start, deltas = {"type": "text", "text": ""}, [{"type": "text_delta", "text": t} for t in pieces(block["text"])]
            if cited := block.get("citations"):
                start["citations"] = []
                deltas += [{"type": "citations_delta", "citation": one} for one in cited]
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
    yield "message_delta", {"type": "message_delta", "delta": ended, "usage": message["usage"], "r2v": extra}
    yield "message_stop", {"type": "message_stop"}


class _Encoder:
    """See `StreamEncoder`, for models that speak another protocol."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._begun, self._block = False, -1
        self._kind: str | int | None = None
        """Of the block that is open: text, or the number of a call."""
        self._arguments = ""
        """Of the latest call, or their beginning."""
        self._latest, self._unnamed = -1, Json()
        """The number of that call, and its block as long as it has no name and has not been begun."""
        self._held: list[Json] = []
        """Parts of other calls, and of the text, which came before the open call was whole: blocks follow one another."""

    def add(self, piece: Piece) -> Iterator[bytes]:
        if piece.chunk is not None and piece.chunk.get("choices"):
            for name, content in self._events(piece.chunk["choices"][0].get("delta") or {}):
                yield event(name, content)

    def end(self, reply: Reply, rest: Sequence[Piece], facts: Json) -> Iterator[bytes]:
        for piece in rest:
            yield from self.add(piece)
        while self._held:
            for name, content in self._next():
                yield event(name, content)
        for name, content in self._close():
            yield event(name, content)
        delta = {"stop_reason": stop_reason(reply.choice), "stop_sequence": None}
        last = {"type": "message_delta", "delta": delta, "usage": usage_of(reply.usage), "r2v": facts}
        yield event("message_delta", last)
        yield event("message_stop", {"type": "message_stop"})

    def follow(self, own: Json) -> None:
        """Go on after an event of the model's own."""
        self._begun = True
        if own.get("type") == "content_block_start":
            self._block, self._kind = own["index"], own["content_block"].get("type")
        elif own.get("type") == "content_block_stop":
            self._kind = None

    def _events(self, delta: Json) -> Iterator[tuple[str, Json]]:
        if not self._begun:
            self._begun = True
            start: Json = {"id": f"msg_{self._served.id}", "type": "message", "role": "assistant", "content": []}
            start |= {"model": self._served.model, "stop_reason": None, "stop_sequence": None, "usage": usage_of({})}
            yield "message_start", {"type": "message_start", "message": start}
        if words := delta.get("content") or delta.get("refusal"):
            yield from self._add({"content": words})
        for part in delta.get("tool_calls") or []:
            yield from self._add(part)

    def _add(self, part: Json) -> Iterator[tuple[str, Json]]:
        """A part of a call, or of the text."""
        if isinstance(self._kind, int) and part.get("index") != self._kind and not self._is_whole():
            self._held.append(part)
            return
        yield from self._write(part)
        while self._held and self._is_whole():
            yield from self._next()

    def _next(self) -> Iterator[tuple[str, Json]]:
        """What is held of the call whose part came first, or of the text."""
        index, parts = self._held[0].get("index"), self._held
        self._held = [part for part in parts if part.get("index") != index]
        for part in parts:
            if part.get("index") == index:
                yield from self._write(part)

    def _write(self, part: Json) -> Iterator[tuple[str, Json]]:
        if "content" in part:
            if self._kind != "text":
                yield from self._close()
                self._kind = "text"
                yield self._start({"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": part["content"]})
            return
        function, index = part.get("function") or {}, part.get("index", 0)
        if index != self._kind:
            if index <= self._latest:  # it was whole: nothing but space can follow
                return
            yield from self._close()
            self._kind = self._latest = index
            self._arguments, self._unnamed = "", {"type": "tool_use", "id": part.get("id"), "input": {}}
        arguments = function.get("arguments") or ""
        if self._unnamed or len(self._arguments) <= WHOLE:
            self._arguments += arguments
        if self._unnamed:
            yield from self._name(function.get("name") or "")
        elif arguments:
            yield self._delta({"type": "input_json_delta", "partial_json": arguments})

    def _name(self, name: str, *, last: bool = False) -> Iterator[tuple[str, Json]]:
        """Begin the block of a call when its name is known; `last`: it will not be."""
        if self._unnamed and (name or last):
            yield self._start({**self._unnamed, "name": name})
            self._unnamed = {}
            if self._arguments:
                yield self._delta({"type": "input_json_delta", "partial_json": self._arguments})

    def _is_whole(self) -> bool:
        """Whether the latest call has all of its arguments."""
        written = self._arguments
        if self._unnamed or len(written) > WHOLE or not written.rstrip().endswith("}"):
            return False
        return object_of(written) != {"arguments": written}

    def _start(self, block: Json) -> tuple[str, Json]:
        self._block += 1
        return "content_block_start", {"type": "content_block_start", "index": self._block, "content_block": block}

    def _close(self) -> Iterator[tuple[str, Json]]:
        yield from self._name("", last=True)
        if self._kind is not None:
            yield "content_block_stop", {"type": "content_block_stop", "index": self._block}
        self._kind = None

    def _delta(self, delta: Json) -> tuple[str, Json]:
        return "content_block_delta", {"type": "content_block_delta", "index": self._block, "delta": delta}


class _OwnEncoder:
    """See `StreamEncoder`, for models that speak this protocol: their own events, up to calls that they wrote as text."""

    def __init__(self, served: Served) -> None:
        self._served, self._calls = served, _Encoder(served)

    def add(self, piece: Piece) -> Iterator[bytes]:
        own = piece.own
        if own is None:
            yield from self._calls.add(piece)
            return
        self._calls.follow(own)
        if own.get("type") == "message_start":
            message = {**own["message"], "id": f"msg_{self._served.id}", "model": self._served.model}
            own = {**own, "message": message}
        yield event(str(own.get("type")), own)

    def end(self, reply: Reply, rest: Sequence[Piece], facts: Json) -> Iterator[bytes]:
        if reply.parsed_calls:
            yield from self._calls.end(reply, rest, facts)
            return
        for piece in rest:
            own = piece.own or {}
            yield event(str(own.get("type")), {**own, "r2v": facts} if own.get("type") == "message_delta" else own)


class Messages(ProtocolAdapter):
    name = "messages"
    path = "/messages"
    passed_headers = ("anthropic-beta", "anthropic-version")

    def neutral(self, source: Json) -> tuple[Json, list[str]]:
        return from_messages(source)

    def whole(self, reply: Reply, request: Request, served: Served) -> Json:
        return answer_of(reply, served)

    def held(self, reply: Reply, request: Request, served: Served, facts: Json) -> Iterator[bytes]:
        for name, content in _events(answer_of(reply, served), facts):
            yield event(name, content)

    def encoder(self, request: Request, served: Served, protocol: str) -> _Encoder | _OwnEncoder:
        return _OwnEncoder(served) if protocol == self.name else _Encoder(served)

    def ping(self) -> bytes:
        return event("ping", {"type": "ping"})

    def error(self, message: str, status: int, code: str | None = None) -> Json:
        return {"type": "error", "error": {"type": ERRORS.get(status, "api_error"), "message": message}}

    def broken(self, message: str, status: int, code: str | None) -> bytes:
        return event("error", self.error(message, status))


MESSAGES = Messages()
