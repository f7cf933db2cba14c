"""What the commands on logs take of a large ledger and of its archive: seconds, and peak memory.

    python benchmarks/large_ledger.py [--rows 1000000]
    python benchmarks/large_ledger.py --rows 500000 --copies 19     # 10^7 rows in the archive, 10 minutes sooner

A ledger is filled with sessions of ten steps, of a thousand tasks, with features and outcomes; it is archived by day, and
`advise`, `fit` and `export` read the archive and the ledger. With `--copies` the archive gets so many copies of each day, as
other sessions, and only the archive is read.
Targets at 10^7 rows: minutes, under 4 GB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import duckdb
import msgspec
import numpy as np

from r2v.core.features import FEATURES
from r2v.core.types import NO_USAGE, Action, Candidate, Choice, Decision, Features, Observation, Step, Usage
from r2v.gateway.ledger import Ledger

STEPS, TASKS, DAYS, RECORDS = 10, 1_000, 10, 2_000
COMMAND = "from r2v.cli import app; app()"


def record(rng: np.random.Generator) -> bytes:
    """A step as a redacted ledger keeps it, with three candidates."""
    values = tuple(rng.normal(size=len(FEATURES)).tolist())
    candidates = tuple(
        Candidate(Action("sha256:0123456789abcdef"), -rng.exponential(), None, Usage(1, 200, 50)) for _ in range(3)
    )
    decision = Decision("continue", "risk_below", 0.3, "risk", 0.5, 1.0, (), "")
    features = Features(values, (True,) * len(FEATURES))
    choice = Choice(
        candidates[0].action, "slm", candidates, (0.5, 0.25, 0.125), features, decision, Usage(1, 200, 50), NO_USAGE
    )
    return msgspec.json.encode(Step(0, 0, Observation("sha256:0123456789abcdef", False, None, None, "", ()), choice))


def fill(path: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    with closing(Ledger(path)) as ledger:
        db, now = ledger._db, time.time() - 86_400
        db.execute("CREATE TEMP TABLE records (i INTEGER PRIMARY KEY, record BLOB)")
        db.executemany("INSERT INTO records VALUES (?, ?)", ((i, record(rng)) for i in range(RECORDS)))
        db.execute("BEGIN")
        columns = {
            "id": "printf('%016x', n.i)", "session": "'s' || (n.i / :steps)", "t": "n.i % :steps",
            "time": ":begin + n.i * :gap", "key": "'k'", "source": "'slm'", "code": "'risk_below'", "model": "'m'",
            "score": "(n.i * 7919 % 1000) / 1000.0",
            "score_kind": "'risk'", "threshold": "0.5", "propensity": "1.0", "slm_usd": "0.001", "teacher_usd": "0.0",
            "saved_usd": "0.005", "tokens": "1000", "teacher_calls": "0", "candidates": "3", "overhead_ms": "1.0",
            "route": "'continue'", "goal": "'sha256:' || (n.i / :steps % :tasks)", "alike": "NULL", "mode": "'active'",
            "record": "r.record",
        }  # fmt: skip
        db.execute(
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :rows) "
            f"INSERT INTO steps ({', '.join(columns)}) SELECT {', '.join(columns.values())} FROM n "
            "JOIN records r ON r.i = n.i * 7919 % :records",
            {
                "rows": rows, "steps": STEPS, "tasks": TASKS, "records": RECORDS, "begin": now - 86_400 * DAYS,
                "gap": 86_400 * DAYS / rows,
            },
        )  # fmt: skip
        db.execute(
            "INSERT INTO outcomes SELECT session, NULL, CAST(SUBSTR(session, 2) AS INTEGER) * 7919 % 1000 < 600, time "
            "FROM steps WHERE t = ?",
            (STEPS - 1,),
        )
        db.execute("COMMIT")


def copy(archive: Path, copies: int) -> None:
    """Add the sessions of an archive to it again, under other names."""
    with duckdb.connect(config={"memory_limit": "2GB", "threads": 2, "preserve_insertion_order": False}) as db:
        for table in ("steps", "outcomes"):
            for path in sorted(archive.glob(f"day=*/{table}.*.parquet")):
                for i in range(copies):
                    own = f"session || '-{i}' AS session" + (f", id || '{i:02d}' AS id" if table == "steps" else "")
                    target = path.with_name(f"{table}.copy{i}.parquet")
                    db.execute(f"COPY (SELECT * REPLACE ({own}) FROM read_parquet('{path}')) TO '{target}' (CODEC zstd)")


def run(*words: str | Path) -> str:
    """ "12 s, 0.8 GB, status 0" of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    peak = 0
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        for line in status.read_text().splitlines() if status.exists() else ():
            if line.startswith("VmHWM"):
                peak = max(peak, int(line.split()[1]))
        time.sleep(0.1)
    assert process.stderr is not None
    said = [line for line in process.stderr.read().splitlines() if line.startswith(("sample", "r2v", "error"))]
    took = f"{time.perf_counter() - start:.0f} s, {peak / 1e6:.2f} GB, status {process.returncode}"
    return f"{took}  {' '.join(said)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="10000000 takes some 25 GB of disk")
    parser.add_argument("--copies", type=int, default=0, help="of the archive's sessions, added to it")
    options = parser.parse_args()
    rows = options.rows
    with tempfile.TemporaryDirectory() as folder:
        ledger, archive, out = (Path(folder) / name for name in ("ledger.db", "archive", "out"))
        start = time.perf_counter()
        fill(ledger, rows)
        print(
            f"{rows} rows, {ledger.stat().st_size / 1e9:.1f} GB, filled in {time.perf_counter() - start:.0f} s", flush=True
        )
        print(f"archive           {run('archive', ledger, archive)}", flush=True)
        print(f"                  {sum(f.stat().st_size for f in archive.rglob('*.parquet')) / 1e9:.2f} GB", flush=True)
        if options.copies:
            copy(archive, options.copies)
            print(f"                  with copies {rows * (1 + options.copies)} rows", flush=True)
        for name, source in (("archive", archive), ("ledger", ledger))[: 1 if options.copies else 2]:
            for words in (
                ("advise", source, "--out", out),
                ("fit", source, "--out", out),
                ("export", source, out / "x.parquet"),
            ):
                print(f"{words[0]:<7} {name:<9} {run(*words)}", flush=True)


if __name__ == "__main__":
    main()
