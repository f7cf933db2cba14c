"""Sessions: what one step leaves for the next, and what holds for all of them: the mode and the kill switch.

`LocalSessions` keeps it in the ledger, for the processes of one gateway; `r2v.gateway.redis_state.RedisSessions` in Redis,
for replicas.
"""

from __future__ import annotations

import math
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from r2v.core.cache import BoundedCache
from r2v.core.seeds import derive_seed
from r2v.core.types import Decision, Memory
from r2v.gateway.accounts import Transaction
from r2v.gateway.budgets import touch
from r2v.gateway.ledger import Ledger, ModeChange
from r2v.gateway.reading import decisions_of
from r2v.messages.conversation import Json
from r2v.messages.protocol import encode

DECISIONS = 200
"""The latest of a session, kept for its router."""
SESSIONS = 5_000
"""Names of sessions kept in memory."""
SESSION_BYTES = 64_000_000
"""Memory for what is kept of sessions; that of the others is read from the ledger again."""
DECISION, SIGNATURE = 700, 150
"""Bytes that a decision takes, and a signature besides its own."""
ITEM_BYTES = 64_000_000
"""Of all items together that clients may refer to."""
SIGNATURES = 500
"""Authors of thinking blocks kept of a session."""


@dataclass(frozen=True)
class Session:
    """A session as it is when a step of it begins."""

    id: str
    t: int
    """Number of this step."""
    memory: Memory
    cold: bool
    """Whether the teacher's prompt cache has expired."""
    prompt_tokens: int
    """Of the step before: what a teacher that answered every step would have in its cache."""
    signatures: Mapping[str, str]
    """Signature of a thinking block -> the model that wrote it; others cannot read it."""

    @property
    def begun(self) -> bool:
        """Whether a step of it has been answered: those that were refused have numbers, too."""
        return bool(self.memory.decisions)


class Sessions(Protocol):
    cache_ttl_s: float
    """How long the teacher's prompt cache lasts."""

    async def run_of(self, identity: str, *, fresh: bool) -> str:
        """The session of a client that names none: its fingerprint, numbered when the same conversation begins anew
        (`fresh`: the request holds no answer yet).
        """

    async def begun(self, identity: str) -> bool:
        """Whether the session has a step, served by any replica."""

    async def enter(self, identity: str, *, dry: bool) -> Session:
        """The session, with a new step begun unless `dry`."""

    async def remember(self, session: Session, decision: Decision, *, teacher: bool, tokens: int) -> None:
        """Keep what the next step needs of this one; `teacher`: who answered; `tokens`: length of its prompt."""

    async def sign(self, session: Session, signature: str, model: str) -> None:
        """Keep who wrote a thinking block."""

    async def offer_tools(self, identity: str) -> None:
        """Keep that a request of the session had tools."""

    async def had_tools(self, identity: str) -> bool:
        """Whether any request of the session had tools."""

    async def kill(self, on: bool) -> None:
        """The kill switch: while it is on, the SLM answers every step."""

    async def killed(self) -> bool: ...

    async def set_mode(self, change: ModeChange) -> None: ...

    async def mode(self) -> ModeChange | None:
        """The last change of the mode, also of a run before this one."""

    async def close(self) -> None: ...


def numbered(identity: str, run: int) -> str:
    return f"{identity}.{run}" if run else identity


