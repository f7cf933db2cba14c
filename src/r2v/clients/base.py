"""A model behind HTTP, with what real servers need; the files beside this one each speak a protocol.

Retries honour Retry-After; after failures in a row a model is not called for a while (circuit breaker); requests in flight
and connections are limited for all calls of a client together. Cancelling a call cancels its requests. Keys are read from
the environment and sent to their own server alone.

A provider is a subclass of `Client` in a file of its own, listed in `r2v.clients.BUILT_IN` or as an entry point of
`r2v.clients`.
"""

from __future__ import annotations

import asyncio
import io
import ipaddress
import math
import os
import re
import time
import weakref
import zlib
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import astuple, dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec

from r2v.clients.settings import ClientSettings
from r2v.clients.tokens import Tokens
from r2v.clients.tool_text import HeldStream, OfferedTools, with_calls
from r2v.core.errors import ModelError, PromptTooLong, SettingsError
from r2v.core.types import NO_USAGE, Action, Candidate, Usage
from r2v.messages.conversation import ELSEWHERE, Json, Likelihood, Request, counted, parse
from r2v.messages.json_size import SMALL, JsonSize
from r2v.messages.protocol import Piece, Reply
from r2v.runtime.slices import in_slices

TOO_LONG = re.compile(
    r"maximum (context|prompt|model) length|(exceed\w*|longer than)\b.{0,60}\bcontext.{0,4}(length|window|size|limit)"
    r"|prompt (is )?too long|input (prompt )?is too long for|input token count.{0,30}exceeds|`inputs` tokens \+",
    re.IGNORECASE,
)
"""How servers report that a request does not fit, where they have no code for it: OpenAI and vLLM, llama.cpp, Anthropic and
Ollama, Bedrock, Gemini, TGI. A field that is too long is none of it."""
TOO_LONG_CODES = frozenset(("context_length_exceeded", "exceed_context_size_error"))
NAMED = re.compile(r"(?:^|[`'\"])(\w+)\b")
"""How they name a field of the request."""
CODES = frozenset((
    "api_error", "authentication_error", "billing_error", "content_filter", "content_policy_violation",
    "context_length_exceeded", "exceed_context_size_error", "insufficient_quota", "internal_error", "invalid_api_key",
    "invalid_prompt",
    "invalid_request_error", "invalid_type", "invalid_value", "missing_required_parameter", "model_not_found",
    "not_found_error", "overloaded_error", "permission_error", "rate_limit_error", "rate_limit_exceeded",
    "request_too_large", "server_error", "string_above_max_length", "timeout_error", "unknown_parameter",
    "unsupported_parameter", "unsupported_value",
))  # fmt: skip
"""What OpenAI's and Anthropic's APIs call their errors."""
PACKED = ("gzip", "x-gzip", "deflate")
PIECE = 65_536
"""Bytes that are unpacked at once."""
VALUES, READ = 1_500_000, 50_000
"""JSON values of one answer at most, and of what is decoded at once (in some 8 ms). Log-probabilities, which are most of an
answer, are decoded apart.
"""
CALLS = 256
"""Of one answer, and blocks of thinking."""
ERROR = 100_000
"""Bytes that are read of an error."""
AT_ONCE = 50
"""Events of a stream that are read before others are served."""
LINGER_S = 0.05
"""How long the end of an answer is waited for after its last event: without it the connection cannot be used again."""
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
UNKNOWN = (408, 504)
"""Statuses after which the model may have written an answer that somebody else did not wait for."""
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
on_lost: ContextVar[Callable[[int, bool], Awaitable[bool]] | None] = ContextVar("on_lost", default=None)
"""Called after each try that may have been paid for without an answer, with the number of answers that it asked for and
whether another try would follow; that may be refused, because of what it may cost.
"""
once: ContextVar[list[bool] | None] = ContextVar("once", default=None)
"""Whether the draw that runs has counted for the breaker: it does so once, however many of its answers and tries fail."""
trace_headers: ContextVar[Mapping[str, str]] = ContextVar("trace_headers", default=MappingProxyType({}))
"""Sent with each request: where it belongs in a trace."""


@dataclass(frozen=True)
class Part:
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


@dataclass(frozen=True, eq=False)
class _Pool:
    """What belongs to one event loop."""

    loop: asyncio.AbstractEventLoop
    session: aiohttp.ClientSession
    owner: AsyncGenerator[aiohttp.ClientSession, None]
    dropped: weakref.finalize[..., Client]


