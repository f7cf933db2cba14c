"""Limits on what a connection may take before anybody knows whose it is: bytes, time, and how many there are."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from r2v.gateway.settings import ServerSettings

HEADERS = 200
"""Of one request."""
PIPELINED = 4
"""Requests that wait on one connection for the answer to the one before."""
FOR_OTHERS = 64
"""File descriptors that are no connections: the ledger, the event loop, pipes."""


def guarded(settings: ServerSettings) -> type[GuardedProtocol]:
    """The protocol of one server with these limits."""
    named = {"settings": settings, "most": _most_connections(settings.max_connections), "waiting": {}}
    return type("GuardedProtocol", (GuardedProtocol,), named)


def relimit(protocol: type[GuardedProtocol], settings: ServerSettings) -> None:
    """Let other limits hold from now on, on the connections that there are, too."""
    protocol.settings, protocol.most = settings, _most_connections(settings.max_connections)


def _most_connections(wanted: int) -> int:
    """As many as wanted, if the process may have the file descriptors: each may need one more for a model."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * wanted + FOR_OTHERS
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(wanted, (soft - FOR_OTHERS) // 2))


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which has a limit of its own only for connections between two requests (`timeout_keep_alive`)."""

    settings: ClassVar[ServerSettings]
    most: ClassVar[int]
    """Connections of this process."""
    waiting: ClassVar[dict[GuardedProtocol, None]]
    """Connections that have not sent the whole head of a request yet; the one that waits for longest is the first."""

    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    """Runs while the client does not read its answer."""
    _in_head = True
    _in_body = False
    _heads = 0
    """Of which the connection has waited for."""
    _received = _of_body = 0
    """Bytes of the request that is being read: all of them, and those of its body."""
    _refusal: tuple[int, str] | None = None
    """What to answer where the parser gives up; None: that the request is no HTTP."""

    # -- what asyncio calls -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        full = len(self.connections) >= self.most
        super().connection_made(transport)
        if full:
            if not self.waiting:
                self._refuse(503, f"all {self.most} connections are in use; try again")
                return
            oldest = next(iter(self.waiting))
            del self.waiting[oldest]
            oldest.transport.abort()
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self.waiting.pop(self, None)
        for timer in (self._timer, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        limit = self.settings.max_header_bytes
        if self._in_head and self._received + len(data) > limit:
            room, heads = max(0, limit - self._received), self._heads
            self._received = limit
            super().data_received(data[:room])
            if self.transport.is_closing():
                return
            if self._in_head and self._heads == heads:
                self._refuse(431, f"the head of a request may have {limit} bytes")
                return
            data = data[room:]
        self._received += len(data)
        # Extensions of chunks and trailers are no body, and uvicorn drops what comes after an answer.
        most = self.settings.max_body_bytes
        if self._received > 2 * most + limit or self._received - self._of_body - len(data) > limit + self._of_body // 8:
            self._refuse(413, f"a request may have {most} bytes")
            return
        super().data_received(data)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.settings.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    # -- what the parser calls --------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= PIPELINED:
            self._give_up(429, f"more than {PIPELINED} requests wait on this connection")
        if not self._in_head:
            self._await_head()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= HEADERS:
            self._give_up(431, f"a request may have {HEADERS} headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body = False, True
        self.waiting.pop(self, None)
        self._wait(self.settings.body_timeout_s)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._of_body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_body = False
        self._wait(None)
        if self.cycle.response_complete:
            self._await_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_body and not self._in_head and not self.pipeline:
            self._await_head()

    # -- limits -----------------------------------------------------------------------------------------------------

    def _await_head(self) -> None:
        self._heads += 1
        self._in_head, self._received, self._of_body = True, 0, 0
        self.waiting[self] = None
        self._wait(self.settings.header_timeout_s)

    def _wait(self, seconds: float | None) -> None:
        """For what comes next; None: for nothing."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._late)

    def _late(self) -> None:
        if self._in_head and not self._received:
            self.transport.close()
        else:
            self._refuse(408, f"the {'head' if self._in_head else 'body'} of the request did not come in time")

    def _give_up(self, status: int, message: str) -> None:
        """Ends the parser's work."""
        self._refusal = (status, message)
        raise ValueError(message)

    def send_400_response(self, msg: str) -> None:
        self._refuse(*(self._refusal or (400, msg)))

    def _refuse(self, status: int, message: str) -> None:
        """Answer for the application, where no answer has begun, and close."""
        self.waiting.pop(self, None)
        if self.pipeline or (self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete):
            self.transport.abort()
            return
        body = message.encode()
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: text/plain; charset=utf-8\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
        self.transport.close()
