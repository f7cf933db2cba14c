"""The ledger: every step in SQLite before its answer leaves; sessions are rebuilt from it after a restart.

One row a step. `record` holds the whole step (`r2v.core.types.Step`) as JSON, in which words are hashed when the ledger
redacts: what learning needs (features, scores, log-probabilities, decisions, usage) is numbers.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from r2v.core.errors import ArtifactError
from r2v.core.types import SOLVED, Decision, Step
from r2v.gateway.settings import LimitSettings
from r2v.runtime.upgrade import upgraded_step

SCHEMA = """
CREATE TABLE IF NOT EXISTS steps (
  id TEXT PRIMARY KEY, session TEXT NOT NULL, t INTEGER NOT NULL, time REAL NOT NULL, key TEXT NOT NULL,
  arm TEXT NOT NULL, reason TEXT NOT NULL, model TEXT NOT NULL, risk REAL, threshold REAL, propensity REAL NOT NULL,
  slm_usd REAL NOT NULL, teacher_usd REAL NOT NULL, saved_usd REAL NOT NULL, tokens INTEGER NOT NULL,
  teacher_calls INTEGER NOT NULL, candidates INTEGER NOT NULL,
  overhead_ms REAL NOT NULL, would TEXT NOT NULL, goal TEXT NOT NULL, record BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS steps_of_session ON steps (session, t);
CREATE INDEX IF NOT EXISTS steps_by_time ON steps (time);
CREATE TABLE IF NOT EXISTS outcomes (session TEXT NOT NULL, t INTEGER, reward REAL NOT NULL, time REAL NOT NULL);
CREATE INDEX IF NOT EXISTS outcomes_of_session ON outcomes (session);
CREATE TABLE IF NOT EXISTS lost (
  session TEXT NOT NULL, key TEXT NOT NULL, time REAL NOT NULL, calls INTEGER NOT NULL, tokens INTEGER NOT NULL,
  usd REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS lost_of_session ON lost (session);
CREATE TABLE IF NOT EXISTS tools (session TEXT PRIMARY KEY, text TEXT NOT NULL);
PRAGMA user_version = 2;
"""
COLUMNS = (
    "id", "session", "t", "time", "key", "arm", "reason", "model", "risk", "threshold", "propensity", "slm_usd",
    "teacher_usd", "saved_usd", "tokens", "teacher_calls", "candidates", "overhead_ms", "would", "goal", "record",
)  # fmt: skip
_encoder, _decoder = msgspec.json.Encoder(), msgspec.json.Decoder(Step)


@dataclass(frozen=True, slots=True)
class Amount:
    """What was or may be spent."""

    calls: int = 0
    """Of the teacher."""
    tokens: int = 0
    usd: float = 0.0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.calls + other.calls, self.tokens + other.tokens, self.usd + other.usd)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.calls - other.calls, self.tokens - other.tokens, self.usd - other.usd)

    def within(self, limit: LimitSettings) -> bool:
        pairs = ((self.calls, limit.teacher_calls), (self.tokens, limit.tokens), (self.usd, limit.usd))
        return all(most is None or amount <= most for amount, most in pairs)


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
    saved_usd: float
    """Against a teacher that answers every step from a warm cache; an estimate (`r2v.gateway.prices`), and often below 0."""
    tokens: int
    """Of all calls, drafts included."""
    teacher_calls: int
    candidates: int
    overhead_ms: float
    """Time the gateway took, models excluded."""
    would: str
    """The route that the router decided, whatever was done."""
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
            if version not in (0, 2):
                raise ArtifactError(f"{path} was written by another version of r2v (schema {version})")
            self._db.executescript(SCHEMA)
        except sqlite3.DatabaseError as error:
            raise ArtifactError(f"{path} is not a ledger ({error}); choose another store.path") from None

    def close(self) -> None:
        self._db.close()

    def write(self, entry: Entry, tools: bytes | None = None) -> None:
        """`tools`: JSON of what the session may call, kept once. Raises sqlite3.Error when it cannot be written; then the
        answer must not leave.
        """
        values = [getattr(entry, name) for name in COLUMNS[:-1]]
        marks = ", ".join("?" * len(COLUMNS))
        self._db.execute(
            f"INSERT INTO steps ({', '.join(COLUMNS)}) VALUES ({marks})", (*values, _encoder.encode(entry.step))
        )
        if tools is not None and tools != b"null":
            self._db.execute("INSERT OR IGNORE INTO tools VALUES (?, ?)", (entry.session, tools.decode()))

    def lose(self, session: str, key: str, amount: Amount) -> None:
        """Note what a step that was given up can have cost. What cannot be written is forgotten with this process."""
        values = (session, key, time.time(), amount.calls, amount.tokens, amount.usd)
        with suppress(sqlite3.Error):
            self._db.execute("INSERT INTO lost VALUES (?, ?, ?, ?, ?, ?)", values)

    def outcome(self, session: str, t: int | None, reward: float) -> None:
        self._db.execute("INSERT INTO outcomes VALUES (?, ?, ?, ?)", (session, t, reward, time.time()))

    def steps(self, session: str) -> list[Entry]:
        rows = self._db.execute(f"SELECT {', '.join(COLUMNS)} FROM steps WHERE session = ? ORDER BY t, time", (session,))
        return [_entry(row) for row in rows]

    def tools(self, session: str) -> str:
        """JSON of what the session was offered when it began; empty where nothing was, or the ledger is redacted."""
        row = self._db.execute("SELECT text FROM tools WHERE session = ?", (session,)).fetchone()
        return row[0] if row else ""

    def has(self, session: str) -> bool:
        return self._db.execute("SELECT 1 FROM steps WHERE session = ? LIMIT 1", (session,)).fetchone() is not None

    def outcomes(self, session: str) -> list[tuple[int | None, float]]:
        return list(self._db.execute("SELECT t, reward FROM outcomes WHERE session = ? ORDER BY time", (session,)))

    def spent(self, *, session: str | None = None, since: float | None = None, key: str | None = None) -> Amount:
        """By a session, or since a time, or both; of one key or of all."""
        asked = {"session =": session, "time >=": since, "key =": key}
        known = {column: value for column, value in asked.items() if value is not None}
        where = " AND ".join(f"{column} ?" for column in known) or "1"
        found = Amount()
        for calls, usd, table in (("teacher_calls", "slm_usd + teacher_usd", "steps"), ("calls", "usd", "lost")):
            sums = f"COALESCE(SUM({calls}), 0), COALESCE(SUM(tokens), 0), COALESCE(SUM({usd}), 0.0)"
            row = self._db.execute(f"SELECT {sums} FROM {table} WHERE {where}", tuple(known.values())).fetchone()
            found += Amount(*row)
        return found

    def told_apart(self, sessions: int) -> tuple[list[tuple[float, float]], int]:
        """([(risk, 1.0 for failure) of each step], sessions) of the latest sessions with an outcome that the small model
        played alone.
        """
        ended = (
            "SELECT session, reward FROM outcomes WHERE rowid IN (SELECT MAX(rowid) FROM outcomes WHERE t IS NULL GROUP BY "
            "session ORDER BY MAX(rowid) DESC LIMIT ?) AND session NOT IN (SELECT session FROM steps WHERE arm = 'teacher')"
        )
        rows = self._db.execute(
            f"SELECT s.session, s.risk, e.reward < {SOLVED} FROM ({ended}) e JOIN steps s ON s.session = e.session "
            "WHERE s.risk IS NOT NULL", (sessions,),
        ).fetchall()  # fmt: skip
        return [(risk, float(failed)) for _, risk, failed in rows], len({session for session, _, _ in rows})

    def sessions(self, limit: int) -> list[dict[str, Any]]:
        """The latest sessions, the newest first."""
        rows = self._db.execute(
            "SELECT session, COUNT(*), MAX(time), SUM(teacher_calls), SUM(slm_usd), SUM(teacher_usd), SUM(saved_usd), "
            "MAX(goal), "
            "(SELECT reward FROM outcomes o WHERE o.session = s.session AND o.t IS NULL ORDER BY time DESC LIMIT 1) "
            "FROM steps s GROUP BY session ORDER BY MAX(time) DESC LIMIT ?",
            (limit,),
        )
        names = ("session", "steps", "time", "teacher_calls", "slm_usd", "teacher_usd", "saved_usd", "goal", "reward")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def all_sessions(self) -> Iterator[str]:
        for (session,) in self._db.execute("SELECT session FROM steps GROUP BY session ORDER BY MIN(time)").fetchall():
            yield session


def _entry(row: tuple[Any, ...]) -> Entry:
    try:
        step = _decoder.decode(row[-1])
    except msgspec.ValidationError:  # of r2v 0.1
        step = msgspec.convert(upgraded_step(msgspec.json.decode(row[-1])), Step)
    values: list[Any] = [*row[:-1], step]
    return Entry(*values)


def decisions_of(entries: list[Entry]) -> tuple[Decision, ...]:
    return tuple(entry.step.choice.decision for entry in entries if entry.step.choice.decision is not None)
