"""The shared ledger: Postgres, to which every replica ships the rows of its journal, and where all of them are read.

A shipment is one transaction: its rows, what they add to the totals, and how far the journal has been shipped. Rows that
come twice change nothing; the totals do not depend on the order in which rows come. One shipment at a time counts (an
advisory lock), so that no two of them wait for each other's rows, and none overlooks what another has just added.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, TypeVar

import psycopg

from r2v.core.errors import ArtifactError, SettingsError
from r2v.core.types import SOLVED
from r2v.gateway.journal import BATCH_ROWS, Batch, Cursor, Journal
from r2v.gateway.postgres_link import Connection, Link, OutOfReach, connect, first_line, is_refusal
from r2v.gateway.postgres_url import shown
from r2v.gateway.reading import NAMED, LedgerReader, WholeSession, picked
from r2v.gateway.rows import COLUMNS_OF, RENEW_VERDICT, TABLES, OutcomeRow, entry_of

VERSION = 1
"""Of the schema: there is a file of statements for each, NNNN.sql."""
LOCK = 0x723276
"""Of shipments, deletions and migrations."""
LIVE_S = 20
"""A replica that has not reported for so long is gone."""
_KINDS = {str: "text", int: "int8", float: "float8", bool: "int8", bytes: "bytea"}
TYPES = {table: [_KINDS[column.kind] for column in columns] for table, columns in TABLES.items()}
"""Of the columns of `TABLES`."""
NUL = "\N{SYMBOL FOR NULL}"
"""Stands for a NUL character, which no text of Postgres may hold."""
OLD_SESSIONS, READ_STEPS, READ_SESSIONS = 200, 2_000, 500
"""Deleted in one transaction; read at once of many sessions: about so many steps, and at most so many sessions."""
OF_SESSION = ("steps", "outcomes", "verdicts", "abandoned", "tools", "session_totals")
T = TypeVar("T")
_VALUE = re.compile(r":(\w+)")


class SharedLedger(LedgerReader):
    """What it reads raises OutOfReach where Postgres does not answer."""

    LATEST_OUTCOME = "time"

    def __init__(self, url: str) -> None:
        """Connects when it is first used."""
        self._url, self.name = url, shown(url)
        self._writer, self._reader = Link(url), Link(url, "SET default_transaction_read_only = on")

    def close(self) -> None:
        self._writer.drop()
        self._reader.drop()

    def abort(self) -> None:
        """End what is being done in any thread, and do nothing more."""
        self._writer.abort()
        self._reader.abort()

    # -- schema -----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make or migrate the schema. Raises OutOfReach, SettingsError, ArtifactError."""
        self._asked(lambda: self._writer.run(_migrate))

    def verify(self) -> None:
        """Whether it can be read: raises OutOfReach, SettingsError, ArtifactError where not."""
        if self._asked(lambda: self._reader.run(_version)) != VERSION:
            raise ArtifactError(
                f"{self.name} holds no ledger of this version of r2v; start a gateway on it, or `r2v ship` to it"
            )

    def _asked(self, ask: Callable[[], T]) -> T:
        """Raises SettingsError where the server refuses, not where it is out of reach."""
        try:
            return ask()
        except OutOfReach as error:
            if is_refusal(error):
                raise SettingsError(f"the shared ledger refuses ({error}); mend store.url, or its password") from None
            raise

    # -- replicas ---------------------------------------------------------------------------------------------------

    def join(self, replica: str, *, alone: bool) -> None:
        """Take part as a replica.

        Args:
            replica: identity of its journal.
            alone: it keeps budgets by itself, not in a Redis.

        Raises:
            SettingsError: another one runs, and one of the two keeps budgets by itself.
            OutOfReach: Postgres does not answer.
        """

        def work(connection: Connection) -> str | None:
            with _locked(connection):
                row = connection.execute(
                    "SELECT id FROM replicas WHERE id <> %s AND seen > now() - %s * interval '1 second' AND (alone OR %s)",
                    (replica, LIVE_S, alone),
                ).fetchone()
                if row is None:
                    connection.execute(
                        "INSERT INTO replicas (id, seen, alone) VALUES (%s, now(), %s) "
                        "ON CONFLICT (id) DO UPDATE SET seen = now(), alone = excluded.alone",
                        (replica, alone),
                    )
            return None if row is None else str(row[0])

        if other := self._writer.run(work):
            raise SettingsError(
                f"another gateway (journal {other}) ships to {self.name}, and budgets would be kept twice: set "
                f"store.redis_env on both, or stop it (one that was killed is forgotten after {LIVE_S} s)"
            )

    def leave(self, replica: str) -> None:
        self._writer.run(lambda c: c.execute("UPDATE replicas SET seen = '-infinity' WHERE id = %s", (replica,)))

    def report(self, replica: str) -> tuple[str, Cursor]:
        """Say that a replica lives. Returns the identity of this shared ledger, and how far the journal has come."""

        def work(connection: Connection) -> tuple[str, Cursor]:
            connection.execute("UPDATE replicas SET seen = now() WHERE id = %s", (replica,))
            return _position(connection, replica)

        return self._writer.run(work)

    # -- shipments --------------------------------------------------------------------------------------------------

    def ship(self, journal: Journal, replica: str) -> tuple[str, Cursor, int]:
        """Ship the next rows of a journal.

        Returns:
            (identity of this shared ledger, how far the journal has come, how many rows were shipped).

        Raises:
            OutOfReach: Postgres does not answer; what is not shipped is shipped by the next call.
            ArtifactError: it does not take them.
        """

        def work(connection: Connection) -> tuple[str, Cursor, int]:
            with connection.transaction():
                identity, cursor = _position(connection, replica)
                # The server may have lost what the journal knows as shipped; SQLite may have begun its numbers anew.
                batch = journal.next(cursor.at_most(journal.cursor(identity)), replica)
                if batch.rows >= BATCH_ROWS:  # the shipment after it is durable, and with it this one, or neither counts
                    connection.execute("SET LOCAL synchronous_commit = off")
                _add(connection, batch)
                connection.execute(
                    "INSERT INTO replicas VALUES (%s, '-infinity', FALSE, %s, %s, %s) ON CONFLICT (id) DO UPDATE "
                    "SET steps = excluded.steps, outcomes = excluded.outcomes, abandoned = excluded.abandoned",
                    (replica, *batch.after),
                )
            return identity, batch.after, batch.rows

        identity, cursor, rows = self._writer.run(work)
        journal.keep(identity, cursor)
        return identity, cursor, rows

    def restart(self, replica: str) -> None:
        """Forget how far a journal has come: all of it is shipped again, and what is here already changes nothing."""
        again = "UPDATE replicas SET steps = 0, outcomes = 0, abandoned = 0 WHERE id = %s"
        self._writer.run(lambda connection: connection.execute(again, (replica,)))

    def delete_old(self, before: float) -> int:
        """Delete some of the sessions whose last step is older than a time, but not what they add to the sums of their days.

        Returns:
            How many were deleted; 0 when none is left.
        """

        def work(connection: Connection) -> int:
            with _locked(connection):
                old = "SELECT session FROM session_totals WHERE time < %s ORDER BY time LIMIT %s"
                sessions = [session for (session,) in connection.execute(old, (before, OLD_SESSIONS)).fetchall()]
                for table in OF_SESSION if sessions else ():
                    connection.execute(f"DELETE FROM {table} WHERE session = ANY(%s)", (sessions,))
            return len(sessions)

        return self._writer.run(work)

    # -- reading ----------------------------------------------------------------------------------------------------

    def _read(self, query: str, values: Mapping[str, Any]) -> tuple[list[str], list[tuple[Any, ...]]]:
        def work(connection: Connection) -> tuple[list[str], list[tuple[Any, ...]]]:
            cursor = _ask(connection, query, values)
            return [column.name for column in cursor.description or ()], cursor.fetchall()

        return self._reader.run(work)

    def span(self) -> tuple[float, float] | None:
        ((first, last),) = self._all(
            "SELECT (SELECT MIN(begun) FROM session_totals), (SELECT MAX(time) FROM session_totals)"
        )
        return None if first is None else (first, last)

    def whole_sessions(self, most_steps: int | None = None) -> Iterator[WholeSession]:
        """On a connection of its own, as all of them were when it began; some are held at a time."""
        try:
            with connect(self._url) as connection, connection.transaction():
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                names: list[str] = []
                steps = 0
                for name, of_session in picked(_ask(connection, NAMED, {}), most_steps):
                    if names and (steps + of_session > READ_STEPS or len(names) == READ_SESSIONS):
                        yield from _whole(connection, names)
                        names, steps = [], 0
                    names.append(name)
                    steps += of_session
                yield from _whole(connection, names)
        except psycopg.Error as error:
            raise OutOfReach(f"{self.name}: {first_line(error)}") from None

    def batches(self, query: str, values: Mapping[str, Any], size: int) -> Iterator[list[tuple[Any, ...]]]:
        """On a connection of its own."""
        try:
            with connect(self._url) as connection, connection.transaction(), connection.cursor("rows") as cursor:
                cursor.execute(*_translated(query, values))
                while rows := cursor.fetchmany(size):
                    yield rows
        except psycopg.Error as error:
            raise OutOfReach(f"{self.name}: {first_line(error)}") from None

    def all_sessions(self) -> Iterator[str]:
        for (session,) in self._all("SELECT session FROM session_totals ORDER BY begun, session"):
            yield session


