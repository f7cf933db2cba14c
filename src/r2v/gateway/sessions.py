"""Sessions: what one step leaves for the next, and what holds for all of them: the mode and the kill switch.

`LocalSessions` is the state of one process, rebuilt from the ledger; `r2v.gateway.redis_state.RedisSessions` keeps the same
in Redis, for replicas.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import msgspec

from r2v.core.cache import BoundedCache
from r2v.core.seeds import derive_seed
from r2v.core.types import Decision, Memory
from r2v.gateway.budgets import touch
from r2v.gateway.ledger import Ledger, ModeChange, decisions_of
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


class Sessions(Protocol):
    async def run_of(self, identity: str, *, fresh: bool) -> str:
        """The session of a client that names none: its fingerprint, numbered when the same conversation begins anew
        (`fresh`: the request holds no answer yet).
        """

    async def enter(self, identity: str, *, dry: bool) -> Session:
        """The session, with a new step begun unless `dry`."""

    async def remember(self, session: Session, decision: Decision, *, teacher: bool, tokens: int) -> None:
        """Keep what the next step needs of this one; `teacher`: who answered; `tokens`: length of its prompt."""

    async def sign(self, session: Session, signature: str, model: str) -> None:
        """Keep who wrote a thinking block."""

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
    steps: int
    memory: Memory
    teacher_at: float = -math.inf
    prompt_tokens: int = 0
    signatures: dict[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return DECISION * (1 + len(self.memory.decisions)) + sum(SIGNATURE + len(mark) for mark in self.signatures)


class LocalSessions:
    """`Sessions` of one process."""

    def __init__(self, ledger: Ledger, cache_ttl_s: float) -> None:
        self._ledger, self._cache_ttl_s = ledger, cache_ttl_s
        self._records: BoundedCache[str, _Record] = BoundedCache(SESSION_BYTES)
        self._runs: OrderedDict[str, int] = OrderedDict()
        self._killed, self._mode = False, ledger.mode()

    async def run_of(self, identity: str, *, fresh: bool) -> str:
        run = self._runs.get(identity, 0)
        while identity not in self._runs and self._ledger.has(numbered(identity, run + 1)):
            run += 1
        if fresh and self._begun(numbered(identity, run)):
            run += 1
        self._runs[identity] = run
        touch(self._runs, identity, SESSIONS)
        return numbered(identity, run)

    def _begun(self, identity: str) -> bool:
        record = self._records.get(identity)
        return bool(record and record.memory.decisions) or self._ledger.has(identity)

    async def enter(self, identity: str, *, dry: bool) -> Session:
        record = self._records.get(identity)
        if record is None:
            entries = self._ledger.steps(identity)
            memory = Memory(seed=derive_seed(identity, "episode"), decisions=decisions_of(entries)[-DECISIONS:])
            record = _Record(entries[-1].t + 1 if entries else 0, memory)
            self._records.put(identity, record, record.bytes)
        cold = time.monotonic() - record.teacher_at > self._cache_ttl_s
        session = Session(identity, record.steps, record.memory, cold, record.prompt_tokens, record.signatures)
        record.steps += not dry
        return session

    async def remember(self, session: Session, decision: Decision, *, teacher: bool, tokens: int) -> None:
        record = self._records.get(session.id)
        if record is None:  # so many sessions since then that it has been forgotten; the ledger has it
            return
        record.memory = replace(record.memory, decisions=(*record.memory.decisions, decision)[-DECISIONS:])
        record.prompt_tokens = tokens
        if teacher:
            record.teacher_at = time.monotonic()
        self._records.put(session.id, record, record.bytes)

    async def sign(self, session: Session, signature: str, model: str) -> None:
        if record := self._records.get(session.id):
            record.signatures[signature] = model
            if len(record.signatures) > SIGNATURES:
                del record.signatures[next(iter(record.signatures))]
            self._records.put(session.id, record, record.bytes)

    async def kill(self, on: bool) -> None:
        self._killed = on

    async def killed(self) -> bool:
        return self._killed

    async def set_mode(self, change: ModeChange) -> None:
        self._ledger.set_mode(change)
        self._mode = change

    async def mode(self) -> ModeChange | None:
        return self._mode

    async def close(self) -> None:
        pass


class Items:
    """What clients may refer to instead of sending it again: lists of items of the Responses protocol by id, in memory, for
    each key of a client, so that no client can refer to another's.
    """

    def __init__(self, most_bytes: int = ITEM_BYTES) -> None:
        # As JSON: as objects they take some ten times as much.
        self._lists: BoundedCache[tuple[str, str], bytes] = BoundedCache(most_bytes)

    def keep(self, key: str, lists: Mapping[str, list[Json]]) -> None:
        for identity, items in lists.items():
            found = encode(items)
            self._lists.put((key, identity), found, len(found))

    def get(self, key: str, identity: str) -> list[Json] | None:
        found = self._lists.get((key, identity))
        return None if found is None else msgspec.json.decode(found, type=list[Json])
