"""The neutral form of a conversation: an OpenAI chat request, typed. The other protocols are converted from and to it."""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from r2v.core.cache import remembered
from r2v.core.types import Action, Context, ToolCall
from r2v.messages.json_size import SMALL, JsonSize

Json = dict[str, Any]
OUTSIDE = re.compile(
    r"tools\..+|(input_)?(document|image|file|video)|video_url|container(_upload)?|mcp_servers|prompt|web_search_options"
    r"|search_parameters|plugins"
)
"""Names of parts and fields through which a model reads what is not in the request, or not as text."""
CLIP = 600
"""Characters kept of each observation of a long context: features read all of them at every step."""
CLIP_TOTAL = 30_000
"""Characters of all observations together from which on a context is long."""
SAID = 20_000
"""Bytes of a value that r2v reads of the rest of a body (`Request.said`)."""
KEPT, CALLS = 1_000, 4_096
"""Characters of a call up to which its canonical form is remembered, and of how many: some 30 MB at most."""
CANONICAL = 20_000
"""Characters of a call's arguments up to which they are brought into a canonical form: that takes up to 10 ms."""
LONG = 250_000
"""Bytes of a body from which on its messages are read one by one, which takes a third longer; see `runtime.slices`."""
BLOCKS = 50
"""Blocks before a user's own words that are left out."""
TOOLS_BYTES = 64_000_000
"""Memory for the tools of requests; as objects they take some 14 times the bytes of their JSON."""
MESSAGES = 10_000
"""Of one request. Each costs some 10 microseconds, in which nobody else is served."""
FIELDS = 1_000
"""Of one request, beside one another."""
DROPPED = 100
"""Names of what a request lacks for a model."""
UNLIKELY = -1e9
"""Nats: what is said to be less likely is not said in earnest."""
FINGERPRINT = 20_000
"""Characters of a message of which a fingerprint is made."""
ID_LENGTH = 40
"""Characters of a call's id that OpenAI's API takes."""
ELSEWHERE = re.compile(
    r"(api|aws|azure|vertex|watsonx|litellm|openai|anthropic|mock)_.*|.*(base|key|secret|token|credentials|headers?|proxy|url|uri)"
    r"|endpoint|custom_llm_provider|deployment|organization|project|region(_name)?|extra_(body|query)|fallbacks|.*_fallbacks"
    r"|model_list|user_config|callbacks?|success_callback|failure_callback|guardrails|transport|host(name)?"
    r"|service_tier|speed|inference_geo|models|provider|route|preset|best_of|prediction|modalities|audio|num_retries"
    r"|context_window_fallback_dict",
    re.IGNORECASE,
)
"""Names of fields with which a proxy could be made to ask another server, with another key, or at another price than the
settings say: never passed on."""
MEANT = frozenset({"prompt_cache_key"})
"""Fields that look like it and are not."""
AROUND = re.compile(
    r"<([\w-]{0,40}?(?:context|reminder|instructions|environment|permissions|caveat|setup)[\w-]{0,40})>", re.I
)
"""Opens a block that agent programs put before the user's own words."""
SPACE, SURROGATE = re.compile(r"\s*"), re.compile(r"\\u[dD][89a-fA-F]")


FREE_TEXT = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
"""Arguments of the function that a tool with free text as its input is in other protocols."""
NULL = Raw(b"null")


class BadRequest(Exception):
    """The client's request cannot be served; the message is for the client."""


# Messages hold no cycles; without `gc=False` each long request makes the garbage collector search them.
class Function(Struct, gc=False):
    name: str
    arguments: str | None = None


class Custom(Struct, gc=False):
    name: str
    input: str | None = None


class Call(Struct, gc=False):
    function: Function | None = None
    id: str | None = None
    type: str | None = None
    custom: Custom | None = None

    def __post_init__(self) -> None:
        _check_kind(self.type, self.function)

    @property
    def said(self) -> tuple[str, str]:
        """(name, arguments as text)."""
        if self.function is not None:
            return self.function.name, self.function.arguments or ""
        return ("", "") if self.custom is None else (self.custom.name, free_text(self.custom.input))


