"""What the page costs on a large ledger, what agents notice of it, and what a second worker brings.

    python benchmarks/planes.py [--rows 10000 1000000]

Fills a ledger with each number of steps (sessions of 20 over the last month), then starts the gateway on it, as one process
and with a control plane of its own: the first request, what the page and Prometheus ask (first time, then the median of
five), and the agents' p99 with and without a page that is read once a second. An older ledger of as many rows is opened and
counted, too. At last requests a second of two workers against one, in turns, and what that would be with a core for each,
from CPU time. On a shared machine only ratios mean much.
Targets: what is asked takes as long at 10^6 rows as at 10^4 (within 3 times and 20 ms), the page costs the agents' p99 less
than 20 ms, two workers serve 1.8 times as many requests as one.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import tempfile
import time
from contextlib import AbstractContextManager, AsyncExitStack, closing
from pathlib import Path

import aiohttp
import msgspec
import numpy as np
from gateway_overhead import PATH, as_many, at_rate, body, upstream
from serving import KEY, Served, cpu_s, served, wait_for

from r2v.core.types import NO_USAGE, Action, Choice, Observation, Step
from r2v.gateway.ledger import Ledger

STEPS = 20
"""Of a session."""
DAYS = 30
ASKED = ("/v1/stats?days=14", "/v1/mode", "/v1/sessions", "/v1/sessions?text=no+such", "/v1/sessions/s7", "/metrics")
RATE, COUNT = 15.0, 200
"""Requests a second of the agents, and how many of them are measured."""


def fill(path: Path, rows: int) -> None:
    """A ledger with so many steps, and an outcome of every other session."""
    choice = Choice(Action("x" * 300), "slm", (), (), None, None, NO_USAGE, NO_USAGE)
    record = msgspec.json.encode(Step(0, 0, Observation("y" * 300, False, None, None, "", ()), choice))
    with closing(Ledger(path)) as ledger:
        db, now = ledger._db, time.time()
        db.execute("BEGIN")
        columns = {
            "id": "printf('%016x', i)", "session": "'s' || (i / :steps)", "t": "i % :steps", "time": ":begin + i * :gap",
            "key": "'k' || (i / :steps % 5)", "source": "CASE WHEN i / :steps % 3 THEN 'slm' ELSE 'teacher' END",
            "code": "'risk_below'", "model": "'m'", "score": "(i * 7919 % 1000) / 1000.0", "score_kind": "'risk'",
            "threshold": "0.5", "propensity": "1.0", "slm_usd": "0.001", "teacher_usd": "0.01", "saved_usd": "0.005",
            "tokens": "1000", "teacher_calls": "i / :steps % 3 = 0", "candidates": "4", "overhead_ms": "1.0",
            "route": "'continue'", "goal": "'sha256:0123456789abcdef'", "alike": "CASE WHEN i % 4 = 0 THEN i % 3 > 0 END",
            "mode": "'active'", "record": ":record",
        }  # fmt: skip
        db.execute(
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :rows) "
            f"INSERT INTO steps ({', '.join(columns)}) SELECT {', '.join(columns.values())} FROM n",
            {"rows": rows, "steps": STEPS, "begin": now - 86_400 * DAYS, "gap": 86_400 * DAYS / rows, "record": record},
        )
        db.execute(
            "INSERT INTO outcomes SELECT session, NULL, CAST(SUBSTR(session, 2) AS INTEGER) % 4 > 0, MAX(time) FROM steps "
            "WHERE t = ? AND CAST(SUBSTR(session, 2) AS INTEGER) % 2 GROUP BY session",
            (STEPS - 1,),
        )
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def age(path: Path) -> tuple[float, float]:
    """Make the ledger one of before there were totals. Returns the seconds to open it again, and to count it."""
    with closing(Ledger(path)) as ledger:
        objects = ledger._db.execute("SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'table')").fetchall()
        kept = ("steps", "outcomes", "abandoned", "tools", "modes", "verdicts")
        for kind, name in objects:
            if name not in kept and not name.startswith("sqlite_"):
                ledger._db.execute(f"DROP {kind} IF EXISTS {name}")
        for column in ("why", "id"):
            ledger._db.execute(f"ALTER TABLE abandoned DROP COLUMN {column}")
        ledger._db.execute("PRAGMA user_version = 5")
    start = time.perf_counter()
    with closing(Ledger(path)) as ledger:
        opened = time.perf_counter() - start
        while ledger.count_old():
            pass
        return opened, time.perf_counter() - start - opened


def gateway(folder: Path, ledger: Path, port: int, *options: str) -> AbstractContextManager[Served]:
    model = {"base_url": f"http://127.0.0.1:{port}/v1", "model": "instant", "price": {"input": 1, "output": 1}}
    settings = {
        "models": {"slm": model, "teacher": model}, "route": {"k": 4},
        "store": {"path": str(ledger)}, "budget": {"key_per_day": {"usd": 1e9}, "per_day": {"usd": 1e9}},
    }  # fmt: skip
    return served(folder, settings, *options)


def client(session: str = "agent") -> aiohttp.ClientSession:
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json", "x-session-id": session}
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)  # the server closes what is idle for 5 s
    return aiohttp.ClientSession(headers=headers, connector=connector)


async def read(http: aiohttp.ClientSession, url: str) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    async with http.get(url) as response:
        response.raise_for_status()
        await response.read()
    return 1000 * (time.perf_counter() - start)


async def reads(http: aiohttp.ClientSession, admin: str) -> None:
    """A page that is read once a second."""
    while True:
        await asyncio.gather(*(read(http, admin + path) for path in ASKED))
        await asyncio.sleep(1)


async def asked(url: str, admin: str) -> dict[str, tuple[float, float]]:
    """Milliseconds of the first request and of each thing that the page asks: the first time, and the median of five."""
    async with client() as http:
        (first,) = await at_rate(http, url + PATH, body(), 1000, 1)
        found = {"a step": (first, float(np.median(await at_rate(http, url + PATH, body(), 20, 20))))}
        for path in ASKED:
            first = await read(http, admin + path)
            found[path] = (first, float(np.median([await read(http, admin + path) for _ in range(5)])))
        return found


async def noticed(url: str, admin: str) -> list[float]:
    """p99 of the agents in ms: alone, beside the page, alone, beside the page."""
    found = []
    async with client() as http:
        await at_rate(http, url + PATH, body(), RATE, 50)
        for beside in (False, True) * 2:
            page = asyncio.ensure_future(reads(http, admin)) if beside else None
            times = await at_rate(http, url + PATH, body(), RATE, COUNT)
            found.append(float(np.percentile(times, 99)))
            if page is not None:
                page.cancel()
    return found


async def rate(url: str, parent: int) -> tuple[float, float]:
    """(requests a second, CPU ms that the gateway's processes take for one)."""
    children = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    async with AsyncExitStack() as stack:
        agents = [await stack.enter_async_context(client(f"agent-{i}")) for i in range(32)]

        async def all_for(seconds: float) -> float:
            return sum(await asyncio.gather(*(as_many(http, url + PATH, body(), seconds, 1) for http in agents)))

        await all_for(2)
        before = cpu_s(*children)
        found = await all_for(6)
        return found, 1000 * (cpu_s(*children) - before) / (6 * found)


def sizes(folder: Path, rows: list[int], port: int) -> None:
    found = {}
    for size in rows:
        path = folder / f"{size}.db"
        start = time.perf_counter()
        fill(path, size)
        print(f"{size} rows, filled in {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1e6:.0f} MB", flush=True)
        for name, options in (("one process", ()), ("two planes", ("--admin-port", str(port + 1)))):
            with gateway(folder, path, port, *options) as there:
                found[name, size] = asyncio.run(asked(there.url, there.admin_url))
                shown = ", ".join(f"{what} {a:.1f}/{b:.1f}" for what, (a, b) in found[name, size].items())
                print(f"  {name}: start {there.seconds:.1f} s; ms first/later: {shown}", flush=True)
                alone, beside, again, beside_again = asyncio.run(noticed(there.url, there.admin_url))
                print(
                    f"  {name}: agents' p99 in ms: {alone:.1f} alone, {beside:.1f} beside the page, {again:.1f} alone, "
                    f"{beside_again:.1f} beside it",
                    flush=True,
                )
        opened, counted = age(path)
        print(f"  of before there were totals: opened in {1000 * opened:.0f} ms, counted in {counted:.1f} s", flush=True)
        path.unlink()
    least, most = min(rows), max(rows)
    for name in ("one process", "two planes"):
        for what, (_, small) in found[name, least].items():
            large = found[name, most][what][1]
            good = large < 3 * small + 20
            print(f"{name}, {what}: {large / small:.2f} x from {least} to {most} rows: {'ok' if good else 'SHORT'}")


def workers(folder: Path, port: int, rounds: int) -> None:
    ratios, idle = [], []
    for i in range(rounds):
        found = []
        for n in (1, 2):
            options = ("--workers", str(n), "--admin-port", str(port + 1))
            with gateway(folder, folder / f"w{i}-{n}.db", port, *options) as there:
                found.append(asyncio.run(rate(there.url, there.process.pid)))
        (one, cpu_one), (two, cpu_two) = found
        ratios.append(two / one)
        idle.append(2 * cpu_one / cpu_two)
        print(
            f"{one:.0f} requests/s of one worker ({cpu_one:.2f} CPU ms each), {two:.0f} of two ({cpu_two:.2f}): "
            f"{ratios[-1]:.2f} x; with a core for each of them {idle[-1]:.2f} x",
            flush=True,
        )
    for what, values in (("here", ratios), ("by CPU time, with a core for each", idle)):
        median = float(np.median(values))
        print(f"two workers against one, {what}: {median:.2f} x: {'ok' if median >= 1.8 else 'SHORT'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 1_000_000], help="10000000 takes some 10 GB")
    parser.add_argument("--rounds", type=int, default=4, help="of two workers against one")
    parser.add_argument("--port", type=int, default=18751)
    arguments = parser.parse_args()
    process = multiprocessing.get_context("spawn").Process(target=upstream, args=(arguments.port,), daemon=True)
    process.start()
    wait_for(arguments.port)
    try:
        with tempfile.TemporaryDirectory() as folder:
            if arguments.rows:
                sizes(Path(folder), arguments.rows, arguments.port)
            if arguments.rounds:
                workers(Path(folder), arguments.port, arguments.rounds)
    finally:
        process.terminate()


if __name__ == "__main__":
    main()
