"""The gateway at its limits: budgets, full disks, clocks that jump, large bodies; and what it says of itself in numbers."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

import r2v.clients
import r2v.gateway
from r2v.cli import cli
from r2v.clients.base import Draw
from r2v.clients.mock import MockModel, complete
from r2v.clients.tokens import Tokens
from r2v.core.cache import BoundedCache, remembered
from r2v.core.errors import ArtifactError, SettingsError
from r2v.core.features import EXTENDED, featurise
from r2v.core.mlp import RiskMLP
from r2v.core.seeds import derive_seed, derive_uniform
from r2v.core.types import Action, Candidate, Choice, Context, Decision, Features, Memory, Observation, Step, Usage
from r2v.domains.household.verifier import HouseholdVerifier
from r2v.evaluation.certificate import Certificate, Target, Tried
from r2v.gateway import metrics, sessions
from r2v.gateway.budgets import Account, Amount
from r2v.gateway.candidates import CandidateSource
from r2v.gateway.ledger import VERSION, Ledger
from r2v.gateway.routing import GatewayRouter, load_configured
from r2v.gateway.rows import TABLES, Entry
from r2v.gateway.sessions import Items, LocalSessions
from r2v.gateway.settings import (
    BudgetSettings,
    GatewaySettings,
    LimitSettings,
    PriceSettings,
    RouteSettings,
    ServedModelSettings,
    ServerSettings,
    StoreSettings,
)  # fmt: skip
from r2v.messages.conversation import parse
from r2v.messages.protocol import Reply, encode
from r2v.routers import load_router
from r2v.routers.base import FittedWith
from r2v.routers.benefit import Benefit
from r2v.routers.r2v import R2V
from r2v.routers.random import Random
from r2v.routers.restart import Renewal, Restart
from r2v.runtime.settings import load, validated
from r2v.runtime.store import sha256
from r2v.verifiers.tool_calls import ToolCallVerifier
from servers import KEY
from test_gateway import ASK, AUTH, TOOLS, World, make  # noqa: F401  (a fixture)
from toy import ThresholdRouter


def risk_of_entropy() -> RiskMLP:
    """A risk that depends on the entropy alone."""
    names, ones = EXTENDED, np.ones(len(EXTENDED))
    weight = np.zeros((len(names), 1))
    weight[names.index("first_token_entropy")] = 2.0
    return RiskMLP(names, 0 * ones, ones, ((weight, np.array([-1.0])),), facts={"objective": "test"})


def router_of_entropy(folder: Path, threshold: float = 0.6, fitted_with: FittedWith | None = None) -> Path:
    R2V(threshold=threshold, fitted_with=fitted_with, risk=risk_of_entropy()).save(folder)
    return folder


# -- budgets ------------------------------------------------------------------------------------------------------


def abandoned(world: World) -> list[tuple]:
    """(session, tokens, why) of what left no row but may have to be paid."""
    with closing(sqlite3.connect(world.ledger)) as db:
        return db.execute("SELECT session, tokens, why FROM abandoned ORDER BY time").fetchall()


def test_a_budget_of_tokens_is_never_exceeded(make):  # noqa: F811
    world = make(route__router="verifier", route__threshold=0.0, budget__key_per_day={"tokens": 9000})
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda i: world.post(headers={"x-session-id": f"t{i}"}, max_tokens=50), range(60)))
    ((spent, usd),) = world.rows("SUM(tokens), SUM(slm_usd + teacher_usd)")
    assert 0 < spent <= 9000
    calls = sum(a.headers.get("x-r2v-arm") == "teacher" for a in answers)
    charged = world.service.ledger.accounts.charged(f"all {int(time.time() // 86_400)}")
    assert charged.parts[:3] == (calls, spent, pytest.approx(usd))  # what was not spent has been given back
    assert {200, 402} == {answer.status_code for answer in answers}


def test_a_client_may_set_a_lower_budget_for_its_session(make):  # noqa: F811
    world = make(route__router="verifier", route__threshold=0.0)
    headers = {"x-session-id": "poor", "x-r2v-budget-usd": "0.02"}
    reasons = [world.post(headers=headers, max_tokens=20).headers["x-r2v-reason"] for _ in range(12)]
    assert reasons[0] == "risk_above" and reasons[-1] == "budget_exhausted"
    ((spent,),) = world.rows("SUM(slm_usd + teacher_usd)")
    assert spent <= 0.02
    assert world.post(headers={**headers, "x-r2v-budget-usd": "much"}).status_code == 400


def test_what_a_client_left_half_done_counts_against_its_budget(make):  # noqa: F811
    world = make(budget__session={"tokens": 20_000})
    world.small.delay = 3
    with pytest.raises(httpx.ReadTimeout):
        world.client.post("/v1/chat/completions", json={"messages": ASK}, headers={"x-session-id": "gone"}, timeout=0.4)
    deadline = time.monotonic() + 20
    while not abandoned(world):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (row,) = abandoned(world)
    assert row[0].endswith("/gone") and row[1] > 10_000 and row[2] == "client gone"
    world.small.delay = 0
    answer = world.post(headers={"x-session-id": "gone"})
    assert (answer.status_code, answer.headers["x-r2v-reason"]) == (402, "budget_exhausted")
    world.stack.close()
    again = make(budget__session={"tokens": 20_000})  # and still does after a restart
    assert again.post(headers={"x-session-id": "gone"}).status_code == 402


class Drawing:
    """A client that answers after 2.5 seconds, or is cancelled."""

    name = "drawing"

    def __init__(self, clock: list[float], *, cancelled: bool = False) -> None:
        self.clock, self.cancelled_too, self.asked = clock, cancelled, []

    async def draw(self, request, k, **how):
        self.asked.append((k, how))
        self.clock[0] += 2.5
        if self.cancelled_too:
            raise asyncio.CancelledError
        choice = {"message": {"content": "look"}, "finish_reason": "stop", "logprobs": {"content": []}}
        return Draw([Reply(choice, {}, "chat")] * k, Tokens(7, 3), Usage(1, 7, 3))

    def candidates(self, draw, action):
        return tuple(Candidate(action(reply.choice["message"]), None, None, Usage()) for reply in draw.replies)

    def usd(self, tokens):
        return tokens.total / 8

    def bound(self, request, answers):
        return 100 * answers, 2.0 * answers


@pytest.mark.parametrize("teacher", [False, True])
def test_candidates_are_counted_timed_and_paid_for(monkeypatch, teacher):
    clock = [10.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    client, context = Drawing(clock), Context("goal", ("seen",), (), 50)
    request = parse(b'{"messages": [{"role": "user", "content": "goal"}]}')
    source = CandidateSource(client, request, {"sig": "m"}, role="teacher" if teacher else "slm")
    assert source.spent == Amount()
    for _ in range(2):
        candidates = asyncio.run(source.propose(context, 3, seed=5))
    assert client.asked == [(3, {"seed": None if teacher else 5, "logprobs": not teacher, "authors": {"sig": "m"}})] * 2
    assert (source.drawn, source.seconds, source.spent, source.lost) == (6, 5.0, Amount(int(teacher), 20, 2.5), Amount())
    assert source.reply(candidates[0].action).choice == {"message": {"content": "look"}, "finish_reason": "stop"}
    one = CandidateSource(client, request, {}, role="teacher" if teacher else "slm")
    asyncio.run(one.propose(context, 1, seed=5))
    assert one.spent.calls == int(teacher)
    cancelled = CandidateSource(Drawing(clock, cancelled=True), None, {}, role="teacher" if teacher else "slm")
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled.propose(context, 3, seed=5))
    assert (cancelled.seconds, cancelled.spent, cancelled.lost) == (2.5, Amount(), Amount(int(teacher), 300, 6.0))


# -- what a step leaves for the next ------------------------------------------------------------------------------


def test_sessions_keep_the_latest_of_everything(tmp_path, monkeypatch):
    for name, most in (("SIGNATURES", 2), ("DECISIONS", 2), ("SESSION_BYTES", 5_000)):
        monkeypatch.setattr(sessions, name, most)
    ledger = Ledger(tmp_path / "ledger.db")
    for t in range(3):
        ledger.write(entry_of("old", t, t / 4))

    async def play() -> None:
        local = LocalSessions(ledger, cache_ttl_s=60)
        old = await local.enter("old", dry=True)
        assert (old.t, [d.score for d in old.memory.decisions]) == (3, [0.25, 0.5])
        assert [(await local.enter("a", dry=dry)).t for dry in (True, False, False, True)] == [0, 0, 1, 2]
        a = await local.enter("a", dry=True)
        assert (a.memory.seed, a.prompt_tokens, a.cold) == (derive_seed("a", "episode"), 0, True)
        for i in range(3):
            await local.sign(a, f"sig{i}", f"model{i}")
            await local.remember(a, replace(old.memory.decisions[0], score=float(i)), teacher=i == 0, tokens=i)
        a = await local.enter("a", dry=True)
        assert a.signatures == {"sig1": "model1", "sig2": "model2"}
        assert ([d.score for d in a.memory.decisions], a.prompt_tokens, a.cold) == ([1.0, 2.0], 2, False)
        for identity in ("b", "a", "c"):  # b has not been used for longest
            await local.enter(identity, dry=False)
        assert [(await local.enter(identity, dry=True)).t for identity in ("a", "c", "b")] == [3, 1, 1]
        await local.remember(old, old.memory.decisions[0], teacher=True, tokens=1)  # forgotten: the ledger has it
        await local.sign(old, "sig", "model")
        assert not await local.killed()
        await local.kill(True)
        assert await local.killed()

    asyncio.run(play())
    ledger.close()


def test_caches_are_bounded_by_bytes_whatever_the_number_of_entries():
    cache: BoundedCache[str, str] = BoundedCache(10_000)
    for i in range(1000):
        cache.put(str(i), "x", 1_000)
    assert len(cache) == 6 and cache.bytes == 9_000 and cache.get("998") == "x" and cache.get("1") is None
    cache.put("large", "x", 20_000)  # alone too large: nothing else has to go for it
    assert cache.get("large") is None and len(cache) == 6
    cache.put("999", "y", 9_000)
    assert (len(cache), cache.bytes, cache.get("999")) == (1, 9_500, "y")
    made = []
    known = remembered(10_000, lambda text, *, upper=False: len(text))(lambda text, *, upper=False: made.append(text))
    for text in ("a", "a", "b" * 20_000, "b" * 20_000):
        known(text)
    known("a", upper=True)
    assert [text[0] for text in made] == ["a", "b", "b", "a"]


def test_what_clients_may_refer_to_is_kept_as_bytes():
    items = Items(most_bytes=900)
    items.keep("key", {"a": [{"type": "message", "content": "x" * 500}]})
    assert items.get("key", "a") == encode([{"type": "message", "content": "x" * 500}]) and items.get("other", "a") is None
    items.keep("key", {"b": [{"content": "y" * 500}]})
    assert items.get("key", "a") is None and items.get("key", "b") is not None


def test_a_key_that_refers_to_much_makes_others_forget_nothing():
    items = Items(most_bytes=3_000)
    items.keep("small", {"mine": [{"content": "x" * 100}]})
    for i in range(20):
        items.keep("large", {f"i{i}": [{"content": "y" * 900}]})
    assert items.get("small", "mine") is not None
    assert [i for i in range(20) if items.get("large", f"i{i}") is not None] == [17, 18, 19]


def decided(score: float, memory: Memory = Memory(), *, seed: int = 0, parts: dict | None = None, **route) -> tuple:  # noqa: B008
    router = GatewayRouter(ThresholdRouter("risk", lambda _: score, 0.5), RouteSettings(**route), **parts or {})
    decision = router.decide(Context("goal", ("seen",), (), 50), Features((), ()), memory, seed=seed)
    return decision.route, decision.code, decision.propensity


def test_without_settings_the_routers_decision_stands():
    assert decided(0.5, switch_usd=0.9) == ("escalate", "risk_above", 1.0)
    assert decided(0.4) == ("continue", "risk_below", 1.0)


def test_a_lost_cache_costs_its_share_of_a_failure_and_no_more():
    cold, price = {"cold": True}, {"switch_usd": 0.25, "failure_usd": 2.0}
    assert decided(0.624, parts=cold, **price) == ("continue", "switch_cost", 1.0)
    assert decided(0.625, parts=cold, **price) == ("escalate", "risk_above", 1.0)


def test_who_may_answer_comes_before_what_the_router_wants():
    none_left = Memory(calls_left=0)
    assert decided(0.9, none_left, explore=0.5, seed=1)[1:] == ("budget_exhausted", 1.0)
    assert decided(0.4, none_left) == ("continue", "risk_below", 1.0)
    # Whatever is drawn the SLM goes on: that was certain.
    assert {decided(0.4, none_left, explore=0.5, seed=seed)[::2] for seed in range(40)} == {("continue", 1.0)}
    assert decided(0.4, none_left, clear=(0.0, 0.5))[:2] == ("retry", "retry")  # drawing again calls no teacher
    assert decided(0.9, Memory(calls_left=1)) == ("escalate", "risk_above", 1.0)
    assert decided(0.4, parts={"forced": "teacher"}) == ("escalate", "forced", 1.0)
    assert decided(0.9, parts={"forced": "slm"}, clear=(0.0, 1.0)) == ("continue", "forced", 1.0)
    assert decided(0.9, none_left, parts={"forced": "teacher"}) == ("continue", "budget_exhausted", 1.0)


@pytest.mark.parametrize(
    ("score", "code"), [(0.374, "risk_below"), (0.375, "retry"), (0.624, "retry"), (0.625, "risk_above")]
)
def test_one_candidate_is_not_enough_within_the_bounds(score, code):
    bounds = {"clear": (0.375, 0.625)}
    plain = "risk_above" if score >= 0.5 else "risk_below"
    assert decided(score, **bounds)[1] == code
    assert decided(score, Memory(retries=1), **bounds)[1] == decided(score, k=1, **bounds)[1] == plain


@pytest.mark.parametrize(
    ("codes", "kept"),
    [("", False), ("e", True), ("eh", True), ("ehh", False), ("ec", True), ("ecc", False), ("c", False), ("eheh", True)],
)
def test_the_teacher_keeps_so_many_steps_from_an_escalation_on(codes, kept):
    made = {"e": ("escalate", "risk_above"), "h": ("escalate", "hold"), "c": ("continue", "risk_below")}
    memory = Memory(decisions=tuple(Decision(*made[c], 0.9, "risk", 0.5, 1.0, (), "") for c in codes))
    expected = ("escalate", "hold", 1.0) if kept else ("continue", "risk_below", 1.0)
    assert decided(0.4, memory, hold_steps=3) == expected
    assert decided(0.4, memory) == ("continue", "risk_below", 1.0)
    assert (decided(0.4, memory, hold_steps=2)[1] == "hold") == (codes == "e")


@pytest.mark.parametrize(("score", "wanted"), [(0.9, "escalate"), (0.4, "continue")])
def test_explored_steps_are_those_drawn_and_every_propensity_is_exact(score, wanted):
    for seed in range(200):
        route, code, propensity = decided(score, seed=seed, explore=0.4)
        assert (code == "explore") == (derive_uniform(seed, "explore?") < 0.4)
        assert propensity == pytest.approx(0.8 if route == wanted else 0.2)
        if code == "explore":
            assert (route == "escalate") == (derive_uniform(seed, "explore") < 0.5)


def test_the_propensity_counts_what_the_router_itself_draws():
    router = GatewayRouter(Random(threshold=0.3), RouteSettings(explore=0.2))
    context, features = Context("goal", ("seen",), (), 50), Features((), ())
    decisions = [router.decide(context, features, Memory(), seed=seed) for seed in range(400)]
    for decision in decisions:
        # A tenth of the steps are escalated because they were explored, and 0.3 of the other eight tenths.
        assert decision.propensity == pytest.approx(0.34 if decision.route == "escalate" else 0.66)
    assert np.mean([decision.route == "escalate" for decision in decisions]) == pytest.approx(0.34, abs=0.08)
    # The teacher keeps the step whatever the router draws.
    held = replace(router, route=RouteSettings(hold_steps=2))
    kept = Memory(decisions=(Decision("escalate", "random", None, None, 0.3, 0.3, (), ""),))
    found = {held.decide(context, features, kept, seed=seed).code: held.decide(context, features, kept, seed=seed)
             for seed in range(40)}  # fmt: skip
    assert (found["hold"].route, found["hold"].propensity) == ("escalate", 1.0)


# -- the ledger ---------------------------------------------------------------------------------------------------


def test_the_ledger_sums_and_lists_what_was_written(tmp_path):
    ledger = Ledger(tmp_path / "new" / "ledger.db")
    ledger.write(entry_of("a", 0, 0.1), b'["first"]')
    ledger.write(entry_of("a", 1, 0.2, "teacher"), b'["second"]')
    ledger.write(replace(entry_of("b", 5, 0.3), key="other"), b"null")
    ledger.accounts.hold("c", Account("b", "other", 0), Amount(2, 50, 9.0))
    ledger.accounts.release("c", Amount(), Amount(2, 5, 1.0), "client gone")
    sums = {scope: ledger.accounts.charged(scope).parts for scope in ("session a", "key other 0", "all 0", "session nobody")}
    assert sums == {
        "session a": (1, 20, pytest.approx(0.042), 0), "key other 0": (2, 15, pytest.approx(1.021), 0),
        "all 0": (3, 35, pytest.approx(1.063), 0), "session nobody": (0, 0, 0.0, 0),
    }  # fmt: skip
    assert ledger.has("a") and not ledger.has("nobody")
    assert [ledger.tools(session) for session in "ab"] == ['["first"]', ""]
    for t, reward in ((None, 0.25), (1, 0.5), (None, 0.75)):
        ledger.outcome("a", t, reward)
    assert ledger.outcomes("a") == [(1, 0.5), (None, 0.75)]  # the latest of each
    assert list(ledger.all_sessions()) == ["a", "b"]
    newest, older = ledger.sessions(2)
    assert ledger.sessions(1) == [newest] and (newest["session"], newest["reward"]) == ("b", None)
    assert older == {
        "session": "a", "steps": 2, "time": 1.0, "teacher_calls": 1, "slm_usd": pytest.approx(0.002),
        "teacher_usd": pytest.approx(0.04), "saved_usd": 0.0, "goal": "goal", "reward": 0.75,
        "verdict": "", "alike": None, "escalated": 0, "labelled": 0, "mode": None,
    }  # fmt: skip
    assert ledger.steps("a")[1] == entry_of("a", 1, 0.2, "teacher")
    ledger.close()


# -- adaptive K ---------------------------------------------------------------------------------------------------


def test_clear_steps_are_decided_on_one_candidate_and_others_on_all(make, tmp_path):  # noqa: F811
    router = router_of_entropy(tmp_path / "router")
    world = make(route__router=str(router), route__clear=(0.45, 0.9))
    world.small.mock_model = MockModel("small-1", error_rate=0.0)
    sure = world.post(tools=TOOLS, headers={"x-session-id": "a"})
    assert world.rows("candidates") == [(1,)] and [b.get("n", 1) for b in world.small.seen] == [1]
    world.small.mock_model = MockModel("small-1", error_rate=1.0)
    unsure = world.post(tools=TOOLS, headers={"x-session-id": "a"})
    assert world.rows("candidates")[1:] == [(3,)] and [b.get("n", 1) for b in world.small.seen[1:]] == [1, 2]
    assert float(sure.headers["x-r2v-risk"]) < 0.45 <= float(unsure.headers["x-r2v-risk"]) < 0.9
    choice = Ledger(world.ledger).steps(world.rows("session")[1][0])[1].step.choice
    assert choice.slm.calls == 2 and len(choice.scores) == 3


# -- faults -------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_a_503_and_no_answer_leaves(make):  # noqa: F811
    world = make()
    assert world.post().status_code == 200
    db = world.service.ledger._db
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite then says what it says on a full disk
    answers = [world.post(messages=[{"role": "user", "content": "x" * 3000}]) for _ in range(6)]
    assert answers[-1].status_code == 503 and answers[-1].headers["x-r2v-reason"] == "ledger"
    assert "full" in answers[-1].json()["error"]["message"] and "choices" not in answers[-1].json()
    db.execute("PRAGMA max_page_count = 1000000")
    assert world.post().status_code == 200


@pytest.mark.parametrize("jump", [-3 * 86_400.0, 86_400.0])
def test_a_clock_that_jumps_loses_and_breaks_nothing(make, monkeypatch, jump):  # noqa: F811
    world = make(route__router="verifier", route__threshold=0.0, budget__per_day={"teacher_calls": 100})
    headers = {"x-session-id": "c"}
    real = time.time
    arms = []
    for shift in (0.0, jump, 0.0, -jump):
        monkeypatch.setattr(time, "time", lambda shift=shift: real() + shift)
        arms.append(world.post(headers=headers).headers["x-r2v-arm"])
    assert arms == ["teacher"] * 4
    shown = world.client.get("/v1/sessions/c").json()
    assert [step["step"] for step in shown["steps"]] == [0, 1, 2, 3]


def test_large_bodies_are_served_up_to_the_limit_and_refused_above(make):  # noqa: F811
    world = make(small__timeout_s=20)
    told = complete(MockModel("m"), {"messages": ASK, "n": 3})
    world.small.reply = world.teacher.reply = lambda body: told  # the made-up model would be busy for seconds
    image = "data:image/png;base64," + "A" * 9_000_000
    parts = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": image}}]
    answer = world.post(messages=[{"role": "user", "content": parts}])
    assert answer.status_code == 200, answer.text[:500]
    assert world.small.seen[-1]["messages"][0]["content"][1]["image_url"]["url"] == image  # passed on as it came
    assert world.post(messages=[{"role": "user", "content": "x" * 11_000_000}]).status_code == 413


def test_a_request_that_is_too_long_for_one_model_goes_to_the_other(make):  # noqa: F811
    world = make(small__context_tokens=1000)
    long = [{"role": "user", "content": "look for the red value " * 400}]
    answer = world.post(messages=long)
    assert (answer.headers["x-r2v-arm"], answer.headers["x-r2v-reason"]) == ("teacher", "upstream_fallback")
    assert not world.small.seen
    assert world.post(model="r2v:slm").headers["x-r2v-arm"] == "slm"


def test_a_server_that_says_a_request_is_too_long_is_believed(make):  # noqa: F811
    world = make()
    told = {"error": {"message": "This model's maximum context length is 8192 tokens", "code": "context_length_exceeded"}}
    world.small.refuse = (400, told)
    answer = world.post()
    assert (answer.status_code, answer.headers["x-r2v-arm"]) == (200, "teacher")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "limit"),
    [("/v1/chat/completions", "max_tokens"), ("/v1/messages", "max_tokens"), ("/v1/responses", "max_output_tokens")],
)
def test_a_prompt_that_is_too_long_for_all_is_said_in_words_that_agents_know(make, path, limit, stream):  # noqa: F811
    told = {"error": {"message": "maximum context length is 8192 tokens, you sent 9000", "code": "context_length_exceeded"}}
    for mode in ("active", "observe"):
        world = make(route__mode=mode)
        world.small.refuse = world.teacher.refuse = (400, told)
        text = {"input": "look"} if path == "/v1/responses" else {"messages": [{"role": "user", "content": "look"}]}
        answer = world.post(path, {"model": "r2v", limit: 99, "stream": stream, **text})
        error = answer.json()["error"]
        assert (answer.status_code, answer.headers["x-r2v-reason"]) == (400, "prompt_too_long")
        assert error["message"].startswith("prompt is too long: 9000 tokens > 8192 maximum")
        assert error.get("code", "context_length_exceeded") == "context_length_exceeded"
        world.small.refuse = None  # it has more room: it serves where the operator lets it
        answer = world.post(path, {"model": "r2v:teacher" if mode == "active" else "r2v", limit: 99, **text})
        assert answer.status_code == 400 and not world.rows()


@pytest.mark.parametrize("score", [None, float("nan"), 1.5])
def test_a_verifier_that_breaks_gives_the_step_to_the_teacher(make, monkeypatch, score):  # noqa: F811
    async def broken(self, context, actions):
        if score is None:
            raise ZeroDivisionError("no idea")
        return (score,) * len(actions)

    world = make()
    monkeypatch.setattr(ToolCallVerifier, "score", broken)
    answer = world.post()
    assert (answer.headers["x-r2v-arm"], answer.headers["x-r2v-reason"]) == ("teacher", "verifier_failed")


def test_what_a_model_does_not_offer_is_absent_not_made_up(make):  # noqa: F811
    world = make(small__offers_logprobs=False)
    world.post()
    (entry,) = Ledger(world.ledger).steps(world.rows("session")[0][0])
    features = entry.step.choice.features
    assert features is not None and not features.present[EXTENDED.index("first_token_entropy")]
    assert "logprobs" not in world.small.seen[0]


def test_every_setting_of_the_gateway_is_read():
    """A documented key that nothing reads would be a promise that nobody keeps."""
    rooms = (Path(r2v.gateway.__file__).parent, Path(r2v.clients.__file__).parent)
    source = "".join(path.read_text() for room in rooms for path in room.glob("*.py") if path.name != "settings.py")
    source += inspect.getsource(PriceSettings.usd)
    for group in (
        ServedModelSettings,
        PriceSettings,
        RouteSettings,
        BudgetSettings,
        LimitSettings,
        ServerSettings,
        StoreSettings,
    ):
        for name in group.__struct_fields__:
            assert f".{name}" in source, f"{group.__name__}.{name}"


# -- numbers ------------------------------------------------------------------------------------------------------


def test_savings_are_net_of_drafts_and_of_the_lost_cache(make):  # noqa: F811
    """One step of each kind, computed by hand from the tokens that the models told."""
    world = make(teacher__price={"input": 10, "output": 20, "cached": 1}, small__price={"input": 1, "output": 2})
    tokens = {"prompt_tokens": 1000, "completion_tokens": 60, "total_tokens": 1060}

    def reply(body: dict) -> dict:
        n = body.get("n", 1)
        choice = {"message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
        return {"choices": [choice] * n, "usage": tokens}

    world.small.reply = world.teacher.reply = reply
    for model in ("r2v:slm", "r2v:slm", "r2v:teacher"):
        assert world.post(model=model, headers={"x-session-id": "s"}).status_code == 200
    saved = [row[0] for row in world.rows("saved_usd")]
    small, output = (1000 * 1 + 60 * 2) / 1e6, 20 * 20 / 1e6  # three drafts of 20 tokens; the teacher would write one
    first, second = 1000 * 10 / 1e6 + output - small, 1000 * 1 / 1e6 + output - small
    third = (1000 * 1 + 60 * 20) / 1e6 - (1000 * 10 + 60 * 20) / 1e6  # its cache was lost
    assert saved == pytest.approx([first, second, third])
    stats = world.client.get("/v1/stats").json()
    assert stats["saved_usd"] == pytest.approx(sum(saved))


def test_calibration_and_drift_are_told_as_outcomes_arrive(make, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(metrics, "AGAIN_S", 0.0)
    world = make(route__router=str(router_of_entropy(tmp_path / "router")), route__threshold=2.0)
    assert world.client.get("/v1/stats").json()["drift"] is None
    for i in range(6):
        world.post(headers={"x-session-id": f"s{i}"}, messages=[{"role": "user", "content": f"task {i}"}])
        world.post("/v1/outcomes", {"session_id": f"s{i}", "reward": i % 2})
    world.post(model="r2v:teacher", headers={"x-session-id": "asked"})
    world.post("/v1/outcomes", {"session_id": "asked", "reward": 1})
    stats = world.client.get("/v1/stats").json()
    risks = [risk for (risk,) in world.rows("score") if risk is not None]
    failed = [1.0 - i % 2 for i in range(6)]
    told = stats["calibration"]
    assert (told["sessions"], told["steps"]) == (6, 6)  # not the one that the teacher played in
    assert told["brier"] == pytest.approx(np.mean((np.array(risks) - failed) ** 2))
    assert sum(count for _, _, count in told["bins"]) == 6
    assert stats["drift"]["steps"] == 6 and stats["drift"]["score"] > 0 and stats["drift"]["feature"] in EXTENDED
    shown = world.client.get("/metrics").text
    assert "r2v_drift_score" in shown and "r2v_calibration_ece" in shown and "r2v_certificate_valid 0" in shown


def entry_of(session: str, t: int, score: float | None, source: str = "slm", kind: str = "risk") -> Entry:
    decision = Decision("continue", "risk_below", score, kind, 0.5, 1.0, (), "risk_below")
    choice = Choice(Action("look"), source, (), (), None, decision, Usage(), Usage())
    step = Step(t, 0, Observation("seen", False, None, None, "", ()), choice)
    return Entry(
        f"{session}-{t}", session, t, float(t), "key", source, "risk_below", "small-1", score, kind, 0.5, 1.0, 0.001, 0.02,
        0.0, 10, int(source == "teacher"), 1, 1.0, "continue", "goal", step,
    )  # fmt: skip


def test_calibration_is_not_computed_again_with_every_outcome(tmp_path, monkeypatch):
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        overview = metrics.Overview(load_configured(RouteSettings()), ledger)
        for again_s, computed in ((1e9, 1), (1e9, 1), (0.0, 3), (0.0, 4)):
            monkeypatch.setattr(metrics, "AGAIN_S", again_s)
            session = f"s{len(ledger.sessions(9))}"
            ledger.write(entry_of(session, 0, 0.25))
            ledger.outcome(session, None, 1.0)
            assert overview.calibration()["sessions"] == computed


def test_scores_are_set_against_the_outcomes_of_sessions_that_the_slm_played_alone(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db")
    for session, reward in (("zero", 0.0), ("below", 0.49), ("half", 0.5), ("one", 1.0)):
        ledger.write(entry_of(session, 0, 0.25))
        ledger.write(entry_of(session, 1, 0.75))
        ledger.outcome(session, None, reward)
    ledger.write(entry_of("helped", 0, 0.9, "teacher"))
    ledger.outcome("helped", None, 0.0)
    ledger.write(entry_of("one", 2, 3.0, kind="entropy"))  # another router's
    ledger.write(entry_of("one", 3, None))
    pairs, sessions = ledger.scores_and_failures(10, "risk")
    assert sessions == 4
    assert sorted(pairs) == [(score, failed) for score in (0.25, 0.75) for failed in (0.0, 0.0, 1.0, 1.0)]
    assert (3.0, 0.0) in ledger.scores_and_failures(10, None)[0]
    ledger.close()


def test_money_and_time_are_counted_for_each_model(make):  # noqa: F811
    world = make(small__price={"input": 1, "output": 2}, teacher__price={"input": 100, "output": 200})
    for model in ("r2v:slm", "r2v:teacher"):
        assert world.post(model=model, headers={"x-session-id": "m"}).status_code == 200
    slm, teacher = (sum(column) for column in zip(*world.rows("slm_usd, teacher_usd"), strict=True))
    assert 0 < slm < teacher / 10
    usd = world.client.get("/v1/stats").json()["usd"]
    assert usd == {"slm": pytest.approx(slm), "teacher": pytest.approx(teacher)}
    text = world.client.get("/metrics").text
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text) for sample in family.samples
    }  # fmt: skip
    assert samples["r2v_cost_usd_total", "slm"] == pytest.approx(slm)
    assert samples["r2v_cost_usd_total", "teacher"] == pytest.approx(teacher)
    assert samples["r2v_requests_total", "teacher"] == samples["r2v_requests_total", "slm"] == 1
    assert samples["r2v_decisions_total", "teacher", "forced"] == 1
    assert samples["r2v_overhead_seconds_count",] == 2 and samples["r2v_overhead_seconds_bucket", "+Inf"] == 2
    assert samples["r2v_model_seconds_count", "slm"] >= 1 and samples["r2v_model_seconds_count", "teacher"] == 1
    assert samples["r2v_upstream_available", "slm"] == 1 and samples["r2v_certificate_valid",] == 0
    types = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert types["r2v_overhead_seconds"] == "histogram" and types["r2v_saved_usd"] == "gauge"
    assert types["r2v_requests"] == types["r2v_cost_usd"] == types["r2v_upstream_attempts"] == "counter"


# -- ledgers of other versions ---------------------------------------------------------------------------------------

VERSION_2 = """
CREATE TABLE steps (
  id TEXT PRIMARY KEY, session TEXT NOT NULL, t INTEGER NOT NULL, time REAL NOT NULL, key TEXT NOT NULL,
  arm TEXT NOT NULL, reason TEXT NOT NULL, model TEXT NOT NULL, risk REAL, threshold REAL, propensity REAL NOT NULL,
  slm_usd REAL NOT NULL, teacher_usd REAL NOT NULL, saved_usd REAL NOT NULL, tokens INTEGER NOT NULL,
  teacher_calls INTEGER NOT NULL, candidates INTEGER NOT NULL,
  overhead_ms REAL NOT NULL, would TEXT NOT NULL, goal TEXT NOT NULL, record BLOB NOT NULL
);
CREATE INDEX steps_of_session ON steps (session, t);
CREATE INDEX steps_by_time ON steps (time);
CREATE TABLE outcomes (session TEXT NOT NULL, t INTEGER, reward REAL NOT NULL, time REAL NOT NULL);
CREATE INDEX outcomes_of_session ON outcomes (session);
CREATE TABLE lost (
  session TEXT NOT NULL, key TEXT NOT NULL, time REAL NOT NULL, calls INTEGER NOT NULL, tokens INTEGER NOT NULL,
  usd REAL NOT NULL
);
CREATE INDEX lost_of_session ON lost (session);
PRAGMA user_version = 2;
"""


def ledger_of_version_2(path: Path) -> None:
    """One session of two steps, as r2v 0.1 wrote it, an outcome and an abandoned call."""
    usage = {"calls": 0, "prompt_tokens": None, "completion_tokens": None, "usd": None}
    seen = {"text": "seen", "done": False, "success": None, "reward": None, "latent": "", "changes": []}
    with closing(sqlite3.connect(path)) as db:
        db.executescript(VERSION_2)
        for t, (arm, rung) in enumerate((("slm", "continue"), ("teacher", "teacher_step"))):
            reason = "risk_below: 0.300 < 0.400" if arm == "slm" else "risk_above: 0.700 >= 0.400"
            risk = 0.3 if arm == "slm" else 0.7
            decision = {"rung": rung, "risk": risk, "threshold": 0.4, "propensity": 1.0, "reason": reason}
            choice = {
                "action": {"text": "look", "tool_calls": []}, "actor": arm, "candidates": [], "scores": [0.5],
                "features": None, "decision": decision, "slm": usage, "teacher": usage,
            }  # fmt: skip
            record = json.dumps({"t": t, "seed": 0, "observation": seen, "choice": choice})
            db.execute(
                f"INSERT INTO steps VALUES ({', '.join('?' * 21)})",
                (f"id{t}", "k/s", t, 100.0 + t, "k", arm, reason.split(":")[0], "m", risk, 0.4, 1.0, 0.25, 0.5, 0.1, 30,
                 int(arm == "teacher"), 2, 1.5, rung, "the goal", record.encode()),
            )  # fmt: skip
        db.execute("INSERT INTO outcomes VALUES ('k/s', NULL, 1.0, 200.0)")
        db.execute("INSERT INTO lost VALUES ('k/s', 'k', 150.0, 1, 7, 0.125)")
        db.commit()


def test_a_ledger_of_version_2_opens_and_goes_on(make, tmp_path):  # noqa: F811
    ledger_of_version_2(tmp_path / "ledger.db")
    world = make()
    ledger = world.service.ledger
    first, second = ledger.steps("k/s")
    assert (first.source, first.code, first.score, first.score_kind, first.route) == (
        "slm",
        "risk_below",
        0.3,
        None,
        "continue",
    )
    assert (second.source, second.route, second.step.choice.source) == ("teacher", "escalate", "teacher")
    assert second.step.choice.decision == Decision(
        "escalate", "risk_above", 0.7, "custom", 0.4, 1.0, (), "risk_above: 0.700 >= 0.400"
    )
    assert ledger.accounts.charged("session k/s") == Amount(2, 67, 1.625) and ledger.outcomes("k/s") == [(None, 1.0)]
    assert world.post(headers={"x-session-id": "new"}).status_code == 200
    world.post(headers={"x-session-id": "new"})
    assert ledger.accounts.charged("all 0") == Amount(2, 67, 1.625)
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)
        fresh = Ledger(tmp_path / "fresh.db")
        tables = (*TABLES, "modes", "session_totals", "day_totals", "charges", "holds")
        for table in tables:  # as in a new ledger
            migrated, new = ({row[1:4] for row in one.execute(f"PRAGMA table_info({table})")} for one in (db, fresh._db))
            assert migrated == new
        fresh.close()


def test_a_migration_that_fails_leaves_the_ledger_as_it_was(tmp_path):
    path = tmp_path / "ledger.db"
    ledger_of_version_2(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE abandoned (x)")  # in the way of the last statements
        before = list(db.iterdump())
    with pytest.raises(ArtifactError, match="abandoned"):
        Ledger(path)
    with closing(sqlite3.connect(path)) as db:
        assert list(db.iterdump()) == before and db.execute("PRAGMA user_version").fetchone() == (2,)


def test_a_ledger_of_a_newer_version_is_refused_in_one_line(tmp_path):
    Ledger(tmp_path / "ledger.db").close()
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(ArtifactError, match=rf"schema 99, this one has {VERSION}.*upgrade r2v or choose another store"):
        Ledger(tmp_path / "ledger.db")


# -- settings ---------------------------------------------------------------------------------------------------------


def test_the_old_name_of_the_slm_still_loads_and_both_names_are_refused(tmp_path):
    model = "{base_url: http://x/v1, model: m, price: {input: 1, output: 2, cache_write: 1.25}}"
    path = tmp_path / "r2v.yaml"

    def loaded(*names: str) -> GatewaySettings:
        path.write_text("version: 1\nmodels:\n" + "".join(f"  {name}: {model}\n" for name in names))
        return load(path, GatewaySettings)

    assert loaded("small", "teacher") == loaded("slm", "teacher")
    assert set(loaded("small", "teacher").models) == {"slm", "teacher"}
    with pytest.raises(SettingsError, match="old name of `slm`"):
        loaded("small", "slm", "teacher")
    with pytest.raises(SettingsError, match="teacher is missing"):
        loaded("slm")


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_missing_file_is_answered_with_the_command_that_writes_one(refused, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    told = "r2v: missing.yaml does not exist; `r2v init FILE` writes gateway settings to start from\n"
    assert refused(command, "missing.yaml") == told


WINDOWS = """
import asyncio, multiprocessing, subprocess, sys, tempfile  # Python's own modules are others on Windows
for name in ("fcntl", "resource", "pwd", "grp", "termios", "uvloop"):
    sys.modules[name] = None
