"""Connections to the Redis of a URL, or to the one that sentinels call the master, whose replicas have what was written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

REPLICATED_MS = 1000
"""How long a write waits for the replicas of Redis."""


class Connection:
    """Commands to one Redis; every method raises OSError where it does not answer or refuses."""

    def __init__(self, url: str, prefix: str = "r2v", replicas: int = 0) -> None:
        """
        Args:
            url: of the Redis, or `redis+sentinel://` of what knows it (`clients`).
            prefix: of all keys.
            replicas: of Redis, which must have what was written before `run` returns.

        Raises:
            ValueError: the URL is none.
        """
        self._client, self._sentinels = clients(url, retries=not replicas)
        self._prefix, self._replicas = prefix, replicas
        self._free: list[redis.Redis] = []
        """Clients of one connection each: `WAIT` is about what its own connection wrote."""

    async def run(self, *commands: Sequence[Any]) -> list[Any]:
        """The answers to commands that Redis runs in one transaction."""
        client = self._free.pop() if self._free else self._client()
        try:
            async with client.pipeline(transaction=True) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                answers: list[Any] = await pipe.execute()
            had = await client.wait(self._replicas, REPLICATED_MS) if self._replicas else 0
        except redis.RedisError as error:
            if isinstance(error, redis.ConnectionError):  # idle connections have ended, too: no later command shall fail
                await self._leave()
            await client.aclose()
            raise OSError(f"Redis: {error}") from error
        except BaseException:
            await client.aclose()
            raise
        self._free.append(client)
        if had < self._replicas:
            raise OSError(f"Redis: {had} of {self._replicas} replicas (store.redis_replicas) have what was written")
        return answers

    def key(self, kind: str, name: str = "") -> str:
        return f"{self._prefix}:{kind}:{name}"

    async def _leave(self) -> None:
        free, self._free = self._free, []
        for client in free:
            await client.aclose()

    async def close(self) -> None:
        await self._leave()
        for sentinel in self._sentinels:
            await sentinel.aclose()


def clients(url: str, *, retries: bool) -> tuple[Callable[[], redis.Redis], Sequence[redis.Redis]]:
    """What makes clients of one connection each, to the Redis of a URL; and the clients of its sentinels, which open again.

    Args:
        url: `redis://`, `rediss://` (TLS), `unix://`, or `redis+sentinel://[USER:PASSWORD@]HOST[:PORT],HOST.../NAME[/DB]`
            (`rediss+sentinel://`; `?password=` of the sentinels): the one that they call the master of NAME.
        retries: whether a command may be sent again on another connection.

    Raises:
        ValueError: the URL is none.
    """
    once: dict[str, Any] = {"retry": Retry(NoBackoff(), 0)}
    options = {"socket_timeout": 5, "socket_connect_timeout": 5, "max_connections": 1, **({} if retries else once)}
    parts = urlsplit(url)
    if not parts.scheme.endswith("+sentinel"):
        redis.ConnectionPool.from_url(url)
        return lambda: redis.Redis.from_pool(redis.ConnectionPool.from_url(url, **options)), ()
    user, _, hosts = parts.netloc.rpartition("@")
    named = [(host or "localhost", int(port or 26379)) for host, _, port in (one.partition(":") for one in hosts.split(","))]
    name, _, number = parts.path.strip("/").partition("/")
    if not name or parts.scheme not in ("redis+sentinel", "rediss+sentinel"):
        raise ValueError("a URL of sentinels is redis+sentinel://HOST:PORT,HOST:PORT/NAME")
    username, _, password = user.partition(":")
    tls = {"ssl": True} if parts.scheme == "rediss+sentinel" else {}
    asked = {"password": found[0]} if (found := parse_qs(parts.query).get("password")) else {}
    of_sentinels = {"socket_timeout": 1, "socket_connect_timeout": 1, **once, **asked, **tls}
    sentinels = Sentinel(named, sentinel_kwargs=of_sentinels, **tls)  # type: ignore[no-untyped-call]
    options |= {"db": int(number or 0), "username": unquote(username) or None, "password": unquote(password) or None}
    return lambda: sentinels.master_for(name, **options), sentinels.sentinels