class Part(Struct, gc=False):
    type: str | None = None
    text: str | None = None
    image_url: dict[str, Raw] | None = None
    refusal: str | None = None

    @property
    def words(self) -> str:
        found = self.refusal if self.text is None else self.text
        return f"[{self.type or 'part'}]" if found is None else found


class Message(Struct, gc=False):
    """What is read of a message; the rest is passed on as it came."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    thinking_blocks: list[dict[str, Raw]] | None = None
    reasoning_content: Raw = NULL

    @property
    def text(self) -> str:
        """The words of it; parts that are not text are named."""
        if type(self.content) is list:
            return "\n".join([part.words for part in self.content])
        return self.content or self.refusal or ""  # type: ignore[return-value]

    @property
    def plain(self) -> bool:
        """Whether every model of this protocol takes it as it is: no part is of one model alone, no id too long."""
        if self.thinking_blocks is not None or (self.reasoning_content is not NULL and self.reasoning_content != NULL):
            return False
        if self.tool_call_id is not None and len(self.tool_call_id) > ID_LENGTH:
            return False
        for call in self.tool_calls or ():  # noqa: SIM110  (asked of every message of every request)
            if call.id is not None and len(call.id) > ID_LENGTH:
                return False
        return True


class _Options(Struct):
    include_usage: bool | None = None


class _Form(Struct):
    """Of an answer that is to fit a schema."""

    type: str | None = None
    json_schema: dict[str, Raw] | None = None


class _ToolFunction(Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Tool(Struct):
    type: str | None = None
    function: _ToolFunction | None = None
    custom: Custom | None = None

    def __post_init__(self) -> None:
        _check_kind(self.type, self.function)


class _Allowed(Struct):
    tools: list[_Tool]
    mode: Literal["auto", "required"] | None = None


class _Chosen(_Tool):
    allowed_tools: _Allowed | None = None


def _check_kind(kind: str | None, function: Struct | None) -> None:
    """Raises ValueError for a function that says nothing of itself; other kinds are the model's to know."""
    if function is None and kind in (None, "function"):
        raise ValueError("Object missing required field `function`")


class _Head(Struct, kw_only=True):
    """What is read of a body besides its messages."""

    model: Annotated[str, Meta(max_length=500)] | None = None
    stream: bool | None = None
    stream_options: _Options | None = None
    n: int | None = None
    max_tokens: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    tool_choice: str | _Chosen | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    stop: str | list[str] | None = None
    response_format: _Form | None = None
    reasoning_effort: str | None = None


class _Body(_Head, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1)]


class _LargeBody(_Head, kw_only=True):
    messages: Annotated[list[Raw], Meta(min_length=1)]


_bodies, _large_bodies = msgspec.json.Decoder(_Body), msgspec.json.Decoder(_LargeBody)
_message, _raw = msgspec.json.Decoder(Message), msgspec.json.Decoder(dict[str, Raw])
_tools = msgspec.json.Decoder(list[_Tool] | None)


@dataclass(frozen=True)
class Request:
    """One agent step as the client requested it: what r2v reads of it, and the rest unread."""

    messages: Sequence[Message]
    fields: Mapping[str, Raw]
    """The chat-completion body, without `model`, `stream` and `n`."""
    wanted_model: str
    stream: bool
    include_usage: bool
    max_tokens: int | None
    logprobs: bool
    """Whether the client wants log-probabilities."""
    protocol: str
    """The one that the client speaks (`ProtocolAdapter.name`)."""
    source: Json
    """The body in the client's own protocol, where that is another one than the neutral form."""
    dropped: tuple[str, ...]
    """Names of what the client's body says and the neutral form cannot."""
    headers: Mapping[str, str]
    """Of the client, for a model that speaks its protocol."""
    size: int
    """Bytes of the request as it came, and of what it refers to."""
    images: int
    outside: bool
    """Whether the model reads, or searches for, what is not in the request (`OUTSIDE`)."""
    tokens: int
    """An estimate of the prompt's, images left out: four characters a token."""
    plain: bool
    """Whether all messages are (`Message.plain`)."""
    tools: bytes
    """The tools as they came, `null` for none: what is made of them is made once (`tools_of`)."""

    def body(self) -> Json:
        """All of it in the neutral form, read."""
        return {key: msgspec.json.decode(value) for key, value in self.fields.items()}

    def said(self, key: str) -> Any:
        """What the client's body says under this key; None where it does not, or says more than is read of it."""
        if self.source:
            return self.source.get(key)
        found = bytes(self.fields.get(key, NULL))
        return msgspec.json.decode(found) if len(found) <= SAID else None


