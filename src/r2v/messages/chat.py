"""The gateway's one neutral form: an OpenAI chat request. What the other protocols say is converted from and to it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from r2v.core.types import Action, Context, ToolCall

Json = dict[str, Any]
IMAGE = 20_000
CLIP = 600
"""Characters kept of each observation of a long context: features read all of them at every step."""
CLIP_TOTAL = 30_000
KEPT = 2_000
"""Characters of a call's arguments up to which its canonical form is remembered."""


class BadRequest(Exception):
    """The client's request cannot be served; the message says why."""


class Function(Struct):
    name: str
    arguments: str | None = None


class Call(Struct):
    function: Function


class Part(Struct):
    type: str | None = None
    text: str | None = None
    image_url: dict[str, Any] | None = None


class Message(Struct):
    """What is read of a message; the rest is passed on as it came."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    tool_calls: list[Call] | None = None
    thinking_blocks: list[dict[str, Any]] | None = None
    reasoning_content: Any = None

    @property
    def text(self) -> str:
        """The words of it; parts that are not text are named."""
        if type(self.content) is list:
            return "\n".join(f"[{part.type or 'part'}]" if part.text is None else part.text for part in self.content)
        return self.content or ""  # type: ignore[return-value]


class _Options(Struct):
    include_usage: bool | None = None


class _Chosen(Struct):
    function: Function


class _Body(Struct):
    messages: Annotated[list[Message], Meta(min_length=1)]
    model: str | None = None
    stream: bool | None = None
    stream_options: _Options | None = None
    n: int | None = None
    max_tokens: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    tool_choice: str | _Chosen | None = None
    parallel_tool_calls: bool | None = None
    metadata: Any = None


class _ToolFunction(Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Tool(Struct):
    function: _ToolFunction


_bodies, _raw = msgspec.json.Decoder(_Body), msgspec.json.Decoder(dict[str, msgspec.Raw])
_tools = msgspec.json.Decoder(list[_Tool] | None)


@dataclass(frozen=True)
class Request:
    """One agent step as the client asked for it: what r2v reads of it, and the rest unread."""

    messages: Sequence[Message]
    fields: Mapping[str, msgspec.Raw]
    """The chat-completion body, without `model`, `stream` and `n`."""
    wanted_model: str
    stream: bool
    include_usage: bool
    max_tokens: int | None
    metadata: Any
    source: Json
    """The body in the client's own protocol, where that is another one."""
    size: int
    """Bytes of the request as it came, and `IMAGE` for each image that it only names: no fewer than its tokens."""
    tokens: int
    """An estimate of the prompt's, images left out: four characters a token."""
    plain: bool
    """Whether no message has parts that are meant for one model alone."""
    tools: bytes
    """The tools as they came, `null` for none: what is made of them is made once (`tools_of`)."""

    def body(self) -> Json:
        """All of it, read."""
        return {key: msgspec.json.decode(value) for key, value in self.fields.items()}


def parse(body: bytes, source: Json | None = None, size: int | None = None) -> Request:
    """A chat-completion request; `source` and its `size` are what it was made of, where that was another protocol. Raises
    BadRequest for anything else.
    """
    try:
        told, fields = _bodies.decode(body), _raw.decode(body)
    except msgspec.ValidationError as error:
        raise BadRequest(str(error)) from None
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON") from None
    tools = bytes(fields.get("tools", b"null"))
    tools_of(tools)
    if told.n not in (None, 1):
        raise BadRequest("n > 1 is not offered: r2v draws candidates itself and answers with one")
    length, images, plain = len(tools) if "tools" in fields else 0, 0, True
    for message in told.messages:
        length += len(message.text)
        if isinstance(message.content, list):
            images += sum(map(_is_named, message.content))
        plain = plain and message.thinking_blocks is None and message.reasoning_content is None
    return Request(
        told.messages,
        {key: value for key, value in fields.items() if key not in ("model", "stream", "stream_options", "n")},
        told.model or "r2v",
        bool(told.stream),
        bool(told.stream_options and told.stream_options.include_usage),
        told.max_completion_tokens or told.max_tokens,
        told.metadata if source is None else source.get("metadata"),
        source or {},
        (len(body) if size is None else size) + IMAGE * images,
        length // 4,
        plain,
        tools,
    )