from r2v.cli import app
sys.argv = ["r2v", "serve", "--mock", "--port", "0"]
app()
"""


def test_the_gateway_starts_without_the_modules_of_unix(tmp_path):
    command, environment = [sys.executable, "-c", WINDOWS], {**os.environ, "R2V_API_KEY": KEY}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as server:
        try:
            assert server.stdout is not None
            url = next(line for line in server.stdout if line.startswith("gateway")).split()[1]
            answer = httpx.post(
                f"{url}/v1/chat/completions", json={"model": "r2v", "messages": ASK}, headers=AUTH, timeout=60
            )
            assert answer.status_code == 200 and answer.headers["x-r2v-arm"] in ("slm", "teacher")
        finally:
            server.kill()


def test_a_certificate_holds_for_its_router_and_threshold_alone(make, tmp_path):  # noqa: F811
    router = router_of_entropy(tmp_path / "fit" / "r2v", threshold=0.5)
    path = tmp_path / "certificate.json"

    def certify(**changes) -> RouteSettings:
        facts = {"router": "r2v", "threshold": 0.5, "identity": {"router": sha256(router)}} | changes
        Certificate(
            facts["router"], Target(0.1, 0.1, None), facts["threshold"], 300, (1, 2),
                tuple(Tried(threshold, 0.05, 0.01, 2.0) for threshold in (0.5, 0.4)),
            facts["identity"], "2026-11-21",
        ).save(path)  # fmt: skip
        return RouteSettings(router=str(router), certificate=str(path))

    certify()
    world = make(route__router=str(router), route__certificate=str(path))
    shown = world.client.get("/v1/stats").json()["certificate"]
    assert (shown["max_failure"], shown["claim"]) == (0.1, "failure rate below 0.1")
    with pytest.raises(ArtifactError, match="another router"):
        load_configured(certify(identity={"router": "0"}))
    with pytest.raises(ArtifactError, match="proves nothing, not"):
        load_configured(certify(threshold=None))
    with pytest.raises(ArtifactError, match=r"proves the threshold 0\.4"):
        load_configured(certify(threshold=0.4))
    with pytest.raises(SettingsError, match="only routers of a run have certificates"):
        load_configured(RouteSettings(router="entropy", certificate=str(path)))


def test_a_router_that_is_not_there_is_said_beside_those_that_are():
    with pytest.raises(SettingsError, match=r"`route\.router` = nosuch: there is no such folder") as error:
        load_configured(RouteSettings(router="nosuch"))
    for name in str(error.value).split("there are ")[1].replace(" and ", ", ").split(", "):
        assert load_configured(RouteSettings(router=name)).name == name


HOUSEHOLD = FittedWith(k=2, horizon=40, verifier="household")


def test_a_fitted_router_decides_as_it_does_alone(tmp_path):
    folder = router_of_entropy(tmp_path / "r2v")
    configured, alone = load_configured(RouteSettings(router=str(folder))), load_router(folder)
    context = Context("goal", ("seen",), (), 50)
    for entropy in (0.1, 0.6, 1.2, 2.0):
        features = featurise(context, [Candidate(Action("look"), -1.0, entropy, Usage())], [0.5])
        here = configured.make(configured.threshold).decide(context, features, Memory(), seed=1)
        assert here == alone.decide(context, features, Memory(), seed=1)
    measured = ((0.5, Renewal(0.5, 5.0, 9.0, 0.5, 0.1, 3.0, 3.0)),)
    Restart(threshold=0.5, risk=risk_of_entropy(), measured=measured).save(tmp_path / "restart")
    with pytest.raises(SettingsError, match="cannot"):
        load_configured(RouteSettings(router=str(tmp_path / "restart")))


def test_a_router_sees_what_it_was_fitted_with(make, tmp_path):  # noqa: F811
    folder = router_of_entropy(tmp_path / "r2v", fitted_with=HOUSEHOLD)
    route = load_configured(validated(RouteSettings, {"router": str(folder), "k": 2})).route
    assert (route.verifier, route.horizon, route.k) == ("household", 40, 2)
    with pytest.raises(SettingsError, match="fitted with verifier household"):
        load_configured(validated(RouteSettings, {"router": str(folder), "verifier": "terminal"}))
    assert load_configured(RouteSettings(router="entropy", verifier="terminal")).route.verifier == "terminal"
    world = make(route__router=str(folder), route__k=2)
    world.post(headers={"x-session-id": "v"})
    (session,) = [row["session"] for row in world.service.ledger.sessions(5)]
    (entry,) = world.service.ledger.steps(session)
    context = Context(entry.goal, (entry.step.observation.text,), (), 40)
    actions = [candidate.action for candidate in entry.step.choice.candidates]
    assert entry.step.choice.scores == asyncio.run(HouseholdVerifier().score(context, actions))


def test_a_takeover_ends_when_the_client_or_the_kill_switch_says_slm(make):  # noqa: F811
    world = make(route__router="judge_latch", route__threshold=0.0)  # every answer fails the judge
    headers = {"x-session-id": "l"}
    reasons = [world.post(headers=headers).headers["x-r2v-reason"] for _ in range(5)]
    assert reasons[-2:] == ["latch", "latch"] and "risk_below" in reasons
    assert world.post(headers={**headers, "x-r2v-arm": "slm"}).headers["x-r2v-arm"] == "slm"
    world.post("/v1/kill", {"on": True})
    assert world.post(headers=headers).headers["x-r2v-arm"] == "slm"


# -- the price of a lost cache --------------------------------------------------------------------------------------


def test_what_a_router_was_fitted_with_holds_and_nothing_else(tmp_path):
    folder = str(router_of_entropy(tmp_path / "r2v", fitted_with=FittedWith(3, 7, "household")))
    route = load_configured(validated(RouteSettings, {"router": folder, "horizon": 7})).route
    assert (route.k, route.horizon, route.verifier) == (3, 7, "household")
    for wrong in ({"k": 2}, {"horizon": 8}, {"verifier": "tool_calls"}):
        with pytest.raises(SettingsError, match=f"fitted with {next(iter(wrong))}"):
            load_configured(validated(RouteSettings, {"router": folder, **wrong}))


def test_a_lost_cache_raises_the_threshold_and_a_warm_one_does_not(tmp_path):
    """The SLM keeps a step whose risk is above the threshold, but by less than the lost cache is worth."""
    folder = router_of_entropy(tmp_path / "r2v", threshold=0.5)
    route = RouteSettings(router=str(folder), switch_usd=0.4, failure_usd=2.0)
    configured, context = load_configured(route), Context("goal", ("seen",), (), 50)

    def decided(entropy: float, cold: bool) -> tuple[str, str]:
        features = featurise(context, [Candidate(Action("look"), -1.0, entropy, Usage())], [0.5])
        router = GatewayRouter(configured.make(0.5), configured.route, cold=cold)
        decision = router.decide(context, features, Memory(), seed=1)
        return decision.route, decision.code

    slightly, clearly = 0.6, 1.5  # risks of 0.55 and 0.88
    assert decided(slightly, cold=True) == ("continue", "switch_cost")
    assert decided(slightly, cold=False) == ("escalate", "risk_above")
    assert decided(clearly, cold=True) == ("escalate", "risk_above")
    assert decided(0.4, cold=True) == ("continue", "risk_below")  # a risk of 0.45: never a reason to escalate


def test_a_session_is_cold_until_the_teacher_answers_and_after_its_cache_has_expired(tmp_path, monkeypatch):
    async def play() -> list[bool]:
        ledger, now = Ledger(tmp_path / "ledger.db"), [100.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        sessions, cold = LocalSessions(ledger, cache_ttl_s=60), []

        async def step(at: float, teacher: bool) -> None:
            now[0] = at
            session = await sessions.enter("s", dry=False)
            cold.append(session.cold)
            decision = Decision("continue", "risk_below", 0.1, "risk", 0.5, 1.0, (), "")
            await sessions.remember(session, decision, teacher=teacher, tokens=1)

        for at, teacher in ((100.0, False), (101.0, True), (102.0, False), (161.0, False), (162.0, False)):
            await step(at, teacher)
        ledger.close()
        return cold

    assert asyncio.run(play()) == [True, True, False, False, True]


def test_a_lost_cache_has_a_price_only_where_the_score_is_a_probability(make, tmp_path):  # noqa: F811
    with pytest.raises(SettingsError, match="is no probability"):
        load_configured(RouteSettings(router="entropy", switch_usd=0.1))
    risk = risk_of_entropy()
    Benefit(disagreement=risk, worth=risk, threshold=0.5).save(tmp_path / "benefit")
    assert load_configured(RouteSettings(router=str(tmp_path / "benefit"), switch_usd=0.1)).threshold == 0.5
    world = make(route__router=str(router_of_entropy(tmp_path / "r2v", 0.2)), route__switch_usd=0.9)
    headers = {"x-session-id": "w"}
    assert world.post(headers=headers).headers["x-r2v-reason"] == "switch_cost"
    assert world.post(headers=headers, model="r2v:teacher").headers["x-r2v-reason"] == "forced"
    assert world.post(headers=headers).headers["x-r2v-reason"] == "risk_above"  # its cache is warm now


def test_the_client_may_ask_for_shadow(make):  # noqa: F811
    world = make(route__router="verifier", route__threshold=0.0)
    answer = world.post(headers={"x-r2v-mode": "shadow"})
    assert (answer.headers["x-r2v-arm"], answer.headers["x-r2v-reason"]) == ("teacher", "shadow")
    assert world.post(headers={"x-r2v-mode": "reckless"}).status_code == 400


def test_doctor_says_what_is_here():
    done = CliRunner().invoke(cli, ["doctor", "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["python"].startswith("3.") and told["extras"]["serve"] is True and KEY not in done.stdout


def test_a_router_sees_a_step_as_where_it_was_fitted(make, tmp_path):  # noqa: F811
    """One that was fitted without log-probabilities gets none, although the server gives them."""
    folder = tmp_path / "router"
    R2V(threshold=0.5, fitted_with=FittedWith(None, None, None, view="no_entropy"), risk=risk_of_entropy()).save(folder)
    world = make(route__router=str(folder))
    assert world.post(tools=TOOLS).status_code == 200
    (session,) = world.service.ledger.all_sessions()
    (entry,) = world.service.ledger.steps(session)
    assert not entry.step.choice.features.present[EXTENDED.index("first_token_entropy")]
    assert entry.step.choice.candidates[0].entropy is not None


def test_check_says_that_a_verifier_has_changed_since_the_fit(tmp_path):
    from r2v.gateway.check import problems
    from r2v.verifiers import source_sha256

    model = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "price": {"input": 1, "output": 1}}
    for known, changed in ((source_sha256("tool_calls"), False), ("0" * 64, True), (None, False)):
        folder, shown = tmp_path / str(known), []
        conditions = FittedWith(2, 10, "tool_calls", verifier_sha256=known)
        R2V(threshold=0.5, fitted_with=conditions, risk=risk_of_entropy()).save(folder)
        raw = {"version": 1, "models": {"slm": model, "teacher": model}, "route": {"router": str(folder)},
               "store": {"path": str(tmp_path / "ledger.db")}}  # fmt: skip
        problems(validated(GatewaySettings, raw), shown.append)
        assert any("has changed since the fit" in line for line in shown) == changed
