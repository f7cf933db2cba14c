"""What a client of a model is: answers are drawn from it, with what they cost.

Its requests go through an `Endpoint` (`r2v.clients.endpoint`), which knows of HTTP. Keys are read from the environment and
sent to their own server alone.

A provider, which speaks one protocol, is a subclass of `Client` in a file of its own, listed in `r2v.clients.BUILT_IN` or
as an entry point of `r2v.clients`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import Any, ClassVar, Protocol, TypeVar

from r2v.clients.endpoint import Endpoint
from r2v.clients.server_errors import Refusal
from r2v.clients.settings import ClientSettings
from r2v.clients.tokens import Tokens
from r2v.clients.tool_text import HeldStream, OfferedTools, with_calls
from r2v.core.errors import ModelError, PromptTooLong, SettingsError
from r2v.core.types import NO_USAGE, Action, Candidate, Usage
from r2v.messages.conversation import ELSEWHERE, Json, Likelihood, Request, counted, parse
from r2v.messages.protocol import Piece, Reply
from r2v.runtime.settings import from_environment
from r2v.runtime.slices import in_slices

CALLS = 256
"""Of one answer, and blocks of thinking."""
PROBE = b'{"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 16}'
"""No fewer: the Responses API refuses a lower limit."""
HIDDEN = 1_000
"""Tokens that a provider may add to a prompt by itself: its template, and what it says of tools."""
SEARCHES = 10
"""That a server makes for one answer, where it may search."""
IMAGE = 50_000
"""Tokens that an image has at most."""
WINDOW = 1_000_000
"""Tokens of a prompt at most, where the model's context is not known."""
BELIEVED = 10_000_000
"""Tokens that one HTTP answer may have cost, as its server says."""
T = TypeVar("T")


@dataclass(frozen=True)
class ServerAnswer:
    """What one HTTP answer holds."""

    replies: list[Reply]
    usage: Json
    """Of all of them together."""


@dataclass(frozen=True)
class Draw:
    """What one draw of candidates gave."""

    replies: list[Reply]
    tokens: Tokens
    usage: Usage
    """One call, whatever the number of requests; counts that a server did not report are None."""
    unknown: int = 0
    """Answers of which nobody knows what they cost: they are not in `tokens`."""


