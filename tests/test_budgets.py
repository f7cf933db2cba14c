"""Budgets under everything that happens to them: kills, restarts, clocks, a lost store, and models that do not say what they
cost. Nothing may be paid above a limit.
"""

from __future__ import annotations

import asyncio
import shutil
from itertools import count
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from r2v.gateway.budgets import Account, Amount, Exhausted, LocalBudgets, granted, limits_of
from r2v.gateway.ledger import Ledger
from r2v.gateway.settings import BudgetSettings, LimitSettings
from test_gateway import ASK, AUTH, World, make  # noqa: F401  (a fixture)
from test_gateway_replicas import free_port, redis_url, started  # noqa: F401  (a fixture)

# -- rules --------------------------------------------------------------------------------------------------------


def test_limits_are_of_the_session_the_key_and_the_day_and_the_lower_of_two_counts():
    budget = BudgetSettings(
        session=LimitSettings(teacher_calls=4, usd=3), key_per_day=LimitSettings(tokens=100), per_day=LimitSettings(usd=9)
    )
    account = Account("s", "k", 3)
    limits = limits_of(budget, account, 2.0)
    assert [(scope, limit.usd) for scope, limit in limits] == [("session s", 2.0), ("key k 3", None), ("all 3", 9.0)]
    assert [limits_of(budget, account, usd)[0][1].usd for usd in (5.0, None)] == [3.0, 3.0]
    assert limits[1][1].sessions == 1000 and limits[2][1].sessions is None  # sessions have a limit, so their number has
    assert limits_of(BudgetSettings(), account, 1.0)[0] == ("session s", LimitSettings(usd=1.0))
    assert limits_of(BudgetSettings(), account, None) == []


@pytest.mark.parametrize(
    ("used", "limit", "found"),
    [
        (Amount(), {}, (True, None)),
        (Amount(3), {"teacher_calls": 4}, (True, 1)),
        (Amount(4), {"teacher_calls": 4}, (False, 0)),
        (Amount(9), {"teacher_calls": 4}, (False, 0)),  # the limit was lowered: the SLM, which needs none, goes on
        (Amount(0, 76), {"tokens": 100}, (True, None)),
        (Amount(0, 77), {"tokens": 100}, (False, None)),
        (Amount(0, 92), {"tokens": 100}, (False, None)),
        (Amount(0, 93), {"tokens": 100}, (None, None)),
        (Amount(0, 0, 1.25), {"usd": 2.0}, (True, None)),
        (Amount(0, 0, 1.5), {"usd": 2.0}, (False, None)),
        (Amount(0, 0, 1.9), {"usd": 2.0}, (None, None)),
    ],
)
def test_what_fits_is_granted_for_both_models_or_for_the_slm_alone(used, limit, found):
    amount, both, left = granted([(used, LimitSettings(**limit))], Amount(0, 8, 0.25), Amount(1, 16, 0.5))
    assert (None if amount is None else both, left) == found


def test_sessions_are_counted_when_they_begin():
    one = Amount(calls=1)
    first, both, _ = granted([(Amount(), LimitSettings()), (Amount(sessions=2), LimitSettings(sessions=3))], Amount(), one)
    assert first == Amount(1, 0, 0.0, 1) and both
    assert not granted([(Amount(), LimitSettings()), (Amount(sessions=3), LimitSettings(sessions=3))], Amount(), one)[1]
    known = [(Amount(sessions=1), LimitSettings()), (Amount(sessions=3), LimitSettings(sessions=3))]
    assert granted(known, Amount(), one)[:2] == (one, True)  # it had begun before


# -- states -------------------------------------------------------------------------------------------------------

BUDGET = BudgetSettings(
    session=LimitSettings(teacher_calls=3, usd=4.0), key_per_day=LimitSettings(tokens=60, sessions=3),
    per_day=LimitSettings(teacher_calls=7, usd=9.0),
)  # fmt: skip
parts = st.tuples(st.integers(0, 12), st.sampled_from([0.0, 0.125, 0.5, 1.0]))


class Step:
    """One that has been granted: what it may still spend, and what it has."""

    def __init__(self, replica: int, reservation, slm: Amount, teacher: Amount) -> None:
        self.replica, self.reservation = replica, reservation
        self.most = slm + (teacher if reservation.teacher else Amount())
        self.paid = Amount()


