"""The ledger: every step in SQLite before its answer leaves; sessions are rebuilt from it after a restart.

One row a step. `record` holds the whole step (`r2v.types.Step`) as JSON, in which words are hashed when the ledger redacts:
what learning needs (features, scores, log-probabilities, decisions, usage) is numbers.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from r2v.errors import ArtifactError
from r2v.types import Decision, Step

SCHEMA = """
CREATE TABLE IF NOT EXISTS steps (
  id TEXT PRIMARY KEY, session TEXT NOT NULL, t INTEGER NOT NULL, time REAL NOT NULL, key TEXT NOT NULL,
  arm TEXT NOT NULL, reason TEXT NOT NULL, model TEXT NOT NULL, risk REAL, threshold REAL, propensity REAL NOT NULL,
  slm_usd REAL NOT NULL, teacher_usd REAL NOT NULL, teacher_calls INTEGER NOT NULL, candidates INTEGER NOT NULL,
  overhead_ms REAL NOT NULL, would TEXT NOT NULL, goal TEXT NOT NULL, record BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS steps_of_session ON steps (session, t);
CREATE INDEX IF NOT EXISTS steps_by_time ON steps (time);
CREATE TABLE IF NOT EXISTS outcomes (session TEXT NOT NULL, t INTEGER, reward REAL NOT NULL, time REAL NOT NULL);
CREATE INDEX IF NOT EXISTS outcomes_of_session ON outcomes (session);
PRAGMA user_version = 1;
"""
COLUMNS = (
    "id", "session", "t", "time", "key", "arm", "reason", "model", "risk", "threshold", "propensity", "slm_usd",
    "teacher_usd", "teacher_calls", "candidates", "overhead_ms", "would", "goal", "record",
)  # fmt: skip
_encoder, _decoder = msgspec.json.Encoder(), msgspec.json.Decoder(Step)


@dataclass(frozen=True)
class Entry:
    """One step as it was served."""

    id: str
    session: str
    t: int
    time: float
    key: str
    """Hash of the inbound key."""
    arm: str
    """Who answered: slm or teacher."""
    reason: str
    model: str
    risk: float | None
    threshold: float | None
    propensity: float
    slm_usd: float
    teacher_usd: float
    teacher_calls: int
    candidates: int
    overhead_ms: float
    """Time the gateway took, models excluded."""
    would: str
    """The rung that the router decided, whatever was done."""
    goal: str
    step: Step


class Ledger:
    def __init__(self, path: Path) -> None:
        """Raises ArtifactError for a file that is not a ledger."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")  # survives kill -9; the last steps may be lost with the power
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, 1):
                raise ArtifactError(f"{path} was written by another version of r2v (schema {version})")
            self._db.executescript(SCHEMA)
        except sqlite3.DatabaseError as error:
            raise ArtifactError(f"{path} is not a ledger ({error}); choose another store.path") from None

    def close(self) -> None:
        self._db.close()

    def write(self, entry: Entry) -> None:
        """Raises sqlite3.Error when it cannot be written; then the answer must not leave."""
        values = [getattr(entry, name) for name in COLUMNS[:-1]]
        marks = ", ".join("?" * len(COLUMNS))
        self._db.execute(
            f"INSERT INTO steps ({', '.join(COLUMNS)}) VALUES ({marks})", (*values, _encoder.encode(entry.step))
        )

    def outcome(self, session: str, t: int | None, reward: float) -> None:
        self._db.execute("INSERT INTO outcomes VALUES (?, ?, ?, ?)", (session, t, reward, time.time()))

    def steps(self, session: str) -> list[Entry]:
        rows = self._db.execute(f"SELECT {', '.join(COLUMNS)} FROM steps WHERE session = ? ORDER BY t, time", (session,))
        return [_entry(row) for row in rows]

    def outcomes(self, session: str) -> list[tuple[int | None, float]]:
        return list(self._db.execute("SELECT t, reward FROM outcomes WHERE session = ? ORDER BY time", (session,)))

    def spent(self, since: float, key: str | None = None) -> float:
        """USD since a time, of one key or of all."""
        where, values = ("", ()) if key is None else (" AND key = ?", (key,))
        sql = f"SELECT COALESCE(SUM(slm_usd + teacher_usd), 0) FROM steps WHERE time >= ?{where}"
        return float(self._db.execute(sql, (since, *values)).fetchone()[0])

    def sessions(self, limit: int) -> list[dict[str, Any]]:
        """The latest sessions, the newest first."""
        rows = self._db.execute(
            "SELECT session, COUNT(*), MAX(time), SUM(teacher_calls), SUM(slm_usd), SUM(teacher_usd), MAX(goal), "
            "(SELECT reward FROM outcomes o WHERE o.session = s.session AND o.t IS NULL ORDER BY time DESC LIMIT 1) "
            "FROM steps s GROUP BY session ORDER BY MAX(time) DESC LIMIT ?",
            (limit,),
        )
        names = ("session", "steps", "time", "teacher_calls", "slm_usd", "teacher_usd", "goal", "reward")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def all_sessions(self) -> Iterator[str]:
        for (session,) in self._db.execute("SELECT session FROM steps GROUP BY session ORDER BY MIN(time)").fetchall():
            yield session


def _entry(row: tuple[Any, ...]) -> Entry:
    values: list[Any] = [*row[:-1], _decoder.decode(row[-1])]
    return Entry(*values)


def decisions_of(entries: list[Entry]) -> tuple[Decision, ...]:
    return tuple(entry.step.choice.decision for entry in entries if entry.step.choice.decision is not None)
