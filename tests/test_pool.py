"""Pools of more than two models: which one a router takes, what that costs, and how the gateway serves it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import ClassVar

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2v.clients.scripted import ScriptedPolicy
from r2v.core.agent import AgentModels, Routed, Solo, StepContext
from r2v.core.errors import ArtifactError, SettingsError
from r2v.core.features import FEATURES
from r2v.core.fixed import Always, Directed
from r2v.core.types import TEACHER, Action, Context, Decision, Features, Member, Memory
from r2v.evaluation.outcomes import gather, row
from r2v.gateway.routing import GatewayRouter, load_configured
from r2v.gateway.settings import GatewaySettings, RouteSettings
from r2v.pipeline.agents import Mistaken
from r2v.pipeline.plan import plan
from r2v.pipeline.settings import RunSettings
from r2v.routers import load_router
from r2v.routers.base import InnerRouter, RouterBase
from r2v.routers.pool import Pool, PoolCascadeRouting
from r2v.runtime.settings import validated
from servers import KEY, Model, gateway, running
from toy import TASK, Flat, Scored, run

SEEN = Features((0.0,) * len(FEATURES), (True,) * len(FEATURES))
CONTEXT = Context("a goal", ("what is seen",), (), 10, Action("an action"))
ASK = [{"role": "user", "content": "look for the red value"}]


@dataclass(frozen=True, kw_only=True, eq=False)
class Worth(RouterBase):
    """A pair's router that thinks the same of every step."""

    gain: float
    kind: ClassVar[str] = "benefit"

    def score(self, features: Features) -> float:
        return self.gain


def pool(gains: list[float], prices: list[float], threshold: float) -> Pool:
    """Of the models a, b, ... and the teacher, whose price is 1."""
    names = [*map(chr, range(ord("a"), ord("a") + len(gains) - 1)), TEACHER]
    members = tuple(Member(name, price) for name, price in zip(names, [*prices[: len(gains) - 1], 1.0], strict=True))
    return Pool(members=members, gains=tuple(InnerRouter(Worth(gain=gain)) for gain in gains), threshold=threshold)


def decided(router: RouterBase) -> Decision:
    return router.decide(CONTEXT, SEEN, Memory(), seed=0)


gains = st.lists(st.floats(-1, 1), min_size=1, max_size=4)
prices = st.lists(st.floats(0.01, 1), min_size=3, max_size=3)


@given(gains, prices, st.floats(0.001, 1))
def test_a_pool_takes_what_gains_most_beyond_its_price(gains, prices, price):
    router = pool(gains, prices, price)
    decision = decided(router)
    worth = {"continue": 0.0} | {m.name: g - price * m.price for m, g in zip(router.members, gains, strict=True)}
    taken = "continue" if decision.route == "continue" else decision.model
    assert worth[taken] >= max(worth.values()) - 1e-12
    assert (decision.route == "escalate") == (decision.score >= price)


@given(st.floats(-1, 1), st.floats(0.001, 1))
def test_a_pair_is_a_pool_of_one(gain, price):
    one, pair = decided(pool([gain], [], price)), decided(Worth(gain=gain, threshold=price))
    assert (one.route, one.code, one.score, one.model) == (pair.route, pair.code, pair.score, pair.model)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1), st.floats(0.001, 1))
def test_cascade_routing_over_a_pool_is_brute_force(now, later, unlike, of_medium, price):
    router = PoolCascadeRouting(
        disagreement=Scored(lambda f: now), disagreement_later=Scored(lambda f: later), threshold=price,
        members=(Member("medium", of_medium),), disagreement_of=(Scored(lambda f: unlike),),
    )  # fmt: skip
    decision = router.rule(CONTEXT, SEEN, Memory(), seed=0)
    worth = {
        ("continue", TEACHER): 1 - now, ("escalate", "medium"): 1 - unlike - price * of_medium,
        ("escalate", TEACHER): 1 - price, ("retry", TEACHER): 1 - later - price * router.retry_price,
    }  # fmt: skip
    assert worth[decision.route, decision.model] == pytest.approx(max(worth.values()))
    assert router.rule(CONTEXT, SEEN, Memory(retries=1), seed=0).route != "retry"