class Client(ABC):
    path: ClassVar[str]
    """Of its endpoint, below `base_url`."""
    protocol: ClassVar[str]
    """That the server speaks (`ProtocolAdapter.name`)."""
    streams: ClassVar[bool] = False
    """Whether `stream` is offered."""

    def __init__(self, settings: ClientSettings, name: str) -> None:
        """Raises SettingsError when the environment variable of the key is not set."""
        self.settings, self.name = settings, name
        self.endpoint = Endpoint(
            settings, name, settings.base_url.rstrip("/") + self.path, self.headers(_key(settings, name))
        )

    # -- what a provider is ---------------------------------------------------------------------------------------

    def headers(self, key: str | None) -> dict[str, str]:
        """HTTP headers besides the content type."""
        return {} if key is None else {"authorization": f"Bearer {key}"}

    @abstractmethod
    async def answers(
        self, request: Request, k: int, *, seed: int | None, logprobs: bool, authors: Mapping[str, str]
    ) -> list[ServerAnswer]:
        """At least k replies, in as few requests (`endpoint`) as the server allows; see `draw`. Raises ModelError."""

    def stream(self, request: Request, *, logprobs: bool, authors: Mapping[str, str]) -> AsyncGenerator[Piece | Reply, None]:
        """One answer as the server sends it, and in the end the whole of it; see `draw`. Raises ModelError, even midway."""
        raise NotImplementedError(f"{type(self).__name__} does not stream")

    # -- what callers use -----------------------------------------------------------------------------------------

    async def draw(
        self,
        request: Request,
        k: int,
        *,
        seed: int | None = None,
        logprobs: bool = False,
        authors: Mapping[str, str] | None = None,
    ) -> Draw:
        """k answers to one request.

        Args:
            request: in the neutral form.
            k: number of answers.
            seed: sent where the provider takes one; None: none is sent.
            logprobs: whether to ask for log-probabilities and alternatives, where the server offers them.
            authors: signature of a thinking block -> the model that wrote it; only that model is sent the block.

        Raises:
            ModelError: the model refused, keeps failing, or answered with something else than a completion.
        """
        self.check_length(request)
        self.endpoint.begin()
        answers = await self.answers(request, k, seed=seed, logprobs=logprobs, authors=authors or {})
        self.endpoint.succeeded()
        draw = self.priced(request, answers, k)
        if len(draw.replies) < k:
            raise ModelError(f"{self.name} answered with {len(draw.replies)} of {k} choices", paid=True)
        if (offered := self._parsed(request)) is None:
            return draw
        replies = []
        for reply in draw.replies:
            replies.append(with_calls(reply, offered))
            await asyncio.sleep(0)
        return replace(draw, replies=replies)

    async def streamed(
        self, request: Request, *, logprobs: bool, authors: Mapping[str, str]
    ) -> AsyncGenerator[Piece | Reply, None]:
        """One answer as it comes, and in the end the whole of it; see `draw`. What may be a call in its text comes when that
        is known. Raises ModelError, even midway.
        """
        self.endpoint.begin()
        offered = self._parsed(request)
        held = None if offered is None else HeldStream(offered)
        async with aclosing(self.stream(request, logprobs=logprobs, authors=authors)) as parts:
            async for part in parts:
                if held is None:
                    yield part
                else:
                    for one in held.end(part) if isinstance(part, Reply) else held.add(part):
                        yield one

    def _parsed(self, request: Request) -> OfferedTools | None:
        """The tools whose calls are to be read in texts; None: no text is read."""
        return OfferedTools.of(request) if self.settings.parse_tools == "auto" else None

    def priced(self, request: Request, answers: Sequence[ServerAnswer], k: int = 1) -> Draw:
        """The first k replies of HTTP answers to a request, with what all of the answers cost: as their servers count, for
        that is what they will ask for. A count that is missing, or cannot be true, is none.
        """
        replies = [reply for answer in answers for reply in answer.replies][:k]
        for message in [reply.choice["message"] for reply in replies]:
            if max(len(message.get("tool_calls") or ()), len(message.get("thinking_blocks") or ())) > CALLS:
                raise self.endpoint.too_large(f"{CALLS} calls or blocks of thinking")
        tokens, usage, unknown = Tokens(), NO_USAGE, 0
        for answer in answers:
            found = _tokens(answer.usage)
            unknown += len(answer.replies) if found is None else 0
            tokens += found or Tokens()
            usage += self._usage(answer.usage)
        return Draw(replies, tokens, replace(usage, calls=1), unknown)

    def _usage(self, raw: Json) -> Usage:
        """As the server says; None for a count that is none."""
        prompt, output = (counted(raw.get(key)) for key in ("prompt_tokens", "completion_tokens"))
        tokens, known = Tokens.of(raw), prompt is not None and output is not None
        priced = known and self.settings.price is not None
        return Usage(1, prompt, tokens.output if known else output, self.usd(tokens) if priced else None)

    def candidates(self, draw: Draw, action: Callable[[Json], Action]) -> tuple[Candidate, ...]:
        """The replies of a draw as candidates; `action` reads an assistant message."""
        found = []
        for i, reply in enumerate(draw.replies):
            likely = reply.likelihood or Likelihood.of(reply.choice, self.settings.vocabulary)
            usage = NO_USAGE if i else draw.usage
            found.append(Candidate(action(reply.choice["message"]), likely.logp, likely.entropy, usage))
        return tuple(found)

    def usd(self, tokens: Tokens) -> float:
        """Price of so many tokens; 0.0 without a price."""
        price = self.settings.price
        return 0.0 if price is None else price.usd(*astuple(tokens))

    def bound(self, request: Request, answers: int) -> tuple[int, float]:
        """(tokens, USD) that so many answers can cost at most: every byte of the request a token, each answer the longest.
        Servers without `n` read the request for each answer. What is read beside the text may fill the model's context; a
        search on the server's side may fill it more than once.
        """
        window = self.settings.context_tokens or WINDOW
        beside = window if request.outside else min(window, IMAGE * request.images)
        size, output = request.size + beside + HIDDEN, request.max_tokens or self.settings.max_output_tokens
        hour = size if self.writes_1h(request) else 0
        searches = SEARCHES if request.protocol == self.protocol and _searches(request) else 0
        dearest = max(self.usd(Tokens(size, output, 0, *kept, searches)) for kept in ((0, 0), (size, 0), (size, hour)))
        return answers * (size + output), answers * dearest

    def writes_1h(self, request: Request) -> bool:
        """Whether the request asks for what is written to the provider's cache to be kept for an hour."""
        return False

    async def probe(self, k: int = 1, *, logprobs: bool = False) -> None:
        """Ask for k short answers; see `draw`. To refuse so short a limit is an answer.

        Raises:
            ModelError: the server takes no request of these settings: it is not there, or refuses the key, the model or the
                path; it says what to mend.
        """
        s, at, mend = self.settings, f"{self.name} at {self.settings.base_url}", ""
        try:
            await self.answers(parse(PROBE), k, seed=None, logprobs=logprobs, authors={})
        except Refusal as error:
            if error.http in (401, 403):
                refused = f"the key in {s.api_key_env} is refused; put a valid one there"
                mend = refused if s.api_key_env else "it wants a key; name its variable in `api_key_env`"
            elif error.http == 404 or "`model`" in str(error) or "model_not_found" in str(error):
                mend = f"it has no model {s.model!r}, or no {self.path} below its base_url; mend `model` or `base_url`"
            elif error.http not in (400, 422):
                mend = "mend `base_url`, or the account there"
            if mend:
                raise ModelError(f"{at}: HTTP {error.http}: {mend}") from None
        except ModelError as error:
            raise ModelError(f"{at} does not answer: {str(error).removeprefix(f'{self.name}: ')}") from None

    @property
    def available(self) -> bool:
        """Whether the breaker lets requests through."""
        return self.endpoint.available

    def check_length(self, request: Request) -> None:
        """Raises PromptTooLong for a request that does not fit the model's context."""
        most, size = self.settings.context_tokens, request.tokens
        if most is not None and size > most:
            raise PromptTooLong(f"{self.name}: about {size} tokens do not fit its context of {most}", (size, most))

    async def close(self) -> None:
        """Close the connections. Without it they are closed with the client, or when the event loop shuts down."""
        await self.endpoint.connections.close()


