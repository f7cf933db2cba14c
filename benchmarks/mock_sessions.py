"""What `r2v serve --mock` shows once its sessions are played: share escalated, invalid calls handed on, failures, savings.

    python benchmarks/mock_sessions.py

Targets: 5 to 30 % escalated, no invalid call handed to the agent, failures beside savings.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

from r2v.core.features import FEATURES
from r2v.gateway.demo import SESSIONS
from r2v.gateway.ledger import Ledger

BEST = FEATURES.index("verifier_best")
LIMIT_S = 300


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "from r2v.cli import app; app()", "serve", "--mock", "--port", "0"]
        path = Path(folder) / "r2v-mock-8321.db"
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as server:
            try:
                rewards = _played(path)
            finally:
                server.terminate()
        with closing(Ledger(path)) as ledger:
            entries = [entry for session in ledger.all_sessions() for entry in ledger.steps(session)]
    share = sum(entry.source == "teacher" for entry in entries) / len(entries)
    served = [e.step.choice.features for e in entries if e.source == "slm"]
    invalid = sum(features is not None and features.values[BEST] == 0 for features in served)
    failed, saved = rewards.count(0.0), sum(entry.saved_usd for entry in entries)
    good = 0.05 <= share <= 0.3 and not invalid and failed and saved > 0
    print(
        f"{len(entries)} steps of {len(rewards)} sessions: {share:.1%} escalated, {dict(Counter(e.code for e in entries))}"
    )
    print(f"{invalid} invalid calls handed on, {failed} sessions failed, {saved:.2f} USD saved: {'ok' if good else 'SHORT'}")


def _played(path: Path) -> list[float]:
    """The rewards of all sessions. Raises TimeoutError."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if path.exists():
            with closing(sqlite3.connect(path)) as db:
                rewards = [reward for (reward,) in db.execute("SELECT reward FROM outcomes")] if _ready(db) else []
            if len(rewards) == SESSIONS:
                return rewards
        time.sleep(1)
    raise TimeoutError(f"not all sessions were played within {LIMIT_S} s")


def _ready(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = 'outcomes'").fetchone() is not None


if __name__ == "__main__":
    main()
