"""The archive of ledgers: Parquet by day (UTC), which DuckDB reads; what is in it may be deleted from the ledgers.

    FOLDER/day=2026-11-27/steps.REPLICA.parquet

Beside the steps lie `outcomes`, `verdicts`, `abandoned` and `tools`. Ledgers of several replicas are archived in one
folder, where their sessions are whole again. A step that two of them have is one.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from types import GenericAlias
from typing import Any

import duckdb
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from r2v.core.errors import ArtifactError
from r2v.core.untrusted import RECORD_BYTES, opened
from r2v.gateway.budgets import DAY
from r2v.gateway.reading import QUIET_S, LedgerReader, WholeSession, picked
from r2v.gateway.rows import COLUMNS, TABLES, Entry, checked, entry_of
from r2v.logs.files import DAYS
from r2v.runtime.store import whole_file

MEMORY = "1GB"
"""Of DuckDB; what needs more is put aside on the disk."""
FETCHED = 1_000
"""Rows at a time."""
PARTITION_BYTES, SESSION_BYTES = 64e6, 2_000
"""Of the sessions that are sorted together, and of one beside its records."""
STEPS, TOOLS = 20_000, 1_000
"""Steps that are taken apart at a time, fewer where they are long; and lists of tools."""
REPLICA = re.compile(r"[\w-]{1,64}")


@dataclass(frozen=True)
class _Table:
    """What of a ledger is archived."""

    columns: tuple[tuple[str, pa.DataType], ...]
    rows: str
    """FROM and WHERE, of the time from `:first` to before `:after`."""
    types: Any
    """Of a row that SQLite may hold anything in; None: `r2v.gateway.rows.checked` knows them."""


_TEXT, _INT = pa.string(), pa.int64()
_KINDS = {str: _TEXT, int: _INT, float: pa.float64(), bool: pa.bool_(), bytes: pa.binary()}
_OF_DAY = "time >= :first AND time < :after"


def _table(name: str) -> _Table:
    columns = [one for one in TABLES[name] if (name, one.name) != ("abandoned", "id")]  # older rows have none
    timed = any(one.name == "time" for one in columns)
    return _Table(
        tuple((one.name, _KINDS[one.kind]) for one in columns),
        f"FROM {name} WHERE {_OF_DAY if timed else f'session IN (SELECT session FROM steps WHERE {_OF_DAY})'}",
        None if name == "steps" else GenericAlias(tuple, tuple(one.type for one in columns)),
    )


ARCHIVED = {name: _table(name) for name in TABLES}


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
        found = {table: ledger.count(f"SELECT COUNT(*) {ARCHIVED[table].rows}", values) for table in ARCHIVED}
        new = False
        for table, rows in found.items():
            path = folder / f"day={name}" / f"{table}.{replica}.parquet"
            if rows and (not path.exists() or _rows_in(path) < rows):
                _write(path, ARCHIVED[table], ledger, values)
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
        self._spill = tempfile.TemporaryDirectory(prefix="r2v-archive-")
        self._db = duckdb.connect(
            config={
                "memory_limit": MEMORY, "threads": 2, "temp_directory": self._spill.name, "preserve_insertion_order": False,
                "arrow_large_buffer_size": True,
            }
        )  # fmt: skip
        allowed = ", ".join(f"'{_quoted(path)}'" for path in (str(folder.resolve()), self._spill.name))
        self._ask(f"SET allowed_directories = [{allowed}]")
        self._ask("SET enable_external_access = false")
        self._ask("SET lock_configuration = true")

    def verify(self) -> None:
        """Open the files. Raises ArtifactError for what may not be read."""
        folder = self._folder
        for file in folder.glob(f"{DAYS}/*.parquet"):
            opened(file).close()
        for name, table in ARCHIVED.items():
            files = _quoted(str(folder.resolve() / DAYS / f"{name}.*.parquet"))
            there = next(folder.glob(f"{DAYS}/{name}.*.parquet"), None)
            columns = ", ".join(f"CAST(NULL AS {_SQL[kind]}) AS {column}" for column, kind in table.columns)
            source = f"SELECT {columns} WHERE FALSE"
            if there:  # in files of older versions some columns may be missing
                source += f" UNION ALL BY NAME SELECT * FROM read_parquet('{files}', union_by_name = true)"
            names = ", ".join(column for column, _ in table.columns)
            self._ask(f"CREATE VIEW {name} AS SELECT {names} FROM ({source})")

    def _ask(self, query: str) -> Any:
        """The result of a query. Raises ArtifactError."""
        try:
            return self._db.execute(query)
        except duckdb.Error as error:
            raise _unreadable(self._folder, error) from None

    def steps_in_all(self) -> int:
        return int(self._ask("SELECT COUNT(*) FROM steps").fetchone()[0])

    def span(self) -> tuple[float, float] | None:
        first, last = self._ask("SELECT MIN(time), MAX(time) FROM steps").fetchone()
        return None if first is None else (first, last)

    def whole_sessions(self, most_steps: int | None = None) -> Iterator[WholeSession]:
        """As `LedgerReader.whole_sessions`."""
        of_sessions = (
            "SELECT session, arg_min(goal, time), COUNT(DISTINCT id), SUM(octet_length(record)) FROM steps "
            "GROUP BY session ORDER BY MIN(time), session"
        )
        named = self._ask(of_sessions).fetchall()
        sizes = {name: size for name, _, _, size in named}
        names = [name for name, _ in picked(((name, goal, steps) for name, goal, steps, _ in named), most_steps)]
        parts = _numbered([sizes[name] for name in names])
        columns = {"session": pa.array(names, _TEXT), "i": pa.array(range(len(names)), _INT), "part": pa.array(parts, _INT)}
        self._db.register("names", pa.table(columns))
        self._ask("CREATE OR REPLACE TABLE wanted AS SELECT * FROM names")
        ends = {name: (reward, verdict) for name, reward, verdict in self._ask(_ENDS).fetchall()}
        at_once = min(STEPS, int(1 + PARTITION_BYTES * sum(steps for _, _, steps, _ in named) / (1 + sum(sizes.values()))))
        of_steps = ", ".join(f"s.{name}" for name in COLUMNS)
        steps = self._by_part("steps", f"SELECT part, i, {of_steps} FROM steps s JOIN wanted USING (session)", at_once)
        tools = self._by_part("tools", "SELECT part, i, text FROM tools JOIN wanted USING (session)", TOOLS)
        for part in sorted(set(parts)):
            offered = dict(tools.rows(part, "i"))
            for i, rows in groupby(steps.rows(part, "i", "t", "time", "id"), key=itemgetter(0)):
                yield WholeSession(self._entries(rows), ends.get(names[i]), offered.get(i, ""))

    def _entries(self, rows: Iterable[tuple[Any, ...]]) -> list[Entry]:
        entries: list[Entry] = []
        for _, *row in rows:
            if len(row[-1]) > RECORD_BYTES:
                raise ArtifactError(f"{self._folder} holds a step of {len(row[-1])} bytes, more than a ledger takes")
            entry = entry_of(tuple(row))
            if not entries or entry.id != entries[-1].id:  # two ledgers may hold the same step
                entries.append(entry)
        return entries

    def _by_part(self, name: str, query: str, at_once: int) -> _Partitions:
        try:
            return _Partitions(Path(self._spill.name) / name, self._db.cursor().sql(query).to_arrow_reader(at_once))
        except (duckdb.Error, pa.ArrowException) as error:
            raise _unreadable(self._folder, error) from None

    def close(self) -> None:
        self._db.close()
        self._spill.cleanup()


_SQL = {_TEXT: "VARCHAR", _INT: "BIGINT", pa.float64(): "DOUBLE", pa.bool_(): "BOOLEAN", pa.binary(): "BLOB"}
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


class _Partitions:
    """Rows kept aside in a file, of which each part is read alone: DuckDB's own sort of rows that do not fit into memory
    takes hours of what this takes minutes of.
    """

    def __init__(self, path: Path, rows: pa.RecordBatchReader) -> None:
        """Column `part` says of each row to which part it belongs."""
        self._batches: dict[int, list[int]] = {}
        written = 0
        with pa.ipc.new_file(str(path), rows.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as file:
            for batch in rows:
                batch = batch.sort_by("part")
                numbers = batch.column("part").to_numpy()
                ends = [*(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
                for start, end in pairwise([0, *ends]):
                    if start < end:
                        file.write_batch(batch.slice(start, end - start))
                        self._batches.setdefault(int(numbers[start]), []).append(written)
                        written += 1
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        with suppress(OSError):  # a kill leaves nothing of it; Windows does not allow that
            path.unlink()

    def rows(self, part: int, *order: str) -> Iterator[tuple[Any, ...]]:
        """The rows of a part, without its number, in the order of some columns."""
        batches = [self._file.get_batch(i) for i in self._batches.get(part, ())]
        table = pa.Table.from_batches(batches, self._file.schema).drop_columns("part")
        table = table.sort_by([(column, "ascending") for column in order])
        for batch in table.to_batches(max_chunksize=FETCHED):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _numbered(sizes: Sequence[int]) -> list[int]:
    """The part of each session: neighbours lie in one, which `PARTITION_BYTES` bounds."""
    return [int(end // PARTITION_BYTES) for end in np.cumsum(np.asarray(sizes, dtype=np.float64) + SESSION_BYTES)]


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def _unreadable(folder: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"{folder} cannot be read as an archive ({str(error).splitlines()[0]})")
