"""Connections to one server of models: of the event loop that runs, through the proxy that the environment names."""

from __future__ import annotations

import asyncio
import io
import ipaddress
import weakref
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

IN_PIECES = 2**20
"""Bytes of a request from which on it is sent in pieces."""


@dataclass(frozen=True, eq=False)
class _Pool:
    """What belongs to one event loop."""

    loop: asyncio.AbstractEventLoop
    session: aiohttp.ClientSession
    owner: AsyncGenerator[aiohttp.ClientSession, None]
    dropped: weakref.finalize[..., Connections]


class Connections:
    def __init__(self, url: str, headers: Mapping[str, str], limit: int) -> None:
        """`headers` of all requests; no more than `limit` connections, for which further requests wait."""
        self.url, self._headers, self._limit = url, headers, limit
        self._proxy = proxy_of(url)
        self._pool: _Pool | None = None

    async def post(
        self, data: bytes, headers: Mapping[str, str], timeout: aiohttp.ClientTimeout
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """A request; to enter it is to send it. Raises aiohttp.ClientError or TimeoutError then."""
        session = await self._session()
        # Of large bodies aiohttp wants a file, which it sends in pieces: the loop goes on in between.
        body = data if len(data) < IN_PIECES else io.BytesIO(data)
        return session.post(self.url, data=body, headers=headers, proxy=self._proxy, allow_redirects=False, timeout=timeout)

    async def close(self) -> None:
        """Close them. Without it they are closed with this object, or when the event loop shuts down."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.dropped.detach()
            if pool.loop is asyncio.get_running_loop():
                await pool.owner.aclose()

    async def _session(self) -> aiohttp.ClientSession:
        """That of the event loop that runs: a process may run several loops, one after the other."""
        loop = asyncio.get_running_loop()
        if self._pool is None or self._pool.loop is not loop:
            if self._pool is not None:
                self._pool.dropped.detach()
            owner = _sessions(self._headers, self._limit)
            session = await anext(owner)
            self._pool = _Pool(loop, session, owner, weakref.finalize(self, _close_soon, loop, owner))
        return self._pool.session


async def _sessions(headers: Mapping[str, str], limit: int) -> AsyncGenerator[aiohttp.ClientSession, None]:
    """One session. It closes with its loop: what ends a loop (`asyncio.run`) closes the generators that have begun in it."""
    session = aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(limit=limit),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,  # it unpacks without a limit
    )
    try:
        yield session
    finally:
        await session.close()
        await asyncio.sleep(0.01)  # the transports close in the next rounds of the loop


def _close_soon(loop: asyncio.AbstractEventLoop, owner: AsyncGenerator[aiohttp.ClientSession, None]) -> None:
    """Of connections that nobody uses any more, perhaps in another thread."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(lambda: loop.create_task(_closed(owner)))


async def _closed(owner: AsyncGenerator[aiohttp.ClientSession, None]) -> None:
    await owner.aclose()


def proxy_of(url: str) -> str | None:
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