class Machine(RuleBasedStateMachine):
    """Replicas that reserve, pay, are killed and start again, while the clock jumps. `paid` is what the models were paid:
    the truth, which no replica may learn.
    """

    replicas = 2

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(mkdtemp())
        self.day, self.names = 100, count()
        self.open: list[Step] = []
        self.paid: dict[str, Amount] = {}
        self.begun: dict[str, set[str]] = {}
        self.ledgers, self.budgets = [], []
        for i in range(self.replicas):
            self.ledgers.append(self.ledger(i))
            self.budgets.append(self.made(i))

    def ledger(self, i: int) -> Ledger:
        """Processes on one machine share a file: one of them owns it."""
        return Ledger(self.folder / "ledger.db", owner=i == 0)

    def made(self, i: int):
        return LocalBudgets(self.ledgers[i].accounts)

    def run(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    @rule(replica=st.integers(0, 1), session=st.sampled_from("abcde"), key=st.sampled_from("kl"), slm=parts, teacher=parts)
    def reserve(self, replica, session, key, slm, teacher) -> None:
        account = Account(f"{key}/{session}", key, self.day)
        amounts = Amount(0, *slm), Amount(1, *teacher)
        try:
            found = self.run(
                self.budgets[replica].reserve(str(next(self.names)), account, limits_of(BUDGET, account, None), *amounts)
            )
        except Exhausted:
            return
        self.open.append(Step(replica, found, *amounts))
        if found.teacher and not any(account.session in sessions for sessions in self.begun.values()):
            self.begun.setdefault(account.scopes[1], set()).add(account.session)

    def pay(self, step: Step, share: float) -> None:
        """Spend a part of what is left of a step."""
        left = step.most - step.paid
        part = Amount(left.calls, int(share * left.tokens), share * left.usd)
        step.paid += part
        for scope in step.reservation.account.scopes:
            self.paid[scope] = self.paid.get(scope, Amount()) + part

    @precondition(lambda self: self.open)
    @rule(n=st.integers(0, 99), share=st.sampled_from([0.0, 0.5, 1.0]), forgets=st.booleans())
    def settle(self, n, share, forgets) -> None:
        step = self.open.pop(n % len(self.open))
        self.pay(step, share)
        # What nobody knows is lost at what it can have cost at most.
        spent, lost = (Amount(), step.most) if forgets else (step.paid, Amount())
        self.run(self.budgets[step.replica].settle(step.reservation, spent, lost, "test"))

    @precondition(lambda self: self.open)
    @rule(n=st.integers(0, 99), more=parts)
    def try_again(self, n, more) -> None:
        """A try is lost, paid in full; another one has to be charged first."""
        step = self.open[n % len(self.open)]
        amount = Amount(1, *more)
        try:
            self.run(self.budgets[step.replica].extend(step.reservation, amount))
        except Exhausted:
            return
        step.most += amount

    @rule(replica=st.integers(0, 1), share=st.sampled_from([0.0, 1.0]))
    def kill(self, replica, share) -> None:
        """All steps of a replica end without a word, after they were paid."""
        for step in [step for step in self.open if step.replica == replica]:
            self.pay(step, share)
            self.open.remove(step)
        self.run(self.budgets[replica].close())
        self.ledgers[replica].close()
        self.ledgers[replica] = self.ledger(replica)
        self.budgets[replica] = self.made(replica)

    @rule(days=st.sampled_from([-1, 1]))
    def jump(self, days) -> None:
        self.day += days

    @invariant()
    def nothing_is_paid_above_a_limit(self) -> None:
        for scope, paid in self.paid.items():
            kind = scope.split()[0]
            limit = {"session": BUDGET.session, "key": BUDGET.key_per_day, "all": BUDGET.per_day}[kind]
            assert limit.teacher_calls is None or paid.calls <= limit.teacher_calls, (scope, paid)
            assert limit.tokens is None or paid.tokens <= limit.tokens, (scope, paid)
            assert limit.usd is None or paid.usd <= limit.usd + 1e-9, (scope, paid)
        for scope, sessions in self.begun.items():
            assert len(sessions) <= 3, (scope, sessions)

    def teardown(self) -> None:
        for budgets in self.budgets:
            self.run(budgets.close())
        for ledger in self.ledgers:
            ledger.close()
        self.loop.close()
        shutil.rmtree(self.folder)


class RedisMachine(Machine):
    """The same with replicas that share a Redis, each with a ledger of its own; Redis may lose all it knows."""

    url = ""
    numbers = count()

    def __init__(self) -> None:
        self.prefix = f"machine{next(self.numbers)}"
        super().__init__()

    def ledger(self, i: int) -> Ledger:
        return Ledger(self.folder / f"{i}.db", owner=True)

    def made(self, i: int):
        from r2v.gateway.redis_state import Connection, RedisBudgets

        return RedisBudgets(Connection(self.url, self.prefix), self.ledgers[i].accounts, self.ledgers[i].identity)

    @rule()
    def lose_everything(self) -> None:
        """Redis comes back without its data: all replicas are stopped and started, as the error wants it."""
        self.run(self.budgets[0]._redis.run(("FLUSHALL",)))
        for replica in range(self.replicas):
            self.kill(replica, 1.0)
        for budgets in self.budgets:
            self.run(budgets.check())  # as at a start: each tells Redis what it has charged


Machine.TestCase.settings = RedisMachine.TestCase.settings = hypothesis_settings(
    max_examples=40, stateful_step_count=40, deadline=None
)
TestLocalBudgets = Machine.TestCase


def test_budgets_in_redis_under_everything(redis_url):  # noqa: F811
    from hypothesis.stateful import run_state_machine_as_test

    RedisMachine.url = redis_url
    run_state_machine_as_test(RedisMachine, settings=Machine.TestCase.settings)
