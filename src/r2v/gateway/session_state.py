"""What steps leave for the next beside their rows, in the ledger's database: one for all processes that serve from it."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

SCHEMA = (
    "CREATE TABLE session_states (session TEXT PRIMARY KEY, steps INTEGER NOT NULL, "
    "prompt_tokens INTEGER NOT NULL DEFAULT 0, teacher_at REAL, tools INTEGER NOT NULL DEFAULT 0)",
    "CREATE TABLE signatures (session TEXT NOT NULL, signature TEXT NOT NULL, model TEXT NOT NULL, "
    "PRIMARY KEY (session, signature))",
    "CREATE TABLE kill_switch (killed INTEGER NOT NULL)",
    "INSERT INTO kill_switch VALUES (0)",
    "CREATE TABLE worker_counts (worker TEXT PRIMARY KEY, time REAL NOT NULL, counts BLOB NOT NULL)",
)
_STEPS = "(SELECT COALESCE(MAX(t) + 1, 0) FROM steps WHERE session = :session)"
"""Of a session that an older version of r2v began."""


class State(NamedTuple):
    prompt_tokens: int
    """Of the step before."""
    teacher_at: float | None
    """Seconds of the machine's monotonic clock when the teacher answered last."""


class SessionStates:
    """Every method raises sqlite3.Error."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def version(self) -> int:
        """A number that differs when another connection, of this process or another, has written since the last call."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def begin_step(self, session: str) -> int:
        """The number of the next step, given out once."""
        rows = self._db.execute(
            f"INSERT INTO session_states (session, steps) VALUES (:session, {_STEPS} + 1) "
            "ON CONFLICT (session) DO UPDATE SET steps = steps + 1 RETURNING steps - 1",
            {"session": session},
        ).fetchall()  # all of them: the statement ends, and with it its transaction
        return int(rows[0][0])

    def next_step(self, session: str) -> int:
        """The number that the next step will have."""
        known = "SELECT COALESCE((SELECT steps FROM session_states WHERE session = :session), " + _STEPS + ")"
        return int(self._db.execute(known, {"session": session}).fetchone()[0])

    def state(self, session: str) -> State:
        row = self._db.execute(
            "SELECT prompt_tokens, teacher_at FROM session_states WHERE session = ?", (session,)
        ).fetchone()
        return State(0, None) if row is None else State(*row)

    def remember(self, session: str, prompt_tokens: int, teacher_at: float | None) -> None:
        """Keep the length of a step's prompt, and when the teacher answered, if it did."""
        self._db.execute(
            "UPDATE session_states SET prompt_tokens = ?, teacher_at = COALESCE(?, teacher_at) WHERE session = ?",
            (prompt_tokens, teacher_at, session),
        )

    def offer_tools(self, session: str) -> None:
        """Keep that a request of the session had tools."""
        self._db.execute(
            f"INSERT INTO session_states (session, steps, tools) VALUES (:session, {_STEPS}, 1) "
            "ON CONFLICT (session) DO UPDATE SET tools = 1",
            {"session": session},
        )

    def had_tools(self, session: str) -> bool:
        """Whether any request of the session had tools."""
        row = self._db.execute("SELECT tools FROM session_states WHERE session = ?", (session,)).fetchone()
        return row is not None and bool(row[0])

    def sign(self, session: str, signature: str, model: str) -> None:
        """Keep who wrote a thinking block."""
        self._db.execute("INSERT OR REPLACE INTO signatures VALUES (?, ?, ?)", (session, signature, model))

    def signatures(self, session: str, most: int) -> dict[str, str]:
        """The latest signatures of a session, and who wrote them; the oldest first."""
        rows = self._db.execute(
            "SELECT signature, model FROM signatures WHERE session = ? ORDER BY rowid DESC LIMIT ?", (session, most)
        ).fetchall()
        return dict(reversed(rows))

    def kill(self, on: bool) -> None:
        self._db.execute("UPDATE kill_switch SET killed = ?", (on,))

    def killed(self) -> bool:
        return bool(self._db.execute("SELECT killed FROM kill_switch").fetchone()[0])

    def keep_counts(self, worker: str, time: float, counts: bytes) -> None:
        """Keep what a worker has counted so far."""
        self._db.execute("INSERT OR REPLACE INTO worker_counts VALUES (?, ?, ?)", (worker, time, counts))

    def counts(self) -> list[tuple[float, bytes]]:
        """(time, what was counted) of each worker since the gateway started, also of those that have ended."""
        return self._db.execute("SELECT time, counts FROM worker_counts").fetchall()

    def forget_counts(self) -> None:
        self._db.execute("DELETE FROM worker_counts")
