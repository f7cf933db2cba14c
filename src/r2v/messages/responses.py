"""OpenAI's Responses protocol, to and from the neutral form.

Its tools are of more kinds than the neutral form has: in a namespace, with free text as input (`custom`), a shell on the
client's side. Each becomes a function, and a call of it becomes an item of the tool's own kind again (`ClientTool`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from r2v.messages.conversation import FREE_TEXT, BadRequest, Json, Request, object_of, said_by, text_of
from r2v.messages.openai_chat import openai_error
from r2v.messages.protocol import Piece, ProtocolAdapter, References, Reply, Served, event, pieces

CONVERTED = (
    "model", "input", "instructions", "stream", "temperature", "top_p", "parallel_tool_calls", "max_output_tokens", "tools",
    "tool_choice", "text", "store", "previous_response_id", "metadata", "prompt_cache_key", "client_metadata",
)  # fmt: skip
SHELL = {
    "type": "object",
    "properties": {
        "command": {"type": "array", "items": {"type": "string"}},
        "workdir": {"type": "string"},
        "timeout_ms": {"type": "integer"},
    },
    "required": ["command"],
}
CALLS = ("function_call", "custom_tool_call", "local_shell_call")
TEXTS = {"output_text": "text", "refusal": "refusal"}
"""Kinds of parts of an answer that hold text -> the key under which it stands."""
EMPTY = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
BETWEEN = "\n"
"""Stands between the texts of several parts, which are one text in the neutral form."""
CUT = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Finish reason of an answer that is not whole -> the reason that this protocol gives."""


@dataclass(frozen=True)
class ClientTool:
    """A tool that runs on the client's side, and the function that stands for it in the neutral form."""

    kind: str
    """function, custom or local_shell."""
    name: str
    namespace: str | None
    function: Json

    def item(self, arguments: str) -> Json:
        """A call of the function as an item of this tool's kind, without ids."""
        where: Json = {"name": self.name} | ({"namespace": self.namespace} if self.namespace else {})
        if self.kind == "function":
            return {"type": "function_call", **where, "arguments": arguments}
        given = object_of(arguments)
        if self.kind == "custom":
            return {"type": "custom_tool_call", **where, "input": str(given.get("input", arguments))}
        command = given.get("command")
        command = (
            [str(word) for word in command] if isinstance(command, list) else ["bash", "-lc", str(command or arguments)]
        )
        options: Json = {
            "working_directory": given.get("workdir"),
            "timeout_ms": given.get("timeout_ms"),
            "env": {},
            "user": None,
        }
        return {"type": "local_shell_call", "action": {"type": "exec", "command": command, **options}}


def client_tools(raw: Json) -> tuple[dict[str, ClientTool], list[str]]:
    """The tools of a request by the name of their function, and the names of those that run on OpenAI's servers. Raises
    BadRequest.
    """
    items = raw["input"] if isinstance(raw.get("input"), list) else []
    later = [item.get("tools") for item in items if isinstance(item, dict) and item.get("type") == "additional_tools"]
    found: dict[str, ClientTool] = {}
    dropped: list[str] = []
    for tools in (raw.get("tools") or [], *later):
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise BadRequest("`tools` must be a list of objects")
        for tool in tools:
            grouped = tool.get("type") == "namespace"
            for one in (tool.get("tools") or []) if grouped else [tool]:
                _add_tool(found, dropped, one, str(tool.get("name")) if grouped else None)
    return found, dropped


def _add_tool(found: dict[str, ClientTool], dropped: list[str], tool: Json, namespace: str | None) -> None:
    kind, name = str(tool.get("type")), str(tool.get("name", "local_shell"))
    schemas = {"function": tool.get("parameters") or {}, "custom": FREE_TEXT, "local_shell": SHELL}
    if kind not in schemas:
        dropped.append(f"tools.{tool.get('name') or kind}")
        return
    words = str(tool.get("description") or {"local_shell": "Run a command."}.get(kind, ""))
    if kind == "custom" and isinstance(tool.get("format"), dict) and tool["format"].get("definition"):
        words += f"\n`input` follows this grammar ({tool['format'].get('syntax')}):\n{tool['format']['definition']}"
    unique = name if name not in found else f"{namespace}__{name}"
    function = {"name": unique, "description": words, "parameters": schemas[kind]}
    if tool.get("strict") is not None and kind == "function":
        function["strict"] = tool["strict"]
    found[unique] = ClientTool(kind, name, namespace, function)