def _ask(connection: Connection, query: str, values: Mapping[str, Any]) -> psycopg.Cursor[tuple[Any, ...]]:
    return connection.execute(*_translated(query, values))


def _translated(query: str, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A question as `LedgerReader` writes it, in the words of Postgres."""
    written = _VALUE.sub(r"%(\1)s", query).replace("instr(", "strpos(")
    return written, {name: _text(value) for name, value in values.items()}


def _text(value: Any) -> Any:
    return value.replace("\0", NUL) if isinstance(value, str) else value


@contextmanager
def _locked(connection: Connection) -> Iterator[None]:
    """A transaction, one at a time."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        yield


def _version(connection: Connection) -> int:
    """Of the schema; 0 where there is none. Raises ArtifactError."""
    (known,) = connection.execute("SELECT to_regclass('r2v_schema') IS NOT NULL").fetchone() or (False,)
    if not known:
        return 0
    (version,) = connection.execute("SELECT COALESCE(MAX(version), 0) FROM r2v_schema").fetchone() or (0,)
    if version > VERSION:
        raise ArtifactError(
            f"the shared ledger was made by a newer r2v (schema {version}, this one has {VERSION}); upgrade r2v"
        )
    return int(version)


def _migrate(connection: Connection) -> None:
    with _locked(connection):  # before anything is looked up: a session remembers what it has not found
        version = _version(connection)
        (encoding,) = connection.execute("SHOW server_encoding").fetchone() or ("?",)
        if encoding != "UTF8":
            raise ArtifactError(f"the shared ledger has the encoding {encoding}; make a database with ENCODING 'UTF8'")
        if version == 0:
            connection.execute("CREATE TABLE r2v_schema (version BIGINT NOT NULL, time TIMESTAMPTZ NOT NULL DEFAULT now())")
        for number in range(version + 1, VERSION + 1):
            connection.execute(_statements(f"{number:04}"))
            connection.execute("INSERT INTO r2v_schema (version) VALUES (%s)", (number,))


def _statements(name: str) -> str:
    return files("r2v.gateway").joinpath("postgres", f"{name}.sql").read_text("utf-8")


def _position(connection: Connection, replica: str) -> tuple[str, Cursor]:
    """Identity of the shared ledger, and how far the journal of a replica has come."""
    (identity,) = connection.execute("SELECT id FROM identity").fetchone() or ("",)
    row = connection.execute("SELECT steps, outcomes, abandoned FROM replicas WHERE id = %s", (replica,)).fetchone()
    return identity, Cursor() if row is None else Cursor(*row)


def _add(connection: Connection, batch: Batch) -> None:
    """Add rows, and what the new ones of them change in the totals: part of the transaction that is open."""
    if batch.steps:
        connection.execute("CREATE TEMP TABLE IF NOT EXISTS shipped_steps (LIKE steps) ON COMMIT DELETE ROWS")
        copied = f"COPY shipped_steps ({COLUMNS_OF['steps']}) FROM STDIN (FORMAT BINARY)"
        with connection.cursor() as cursor, cursor.copy(copied) as copy:
            copy.set_types(TYPES["steps"])
            for row in batch.steps:
                copy.write_row([_text(value) for value in row])
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
    if batch.steps:
        connection.execute(_statements("count_steps"))
    if batch.abandoned:
        connection.execute(_statements("count_abandoned").format(insert=_insert("abandoned")), _columns(batch.abandoned))
    if batch.tools:
        connection.execute(f"{_insert('tools')} ON CONFLICT DO NOTHING", _columns(batch.tools))
    if batch.outcomes:
        connection.execute(
            f"{_insert('outcomes')} ON CONFLICT (session, COALESCE(t, -1)) DO UPDATE "
            "SET reward = excluded.reward, time = excluded.time WHERE excluded.time >= outcomes.time",
            _columns(_latest(batch.outcomes)),
        )
    if batch.verdicts:
        connection.execute(f"{_insert('verdicts')} {RENEW_VERDICT}", _columns(batch.verdicts))
    sessions = {row[1] for row in batch.steps} | {row.session for row in batch.outcomes if row.t is None}
    if sessions:
        values = {"sessions": [_text(session) for session in sorted(sessions)], "bound": SOLVED}
        connection.execute(_statements("count_ends"), values)


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [[_text(value) for value in column] for column in zip(*rows, strict=True)]


def _insert(table: str) -> str:
    """A statement that takes a list of each column."""
    lists = ", ".join(f"%s::{kind}[]" for kind in TYPES[table])
    return f"INSERT INTO {table} ({COLUMNS_OF[table]}) SELECT * FROM unnest({lists})"


def _latest(outcomes: Sequence[OutcomeRow]) -> list[OutcomeRow]:
    """The latest for each step of a session: one statement may not change a row twice."""
    found: dict[tuple[str, int | None], OutcomeRow] = {}
    for row in outcomes:
        known = found.get((row.session, row.t))
        if known is None or row.time >= known.time:
            found[row.session, row.t] = row
    return list(found.values())


def _whole(connection: Connection, names: list[str]) -> Iterator[WholeSession]:
    """All that is known of some sessions, in their order."""
    these = {"names": names}
    steps: dict[str, list[Any]] = {name: [] for name in names}
    query = f"SELECT {COLUMNS_OF['steps']} FROM steps WHERE session = ANY(:names) ORDER BY session, t, time"
    for row in _ask(connection, query, these):
        entry = entry_of(row)
        steps[entry.session].append(entry)
    ends = _ask(connection, "SELECT session, reward, verdict FROM session_totals WHERE session = ANY(:names)", these)
    outcomes = {session: None if reward is None else (reward, verdict) for session, reward, verdict in ends}
    tools = dict(_ask(connection, "SELECT session, text FROM tools WHERE session = ANY(:names)", these).fetchall())
    for name in names:
        if steps[name]:
            yield WholeSession(steps[name], outcomes.get(name), tools.get(name, ""))
