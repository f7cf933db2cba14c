"""A supervisor and the processes that it keeps alive: it starts again what dies, gives all of them other settings or none,
and ends them at a signal.

What the two say to each other are tuples, the first of which is what it is about. Parent: `prepare` (number, settings), then
`use` (number, state) or `drop` (number, state); `answer` (problem, empty for none). Process: `started` (problem) once,
`prepared` (number, problem, router), `used` (number); `reload`, to be answered.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import socket
import sqlite3
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from r2v.core.errors import R2VError
from r2v.gateway.reload import Generation, LiveApp, Read, Reloads, check_reloadable, first_state, terminal_watch
from r2v.gateway.serve import SIGHUP, run_loop, server_of, tune_interpreter
from r2v.gateway.settings import GatewaySettings, ServerSettings

AGAIN_S = 1.0
"""What dies is started again no sooner than so long after it was started."""
END_S = 15.0
"""Processes that have not ended so long after the signal are killed."""
PREPARED_S = 60.0
"""A reload is refused where a process has not loaded the new settings after so long."""
USED_S = 10.0
"""So long a reload waits for a process to take them into use: it does so in any case before it serves another request."""
Work = Callable[["Link"], tuple[Any, Callable[[], Awaitable[None]] | None]]
"""Makes what a process serves, and what it does beside that."""
Plan = Callable[[GatewaySettings], Sequence[tuple[Work, socket.socket]]]
"""What each process serves, and where."""


@dataclass
class _Child:
    process: Any
    pipe: Connection
    started: float
    again_at: float | None = None
    """It is dead, and to be started again then."""
    problem: str = ""
    """Why it could not serve."""


class Supervisor:
    def __init__(
        self, settings: GatewaySettings, router: str, plan: Plan, read: Read, on_death: Callable[[int], object]
    ) -> None:
        """
        Args:
            settings: to begin with.
            router: `Configured.identity` of their router.
            plan: of the processes.
            read: reads the settings again.
            on_death: called with the number of each process that ended by itself.
        """
        self._context = multiprocessing.get_context("spawn")  # what runs in the parent is not copied
        self._settings, self._state = settings, first_state(settings, router)
        self._plan, self._read, self._on_death = plan, read, on_death
        self._children: list[_Child] = []
        self._woken, self._wake = self._context.Pipe(duplex=False)
        self._ended: list[int] = []
        self.ended: Callable[[], None] = lambda: None
        """Called once all processes have ended."""
        self._asked: deque[_Child | None] = deque()
        """Reloads that somebody asked for: a process, or None for a signal."""
        self._number = 0
        """Of the latest reload."""

    def run(self, ready: Callable[[], None]) -> None:
        """Until a signal, by which the parent then ends. `ready` is called once all processes serve. Raises R2VError."""
        terminal_is_gone = terminal_watch()

        def end(number: int, *_: object) -> None:
            if number == SIGHUP and not terminal_is_gone():
                self._asked.append(None)
            else:
                self._ended.append(number)
            self._wake.send(None)

        numbers = [signal.SIGINT, signal.SIGTERM, *([] if SIGHUP is None else [SIGHUP])]
        before = {number: signal.signal(number, end) for number in numbers}
        try:
            self._children = [self._start(i) for i in range(len(self._plan(self._settings)))]
            for child in self._children:
                self._await_start(child)
            if not self._ended:
                ready()
            while not self._ended:
                self._keep_alive()
                while self._asked and not self._ended:
                    self._answer(self._asked.popleft())
        finally:
            self._send([child for child in self._asked if child is not None], ("answer", "the gateway ends"))
            self._end()
            self.ended()
            for number, handler in before.items():
                signal.signal(number, handler)
        signal.raise_signal(self._ended[0])

    def _start(self, i: int) -> _Child:
        work, listener = self._plan(self._settings)[i]
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(work, listener, theirs, self._settings.server, self._state))
        process.start()
        theirs.close()
        return _Child(process, ours, time.monotonic())

    def _await_start(self, child: _Child) -> None:
        """Wait until the process serves, or a signal ends all. Raises R2VError where it ended instead."""
        while not self._ended:
            wait([self._woken, child.pipe])
            self._drain()
            if child.pipe.poll():
                with suppress(EOFError, OSError):
                    _, problem = child.pipe.recv()
                    if problem:
                        raise R2VError(problem)
                    return
                raise R2VError(f"a process of the gateway did not start: exit status {child.process.exitcode}")

    def _drain(self) -> None:
        while self._woken.poll():
            self._woken.recv()

    def _keep_alive(self) -> None:
        """Wait for what happens next, and start again what died."""
        waits = [child.again_at - time.monotonic() for child in self._children if child.again_at is not None]
        alive = [child for child in self._children if child.again_at is None]
        wait(
            [self._woken, *(child.pipe for child in alive), *(child.process.sentinel for child in alive)],
            max(0.0, min(waits)) if waits else None,
        )
        self._drain()
        for i, child in enumerate(self._children):
            if child.again_at is None:
                self._listen(child)
            if child.again_at is not None and time.monotonic() >= child.again_at and not self._ended:
                self._children[i] = self._start(i)

    def _listen(self, child: _Child) -> list[tuple[Any, ...]]:
        """The answers of a process; where it has died, that is noted."""
        answers: list[tuple[Any, ...]] = []
        try:
            while child.pipe.poll():
                message = child.pipe.recv()
                if message == ("reload",):
                    self._asked.append(child)
                elif message[0] == "started":
                    child.problem = message[1]
                else:
                    answers.append(message)
        except (EOFError, OSError):
            child.process.join(END_S)
        if not child.process.is_alive() and child.again_at is None:
            child.again_at = child.started + AGAIN_S
            child.pipe.close()
            if not self._ended:
                line = f"process {child.process.pid} ended ({child.problem or child.process.exitcode}); it is started again"
                print(f"r2v: {line}", file=sys.stderr, flush=True)
                with suppress(sqlite3.Error):  # what it held is charged all the same
                    self._on_death(child.process.pid)
        return answers

    # -- reloads ----------------------------------------------------------------------------------------------------

    def _answer(self, asked: _Child | None) -> None:
        """Reload, and say what became of it: to the process that asked for it, or in the log."""
        problem = self._reload()
        if asked is None:
            print(self._state.line, file=sys.stderr, flush=True)
        else:
            self._send([asked], ("answer", problem))

    def _reload(self) -> str:
        """Read the settings again, and give them to all processes. Returns what is wrong; empty where they are in use."""
        self._number += 1
        try:
            settings = self._read()
            check_reloadable(self._settings, settings)
            router = self._prepare(settings)
        except R2VError as error:
            self._state = self._state.refused_for(str(error))
            self._send(self._children, ("drop", self._number, self._state))
            return str(error)
        # A process that dies from here on is started again with the new ones.
        self._settings, self._state = settings, self._state.taken(settings, router)
        self._ask(("use", self._number, self._state), "used", USED_S)
        return ""

    def _prepare(self, settings: GatewaySettings) -> str:
        """Have all processes load the settings. Returns their router. Raises R2VError where one of them cannot."""
        number = self._number
        asked = [child for child in self._children if child.again_at is None]
        answers = self._ask(("prepare", number, settings), "prepared", PREPARED_S)
        for _, _, problem, _ in answers:
            if problem:
                raise R2VError(problem)
        if self._ended:
            raise R2VError("the gateway ends")
        if len(answers) < len(asked):
            raise R2VError(f"a process of the gateway did not load the new settings within {PREPARED_S:g} s, or ended")
        routers: set[str] = {router for _, _, _, router in answers if router}
        if len(routers) != 1:
            raise R2VError(f"the files of the router {settings.route.router} changed while they were loaded; reload again")
        return routers.pop()

    def _ask(self, message: tuple[Any, ...], answer: str, most_s: float) -> list[tuple[Any, ...]]:
        """The answers of all processes that live, as far as they come in time."""
        deadline = time.monotonic() + most_s
        asked = [child for child in self._children if child.again_at is None]
        self._send(asked, message)
        found: list[tuple[Any, ...]] = []
        while asked and not self._ended and (left := deadline - time.monotonic()) > 0:
            wait([self._woken, *(child.pipe for child in asked)], left)
            self._drain()
            for child in list(asked):
                answers = [got for got in self._listen(child) if got[:2] == (answer, message[1])]
                found += answers
                if answers or child.again_at is not None:
                    asked.remove(child)
        return found

    def _send(self, children: Sequence[_Child], message: tuple[Any, ...]) -> None:
        for child in children:
            with suppress(OSError):  # it has died
                child.pipe.send(message)

    def _end(self) -> None:
        for child in self._children:
            child.process.terminate()
        deadline = time.monotonic() + END_S
        for child in self._children:
            child.process.join(max(0.0, deadline - time.monotonic()))
            if child.process.is_alive():
                child.process.kill()
                child.process.join()


# -- in each process --------------------------------------------------------------------------------------------------


@dataclass
class Link:
    """The parent, as one of its processes sees it; `r2v.gateway.reload.Reloading` of the control plane's."""

    pipe: Connection
    state: Reloads
    _number: int = 0
    """Of the reload that is being prepared; 0: none is."""
    _next: Generation | None = None
    """What it would take into use."""
    _answers: deque[asyncio.Future[str]] = field(default_factory=deque)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def reload(self) -> None:
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        self.pipe.send(("reload",))
        if problem := await answer:
            raise R2VError(problem)

    def listen(self, app: object) -> None:
        """Do what the parent says with the app of this process."""
        loop = asyncio.get_running_loop()

        def read() -> None:
            try:
                while self.pipe.poll():
                    self._handle(app, *self.pipe.recv())
            except (EOFError, OSError):  # the parent is gone
                loop.remove_reader(self.pipe.fileno())

        loop.add_reader(self.pipe.fileno(), read)

    def _handle(self, app: object, about: str, *what: Any) -> None:
        if about == "answer":
            if not (answer := self._answers.popleft()).done():
                answer.set_result(what[0])
        elif about == "prepare":
            self._number, self._next = what[0], None
            task = asyncio.ensure_future(self._prepare(app, *what))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            number, self.state = what
            if about == "use":
                if isinstance(app, LiveApp) and self._next is not None:
                    app.use(self._next)
                self.pipe.send(("used", number))
            self._number, self._next = 0, None

    async def _prepare(self, app: object, number: int, settings: GatewaySettings) -> None:
        problem, router = "", ""
        if isinstance(app, LiveApp):  # a mock model's has no settings
            try:
                made = await app.prepare(settings)
                router = made.router
                if number == self._number:  # else it took so long that it is refused already
                    self._next = made
            except R2VError as error:
                problem = str(error)
        self.pipe.send(("prepared", number, problem, router))


def _serve(work: Work, listener: socket.socket, pipe: Connection, settings: ServerSettings, state: Reloads) -> None:
    """Serve until a signal, or until the parent is gone."""
    if SIGHUP is not None:
        signal.signal(SIGHUP, signal.SIG_IGN)  # the parent's to deal with, where the whole group gets one

    async def serve() -> None:
        parent = Link(pipe, state)
        try:
            app, beside = work(parent)
        except R2VError as error:
            pipe.send(("started", str(error)))
            return
        tune_interpreter()
        server = server_of(app, settings)
        process = multiprocessing.parent_process()
        assert process is not None

        def end() -> None:
            loop.remove_reader(process.sentinel)
            server.should_exit = True

        loop = asyncio.get_running_loop()
        loop.add_reader(process.sentinel, end)
        task = None if beside is None else asyncio.ensure_future(beside())
        pipe.send(("started", ""))
        parent.listen(app)
        try:
            await server.serve([listener])
        finally:
            if task is not None:
                task.cancel()

    run_loop(serve())