def from_responses(raw: Json) -> tuple[Json, list[str]]:
    """A Responses request as a chat-completion body, and the names of what that cannot say. Raises BadRequest."""
    items, wanted = raw.get("input"), raw.get("include") or []
    if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
        raise BadRequest("`include` must be a list of names")
    items = [{"role": "user", "content": items}] if isinstance(items, str) else items
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise BadRequest("`input` must be text or a list of items")
    tools, dropped = client_tools(raw)
    dropped += [key for key in raw if key not in CONVERTED and raw[key] not in (None, [], {})]
    messages: list[Json] = []
    if raw.get("instructions"):
        messages.append({"role": "system", "content": str(raw["instructions"])})
    names = {(tool.name, tool.namespace): unique for unique, tool in reversed(tools.items())}
    seen: list[Json] = []
    for item in items:
        if item.get("type", "message") in ("message", *CALLS):
            _show(messages, seen)
        _add(messages, item, names, dropped, seen)
    _show(messages, seen)
    if not messages:
        raise BadRequest("`input` holds no message")
    body: Json = {"messages": messages, "model": raw.get("model", "r2v"), "stream": raw.get("stream", False)}
    body |= {key: raw[key] for key in ("temperature", "top_p") if raw.get(key) is not None}
    if raw.get("max_output_tokens"):
        body["max_tokens"] = raw["max_output_tokens"]
    if tools:
        body["tools"] = [{"type": "function", "function": tool.function} for tool in tools.values()]
        body |= _tool_choice(raw.get("tool_choice"), tools, dropped)
        if raw.get("parallel_tool_calls") is not None:
            body["parallel_tool_calls"] = raw["parallel_tool_calls"]
    return body | _format(raw.get("text"), dropped), dropped


def _tool_choice(choice: Any, tools: Mapping[str, ClientTool], dropped: list[str]) -> Json:
    if not isinstance(choice, dict):
        return {"tool_choice": choice} if choice else {}
    named = next((unique for unique, tool in tools.items() if tool.name == choice.get("name")), None)
    if named is None:
        dropped.append("tool_choice")
        return {}
    return {"tool_choice": {"type": "function", "function": {"name": named}}}


def _format(text: Any, dropped: list[str]) -> Json:
    text = text if isinstance(text, dict) else {}
    dropped += [f"text.{key}" for key in text if key != "format"]
    form = text.get("format")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        schema = {key: form[key] for key in ("name", "schema", "strict", "description") if key in form}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    if isinstance(form, dict) and form.get("type") == "json_object":
        return {"response_format": {"type": "json_object"}}
    return {}


def _show(messages: list[Json], seen: list[Json]) -> None:
    """What the outputs of calls hold beside text, as the user's: behind the last of them, for they answer one message."""
    if seen:
        messages.append({"role": "user", "content": [*seen]})
        seen.clear()


def _add(
    messages: list[Json], item: Json, names: Mapping[tuple[Any, Any], str], dropped: list[str], seen: list[Json]
) -> None:
    """`names`: (name, namespace) of a tool -> that of its function; to `seen` is added what an output shows."""
    kind = item.get("type", "message")
    if kind in CALLS:
        call = {"id": item.get("call_id"), "type": "function", "function": _function_of(item, names)}
        if messages and messages[-1]["role"] == "assistant":
            messages[-1].setdefault("tool_calls", []).append(call)
        else:
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    elif kind in [f"{call}_output" for call in CALLS]:
        output = item.get("output")
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text_of(output)})
        parts = [p for p in output if isinstance(p, dict)] if isinstance(output, list) else []
        seen += [part for part in (_part(p, dropped) for p in parts) if part["type"] != "text"]
    elif kind == "message":
        role = item.get("role")
        if role not in ("user", "assistant", "system", "developer"):
            raise BadRequest(f"an input item has the role {role!r}")
        messages.append({"role": role, "content": _content(item.get("content"), role, dropped)})
    elif kind != "additional_tools":
        dropped.append(str(kind))


