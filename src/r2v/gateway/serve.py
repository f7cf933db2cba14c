"""Runs the gateway, alone or with mock models beside it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import uvicorn

try:
    from uvloop import run
except ModuleNotFoundError:  # Windows
    from asyncio import run  # type: ignore[assignment]

from r2v.core.errors import R2VError, SettingsError
from r2v.gateway.app import build_app
from r2v.gateway.connections import guarded, relimit
from r2v.gateway.reload import LiveApp, Read, terminal_watch
from r2v.gateway.service import Service
from r2v.gateway.settings import GatewaySettings, ServerSettings
from r2v.runtime.settings import validated
from r2v.verifiers import verifier_named

if TYPE_CHECKING:
    from r2v.clients.mock import MockModel

run_loop = run
"""Runs a coroutine in the fastest event loop of this platform."""
MOCK_KEY = "r2v-mock"
SIGHUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""By which one asks for a reload; Windows has none."""
BACKLOG = 256
"""Connections that are accepted at once: each takes some 40 microseconds, in which nobody is served."""


def serve(settings: GatewaySettings, *, mock: bool, announce: Callable[[str, str], None], read: Read | None = None) -> None:
    """Serve until a signal, as one process; `r2v.gateway.workers` serves as several.

    Args:
        settings: of the gateway.
        mock: with mock models beside it, and sessions to show.
        announce: called with the URLs that agents and operators take, once the gateway answers.
        read: reads the settings again at a SIGHUP or `POST /v1/reload`; None: they stay, and only files are read again.

    Raises:
        SettingsError: a port is taken or a key is missing.
    """
    if mock:
        set_mock_key(settings)
    run_loop(_serve(settings, mock, announce, read or (lambda: settings)))


def set_mock_key(settings: GatewaySettings) -> None:
    """A key for clients, where none is set."""
    os.environ[settings.server.key_env] = os.environ.get(settings.server.key_env) or MOCK_KEY


def serve_app(app: object, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve any application until a signal. Raises SettingsError when the port is taken."""
    listener = _listen(host, port, "--port")
    announce(f"http://{host}:{listener.getsockname()[1]}")
    run_loop(uvicorn.Server(_config(app, ServerSettings())).serve([listener]))


def tune_interpreter() -> None:
    """So that nobody waits for anybody else's work; called once what stays is loaded."""
    sys.setswitchinterval(0.0005)  # threads read large requests: at Python's 5 ms each turn of the event loop waits as long
    gc.freeze()  # searching all that stays for garbage takes a tenth of a second each time
    gc.set_threshold(10_000, 20, 50)  # else what is read of one large request is searched a hundred times meanwhile


def mock_settings(port: int) -> GatewaySettings:
    """Settings for the mock models; their ports are filled in when they listen."""
    from r2v.clients.mock import SLM, TEACHER

    raw = {
        "version": 1,
        "models": {
            "slm": {"base_url": "http://mock", "model": SLM.name, "price": {"input": 0.1, "output": 0.4}},
            "teacher": {"base_url": "http://mock", "model": TEACHER.name, "price": {"input": 3.0, "output": 15.0}},
        },
        "store": {"path": f"r2v-mock-{port}.db", "redact": False},  # nobody has said these words
    }
    return validated(GatewaySettings, raw)


@dataclass(frozen=True)
class Mock:
    """A mock model, and where it listens."""

    role: Literal["slm", "teacher"]
    model: MockModel
    listener: socket.socket


def mocks() -> list[Mock]:
    from r2v.clients.mock import SLM, TEACHER

    return [Mock("slm", SLM, _listen("127.0.0.1", 0)), Mock("teacher", TEACHER, _listen("127.0.0.1", 0))]


def mocked(settings: GatewaySettings, mocks: Sequence[Mock]) -> GatewaySettings:
    """The settings with mock models in the place of theirs."""
    models = dict(settings.models)
    for mock in mocks:
        url = f"http://127.0.0.1:{mock.listener.getsockname()[1]}/v1"
        models[mock.role] = models[mock.role].but(base_url=url, model=mock.model.name)
    return settings.but(models=models)


async def _serve(settings: GatewaySettings, mock: bool, announce: Callable[[str, str], None], read: Read) -> None:
    servers: list[uvicorn.Server] = []
    running: list[asyncio.Task[None]] = []
    beside = mocks() if mock else []
    service = Service(mocked(settings, beside))
    app = build_app(service, read=lambda: mocked(read(), beside))
    listener = _listen(settings.server.host, settings.server.port)
    for one in beside:  # not before: what fails would leave them running
        from r2v.clients.mock import mock_app

        server = uvicorn.Server(_config(mock_app(one.model), settings.server))
        servers.append(server)
        running.append(asyncio.create_task(server.serve([one.listener])))
    host, port = listener.getsockname()[:2]
    url = f"http://{host}:{port}"
    main = server_of(app, settings.server)
    _reload_at_hangup(app, main)
    announce(url, url)
    verifier_named(service.settings.route.verifier)  # its imports are not the first request's to wait for
    tune_interpreter()
    if mock and not service.ledger.sessions(1):
        from r2v.gateway.demo import demonstrate

        running.append(asyncio.create_task(demonstrate(url, os.environ[settings.server.key_env])))
    try:
        await main.serve([listener])
    finally:
        for server in servers:
            server.should_exit = True
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*running)


def _reload_at_hangup(app: LiveApp, server: uvicorn.Server) -> None:
    """Read the settings again at each SIGHUP, but end when it means that the terminal was closed."""
    if SIGHUP is None:
        return
    terminal_is_gone = terminal_watch()
    reloads: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        with suppress(R2VError):  # the line says it
            await app.reload()
        print(app.state.line, file=sys.stderr, flush=True)

    def hung_up() -> None:
        if terminal_is_gone():
            server.should_exit = True
            return
        task = asyncio.ensure_future(reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    asyncio.get_running_loop().add_signal_handler(SIGHUP, hung_up)


def server_of(app: object, settings: ServerSettings) -> uvicorn.Server:
    """What serves an app, with the limits of the settings that it has in use."""
    config = _config(app, settings)

    def relimit_connections(settings: GatewaySettings) -> None:
        relimit(config.http, settings.server)  # type: ignore[arg-type]
        config.timeout_keep_alive = settings.server.idle_timeout_s

    if isinstance(app, LiveApp):
        app.on_use.append(relimit_connections)
    return uvicorn.Server(config)


def _config(app: object, server: ServerSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=guarded(server), backlog=BACKLOG, timeout_keep_alive=server.idle_timeout_s,
        log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=10, lifespan="on", ws="none",
        proxy_headers=False,
    )  # fmt: skip


def _listen(host: str, port: int, option: str = "server.port or --port", *, share: bool = False) -> socket.socket:
    """A socket that listens.

    Args:
        host: an address of this machine.
        port: 0 for any that is free.
        option: where the port is said, for an error.
        share: the port, with other sockets that share it; the kernel spreads connections over them.

    Raises:
        SettingsError: it cannot be listened there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if os.name == "posix":  # on Windows this would let a second gateway take the port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if share:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # asyncio does this only for sockets whose protocol is named; without it every answer waits 40 ms for an ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        problem = getattr(error, "strerror", None) or error
        raise SettingsError(f"cannot listen on {host}:{port} ({problem}); choose another {option}") from None
    listener.listen(BACKLOG)
    return listener