def parse(
    body: bytes,
    *,
    protocol: str = "chat",
    source: Json | None = None,
    size: int | None = None,
    dropped: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
) -> Request:
    """A chat-completion request; `source` and its `size` are what it was made of, where that was another protocol. Raises
    BadRequest for anything else.
    """
    try:
        (read, messages), fields = _read_body(body), _raw.decode(body)
    except msgspec.ValidationError as error:
        raise BadRequest(str(error)) from None
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON") from None
    tools = bytes(fields.get("tools", b"null"))
    tools_of(tools)
    if len(messages) > MESSAGES:
        raise BadRequest(f"{len(messages)} messages; one request may have {MESSAGES}")
    if len(fields) > FIELDS:
        raise BadRequest(f"{len(fields)} fields; one request may have {FIELDS}")
    if read.n not in (None, 1):
        raise BadRequest("n > 1 is not offered: r2v draws candidates itself and answers with one")
    elsewhere = [key for key in fields if _leads_elsewhere(key)]
    if source:
        elsewhere += [key for key in source if _leads_elsewhere(key) and key not in elsewhere]
        source = {key: value for key, value in source.items() if not _leads_elsewhere(key)}
    dropped = (*dropped, *elsewhere)
    asked = [most for most in (read.max_completion_tokens, read.max_tokens) if most is not None]
    length, images, plain = len(tools) if "tools" in fields else 0, 0, True
    named = {*dropped, *fields}
    for message in messages:
        content = message.content
        if isinstance(content, str):
            length += len(content)
        elif content is not None:
            length += len(message.text)
            images += sum(part.image_url is not None for part in content)
            named |= {part.type or "" for part in content}
        plain = plain and message.plain
    left_out = {"model", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens", *elsewhere}
    limit = {"max_tokens": Raw(str(min(asked)).encode())} if asked else {}
    return Request(
        messages=messages,
        fields={key: value for key, value in fields.items() if key not in left_out} | limit,
        wanted_model=read.model or "r2v",
        stream=bool(read.stream),
        include_usage=bool(read.stream_options and read.stream_options.include_usage),
        max_tokens=min(asked, default=None),
        logprobs=bool(read.logprobs),
        protocol=protocol,
        source=source or {},
        dropped=tuple(dict.fromkeys(name[:ID_LENGTH] for name in dropped))[:DROPPED],
        headers=headers or {},
        size=len(body) if size is None else size,
        images=images,
        outside=any(map(OUTSIDE.fullmatch, named)),
        tokens=length // 4,
        plain=plain,
        tools=tools,
    )


def _read_body(body: bytes) -> tuple[_Head, list[Message]]:
    """What is read of a body. Of a large one each message is a call of its own: others are served between two of them.
    Raises BadRequest, ValueError, RecursionError.
    """
    if len(body) <= LONG:
        read = _bodies.decode(body)
        return read, read.messages
    large = _large_bodies.decode(body)
    messages: list[Message] = []
    try:
        for message in large.messages:
            messages.append(_message.decode(message))
    except msgspec.ValidationError as error:
        raise BadRequest(f"{error} of `messages[{len(messages)}]`") from None
    return large, messages


def _leads_elsewhere(key: str) -> bool:
    return len(key) > ID_LENGTH or _is_denied(key)


@lru_cache(maxsize=256)
def _is_denied(key: str) -> bool:
    return key not in MEANT and ELSEWHERE.fullmatch(key) is not None


def limited(request: Request, most: int) -> Request:
    """The request with an answer of at most so many tokens: servers refuse one that their context has no room for."""
    if request.max_tokens is None or request.max_tokens <= most:
        return request
    keys = {"max_tokens", "max_output_tokens"}
    fields = {key: Raw(str(most).encode()) if key in keys else value for key, value in request.fields.items()}
    source = {key: most if key in keys else value for key, value in request.source.items()}
    return replace(
        request, fields=fields, source=source, max_tokens=most, dropped=(*request.dropped, f"max_tokens over {most}")
    )


def bounded(request: Request, most: int) -> Request:
    """The request with an answer of at most so many tokens, where it names no limit of its own."""
    if request.max_tokens is not None:
        return request
    source = {**request.source, "max_output_tokens": most} if request.protocol == "responses" else request.source
    fields = {**request.fields, "max_tokens": msgspec.Raw(str(most).encode())}
    return replace(
        request, fields=fields, source=source, max_tokens=most, dropped=(*request.dropped, f"max_tokens over {most}")
    )


def sent_id(identity: Any, limit: int = ID_LENGTH) -> str:
    """The id of a call as every API takes it; the same id always becomes the same one."""
    text = str(identity)
    return (
        text
        if re.fullmatch(rf"[\w-]{{1,{limit}}}", text, re.A)
        else "call_" + hashlib.sha256(text.encode()).hexdigest()[:24]
    )


@remembered(TOOLS_BYTES, lambda tools: 15 * len(tools))  # an agent offers the same tools at every step
def tools_of(tools: bytes) -> tuple[Json, ...]:
    """The tools that are offered, those that take free text as functions of it (`custom`). Raises BadRequest."""
    try:
        found = _tools.decode(tools) or ()
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"tools: {error}") from None
    functions = [tool.function for tool in found if tool.function is not None]
    return (
        *({"name": function.name, "parameters": function.parameters or {}} for function in functions),
        *({"name": tool.custom.name, "parameters": FREE_TEXT, "custom": True} for tool in found if tool.custom is not None),
    )


