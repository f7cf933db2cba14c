"""Where a model's requests go over HTTP, with what real servers need: a body is sent, an answer or its events come back.

Retries honour Retry-After; after failures in a row a model is not called for a while (circuit breaker); requests in flight
and connections are limited for all calls together. Cancelling a call cancels its request. What is read of an answer is
limited in bytes, values and time. All failures are a ModelError.
"""

from __future__ import annotations

import asyncio
import math
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, TypeVar

import aiohttp
import msgspec

from r2v.clients.connections import Connections
from r2v.clients.server_errors import error_of, refusal, said_of
from r2v.clients.settings import ClientSettings
from r2v.core.errors import ModelError, PromptTooLong
from r2v.messages.conversation import Json
from r2v.messages.json_size import PIECE, JsonSize, TooMuch, decoded
from r2v.runtime.slices import in_slices

PACKED = ("gzip", "x-gzip", "deflate")
VALUES = 1_500_000
"""JSON values of one answer at most. Log-probabilities, which are most of an answer, are decoded apart."""
ERROR = 100_000
"""Bytes that are read of an error."""
AT_ONCE = 50
"""Events of a stream that are read before others are served."""
LINGER_S = 0.05
"""How long the end of an answer is waited for after its last event: without it the connection cannot be used again."""
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
UNKNOWN = (408, 504)
"""Statuses after which the model may have written an answer that somebody else did not wait for."""
T = TypeVar("T")
on_lost: ContextVar[Callable[[int, bool], Awaitable[bool]] | None] = ContextVar("on_lost", default=None)
"""Called after each try that may have been paid for without an answer, with the number of answers that it asked for and
whether another try would follow; that may be refused, because of what it may cost.
"""
trace_headers: ContextVar[Mapping[str, str]] = ContextVar("trace_headers", default=MappingProxyType({}))
"""Sent with each request: where it belongs in a trace."""
_counted: ContextVar[list[bool] | None] = ContextVar("counted", default=None)
"""Whether the draw that runs has counted for the breaker: it does so once, however many of its answers and tries fail."""


class _Passing(Exception):
    """A failure that may pass: (what happened, HTTP status, seconds to wait that the server asks for)."""