def test_the_folder_of_a_pool_holds_the_routers_within_it(tmp_path):
    pool([0.5, 0.9], [0.25], 0.3).save(tmp_path)
    again = load_router(tmp_path)
    assert isinstance(again, Pool) and again.models == ("a", TEACHER) and again.threshold == 0.3
    assert decided(again) == decided(pool([0.5, 0.9], [0.25], 0.3)) and decided(again).model == TEACHER
    assert decided(again.at(0.7)).model == "a"
    written = json.loads((tmp_path / "router.json").read_text())
    written["gains"][0]["kind"] = "os:system"
    (tmp_path / "router.json").write_text(json.dumps(written))
    with pytest.raises(SettingsError, match="os:system"):
        load_router(tmp_path)
    written["gains"][0] = {"kind": 3}
    (tmp_path / "router.json").write_text(json.dumps(written))
    with pytest.raises(ArtifactError, match="corrupt"):
        load_router(tmp_path)


# -- the engine -------------------------------------------------------------------------------------------------------


def of_three(router, medium="press red") -> Routed:
    policies = [ScriptedPolicy(lambda c, says=says: says) for says in ("press blue", "press red", medium)]
    models = AgentModels(policies[0], policies[1], Flat(), 3, pool={"medium": policies[2]})
    return Routed(models, router)


@dataclass(frozen=True)
class TakesOver:
    name: str = "takes over"

    def decide(self, context, features, memory, *, seed):
        return Decision("takeover", "risk_above", 1.0, "risk", 0.5, 1.0, (), "", "medium")


def test_the_model_that_the_decision_names_acts_and_keeps_the_episode():
    episode = run(of_three(Directed(Always(), "medium")))
    assert episode.success and {step.choice.decision.model for step in episode.steps} == {"medium"}
    kept = run(of_three(TakesOver()))
    assert [step.choice.decision.code for step in kept.steps] == ["risk_above", "latch", "latch"] and kept.success
    assert {step.choice.decision.model for step in kept.steps} == {"medium"}
    assert not run(of_three(TakesOver(), medium="press blue")).success


def test_a_model_outside_of_the_pool_is_the_routers_fault():
    broken = run(of_three(Directed(Always(), "huge")))
    assert broken.failure.boundary == "router" and "huge" in broken.failure.message and "medium" in broken.failure.message


def test_each_model_answers_once_however_often_it_is_asked():
    step_context = StepContext(of_three(Always()).models, CONTEXT, seed=3)

    async def twice():
        return [await step_context.answer(name) for name in ("medium", TEACHER, "medium")]

    first, teacher, again = asyncio.run(twice())
    assert first is again and teacher is not first


def test_a_cheaper_call_counts_as_a_part_of_one():
    episode = run(of_three(Directed(Always(), "medium")))
    found = row(episode, {"medium": 0.2, TEACHER: 1.0})
    assert found.teacher_calls == pytest.approx(0.6) and found.models == {"medium": 3} and len(found.escalated) == 3
    outcomes = gather([found], [TASK.id], [1], 10)
    assert outcomes.call_rate_TZ.item() == 1.0 and outcomes.models == {"medium": 3}
    alone = run(Solo(ScriptedPolicy(lambda c: "press red"), "teacher"))
    assert row(alone, {"medium": 0.2, TEACHER: 1.0}, "medium").models == {"medium": 3}
    assert row(episode).teacher_calls == 3 and not row(episode).models


def test_a_mistaken_expert_errs_as_often_as_it_should():
    policy = Mistaken(ScriptedPolicy(lambda c: "press red"), 0.3, lambda context, seed: Action("press blue"))
    said = [asyncio.run(policy.propose(CONTEXT, 1, seed=seed))[0].action.text for seed in range(400)]
    assert 0.2 < said.count("press blue") / 400 < 0.4
    assert said[:20] == [asyncio.run(policy.propose(CONTEXT, 1, seed=seed))[0].action.text for seed in range(20)]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"pool": {"medium": {"kind": "expert"}}}, "prices.pool and pool must name the same models; medium"),
        ({"routers": ["r2v", "pool_benefit"]}, "pool_benefit chooses among more than two models"),
        ({"pool": {"slm": {"kind": "expert"}}, "prices": {"pool": {"slm": 3}}}, "that name is taken"),
        ({"pool": {"a/b": {"kind": "expert"}}, "prices": {"pool": {"a/b": 3}}}, "pool"),
    ],
)
def test_what_does_not_fit_a_pool_is_one_line(changes, complaint):
    with pytest.raises(SettingsError, match=complaint):
        validated(RunSettings, {"version": 1, **changes})


def test_all_routers_are_those_that_can_be_fitted():
    pair = validated(RunSettings, {"version": 1, "routers": "all"})
    three = validated(
        RunSettings,
        {"version": 1, "routers": "all", "pool": {"medium": {"mistakes": 0.2}}, "prices": {"pool": {"medium": 5}}},
    )
    assert set(three.routers) - set(pair.routers) == {"pool_benefit", "pool_bandit", "pool_cascade_routing"}
    assert three.members == (Member("medium", 0.1),)


