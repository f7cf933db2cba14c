"""The ledger: every step in SQLite before its answer leaves; sessions are rebuilt from it after a restart.

One row a step. `record` holds the whole step (`r2v.core.types.Step`) as JSON, in which words are hashed when the ledger
redacts: what learning needs (features, scores, log-probabilities, decisions, usage) is numbers.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from r2v.core.errors import ArtifactError
from r2v.core.types import SOLVED, Decision, ScoreKind, Step
from r2v.core.untrusted import RECORD_BYTES, opened
from r2v.gateway.budgets import Amount
from r2v.gateway.settings import Mode

VERSION = 5
MODES = (
    "CREATE TABLE modes (mode TEXT NOT NULL, configured TEXT NOT NULL, reason TEXT NOT NULL, time REAL NOT NULL, "
    "forced INTEGER NOT NULL)"
)
VERDICTS = (
    "CREATE TABLE verdicts (session TEXT PRIMARY KEY, name TEXT NOT NULL, rank INTEGER NOT NULL, value REAL NOT NULL, "
    "time REAL NOT NULL)",
    "CREATE VIEW final_outcomes AS SELECT session, reward, time, '' verdict FROM outcomes WHERE rowid IN "
    "(SELECT MAX(rowid) FROM outcomes WHERE t IS NULL GROUP BY session) UNION ALL SELECT session, value, time, name FROM "
    "verdicts v WHERE NOT EXISTS (SELECT 1 FROM outcomes o WHERE o.session = v.session AND o.t IS NULL)",
)
"""The last verdict known of each session, and the outcome of each: the one that was sent last, else the verdict."""
TOOLS = "CREATE TABLE IF NOT EXISTS tools (session TEXT PRIMARY KEY, text TEXT NOT NULL)"
SCHEMA = (
    "CREATE TABLE steps (id TEXT PRIMARY KEY, session TEXT NOT NULL, t INTEGER NOT NULL, time REAL NOT NULL, "
    "key TEXT NOT NULL, source TEXT NOT NULL, code TEXT NOT NULL, model TEXT NOT NULL, score REAL, threshold REAL, "
    "propensity REAL NOT NULL, slm_usd REAL NOT NULL, teacher_usd REAL NOT NULL, saved_usd REAL NOT NULL, "
    "tokens INTEGER NOT NULL, teacher_calls INTEGER NOT NULL, candidates INTEGER NOT NULL, overhead_ms REAL NOT NULL, "
    "route TEXT NOT NULL, goal TEXT NOT NULL, alike INTEGER, mode TEXT, record BLOB NOT NULL, score_kind TEXT)",
    "CREATE INDEX steps_of_session ON steps (session, t)",
    "CREATE INDEX steps_by_time ON steps (time)",
    "CREATE TABLE outcomes (session TEXT NOT NULL, t INTEGER, reward REAL NOT NULL, time REAL NOT NULL)",
    "CREATE INDEX outcomes_of_session ON outcomes (session)",
    "CREATE TABLE abandoned (session TEXT NOT NULL, key TEXT NOT NULL, time REAL NOT NULL, calls INTEGER NOT NULL, "
    "tokens INTEGER NOT NULL, usd REAL NOT NULL)",
    "CREATE INDEX abandoned_of_session ON abandoned (session)",
    TOOLS,
    MODES,
    *VERDICTS,
)
MIGRATIONS = {
    2: (
        "ALTER TABLE steps RENAME COLUMN arm TO source",
        "ALTER TABLE steps RENAME COLUMN reason TO code",
        "ALTER TABLE steps RENAME COLUMN risk TO score",
        "ALTER TABLE steps RENAME COLUMN would TO route",
        "ALTER TABLE steps ADD COLUMN score_kind TEXT",
        "ALTER TABLE lost RENAME TO abandoned",
        "DROP INDEX IF EXISTS lost_of_session",
        "CREATE INDEX abandoned_of_session ON abandoned (session)",
        TOOLS,
    ),
    3: ("ALTER TABLE steps ADD COLUMN alike INTEGER", "ALTER TABLE steps ADD COLUMN mode TEXT", MODES),
    4: VERDICTS,
}
"""Schema version -> the statements that make it the next one. They touch no row, so that a large ledger opens at once:
routes and records stay as r2v 0.1 wrote them, and `_entry` reads them as today's.
"""
COLUMNS = (
    "id", "session", "t", "time", "key", "source", "code", "model", "score", "score_kind", "threshold", "propensity",
    "slm_usd", "teacher_usd", "saved_usd", "tokens", "teacher_calls", "candidates", "overhead_ms", "route", "goal",
    "alike", "mode", "record",
)  # fmt: skip
QUIET_S = 600.0
"""After so long without a step a session has ended: only then its verdict is evidence of how sessions end."""
RECENT = 20_000
"""Steps that `Ledger.sessions` looks back on, so that a page that asks for it again and again stays cheap."""
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
    source: str
    """Who answered: slm or teacher."""
    code: str
    """Why: of `r2v.core.types.Code`."""
    model: str
    score: float | None
    score_kind: ScoreKind | None
    """What the score estimates; None without a score, and in rows that older versions wrote."""
    threshold: float | None
    propensity: float
    slm_usd: float
    teacher_usd: float
    saved_usd: float
    """Against a teacher that answers every step from a warm cache; an estimate, and often below 0."""
    tokens: int
    """Of all calls, drafts included."""
    teacher_calls: int
    candidates: int
    overhead_ms: float
    """Time the gateway took, models excluded."""
    route: str
    """What the router decided, whatever was done."""
    goal: str
    step: Step
    alike: bool | None = None
    """Whether the SLM's best candidate did what the teacher's answer did; None: not compared, or not comparable."""
    mode: str | None = None
    """`r2v.gateway.modes.Part.name` of the step; None in rows that older versions wrote."""


@dataclass(frozen=True)
class LastVerdict:
    """What a step leaves as the outcome of its session, should none be sent later."""

    name: str
    rank: int
    """Its place in the settings: a verdict that stands before another goes before it."""
    value: float


@dataclass(frozen=True)
class ModeChange:
    """Which mode the gateway is in, and why."""

    mode: Mode
    configured: Mode
    """`route.mode` at that time."""
    reason: str
    time: float
    forced: bool = False
    """Against the evidence, or without any."""


class Ledger:
    def __init__(self, path: Path) -> None:
        """Opens or makes the ledger; one of an older version is migrated in place, in one transaction.

        Raises:
            ArtifactError: the file is not a ledger, or a newer r2v wrote it.
        """
        with suppress(FileNotFoundError):
            opened(path).close()  # a device or a pipe would be waited for
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, RECORD_BYTES)
            self._db.execute("PRAGMA trusted_schema = OFF")
            _refuse_code(self._db, path)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")  # survives kill -9; the last steps may be lost with the power
            if self._version() != VERSION:
                self._migrate(path)
            # Sums over many steps take as long as they like in another thread: writing does not wait for this connection.
            self._sums = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._sums.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, RECORD_BYTES)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{path} is not a ledger ({error}); choose another store.path") from None

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _migrate(self, path: Path) -> None:
        """All or nothing: until the last statement the file is one that the older version reads."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            version = self._version()  # read again: another process may have migrated it meanwhile
            if version > VERSION or (version and version < min(MIGRATIONS)):
                raise ArtifactError(
                    f"{path} was written by another version of r2v (schema {version}, this one has {VERSION}); "
                    f"{'upgrade r2v' if version > VERSION else 'open it with r2v 0.1'} or choose another store.path"
                )
            for statement in SCHEMA if version == 0 else [one for v in range(version, VERSION) for one in MIGRATIONS[v]]:
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {VERSION}")
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            self._db.close()
            raise

    def close(self) -> None:
        self._sums.close()
        self._db.close()

    def write(self, entry: Entry, tools: bytes | None = None, verdict: LastVerdict | None = None) -> None:
        """Write a step. Raises sqlite3.Error when it cannot be written; then the answer must not leave.

        Args:
            entry: the step.
            tools: JSON of what the session may call, kept once.
            verdict: the outcome of the session so far, where one is known.
        """
        values = [getattr(entry, name) for name in COLUMNS[:-1]]
        marks = ", ".join("?" * len(COLUMNS))
        self._db.execute(
            f"INSERT INTO steps ({', '.join(COLUMNS)}) VALUES ({marks})", (*values, _encoder.encode(entry.step))
        )
        if tools is not None and tools != b"null":
            self._db.execute("INSERT OR IGNORE INTO tools VALUES (?, ?)", (entry.session, tools.decode()))
        if verdict is not None:
            self._db.execute(
                "INSERT INTO verdicts VALUES (?, ?, ?, ?, ?) ON CONFLICT (session) DO UPDATE SET name = excluded.name, "
                "rank = excluded.rank, value = excluded.value, time = excluded.time WHERE excluded.rank <= rank",
                (entry.session, verdict.name, verdict.rank, verdict.value, entry.time),
            )

    def abandon(self, session: str, key: str, amount: Amount) -> None:
        """Note what a step that was abandoned can have cost. What cannot be written is forgotten with this process."""
        values = (session, key, time.time(), amount.calls, amount.tokens, amount.usd)
        with suppress(sqlite3.Error):
            self._db.execute("INSERT INTO abandoned VALUES (?, ?, ?, ?, ?, ?)", values)

    def outcome(self, session: str, t: int | None, reward: float) -> None:
        self._db.execute("INSERT INTO outcomes VALUES (?, ?, ?, ?)", (session, t, reward, time.time()))

    def steps(self, session: str) -> list[Entry]:
        rows = self._db.execute(f"SELECT {', '.join(COLUMNS)} FROM steps WHERE session = ? ORDER BY t, time", (session,))
        return [_entry(row) for row in rows]

    def span(self) -> tuple[float, float] | None:
        """Times of the first and of the last step; None of an empty ledger."""
        first, last = self._db.execute("SELECT MIN(time), MAX(time) FROM steps").fetchone()
        return None if first is None else (first, last)

    def tools(self, session: str) -> str:
        """JSON of what the session was offered when it began; empty where nothing was, or the ledger is redacted."""
        row = self._db.execute("SELECT text FROM tools WHERE session = ?", (session,)).fetchone()
        return row[0] if row else ""

    def has(self, session: str) -> bool:
        return self._db.execute("SELECT 1 FROM steps WHERE session = ? LIMIT 1", (session,)).fetchone() is not None

    def outcomes(self, session: str) -> list[tuple[int | None, float]]:
        return list(self._db.execute("SELECT t, reward FROM outcomes WHERE session = ? ORDER BY time", (session,)))

    def outcome_of(self, session: str) -> tuple[float, str] | None:
        """(reward, name of the verdict that it was taken from; empty where it was sent); None where nothing is known."""
        row = self._db.execute("SELECT reward, verdict FROM final_outcomes WHERE session = ?", (session,)).fetchone()
        return None if row is None else (row[0], row[1])

    def spent(self, *, session: str | None = None, since: float | None = None, key: str | None = None) -> Amount:
        """By a session, or since a time, or both; of one key or of all."""
        conditions = {"session =": session, "time >=": since, "key =": key}
        known = {column: value for column, value in conditions.items() if value is not None}
        where = " AND ".join(f"{column} ?" for column in known) or "1"
        total = Amount()
        for calls, usd, table in (("teacher_calls", "slm_usd + teacher_usd", "steps"), ("calls", "usd", "abandoned")):
            sums = f"COALESCE(SUM({calls}), 0), COALESCE(SUM(tokens), 0), COALESCE(SUM({usd}), 0.0)"
            row = self._db.execute(f"SELECT {sums} FROM {table} WHERE {where}", tuple(known.values())).fetchone()
            total += Amount(*row)
        return total

    def scores_and_failures(self, sessions: int, kind: ScoreKind | None) -> tuple[list[tuple[float, float]], int]:
        """Scores against outcomes, where the SLM alone played: only there is it known how continuing ended.

        Args:
            sessions: how many of the latest sessions with an outcome to look at.
            kind: leave out scores that are known to be of another kind; None: leave out none.

        Returns:
            [(score, 1.0 for failure) of each step], and of how many sessions they are.
        """
        ended = (
            "SELECT session, reward FROM (SELECT * FROM final_outcomes WHERE verdict = '' OR time < :quiet "
            "ORDER BY time DESC LIMIT :sessions) WHERE session NOT IN (SELECT session FROM steps WHERE source = 'teacher')"
        )
        rows = self._db.execute(
            f"SELECT s.session, s.score, e.reward < :bound FROM ({ended}) e JOIN steps s ON s.session = e.session "
            "WHERE s.score IS NOT NULL AND (:kind IS NULL OR COALESCE(s.score_kind, :kind) = :kind)",
            {"sessions": sessions, "bound": SOLVED, "kind": kind, "quiet": time.time() - QUIET_S},
        ).fetchall()
        return [(score, float(failed)) for _, score, failed in rows], len({session for session, _, _ in rows})

    def sessions(
        self, limit: int, *, text: str = "", mode: str | None = None, escalated: bool = False, failed: bool | None = None
    ) -> list[dict[str, Any]]:
        """The latest sessions, the newest first, among those of the latest `RECENT` steps.

        Args:
            limit: how many at most.
            text: part of the id or of the goal, in any case.
            mode: of the latest step.
            escalated: only those in which the router wanted the teacher.
            failed: only those whose outcome is a failure, or a success.
        """
        cursor = self._sums.execute(
            "SELECT s.session, COUNT(*) steps, MAX(s.time) time, SUM(teacher_calls) teacher_calls, SUM(slm_usd) slm_usd, "
            "SUM(teacher_usd) teacher_usd, SUM(saved_usd) saved_usd, goal, mode, COUNT(alike) labelled, SUM(alike) alike, "
            "SUM(route NOT IN ('continue', 'retry') AND score IS NOT NULL) escalated, o.reward, o.verdict "
            "FROM steps s LEFT JOIN final_outcomes o ON o.session = s.session "
            "WHERE s.session IN (SELECT session FROM steps ORDER BY time DESC LIMIT :recent) GROUP BY s.session "
            "HAVING (:text = '' OR instr(lower(s.session || ' ' || goal), :text)) AND (:mode IS NULL OR mode = :mode) "
            "AND (NOT :escalated OR escalated) AND (:failed IS NULL OR (reward < :bound) = :failed) "
            "ORDER BY 3 DESC LIMIT :limit",
            {
                "limit": limit, "recent": RECENT, "text": text.lower(), "mode": mode, "escalated": escalated,
                "failed": failed, "bound": SOLVED,
            },
        )  # fmt: skip
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def days(self, since: float) -> list[dict[str, Any]]:
        """What was served, spent, saved, labelled and failed on each day (UTC), the earliest first. A session's outcome is
        its last, and counts on the day that it was reported.
        """
        cursor = self._sums.execute(
            "SELECT date(time, 'unixepoch') day, SUM(step) steps, SUM(taught) teacher_steps, SUM(usd) usd, "
            "SUM(saved) saved_usd, SUM(labelled) labelled, SUM(alike) alike, SUM(ended) ended, SUM(failed) failed FROM ("
            "SELECT time, 1 step, source = 'teacher' taught, slm_usd + teacher_usd usd, saved_usd saved, "
            "alike IS NOT NULL labelled, COALESCE(alike, 0) alike, 0 ended, 0 failed FROM steps WHERE time >= :since "
            "UNION ALL SELECT time, 0, 0, usd, 0, 0, 0, 0, 0 FROM abandoned WHERE time >= :since "
            "UNION ALL SELECT time, 0, 0, 0, 0, 0, 0, 1, reward < :bound FROM final_outcomes WHERE time >= :since) "
            "GROUP BY day ORDER BY day",
            {"since": since, "bound": SOLVED},
        )
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def labels(self, since: float) -> tuple[int, int]:
        """(steps whose answers were compared, those of them that were alike) from a time on."""
        counts = self._sums.execute("SELECT COALESCE(SUM(alike), 0), COUNT(alike) FROM steps WHERE time >= ?", (since,))
        alike, labelled = counts.fetchone()
        return labelled, alike

    def ended(self, mode: str, since: float) -> tuple[int, int]:
        """How many sessions have ended, of those that began after a time and were served in one mode from first to last.

        Returns:
            (sessions with an outcome, those of them that failed). A verdict counts once a session has been quiet.
        """
        rows = self._sums.execute(
            "SELECT o.reward FROM steps s JOIN final_outcomes o ON o.session = s.session "
            "WHERE s.session IN (SELECT session FROM steps WHERE time >= :since AND mode = :mode) GROUP BY s.session "
            "HAVING MIN(s.time) >= :since AND MIN(s.mode = :mode) AND (o.verdict = '' OR MAX(s.time) < :quiet)",
            {"mode": mode, "since": since, "quiet": time.time() - QUIET_S},
        )
        rewards = [reward for (reward,) in rows]
        return len(rewards), sum(reward < SOLVED for reward in rewards)

    def mode(self) -> ModeChange | None:
        """The last change of the mode."""
        row = self._db.execute("SELECT * FROM modes ORDER BY rowid DESC LIMIT 1").fetchone()
        return None if row is None else ModeChange(*row)

    def set_mode(self, change: ModeChange) -> None:
        self._db.execute("INSERT INTO modes VALUES (?, ?, ?, ?, ?)", astuple(change))

    def all_sessions(self) -> Iterator[str]:
        for (session,) in self._db.execute("SELECT session FROM steps GROUP BY session ORDER BY MIN(time)").fetchall():
            yield session


