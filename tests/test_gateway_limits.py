"""The gateway at its limits: budgets, full disks, clocks that jump, large bodies; and what it says of itself in numbers."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

import r2v
from r2v.clients.mock import MockModel, complete
from r2v.core.errors import ArtifactError, SettingsError
from r2v.core.features import EXTENDED, featurise
from r2v.core.types import Action, Candidate, Context, Memory, Usage
from r2v.domains.household.verifier import HouseholdVerifier
from r2v.evaluation.certificate import Certificate, Target, Tried
from r2v.gateway.ledger import Amount, Ledger
from r2v.gateway.routing import load_configured
from r2v.gateway.settings import (
    BudgetSettings,
    LimitSettings,
    ModelSettings,
    PriceSettings,
    RouteSettings,
    ServerSettings,
    StoreSettings,
)  # fmt: skip
from r2v.pipeline.parts import make_router
from r2v.routers.mlp import Calibration, RiskMLP, load_router
from r2v.runtime.store import sha256, write_json
from r2v.verifiers.tool_calls import ToolCallVerifier
from servers import KEY
from test_gateway import ASK, AUTH, TOOLS, World, make  # noqa: F401  (a fixture)


def risk_of_entropy(folder: Path, threshold: float = 0.6) -> Path:
    """A fitted router that is sure of nothing but the entropy."""
    names, ones = EXTENDED, np.ones(len(EXTENDED))
    weight = np.zeros((len(names), 1))
    weight[names.index("first_token_entropy")] = 2.0
    RiskMLP(names, 0 * ones, ones, ((weight, np.array([-1.0])),), Calibration(), threshold, {"objective": "test"}).save(
        folder
    )
    return folder


# -- budgets ------------------------------------------------------------------------------------------------------


def test_a_budget_of_tokens_is_never_exceeded(make):  # noqa: F811
    world = make(route__router="verifier", route__threshold=0.0, budget__key_per_day={"tokens": 3000})
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda i: world.post(headers={"x-session-id": f"t{i}"}, max_tokens=50), range(60)))
    ((spent,),) = world.rows("SUM(tokens)")
    assert 0 < spent <= 3000
    assert world.service.ledger.spent() == Amount(
        sum(a.headers.get("x-r2v-arm") == "teacher" for a in answers), spent, pytest.approx(world.service.ledger.spent().usd)
    )
    assert {200, 402} == {answer.status_code for answer in answers}


def test_a_client_may_set_a_lower_budget_for_its_session(make):  # noqa: F811
    world = make(route__router="verifier", route__threshold=0.0)
    headers = {"x-session-id": "poor", "x-r2v-budget-usd": "0.004"}
    reasons = [world.post(headers=headers, max_tokens=20).headers["x-r2v-reason"] for _ in range(12)]
    assert reasons[0] == "risk_above" and reasons[-1] == "budget_exhausted"
    ((spent,),) = world.rows("SUM(slm_usd + teacher_usd)")
    assert spent <= 0.004
    assert world.post(headers={**headers, "x-r2v-budget-usd": "much"}).status_code == 400


def test_what_a_client_left_half_done_counts_against_its_budget(make, tmp_path):  # noqa: F811
    world = make(budget__session={"tokens": 20_000})
    world.small.delay = 3
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{world.url}/v1/chat/completions", json={"messages": ASK}, headers={**AUTH, "x-session-id": "gone"}, timeout=0.4
        )
    time.sleep(0.3)
    world.small.delay = 0
    answer = world.post(headers={"x-session-id": "gone"})
    assert (answer.status_code, answer.headers["x-r2v-reason"]) == (402, "budget_exhausted")
    world.stack.close()
    again = World(tmp_path, budget__session={"tokens": 20_000})  # and still does after a restart
    try:
        assert again.post(headers={"x-session-id": "gone"}).status_code == 402
    finally:
        again.stack.close()


# -- adaptive K ---------------------------------------------------------------------------------------------------


def test_clear_steps_are_decided_on_one_candidate_and_others_on_all(make, tmp_path):  # noqa: F811
    router = risk_of_entropy(tmp_path / "router")
    world = make(route__router=str(router), route__clear=(0.45, 0.9))
    world.small.mock_model = MockModel("small-1", error_rate=0.0)
    sure = world.post(tools=TOOLS)
    assert world.rows("candidates") == [(1,)] and [b.get("n", 1) for b in world.small.seen] == [1]
    world.small.mock_model = MockModel("small-1", error_rate=1.0)
    unsure = world.post(tools=TOOLS)
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
    shown = httpx.get(f"{world.url}/v1/sessions/c", headers=AUTH).json()
    assert [step["step"] for step in shown["steps"]] == [0, 1, 2, 3]


def test_large_bodies_are_served_up_to_the_limit_and_refused_above(make):  # noqa: F811
    world = make(small__timeout_s=20)
    told = complete(MockModel("m"), {"messages": ASK, "n": 3})
    world.small.reply = world.teacher.reply = lambda body: told  # the made-up model would be busy for seconds
    image = "data:image/png;base64," + "A" * 10_000_000
    parts = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": image}}]
    answer = world.post(messages=[{"role": "user", "content": parts}])
    assert answer.status_code == 200, answer.text[:500]
    assert world.small.seen[-1]["messages"][0]["content"][1]["image_url"]["url"] == image  # passed on as it came
    assert world.post(messages=[{"role": "user", "content": "x" * 21_000_000}]).status_code == 413


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


def test_a_verifier_that_breaks_gives_the_step_to_the_teacher(make, monkeypatch):  # noqa: F811
    async def broken(self, context, actions):
        raise ZeroDivisionError("no idea")

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
    source = "".join(
        path.read_text()
        for room in ("gateway", "clients")
        for path in (Path(r2v.__file__).parent / room).glob("*.py")
        if path.name != "settings.py"
    )
    for group in (ModelSettings, PriceSettings, RouteSettings, BudgetSettings, LimitSettings, ServerSettings, StoreSettings):
        for name in group.model_fields:
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
    stats = httpx.get(f"{world.url}/v1/stats", headers=AUTH).json()
    assert stats["saved_usd"] == pytest.approx(sum(saved))


def test_calibration_and_drift_are_told_as_outcomes_arrive(make, tmp_path):  # noqa: F811
    world = make(route__router=str(risk_of_entropy(tmp_path / "router")), route__mode="shadow")
    assert httpx.get(f"{world.url}/v1/stats", headers=AUTH).json()["drift"] is None
    for i in range(6):
        world.post(headers={"x-session-id": f"s{i}"}, messages=[{"role": "user", "content": f"task {i}"}])
        world.post("/v1/outcomes", {"session_id": f"s{i}", "reward": i % 2})
    world.post(model="r2v:teacher", headers={"x-session-id": "asked"})
    world.post("/v1/outcomes", {"session_id": "asked", "reward": 1})
    stats = httpx.get(f"{world.url}/v1/stats", headers=AUTH).json()
    risks = [risk for (risk,) in world.rows("risk") if risk is not None]
    failed = [1.0 - i % 2 for i in range(6)]
    told = stats["calibration"]
    assert (told["sessions"], told["steps"]) == (6, 6)  # not the one that the teacher played in
    assert told["brier"] == pytest.approx(np.mean((np.array(risks) - failed) ** 2))
    assert sum(count for _, _, count in told["bins"]) == 6
    assert stats["drift"]["steps"] == 6 and stats["drift"]["score"] > 0 and stats["drift"]["feature"] in EXTENDED
    metrics = httpx.get(f"{world.url}/metrics", headers=AUTH).text
    assert "r2v_drift_score" in metrics and "r2v_calibration_ece" in metrics and "r2v_certificate_valid 0" in metrics


def test_a_certificate_holds_for_its_router_and_threshold_alone(make, tmp_path):  # noqa: F811
    router = risk_of_entropy(tmp_path / "fit" / "r2v", threshold=0.5)
    path = tmp_path / "certificate.json"

    def certify(**changes) -> RouteSettings:
        facts = {"router": "r2v", "threshold": 0.5, "identity": {"router": sha256(router.parent)}} | changes
        Certificate(
            facts["router"], Target(0.1, 0.1, None), facts["threshold"], 300, (1, 2), (Tried(0.5, 0.05, 0.01, 2.0),),
            facts["identity"], "2026-11-21",
        ).save(path)  # fmt: skip
        return RouteSettings(router=str(router), certificate=str(path))

    certify()
    world = make(route__router=str(router), route__certificate=str(path))
    assert httpx.get(f"{world.url}/v1/stats", headers=AUTH).json()["certificate"]["max_failure"] == 0.1
    with pytest.raises(ArtifactError, match="another router"):
        load_configured(certify(identity={"router": "0"}))
    with pytest.raises(ArtifactError, match="proves nothing, not"):
        load_configured(certify(threshold=None))
    with pytest.raises(ArtifactError, match=r"proves the threshold 0\.4"):
        load_configured(certify(threshold=0.4))
    with pytest.raises(SettingsError, match="no certificates"):
        load_configured(RouteSettings(router="entropy", certificate=str(path)))


def run_of(folder: Path) -> Path:
    """The routers of a run, as far as the gateway reads them."""
    for name in ("r2v", "cascade", "benefit"):
        risk_of_entropy(folder / name)
    chosen = {name: {"threshold": 0.5} for name in ("r2v", "benefit", "judge_latch", "restart")}
    write_json(folder / "thresholds.json", {"fitted_with": {"verifier": "household", "horizon": 40}, "routers": chosen})
    return folder


def test_a_router_of_a_run_decides_as_in_the_evaluation(make, tmp_path):  # noqa: F811
    """`benefit` is a product of two fits: its folder alone would be another router."""
    fit = run_of(tmp_path / "7-fit")
    configured, alone = load_configured(RouteSettings(router=str(fit / "benefit"))), load_router(fit / "benefit")
    context = Context("goal", ("seen",), (), 50)
    for entropy in (0.1, 0.6, 1.2, 2.0):
        features = featurise(context, [Candidate(Action("look"), -1.0, entropy, Usage())], [0.5])
        here = configured.make(configured.threshold).decide(context, features, Memory(), seed=1)
        there = make_router("benefit", 0.5, fit).decide(context, features, Memory(), seed=1)
        assert here == there and here.risk != alone.score(features)
    with pytest.raises(SettingsError, match="cannot"):
        load_configured(RouteSettings(router=str(fit / "restart")))


def test_a_router_sees_what_it_was_fitted_with(make, tmp_path):  # noqa: F811
    fit = run_of(tmp_path / "7-fit")
    route = load_configured(RouteSettings(router=str(fit / "benefit"), k=2)).route
    assert (route.verifier, route.horizon, route.k) == ("household", 40, 2)
    with pytest.raises(SettingsError, match="fitted with verifier household"):
        load_configured(RouteSettings(router=str(fit / "benefit"), verifier="terminal"))
    risk_of_entropy(tmp_path / "logs")
    assert load_configured(RouteSettings(router=str(tmp_path / "logs"))).route.verifier == "tool_calls"
    assert load_configured(RouteSettings(router="entropy", verifier="terminal")).route.verifier == "terminal"
    world = make(route__router=str(fit / "benefit"))
    world.post(headers={"x-session-id": "v"})
    (session,) = [row["session"] for row in world.service.ledger.sessions(5)]
    (entry,) = world.service.ledger.steps(session)
    context = Context(entry.goal, (entry.step.observation.text,), (), 40)
    actions = [candidate.action for candidate in entry.step.choice.candidates]
    assert entry.step.choice.scores == asyncio.run(HouseholdVerifier().score(context, actions))


def test_a_teacher_that_keeps_the_session_lets_go_when_it_is_told(make, tmp_path):  # noqa: F811
    fit = run_of(tmp_path / "7-fit")
    world = make(route__router=str(fit / "judge_latch"), route__threshold=0.0)  # every answer fails the judge
    headers = {"x-session-id": "l"}
    reasons = [world.post(headers=headers).headers["x-r2v-reason"] for _ in range(5)]
    assert reasons[-2:] == ["latch", "latch"] and "risk_below" in reasons
    assert world.post(headers={**headers, "x-r2v-arm": "slm"}).headers["x-r2v-arm"] == "slm"
    world.post("/v1/kill", {"on": True})
    assert world.post(headers=headers).headers["x-r2v-arm"] == "slm"


def test_the_client_may_ask_for_shadow(make):  # noqa: F811
    world = make(route__router="verifier", route__threshold=0.0)
    answer = world.post(headers={"x-r2v-mode": "shadow"})
    assert (answer.headers["x-r2v-arm"], answer.headers["x-r2v-reason"]) == ("slm", "shadow")
    assert world.post(headers={"x-r2v-mode": "reckless"}).status_code == 400


def test_doctor_says_what_is_here():
    done = subprocess.run(
        [sys.executable, "-c", "from r2v.cli import app; app()", "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["python"].startswith("3.") and told["extras"]["serve"] is True and KEY not in done.stdout