class Reader(Protocol):
    """Reads the events of one streamed answer in a model's own protocol."""

    @property
    def answer(self) -> Json | None:
        """The whole answer; None until it has ended."""

    def add(self, own: Json) -> Json | None:
        """The event as a chat-completion chunk; None where that has nothing to say. Raises KeyError, TypeError, ValueError
        for what is no such event.
        """


class SingleAnswerClient(Client):
    """A provider that has no `n`, no seed and no log-probabilities: k candidates are k requests."""

    streams = True
    reader: ClassVar[type[Reader]]
    ends: ClassVar[frozenset[str]] = frozenset()
    """Types of events after which a stream has none."""
    long_lines: ClassVar[bool] = False
    """See `Endpoint.events`."""

    @abstractmethod
    def body(self, request: Request, authors: Mapping[str, str]) -> tuple[Json, Sequence[str]]:
        """The request as the server takes it, and the names of what it lacks of the client's; see `draw`."""

    @abstractmethod
    def reply(self, answer: Json, dropped: tuple[str, ...]) -> Reply:
        """An answer of the server. Raises KeyError, TypeError, ValueError for what is none."""

    def decoded(self, content: bytes) -> Any:
        """An answer of the server, or an event. Raises ValueError for what is no JSON, ModelError for what is too much."""
        return self.endpoint.json(content)

    def _prepared(self, request: Request, authors: Mapping[str, str]) -> tuple[Json, tuple[str, ...], Mapping[str, str]]:
        """(body, what it lacks, headers): one that speaks the client's protocol lacks nothing of the neutral form."""
        body, dropped = self.body(request, authors)
        if request.protocol == self.protocol:
            # Of the request's own fields it lacks those that nobody is sent.
            denied = [name for name in request.dropped if ELSEWHERE.fullmatch(name) and "." not in name]
            return body, (*denied, *dropped), request.headers
        return body, (*request.dropped, *dropped), {}

    async def answers(
        self, request: Request, k: int, *, seed: int | None, logprobs: bool, authors: Mapping[str, str]
    ) -> list[ServerAnswer]:
        body, dropped, headers = await in_slices(request.size, lambda: self._prepared(request, authors))

        def reply(answer: Json) -> Reply:
            return self.reply(answer, dropped)

        ask = partial(self.endpoint.answer, body, reply, decode=self.decoded, headers=headers, size=request.size)
        replies = await all_of([ask() for _ in range(k)])
        return [ServerAnswer([reply], reply.usage) for reply in replies]

    async def stream(
        self, request: Request, *, logprobs: bool, authors: Mapping[str, str]
    ) -> AsyncGenerator[Piece | Reply, None]:
        body, dropped, headers = await in_slices(request.size, lambda: self._prepared(request, authors))
        endpoint, reader, length = self.endpoint, self.reader(), 0
        events = endpoint.events(
            {**body, "stream": True}, decode=self.decoded, last=self.ends, long_lines=self.long_lines,
            headers=headers, size=request.size,
        )  # fmt: skip
        async for own in events:
            piece = Piece(endpoint.read(lambda own=own: reader.add(own)), own)  # type: ignore[misc]
            length += endpoint.read(lambda piece=piece: piece.length)  # type: ignore[misc]
            endpoint.check_text(length)
            yield piece
        answer = reader.answer
        if answer is None:
            raise endpoint.broken("the stream ended too soon")
        endpoint.succeeded()
        yield await in_slices(length, lambda: endpoint.read(lambda: self.reply(answer, dropped)))