def _refuse_code(db: sqlite3.Connection, path: Path) -> None:
    """Refuse a database that computes what it seems to hold: views, triggers and generated columns run when it is used.

    Raises ArtifactError.
    """
    for kind, name, sql in db.execute("SELECT type, name, sql FROM sqlite_master"):
        ours = kind in ("table", "index") and "VIRTUAL" not in str(sql).upper()[:40]
        if kind == "table" and ours:
            ours = all(row[6] == 0 for row in db.execute("SELECT * FROM pragma_table_xinfo(?)", (name,)))
        if not ours and sql not in VERDICTS:
            raise ArtifactError(f"{path} has the {kind} {name!r}, which no ledger of r2v has; it is not opened")


_types = get_type_hints(Entry)
_Row: Any = tuple[tuple(_types[name] for name in COLUMNS[:-1])]  # type: ignore[misc]


def _entry(row: tuple[Any, ...]) -> Entry:
    """Raises what `r2v.runtime.store.MALFORMED` lists where a row is not as `Ledger.write` leaves it."""
    known = msgspec.convert(row[:-1], _Row, strict=False)  # SQLite puts any value into any column
    values: dict[str, Any] = dict(zip(COLUMNS[:-1], known, strict=True))
    try:
        step = _decoder.decode(row[-1])
    except msgspec.ValidationError:  # written by r2v 0.1
        from r2v.runtime.upgrade import ROUTES, upgraded_step

        step = msgspec.convert(upgraded_step(msgspec.json.decode(row[-1])), Step)
        values["route"] = ROUTES.get(values["route"], values["route"])
    return Entry(**values, step=step)


def words_of(step: Step) -> dict[str, Any] | None:
    """What was said at a step: what came in, the SLM's drafts with their scores, the answer; None in a redacted ledger."""
    choice = step.choice
    if choice.reply is None:
        return None
    scores = choice.scores or (None,) * len(choice.candidates)
    drafts = [
        {"text": candidate.action.text, "score": score, "logp": candidate.logp}
        for candidate, score in zip(choice.candidates, scores, strict=True)
    ]
    return {"messages": step.messages, "drafts": drafts, "reply": choice.reply}


def decisions_of(entries: list[Entry]) -> tuple[Decision, ...]:
    return tuple(entry.step.choice.decision for entry in entries if entry.step.choice.decision is not None)