def counted(value: Any) -> int | None:
    """A number of tokens; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def text_of(content: Any) -> str:
    """The words of a message's content; parts that are not text are named."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) else {} for part in content]
        return "\n".join(str(part.get("text", part.get("refusal", f"[{part.get('type', 'part')}]"))) for part in parts)
    return ""


def words_of(message: Mapping[str, Any]) -> str:
    """What an assistant message says, a refusal among it."""
    return text_of(message.get("content")) or str(message.get("refusal") or "")


def action_of(message: Mapping[str, Any]) -> Action:
    """An assistant message of a model as an action."""
    return _action(words_of(message), [said_by(call) for call in message.get("tool_calls") or []])


def _action(words: str, calls: Sequence[tuple[str, str]]) -> Action:
    """The text holds the calls too: equal texts are equal actions."""
    if not calls:
        return Action(words.strip())
    # An episode's calls come back at every step; long ones are not kept.
    if len(calls) == 1 and len(calls[0][0]) + len(calls[0][1]) < KEPT:
        return _known_call(*calls[0])
    known = [(_known_call if len(name) + len(arguments) < KEPT else _call)(name, arguments) for name, arguments in calls]
    return Action("\n".join(one.text for one in known), tuple(call for one in known for call in one.tool_calls))


def _call(name: str, arguments: str) -> Action:
    canonical = arguments
    if len(arguments) <= CANONICAL:
        with suppress(ValueError, RecursionError):
            canonical = msgspec.json.encode(msgspec.json.decode(arguments), order="sorted").decode()
    return Action(f"{name} {canonical}", (ToolCall(name, arguments),))


_known_call = lru_cache(maxsize=CALLS)(_call)  # its entries are small (`KEPT`): their number bounds their bytes


def arguments_text(arguments: Any) -> str:
    """A call's arguments as text: some servers answer with the object itself, or with none."""
    if isinstance(arguments, str):
        return arguments
    return "" if arguments is None else msgspec.json.encode(arguments).decode()