class _Passing(Exception):
    """A failure that may pass: (what happened, HTTP status, seconds to wait that the server asks for)."""


class TooMuch(ValueError):
    """JSON that holds more than can be read at once."""


class Refusal(ModelError):
    """The server answered with an HTTP status that no further try will change."""

    def __init__(self, reason: str, http: int) -> None:
        fault = http in (400, 404, 413, 422)
        super().__init__(reason, status=http if fault else 502, clients_fault=fault)
        self.http = http


class Client(ABC):
    path: ClassVar[str]
    """Of its endpoint, below `base_url`."""
    protocol: ClassVar[str]
    """That the server speaks (`ProtocolAdapter.name`)."""
    streams: ClassVar[bool] = False
    """Whether `stream` is offered."""
    ends: ClassVar[frozenset[str]] = frozenset()
    """Types of events after which a stream has none, besides [DONE]."""

    def __init__(self, settings: ClientSettings, name: str) -> None:
        """Raises SettingsError when the environment variable of the key is not set."""
        self.settings, self.name = settings, name
        self.attempts: dict[str, int] = {}
        """Requests so far by outcome: an HTTP status, timeout, connection, garbage, large or stream."""
        self.in_flight = 0
        """Requests without an answer yet, those that wait for a connection among them."""
        self.patience_s = 0.0
        """How long an answer is waited for where that is more than `timeout_s` and `total_s`."""
        self._url = settings.base_url.rstrip("/") + self.path
        self._headers = {
            "content-type": "application/json",
            "accept-encoding": "identity",
            **self.headers(_key(settings, name)),
        }
        self._proxy = _proxy_of(self._url)
        self._pool: _Pool | None = None
        self._failures, self._open_until = 0, 0.0  # of the circuit breaker

    # -- what a provider is ---------------------------------------------------------------------------------------

    def headers(self, key: str | None) -> dict[str, str]:
        """HTTP headers besides the content type."""
        return {} if key is None else {"authorization": f"Bearer {key}"}

    @abstractmethod
    async def answers(
        self, request: Request, k: int, *, seed: int | None, logprobs: bool, authors: Mapping[str, str]
    ) -> list[Part]:
        """At least k replies, in as few requests (`post`) as the server allows; see `draw`. Raises ModelError."""

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
        once.set([])
        parts = await self.answers(request, k, seed=seed, logprobs=logprobs, authors=authors or {})
        self.succeeded()
        draw = self.priced(request, parts, k)
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
        once.set([])
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

    def priced(self, request: Request, parts: Sequence[Part], k: int = 1) -> Draw:
        """The first k replies of HTTP answers to a request, with what all of the answers cost: as their servers count, for
        that is what they will ask for. A count that is missing, or cannot be true, is none.
        """
        replies = [reply for part in parts for reply in part.replies][:k]
        for message in [reply.choice["message"] for reply in replies]:
            if max(len(message.get("tool_calls") or ()), len(message.get("thinking_blocks") or ())) > CALLS:
                raise self.large(f"{CALLS} calls or blocks of thinking")
        tokens, usage, unknown = Tokens(), NO_USAGE, 0
        for part in parts:
            found = _tokens(part.usage)
            unknown += len(part.replies) if found is None else 0
            tokens += found or Tokens()
            usage += self._usage(part.usage)
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

    async def probe(self) -> None:
        """Ask for a short answer. Raises ModelError, which says what to mend, where the server takes no request of these
        settings: it is not there, or refuses the key, the model or the path. To refuse so short a limit is an answer.
        """
        s, at, mend = self.settings, f"{self.name} at {self.settings.base_url}", ""
        try:
            await self.answers(parse(PROBE), 1, seed=None, logprobs=False, authors={})
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
        return time.monotonic() >= self._open_until

    def check_length(self, request: Request) -> None:
        """Raises PromptTooLong for a request that does not fit the model's context."""
        most, size = self.settings.context_tokens, request.tokens
        if most is not None and size > most:
            raise PromptTooLong(f"{self.name}: about {size} tokens do not fit its context of {most}", (size, most))

    async def close(self) -> None:
        """Close the connections. Without it they are closed with the client, or when the event loop shuts down."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.dropped.detach()
            if pool.loop is asyncio.get_running_loop():
                await pool.owner.aclose()

    # -- HTTP -----------------------------------------------------------------------------------------------------

    async def post(
        self, body: Json, convert: Callable[[Any], T], *, headers: Mapping[str, str] | None = None, size: int = 0
    ) -> T:
        """What `convert` makes of the JSON that the server answers with, after as many tries as the settings allow.

        Args:
            body: of the request.
            convert: reads an answer; see `read`.
            headers: besides those of all requests.
            size: bytes of the request, about.

        Raises:
            ModelError: there is no answer, or it is something else.
        """

        def converted(content: bytes) -> T:
            answer = self.decoded(content)
            return self.read(lambda: convert(answer))

        data = await _encoded(body, size)

        async def once() -> T:
            async with self._sent(data, headers, body) as response:
                content = await self._whole(response)
                return await in_slices(len(content), lambda: converted(content))

        return await self._tried(once, body.get("n") or 1)

    def decoded(self, content: bytes) -> Any:
        """An answer of the server; see `event`."""
        return self.event(content)

    def event(self, content: bytes) -> Any:
        """An event of a stream. Raises ValueError for what is no JSON, ModelError for a long text or too many values."""
        self.check_text(len(content))
        return self.parsed(content)

    def parsed(self, content: bytes | msgspec.Raw) -> Any:
        """Raises ValueError for what is no JSON, ModelError for more than can be read."""
        try:
            return decoded(content)
        except TooMuch as error:
            raise self.large(str(error)) from None

    def check_line(self, size: int) -> None:
        """Raises ModelError where a line of a stream that has not ended has more bytes than allowed."""
        self.check_text(size)

    def check_text(self, size: int) -> None:
        """Raises ModelError where an answer without its log-probabilities has more bytes than allowed."""
        if size > self.settings.max_text_bytes:
            raise self.large(f"{self.settings.max_text_bytes} bytes of text and calls (max_text_bytes)")

    async def events(
        self, body: Json, *, headers: Mapping[str, str] | None = None, size: int = 0
    ) -> AsyncGenerator[Json, None]:
        """The server-sent events of an answer, as many tries as the settings allow before the first; see `post`. Raises
        ModelError.
        """
        data = await _encoded(body, size)
        async with AsyncExitStack() as stack:
            response = await self._tried(lambda: stack.enter_async_context(self._sent(data, headers, body)), 1)
            rest, length = list[bytes](), 0  # of a line, and its bytes
            try:
                async for piece in self._pieces(response):
                    *lines, last = piece.split(b"\n")
                    if lines:
                        lines[0], rest, length = b"".join((*rest, lines[0])), [], 0
                    rest.append(last)
                    length += len(last)
                    self.check_line(length)
                    for i, line in enumerate(lines):
                        if i % AT_ONCE == AT_ONCE - 1:
                            await asyncio.sleep(0)
                        if not line.startswith(b"data:") or not (data := line[5:].strip()):
                            continue
                        if data != b"[DONE]":
                            found = await in_slices(len(data), lambda data=data: self.event(data))  # type: ignore[misc]
                            if error := _error_of(found):
                                raise self._error(error, body)
                            yield found
                        if data == b"[DONE]" or found.get("type") in self.ends:
                            await _ended(response)
                            return
            except (aiohttp.ClientError, TimeoutError, ValueError, AttributeError) as error:
                raise self.broken(f"the stream broke ({type(error).__name__})") from None

    async def _tried(self, call: Callable[[], Awaitable[T]], answers: int) -> T:
        """What the first try gives that does not fail; `answers`: how many it asks for. Raises ModelError."""
        problem, status, asked = "", 502, None
        for attempt in range(self.settings.retries + 1):
            self.check_available()
            sent = True
            try:
                return await call()
            except _Passing as error:
                problem, status, asked = error.args
                sent = status in UNKNOWN
            except TimeoutError as error:
                problem, status, asked = f"no answer in time ({type(error).__name__})", 504, None
                sent = not isinstance(error, aiohttp.ConnectionTimeoutError)
                self.count("timeout")
            except aiohttp.ClientError as error:
                problem, status, asked = f"connection failed ({type(error).__name__})", 502, None
                sent = not isinstance(error, aiohttp.ClientConnectorError)
                self.count("connection")
            except ValueError:
                problem, status, asked = "an answer that is not JSON", 502, None
                self.count("garbage")
            if status != 429:  # a limit of rates is no outage
                self.failed()
            # Where the server asks for a long wait, another model may answer meanwhile.
            again = attempt < self.settings.retries and (asked is None or asked <= self.settings.longest_wait_s)
            if sent and (lost := on_lost.get()) is not None and not await lost(answers, again) and again:
                problem, again = f"{problem}, no budget for another try", False
            if not again:
                break
            await asyncio.sleep(self.settings.backoff_s * min(16, 2**attempt) if asked is None else asked)
        tries = "1 try" if attempt == 0 else f"{attempt + 1} tries"
        raise ModelError(f"{self.name}: {problem} after {tries}", status=429 if status == 429 else 502, retry_after=asked)

    @asynccontextmanager
    async def _sent(
        self, encoded: bytes, headers: Mapping[str, str] | None, body: Json
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response with status 200. Requests over the limit wait for a connection: each has one request at a time. Raises
        _Passing or ModelError for another status.
        """
        pool = await self._connected()
        # Of large bodies aiohttp wants a file, which it sends in pieces: the loop goes on in between.
        data = encoded if len(encoded) < 2**20 else io.BytesIO(encoded)
        self.in_flight += 1
        try:
            sent = pool.session.post(
                self._url, data=data, headers={**(headers or {}), **trace_headers.get()}, proxy=self._proxy,
                allow_redirects=False, timeout=self._timeout(),
            )  # fmt: skip
            async with sent as response:
                self.count(str(response.status))
                if response.status in RETRIED:
                    asked = retry_after(response.headers.get("retry-after"))
                    raise _Passing(f"HTTP {response.status}", response.status, asked)
                if response.status != 200:
                    raise self.refusal(response.status, await self._whole(response, ERROR), body)
                yield response
        finally:
            self.in_flight -= 1

    def _timeout(self) -> aiohttp.ClientTimeout:
        s = self.settings
        total, silent = max(s.total_s, self.patience_s), max(s.timeout_s, self.patience_s)
        return aiohttp.ClientTimeout(total=total, sock_connect=s.connect_timeout_s, sock_read=silent)

    async def _pieces(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
        """The content of an answer, unpacked, as it comes. Raises ModelError where it is longer than allowed, or holds more
        than can be read while others wait.
        """
        packed = response.headers.get("content-encoding", "identity").strip().lower()
        unpack = zlib.decompressobj(wbits=47) if packed in PACKED else None
        if unpack is None and packed != "identity":
            raise self.broken(f"its answer is packed as {packed[:20]}, which was not asked for")
        most, length, size = self.settings.max_answer_bytes, 0, JsonSize()
        async for piece in response.content.iter_any():
            left = piece
            while left:
                found, left = left, b""
                if unpack is not None:
                    await asyncio.sleep(0)  # a thousand times as much may come out
                    try:
                        found = unpack.decompress(found, PIECE)
                    except zlib.error:
                        raise self.broken("its answer cannot be unpacked") from None
                    left = unpack.unconsumed_tail
                length += len(found)
                size.add(found)
                if length > most:
                    raise self.large(f"{most} bytes (max_answer_bytes)")
                if size.values > VALUES:
                    raise self.large(f"{VALUES} values")
                yield found

    def large(self, than: str) -> ModelError:
        """No failure of the model's: the breaker stays closed."""
        self.count("large")
        return ModelError(f"{self.name}: its answer has more than {than}", paid=True)

    async def _whole(self, response: aiohttp.ClientResponse, most: int | None = None) -> bytes:
        """The content of an answer, or its first `most` bytes and little more. Raises ModelError; see `_pieces`."""
        pieces, length = [], 0
        async for piece in self._pieces(response):
            pieces.append(piece)
            length += len(piece)
            if most is not None and length > most:
                break
        return b"".join(pieces)

    async def _connected(self) -> _Pool:
        """The connections of the event loop that runs: a process may run several loops, one after the other."""
        loop = asyncio.get_running_loop()
        if self._pool is None or self._pool.loop is not loop:
            if self._pool is not None:
                self._pool.dropped.detach()
            owner = _sessions(self.settings, self._headers)
            session = await anext(owner)
            self._pool = _Pool(loop, session, owner, weakref.finalize(self, _close_soon, loop, owner))
        return self._pool

    def read(self, convert: Callable[[], T]) -> T:
        """What `convert` makes of an answer. Raises ModelError where it cannot."""
        try:
            return convert()
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            self.count("garbage")
            self.failed()
            raise ModelError(f"{self.name} answered with something that is not a completion", paid=True) from None

    def broken(self, problem: str) -> ModelError:
        """The error for a stream that cannot go on."""
        self.count("stream")
        self.failed()
        return ModelError(f"{self.name}: {problem}", paid=True)

    def refusal(self, status: int, content: bytes, body: Json) -> ModelError:
        """The error for an answer that no further try will change. What is too long for this model may fit another."""
        try:
            answer = decoded(content)
        except ValueError:
            answer = None
        said, counts = said_of(answer, body)
        if counts is not None:
            return PromptTooLong(f"{self.name}: HTTP {status}{said}", counts)
        return Refusal(f"{self.name}: HTTP {status}{said}", status)

    def _error(self, answer: Json, body: Json) -> ModelError:
        """The error for one that a stream ends with."""
        said, counts = said_of(answer, body)
        if counts is not None:
            return PromptTooLong(f"{self.name}: the stream ended with an error{said}", counts)
        return self.broken(f"the stream ended with an error{said}")

    def check_available(self) -> None:
        """Raises ModelError while the breaker is open."""
        if not self.available:
            raise ModelError(f"{self.name} is not called for a while after {self._failures} failures in a row")

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self) -> None:
        """Count for the breaker; see `once`."""
        if (counted := once.get()) is not None:
            if counted:
                return
            counted.append(True)
        self._failures += 1
        if self.settings.breaker_failures is not None and self._failures >= self.settings.breaker_failures:
            self._open_until = time.monotonic() + self.settings.breaker_s

    def count(self, outcome: str) -> None:
        self.attempts[outcome] = self.attempts.get(outcome, 0) + 1


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

    @abstractmethod
    def body(self, request: Request, authors: Mapping[str, str]) -> tuple[Json, Sequence[str]]:
        """The request as the server takes it, and the names of what it lacks of the client's; see `draw`."""

    @abstractmethod
    def reply(self, answer: Json, dropped: tuple[str, ...]) -> Reply:
        """An answer of the server. Raises KeyError, TypeError, ValueError for what is none."""

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
    ) -> list[Part]:
        body, dropped, headers = await in_slices(request.size, lambda: self._prepared(request, authors))

        def reply(answer: Json) -> Reply:
            return self.reply(answer, dropped)

        replies = await all_of([self.post(body, reply, headers=headers, size=request.size) for _ in range(k)])
        return [Part([reply], reply.usage) for reply in replies]

    async def stream(
        self, request: Request, *, logprobs: bool, authors: Mapping[str, str]
    ) -> AsyncGenerator[Piece | Reply, None]:
        body, dropped, headers = await in_slices(request.size, lambda: self._prepared(request, authors))
        reader, length = self.reader(), 0
        async for own in self.events({**body, "stream": True}, headers=headers, size=request.size):
            piece = Piece(self.read(lambda own=own: reader.add(own)), own)  # type: ignore[misc]
            length += self.read(lambda piece=piece: piece.length)  # type: ignore[misc]
            self.check_text(length)
            yield piece
        answer = reader.answer
        if answer is None:
            raise self.broken("the stream ended too soon")
        self.succeeded()
        yield await in_slices(length, lambda: self.read(lambda: self.reply(answer, dropped)))