# -- the gateway's decisions ------------------------------------------------------------------------------------------


def served(router: RouterBase, memory: Memory | None = None, *, seed: int = 0, **more) -> Decision:
    route = RouteSettings(**{key: more.pop(key) for key in ("explore", "hold_steps", "switch_usd") if key in more})
    both = ("medium", TEACHER)
    of_request = GatewayRouter(router, route, ("medium", TEACHER), **{"usable": both, "explored": both, **more})
    return of_request.decide(CONTEXT, SEEN, memory or Memory(), seed=seed)


def medium(threshold: float = 0.1) -> RouterBase:
    return replace(pool([0.9, 0.9], [0.2], threshold), members=(Member("medium", 0.2), Member(TEACHER, 1.0)))


def test_what_cannot_answer_is_passed_over_for_the_next_stronger():
    assert served(medium()).model == "medium"
    passed = served(medium(), usable=(TEACHER,))
    assert passed.model == TEACHER and "medium cannot answer now" in passed.reason
    assert served(medium(), forced="medium").model == "medium" and served(medium(), forced="slm").route == "continue"


def test_holding_keeps_the_model_and_another_ones_cache_is_cold():
    before = Decision("escalate", "risk_above", 0.9, "benefit", 0.1, 1.0, (), "", "medium")
    kept = served(medium(5.0), Memory(decisions=(before,)), hold_steps=2)
    assert (kept.route, kept.code, kept.model) == ("escalate", "hold", "medium")
    warm = Memory(decisions=(before,))
    assert served(medium(0.1), warm, switch_usd=5.0).route == "escalate"
    other = Memory(decisions=(replace(before, model=TEACHER),))
    assert served(medium(0.1), other, switch_usd=5.0).code == "switch_cost"


def test_explored_steps_draw_every_model_with_its_probability():
    found = [served(medium(5.0), seed=seed, explore=0.5) for seed in range(2000)]
    share = {
        key: sum((d.route, d.model) == key for d in found) / 2000
        for key in (("continue", TEACHER), ("escalate", "medium"), ("escalate", TEACHER))
    }
    for d in found:
        expected = 0.75 if d.route == "continue" else 0.125
        assert d.propensity == pytest.approx(expected)
    assert share["escalate", "medium"] == pytest.approx(0.125, abs=0.03)
    assert share["escalate", TEACHER] == pytest.approx(0.125, abs=0.03)


@pytest.mark.parametrize("threshold", [0.1, 5.0])
def test_what_a_model_gets_from_one_that_cannot_answer_counts_in_its_probability(threshold):
    found = [served(medium(threshold), seed=s, explore=0.5, usable=(TEACHER,), explored=(TEACHER,)) for s in range(400)]
    asked = 0.75 if threshold == 0.1 else 0.25
    assert {(d.route, d.model, d.propensity) for d in found} == {
        ("escalate", TEACHER, asked), ("continue", TEACHER, 1 - asked),
    }  # fmt: skip


def test_a_router_that_names_a_model_which_is_not_there_is_refused(tmp_path):
    medium().save(tmp_path / "router")
    assert load_configured(RouteSettings(router=str(tmp_path / "router")), ("medium", TEACHER)).threshold == 0.1
    with pytest.raises(SettingsError, match="escalates to medium, which stands not under models"):
        load_configured(RouteSettings(router=str(tmp_path / "router")))


# -- over HTTP --------------------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path):
    """Three made-up models behind a gateway whose router always takes the medium one."""
    medium().save(tmp_path / "router")
    models = {name: Model(f"{name}-1") for name in ("slm", "medium", "teacher")}
    price = {"slm": 1, "medium": 4, "teacher": 20}
    with ExitStack() as stack:
        urls = {name: stack.enter_context(running(model.app())) for name, model in models.items()}
        raw = {
            "version": 1,
            "models": {
                name: {
                    "base_url": f"{urls[name]}/v1", "model": f"{name}-1", "retries": 0, "max_output_tokens": 100,
                    "price": {"input": price[name], "output": price[name]},
                }
                for name in ("slm", "medium", "teacher")
            },
            "route": {"k": 2, "router": str(tmp_path / "router")},
            "store": {"path": str(tmp_path / "ledger.db"), "redact": False},
        }  # fmt: skip

        def start(**changes):
            settings = validated(GatewaySettings, {**raw, **changes})
            url, service = stack.enter_context(gateway(settings))
            client = httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=20)
            return models, stack.enter_context(client), service

        yield start