def _function_of(item: Json, names: Mapping[tuple[Any, Any], str]) -> Json:
    """The call of an item as a function call. Raises TypeError where its name is none."""
    if item["type"] == "local_shell_call":
        action = item.get("action") or {}
        arguments = {"command": action.get("command"), "workdir": action.get("working_directory")}
        return {"name": "local_shell", "arguments": json.dumps({k: v for k, v in arguments.items() if v is not None})}
    name = names.get((item.get("name"), item.get("namespace")), item.get("name"))
    if item["type"] == "custom_tool_call":
        return {"name": name, "arguments": json.dumps({"input": item.get("input", "")}, ensure_ascii=False)}
    return {"name": name, "arguments": item.get("arguments", "")}


def _content(content: Any, role: str, dropped: list[str]) -> Any:
    if not isinstance(content, list) or role == "assistant":
        return text_of(content)
    parts = [
        _part(part, dropped) if isinstance(part, dict) else {"type": "text", "text": text_of([part])} for part in content
    ]
    plain = all(part["type"] == "text" for part in parts)
    return "\n".join(part["text"] for part in parts) if plain else parts


def _part(part: Json, dropped: list[str]) -> Json:
    if part.get("type") == "input_image" and part.get("image_url"):
        return {"type": "image_url", "image_url": {"url": part["image_url"]}}
    if "text" not in part:
        dropped.append(str(part.get("type")))
    return {"type": "text", "text": text_of([part])}


def _item_of(call: Json, identity: str, index: int, tools: Mapping[str, ClientTool]) -> Json:
    """A call of the neutral form as an output item."""
    name, arguments = said_by(call)
    tool = tools.get(name) or ClientTool("function", name, None, {})
    item = tool.item(arguments)
    prefix = {"function_call": "fc", "custom_tool_call": "ctc"}.get(item["type"], "lsh")
    return {**item, "id": f"{prefix}_{identity}_{index}", "call_id": call.get("id"), "status": "completed"}


def response_of(reply: Reply, raw: Json, served: Served) -> Json:
    """A Responses answer for a client."""
    if reply.protocol == "responses" and reply.own is not None:
        kept: Json = {key: raw[key] for key in ("store", "previous_response_id") if key in raw}
        if reply.parsed_calls:
            kept |= {"status": "completed", "incomplete_details": None, "output": _output_with_calls(reply, raw, served)}
        return {**reply.own, "id": f"resp_{served.id}", "model": served.model, **kept}
    message, usage, tools = reply.choice["message"], reply.usage, client_tools(raw)[0]
    output: list[Json] = []
    if content := _parts_of(message):
        output.append(_message(served, content))
    output += [_item_of(call, served.id, i, tools) for i, call in enumerate(message.get("tool_calls") or [])]
    cut = CUT.get(str(reply.choice.get("finish_reason")))
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        **_begun(raw, served),
        "completed_at": int(time.time()),
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": cut} if cut else None,
        "output": output,
        "usage": {
            "input_tokens": usage.get("prompt_tokens") or 0,
            "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": usage.get("completion_tokens") or 0,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": usage.get("total_tokens") or 0,
        },
    }


def _output_with_calls(reply: Reply, raw: Json, served: Served) -> list[Json]:
    """The output of a model that speaks this protocol, with the calls that were read in its text. Parts, and messages, that
    were nothing else are left out.
    """
    message, tools = reply.choice["message"], client_tools(raw)[0]
    words, output = message["content"] or "", []
    for item in (reply.own or {})["output"]:
        if item.get("type") != "message":
            output.append(item)
            continue
        parts = []
        for part in item.get("content") or []:
            whole = part.get("text") or ""
            text = whole if words.startswith(whole) else words  # a call is in it, or before it
            words = words[len(text) :].removeprefix(BETWEEN if text else "")
            if text or not whole:
                parts.append({**part, "text": text} if whole else part)
        if parts or not item.get("content"):
            output.append({**item, "content": parts})
    return output + [_item_of(call, served.id, i, tools) for i, call in enumerate(message["tool_calls"])]


def _begun(raw: Json, served: Served) -> Json:
    """A response before anything is in it."""
    return {
        "id": f"resp_{served.id}",
        "object": "response",
        "created_at": served.created,
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": raw.get("instructions"),
        "metadata": raw.get("metadata") or {},
        "model": served.model,
        "output": [],
        "parallel_tool_calls": raw.get("parallel_tool_calls", True),
        "previous_response_id": raw.get("previous_response_id"),
        "temperature": raw.get("temperature"),
        "top_p": raw.get("top_p"),
        "tool_choice": raw.get("tool_choice", "auto"),
        "tools": raw.get("tools") or [],
        "store": raw.get("store", True),
        "usage": None,
    }