async def _sessions(settings: ClientSettings, headers: Mapping[str, str]) -> AsyncGenerator[aiohttp.ClientSession, None]:
    """One session. It closes with its loop: what ends a loop (`asyncio.run`) closes the generators that have begun in it."""
    session = aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(limit=settings.concurrency),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,  # it unpacks without a limit
    )
    try:
        yield session
    finally:
        await session.close()
        await asyncio.sleep(0.01)  # the transports close in the next rounds of the loop


def _close_soon(loop: asyncio.AbstractEventLoop, owner: AsyncGenerator[aiohttp.ClientSession, None]) -> None:
    """Of a client that nobody uses any more, perhaps in another thread."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(lambda: loop.create_task(_closed(owner)))


async def _closed(owner: AsyncGenerator[aiohttp.ClientSession, None]) -> None:
    await owner.aclose()


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


async def _encoded(body: Json, size: int) -> bytes:
    """The JSON of a request of about so many bytes. Raises ModelError where it holds what JSON cannot."""
    try:
        return await in_slices(size, lambda: msgspec.json.encode(body))
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"the request cannot be sent ({type(error).__name__})", status=400, clients_fault=True) from None


def _searches(request: Request) -> bool:
    """Whether the server may search: the neutral form has no such tool, and names it among what it lacks."""
    return "web_search_options" in request.fields or any("search" in name for name in request.dropped)


def _tokens(usage: Json) -> Tokens | None:
    """What a server counted; None where it did not, or not in earnest: no prompt is empty."""
    if not counted(usage.get("prompt_tokens")) or counted(usage.get("completion_tokens")) is None:
        return None
    found = Tokens.of(usage)
    return found if found.cached + found.cache_written <= found.prompt and found.total <= BELIEVED else None


def retry_after(value: str | None) -> float | None:
    """Seconds that a server's Retry-After header asks for; None without one, and for a date."""
    try:
        seconds = float(value or "nan")
    except ValueError:
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _key(settings: ClientSettings, name: str) -> str | None:
    if settings.api_key_env is None:
        return None
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key:
        raise SettingsError(f"environment variable {settings.api_key_env} is not set; it must hold the API key of {name}")
    if not (key.isascii() and key.isprintable()):
        raise SettingsError(f"environment variable {settings.api_key_env} holds characters that no API key has")
    return key


