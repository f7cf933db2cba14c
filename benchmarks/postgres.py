"""What a shared ledger in Postgres costs the gateway, and what it costs to read.

    python benchmarks/postgres.py [--rounds 3] [--rows 1000000]

Starts a Postgres of its own in a temporary folder (durable, as it comes). First two workers answer as many requests as go,
with a ledger of their own and with one that is shipped, in turns. Then rows are written to a journal at 300 a second,
alone, while they are shipped, and while Postgres is stopped. At last a ledger of so many rows is shipped, and the page,
`r2v export` and `r2v fit` read it there. On a shared machine only ratios mean much.
Targets: with Postgres 0.8 of the steps/s without; 99 % of the writes of a row within 20 ms; the page within 100 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from gateway_overhead import upstream
from planes import asked, fill, rate
from serving import served, wait_for

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from postgres_server import Postgres
from r2v.core.types import NO_USAGE, Action, Choice, Observation, Step
from r2v.gateway.ledger import Ledger
from r2v.gateway.settings import StoreSettings
from r2v.gateway.shared_ledger import SharedLedger
from r2v.gateway.shipping import Shipping
from test_gateway_modes import write

DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "shared_buffers": "256MB"}
WRITES, WRITES_PER_S = 3_000, 300
READ = "from r2v.cli import app; app()"


def gateway(folder: Path, ledger: Path, port: int, url: str | None, *options: str):
    model = {"base_url": f"http://127.0.0.1:{port}/v1", "model": "instant", "price": {"input": 1, "output": 1}}
    store = {"path": str(ledger)} if url is None else {"path": str(ledger), "url": url}
    return served(folder, {"models": {"slm": model, "teacher": model}, "route": {"k": 4}, "store": store}, *options)


def workers(folder: Path, port: int, postgres: Postgres, rounds: int) -> None:
    ratios = []
    for i in range(rounds):
        found = {}
        for name, url in (("without", None), ("with", postgres.database())):
            options = ("--workers", "2", "--admin-port", str(port + 1))
            with gateway(folder, folder / f"{name}-{i}.db", port, url, *options) as there:
                found[name], cpu_ms = asyncio.run(rate(there.url, there.process.pid))
                print(f"{found[name]:.0f} steps/s {name} Postgres, {cpu_ms:.2f} CPU ms each", flush=True)
        ratios.append(found["with"] / found["without"])
    median = float(np.median(ratios))
    print(f"with Postgres against without: {median:.2f} x: {'ok' if median >= 0.8 else 'SHORT'}", flush=True)


@contextmanager
def shipped(path: Path, url: str):
    """Meanwhile a thread ships the journal."""
    shipping, ended = Shipping(StoreSettings(path=str(path), url=url), SharedLedger(url)), threading.Event()

    def ship() -> None:
        while not ended.wait(0.05):
            try:
                while shipping.ship() and not ended.is_set():
                    pass
            except OSError:
                ended.wait(0.2)

    thread = threading.Thread(target=ship)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        shipping.close()


def written(path: Path) -> list[float]:
    """Milliseconds of each write."""
    choice = Choice(Action("x" * 2000), "slm", (), (), None, None, NO_USAGE, NO_USAGE)
    step, times = Step(0, 0, Observation("y" * 2000, False, None, None, "", ()), choice), []
    with closing(Ledger(path)) as ledger:
        ledger.defer_checkpoints()
        begin = time.perf_counter()
        for i in range(WRITES):
            time.sleep(max(0.0, begin + i / WRITES_PER_S - time.perf_counter()))
            start = time.perf_counter()
            write(ledger, f"s{i // 20}", i % 20, id=f"{i:016x}", step=step)
            times.append(1000 * (time.perf_counter() - start))
    return times


def writes(folder: Path, postgres: Postgres) -> None:
    for name in ("alone", "shipped", "with Postgres stopped"):
        path, url = folder / f"{name}.db", postgres.database()
        if name == "alone":
            times = written(path)
        else:
            if name != "shipped":
                postgres.stop()
            with shipped(path, url):
                times = written(path)
        p50, p99, most = np.percentile(times, [50, 99, 100])
        good = "ok" if p99 <= 20 else "SHORT"
        print(f"write of a row, {name}: ms p50 {p50:.2f}, p99 {p99:.2f}, most {most:.1f}: {good}", flush=True)
    postgres.start()


def large(folder: Path, port: int, postgres: Postgres, rows: int) -> None:
    path, url = folder / "large.db", postgres.database()
    fill(path, rows)
    with closing(Ledger(path)) as ledger:
        ledger._db.execute("UPDATE steps SET goal = session")  # tasks of their own, for `r2v fit`
    start = time.perf_counter()
    with closing(Ledger(path)) as ledger, closing(SharedLedger(url)) as shared:
        while shared.ship(ledger.journal, ledger.identity)[2]:
            pass
    seconds = time.perf_counter() - start
    path.unlink()
    name = url.rsplit("/", 1)[1]
    ((size,),) = postgres.execute(f"SELECT pg_database_size('{name}')")
    print(
        f"{rows} rows shipped in {seconds:.0f} s, {rows / seconds:.0f} a second; {size / 1e6:.0f} MB in Postgres", flush=True
    )
    with gateway(folder, folder / "journal.db", port, url) as there:
        found = asyncio.run(asked(there.url, there.admin_url))
    for what, (first, later) in found.items():
        good = "ok" if later <= 100 or what == "a step" else "SHORT"
        print(f"  {what}: ms first {first:.1f}, later {later:.1f}: {good}", flush=True)
    for command in (("export", url, f"{folder}/out.parquet"), ("fit", url, "--out", f"{folder}/router", "--unproven")):
        start = time.perf_counter()
        code = f"import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30)); {READ}"
        done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
        most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        told = (done.stdout.splitlines() or done.stderr.splitlines() or ["?"])[-1]
        print(
            f"  r2v {command[0]}: {time.perf_counter() - start:.0f} s, {most:.2f} GB at most so far: {told[:90]}", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of two workers with and without Postgres")
    parser.add_argument("--rows", type=int, default=1_000_000, help="10000000 takes some 15 GB")
    parser.add_argument("--port", type=int, default=18761)
    arguments = parser.parse_args()
    process = multiprocessing.get_context("spawn").Process(target=upstream, args=(arguments.port,), daemon=True)
    process.start()
    wait_for(arguments.port)
    postgres = Postgres(**DURABLE)
    try:
        with tempfile.TemporaryDirectory() as folder:
            if arguments.rounds:
                workers(Path(folder), arguments.port, postgres, arguments.rounds)
                writes(Path(folder), postgres)
            if arguments.rows:
                large(Path(folder), arguments.port, postgres, arguments.rows)
    finally:
        postgres.remove()
        process.terminate()


if __name__ == "__main__":
    main()
