"""The rows of a ledger, and the one declaration of their columns.

A new ledger in SQLite, what is shipped to Postgres, and the archive are made of `TABLES`. Migrations (`MIGRATIONS` in
`ledger.py`, `postgres/*.sql`) and `deploy/clickhouse.sql` are written out; tests compare what they make with it. A new
column is a field here, and a line in each of these three.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType
from typing import Any, NamedTuple, get_args, get_type_hints

import msgspec

from r2v.core.types import ScoreKind, Step


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
    """In the column `record`, the last one."""
    alike: bool | None = None
    """Whether the SLM's best candidate did what the teacher's answer did; None: not compared, or not comparable."""
    mode: str | None = None
    """`r2v.gateway.modes.Part.name` of the step; None in rows that older versions wrote."""


class OutcomeRow(NamedTuple):
    """An outcome that was sent."""

    session: str
    t: int | None
    """None: of the whole session."""
    reward: float
    time: float


class VerdictRow(NamedTuple):
    """The last verdict known of a session: its outcome where none was sent."""

    session: str
    name: str
    rank: int
    value: float
    time: float


class AbandonedRow(NamedTuple):
    """What a step that left no row may have cost."""

    session: str
    key: str
    time: float
    calls: int
    tokens: int
    usd: float
    why: str | None
    id: str | None
    """None in rows that older versions wrote."""


class ToolsRow(NamedTuple):
    """What a session was offered when it began."""

    session: str
    text: str


class Column(NamedTuple):
    name: str
    type: Any
    """Of its values in Python."""

    @property
    def kind(self) -> type:
        """str, int, float, bool or bytes."""
        kind = next(iter(get_args(self.type)), self.type)
        return kind if isinstance(kind, type) else str  # of literals

    @property
    def null(self) -> bool:
        return NoneType in get_args(self.type)


def _columns(row: type) -> tuple[Column, ...]:
    return tuple(Column(*field) for field in get_type_hints(row).items() if field[1] is not Step)


TABLES = {
    "steps": (*_columns(Entry), Column("record", bytes)),
    "outcomes": _columns(OutcomeRow),
    "verdicts": _columns(VerdictRow),
    "abandoned": _columns(AbandonedRow),
    "tools": _columns(ToolsRow),
}
COLUMNS_OF = {table: ", ".join(column.name for column in columns) for table, columns in TABLES.items()}
"""The columns of each table, as a query names them."""
INSERT = {
    table: f"INSERT INTO {table} ({COLUMNS_OF[table]}) VALUES ({', '.join('?' * len(columns))})"
    for table, columns in TABLES.items()
}
"""In SQLite."""
COLUMNS = tuple(column.name for column in TABLES["steps"])
RENEW_VERDICT = (
    f"ON CONFLICT (session) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in VerdictRow._fields[1:])} "
    "WHERE excluded.rank < verdicts.rank OR (excluded.rank = verdicts.rank AND excluded.time >= verdicts.time)"
)
"""Ends an INSERT INTO verdicts: of two verdicts of a session the one of lower rank stays, of the same rank the later."""
_Known: Any = msgspec.defstruct("_Known", list(TABLES["steps"][:-1]), array_like=True)
_decoder = msgspec.json.Decoder(Step)


def checked(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """A row of `steps` whose values have their types. Raises what `r2v.runtime.store.MALFORMED` lists."""
    known = msgspec.convert(row[:-1], _Known, strict=False)  # SQLite puts any value into any column
    return (*msgspec.structs.astuple(known), row[-1])


def entry_of(row: tuple[Any, ...]) -> Entry:
    """Raises what `r2v.runtime.store.MALFORMED` lists where a row is not as `r2v.gateway.ledger.Ledger.write` leaves it."""
    *known, record = checked(row)
    values: dict[str, Any] = dict(zip(COLUMNS[:-1], known, strict=True))
    try:
        step = _decoder.decode(record)
    except msgspec.ValidationError:  # written by r2v 0.1
        from r2v.runtime.upgrade import ROUTES, upgraded_step

        step = msgspec.convert(upgraded_step(msgspec.json.decode(record)), Step)
        values["route"] = ROUTES.get(values["route"], values["route"])
    return Entry(**values, step=step)
