"""Budgets that no step may exceed: what it can cost at most is charged before a model is called, the rest returned after.

A charge is durable before money is spent, so what nobody learns the cost of (a killed process, an answer without `usage`, a
broken stream) stays charged in full. `LocalBudgets` keeps the charges in the ledger; `r2v.gateway.redis_state.RedisBudgets`
in Redis, for replicas.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from r2v.gateway.settings import BudgetSettings, LimitSettings

if TYPE_CHECKING:
    from r2v.gateway.accounts import Accounts

DAY = 86_400
UNLIMITED = LimitSettings()
SESSIONS_A_DAY = 1_000
"""That a key may begin where sessions have a budget and its own settings say nothing: new sessions do not dodge it."""


@dataclass(frozen=True, slots=True)
class Amount:
    """What was or may be spent."""

    calls: int = 0
    """Of the teacher."""
    tokens: int = 0
    usd: float = 0.0
    sessions: int = 0
    """That were begun."""

    @property
    def parts(self) -> tuple[int, int, float, int]:
        return self.calls, self.tokens, self.usd, self.sessions

    def at_most(self, other: Amount) -> Amount:
        """The smaller of each, and nothing below 0."""
        return Amount(*(max(0, min(a, b)) for a, b in zip(self.parts, other.parts, strict=True)))  # type: ignore[arg-type]

    def at_least(self, other: Amount) -> Amount:
        """The larger of each."""
        return Amount(*(max(a, b) for a, b in zip(self.parts, other.parts, strict=True)))  # type: ignore[arg-type]

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.calls + other.calls, self.tokens + other.tokens, self.usd + other.usd, self.sessions + other.sessions
        )

    def __sub__(self, other: Amount) -> Amount:
        return Amount(
            self.calls - other.calls, self.tokens - other.tokens, self.usd - other.usd, self.sessions - other.sessions
        )


@dataclass(frozen=True)
class Account:
    """Whose money a step spends, and on which day (of UTC, since 1970)."""

    session: str
    key: str
    day: int

    @property
    def scopes(self) -> tuple[str, str, str]:
        return f"session {self.session}", f"key {self.key} {self.day}", f"all {self.day}"


Limits = list[tuple[str, LimitSettings]]
"""(scope, limit) of everything that limits one step; the first is the session's."""


@dataclass(eq=False)
class Reservation:
    """What one step has been charged so far."""

    id: str
    account: Account
    limits: Limits
    amount: Amount
    teacher: bool
    """Whether the step may escalate to the teacher."""
    calls_left: int | None
    """Teacher calls left, this step's among them; None = no limit."""
    written: bool = False
    """Whether the row of the step is in the ledger, which has ended its hold there."""


class Exhausted(Exception):
    """Not even the SLM's answer fits into the budget."""


class Budgets(Protocol):
    async def reserve(self, name: str, account: Account, limits: Limits, slm: Amount, teacher: Amount) -> Reservation:
        """Charge what both models can cost, or the SLM alone where there is no room for both. Raises Exhausted."""

    async def extend(self, reservation: Reservation, amount: Amount) -> None:
        """Charge more to the same step, before it spends it. Raises Exhausted."""

    async def settle(self, reservation: Reservation, spent: Amount, lost: Amount, why: str) -> None:
        """Return what was charged and not spent.

        Args:
            reservation: of a step that has ended.
            spent: what it is known to have cost.
            lost: what it may have cost beside that.
            why: what became of a step that left no row.
        """

    async def check(self) -> None:
        """Raises OSError or sqlite3.Error where nothing could be charged now."""

    async def close(self) -> None: ...


def limits_of(
    budget: BudgetSettings, account: Account, session_usd: float | None, of_own: LimitSettings = UNLIMITED
) -> Limits:
    """The limits of a step; of two for the same the lower one counts.

    Args:
        budget: of the settings.
        account: whose step it is.
        session_usd: what the client set for its session.
        of_own: what its key may spend a day.
    """
    own, of_key = budget.session, _lower(budget.key_per_day, of_own)
    if own != UNLIMITED and of_key.sessions is None:
        of_key = of_key.but(sessions=SESSIONS_A_DAY)
    if session_usd is not None:
        own = own.but(usd=session_usd if own.usd is None else min(own.usd, session_usd))
    limits = list(zip(account.scopes, (own, of_key, budget.per_day), strict=True))
    return limits if any(limit != UNLIMITED for _, limit in limits) else []


def _lower(one: LimitSettings, other: LimitSettings) -> LimitSettings:
    if other == UNLIMITED:
        return one
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in ("teacher_calls", "tokens", "usd", "sessions")}
    return LimitSettings(
        **{name: min((most for most in pair if most is not None), default=None) for name, pair in pairs.items()}
    )


def granted(
    used: Sequence[tuple[Amount, LimitSettings]], slm: Amount, teacher: Amount
) -> tuple[Amount | None, bool, int | None]:
    """What fits into the limits.

    Args:
        used: what each scope has been charged so far, the session's first, and its limit.
        slm: what the SLM can cost at most.
        teacher: what the teacher can cost at most, beside that.

    Returns:
        (amount to charge; None where nothing fits, whether the teacher's part is in it, teacher calls left or None).
    """
    if used and not used[0][0].sessions:
        teacher += Amount(sessions=1)
    left = [max(0, limit.teacher_calls - amount.calls) for amount, limit in used if limit.teacher_calls is not None]
    for amount, both in ((slm + teacher, True), (slm, False)):
        if all(_fits(charged, amount, limit) for charged, limit in used):
            return amount, both, min(left, default=None)
    return None, False, min(left, default=None)


def _fits(used: Amount, more: Amount, limit: LimitSettings) -> bool:
    """What adds nothing to a sum never exceeds its limit, even where that was lowered since."""
    bounds = (limit.teacher_calls, limit.tokens, limit.usd, limit.sessions)
    sums = zip(used.parts, more.parts, bounds, strict=True)
    return all(most is None or not added or before + added <= most for before, added, most in sums)


def touch(latest: OrderedDict[str, Any], name: str, most: int) -> None:
    """Note that `name` was used just now; of more than `most` names the one that was not used for longest is forgotten."""
    latest.move_to_end(name)
    if len(latest) > most:
        latest.popitem(last=False)


class LocalBudgets:
    """`Budgets` of the processes that share one ledger: each charge is one transaction."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    async def reserve(self, name: str, account: Account, limits: Limits, slm: Amount, teacher: Amount) -> Reservation:
        with self._accounts.transaction():
            used = [(self._accounts.charged(scope), limit) for scope, limit in limits]
            amount, both, left = granted(used, slm, teacher)
            if amount is None:
                raise Exhausted
            self._accounts.hold(name, account, amount)
        return Reservation(name, account, limits, amount, both, left)

    async def extend(self, reservation: Reservation, amount: Amount) -> None:
        with self._accounts.transaction():
            used = [(self._accounts.charged(scope), limit) for scope, limit in reservation.limits]
            if not all(_fits(charged, amount, limit) for charged, limit in used):
                raise Exhausted
            self._accounts.extend(reservation.id, reservation.account, amount)
        reservation.amount += amount

    async def settle(self, reservation: Reservation, spent: Amount, lost: Amount, why: str) -> None:
        if not reservation.written:
            self._accounts.release(reservation.id, spent, lost, why)

    async def check(self) -> None:
        self._accounts.check()

    async def close(self) -> None:
        pass
