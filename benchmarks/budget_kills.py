"""Kills the gateway in flight again and again: what was paid against what was allowed, and what is missing in the ledger.

    python benchmarks/budget_kills.py [--kills 20] [--workers 1]

Each time a gateway is started on the same ledger, eight clients ask through it, each request in a session of its own, and
it is killed (SIGKILL, its workers too) while the teacher answers. A third of the teacher's answers lack `usage`, one in ten
never comes. Allowed are 60 calls of the teacher a day, and sessions a day; what the teacher counts itself is the truth. It
ends with failure where more was paid, or where an answered step is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import uvicorn

from r2v.clients.mock import MockModel, complete

KEY, ALLOWED, CLIENTS = "kills", 60, 8


class Teacher:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.asked, self._draw = 0, random.Random(0)

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.asked += 1
        fault = self._draw.random()
        if fault < 0.1:
            return
        answer = complete(MockModel("teacher"), json.loads(body))
        if fault < 0.4:
            del answer["usage"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


def served(app: object) -> str:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))  # type: ignore[arg-type]
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    teacher, small = Teacher(), Teacher()
    price = {"input": 1, "output": 1}
    with tempfile.TemporaryDirectory() as folder:
        ledger, config = Path(folder, "ledger.db"), Path(folder, "r2v.json")
        config.write_text(json.dumps({
            "version": 1, "route": {"router": "verifier", "threshold": 0.0, "k": 1},
            "budget": {"per_day": {"teacher_calls": ALLOWED, "sessions": ALLOWED}},
            "models": {
                "slm": {"base_url": served(small), "model": "small", "price": price, "breaker_failures": None},
                "teacher": {"base_url": served(teacher), "model": "teacher", "price": price, "breaker_failures": None},
            },
            "store": {"path": str(ledger)},
        }))  # fmt: skip
        answered: set[str] = set()
        numbers = iter(range(10**9))

        def ask(url: str) -> None:
            with httpx.Client(headers={"authorization": f"Bearer {KEY}"}, timeout=10) as client:
                while True:
                    headers = {"x-session-id": f"s{next(numbers)}"}
                    body = {"messages": [{"role": "user", "content": "look"}], "max_tokens": 50}
                    try:
                        answer = client.post(f"{url}/v1/chat/completions", json=body, headers=headers)
                    except httpx.HTTPError:
                        return
                    if answer.status_code == 200:
                        answered.add(answer.headers["x-r2v-decision-id"])

        for kill in range(options.kills):
            command = [sys.executable, "-c", "from r2v.cli import app; app()", "serve", str(config), "--port", "0"]
            command += ["--workers", str(options.workers)] if options.workers > 1 else []
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, "R2V_API_KEY": KEY}
            )
            assert process.stdout is not None
            url = process.stdout.readline().split()[1]
            with ThreadPoolExecutor(CLIENTS) as pool:
                for _ in range(CLIENTS):
                    pool.submit(ask, url)
                time.sleep(0.3 + 0.1 * (kill % 4))
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
        with closing(sqlite3.connect(ledger)) as db:
            written = {row for (row,) in db.execute("SELECT id FROM steps")}
            charged = db.execute("SELECT calls, sessions FROM charges WHERE scope LIKE 'all %'").fetchone()
    missing = len(answered - written)
    print(f"{options.kills} kills: the teacher was asked {teacher.asked} times of {ALLOWED} allowed, charged {charged[0]}")
    print(f"{len(answered)} steps were answered, {missing} of them are not in the ledger")
    return int(teacher.asked > ALLOWED or missing > 0)


if __name__ == "__main__":
    sys.exit(main())