def _message(served: Served, content: list[Json], status: str = "completed") -> Json:
    return {"type": "message", "id": f"msg_{served.id}", "status": status, "role": "assistant", "content": content}


def _parts_of(message: Json) -> list[Json]:
    """The words of a message of the neutral form as parts of an output item."""
    text, refusal = text_of(message.get("content")), message.get("refusal")
    parts: list[Json] = [{**EMPTY, "text": text}] if text else []
    return parts + ([{"type": "refusal", "refusal": refusal}] if refusal else [])


class _Encoder:
    """See `StreamEncoder`. Arguments of calls are sent when they are whole: a tool's own kind of item needs them so."""

    def __init__(self, request: Request, served: Served) -> None:
        self._raw, self._served = request.source, served
        self._number = 0
        self._items = 0
        """That have been streamed as a whole."""
        self._item: Json = {}
        """The one after them, as far as it has been begun; empty: not at all."""
        self._parts = 0
        """Of it, that have been streamed as a whole."""
        self._sent: int | None = None
        """Characters of the text of the part after them; None: it has not been begun."""

    def add(self, piece: Piece) -> Iterator[bytes]:
        yield from self._begin()
        for choice in ((piece.chunk or {}).get("choices") or [])[:1]:
            if text := (choice.get("delta") or {}).get("content"):
                yield from self._begin_item(_message(self._served, []))
                yield from self._add_text(EMPTY, text)

    def end(self, reply: Reply, rest: Sequence[Piece], facts: Json) -> Iterator[bytes]:
        for piece in rest:
            yield from self.add(piece)
        yield from self.whole(response_of(reply, self._raw, self._served), facts)

    def whole(self, response: Json, facts: Json) -> Iterator[bytes]:
        """The events of a response, without what has been streamed of it."""
        yield from self._begin()
        for item in response["output"][self._items :]:
            if item["type"] == "message":
                yield from self._begin_item(item)
                for part in (item.get("content") or [])[self._parts :]:
                    yield from self._part(part)
            elif item["type"] in CALLS:
                yield from self._call(item)
            else:  # of a model's own answer: its reasoning
                yield self._event("response.output_item.added", output_index=self._items, item=item)
            yield self._event("response.output_item.done", output_index=self._items, item=item)
            self._next_item()
        kind = "response.completed" if response["status"] == "completed" else "response.incomplete"
        yield self._event(kind, response=response, r2v=facts)

    def follow(self, own: Json) -> None:
        """Go on after an event of the model's own."""
        self._number += 1
        kind = own.get("type")
        if kind == "response.output_item.added":
            self._item = own["item"]
        elif kind == "response.output_item.done":
            self._next_item()
        elif kind == "response.content_part.added":
            self._sent = 0
        elif kind == "response.content_part.done":
            self._parts, self._sent = self._parts + 1, None
        elif kind == "response.output_text.delta":
            self._sent = (self._sent or 0) + len(str(own["delta"]))

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return event(kind, {"type": kind, "sequence_number": self._number - 1, **fields})

    def _begin(self) -> Iterator[bytes]:
        if not self._number:
            begun = _begun(self._raw, self._served)
            yield self._event("response.created", response=begun)
            yield self._event("response.in_progress", response=begun)

    def _begin_item(self, item: Json) -> Iterator[bytes]:
        """A message, unless it has been begun."""
        if not self._item:
            self._item = {**item, "status": "in_progress", "content": []}
            yield self._event("response.output_item.added", output_index=self._items, item=self._item)

    def _next_item(self) -> None:
        self._items, self._item, self._parts, self._sent = self._items + 1, {}, 0, None

    @property
    def _where(self) -> Json:
        return {"item_id": self._item.get("id"), "output_index": self._items, "content_index": self._parts}

    def _add_text(self, part: Json, text: str) -> Iterator[bytes]:
        """More of a part; `part` is its beginning, or all of it."""
        kind = part["type"]
        if self._sent is None:
            self._sent = 0
            yield self._event("response.content_part.added", **self._where, part={**part, TEXTS[kind]: ""})
        self._sent += len(text)
        more: Json = {"logprobs": []} if kind == "output_text" else {}
        yield self._event(f"response.{kind}.delta", **self._where, delta=text, **more)

    def _part(self, part: Json) -> Iterator[bytes]:
        """What has not been streamed of a part."""
        if (kind := part.get("type")) in TEXTS:
            text = part[TEXTS[kind]]
            for words in pieces(text[self._sent or 0 :]) or [""] * (self._sent is None):
                yield from self._add_text(part, words)
            more: Json = {"logprobs": []} if kind == "output_text" else {}
            yield self._event(f"response.{kind}.done", **self._where, **{TEXTS[kind]: text}, **more)
        else:
            yield self._event("response.content_part.added", **self._where, part=part)
        yield self._event("response.content_part.done", **self._where, part=part)
        self._parts, self._sent = self._parts + 1, None

    def _call(self, item: Json) -> Iterator[bytes]:
        key, kind = {
            "function_call": ("arguments", "response.function_call_arguments"),
            "custom_tool_call": ("input", "response.custom_tool_call_input"),
        }.get(item["type"], (None, ""))
        begun = {**item, "status": "in_progress"} | ({key: ""} if key else {})
        yield self._event("response.output_item.added", output_index=self._items, item=begun)
        if key:
            where = {"item_id": item.get("id"), "output_index": self._items}
            for text in pieces(item[key]):
                yield self._event(f"{kind}.delta", **where, delta=text)
            yield self._event(f"{kind}.done", **where, **{key: item[key]}, name=item.get("name"))


