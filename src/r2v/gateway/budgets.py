"""Budgets that no step may exceed: what it can cost at most is reserved before a model is called, the rest returned after.

`LocalBudgets` counts in one process, starting from what the ledger has; `r2v.gateway.redis_state.RedisBudgets` counts in
Redis, for replicas.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Protocol

from r2v.gateway.settings import BudgetSettings, LimitSettings

SCOPES = 5_000
"""Scopes whose sums are kept in memory; others are summed up from the ledger again."""
DAY = 86_400
UNLIMITED = LimitSettings()

Limits = list[tuple[str, LimitSettings]]
"""(scope, limit) of everything that limits one step. Scopes that end in a number are of that day."""


@dataclass(frozen=True, slots=True)
class Amount:
    """What was or may be spent."""

    calls: int = 0
    """Of the teacher."""
    tokens: int = 0
    usd: float = 0.0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.calls + other.calls, self.tokens + other.tokens, self.usd + other.usd)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.calls - other.calls, self.tokens - other.tokens, self.usd - other.usd)

    def within(self, limit: LimitSettings) -> bool:
        pairs = ((self.calls, limit.teacher_calls), (self.tokens, limit.tokens), (self.usd, limit.usd))
        return all(most is None or amount <= most for amount, most in pairs)


@dataclass(frozen=True)
class Reservation:
    """What is reserved for one step."""

    id: str
    limits: Limits
    amount: Amount
    teacher: bool
    """Whether the step may escalate to the teacher."""
    calls_left: int | None
    """Teacher calls left, this step's among them; None = no limit."""


class Exhausted(Exception):
    """Not even the SLM's answer fits into the budget."""


class Budgets(Protocol):
    async def reserve(self, name: str, limits: Limits, slm: Amount, teacher: Amount) -> Reservation:
        """Reserve what both models can cost, or the SLM alone where there is no room for both. Raises Exhausted."""

    async def settle(self, reservation: Reservation, spent: Amount) -> None:
        """Replace what was reserved by what was spent."""

    async def close(self) -> None: ...


class History(Protocol):
    """What was spent before this process started; `r2v.gateway.ledger.Ledger`."""

    def spent(self, *, session: str | None = None, day: int | None = None, key: str | None = None) -> Amount: ...


def limits_of(budget: BudgetSettings, session: str, key: str, day: int, session_usd: float | None) -> Limits:
    """The limits of a step. `session_usd` is what the client set for its session; the lower one counts."""
    own = budget.session
    if session_usd is not None:
        own = own.but(usd=session_usd if own.usd is None else min(own.usd, session_usd))
    scopes = [(f"session {session}", own), (f"key {key} {day}", budget.key_per_day), (f"all {day}", budget.per_day)]
    return [(scope, limit) for scope, limit in scopes if limit != UNLIMITED]


def touch(latest: OrderedDict[str, Any], name: str, most: int) -> None:
    """Note that `name` was used just now; of more than `most` names the one that was not used for longest is forgotten."""
    latest.move_to_end(name)
    if len(latest) > most:
        latest.popitem(last=False)


class LocalBudgets:
    """`Budgets` of one process. Nothing in it waits, so no other step comes between a check and what is done on it."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._spent: OrderedDict[str, Amount] = OrderedDict()
        self._reserved: dict[str, Amount] = {}

    async def reserve(self, name: str, limits: Limits, slm: Amount, teacher: Amount) -> Reservation:
        used = [(self._spent_in(scope) + self._reserved.get(scope, Amount()), limit) for scope, limit in limits]
        if not all((amount + slm).within(limit) for amount, limit in used):
            raise Exhausted
        both = all((amount + slm + teacher).within(limit) for amount, limit in used)
        left = [limit.teacher_calls - amount.calls for amount, limit in used if limit.teacher_calls is not None]
        reserved = slm + teacher if both else slm
        for scope, _ in limits:
            self._reserved[scope] = self._reserved.get(scope, Amount()) + reserved
        return Reservation(name, limits, reserved, both, max(0, min(left)) if left else None)

    async def settle(self, reservation: Reservation, spent: Amount) -> None:
        for scope, _ in reservation.limits:
            left = self._reserved.pop(scope, Amount()) - reservation.amount  # one of nothing may have been removed
            if left.usd > 1e-12 or left.tokens or left.calls:
                self._reserved[scope] = left
            self._spent[scope] = self._spent_in(scope) + spent

    def _spent_in(self, scope: str) -> Amount:
        """From memory, or summed up from the ledger."""
        if scope not in self._spent:
            kind, rest = scope.split(" ", 1)
            if kind == "session":
                self._spent[scope] = self._history.spent(session=rest)
            else:
                *key, day = rest.split(" ")
                self._spent[scope] = self._history.spent(day=int(day), key=key[0] if key else None)
        touch(self._spent, scope, SCOPES)
        return self._spent[scope]

    async def close(self) -> None:
        pass
