"""The gateway as several processes: workers that serve one port, and the control plane.

Their supervisor (`r2v.gateway.supervisor`) binds both ports. What workers share is in the ledger
(`r2v.gateway.session_state`), or in Redis.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from r2v.gateway.app import build_app
from r2v.gateway.control import FINISH_S, ControlPlane
from r2v.gateway.demo import demonstrate
from r2v.gateway.keys import KeyRing
from r2v.gateway.ledger import Ledger
from r2v.gateway.metrics import Counts, Metrics, sum_counts
from r2v.gateway.modes import Modes
from r2v.gateway.reload import Generation, LiveApp, Read
from r2v.gateway.routing import load_configured
from r2v.gateway.serve import _listen, mocked, mocks, set_mock_key
from r2v.gateway.service import Service
from r2v.gateway.settings import GatewaySettings
from r2v.gateway.stores import Stores, shipping_of
from r2v.gateway.supervisor import Link, Supervisor, Work
from r2v.verifiers import verifier_named

if TYPE_CHECKING:
    from r2v.clients.mock import MockModel

COUNTS_S = 1.0
"""How often a worker writes down what it has counted."""
RUNS_S = 15.0
"""A worker that has written nothing for so long is gone, or hangs."""
UNCHANGED_S = 5.0
"""After so long a worker writes down its counts though they are what they were."""


def serve_planes(
    settings: GatewaySettings, *, mock: bool, announce: Callable[[str, str], None], read: Read | None = None
) -> None:
    """Serve until a signal, as several processes.

    Args:
        settings: with `server.workers` and `server.admin_port`.
        mock: with mock models beside it, and sessions to show.
        announce: called with the URL of the data plane and that of the control plane once both answer.
        read: reads the settings again at a SIGHUP or `POST /v1/reload`; None: they stay, and only files are read again.

    Raises:
        SettingsError: a port is taken, a key is missing.
        R2VError: a process does not start.
    """
    server = settings.server
    if mock:
        set_mock_key(settings)
    router = load_configured(settings.route, settings.stronger).identity
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
        beside = mocks() if mock else []
        keys = os.environ[server.key_env] if mock and not ledger.sessions(1) else None  # sessions to show, once
        first = [(partial(_mock, one.model, url, None if i else keys), one.listener) for i, one in enumerate(beside)]

        def plan(settings: GatewaySettings) -> list[tuple[Work, socket.socket]]:
            worker = partial(_worker, settings, admin_url, f"{folder}/items.db")
            return [*first, *((worker, listener) for listener in listeners), (partial(_control, settings), admin)]

        again = read or (lambda: settings)
        supervisor = Supervisor(
            mocked(settings, beside), router, plan, lambda: mocked(again(), beside), ledger.accounts.recover
        )
        if shipping is not None:  # the workers have written their last rows
            supervisor.ended = partial(shipping.finish, FINISH_S)
        supervisor.run(lambda: announce(url, admin_url))


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


# -- in each process --------------------------------------------------------------------------------------------------


def _worker(
    settings: GatewaySettings, admin_url: str, items: str, parent: Link
) -> tuple[Any, Callable[[], Awaitable[None]]]:
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


def _control(settings: GatewaySettings, parent: Link) -> tuple[Any, None]:
    stores = Stores(settings)
    decoder = msgspec.msgpack.Decoder(Counts)

    def generation(settings: GatewaySettings) -> Generation:
        router = load_configured(settings.route, settings.stronger)

        def counts() -> Counts:
            now = time.time()
            all_counts = [(now - at < RUNS_S, decoder.decode(found)) for at, found in stores.ledger.states.counts()]
            return sum_counts(all_counts, router.identity)

        modes, keys = Modes(router.route, stores.sessions, stores.reader), KeyRing(settings.server, stores.keys)
        plane = ControlPlane(settings, stores, keys, router, modes, counts, parent)
        return Generation(settings, router.identity, plane.app(), generation)

    return LiveApp(lambda live: generation(settings)), None


def _mock(model: MockModel, url: str, keys: str | None, parent: Link) -> tuple[Any, Callable[[], Awaitable[None]] | None]:
    """A mock model, and, where keys of the gateway at `url` are given, sessions to show."""
    from r2v.clients.mock import mock_app

    return mock_app(model), None if keys is None else partial(demonstrate, url, keys)
