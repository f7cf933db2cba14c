"""What a protocol that clients speak consists of. A new one is one file with a `ProtocolAdapter`, listed
in `r2v.messages.BUILT_IN` or as an entry point of `r2v.protocols`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import msgspec

from r2v.messages.conversation import BadRequest, Json, Likelihood, Request, parse, whole_call
from r2v.messages.json_size import SMALL

DONE = b"data: [DONE]\n\n"
"""The last event of OpenAI's streams."""
encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode
_fields, _items = msgspec.json.Decoder(dict[str, msgspec.Raw]), msgspec.json.Decoder(list[msgspec.Raw])


@dataclass(frozen=True)
class Reply:
    """One answer of a model: in the neutral form, and as the model wrote it."""

    choice: Json
    """`message`, `finish_reason`, and `logprobs` where the server returns them."""
    usage: Json
    """Of this answer alone, as in a chat completion."""
    protocol: str
    """The one that the model speaks."""
    own: Json | None = None
    """The whole answer in that protocol; None where it holds further answers. Calls that were read in its text are
    text in it."""
    dropped: tuple[str, ...] = ()
    """What the model was not sent of the client's request."""
    likelihood: Likelihood | None = None
    """What its log-probabilities say, where they have been read already."""
    parsed_calls: int = 0
    """Tool calls that the model wrote as text; the others its server reported."""

    def __post_init__(self) -> None:
        """Raises AttributeError, KeyError or TypeError for calls that are none, and for a refusal that is no text."""
        message = self.choice["message"]
        if not isinstance(message.get("refusal"), str | None):
            raise TypeError("a refusal must be text")
        if calls := message.get("tool_calls"):
            made = {**message, "tool_calls": [whole_call(call) for call in calls]}
            object.__setattr__(self, "choice", {**self.choice, "message": made})


@dataclass(frozen=True)
class Piece:
    """A part of an answer that is streamed while the model writes it."""

    chunk: Json | None
    """A chat-completion chunk; None where the neutral form has nothing to say."""
    own: Json | None
    """The event in the model's own protocol; None where r2v read calls in the text of the answer: such pieces end it."""

    @property
    def length(self) -> int:
        """Characters of text and of calls in it. Raises TypeError or AttributeError for what is no such event."""
        choices = self.chunk.get("choices") if self.chunk is not None else None
        delta = (choices[0].get("delta") or {}) if choices else {}
        calls = [call.get("function") or {} for call in delta.get("tool_calls") or ()]
        return len(delta.get("content") or "") + sum(len(call.get("arguments") or "") for call in calls)


class StreamEncoder(Protocol):
    """Turns the pieces of one streamed answer into server-sent events, as they come."""

    def add(self, piece: Piece) -> Iterator[bytes]: ...

    def end(self, reply: Reply, rest: Sequence[Piece], facts: Json) -> Iterator[bytes]:
        """The last events: `rest` are the pieces from the finish reason on, the `facts` of the step stand in the last."""


@dataclass(frozen=True)
class Served:
    """What an answer to a client is made of besides the model's reply."""

    id: str
    """Of the decision."""
    model: str
    """That really answered."""
    created: int
    """Seconds since 1970."""


class References:
    """What one request refers to instead of sending it again: items that earlier answers left (`ProtocolAdapter.kept`)."""

    def __init__(self, find: Callable[[str], bytes | None], most: int) -> None:
        """`find`: the JSON of the items under an id, None where they are not known; `most`: bytes of all together."""
        self._find, self._most, self.bytes = find, most, 0

    def items(self, identity: Any, what: str) -> list[Json]:
        """Those under an id; `what` says what has it. Raises BadRequest."""
        found = self._find(identity) if isinstance(identity, str) else None
        if found is None:
            raise BadRequest(
                f"{what} '{str(identity)[:80]}' not found; r2v keeps the latest ones only, in memory: send the whole input"
            )
        self.bytes += len(found)
        if self.bytes > self._most:
            raise BadRequest(f"what the request refers to has more than {self._most} bytes (server.max_body_bytes)")
        return msgspec.json.decode(found, type=list[Json])


