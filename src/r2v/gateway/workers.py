"""The gateway as several processes: workers that serve one port, the control plane, and a parent that starts them.

The parent binds both ports, starts again what dies, and ends all of them at a signal. What workers share is in
the ledger (`r2v.gateway.session_state`), or in Redis.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import uvicorn

from r2v.core.errors import R2VError
from r2v.gateway.app import build_app
from r2v.gateway.control import FINISH_S, ControlPlane
from r2v.gateway.demo import demonstrate
from r2v.gateway.keys import KeyRing
from r2v.gateway.ledger import Ledger
from r2v.gateway.metrics import Counts, Metrics, together
from r2v.gateway.modes import Modes
from r2v.gateway.routing import load_configured
from r2v.gateway.serve import _config, _listen, mocked, run_loop, set_mock_key, take_short_turns
from r2v.gateway.service import Service, read_from, shared_state, shipping_of
from r2v.gateway.settings import GatewaySettings, ServerSettings
from r2v.verifiers import verifier_named

if TYPE_CHECKING:
    from r2v.clients.mock import MockModel

COUNTS_S = 1.0
"""How often a worker writes down what it has counted."""
RUNS_S = 15.0
"""A worker that has written nothing for so long is gone, or hangs."""
UNCHANGED_S = 5.0
"""After so long a worker writes down its counts though they are what they were."""
AGAIN_S = 1.0
"""What dies is started again no sooner than so long after it was started."""
END_S = 15.0
"""Processes that have not ended so long after the signal are killed."""
Work = Callable[[], tuple[Any, Callable[[], Awaitable[None]] | None]]
"""Makes what a process serves, and what it does beside that."""


@dataclass
class _Child:
    work: Work
    listener: socket.socket
    process: Any
    report: Connection
    """Where the process says that it serves, or why it does not."""
    started: float


def serve_planes(settings: GatewaySettings, *, mock: bool, announce: Callable[[str, str], None]) -> None:
    """Serve until a signal, as several processes.

    Args:
        settings: with `server.workers` and `server.admin_port`.
        mock: with mock models beside it, and sessions to show.
        announce: called with the URL of the data plane and that of the control plane once both answer.

    Raises:
        SettingsError: a port is taken, a key is missing.
        R2VError: a process does not start.
    """
    server = settings.server
    if mock:
        set_mock_key(settings)
    load_configured(settings.route)
    with ExitStack() as stack:
        ledger = Ledger(Path(settings.store.path), owner=True)
        stack.callback(ledger.close)
        ledger.states.forget_counts()
        shipping = shipping_of(settings.store)
        if shipping is not None:
            stack.callback(shipping.close)
            shipping.join(ledger)
        listeners = [stack.enter_context(listener) for listener in _spread(server.host, server.port, server.workers)]
        admin = stack.enter_context(
            _listen(server.admin_host, server.control_port or 0, "server.admin_port or --admin-port")
        )
        # What clients may refer to are words, which a ledger that redacts may not hold: they go with the gateway.
        shared = Path("/dev/shm")
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="r2v-", dir=shared if shared.is_dir() else None))
        url, admin_url = _url(listeners[0]), _url(admin)
        works: list[tuple[Work, socket.socket]] = []
        if mock:
            settings, models = mocked(settings)
            keys = None if ledger.sessions(1) else os.environ[server.key_env]  # sessions to show, once
            works = [(partial(_mock, model, url, None if i else keys), at) for i, (model, at) in enumerate(models)]
        worker = partial(_worker, settings, admin_url, f"{folder}/items.db")
        works += [(worker, listener) for listener in listeners]
        family = _Family([*works, (partial(_control, settings), admin)], server, ledger.accounts.recover)
        if shipping is not None:  # the workers have written their last rows
            family.ended = partial(shipping.finish, FINISH_S)
        family.run(lambda: announce(url, admin_url))


def _spread(host: str, port: int, workers: int) -> list[socket.socket]:
    """What each worker listens on. With one socket for all of them the first that wakes takes a whole burst of connections.
    All of them are the parent's: what came for a worker that died waits for the next. Raises SettingsError.
    """
    first = _listen(host, port)  # as one that does not share it: another gateway may not have the port
    if sys.platform != "linux" or workers == 1:  # elsewhere the last socket gets all
        return [first] * workers
    port = first.getsockname()[1]
    first.close()
    return [_listen(host, port, share=True) for _ in range(workers)]


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class _Family:
    """A parent and the processes that it keeps alive."""

    def __init__(
        self, works: list[tuple[Work, socket.socket]], server: ServerSettings, gone: Callable[[int], object]
    ) -> None:
        """`gone`: called with the number of each process that ended by itself."""
        self._context = multiprocessing.get_context("spawn")  # what runs in the parent is not copied
        self._works, self._server, self._gone = works, server, gone
        self._children: list[_Child] = []
        self.ended: Callable[[], None] = lambda: None
        """Called once all processes have ended."""

    def run(self, ready: Callable[[], None]) -> None:
        """Until a signal, by which the parent then ends. `ready` is called once all processes serve. Raises R2VError."""
        woken, wake = self._context.Pipe(duplex=False)
        ended: list[int] = []

        def end(number: int, *_: object) -> None:
            ended.append(number)
            wake.send(None)

        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._children = [self._start(work, listener) for work, listener in self._works]
            for child in self._children:
                self._await(child, woken, ended)
            if not ended:
                ready()
            while not ended:
                wait([woken, *(child.process.sentinel for child in self._children)])
                for i, child in enumerate(self._children):
                    if not ended and not child.process.is_alive():
                        line = f"process {child.process.pid} ended ({child.process.exitcode}); it is started again"
                        print(f"r2v: {line}", file=sys.stderr, flush=True)
                        with suppress(sqlite3.Error):  # what it held is charged all the same
                            self._gone(child.process.pid)
                        if woken.poll(max(0.0, child.started + AGAIN_S - time.monotonic())):
                            break
                        self._children[i] = self._start(child.work, child.listener)
        finally:
            self._end()
            self.ended()
            for number, handler in before.items():
                signal.signal(number, handler)
        signal.raise_signal(ended[0])

    def _start(self, work: Work, listener: socket.socket) -> _Child:
        report, tell = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_serve, args=(work, listener, tell, self._server))
        process.start()
        tell.close()
        return _Child(work, listener, process, report, time.monotonic())

    def _await(self, child: _Child, woken: Connection, ended: list[int]) -> None:
        """Wait until the process serves, or a signal comes. Raises R2VError where it ended instead."""
        wait([woken, child.report])
        if not ended:
            with suppress(EOFError):
                if problem := child.report.recv():
                    raise R2VError(problem)
                return
            raise R2VError(f"a process of the gateway did not start: exit status {child.process.exitcode}")

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


def _serve(work: Work, listener: socket.socket, tell: Connection, settings: ServerSettings) -> None:
    """Serve until a signal, or until the parent is gone."""

    async def serve() -> None:
        try:
            app, beside = work()
        except R2VError as error:
            tell.send(str(error))
            return
        take_short_turns()
        server = uvicorn.Server(_config(app, settings))
        parent = multiprocessing.parent_process()
        assert parent is not None

        def end() -> None:
            loop.remove_reader(parent.sentinel)
            server.should_exit = True

        loop = asyncio.get_running_loop()
        loop.add_reader(parent.sentinel, end)
        task = None if beside is None else asyncio.ensure_future(beside())
        tell.send("")
        try:
            await server.serve([listener])
        finally:
            if task is not None:
                task.cancel()

    run_loop(serve())


def _worker(settings: GatewaySettings, admin_url: str, items: str) -> tuple[Any, Callable[[], Awaitable[None]]]:
    service = Service(settings, owner=False)
    verifier_named(service.settings.route.verifier)  # its imports are not the first request's to wait for
    app = build_app(service, admin_url=admin_url, items=items)
    return app, partial(_write_counts, service.ledger, service.metrics)


async def _write_counts(ledger: Ledger, metrics: Metrics) -> None:
    """Write down what this worker has counted, as long as it runs."""
    name, written, at = str(os.getpid()), b"", 0.0

    def write() -> None:
        nonlocal written, at
        counts = msgspec.msgpack.encode(metrics.counts())
        if counts != written or time.monotonic() - at > UNCHANGED_S:
            ledger.states.keep_counts(name, time.time(), counts)
            written, at = counts, time.monotonic()

    while True:
        with suppress(sqlite3.Error):  # a full disk is the steps' to report
            write()
        await asyncio.sleep(COUNTS_S)


def _control(settings: GatewaySettings) -> tuple[Any, None]:
    router = load_configured(settings.route)
    ledger = Ledger(Path(settings.store.path))
    sessions, _, store = shared_state(settings, ledger)
    shipping = shipping_of(settings.store)
    modes = Modes(router.route, sessions, read_from(ledger, shipping))
    decoder = msgspec.msgpack.Decoder(Counts)

    def counts() -> Counts:
        now = time.time()
        return together([(now - at < RUNS_S, decoder.decode(found)) for at, found in ledger.states.counts()])

    keys = KeyRing(settings.server, store)
    return ControlPlane(settings, keys, router, ledger, sessions, modes, counts, shipping).app(), None


def _mock(model: MockModel, url: str, keys: str | None) -> tuple[Any, Callable[[], Awaitable[None]] | None]:
    """A mock model, and, where keys of the gateway at `url` are given, sessions to show."""
    from r2v.clients.mock import mock_app

    return mock_app(model), None if keys is None else partial(demonstrate, url, keys)