class Endpoint:
    def __init__(self, settings: ClientSettings, name: str, url: str, headers: Mapping[str, str]) -> None:
        """
        Args:
            settings: limits, tries and waits.
            name: of the model, for error messages.
            url: where requests go.
            headers: of all requests, besides the content type.
        """
        self.settings, self.name = settings, name
        self.attempts: dict[str, int] = {}
        """Requests so far by outcome: an HTTP status, timeout, connection, garbage, large or stream."""
        self.in_flight = 0
        """Requests without an answer yet, those that wait for a connection among them."""
        self.patience_s = 0.0
        """How long an answer is waited for where that is more than `timeout_s` and `total_s`."""
        own = {"content-type": "application/json", "accept-encoding": "identity", **headers}
        self.connections = Connections(url, own, settings.concurrency)
        self._failures, self._open_until = 0, 0.0  # of the circuit breaker

    # -- to ask ---------------------------------------------------------------------------------------------------

    async def answer(
        self,
        body: Json,
        convert: Callable[[Any], T],
        *,
        decode: Callable[[bytes], Any] | None = None,
        headers: Mapping[str, str] | None = None,
        size: int = 0,
    ) -> T:
        """What `convert` makes of the answer to a request, after as many tries as the settings allow.

        Args:
            body: of the request.
            convert: reads an answer; see `read`.
            decode: makes that of its bytes. Raises ValueError for what is no JSON. None: `json`.
            headers: besides those of all requests.
            size: bytes of the request, about.

        Raises:
            ModelError: there is no answer, or it is something else.
        """

        def converted(content: bytes) -> T:
            answer = (decode or self.json)(content)
            return self.read(lambda: convert(answer))

        data = await _encoded(body, size)

        async def once() -> T:
            async with self._sent(data, headers, body) as response:
                content = await self._whole(response)
                return await in_slices(len(content), lambda: converted(content))

        return await self._tried(once, body.get("n") or 1)

    async def events(
        self,
        body: Json,
        *,
        decode: Callable[[bytes], Any] | None = None,
        last: frozenset[str] = frozenset(),
        long_lines: bool = False,
        headers: Mapping[str, str] | None = None,
        size: int = 0,
    ) -> AsyncGenerator[Json, None]:
        """The server-sent events of an answer, as many tries as the settings allow before the first; see `answer`.

        Args:
            body: of the request.
            decode: as in `answer`.
            last: types of events after which there is none, besides [DONE].
            long_lines: whether a line may be longer than the text of an answer, because `decode` leaves out most of it.
            headers: besides those of all requests.
            size: bytes of the request, about.

        Raises:
            ModelError: as in `answer`; or the stream breaks, or ends with an error.
        """
        data, decode = await _encoded(body, size), decode or self.json
        async with AsyncExitStack() as stack:
            response = await self._tried(lambda: stack.enter_async_context(self._sent(data, headers, body)), 1)
            rest, length = list[bytes](), 0  # of a line, and its bytes
            try:
                async for piece in self._pieces(response):
                    *lines, end = piece.split(b"\n")
                    if lines:
                        lines[0], rest, length = b"".join((*rest, lines[0])), [], 0
                    rest.append(end)
                    length += len(end)
                    if not long_lines:
                        self.check_text(length)
                    for i, line in enumerate(lines):
                        if i % AT_ONCE == AT_ONCE - 1:
                            await asyncio.sleep(0)
                        if not line.startswith(b"data:") or not (data := line[5:].strip()):
                            continue
                        if data != b"[DONE]":
                            found = await in_slices(len(data), lambda data=data: decode(data))  # type: ignore[misc]
                            if error := error_of(found):
                                raise self._error(error, body)
                            yield found
                        if data == b"[DONE]" or found.get("type") in last:
                            await _ended(response)
                            return
            except (aiohttp.ClientError, TimeoutError, ValueError, AttributeError) as error:
                raise self.broken(f"the stream broke ({type(error).__name__})") from None

    # -- to read what came ----------------------------------------------------------------------------------------

    def json(self, content: bytes) -> Any:
        """An answer or an event. Raises ValueError for what is no JSON, ModelError for a long text or too many values."""
        self.check_text(len(content))
        return self.parsed(content)

    def parsed(self, content: bytes | msgspec.Raw) -> Any:
        """Raises ValueError for what is no JSON, ModelError for more than can be read."""
        try:
            return decoded(content)
        except TooMuch as error:
            raise self.too_large(str(error)) from None

    def check_text(self, size: int) -> None:
        """Raises ModelError where an answer without its log-probabilities has more bytes than allowed."""
        if size > self.settings.max_text_bytes:
            raise self.too_large(f"{self.settings.max_text_bytes} bytes of text and calls (max_text_bytes)")

    def read(self, convert: Callable[[], T]) -> T:
        """What `convert` makes of an answer. Raises ModelError where it cannot."""
        try:
            return convert()
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            self._count("garbage")
            self._failed()
            raise ModelError(f"{self.name} answered with something that is not a completion", paid=True) from None

    def too_large(self, than: str) -> ModelError:
        """The error for an answer that is not read. No failure of the model's: the breaker stays closed."""
        self._count("large")
        return ModelError(f"{self.name}: its answer has more than {than}", paid=True)

    def broken(self, problem: str) -> ModelError:
        """The error for a stream that cannot go on."""
        self._count("stream")
        self._failed()
        return ModelError(f"{self.name}: {problem}", paid=True)

    def _error(self, answer: Json, body: Json) -> ModelError:
        """The error for one that a stream ends with."""
        said, counts = said_of(answer, body)
        if counts is not None:
            return PromptTooLong(f"{self.name}: the stream ended with an error{said}", counts)
        return self.broken(f"the stream ended with an error{said}")

    # -- one try, and further ones --------------------------------------------------------------------------------

    async def _tried(self, call: Callable[[], Awaitable[T]], answers: int) -> T:
        """What the first try gives that does not fail; `answers`: how many it asks for. Raises ModelError."""
        problem, status, asked = "", 502, None
        for attempt in range(self.settings.retries + 1):
            if not self.available:
                raise ModelError(f"{self.name} is not called for a while after {self._failures} failures in a row")
            sent = True
            try:
                return await call()
            except _Passing as error:
                problem, status, asked = error.args
                sent = status in UNKNOWN
            except TimeoutError as error:
                problem, status, asked = f"no answer in time ({type(error).__name__})", 504, None
                sent = not isinstance(error, aiohttp.ConnectionTimeoutError)
                self._count("timeout")
            except aiohttp.ClientError as error:
                problem, status, asked = f"connection failed ({type(error).__name__})", 502, None
                sent = not isinstance(error, aiohttp.ClientConnectorError)
                self._count("connection")
            except ValueError:
                problem, status, asked = "an answer that is not JSON", 502, None
                self._count("garbage")
            if status != 429:  # a limit of rates is no outage
                self._failed()
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
        self, data: bytes, headers: Mapping[str, str] | None, body: Json
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response with status 200. Requests over the limit wait for a connection: each has one request at a time. Raises
        _Passing or ModelError for another status.
        """
        self.in_flight += 1
        try:
            sent = await self.connections.post(data, {**(headers or {}), **trace_headers.get()}, self._timeout())
            async with sent as response:
                self._count(str(response.status))
                if response.status in RETRIED:
                    asked = retry_after(response.headers.get("retry-after"))
                    raise _Passing(f"HTTP {response.status}", response.status, asked)
                if response.status != 200:
                    raise refusal(self.name, response.status, await self._whole(response, ERROR), body)
                yield response
        finally:
            self.in_flight -= 1

    def _timeout(self) -> aiohttp.ClientTimeout:
        s = self.settings
        total, silent = max(s.total_s, self.patience_s), max(s.timeout_s, self.patience_s)
        return aiohttp.ClientTimeout(total=total, sock_connect=s.connect_timeout_s, sock_read=silent)

    async def _whole(self, response: aiohttp.ClientResponse, most: int | None = None) -> bytes:
        """The content of an answer, or its first `most` bytes and little more. Raises ModelError; see `_pieces`."""
        pieces, length = [], 0
        async for piece in self._pieces(response):
            pieces.append(piece)
            length += len(piece)
            if most is not None and length > most:
                break
        return b"".join(pieces)

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
                    raise self.too_large(f"{most} bytes (max_answer_bytes)")
                if size.values > VALUES:
                    raise self.too_large(f"{VALUES} values")
                yield found

    def _count(self, outcome: str) -> None:
        self.attempts[outcome] = self.attempts.get(outcome, 0) + 1

    # -- the breaker ----------------------------------------------------------------------------------------------

    @property
    def available(self) -> bool:
        """Whether the breaker lets requests through."""
        return time.monotonic() >= self._open_until

    def begin(self) -> None:
        """A draw begins: however many of its answers and tries fail, it counts once."""
        _counted.set([])

    def succeeded(self) -> None:
        self._failures = 0

    def _failed(self) -> None:
        if (counted := _counted.get()) is not None:
            if counted:
                return
            counted.append(True)
        self._failures += 1
        if self.settings.breaker_failures is not None and self._failures >= self.settings.breaker_failures:
            self._open_until = time.monotonic() + self.settings.breaker_s


async def _encoded(body: Json, size: int) -> bytes:
    """The JSON of a request of about so many bytes. Raises ModelError where it holds what JSON cannot."""
    try:
        return await in_slices(size, lambda: msgspec.json.encode(body))
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"the request cannot be sent ({type(error).__name__})", status=400, clients_fault=True) from None


def retry_after(value: str | None) -> float | None:
    """Seconds that a server's Retry-After header asks for; None without one, and for a date."""
    try:
        seconds = float(value or "nan")
    except ValueError:
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


async def _ended(response: aiohttp.ClientResponse) -> None:
    """Wait a moment for the end of an answer whose last event has come."""
    with suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(LINGER_S):
            while not response.content.at_eof():
                await response.content.readany()
