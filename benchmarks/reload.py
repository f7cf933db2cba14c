"""Reloads of settings and router under load: requests that failed, and what the others noticed of it.

    python benchmarks/reload.py [--rate 100] [--seconds 30] [--every 1] [--workers 1 2]

Starts an instant model and the gateway, each as a process of its own, and sends short requests at a steady rate: for some
seconds as it is, then for as long with a reload every so often. Each reload finds another router in the same folder (of the
fitted size), another threshold and other prices; SIGHUP and `POST /v1/reload` take turns. It ends with failure where a
request failed, where a reload was refused, where an answered step is missing in the ledger or is of neither configuration,
or where another sum was charged than was spent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import aiohttp
import numpy as np
from gateway_overhead import PATH, TOOL, upstream
from serving import KEY, Served, free_port, memory_mb, served, wait_for

from r2v.core.features import EXTENDED
from r2v.core.mlp import RiskMLP
from r2v.routers.r2v import R2V

THRESHOLDS = (2.0, 3.0)
"""Above all risks: the SLM answers, at prices of 1 and 2 USD per million tokens."""


def router(folder: Path, i: int) -> None:
    draw, sizes = np.random.default_rng(i), (len(EXTENDED), 128, 64, 1)
    layers = tuple((draw.normal(size=(a, b)) / a, np.zeros(b)) for a, b in pairwise(sizes))
    ones = np.ones(len(EXTENDED))
    R2V(threshold=THRESHOLDS[i % 2], risk=RiskMLP(EXTENDED, 0 * ones, ones, layers)).save(folder)


def settings(folder: str, port: int, i: int) -> dict[str, object]:
    router(Path(folder, "router"), i)
    price = {"input": 1 + i % 2, "output": 1 + i % 2}
    model = {"base_url": f"http://127.0.0.1:{port}/v1", "model": "instant", "price": price}
    return {
        "version": 1, "models": {"slm": model, "teacher": model}, "route": {"k": 4, "router": f"{folder}/router"},
        "budget": {"session": {"usd": 1e9}}, "store": {"path": f"{folder}/ledger.db"},
    }  # fmt: skip


class Load:
    """Requests at a steady rate, whatever becomes of them."""

    def __init__(self, client: aiohttp.ClientSession, url: str, rate: float) -> None:
        self._client, self._url, self._rate = client, url + PATH, rate
        messages = [{"role": "user", "content": "look for the red value in every place"}]
        self._sent = json.dumps(
            {"model": "r2v", "messages": messages, "tools": [{"type": "function", "function": TOOL}]}
        ).encode()
        self.times: list[float] = []
        """Milliseconds."""
        self.failed: Counter[str] = Counter()
        self.answered: list[str] = []

    async def run(self, seconds: float) -> None:
        begin = time.perf_counter()
        await asyncio.gather(*(self._one(begin + i / self._rate, i) for i in range(int(seconds * self._rate))))

    async def _one(self, at: float, i: int) -> None:
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        start = time.perf_counter()
        try:
            async with self._client.post(self._url, data=self._sent, headers={"x-session-id": f"s{i % 50}"}) as response:
                await response.read()
                if response.status == 200:
                    self.answered.append(response.headers["x-r2v-decision-id"])
                else:
                    self.failed[str(response.status)] += 1
        except aiohttp.ClientError as error:
            self.failed[type(error).__name__] += 1
        self.times.append(1000 * (time.perf_counter() - start))


async def state_of(client: aiohttp.ClientSession, gateway: Served) -> dict[str, float]:
    async with client.get(f"{gateway.admin_url}/v1/stats") as response:
        found: dict[str, float] = (await response.json())["reloads"]
        return found


async def reloads(
    client: aiohttp.ClientSession, gateway: Served, folder: str, port: int, every: float, took: list[float]
) -> None:
    """Reload until it is cancelled; `took` gets the milliseconds of those that were asked for over HTTP."""
    i = 0
    while True:
        i += 1
        given = await asyncio.to_thread(settings, folder, port, i)
        Path(folder, "r2v.json").write_text(json.dumps(given))
        if i % 2:
            start = time.perf_counter()
            async with client.post(f"{gateway.admin_url}/v1/reload") as response:
                response.raise_for_status()
            took.append(1000 * (time.perf_counter() - start))
        else:
            gateway.process.send_signal(signal.SIGHUP)
            while (await state_of(client, gateway))["done"] < i:  # else it may find the next router's folder
                await asyncio.sleep(0.1)
        await asyncio.sleep(every)


async def measured(gateway: Served, folder: str, port: int, options: argparse.Namespace) -> int:
    # It gives up idle connections before the gateway does (server.idle_timeout_s), and so uses none that is being closed.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3)
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {KEY}"}, connector=connector) as client:
        await Load(client, gateway.url, options.rate).run(2)
        memory = memory_mb(gateway.process.pid)
        before, under = (Load(client, gateway.url, options.rate) for _ in range(2))
        await before.run(options.seconds)
        took: list[float] = []
        reloading = asyncio.create_task(reloads(client, gateway, folder, port, options.every, took))
        await under.run(options.seconds)
        reloading.cancel()
        await asyncio.wait([reloading])
        if not reloading.cancelled():
            reloading.result()  # a reload failed
        state = await state_of(client, gateway)
    for name, load in (("without", before), ("with", under)):
        p50, p99, worst = np.percentile(load.times, [50, 99, 100])
        print(
            f"  {name:<8} {len(load.times)} requests, {sum(load.failed.values())} failed {dict(load.failed) or ''}, ", end=""
        )
        print(f"p50 {p50:.1f}, p99 {p99:.1f}, longest {worst:.1f} ms")
    print(f"  {state['done']} reloads, {np.median(took):.0f} ms each, {state['refused']} refused; ", end="")
    print(f"{memory:.0f} MB before, {memory_mb(gateway.process.pid):.0f} after")
    with closing(sqlite3.connect(Path(folder, "ledger.db"))) as db:
        written = {one for (one,) in db.execute("SELECT id FROM steps")}
        sums = "SUM(tokens), SUM(slm_usd + teacher_usd)"
        spent = db.execute(f"SELECT {sums} FROM steps").fetchone()
        charged = db.execute("SELECT SUM(tokens), SUM(usd) FROM charges WHERE scope LIKE 'all %'").fetchone()
        kinds = db.execute("SELECT DISTINCT threshold, round(1e6 * slm_usd / tokens, 6) FROM steps ORDER BY 1").fetchall()
    missing = len({*before.answered, *under.answered} - written)
    wrong = (
        spent[0] != charged[0] or abs(spent[1] - charged[1]) > 1e-6 or set(kinds) - {(THRESHOLDS[0], 1), (THRESHOLDS[1], 2)}
    )
    print(f"  {missing} answered steps are not in the ledger; charged {charged}, spent {spent}; {kinds}")
    return int(bool(before.failed or under.failed or state["refused"] or not state["done"] or missing or wrong))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between reloads")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    failed, port = 0, free_port()
    model = multiprocessing.get_context("spawn").Process(target=upstream, args=(port,), daemon=True)
    model.start()
    wait_for(port)
    for workers in options.workers:
        print(f"{workers} workers, {options.rate:g} requests a second, a reload every {options.every:g} s")
        more = ("--workers", str(workers)) if workers > 1 else ()
        with tempfile.TemporaryDirectory() as folder, served(folder, settings(folder, port, 0), *more) as gateway:
            failed += asyncio.run(measured(gateway, folder, port, options))
    model.terminate()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