async def all_of(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of calls that run at once; one failure cancels the others, which may have to be paid all the same."""
    if len(calls) < 2:
        return [await call for call in calls]
    tasks: list[asyncio.Task[T]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks += [group.create_task(call) for call in calls]
    except BaseExceptionGroup as errors:
        first = errors.exceptions[0]
        if isinstance(first, ModelError):
            first.paid |= any(task.cancelled() or task.exception() is None for task in tasks)
        raise first from None
    return [task.result() for task in tasks]


def _searches(request: Request) -> bool:
    """Whether the server may search: the neutral form has no such tool, and names it among what it lacks."""
    return "web_search_options" in request.fields or any("search" in name for name in request.dropped)


def _tokens(usage: Json) -> Tokens | None:
    """What a server counted; None where it did not, or not in earnest: no prompt is empty."""
    if not counted(usage.get("prompt_tokens")) or counted(usage.get("completion_tokens")) is None:
        return None
    found = Tokens.of(usage)
    return found if found.cached + found.cache_written <= found.prompt and found.total <= BELIEVED else None


def _key(settings: ClientSettings, name: str) -> str | None:
    if settings.api_key_env is None:
        return None
    key = from_environment("api_key_env", settings.api_key_env, f"the API key of {name}")
    if not (key.isascii() and key.isprintable()):
        raise SettingsError(f"environment variable {settings.api_key_env} holds characters that no API key has")
    return key
