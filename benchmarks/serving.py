"""What the gateway's benchmarks share: made-up models, the gateway as a process of its own, and what a process has used."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEY = "sk-benchmark-0123456789abcdef"
Application = Callable[[Any, Any, Any], Awaitable[None]]


def model_app(answer: Callable[[bytes], tuple[int, bytes] | None]) -> Application:
    """A model's server. `answer`: (status, JSON) of a request's body, or None where the connection breaks."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and (found := answer(await whole_body(receive))):
            await respond(send, *found)

    return app


async def whole_body(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


async def respond(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"retry-after", b"0.01")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@dataclass
class Served:
    """`r2v serve`, which answers."""

    url: str
    admin_url: str
    seconds: float
    """Until it answered."""
    process: subprocess.Popen[str]


@contextmanager
def served(folder: str | Path, settings: Mapping[str, object], *options: str) -> Iterator[Served]:
    """Run `r2v serve` on a free port, in a process group of its own, with its ledger in `folder`."""
    config = Path(folder, "r2v.json")
    config.write_text(json.dumps({"version": 1, "store": {"path": f"{folder}/ledger.db"}, **settings}))
    command = [sys.executable, "-c", "from r2v.cli import app; app()", "serve", str(config), "--port", "0", *options]
    environment = {**os.environ, "R2V_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment) as process:
        assert process.stdout is not None
        try:
            lines = [process.stdout.readline() for _ in range(4)]
            seconds = time.perf_counter() - start
            yield Served(lines[0].split()[1], lines[-1].split()[1].split("/#")[0], seconds, process)
        finally:
            process.terminate()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(port: int) -> None:
    """Until something listens there, a minute at most."""
    for _ in range(600):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)


def cpu_s(*processes: int) -> float:
    """CPU seconds that processes have used so far; Linux."""
    fields = [Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split() for process in processes]
    return sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")


def memory_mb(process: int) -> float:
    """Resident; Linux."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024
