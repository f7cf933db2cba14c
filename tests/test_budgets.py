"""Budgets under everything that happens to them: kills, restarts, clocks, a lost store, and models that do not say what they
cost. Nothing may be paid above a limit.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from tempfile import mkdtemp

import httpx
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from r2v.core.errors import ArtifactError
from r2v.gateway.budgets import Account, Amount, Exhausted, LocalBudgets, granted, limits_of
from r2v.gateway.ledger import Ledger
from r2v.gateway.settings import BudgetSettings, LimitSettings
from servers import KEY, Model, free_port, running
from test_gateway import ASK, AUTH, make  # noqa: F401  (a fixture)
from test_gateway_replicas import redis_url, started  # noqa: F401  (a fixture)

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
        from r2v.gateway.redis_connection import Connection
        from r2v.gateway.redis_state import RedisBudgets

        return RedisBudgets(Connection(self.url, self.prefix), self.ledgers[i].accounts, self.ledgers[i].identity)

    @rule(killed=st.sampled_from([None, 0, 1]))
    def lose_everything(self, killed) -> None:
        """Redis comes back without its data, and perhaps a replica is started again; each says what it has charged."""
        self.run(self.budgets[0]._redis.run(("FLUSHALL",)))
        if killed is not None:
            self.kill(killed, 1.0)
        for budgets in self.budgets:
            self.run(budgets.check())


Machine.TestCase.settings = RedisMachine.TestCase.settings = hypothesis_settings(
    max_examples=25, stateful_step_count=40, deadline=None
)
TestLocalBudgets = Machine.TestCase


def test_budgets_in_redis_under_everything(redis_url):  # noqa: F811
    RedisMachine.url = redis_url
    run_state_machine_as_test(RedisMachine, settings=Machine.TestCase.settings)


# -- the gateway --------------------------------------------------------------------------------------------------

ALWAYS = {"route__router": "verifier", "route__threshold": 0.0}
"""Every step is escalated."""
DAY_SCOPE = f"all {int(time.time() // 86_400)}"


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": 7},
        {"prompt_tokens": -(10**9), "completion_tokens": -1},
        {"prompt_tokens": 10**12, "completion_tokens": 1},
        {"prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 10**9}},
        {"prompt_tokens": "many", "completion_tokens": [1]},
        {"prompt_tokens": True, "completion_tokens": 1.5},
        {"prompt_tokens": 1e308, "completion_tokens": 2},
    ],
)
def test_what_a_model_does_not_say_of_its_cost_is_charged_in_full(make, usage):  # noqa: F811
    world = make(**ALWAYS, budget__per_day={"usd": 0.3})
    answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "look"}, "finish_reason": "stop"}]}
    world.teacher.reply = lambda body: json.loads(json.dumps(answer | ({} if usage is None else {"usage": usage})))
    arms = [world.post(max_tokens=1000).headers.get("x-r2v-arm") for _ in range(12)]
    # 1000 tokens beside the request and 1000 of answer, at 10 and 20 USD a million: some .032 each.
    assert arms.count("teacher") == len(world.teacher.seen) == 9
    assert world.service.ledger.accounts.charged(DAY_SCOPE).usd <= 0.3


def test_what_may_be_spent_is_asked_for_and_no_more(make):  # noqa: F811
    free = make(**ALWAYS)
    free.post()
    assert "max_tokens" not in free.teacher.seen[-1] | free.small.seen[-1]
    world = make(**ALWAYS, budget__per_day={"usd": 5.0}, teacher__max_output_tokens=777)
    answer = world.post()
    assert (world.small.seen[-1]["max_tokens"], world.teacher.seen[-1]["max_tokens"]) == (4096, 777)
    assert "max_tokens over 777" in answer.headers["x-r2v-dropped"]
    world.post(max_tokens=5)
    assert world.teacher.seen[-1]["max_tokens"] == 5


def test_a_try_that_may_have_been_paid_is_charged_and_the_next_needs_room(make):  # noqa: F811
    world = make(**ALWAYS, budget__per_day={"teacher_calls": 5}, teacher__retries=3, teacher__timeout_s=0.2)
    world.teacher.delay = 5
    first, second = world.post(), world.post()
    assert (first.headers["x-r2v-reason"], second.headers["x-r2v-reason"]) == ("upstream_fallback", "upstream_fallback")
    assert world.teacher.started == 5  # four tries, then the one that was left
    assert world.service.ledger.accounts.charged(DAY_SCOPE).calls == 5
    world.teacher.delay = 0
    assert world.post().headers["x-r2v-reason"] == "budget_exhausted"


def test_a_model_that_answers_with_an_error_costs_nothing(make):  # noqa: F811
    world = make(**ALWAYS, budget__per_day={"teacher_calls": 2}, teacher__breaker_failures=None)
    world.teacher.status = [(500, {})]
    assert [world.post().headers["x-r2v-arm"] for _ in range(3)] == ["slm"] * 3
    world.teacher.status = []
    assert world.post().headers["x-r2v-arm"] == "teacher"


def test_fresh_sessions_do_not_dodge_the_budget_of_a_session(make):  # noqa: F811
    world = make(**ALWAYS, budget__session={"teacher_calls": 1}, budget__key_per_day={"sessions": 3})
    arms = [world.post(headers={"x-session-id": f"s{i // 2}"}).headers["x-r2v-arm"] for i in range(12)]
    assert arms == ["teacher", "slm"] * 3 + ["slm"] * 6


def test_what_an_agent_asks_beside_its_session_counts_for_it(make):  # noqa: F811
    world = make(**ALWAYS, budget__session={"teacher_calls": 1})
    title = [{"role": "system", "content": "write a title"}, {"role": "user", "content": "hello"}]
    headers = {"x-session-id": "s"}
    assert world.post(messages=title, headers=headers).headers["x-r2v-session-id"] == "s.aside"
    assert [world.post(headers=headers).headers["x-r2v-arm"] for _ in range(2)] == ["slm", "slm"]


def test_where_the_limit_was_lowered_the_slm_goes_on(make, tmp_path):  # noqa: F811
    world = make(**ALWAYS, budget__per_day={"teacher_calls": 5})
    assert [world.post().headers["x-r2v-arm"] for _ in range(3)] == ["teacher"] * 3
    world.stack.close()
    world = make(**ALWAYS, budget__per_day={"teacher_calls": 1})
    assert [(a.status_code, a.headers["x-r2v-arm"]) for a in (world.post(), world.post())] == [(200, "slm")] * 2


def test_without_room_for_its_row_no_step_begins(make, monkeypatch):  # noqa: F811
    world = make()
    assert world.post().status_code == 200 and world.client.get("/ready").json()["ready"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 5 * 10**6, 5 * 10**6))
    asked = len(world.small.seen)
    answer = world.post()
    assert (answer.status_code, answer.headers["x-r2v-reason"]) == (503, "ledger") and len(world.small.seen) == asked
    assert "only 5 MB of disk are left" in answer.json()["error"]["message"]
    time.sleep(1.1)  # `/ready` looks once a second
    ready = world.client.get("/ready")
    assert ready.status_code == 503 and "5 MB" in ready.json()["problem"]


def test_a_ledger_that_is_full_costs_one_step_and_not_each(make):  # noqa: F811
    world = make()
    world.post()
    db = world.service.ledger._db
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0] + 1}")
    asked = len(world.small.seen)
    answers = [world.post(messages=[{"role": "user", "content": "x" * 3000}]) for _ in range(20)]
    assert [answer.status_code for answer in answers[-15:]] == [503] * 15
    paid = len(world.small.seen) - asked - sum(answer.status_code == 200 for answer in answers)
    assert paid <= 1  # of those that got no answer
    time.sleep(1.1)
    assert world.client.get("/ready").status_code == 503
    db.execute("PRAGMA max_page_count = 1000000")
    assert world.post().status_code == 200


@pytest.fixture
def served(tmp_path):
    """Starts `r2v serve` on a configuration, as a process of its own; yields (process, URL)."""
    processes = []

    def serve(config) -> tuple[subprocess.Popen, str]:
        path = tmp_path / "gateway.json"
        path.write_text(json.dumps(config))
        command = [sys.executable, "-c", "from r2v.cli import app; app()", "serve", str(path), "--port", "0"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "R2V_API_KEY": KEY}
        )
        processes.append(process)
        line = process.stdout.readline()
        return process, line.split()[1] if line else ""

    yield serve
    for process in processes:
        process.kill()
        process.communicate()


def config_of(small: str, teacher: str, folder: Path, **budget) -> dict:
    price = {"input": 1, "output": 2}
    return {
        "version": 1, "route": {"router": "verifier", "threshold": 0.0, "k": 1}, "budget": budget,
        "models": {
            "slm": {"base_url": f"{small}/v1", "model": "small-1", "price": price},
            "teacher": {"base_url": f"{teacher}/v1", "model": "teacher-1", "price": price, "retries": 0},
        },
        "store": {"path": str(folder / "ledger.db")},
    }  # fmt: skip


def test_a_gateway_that_is_killed_again_and_again_pays_nothing_twice(tmp_path, served):
    small, teacher = Model("small-1"), Model("teacher-1")
    teacher.delay = 0.5
    with running(small.app()) as a, running(teacher.app()) as b:
        config = config_of(a, b, tmp_path, per_day={"teacher_calls": 12})

        def ask(url: str) -> None:
            with httpx.Client(headers=AUTH, timeout=10) as client, suppress(httpx.HTTPError):
                client.post(f"{url}/v1/chat/completions", json={"messages": ASK})

        for _ in range(3):
            process, url = served(config)
            before = teacher.started
            with ThreadPoolExecutor(5) as pool:
                for _ in range(5):
                    pool.submit(ask, url)
                deadline = time.monotonic() + 20
                while teacher.started < min(before + 5, 12):
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                process.send_signal(signal.SIGKILL)
        assert teacher.started == 12
        teacher.delay = 0
        _, url = served(config)
        answers = [httpx.post(f"{url}/v1/chat/completions", json={"messages": ASK}, headers=AUTH) for _ in range(3)]
    assert [answer.headers["x-r2v-reason"] for answer in answers] == ["budget_exhausted"] * 3
    assert teacher.started == 12
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as db:
        killed = db.execute("SELECT SUM(calls) FROM abandoned WHERE why = 'killed'").fetchone()[0]
        assert killed == 12 and db.execute("SELECT COUNT(*) FROM holds").fetchone() == (0,)


def test_a_second_process_on_a_ledger_says_so_and_stops(tmp_path, served):
    config = config_of("http://127.0.0.1:1", "http://127.0.0.1:1", tmp_path)
    first, url = served(config)
    assert url
    second, nothing = served(config)
    _, error = second.communicate(timeout=20)
    assert (second.returncode, nothing) == (1, "") and "another gateway serves from it" in error
    assert "Traceback" not in error and first.poll() is None
    Ledger(tmp_path / "ledger.db").close()  # reading is no serving
    with pytest.raises(ArtifactError, match="another gateway"):
        Ledger(tmp_path / "ledger.db", owner=True)


def test_a_redis_that_lost_what_others_spent_waits_for_all_of_them(make, tmp_path, monkeypatch):  # noqa: F811
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    port = free_port()
    monkeypatch.setenv("TEST_REDIS", f"redis://127.0.0.1:{port}/0")
    command = ["redis-server", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(tmp_path)]
    shared = {**ALWAYS, "store__redis_env": "TEST_REDIS", "budget__per_day": {"teacher_calls": 4}}
    with started(command, port):
        one, two = make(**shared), make(**shared)
        assert [world.post().headers["x-r2v-arm"] for world in (one, two, one)] == ["teacher"] * 3
    with started(command, port):  # without its data
        one.post()  # on a connection that is gone
        answer = one.post()
        assert (answer.status_code, answer.headers["x-r2v-reason"]) == (503, "store")
        assert "Redis has lost what 2 replicas spent" in answer.json()["error"]["message"] and "1 of them" in answer.text
        one.stack.close()
        again = make(**shared, store__path=str(one.ledger))  # a start by itself changes nothing
        assert again.post().status_code == 503 and len(again.teacher.seen) == 0
        assert two.post().status_code == 503  # on a connection that is gone
        arms = [world.post().headers["x-r2v-arm"] for world in (two, again, two, again)]
        assert arms.count("teacher") == 1, "three of four were spent before"
    with started(command, port):
        again.post()
        answer = again.post()
        assert answer.status_code == 503 and "redis-cli SET r2v:complete: 1 EX 600" in answer.text
        subprocess.run(["redis-cli", "-p", str(port), "SET", "r2v:complete:", "1", "EX", "600"], check=True)
        assert again.post().headers["x-r2v-arm"] in ("teacher", "slm"), "the operator says that there are no others"


def test_a_replica_whose_disk_is_full_spends_nothing_of_what_all_share(make, redis_url, monkeypatch):  # noqa: F811
    monkeypatch.setenv("TEST_REDIS", redis_url)
    world = make(**ALWAYS, store__redis_env="TEST_REDIS", budget__per_day={"teacher_calls": 3, "sessions": 3})

    def post(name):
        return world.post(headers={"x-r2v-session-id": name})

    assert post("a").headers["x-r2v-budget-left"] == "2"
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
        assert [post(f"s{i}").status_code for i in range(5)] == [503] * 5
    assert [post(name).headers["x-r2v-budget-left"] for name in "bc"] == ["1", "0"]


def test_a_stream_that_breaks_before_a_word_came_is_charged(make):  # noqa: F811
    world = make(route__stream="early", small__retries=0, teacher__retries=0)
    world.small.cut, world.teacher.status = 0, [(500, {})]
    text = world.post(stream=True, max_tokens=100).text
    assert "error" in text
    world.small.cut, world.teacher.status = None, []
    name = world.post().headers["x-r2v-session-id"]  # the same: nothing of it was answered before
    (lost,) = world.client.get(f"/v1/sessions/{name}").json()["abandoned"]
    assert lost["tokens"] > 1000 and lost["why"] == "upstream_fallback"


def test_the_benchmark_of_kills_says_where_it_measured_nothing():
    program = Path(__file__).parents[1] / "benchmarks" / "budget_kills.py"
    done = subprocess.run([sys.executable, str(program), "--kills", "0"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "")
    assert "asked 0 times of 60 allowed, charged 0" in done.stdout and "nothing was measured" in done.stdout
