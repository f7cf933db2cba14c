"""What a protocol that clients speak consists of. A new one is one file with a `ProtocolAdapter`, listed
in `r2v.messages.BUILT_IN` or as an entry point of `r2v.protocols`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Protocol

import msgspec

from r2v.messages.conversation import BadRequest, Json, Request, parse

DONE = b"data: [DONE]\n\n"
"""The last event of OpenAI's streams."""
encode = msgspec.json.Encoder().encode


class StreamEncoder(Protocol):
    """Turns the chunks of one streamed chat completion into server-sent events, as they come."""

    def add(self, chunk: Json) -> Iterator[bytes]:
        """The events of one chunk; the last chunk has a finish reason, the usage, and `r2v`: the facts of the step."""


class ProtocolAdapter(ABC):
    """One protocol: its requests to, its answers from the neutral form."""

    path: ClassVar[str]
    """Where it is served, below the base URL."""

    def parse(self, body: bytes) -> Request:
        """Raises BadRequest, also where a part has a type that the conversion cannot use."""
        source = json_object(body)
        try:
            return parse(encode(self.body(source)), source, len(body))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise BadRequest(f"the request holds a part of the wrong type ({type(error).__name__}: {error})"[:200]) from None

    @abstractmethod
    def body(self, source: Json) -> Json:
        """A request of this protocol as a chat-completion body. Raises BadRequest."""

    @abstractmethod
    def whole(self, completion: Json, request: Request) -> Json:
        """A chat completion as this protocol's answer to the request."""

    @abstractmethod
    def held(self, completion: Json, request: Request, facts: Json) -> Iterator[bytes]:
        """The same as server-sent events, of an answer known as a whole; the `facts` of the step stand in the last one."""

    def encoder(self) -> StreamEncoder | None:
        """For one answer that is streamed while the model writes it; None: this protocol's streams are held."""
        return None

    @abstractmethod
    def error(self, message: str, status: int) -> Json:
        """The body of an answer with this HTTP status."""

    @abstractmethod
    def broken(self, message: str, status: int, code: str | None) -> bytes:
        """The last events of a stream that cannot go on; `code` is the reason as a word."""


def json_object(body: bytes) -> Json:
    """Raises BadRequest for a body that is something else."""
    try:
        raw = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON") from None
    if not isinstance(raw, dict):
        raise BadRequest("the body must be a JSON object")
    return raw


def data(content: Json) -> bytes:
    """One server-sent event without a name."""
    return b"data: " + encode(content) + b"\n\n"


def event(name: str, content: Json) -> bytes:
    """One server-sent event."""
    return f"event: {name}\n".encode() + data(content)


def pieces(text: str, size: int = 400) -> Sequence[str]:
    """The text in parts of at most `size` characters."""
    return [text[i : i + size] for i in range(0, len(text), size)]
