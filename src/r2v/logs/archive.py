"""The archive of ledgers: Parquet by day (UTC), which DuckDB reads; what is in it may be deleted from the ledgers.

    FOLDER/day=2026-11-27/steps.REPLICA.parquet

Beside the steps lie `outcomes`, `verdicts`, `abandoned` and `tools`. Ledgers of several replicas are archived in one
folder, where their sessions are whole again. A step that two of them have is one.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from r2v.core.errors import ArtifactError
from r2v.core.untrusted import RECORD_BYTES, opened
from r2v.gateway.budgets import DAY
from r2v.gateway.reading import COLUMNS, QUIET_S, LedgerReader, WholeSession, checked, entry_of, picked
from r2v.logs.files import DAYS
from r2v.runtime.store import whole_file

MEMORY = "1GB"
"""Of DuckDB; what needs more is put aside on the disk."""
FETCHED = 1_000
"""Rows at a time."""
REPLICA = re.compile(r"[\w-]{1,64}")


@dataclass(frozen=True)
class _Table:
    """What of a ledger is archived."""

    columns: tuple[tuple[str, pa.DataType], ...]
    rows: str
    """FROM and WHERE, of the time from `:first` to before `:after`."""
    types: Any = None
    """Of a row that SQLite may hold anything in; None: `r2v.gateway.reading.checked` knows them."""


def _plain(name: str, columns: Sequence[tuple[str, pa.DataType]], types: Any) -> _Table:
    return _Table(tuple(columns), f"FROM {name} WHERE time >= :first AND time < :after", types)


_TEXT, _INT, _REAL = pa.string(), pa.int64(), pa.float64()
_KINDS = {
    **dict.fromkeys(("t", "tokens", "teacher_calls", "candidates"), _INT),
    **dict.fromkeys(
        ("time", "score", "threshold", "propensity", "slm_usd", "teacher_usd", "saved_usd", "overhead_ms"), _REAL
    ),
    "alike": pa.bool_(),
    "record": pa.binary(),
}
TABLES = {
    "steps": _plain("steps", [(name, _KINDS.get(name, _TEXT)) for name in COLUMNS], None),
    "outcomes": _plain(
        "outcomes",
        [("session", _TEXT), ("t", _INT), ("reward", _REAL), ("time", _REAL)],
        tuple[str, int | None, float, float],
    ),
    "verdicts": _plain(
        "verdicts",
        [("session", _TEXT), ("name", _TEXT), ("rank", _INT), ("value", _REAL), ("time", _REAL)],
        tuple[str, str, int, float, float],
    ),
    "abandoned": _plain(
        "abandoned",
        [
            ("session", _TEXT), ("key", _TEXT), ("time", _REAL), ("calls", _INT), ("tokens", _INT), ("usd", _REAL),
            ("why", _TEXT),
        ],
        tuple[str, str, float, int, int, float, str | None],
    ),
    "tools": _Table(
        (("session", _TEXT), ("text", _TEXT)),
        "FROM tools WHERE session IN (SELECT session FROM steps WHERE time >= :first AND time < :after)",
        tuple[str, str],
    ),
}  # fmt: skip


def write_archive(ledger: LedgerReader, replica: str, folder: Path) -> Iterator[tuple[str, int]]:
    """Write the days of a ledger that have ended, but those that the archive has as many rows of already.

    Args:
        ledger: which.
        replica: a name that no other ledger in this archive has.
        folder: of the archive.

    Yields:
        (day, steps of it) of each that was written.

    Raises:
        ArtifactError: the ledger holds a row that no gateway has written.
    """
    if not REPLICA.fullmatch(replica):
        raise ArtifactError(f"{replica[:80]!r} names no replica: it must be letters, digits, _ or -")
    span = ledger.span()
    if span is None:
        return
    for day in range(int(span[0] // DAY), int(time.time() // DAY)):
        values = {"first": day * DAY, "after": (day + 1) * DAY}
        name = time.strftime("%Y-%m-%d", time.gmtime(day * DAY))
        found = {table: ledger.count(f"SELECT COUNT(*) {TABLES[table].rows}", values) for table in TABLES}
        new = False
        for table, rows in found.items():
            path = folder / f"day={name}" / f"{table}.{replica}.parquet"
            if rows and (not path.exists() or _rows_in(path) < rows):
                _write(path, TABLES[table], ledger, values)
                new = True
        if new:
            yield name, found["steps"]


def _rows_in(path: Path) -> int:
    with opened(path) as file:
        try:
            return int(pq.ParquetFile(file).metadata.num_rows)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ArtifactError(f"{path} is no Parquet ({error}); delete it, and archive again") from None


def _write(path: Path, table: _Table, ledger: LedgerReader, values: dict[str, Any]) -> None:
    schema = pa.schema(list(table.columns))
    query = f"SELECT {', '.join(schema.names)} {table.rows}"
    with whole_file(path) as aside, pq.ParquetWriter(aside, schema, compression="zstd") as writer:
        for rows in ledger.batches(query, values, FETCHED):
            known = [checked(row) if table.types is None else msgspec.convert(row, table.types) for row in rows]
            columns = [list(column) for column in zip(*known, strict=True)]
            arrays = [pa.array(column, kind) for column, (_, kind) in zip(columns, table.columns, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


class Archive:
    """Reads an archive; of what is larger than memory, DuckDB keeps parts on the disk meanwhile."""

    def __init__(self, folder: Path) -> None:
        """Call `verify` before anything is read."""
        self._folder = folder
        self._aside = tempfile.TemporaryDirectory(prefix="r2v-archive-")
        self._db = duckdb.connect(
            config={
                "memory_limit": MEMORY, "threads": 2, "temp_directory": self._aside.name, "preserve_insertion_order": False,
            }
        )  # fmt: skip
        allowed = ", ".join(f"'{_quoted(path)}'" for path in (str(folder.resolve()), self._aside.name))
        self._ask(f"SET allowed_directories = [{allowed}]")
        self._ask("SET enable_external_access = false")
        self._ask("SET lock_configuration = true")

    def verify(self) -> None:
        """Open the files. Raises ArtifactError for what may not be read."""
        folder = self._folder
        for file in folder.glob(f"{DAYS}/*.parquet"):
            opened(file).close()
        for name, table in TABLES.items():
            files = _quoted(str(folder.resolve() / DAYS / f"{name}.*.parquet"))
            there = next(folder.glob(f"{DAYS}/{name}.*.parquet"), None)
            columns = ", ".join(f"CAST(NULL AS {_SQL[kind]}) AS {column}" for column, kind in table.columns)
            source = f"read_parquet('{files}')" if there else f"(SELECT {columns}) WHERE FALSE"
            names = ", ".join(column for column, _ in table.columns)
            self._ask(f"CREATE VIEW {name} AS SELECT {names} FROM {source}")

    def _ask(self, query: str, *, apart: bool = False) -> Any:
        """The result of a query, `apart` from others that are still being fetched. Raises ArtifactError."""
        try:
            return (self._db.cursor() if apart else self._db).execute(query)
        except duckdb.Error as error:
            raise _unreadable(self._folder, error) from None

    def steps_in_all(self) -> int:
        return int(self._ask("SELECT COUNT(*) FROM steps").fetchone()[0])

    def span(self) -> tuple[float, float] | None:
        first, last = self._ask("SELECT MIN(time), MAX(time) FROM steps").fetchone()
        return None if first is None else (first, last)

    def whole_sessions(self, most_steps: int | None = None) -> Iterator[WholeSession]:
        """As `LedgerReader.whole_sessions`."""
        named = self._ask(
            "SELECT session, arg_min(goal, time), COUNT(DISTINCT id) FROM steps GROUP BY session ORDER BY MIN(time), session"
        ).fetchall()
        names = [name for name, _ in picked(named, most_steps)]
        self._db.register("names", pa.table({"session": pa.array(names, _TEXT), "i": pa.array(range(len(names)), _INT)}))
        self._ask("CREATE OR REPLACE TABLE wanted AS SELECT * FROM names")
        ends = {name: (reward, verdict) for name, reward, verdict in self._ask(_ENDS).fetchall()}
        tools = _Merged(self._rows("SELECT i, any_value(text) FROM tools JOIN wanted USING (session) GROUP BY i ORDER BY i"))
        entries: list[Any] = []
        at = -1
        of_steps = ", ".join(f"s.{name}" for name in COLUMNS)
        rows = self._rows(f"SELECT i, {of_steps} FROM steps s JOIN wanted USING (session) ORDER BY i, t, time, id")
        for i, *row in rows:
            if len(row[-1]) > RECORD_BYTES:
                raise ArtifactError(f"{self._folder} holds a step of {len(row[-1])} bytes, more than a ledger takes")
            if i != at and entries:
                yield WholeSession(entries, ends.get(names[at]), tools.get(at))
                entries = []
            at = i
            entry = entry_of(tuple(row))
            if not entries or entry.id != entries[-1].id:  # two ledgers may hold the same step
                entries.append(entry)
        if entries:
            yield WholeSession(entries, ends.get(names[at]), tools.get(at))

    def _rows(self, query: str) -> Iterator[tuple[Any, ...]]:
        result = self._ask(query, apart=True)
        try:
            while rows := result.fetchmany(FETCHED):
                yield from rows
        except duckdb.Error as error:
            raise _unreadable(self._folder, error) from None

    def close(self) -> None:
        self._db.close()
        self._aside.cleanup()


_SQL = {_TEXT: "VARCHAR", _INT: "BIGINT", _REAL: "DOUBLE", pa.bool_(): "BOOLEAN", pa.binary(): "BLOB"}
_ENDS = f"""
SELECT session, COALESCE(sent, value), CASE WHEN sent IS NULL THEN name ELSE '' END FROM wanted
LEFT JOIN (SELECT session, arg_max(reward, time) AS sent FROM outcomes WHERE t IS NULL GROUP BY session) USING (session)
LEFT JOIN (SELECT session, arg_min(value, (rank, -time)) AS value, arg_min(name, (rank, -time)) AS name
           FROM verdicts WHERE session IN (SELECT session FROM steps GROUP BY session HAVING MAX(time) <=
           (SELECT {DAY} * (1 + floor(MAX(time) / {DAY})) - {QUIET_S} FROM steps)) GROUP BY session) USING (session)
WHERE sent IS NOT NULL OR value IS NOT NULL
"""
"""The outcome of each session that has one; one that had a step shortly before the archive ends may go on, and its verdict
is none yet.
"""


class _Merged:
    """Texts by number, from rows in the order of the numbers, asked for in that order."""

    def __init__(self, rows: Iterator[tuple[Any, ...]]) -> None:
        self._rows = rows
        self._next: tuple[Any, ...] | None = next(rows, None)

    def get(self, number: int) -> str:
        while self._next is not None and self._next[0] < number:
            self._next = next(self._rows, None)
        return str(self._next[1]) if self._next is not None and self._next[0] == number else ""


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def _unreadable(folder: Path, error: duckdb.Error) -> ArtifactError:
    return ArtifactError(f"{folder} cannot be read as an archive ({str(error).splitlines()[0]})")