def decoded(content: bytes | msgspec.Raw) -> Any:
    """Raises ValueError for what is no JSON or nests too deeply, TooMuch for what holds too much to be read at once."""
    if len(content) > SMALL:
        content, size = bytes(content), JsonSize()
        for i in range(0, len(content), PIECE):
            size.add(content[i : i + PIECE])
        if size.values > READ:
            raise TooMuch(f"{READ} values")
    try:
        return msgspec.json.decode(content)
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def said_of(answer: Any, body: Json) -> tuple[str, tuple[int, ...] | None]:
    """What may be repeated of a server's error: a code of `CODES`, and the field of the request that it names. Its words may
    hold anything, the key that it was sent among it, and are not repeated.

    Returns:
        (text to append, `PromptTooLong.counts` where the request is too long for the model, else None).
    """
    answer = answer[0] if isinstance(answer, list) and answer else answer  # as Gemini's server has it
    error = answer.get("error", answer) if isinstance(answer, dict) else None
    fields = error if isinstance(error, dict) else {"message": error}
    words, codes = str(fields.get("message"))[:2000], [fields.get("code"), fields.get("type")]
    found = [code for code in codes if isinstance(code, str) and code in CODES]
    if TOO_LONG.search(words) or TOO_LONG_CODES & set(found):
        words = re.sub(r"(\d{1,9}) \+ (\d{1,9})", lambda both: str(int(both[1]) + int(both[2])), words)
        named = [counted(fields.get(key)) for key in ("n_prompt_tokens", "n_ctx")]  # llama.cpp's
        counts = [one for one in named if one] or [int(one) for one in re.findall(r"\b\d{3,9}\b", words)[:2]]
        counts = sorted(counts, reverse=True) if len(counts) == 2 else []
        found.append("the prompt is too long" + (": {} > {} tokens".format(*counts) if counts else ""))
        return " " + " ".join(found), tuple(counts)
    param = re.split(r"[.\[]", str(fields.get("param")))[0]
    if param not in body:
        named_fields = set(NAMED.findall(words))
        param = next((key for key in body if key in named_fields), None)
    if param is not None:
        found.append(f"because of `{param}`")
    return " " + " ".join(found) if found else "", None


def _error_of(event: Json) -> Json | None:
    """An event that ends a stream with an error, as the body of one; None for any other."""
    kind, answer = event.get("type"), event.get("response")
    failed = answer if kind == "response.failed" and isinstance(answer, dict) else event
    return failed if failed.get("error") else {"error": event} if kind == "error" else None


async def _ended(response: aiohttp.ClientResponse) -> None:
    """Wait a moment for the end of an answer whose last event has come."""
    with suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(LINGER_S):
            while not response.content.at_eof():
                await response.content.readany()


def _proxy_of(url: str) -> str | None:
    """The proxy that the environment names for this address (HTTPS_PROXY, NO_PROXY); none for this machine's own."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return None if _is_here(host) or proxy_bypass(host) else getproxies().get(parts.scheme)


def _is_here(host: str) -> bool:
    """Whether a name or an address is this machine's own (localhost, 127.x.y.z, ::1)."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
