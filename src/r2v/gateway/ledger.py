"""The ledger: every step in SQLite before its answer leaves; sessions are rebuilt from it after a restart.

One row a step. `record` holds the whole step (`r2v.core.types.Step`) as JSON, in which words are hashed when the ledger
redacts: what learning needs (features, scores, log-probabilities, decisions, usage) is numbers. What the page and the
budgets sum up (`ROLLUPS`) is kept by triggers in the transaction of the row, so that no request reads all rows. Rows that
r2v wrote before there were totals are counted in batches (`Ledger.count_old`).
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec

from r2v.core.errors import ArtifactError
from r2v.core.types import SOLVED
from r2v.core.untrusted import RECORD_BYTES, check_regular
from r2v.gateway.accounts import SCHEMA as ACCOUNTS
from r2v.gateway.accounts import Accounts
from r2v.gateway.budgets import Amount
from r2v.gateway.journal import SCHEMA as JOURNAL
from r2v.gateway.journal import Journal
from r2v.gateway.keys import SCHEMA as KEYS
from r2v.gateway.keys import LedgerKeys
from r2v.gateway.reading import LedgerReader
from r2v.gateway.rows import (
    COLUMNS,
    COLUMNS_OF,
    INSERT,
    RENEW_VERDICT,
    TABLES,
    Entry,
    OutcomeRow,
    ToolsRow,
    VerdictRow,
    entry_of,
)
from r2v.gateway.session_state import SCHEMA as SESSION_STATES
from r2v.gateway.session_state import SessionStates
from r2v.gateway.settings import Mode

VERSION = 8
MODES = (
    "CREATE TABLE modes (mode TEXT NOT NULL, configured TEXT NOT NULL, reason TEXT NOT NULL, time REAL NOT NULL, "
    "forced INTEGER NOT NULL)"
)
IDENTITY = (
    "CREATE TABLE identity (id TEXT NOT NULL, since REAL NOT NULL)",
    "INSERT INTO identity VALUES (lower(hex(randomblob(8))), CAST(strftime('%s', 'now') AS REAL))",
)
"""What tells this ledger from those of other replicas, and since when its steps have been charged."""
REPLICAS = ("ALTER TABLE identity ADD COLUMN replicas INTEGER NOT NULL DEFAULT 1",)
_COUNT_IN_SESSION = """
INSERT INTO session_totals (session, key, steps, begun, time, teacher_steps, teacher_calls, tokens, slm_usd, teacher_usd,
  saved_usd, labelled, alike, escalated, goal, mode, only_mode)
SELECT {row}.session, {row}.key, 1, {row}.time, {row}.time, {row}.source = 'teacher', {row}.teacher_calls, {row}.tokens,
  {row}.slm_usd, {row}.teacher_usd, {row}.saved_usd, {row}.alike IS NOT NULL, COALESCE({row}.alike, 0),
  {row}.route NOT IN ('continue', 'retry') AND {row}.score IS NOT NULL, {row}.goal, {row}.mode, {row}.mode {rows}
ON CONFLICT (session) DO UPDATE SET steps = steps + 1, begun = MIN(begun, excluded.begun),
  teacher_steps = teacher_steps + excluded.teacher_steps, teacher_calls = teacher_calls + excluded.teacher_calls,
  tokens = tokens + excluded.tokens, slm_usd = slm_usd + excluded.slm_usd, teacher_usd = teacher_usd + excluded.teacher_usd,
  saved_usd = saved_usd + excluded.saved_usd, labelled = labelled + excluded.labelled, alike = alike + excluded.alike,
  escalated = escalated + excluded.escalated, goal = CASE WHEN excluded.time >= time THEN excluded.goal ELSE goal END,
  mode = CASE WHEN excluded.time >= time THEN excluded.mode ELSE mode END,
  only_mode = CASE WHEN only_mode IS excluded.only_mode THEN only_mode END, time = MAX(time, excluded.time)
"""
_COUNT_ON_DAY = """
INSERT INTO day_totals (day, key, steps, teacher_steps, calls, tokens, usd, saved_usd, labelled, alike)
SELECT CAST({row}.time / 86400 AS INTEGER), {row}.key, 1, {row}.source = 'teacher', {row}.teacher_calls, {row}.tokens,
  {row}.slm_usd + {row}.teacher_usd, {row}.saved_usd, {row}.alike IS NOT NULL, COALESCE({row}.alike, 0) {rows}