@dataclass
class _Record:
    memory: Memory
    row: int = 0
    """Of the ledger: the memory has the session's steps up to it."""
    version: int = -1
    """Of the ledger when the record was last brought up to date."""
    teacher_at: float = -math.inf
    prompt_tokens: int = 0
    signatures: dict[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return DECISION * (1 + len(self.memory.decisions)) + sum(SIGNATURE + len(mark) for mark in self.signatures)


class LocalSessions:
    """`Sessions` of the processes that serve from one ledger. What is kept in memory is looked at again when another process
    has written to the ledger.
    """

    def __init__(self, ledger: Ledger, cache_ttl_s: float) -> None:
        self._ledger, self._states, self.cache_ttl_s = ledger, ledger.states, cache_ttl_s
        self._records: BoundedCache[str, _Record] = BoundedCache(SESSION_BYTES)
        self._runs: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """(run, version of the ledger when it was looked up)."""
        self._shared_version, self._killed, self._mode = -1, False, ledger.mode()

    async def run_of(self, identity: str, *, fresh: bool) -> str:
        version = self._states.version()
        run, known = self._runs.get(identity, (0, -1))
        while known != version and self._ledger.has(numbered(identity, run + 1)):
            run += 1
        if fresh and self._begun(numbered(identity, run)):
            run += 1
        self._runs[identity] = run, version
        touch(self._runs, identity, SESSIONS)
        return numbered(identity, run)

    def _begun(self, identity: str) -> bool:
        record = self._records.get(identity)
        return bool(record and record.memory.decisions) or self._ledger.has(identity)

    async def begun(self, identity: str) -> bool:
        return self._ledger.has(identity)

    async def enter(self, identity: str, *, dry: bool) -> Session:
        record = self._current(identity)
        t = self._states.next_step(identity) if dry else self._states.begin_step(identity)
        # Before the machine was started again the clock may have shown a later time.
        cold = not 0 <= time.monotonic() - record.teacher_at <= self.cache_ttl_s
        return Session(identity, t, record.memory, cold, record.prompt_tokens, record.signatures)

    def _current(self, identity: str) -> _Record:
        """What is known of the session, steps that other processes served included."""
        version = self._states.version()
        record = self._records.get(identity)
        if record is None:
            record = _Record(Memory(seed=derive_seed(identity, "episode")))
        if record.version != version:
            record.row, entries = self._ledger.later_steps(identity, record.row, DECISIONS)
            decisions = (*record.memory.decisions, *decisions_of(entries))[-DECISIONS:]
            record.memory = replace(record.memory, decisions=decisions)
            record.prompt_tokens, teacher_at = self._states.state(identity)
            record.teacher_at = -math.inf if teacher_at is None else teacher_at
            record.signatures = self._states.signatures(identity, SIGNATURES)
            record.version = version
            self._records.put(identity, record, record.bytes)
        return record

    async def remember(self, session: Session, decision: Decision, *, teacher: bool, tokens: int) -> None:
        now = time.monotonic()
        with suppress(sqlite3.Error):  # the step is written; this says only what its successor may cost
            self._states.remember(session.id, tokens, now if teacher else None)
        record = self._records.get(session.id)
        if record is None:  # so many sessions since then that it has been forgotten; the ledger has it
            return
        record.prompt_tokens = tokens
        if teacher:
            record.teacher_at = now
        alone = record.version == self._states.version() or not self._ledger.has_between(session.id, record.row, DECISIONS)
        if alone:  # else the next step reads this one with those that another process wrote before it
            record.memory = replace(record.memory, decisions=(*record.memory.decisions, decision)[-DECISIONS:])
            record.row = self._ledger.last_row
        self._records.put(session.id, record, record.bytes)

    async def sign(self, session: Session, signature: str, model: str) -> None:
        with suppress(sqlite3.Error):
            self._states.sign(session.id, signature, model)
        if record := self._records.get(session.id):
            record.signatures[signature] = model
            if len(record.signatures) > SIGNATURES:
                del record.signatures[next(iter(record.signatures))]
            self._records.put(session.id, record, record.bytes)

    async def offer_tools(self, identity: str) -> None:
        self._states.offer_tools(identity)

    async def had_tools(self, identity: str) -> bool:
        return self._states.had_tools(identity)

    async def kill(self, on: bool) -> None:
        self._states.kill(on)
        self._shared_version = -1

    async def killed(self) -> bool:
        self._look()
        return self._killed

    async def set_mode(self, change: ModeChange) -> None:
        self._ledger.set_mode(change)
        self._shared_version = -1

    async def mode(self) -> ModeChange | None:
        self._look()
        return self._mode

    def _look(self) -> None:
        """Read the mode and the kill switch, unless nothing has been written since."""
        version = self._states.version()
        if version != self._shared_version:
            self._killed, self._mode, self._shared_version = self._states.killed(), self._ledger.mode(), version

    async def close(self) -> None:
        pass


class Items:
    """What clients may refer to instead of sending it again: lists of items of the Responses protocol by id, for each key of
    a client, so that no client can refer to another's. Where all together are too large, the oldest of the key that has most
    are forgotten. In SQLite, but never in the ledger: they are words.
    """

    def __init__(self, path: str = ":memory:", most_bytes: int = ITEM_BYTES) -> None:
        """`path`: of a file that several processes share; one that does not outlast them."""
        self._most, self._lock = most_bytes, threading.Lock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute("CREATE TABLE IF NOT EXISTS items (key TEXT, id TEXT, body BLOB, PRIMARY KEY (key, id))")
        self._db.execute("CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, bytes INTEGER)")

    def keep(self, key: str, lists: Mapping[str, list[Json]]) -> None:
        if not lists:
            return
        bodies = {identity: encode(items) for identity, items in lists.items()}
        with self._lock, Transaction(self._db):  # requests that are large come in a thread
            for identity, body in bodies.items():
                self._forget(key, "id = ?", identity)
                self._db.execute("INSERT INTO items VALUES (?, ?, ?)", (key, identity, body))
                self._count(key, len(body))
            while self._db.execute("SELECT SUM(bytes) FROM kept").fetchone()[0] > self._most:
                (largest,) = self._db.execute("SELECT key FROM kept ORDER BY bytes DESC LIMIT 1").fetchone()
                self._forget(largest, "rowid = (SELECT MIN(rowid) FROM items WHERE key = ?)", largest)

    def get(self, key: str, identity: str) -> bytes | None:
        row = self._db.execute("SELECT body FROM items WHERE key = ? AND id = ?", (key, identity)).fetchone()
        return None if row is None else bytes(row[0])

    def _forget(self, key: str, where: str, value: str) -> None:
        query = f"DELETE FROM items WHERE key = ? AND {where} RETURNING LENGTH(body)"
        self._count(key, -sum(size for (size,) in self._db.execute(query, (key, value)).fetchall()))

    def _count(self, key: str, size: int) -> None:
        add = "INSERT INTO kept VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET bytes = bytes + excluded.bytes"
        self._db.execute(add, (key, size))

    def close(self) -> None:
        self._db.close()
