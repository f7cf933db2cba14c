"""Reading the settings again while the gateway runs: all of them are taken into use, or none. A request ends on the settings
that it began with.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from r2v.clients.base import Client
from r2v.core.errors import R2VError, SettingsError
from r2v.gateway.settings import GatewaySettings

Read = Callable[[], GatewaySettings]
"""Reads the settings from where they come from. Raises R2VError."""
RELOADED = ("models", "route", "budget", "server", "verdicts")
"""Groups of settings that are read again."""
OF_START = ("host", "port", "workers", "admin_host", "admin_port")
"""Of the group `server`: what listens, and how often."""


class Reloads(msgspec.Struct, frozen=True):
    """Which settings are in use, and what became of reading them again."""

    settings: str
    """Their hash."""
    router: str
    """`Configured.identity` of its router."""
    since: float
    done: int = 0
    """Reloads since the gateway started."""
    refused: int = 0
    last: float | None = None
    """When the last reload was, done or refused."""
    problem: str = ""
    """Of the last reload, where it was refused."""

    def taken(self, settings: GatewaySettings, router: str) -> Reloads:
        now = time.time()
        return Reloads(hash_of(settings), router, now, self.done + 1, self.refused, now)

    def refused_for(self, problem: str) -> Reloads:
        return msgspec.structs.replace(self, refused=self.refused + 1, last=time.time(), problem=problem)

    @property
    def line(self) -> str:
        """What became of the last reload, for the log."""
        if self.problem:
            return f"r2v: reload refused: {self.problem}; the settings {self.settings} stay in use"
        return f"r2v: reloaded: settings {self.settings}, router {self.router}"


class Reloading(Protocol):
    """What the control plane knows of reloads."""

    @property
    def state(self) -> Reloads: ...

    async def reload(self) -> None:
        """Read the settings again. Raises R2VError where they stay as they are."""


@dataclass(eq=False)
class Generation:
    """What serves with one reading of the settings."""

    settings: GatewaySettings
    """As the file says."""
    router: str
    """`Configured.identity` of its router."""
    app: ASGIApp
    again: Callable[[GatewaySettings], Generation]
    """Makes its successor, in a thread. Raises R2VError."""
    take_over: Callable[[], None] = lambda: None
    """Called when it is the one in use."""
    clients: tuple[Client, ...] = ()
    """Which may be those of others, too."""
    requests: int = 0
    """Being served."""


class LiveApp:
    """ASGI, and `r2v.gateway.reload.Reloading` where one process serves everything. What belongs to all generations begins
    and ends with the first one's lifespan.
    """

    def __init__(self, first: Callable[[LiveApp], Generation], read: Read | None = None) -> None:
        """`first` makes the first generation; `read` reads the settings again. None: they stay, and only files are read."""
        self.current = first(self)
        self._read: Read = read or (lambda: self.current.settings)
        self.state = first_state(self.current.settings, self.current.router)
        self._reloading = asyncio.Lock()
        self.on_use: list[Callable[[GatewaySettings], None]] = []
        """Called with other settings when they are taken into use."""
        self._first = self.current
        self._alive = [self.current]
        """Those that serve a request, and the current one."""
        self._closing: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._first.app(scope, receive, send)
            await asyncio.gather(*self._closing, *(c.close() for generation in self._alive for c in generation.clients))
            return
        generation = self.current
        generation.requests += 1
        try:
            await generation.app(scope, receive, send)
        finally:
            generation.requests -= 1
            self._end(generation)

    async def reload(self) -> None:
        """Read the settings again, and serve with them. Raises R2VError where those in use stay."""
        async with self._reloading:
            try:
                settings = await asyncio.to_thread(self._read)
                check_reloadable(self.current.settings, settings)
                generation = await self.prepare(settings)
            except R2VError as error:
                self.state = self.state.refused_for(str(error))
                raise
            self.use(generation)
            self.state = self.state.taken(settings, generation.router)

    async def prepare(self, settings: GatewaySettings) -> Generation:
        """One that may take over; requests are served meanwhile. Raises R2VError."""
        try:
            return await asyncio.to_thread(self.current.again, settings)
        except R2VError:
            raise
        except Exception as error:  # of a plug-in, say: those in use go on all the same
            raise R2VError(f"{type(error).__name__}: {error}") from error

    def use(self, generation: Generation) -> None:
        """Serve further requests with this one."""
        before, self.current = self.current, generation
        self._alive.append(generation)
        generation.take_over()
        for changed in self.on_use:
            changed(generation.settings)
        self._end(before)

    def _end(self, generation: Generation) -> None:
        """Close what only this one used, once it serves nothing any more."""
        if generation is self.current or generation.requests or generation not in self._alive:
            return
        self._alive.remove(generation)
        used = {client for other in self._alive for client in other.clients}
        for client in set(generation.clients) - used:
            task = asyncio.ensure_future(client.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


def first_state(settings: GatewaySettings, router: str) -> Reloads:
    return Reloads(hash_of(settings), router, time.time())


def hash_of(settings: GatewaySettings) -> str:
    return hashlib.sha256(msgspec.json.encode(settings, order="sorted")).hexdigest()[:12]


def check_reloadable(before: GatewaySettings, after: GatewaySettings) -> None:
    """Raises SettingsError, naming what differs and takes a restart: a process keeps its environment, too."""
    old, new = _of_start(before), _of_start(after)
    if changed := [key for key in old | new if new.get(key) != old.get(key)]:
        raise SettingsError(
            f"{', '.join(changed)} cannot change while the gateway runs: restart it, or set back what it was"
        )
    for key in ("key_env", "admin_key_env"):
        name = getattr(after.server, key)
        if name != getattr(before.server, key) and not os.environ.get(name):
            raise SettingsError(
                f"server.{key} names {name}, which was not set when the gateway was started: restart it with it"
            )


def _of_start(settings: GatewaySettings) -> dict[str, Any]:
    """The values, by key, that cannot change while the gateway runs."""
    groups: dict[str, Any] = msgspec.to_builtins(settings)
    found = {f"server.{key}": groups["server"][key] for key in OF_START}
    for name, group in groups.items():
        if name not in RELOADED:
            found |= {f"{name}.{key}": value for key, value in group.items()} if isinstance(group, dict) else {name: group}
    return found


def terminal_watch() -> Callable[[], bool]:
    """What says whether the terminal has been closed from which the gateway was started: that is a SIGHUP, too."""
    try:
        file = sys.stdin.fileno()
        has_terminal = os.isatty(file)
    except (AttributeError, OSError, ValueError):  # started without one
        return lambda: False
    return lambda: has_terminal and not os.isatty(file)