class _OwnEncoder:
    """See `StreamEncoder`, for models that speak this protocol: their own events, up to calls that they wrote as text."""

    def __init__(self, request: Request, served: Served) -> None:
        self._request, self._served = request, served
        self._calls = _Encoder(request, served)

    def add(self, piece: Piece) -> Iterator[bytes]:
        if piece.own is None:
            return
        self._calls.follow(piece.own)
        yield event(str(piece.own.get("type")), self._mended(piece.own))

    def end(self, reply: Reply, rest: Sequence[Piece], facts: Json) -> Iterator[bytes]:
        if reply.parsed_calls:
            yield from self._calls.whole(response_of(reply, self._request.source, self._served), facts)
            return
        for piece in rest:
            own = piece.own or {}
            yield event(str(own.get("type")), {**self._mended(own), "r2v": facts})

    def _mended(self, own: Json) -> Json:
        if "response" not in own:
            return own
        return {**own, "response": {**own["response"], "id": f"resp_{self._served.id}", "model": self._served.model}}


class Responses(ProtocolAdapter):
    name = "responses"
    path = "/responses"

    def resolve(self, source: Json, references: References) -> Json:
        """The request with the items that it only refers to. Raises BadRequest for what is not kept (any more)."""
        items = source.get("input")
        items = [{"role": "user", "content": items}] if isinstance(items, str) else items
        if source.get("conversation"):
            raise BadRequest("r2v keeps responses, no conversations: send previous_response_id or the whole input")
        if not isinstance(items, list):
            return source
        found = []
        if previous := source.get("previous_response_id"):
            found += references.items(previous, "Previous response with id")
        for item in items:
            if isinstance(item, dict) and item.get("type") == "item_reference":
                named = references.items(item.get("id"), "Item with id")
                if len(named) != 1:
                    raise BadRequest("an item_reference names a response; give that as previous_response_id")
                found += named
            else:
                found.append(item)
        return {**source, "input": found}

    def kept(self, request: Request, reply: Reply, served: Served) -> Json:
        if request.source.get("store") is False:
            return {}
        answer = self.whole(reply, request, served)
        items = {answer["id"]: [*request.source["input"], *answer["output"]]}
        return items | {item["id"]: [item] for item in answer["output"] if isinstance(item.get("id"), str)}

    def neutral(self, source: Json) -> tuple[Json, list[str]]:
        return from_responses(source)

    def whole(self, reply: Reply, request: Request, served: Served) -> Json:
        return response_of(reply, request.source, served)

    def held(self, reply: Reply, request: Request, served: Served, facts: Json) -> Iterator[bytes]:
        yield from _Encoder(request, served).whole(self.whole(reply, request, served), facts)

    def encoder(self, request: Request, served: Served, protocol: str) -> _Encoder | _OwnEncoder:
        return _OwnEncoder(request, served) if protocol == self.name else _Encoder(request, served)

    def error(self, message: str, status: int, code: str | None = None) -> Json:
        return openai_error(message, status, code)

    def broken(self, message: str, status: int, code: str | None) -> bytes:
        return event("error", {"type": "error", "message": message, "code": code, "param": None, "sequence_number": 0})


RESPONSES = Responses()
