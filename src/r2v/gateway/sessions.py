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

from r2v.core.seeds import derive_seed
from r2v.core.types import Decision, Memory
from r2v.gateway.budgets import touch
from r2v.gateway.ledger import Ledger, ModeChange, decisions_of
from r2v.messages.conversation import Json
from r2v.messages.protocol import encode

DECISIONS = 200
"""The latest of a session, kept for its router."""
SESSIONS = 5_000
"""Sessions kept in memory; older ones are read from the ledger again."""
ITEM_BYTES = 64_000_000
"""Of all items together that clients may refer to; the oldest are forgotten first."""
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


class LocalSessions:
    """`Sessions` of one process."""

    def __init__(self, ledger: Ledger, cache_ttl_s: float) -> None:
        self._ledger, self._cache_ttl_s = ledger, cache_ttl_s
        self._records: OrderedDict[str, _Record] = OrderedDict()
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
            record = self._records[identity] = _Record(entries[-1].t + 1 if entries else 0, memory)
        touch(self._records, identity, SESSIONS)
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

    async def sign(self, session: Session, signature: str, model: str) -> None:
        if record := self._records.get(session.id):
            record.signatures[signature] = model
            if len(record.signatures) > SIGNATURES:
                del record.signatures[next(iter(record.signatures))]

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
        self._most = most_bytes
        self._lists: OrderedDict[tuple[str, str], tuple[list[Json], int]] = OrderedDict()
        self._bytes = 0

    def keep(self, key: str, lists: Mapping[str, list[Json]]) -> None:
        for identity, items in lists.items():
            size = len(encode(items))
            self._forget((key, identity))
            self._lists[key, identity] = (items, size)
            self._bytes += size
        while self._bytes > self._most:
            self._forget(next(iter(self._lists)))

    def get(self, key: str, identity: str) -> list[Json] | None:
        found = self._lists.get((key, identity))
        return None if found is None else found[0]

    def _forget(self, name: tuple[str, str]) -> None:
        if name in self._lists:
            self._bytes -= self._lists.pop(name)[1]