class ProtocolAdapter(ABC):
    """One protocol: its requests to, its answers from the neutral form."""

    name: ClassVar[str]
    path: ClassVar[str]
    """Where it is served, below the base URL."""
    passed_headers: ClassVar[tuple[str, ...]] = ()
    """Headers of the client that go on to a model that speaks this protocol."""

    def parse(self, body: bytes, headers: Mapping[str, str] | None = None, references: References | None = None) -> Request:
        """A request of a client.

        Args:
            body: as it came.
            headers: of the HTTP request.
            references: what it may refer to; None: nothing.

        Raises:
            BadRequest: also where a part has a type that the conversion cannot use.
        """
        references = references or References(lambda identity: None, 0)
        source = self.resolve(json_object(body), references)
        passed = {key: headers[key] for key in self.passed_headers if key in headers} if headers else {}
        try:
            neutral, dropped = self.neutral(source)
            # One message at a time: this may run in a thread, and others are served only between two calls.
            messages = msgspec.Raw(b"[" + b",".join(map(encode, neutral["messages"])) + b"]")
            body_of = encode({**neutral, "messages": messages})
            size = len(body) + references.bytes
            return parse(body_of, protocol=self.name, source=source, size=size, dropped=dropped, headers=passed)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise BadRequest(f"the request holds a part of the wrong type ({type(error).__name__}: {error})"[:200]) from None

    def resolve(self, source: Json, references: References) -> Json:
        """The request with what it only refers to. Raises BadRequest."""
        return source

    def kept(self, request: Request, reply: Reply, served: Served) -> Json:
        """What later requests may refer to of an answer: lists of items by id."""
        return {}

    @abstractmethod
    def neutral(self, source: Json) -> tuple[Json, list[str]]:
        """A request of this protocol as a chat-completion body, and the names of what that cannot say. Raises BadRequest."""

    @abstractmethod
    def whole(self, reply: Reply, request: Request, served: Served) -> Json:
        """A reply as this protocol's answer to the request."""

    @abstractmethod
    def held(self, reply: Reply, request: Request, served: Served, facts: Json) -> Iterator[bytes]:
        """The same as server-sent events, of an answer known as a whole; the `facts` of the step stand in the last one."""

    @abstractmethod
    def encoder(self, request: Request, served: Served, protocol: str) -> StreamEncoder:
        """For one answer that is streamed while a model of this `protocol` writes it."""

    def ping(self) -> bytes:
        """Keeps a stream open that has nothing to say yet."""
        return b": r2v is deciding\n\n"

    @abstractmethod
    def error(self, message: str, status: int, code: str | None = None) -> Json:
        """The body of an answer with this HTTP status; `code` is the reason as a word, where the protocol has one."""

    @abstractmethod
    def broken(self, message: str, status: int, code: str | None) -> bytes:
        """The last events of a stream that cannot go on; `code` is the reason as a word."""


def json_object(body: bytes) -> Json:
    """Raises BadRequest for a body that is something else."""
    try:
        raw = msgspec.json.decode(body) if len(body) <= SMALL else _read_in_parts(body)
    except msgspec.ValidationError:
        raise BadRequest("the body must be a JSON object") from None
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON") from None
    if not isinstance(raw, dict):
        raise BadRequest("the body must be a JSON object")
    return raw


def _read_in_parts(body: bytes) -> Json:
    """A large object. Each item of its lists is a call of its own: others are served between two of them."""
    found = {}
    for key, value in _fields.decode(body).items():
        listed = bytes(memoryview(value)[:1]) == b"["
        found[key] = [decode(item) for item in _items.decode(value)] if listed else decode(value)
    return found


def data(content: Json) -> bytes:
    """One server-sent event without a name."""
    return b"data: " + encode(content) + b"\n\n"


def event(name: str, content: Json) -> bytes:
    """One server-sent event."""
    return f"event: {name}\n".encode() + data(content)


def pieces(text: str, size: int = 400) -> Sequence[str]:
    """The text in parts of at most `size` characters."""
    return [text[i : i + size] for i in range(0, len(text), size)]