def free_text(written: Any) -> str:
    """The input of a custom tool as the arguments of a function (see `FREE_TEXT`)."""
    return msgspec.json.encode({"input": str(written or "")}).decode()


def said_by(call: Mapping[str, Any]) -> tuple[str, str]:
    """(name, arguments as text) of a call, also where its tool takes free text."""
    if custom := call.get("custom"):
        return str(custom.get("name", "")), free_text(custom.get("input"))
    function = call.get("function") or {}
    return str(function.get("name", "")), arguments_text(function.get("arguments"))


def new_id() -> str:
    """For a call to which its server gave none: its result could not name it."""
    return f"call_{secrets.token_hex(12)}"


def whole_call(call: Json) -> Json:
    """A call of a model's answer with an id and with its arguments as text; the same object where it has them. Raises
    AttributeError, KeyError or TypeError for what is no call.
    """
    function = call.get("function")
    if custom := call.get("custom"):
        "".join((custom["name"], custom["input"]))
    if function is not None and not isinstance(function.get("arguments"), str):
        call = {**call, "function": {**function, "arguments": arguments_text(function.get("arguments"))}}
    return call if call.get("id") else {**call, "id": new_id()}


def object_of(arguments: Any) -> Json:
    """Tool input must be an object; what a model wrote instead is kept as text, and so is what takes long to read, and each
    number that is too large for JSON's readers (1e400 becomes "1e400").
    """
    try:
        value = _value_of(arguments or "{}") if len(arguments or "") <= SMALL or _is_readable(arguments) else None
    except (ValueError, TypeError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"arguments": str(arguments)}


def _value_of(arguments: str) -> Any:
    """Raises ValueError, TypeError or RecursionError for what is no JSON."""
    try:
        return msgspec.json.decode(arguments)
    except msgspec.ValidationError:  # of the range of a number: no type is asked for
        if SURROGATE.search(arguments):  # Python's reader takes what cannot be written again
            raise
        return json.loads(arguments, parse_float=_number, parse_constant=_number)


def _number(written: str) -> float | str:
    return value if math.isfinite(value := float(written)) else written


def _is_readable(arguments: str) -> bool:
    """Whether a call's arguments are a few long texts, not many values."""
    size = JsonSize()
    size.add(arguments.encode("utf-8", "replace"))
    return not size.excess


class _Token(Struct, gc=False):
    logprob: float
    top_logprobs: Raw = NULL


class _Listed(Struct):
    content: list[_Token] | None = None


_listed = msgspec.json.Decoder(_Listed | None)


@dataclass(frozen=True, slots=True)
class Likelihood:
    """What the log-probabilities of an answer's tokens say, in nats; None where the server does not return them."""

    tokens: int = 0
    logp: float | None = None
    """Sum over the tokens."""
    entropy: float | None = None
    """Of the first token."""

    @classmethod
    def of(cls, choice: Json, vocabulary: int | None) -> Likelihood:
        """
        Args:
            choice: of a chat completion, with `logprobs`, read or not, or without.
            vocabulary: number of tokens. What the listed alternatives leave out is spread evenly over the rest of it, or
                taken as one token where the number is not known.
        """
        given = choice.get("logprobs")
        try:
            if isinstance(given, Raw):  # a long answer has a million values here, of which few are wanted
                tokens = (_listed.decode(given) or _Listed()).content or []
                values = [token.logprob for token in tokens]
                first = (msgspec.json.decode(tokens[0].top_logprobs) or []) if tokens else []
            else:
                content = (given or {}).get("content") or []
                values = [token["logprob"] for token in content]
                first = (content[0].get("top_logprobs") or []) if content else []
            logp = min(0.0, float(sum(values)))
            top = [math.exp(min(0.0, entry["logprob"])) for entry in first]
        except (KeyError, TypeError, ValueError, OverflowError):
            return cls()
        if not values:
            return cls()
        if not top or logp < UNLIKELY:
            return cls(len(values), logp if logp >= UNLIKELY else None)
        entropy, rest = -sum(p * math.log(p) for p in top if p > 0), 1 - sum(top)
        others = 1 if vocabulary is None else vocabulary - len(top)
        unlisted = rest * math.log(rest / others) if rest > 1e-9 and others > 0 else 0.0
        return cls(len(values), logp, entropy - unlisted)


