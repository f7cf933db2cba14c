"""The state of sessions, and budgets that no step may exceed: what it may cost at most is held back before a model is asked.

`LocalAccounts` is the state of one process, rebuilt from the ledger; `r2v.gateway.redis_state` keeps the same in Redis, for
replicas.
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
from r2v.gateway.ledger import Amount, Ledger, decisions_of
from r2v.gateway.settings import BudgetSettings, LimitSettings

DECISIONS = 200
"""The latest of a session, kept for its router."""
SESSIONS = 5_000
"""Sessions kept in memory; older ones are read from the ledger again."""
SIGNATURES = 500
"""Authors of thinking blocks kept of a session."""
DAY = 86_400
UNLIMITED = LimitSettings()

Limits = list[tuple[str, LimitSettings]]
"""(scope, limit) of everything that limits one step. Scopes that end in a number are of that day."""


@dataclass(frozen=True)
class Session:
    """A session as it is when a step of it begins."""

    id: str
    t: int
    """Number of this step."""
    memory: Memory
    cold: bool
    """Whether the teacher's prompt cache is lost."""
    prompt_tokens: int
    """Of the step before: what a teacher that answered every step would have in its cache."""
    signatures: Mapping[str, str]
    """Signature of a thinking block -> the model that wrote it; others cannot read it."""


@dataclass(frozen=True)
class Reservation:
    """What is held back for one step."""

    id: str
    limits: Limits
    amount: Amount
    teacher: bool
    """Whether the teacher may be asked."""
    calls_left: int | None
    """Teacher calls left, this step's among them; None = no limit."""


class Exhausted(Exception):
    """Not even the small model's answer fits into the budget."""


class Accounts(Protocol):
    async def enter(self, identity: str, *, dry: bool) -> Session:
        """The session, with a new step begun unless `dry`."""

    async def remember(self, session: Session, decision: Decision, *, teacher: bool, tokens: int) -> None:
        """What the next step has to know of this one; `tokens` are those of its prompt."""

    async def sign(self, session: Session, signature: str, model: str) -> None:
        """Note who wrote a thinking block."""

    async def hold(self, name: str, limits: Limits, small: Amount, teacher: Amount) -> Reservation:
        """Reservation back what both models can cost, or the small one alone where no more is left. Raises Exhausted."""

    async def settle(self, hold: Reservation, spent: Amount) -> None:
        """Give the rest back."""

    async def kill(self, on: bool) -> None:
        """The kill switch: every step is the small model's."""

    async def killed(self) -> bool: ...

    async def close(self) -> None: ...


def limits_of(budget: BudgetSettings, session: str, key: str, day: int, session_usd: float | None) -> Limits:
    """The limits of a step. `session_usd` is what the client set for its session; the lower one counts."""
    own = budget.session
    if session_usd is not None:
        own = own.model_copy(update={"usd": session_usd if own.usd is None else min(own.usd, session_usd)})
    scopes = [(f"session {session}", own), (f"key {key} {day}", budget.key_per_day), (f"all {day}", budget.per_day)]
    return [(scope, limit) for scope, limit in scopes if limit != UNLIMITED]


@dataclass
class _Record:
    steps: int
    memory: Memory
    teacher_at: float = -math.inf
    prompt_tokens: int = 0
    signatures: dict[str, str] = field(default_factory=dict)


class LocalAccounts:
    """`Accounts` of one process. Nothing in it waits, so nothing comes between a look and what is done on it."""

    def __init__(self, ledger: Ledger, cache_ttl_s: float) -> None:
        self._ledger, self._cache_ttl_s = ledger, cache_ttl_s
        self._records: OrderedDict[str, _Record] = OrderedDict()
        self._spent: OrderedDict[str, Amount] = OrderedDict()
        self._held: dict[str, Amount] = {}
        self._killed = False

    async def enter(self, identity: str, *, dry: bool) -> Session:
        record = self._records.get(identity)
        if record is None:
            entries = self._ledger.steps(identity)
            memory = Memory(seed=derive_seed(identity, "episode"), decisions=decisions_of(entries)[-DECISIONS:])
            record = self._records[identity] = _Record(entries[-1].t + 1 if entries else 0, memory)
            _bounded(self._records)
        self._records.move_to_end(identity)
        cold = time.monotonic() - record.teacher_at > self._cache_ttl_s
        session = Session(identity, record.steps, record.memory, cold, record.prompt_tokens, record.signatures)
        record.steps += not dry
        return session

    async def remember(self, session: Session, decision: Decision, *, teacher: bool, tokens: int) -> None:
        record = self._records.get(session.id)
        if record is None:  # so many sessions since that it has been forgotten; the ledger has it
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

    async def hold(self, name: str, limits: Limits, small: Amount, teacher: Amount) -> Reservation:
        used = [self._spent_in(scope) + self._held.get(scope, Amount()) for scope, _ in limits]
        bounds = [limit for _, limit in limits]
        if not all((one + small).within(limit) for one, limit in zip(used, bounds, strict=True)):
            raise Exhausted
        asks = all((one + small + teacher).within(limit) for one, limit in zip(used, bounds, strict=True))
        known = zip(used, bounds, strict=True)
        left = [limit.teacher_calls - one.calls for one, limit in known if limit.teacher_calls is not None]
        hold = Reservation(name, limits, small + teacher if asks else small, asks, max(0, min(left)) if left else None)
        for scope, _ in limits:
            self._held[scope] = self._held.get(scope, Amount()) + hold.amount
        return hold

    async def settle(self, hold: Reservation, spent: Amount) -> None:
        for scope, _ in hold.limits:
            left = self._held.pop(scope) - hold.amount
            if left.usd > 1e-12 or left.tokens or left.calls:
                self._held[scope] = left
            self._spent[scope] = self._spent_in(scope) + spent

    def _spent_in(self, scope: str) -> Amount:
        """From memory, or summed up from the ledger."""
        if scope not in self._spent:
            kind, rest = scope.split(" ", 1)
            if kind == "session":
                self._spent[scope] = self._ledger.spent(session=rest)
            else:
                *key, day = rest.split(" ")
                self._spent[scope] = self._ledger.spent(since=int(day) * DAY, key=key[0] if key else None)
            _bounded(self._spent)
        self._spent.move_to_end(scope)
        return self._spent[scope]

    async def kill(self, on: bool) -> None:
        self._killed = on

    async def killed(self) -> bool:
        return self._killed

    async def close(self) -> None:
        pass


def _bounded(table: OrderedDict[str, _Record] | OrderedDict[str, Amount]) -> None:
    if len(table) > SESSIONS:
        table.popitem(last=False)