@lru_cache(maxsize=256)  # an agent offers the same tools at every step
def tools_of(tools: bytes) -> tuple[Json, ...]:
    """The functions that are offered. Raises BadRequest."""
    try:
        found = _tools.decode(tools) or ()
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"tools: {error}") from None
    return tuple({"name": tool.function.name, "parameters": tool.function.parameters or {}} for tool in found)


def _is_named(part: Part) -> bool:
    """Whether it is an image that is named by an address, not sent."""
    return part.image_url is not None and not str(part.image_url.get("url")).startswith("data:")


def text_of(content: Any) -> str:
    """The words of a message's content; parts that are not text are named."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) else {} for part in content]
        return "\n".join(str(part["text"]) if "text" in part else f"[{part.get('type', 'part')}]" for part in parts)
    return ""


def action_of(message: Mapping[str, Any]) -> Action:
    """An assistant message of a model as an action."""
    calls = [call.get("function") or {} for call in message.get("tool_calls") or []]
    told = [(str(function.get("name", "")), str(function.get("arguments", ""))) for function in calls]
    return _action(text_of(message.get("content")), told)


def _action(words: str, calls: Sequence[tuple[str, str]]) -> Action:
    """The text holds the calls too: equal texts are equal actions."""
    if not calls:
        return Action(words.strip())
    # An episode's calls come back at every step; long ones are not kept.
    if len(calls) == 1 and len(calls[0][1]) < KEPT:
        return _known_call(*calls[0])
    known = [(_known_call if len(arguments) < KEPT else _call)(name, arguments) for name, arguments in calls]
    return Action("\n".join(one.text for one in known), tuple(call for one in known for call in one.tool_calls))


def _call(name: str, arguments: str) -> Action:
    try:
        told = msgspec.json.encode(msgspec.json.decode(arguments), order="sorted").decode()
    except (ValueError, RecursionError):
        told = arguments
    return Action(f"{name} {told}", (ToolCall(name, arguments),))


_known_call = lru_cache(maxsize=8192)(_call)


def context_of(request: Request, horizon: int) -> Context:
    """What the router sees: the first thing the user asked for, what came back since, what the assistant did."""
    goal = ""
    observations: list[str] = []
    actions: list[Action] = []
    pending: list[str] = []
    for message in request.messages:
        text = message.text
        if message.role == "assistant":
            observations.append(pending[0] if len(pending) == 1 else "\n".join(pending))
            calls = message.tool_calls
            told = [(call.function.name, call.function.arguments or "") for call in calls] if calls else []
            actions.append(_action(text, told))
            pending = []
        else:
            if not goal and message.role == "user":
                goal = text
            pending.append(text)
    observations.append("\n".join(pending))
    total = sum(map(len, observations))
    limit = max(CLIP, CLIP_TOTAL // len(observations)) if total > CLIP_TOTAL else total
    seen = [clip(text, limit) for text in observations] if total > CLIP_TOTAL else observations
    return Context(clip(goal, CLIP_TOTAL // 10), tuple(seen), tuple(actions), horizon)


def clip(text: str, limit: int) -> str:
    """The first third and the last two thirds of what is allowed: errors stand at the end."""
    return text if len(text) <= limit else text[: limit // 3] + text[len(text) - (limit - limit // 3) :]


def fingerprint(request: Request, key: str) -> str:
    """A session id for clients that send none: the system prompt, the tools and the first user message, for one key."""
    first = next((i for i, message in enumerate(request.messages) if message.role == "user"), 0)
    head = [[message.role, message.content] for message in request.messages[: first + 1]]
    told = msgspec.json.encode([key, head, request.fields.get("tools")])
    return "auto-" + hashlib.sha256(told).hexdigest()[:24]


def completion(choice: Json, usage: Json | None, *, model: str, identity: str, created: int) -> Json:
    """A chat completion with one choice."""
    return {
        "id": f"chatcmpl-{identity}",
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [{**choice, "index": 0}],
        "usage": usage or {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }


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
    """Puts a streamed answer together again."""

    def __init__(self) -> None:
        self._text, self._finish = "", None
        self._calls: dict[int, Json] = {}

    def add(self, choice: Json) -> None:
        delta = choice.get("delta") or {}
        self._text += delta.get("content") or ""
        self._finish = choice.get("finish_reason") or self._finish
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
        message: Json = {"role": "assistant", "content": self._text or None}
        if self._calls:
            message["tool_calls"] = [self._calls[i] for i in sorted(self._calls)]
        return {"index": 0, "message": message, "finish_reason": self._finish or "stop"}


def pieces(text: str, size: int = 400) -> Sequence[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]