def context_of(request: Request, horizon: int) -> Context:
    """What the router sees: the first request of the user, what came back since, what the assistant did."""
    goals, observations, actions = _read(request.messages)
    return _context(goals[-1], observations, actions, horizon, sum(map(len, observations)))


def contexts_of(request: Request, horizon: int) -> list[Context]:
    """What the router saw at each assistant message, and last what it sees now.

    Each is `context_of` of the messages up to there: how much of a text is kept, and what the goal is, may not depend on
    later ones. All are made in one pass.
    """
    goals, observations, actions = _read(request.messages)
    found, length = [], 0
    for t, (goal, observation) in enumerate(zip(goals, observations, strict=True)):
        length += len(observation)
        found.append(_context(goal, observations[: t + 1], actions[:t], horizon, length))
    return found


def _read(messages: Sequence[Message]) -> tuple[list[str], list[str], list[Action]]:
    """(the goal as known, what came back) at each assistant message and at the end, and what the assistant did."""
    goal = ""
    goals: list[str] = []
    observations: list[str] = []
    actions: list[Action] = []
    pending: list[str] = []
    for message in messages:
        text = message.content if type(message.content) is str else message.text
        if message.role == "assistant":
            goals.append(goal)
            observations.append(pending[0] if len(pending) == 1 else "\n".join(pending))
            calls = [call.said for call in message.tool_calls or ()]
            actions.append(_action(text, calls))
            pending = []
        else:
            if not goal and message.role == "user":
                goal = own_words(text)
            pending.append(text)
    return [*goals, goal], [*observations, "\n".join(pending)], actions


def _context(goal: str, observations: list[str], actions: list[Action], horizon: int, length: int) -> Context:
    """`length` is that of all observations together."""
    if length > CLIP_TOTAL:
        limit = max(CLIP, CLIP_TOTAL // len(observations))
        observations = [clip(text, limit) for text in observations]
    return Context(clip(goal, CLIP_TOTAL // 10), tuple(observations), tuple(actions), horizon)


def own_words(text: str) -> str:
    """The user's message without the blocks that agent programs put before it (environment, reminders, AGENTS.md)."""
    text = text.strip()
    start = max(0, text.find("<INSTRUCTIONS>")) if text.startswith("# AGENTS.md") else 0
    for _ in range(BLOCKS):
        opened = AROUND.match(text, start)
        end = -1 if opened is None else text.find(f"</{opened[1]}>", start)
        if opened is None or end < 0:
            break
        start = SPACE.match(text, end + len(opened[1]) + 3).end()  # type: ignore[union-attr]
    return text[start:]


def clip(text: str, limit: int) -> str:
    """The first third and the last two thirds of what is allowed: errors stand at the end."""
    return text if len(text) <= limit else text[: limit // 3] + text[len(text) - (limit - limit // 3) :]


def _brief(content: str | list[Part] | None) -> Any:
    """What tells contents apart without reading all of long ones."""
    if isinstance(content, str):
        return content if len(content) <= FINGERPRINT else [len(content), clip(content, FINGERPRINT)]
    images = [[bytes(value)[:FINGERPRINT] for value in (part.image_url or {}).values()] for part in content or ()]
    return [[part.type, _brief(part.text), image] for part, image in zip(content or (), images, strict=True)]


def fingerprint(request: Request, key: str) -> str:
    """A session id for clients that send none: the system prompt, the tools and the first user message, for one key."""
    first = next((i for i, message in enumerate(request.messages) if message.role == "user"), 0)
    head = [[message.role, _brief(message.content)] for message in request.messages[: first + 1]]
    identity = msgspec.json.encode([key, head, request.fields.get("tools")])
    return "auto-" + hashlib.sha256(identity).hexdigest()[:24]
