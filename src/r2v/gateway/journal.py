"""The ledger of one replica as a journal: which of its rows have been shipped to the shared ledger, and which are next."""

from __future__ import annotations

import json
import logging
import sqlite3
from typing import Any, NamedTuple, TypeVar

import msgspec

from r2v.gateway.rows import COLUMNS_OF, AbandonedRow, OutcomeRow, ToolsRow, VerdictRow, checked

SCHEMA = (
    "CREATE TABLE shipped (ledger TEXT PRIMARY KEY, steps INTEGER NOT NULL, outcomes INTEGER NOT NULL, "
    "abandoned INTEGER NOT NULL) WITHOUT ROWID",
)
BATCH_ROWS, BATCH_BYTES = 500, 4_000_000
"""Of one shipment, at most (the first row of any size)."""
Row = tuple[Any, ...]
R = TypeVar("R")


class Cursor(NamedTuple):
    """The last row of each table that has been shipped."""

    steps: int = 0
    outcomes: int = 0
    abandoned: int = 0

    def at_most(self, other: Cursor) -> Cursor:
        return Cursor(*map(min, self, other))


class Batch(NamedTuple):
    """Rows that are shipped together."""

    steps: list[Row]
    """`r2v.gateway.rows.COLUMNS`."""
    outcomes: list[OutcomeRow]
    """The earliest first."""
    abandoned: list[AbandonedRow]
    verdicts: list[VerdictRow]
    """Of the sessions of these steps."""
    tools: list[ToolsRow]
    after: Cursor

    @property
    def rows(self) -> int:
        return len(self.steps) + len(self.outcomes) + len(self.abandoned)


class Journal:
    """In the database of a ledger. Every method raises sqlite3.Error."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def cursor(self, ledger: str) -> Cursor:
        """What has been shipped to the shared ledger of that identity; of an empty one, to the one that has most."""
        query = "SELECT steps, outcomes, abandoned FROM shipped WHERE ledger = ?1 OR ?1 = '' ORDER BY steps DESC LIMIT 1"
        row = self._db.execute(query, (ledger,)).fetchone()
        return Cursor() if row is None else Cursor(*row)

    def keep(self, ledger: str, cursor: Cursor) -> None:
        self._db.execute("INSERT OR REPLACE INTO shipped VALUES (?, ?, ?, ?)", (ledger, *cursor))

    def last(self) -> Cursor:
        """The last row of each table."""
        ends = (f"(SELECT COALESCE(MAX(rowid), 0) FROM {table})" for table in Cursor._fields)
        return Cursor(*self._db.execute(f"SELECT {', '.join(ends)}").fetchone())

    def clamp(self) -> None:
        """No cursor lies behind the last row: SQLite gives the numbers of the last rows out again once these are deleted.
        Part of the transaction that deletes.
        """
        ends = ", ".join(
            f"{table} = MIN({table}, (SELECT COALESCE(MAX(rowid), 0) FROM {table}))" for table in Cursor._fields
        )
        self._db.execute(f"UPDATE shipped SET {ends}")

    def next(self, cursor: Cursor, identity: str) -> Batch:
        """What comes after a cursor.

        Args:
            cursor: what has been shipped.
            identity: of this ledger, for rows that older versions wrote without a name.

        Raises:
            what `r2v.runtime.store.MALFORMED` lists where a row that is no step is none that a gateway writes.
        """
        steps: list[Row] = []
        last, size = cursor.steps, 0
        query = f"SELECT rowid, {COLUMNS_OF['steps']} FROM steps WHERE rowid > ? ORDER BY rowid LIMIT ?"
        found = self._db.execute(query, (cursor.steps, BATCH_ROWS))
        for row, *values in found:
            size += len(values[-1])
            if steps and size > BATCH_BYTES:
                break
            try:
                steps.append(checked(tuple(values)))
            except msgspec.ValidationError as error:  # the others are not to wait for it for ever
                logging.getLogger("uvicorn.error").error(
                    "step %.80s is not shipped: no gateway wrote it (%s)", values[0], error
                )
            last = row
        found.close()  # what is open keeps the database from moving its log
        outcomes, last_outcome = self._rows(COLUMNS_OF["outcomes"], "outcomes", cursor.outcomes)
        named = f"{', '.join(AbandonedRow._fields[:-1])}, COALESCE(id, '{identity}-' || rowid)"
        abandoned, last_abandoned = self._rows(named, "abandoned", cursor.abandoned)
        of = "SELECT {} FROM {} WHERE session IN (SELECT value FROM json_each(?))"
        sessions = json.dumps(sorted({row[1] for row in steps}))
        verdicts = self._db.execute(of.format(COLUMNS_OF["verdicts"], "verdicts"), (sessions,)).fetchall()
        begun = "AND NOT EXISTS (SELECT 1 FROM steps WHERE steps.session = tools.session AND steps.rowid <= ?)"
        of_tools = f"{of.format(COLUMNS_OF['tools'], 'tools')} {begun}"
        tools = self._db.execute(of_tools, (sessions, cursor.steps)).fetchall()
        return Batch(
            steps, _as(outcomes, OutcomeRow), _as(abandoned, AbandonedRow), _as(verdicts, VerdictRow), _as(tools, ToolsRow),
            Cursor(last, last_outcome, last_abandoned),
        )  # fmt: skip

    def _rows(self, columns: str, table: str, after: int) -> tuple[list[Row], int]:
        """(rows, the number of the last)."""
        query = f"SELECT rowid, {columns} FROM {table} WHERE rowid > ? ORDER BY rowid LIMIT ?"
        rows = self._db.execute(query, (after, BATCH_ROWS)).fetchall()
        return [tuple(values) for _, *values in rows], rows[-1][0] if rows else after


def _as(rows: list[Row], kind: type[R]) -> list[R]:
    """Rows whose values have their types."""
    return [msgspec.convert(row, kind, strict=False) for row in rows]
