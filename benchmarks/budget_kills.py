"""Kills the gateway in flight again and again: what was paid against what was allowed, and what is missing in the ledger.

    python benchmarks/budget_kills.py [--kills 20] [--workers 1]

Each time a gateway is started on the same ledger, eight clients ask through it, each request in a session of its own, and
it is killed (SIGKILL, its workers too) while the teacher answers. A third of the teacher's answers lack `usage`, one in ten
never comes. Allowed are 60 calls of the teacher a day, and sessions a day; what the teacher counts itself is the truth. It
ends with failure where more was paid, where an answered step is missing, or where nothing was asked.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import uvicorn
from serving import KEY, model_app, served

from r2v.clients.mock import MockModel, complete
from r2v.gateway.ledger import Ledger

ALLOWED, CLIENTS = 60, 8


class Teacher:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.asked, self._draw = 0, random.Random(0)

    def answer(self, body: bytes) -> tuple[int, bytes] | None:
        self.asked += 1
        fault = self._draw.random()
        if fault < 0.1:
            return None
        answer = complete(MockModel("teacher"), json.loads(body))
        if fault < 0.4:
            del answer["usage"]
        return 200, json.dumps(answer).encode()

    def settings(self) -> dict[str, object]:
        """Serve in a thread. Returns what the gateway's settings say of this model."""
        app = model_app(self.answer)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))  # type: ignore[arg-type]
        serving = threading.Thread(target=server.run, daemon=True)
        serving.start()
        while not server.started:
            time.sleep(0.01)

        def end() -> None:  # a loop that still runs when the interpreter ends may break it
            server.should_exit = server.force_exit = True
            serving.join(10)

        atexit.register(end)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
        return {"base_url": url, "model": "m", "price": {"input": 1, "output": 1}, "breaker_failures": None}


def found(ledger: Path, kills: int, asked: int, answered: set[str]) -> int:
    """Print what became of it; 0 where all is as it should be.

    Args:
        ledger: file of the gateway's.
        kills: of the gateway.
        asked: requests that the teacher counted.
        answered: ids of the steps that clients got an answer to.
    """
    Ledger(ledger).close()  # with its tables, though no gateway lived to make them
    with closing(sqlite3.connect(ledger)) as db:
        written = {row for (row,) in db.execute("SELECT id FROM steps")}
        (charged,) = db.execute("SELECT COALESCE(SUM(calls), 0) FROM charges WHERE scope LIKE 'all %'").fetchone()
    missing = len(answered - written)
    print(f"{kills} kills: the teacher was asked {asked} times of {ALLOWED} allowed, charged {charged}")
    print(f"{len(answered)} steps were answered, {missing} of them are not in the ledger")
    if not asked:
        print("nothing was measured: each gateway was killed before the teacher was asked; try more kills")
    return int(asked > ALLOWED or missing > 0 or not asked)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    teacher, small = Teacher(), Teacher()
    settings = {
        "route": {"router": "verifier", "threshold": 0.0, "k": 1},
        "budget": {"per_day": {"teacher_calls": ALLOWED, "sessions": ALLOWED}},
        "models": {"slm": small.settings(), "teacher": teacher.settings()},
    }
    workers = ("--workers", str(options.workers)) if options.workers > 1 else ()
    with tempfile.TemporaryDirectory() as folder:
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
            with served(folder, settings, *workers) as gateway, ThreadPoolExecutor(CLIENTS) as pool:
                for _ in range(CLIENTS):
                    pool.submit(ask, gateway.url)
                time.sleep(0.3 + 0.1 * (kill % 4))
                os.killpg(gateway.process.pid, signal.SIGKILL)
        return found(Path(folder, "ledger.db"), options.kills, teacher.asked, answered)


if __name__ == "__main__":
    sys.exit(main())