def ask(client: httpx.Client, model: str = "r2v", **headers: str) -> httpx.Response:
    return client.post("/v1/chat/completions", json={"model": model, "messages": ASK}, headers=headers)


def test_a_step_is_answered_and_billed_by_the_model_that_was_chosen(world, tmp_path):
    models, client, _ = world()
    answer = ask(client)
    assert answer.headers["x-r2v-arm"] == "medium" and answer.headers["x-r2v-model"] == "medium-1"
    assert len(models["medium"].seen) == 1 and not models["teacher"].seen
    tokens = answer.json()["usage"]
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as db:
        ((source, model, usd, calls, alike),) = db.execute(
            "SELECT source, model, teacher_usd, teacher_calls, alike FROM steps"
        )
    assert (source, model, calls, alike) == ("teacher", "medium-1", 1, None)
    assert usd == pytest.approx(4e-6 * (tokens["prompt_tokens"] + tokens["completion_tokens"]))
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["r2v", "r2v:slm", "r2v:medium", "r2v:teacher"]
    stats = client.get("/v1/stats").json()
    assert stats["arms"] == {"slm": 0, "medium": 1, "teacher": 0} and stats["usd"]["medium"] == pytest.approx(usd)
    assert set(stats["models"]) == {"slm", "medium", "teacher"}
    assert 'r2v_cost_usd_total{model="medium"}' in client.get("/metrics").text


def test_clients_may_insist_on_any_of_them(world):
    _, client, _ = world()
    for name in ("slm", "medium", "teacher"):
        assert ask(client, f"r2v:{name}").headers["x-r2v-arm"] == name
    assert ask(client, **{"x-r2v-arm": "teacher"}).headers["x-r2v-model"] == "teacher-1"
    refused = ask(client, "r2v:huge")
    assert refused.status_code == 400 and "slm, medium, teacher" in refused.text


def test_where_the_one_in_between_is_down_the_teacher_answers_and_then_the_slm(world):
    models, client, service = world()
    models["medium"].status = [(500, {})]
    fallen = ask(client)
    assert (fallen.headers["x-r2v-arm"], fallen.headers["x-r2v-reason"]) == ("teacher", "upstream_fallback")
    models["teacher"].status = [(500, {})]
    assert ask(client).headers["x-r2v-arm"] == "slm"
    assert ask(client, "r2v:medium").status_code == 502
    service.stronger["medium"].endpoint.attempts.clear()


def test_a_fallback_is_paid_for_or_not_asked(world):
    """The step has room for one call of a stronger model; that of the other one would be a second."""
    models, client, _ = world(budget={"session": {"teacher_calls": 1}})
    models["medium"].body = b"{"  # an answer that costs, and that nobody can read
    first = ask(client, **{"x-r2v-session-id": "s"})
    assert first.headers["x-r2v-arm"] == "slm" and not models["teacher"].seen
    assert ask(client, **{"x-r2v-session-id": "s"}).headers["x-r2v-reason"] == "budget_exhausted"


def test_what_is_reserved_covers_the_dearest(world):
    """Room for the medium one alone is no room: the router is free to take the teacher."""
    models, client, _ = world(budget={"session": {"usd": 0.01}})
    assert ask(client).headers["x-r2v-arm"] == "slm" and not models["medium"].seen


def test_what_does_not_fit_the_context_goes_to_the_next_stronger(world, tmp_path):
    models, client, service = world()
    short = service.stronger["medium"].settings
    service.stronger["medium"].settings = short.but(context_tokens=2)
    assert ask(client).headers["x-r2v-arm"] == "teacher" and not models["medium"].seen


def test_a_dry_run_plans_the_models_of_a_pool_and_what_the_helper_tunes_with():
    nobody = {"kind": "chat", "base_url": "http://127.0.0.1:9/v1", "model": "some"}
    pool = {"pool": {"mid": nobody}, "prices": {"pool": {"mid": 10}}}

    def planned(**settings):
        return {p.role: p for p in plan(validated(RunSettings, {"version": 1, "teacher": nobody} | settings))}

    idle, used = planned(**pool)["mid"], planned(**pool, routers=["r2v", "pool_benefit"])["mid"]
    assert 0 < idle.least == idle.most == used.least < used.most and not idle.answers
    few, many = (planned(routers=["r2v", "helper"], help={"budgets": b})["teacher"].most for b in ([1], [1, 2, 3]))
    played = planned(routers=["r2v"])["teacher"]
    assert set(planned()) == {"teacher"} and played.most < few < many