ON CONFLICT (day, key) DO UPDATE SET steps = steps + 1, teacher_steps = teacher_steps + excluded.teacher_steps,
  calls = calls + excluded.calls, tokens = tokens + excluded.tokens, usd = usd + excluded.usd,
  saved_usd = saved_usd + excluded.saved_usd, labelled = labelled + excluded.labelled, alike = alike + excluded.alike
"""
_COUNT_COMPARISON = "INSERT INTO comparisons SELECT {row}.time, {row}.id, {row}.alike {rows} AND {row}.alike IS NOT NULL"
COUNTS = (_COUNT_IN_SESSION, _COUNT_ON_DAY, _COUNT_COMPARISON)
"""What a step adds to the totals: of one row in a trigger, of many in `Ledger.count_old`."""
_COUNT_ABANDONED = """
INSERT INTO day_totals (day, key, calls, tokens, usd)
SELECT CAST({row}.time / 86400 AS INTEGER), {row}.key, {row}.calls, {row}.tokens, {row}.usd {rows}
ON CONFLICT (day, key) DO UPDATE SET calls = calls + excluded.calls, tokens = tokens + excluded.tokens,
  usd = usd + excluded.usd
"""
_NEW = {"row": "NEW", "rows": "WHERE 1"}
_VERDICT_ENDS = (
    "UPDATE session_totals SET reward = NEW.value, verdict = NEW.name, ended = NEW.time "
    "WHERE session = NEW.session AND verdict IS NOT ''"
)
ROLLUPS = (
    "CREATE TABLE session_totals (session TEXT PRIMARY KEY, key TEXT NOT NULL, steps INTEGER NOT NULL, begun REAL NOT NULL, "
    "time REAL NOT NULL, teacher_steps INTEGER NOT NULL, teacher_calls INTEGER NOT NULL, tokens INTEGER NOT NULL, "
    "slm_usd REAL NOT NULL, teacher_usd REAL NOT NULL, saved_usd REAL NOT NULL, labelled INTEGER NOT NULL, "
    "alike INTEGER NOT NULL, escalated INTEGER NOT NULL, goal TEXT NOT NULL, mode TEXT, only_mode TEXT, reward REAL, "
    "verdict TEXT, ended REAL)",
    "CREATE INDEX session_totals_by_time ON session_totals (time)",
    "CREATE INDEX session_totals_ended ON session_totals (ended) WHERE ended IS NOT NULL",
    "CREATE INDEX session_totals_of_mode ON session_totals (only_mode, begun) WHERE ended IS NOT NULL",
    "CREATE TABLE day_totals (day INTEGER NOT NULL, key TEXT NOT NULL, steps INTEGER NOT NULL DEFAULT 0, "
    "teacher_steps INTEGER NOT NULL DEFAULT 0, calls INTEGER NOT NULL DEFAULT 0, tokens INTEGER NOT NULL DEFAULT 0, "
    "usd REAL NOT NULL DEFAULT 0, saved_usd REAL NOT NULL DEFAULT 0, labelled INTEGER NOT NULL DEFAULT 0, "
    "alike INTEGER NOT NULL DEFAULT 0, ended INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0, "
    "PRIMARY KEY (day, key)) WITHOUT ROWID",
    "CREATE TABLE comparisons (time REAL NOT NULL, id TEXT NOT NULL, alike INTEGER NOT NULL, PRIMARY KEY (time, id)) "
    "WITHOUT ROWID",
    f"CREATE TRIGGER count_step AFTER INSERT ON steps BEGIN {'; '.join(COUNTS).format(**_NEW)}; END",
    f"CREATE TRIGGER count_abandoned AFTER INSERT ON abandoned BEGIN {_COUNT_ABANDONED.format(**_NEW)}; END",
    "CREATE TRIGGER outcome_ends AFTER INSERT ON outcomes WHEN NEW.t IS NULL BEGIN "
    "UPDATE session_totals SET reward = NEW.reward, verdict = '', ended = NEW.time WHERE session = NEW.session; END",
    f"CREATE TRIGGER verdict_ends AFTER INSERT ON verdicts BEGIN {_VERDICT_ENDS}; END",
    f"CREATE TRIGGER later_verdict_ends AFTER UPDATE ON verdicts BEGIN {_VERDICT_ENDS}; END",
    "CREATE TRIGGER count_end AFTER UPDATE OF reward, ended ON session_totals BEGIN "
    f"UPDATE day_totals SET ended = ended - 1, failed = failed - (OLD.reward < {SOLVED}) "
    "WHERE OLD.reward IS NOT NULL AND day = CAST(OLD.ended / 86400 AS INTEGER) AND key = OLD.key; "
    "INSERT INTO day_totals (day, key, ended, failed) "
    f"VALUES (CAST(NEW.ended / 86400 AS INTEGER), NEW.key, 1, NEW.reward < {SOLVED}) "
    "ON CONFLICT (day, key) DO UPDATE SET ended = ended + 1, failed = failed + excluded.failed; END",
    "CREATE TABLE uncounted (up_to INTEGER NOT NULL)",
    "INSERT INTO uncounted SELECT COALESCE(MAX(rowid), 0) FROM steps",
    _COUNT_ABANDONED.format(row="abandoned", rows="FROM abandoned WHERE 1"),
    "DROP VIEW IF EXISTS final_outcomes",
)
"""Totals of each session and of each day (of UTC) and key, kept as rows come; `verdict` is empty where the outcome was
sent. `uncounted` has the last rowid of those steps of before that are not in the totals yet.
"""
_KINDS = {str: "TEXT", int: "INTEGER", float: "REAL", bool: "INTEGER", bytes: "BLOB"}


def _table(name: str, primary: str = "") -> str:
    """What makes a table of `TABLES`; `primary`: the column that is its key."""
    columns = (
        f"{one.name} {_KINDS[one.kind]}" + (" PRIMARY KEY" if one.name == primary else "" if one.null else " NOT NULL")
        for one in TABLES[name]
    )
    return f"CREATE TABLE {name} ({', '.join(columns)})"


SCHEMA = (
    _table("steps", "id"),
    "CREATE INDEX steps_of_session ON steps (session, t)",
    "CREATE INDEX steps_by_time ON steps (time)",
    _table("outcomes"),
    "CREATE INDEX outcomes_of_session ON outcomes (session)",
    _table("abandoned"),
    "CREATE INDEX abandoned_of_session ON abandoned (session)",
    _table("tools", "session"),
    _table("verdicts", "session"),
    MODES,
    *ACCOUNTS,
    *IDENTITY,
    *REPLICAS,
    *KEYS,
    *ROLLUPS,
    *SESSION_STATES,
    *JOURNAL,
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
        "CREATE TABLE IF NOT EXISTS tools (session TEXT PRIMARY KEY, text TEXT NOT NULL)",
    ),
    3: ("ALTER TABLE steps ADD COLUMN alike INTEGER", "ALTER TABLE steps ADD COLUMN mode TEXT", MODES),
    4: (
        "CREATE TABLE verdicts (session TEXT PRIMARY KEY, name TEXT NOT NULL, rank INTEGER NOT NULL, value REAL NOT NULL, "
        "time REAL NOT NULL)",
    ),
    5: ("ALTER TABLE abandoned ADD COLUMN why TEXT", *ACCOUNTS, *IDENTITY, *KEYS, *ROLLUPS, *SESSION_STATES),
    6: ("ALTER TABLE abandoned ADD COLUMN id TEXT", *JOURNAL),
    7: REPLICAS,
}
"""Schema version -> the statements that make it the next one. They touch no step, so that a large ledger opens at once:
routes and records stay as r2v 0.1 wrote them, and `r2v.gateway.rows.entry_of` reads them as today's.
"""
OLD_VIEW = (
    "CREATE VIEW final_outcomes AS SELECT session, reward, time, '' verdict FROM outcomes WHERE rowid IN "
    "(SELECT MAX(rowid) FROM outcomes WHERE t IS NULL GROUP BY session) UNION ALL SELECT session, value, time, name FROM "
    "verdicts v WHERE NOT EXISTS (SELECT 1 FROM outcomes o WHERE o.session = v.session AND o.t IS NULL)"
)
"""Of schema 5."""
CODE = frozenset((OLD_VIEW, *(statement for statement in ROLLUPS if statement.startswith("CREATE TRIGGER"))))
"""What of a ledger computes."""
LONGEST_WAL = 25_000
"""Pages that are written before a step waits until they are in the database: 100 MB."""
OLD_ROWS = 500
"""Steps that are counted, or sessions that are deleted, in one transaction: writers wait for it some milliseconds."""
LATEST_OF_SESSION = "session = :session AND rowid > :row AND t > (SELECT MAX(t) FROM steps WHERE session = :session) - :most"
OF_SESSION = (
    "steps", "outcomes", "verdicts", "abandoned", "tools", "signatures", "session_states", "session_totals",
)  # fmt: skip
"""The tables that have rows of a session."""
_values_of = attrgetter(*COLUMNS[:-1])
_encoder = msgspec.json.Encoder()


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


class Ledger(LedgerReader):
    LATEST_OUTCOME = "rowid"

    def __init__(self, path: Path, *, owner: bool = False) -> None:
        """Opens or makes the ledger; one of an older version is migrated in place, in one transaction.

        Args:
            path: of its file.
            owner: serve from it: no other process may, until this one ends, and what was being served when the last one was
                killed is noted as abandoned.

        Raises:
            ArtifactError: the file is not a ledger, a newer r2v wrote it, or another process serves from it.
        """
        self._lock = None
        check_regular(path)  # a device or a pipe would be waited for
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if owner:
                self._lock = _locked(path)
            if str(path) != ":memory:" and not path.exists():  # it holds what people say; so do SQLite's files beside it
                with suppress(OSError):  # SQLite says what is wrong
                    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, RECORD_BYTES)
            self._db.execute("PRAGMA trusted_schema = OFF")
            _refuse_code(self._db, path)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")  # survives kill -9; the last steps may be lost with the power
            self.accounts = Accounts(self._db, path)
            if self._version() != VERSION:
                self._migrate(path)
            # For other threads: what is read on it may take as long as it likes, and no writing waits for it.
            self._reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._reader.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, RECORD_BYTES)
            self._reader.execute("PRAGMA query_only = ON")
            self._checkpointing, self._closed = threading.Lock(), False  # of the reader
            self.states, self.keys, self.journal = SessionStates(self._db), LedgerKeys(self._db), Journal(self._db)
            self.last_row = 0
            """Of the step that this process wrote last."""
            if owner:
                self.accounts.recover()
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            unwritable = any(word in str(error) for word in ("unable to open", "readonly"))
            what = "cannot be opened or written" if unwritable else "is not a ledger"
            raise ArtifactError(f"{path} {what} ({error}); choose another store.path") from None

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _migrate(self, path: Path) -> None:
        """All or nothing: until the last statement the file is one that the older version reads."""
        try:
            with self.accounts.transaction():
                version = self._version()  # read again: another process may have migrated it meanwhile
                if version > VERSION or (version and version < min(MIGRATIONS)):
                    raise ArtifactError(
                        f"{path} was written by another version of r2v (schema {version}, this one has {VERSION}); "
                        f"{'upgrade r2v' if version > VERSION else 'open it with r2v 0.1'} or choose another store.path"
                    )
                for statement in SCHEMA if version == 0 else [one for v in range(version, VERSION) for one in MIGRATIONS[v]]:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {VERSION}")
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        with self._checkpointing:
            self._closed = True
            self._reader.close()
        self._db.close()
        if self._lock is not None:
            self._lock.close()

    def defer_checkpoints(self) -> None:
        """Leave to `checkpoint` what else makes a step in fifty wait for the disk."""
        self._db.execute(f"PRAGMA wal_autocheckpoint = {LONGEST_WAL}")

    def checkpoint(self) -> None:
        """Move what was written into the database, in another thread than the one that writes."""
        with self._checkpointing, suppress(sqlite3.OperationalError):  # another process is at it
            if not self._closed:
                self._reader.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    @property
    def identity(self) -> str:
        """What tells this ledger from those of other replicas."""
        return str(self._db.execute("SELECT id FROM identity").fetchone()[0])

    def write(
        self,
        entry: Entry,
        tools: bytes | None = None,
        verdict: LastVerdict | None = None,
        lost: Amount = Amount(),  # noqa: B008
    ) -> None:
        """Write a step, and end its hold. Raises sqlite3.Error when it cannot be written; then the answer must not leave.

        Args:
            entry: the step.
            tools: JSON of what the session may call, kept once.
            verdict: the outcome of the session so far, where one is known.
            lost: what it may have cost beside what the entry says.
        """
        record = _encoder.encode(entry.step)
        if len(record) > (most := RECORD_BYTES // 2):
            raise sqlite3.DataError(f"a step of {len(record)} bytes; a row may have {most}")
        self.accounts.room = min(2 * len(record) + 8192, most)  # if it does not fit, the next step does not begin
        with self.accounts.transaction():
            self._insert(entry, record, tools, verdict)
            spent = Amount(entry.teacher_calls, entry.tokens, entry.slm_usd + entry.teacher_usd)
            self.accounts.release(entry.id, spent, lost, None)

    def _insert(self, entry: Entry, record: bytes, tools: bytes | None, verdict: LastVerdict | None) -> None:
        written = self._db.execute(INSERT["steps"], (*_values_of(entry), record))
        self.last_row = written.lastrowid or 0
        if tools is not None and tools != b"null":
            self._db.execute(f"{INSERT['tools']} ON CONFLICT DO NOTHING", ToolsRow(entry.session, tools.decode()))
        if verdict is not None:
            row = VerdictRow(entry.session, verdict.name, verdict.rank, verdict.value, entry.time)
            self._db.execute(f"{INSERT['verdicts']} {RENEW_VERDICT}", row)

    def outcome(self, session: str, t: int | None, reward: float) -> None:
        self._db.execute(INSERT["outcomes"], OutcomeRow(session, t, reward, time.time()))

    def count_old(self) -> int:
        """Count some of the steps that were written before there were totals, the latest of them first.

        Returns:
            How many rows are left.
        """
        with self.accounts.transaction():
            (high,) = self._db.execute("SELECT up_to FROM uncounted").fetchone()
            low = max(0, high - OLD_ROWS)
            rows = f"FROM steps WHERE steps.rowid > {low} AND steps.rowid <= {high}"
            for count in COUNTS:
                self._db.execute(count.format(row="steps", rows=rows))
            of_session = "WHERE session = s.session"
            for known, but in (
                (f"SELECT value, name, time FROM verdicts {of_session}", "verdict IS NULL"),
                (
                    f"SELECT reward, '', time FROM outcomes {of_session} AND t IS NULL ORDER BY rowid DESC",
                    "verdict IS NOT ''",
                ),
            ):
                self._db.execute(
                    f"UPDATE session_totals AS s SET (reward, verdict, ended) = ({known} LIMIT 1) "
                    f"WHERE {but} AND session IN (SELECT session {rows}) AND EXISTS ({known})"
                )
            self._db.execute("UPDATE uncounted SET up_to = ?", (low,))
        return int(low)

    def delete_old(self, before: float, shipped_to: str | None = None) -> int:
        """Delete some of the sessions whose last step is older than a time: all that is known of them, but not what they add
        to the sums of their days.

        Args:
            before: the time.
            shipped_to: only what has been shipped to the shared ledger of that identity; None: there is none.

        Returns:
            How many were deleted; 0 when none is left, or while steps of before are not counted yet.
        """
        with self.accounts.transaction():
            cursor = None if shipped_to is None else self.journal.cursor(shipped_to)
            rest = "".join(
                f"AND NOT EXISTS (SELECT 1 FROM {table} r WHERE r.session = s.session AND r.rowid > {row}) "
                for table, row in ({} if cursor is None else cursor._asdict()).items()
            )
            old = self._db.execute(
                "SELECT session, steps FROM session_totals s WHERE time < ? AND (SELECT up_to FROM uncounted) = 0 "
                f"{rest}ORDER BY time LIMIT ?",
                (before, OLD_ROWS),
            ).fetchall()
            steps, deleted = 0, 0
            for session, of_session in old:
                if deleted and steps + of_session > OLD_ROWS:
                    break
                steps, deleted = steps + of_session, deleted + 1
                self._db.execute(
                    "DELETE FROM comparisons WHERE (time, id) IN (SELECT time, id FROM steps WHERE session = ?)", (session,)
                )
                self._db.execute("DELETE FROM charges WHERE scope = ?", (f"session {session}",))
                for table in OF_SESSION:
                    self._db.execute(f"DELETE FROM {table} WHERE session = ?", (session,))
            if cursor is not None and not old:  # what came for sessions whose steps are gone, or in another journal
                for table, row in (("outcomes", cursor.outcomes), ("abandoned", cursor.abandoned)):
                    gone = "session NOT IN (SELECT session FROM session_totals)"
                    self._db.execute(f"DELETE FROM {table} WHERE rowid <= ? AND time < ? AND {gone}", (row, before))
            self.journal.clamp()
        return deleted

    def uncounted(self) -> int:
        ((left,),) = self._all("SELECT up_to FROM uncounted")
        return int(left)

    def _read(self, query: str, values: Mapping[str, Any]) -> tuple[list[str], list[tuple[Any, ...]]]:
        cursor = self._reader.execute(query, values)
        return [column[0] for column in cursor.description], cursor.fetchall()

    def batches(self, query: str, values: Mapping[str, Any], size: int) -> Iterator[list[tuple[Any, ...]]]:
        cursor = self._reader.execute(query, values)
        while rows := cursor.fetchmany(size):
            yield rows

    def later_steps(self, session: str, row: int, most: int) -> tuple[int, list[Entry]]:
        """(last row, steps) of what was written of a session after a row, 0 for its beginning, among its latest `most`
        steps: a long session costs no more than a short one.
        """
        rows = self._db.execute(
            f"SELECT rowid, {COLUMNS_OF['steps']} FROM steps WHERE {LATEST_OF_SESSION} ORDER BY t, time",
            {"session": session, "row": row, "most": most},
        ).fetchall()
        return max((last for last, *_ in rows), default=row), [entry_of(tuple(rest)) for _, *rest in rows]

    def has_between(self, session: str, row: int, most: int) -> bool:
        """Whether any of the latest `most` steps of the session was written after a row, and before the step that this
        process wrote last.
        """
        between = f"SELECT 1 FROM steps WHERE {LATEST_OF_SESSION} AND rowid < :last LIMIT 1"
        values = {"session": session, "row": row, "most": most, "last": self.last_row}
        return self._db.execute(between, values).fetchone() is not None

    def has(self, session: str) -> bool:
        return self._db.execute("SELECT 1 FROM steps WHERE session = ? LIMIT 1", (session,)).fetchone() is not None

    def mode(self) -> ModeChange | None:
        """The last change of the mode."""
        row = self._db.execute("SELECT * FROM modes ORDER BY rowid DESC LIMIT 1").fetchone()
        return None if row is None else ModeChange(*row)

    def set_mode(self, change: ModeChange) -> None:
        self._db.execute("INSERT INTO modes VALUES (?, ?, ?, ?, ?)", astuple(change))


def _locked(path: Path) -> sqlite3.Connection:
    """A lock beside the ledger, which ends with its process. Raises ArtifactError where another process has it."""
    lock = sqlite3.connect(path.with_name(path.name + ".lock"), timeout=0, isolation_level=None, check_same_thread=False)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        lock.close()
        raise ArtifactError(f"{path}: another gateway serves from it; stop that one, or choose another store.path") from None
    return lock


def _refuse_code(db: sqlite3.Connection, path: Path) -> None:
    """Refuse a database that computes what it seems to hold: views, triggers and generated columns run when it is used.

    Raises ArtifactError.
    """
    for kind, name, sql in db.execute("SELECT type, name, sql FROM sqlite_master"):
        ours = kind in ("table", "index") and "VIRTUAL" not in str(sql).upper()[:40]
        if kind == "table" and ours:
            ours = all(row[6] == 0 for row in db.execute("SELECT * FROM pragma_table_xinfo(?)", (name,)))
        if not ours and sql not in CODE:
            raise ArtifactError(f"{path} has the {kind} {name!r}, which no ledger of r2v has; it is not opened")
