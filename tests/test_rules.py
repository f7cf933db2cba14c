"""The rules of a gateway that has learned nothing, what they rest on, and the sessions that show them."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from r2v.clients import mock
from r2v.clients.mock import MockModel
from r2v.core.features import featurise
from r2v.core.mlp import linear
from r2v.core.types import Action, Candidate, Context, Decision, Memory, ToolCall, Usage
from r2v.gateway.check import problems
from r2v.gateway.demo import TOOL, demonstrate, play
from r2v.gateway.serve import mock_settings
from r2v.gateway.settings import GatewaySettings
from r2v.routers.r2v import R2V
from r2v.routers.rules import Rules
from r2v.runtime.settings import validated
from r2v.verifiers.tool_calls import ToolCallVerifier
from servers import KEY, gateway, running, settings
from test_gateway import ASK, TOOLS, make  # noqa: F401  (a fixture)

BY_CARD, BY_BANK = (
    Action(f"settle {by}", (ToolCall("settle", f'{{"order": "7", "by": "{by}"}}'),)) for by in ("card", "bank")
)
INVALID = [
    Action(f"{name} {arguments}", (ToolCall(name, arguments),))
    for name, arguments in [("sell", "{}"), ("settle", '{"order": '), ("settle", "[]"), ("settle", '{"order": "7"}')]
]


def context(*seen: str, done: tuple[Action, ...] = ()) -> Context:
    return Context("settle the orders", ("settle order 7 by card", *seen), done, 50)


def score(action: Action, now: Context) -> float:
    return asyncio.run(ToolCallVerifier([TOOL]).score(now, [action]))[0]


def decide(now: Context, actions: list[Action], entropy: float | None = 0.1, threshold: float = 1.0) -> Decision:
    candidates = [Candidate(action, None, entropy, Usage()) for action in actions]
    scores = asyncio.run(ToolCallVerifier([TOOL]).score(now, actions))
    return Rules().at(threshold).decide(now, featurise(now, candidates, scores), Memory(), seed=0)


@pytest.mark.parametrize("action", INVALID)
def test_a_call_that_cannot_be_executed_is_worth_nothing(action):
    assert score(action, context()) == 0
    poor = context("ok", "ok", "ok", done=(BY_BANK,) * 3)  # a call that fits is worth more however often it was made
    assert score(BY_BANK, poor) == 0 or score(BY_BANK, poor) > score(action, poor)


def test_of_calls_without_known_tools_nothing_is_held_against_one():
    (value,) = asyncio.run(ToolCallVerifier([]).score(context(), [BY_CARD]))
    assert value > 0


@pytest.mark.parametrize(
    "result",
    [
        "error: the card is refused", "Traceback (most recent call last):", "process exited with code 127", "Exit code: 2",
        "<returncode>1</returncode>", '{"exit_code": 3}', "error: no such order\n" + 9_000 * "the ",
    ],
)  # fmt: skip
def test_exactly_what_just_failed_is_worth_nothing(result):
    after = context(result, done=(BY_CARD,))
    assert score(BY_CARD, after) == 0 < score(BY_BANK, after)


@pytest.mark.parametrize("result", ["settled", "exit code 0", "<returncode>0</returncode>"])
def test_what_did_not_fail_may_be_done_again(result):
    assert score(BY_CARD, context(result, done=(BY_CARD,))) > 0


def test_the_same_result_twice_is_a_failure_too():
    assert score(BY_CARD, context("pending", done=(BY_CARD,))) > 0
    assert score(BY_CARD, context("pending", "waiting", done=(BY_CARD, BY_CARD))) > 0
    assert score(BY_CARD, context("pending", "pending", done=(BY_CARD, BY_CARD))) == 0


def test_the_rules_and_their_codes():
    failed = context("error: refused", done=(BY_CARD,))
    assert decide(context(), [BY_CARD, *INVALID[:3]]).route == "continue"
    for now, actions, entropy, code in (
        (context(), INVALID, 0.1, "no_valid_call"),
        (failed, [BY_CARD] * 4, 0.1, "repeats_failure"),
        (context(), [BY_CARD] * 4, math.log(3) + 0.01, "unsure"),
    ):
        decision = decide(now, actions, entropy)
        assert (decision.route, decision.code) == ("escalate", code) and "\n" not in decision.reason
    assert decide(failed, [BY_CARD, BY_BANK]).route == "continue"


def test_five_alternatives_can_show_an_unsure_model_and_none_is_unknown():
    flat = [BY_CARD] * 4
    assert decide(context(), flat, math.log(6)).code == "unsure"
    sure, unknown = decide(context(), flat, 0.0), decide(context(), flat, None)
    assert sure.route == unknown.route == "continue" and sure.score == unknown.score
    assert decide(context(), flat, 0.8, threshold=0.5).code == "unsure"
    assert decide(context(), [Action("done")] * 4, None, threshold=0.3).code == "risk_above"


@pytest.mark.parametrize("code", ["no_valid_call", "repeats_failure", "unsure"])
def test_the_gateway_asks_the_teacher_and_says_why(make, code):  # noqa: F811
    world = make(route__router="rules", route__k=4)
    world.small.mock_model = MockModel("small-1", **{
        "no_valid_call": {"invalid_rate": 1.0}, "repeats_failure": {"repeat_rate": 1.0}, "unsure": {"error_rate": 1.0},
    }[code])  # fmt: skip
    messages = list(ASK)
    if code == "repeats_failure":
        first = world.post(messages=messages, tools=TOOLS).json()["choices"][0]["message"]
        messages += [first, {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "error: no light"}]
    answer = world.post(messages=messages, tools=TOOLS)
    assert (answer.headers["x-r2v-arm"], answer.headers["x-r2v-reason"]) == ("teacher", code)
    (call,) = answer.json()["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]).keys() == {"where"}


def test_the_mock_sessions_show_routing_with_savings_and_failures(tmp_path):
    small, teacher = (mock.mock_app(replace(model, first_s=0, per_token_s=0)) for model in (mock.SLM, mock.TEACHER))
    with running(small) as one, running(teacher) as other:
        shown = msgspec.structs.replace(settings(one, other, tmp_path / "l.db"), route=mock_settings(0).route)
        with gateway(shown) as (url, service):
            played = asyncio.run(play(url, KEY))
            steps = [headers for session in played for headers in session.steps]
            assert 0.05 <= sum(step["x-r2v-arm"] == "teacher" for step in steps) / len(steps) <= 0.3
            assert {step["x-r2v-reason"] for step in steps} == {"risk_below", "no_valid_call", "repeats_failure", "unsure"}
            assert sum(session.shop.invalid for session in played) == 0
            assert 0 < sum(not session.shop.solved for session in played) < len(played) / 2
            assert service.metrics.counts().saved_usd > 0
            assert service.ledger.sessions(len(played))[-1]["reward"] in (0, 1)


def test_what_stops_the_mock_sessions_is_told_unless_the_gateway_ends(make, caplog, monkeypatch):  # noqa: F811
    world = make()
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
    asyncio.run(demonstrate("http://127.0.0.1:9", KEY))
    assert caplog.messages == []
    asyncio.run(demonstrate(world.url, f"wrong, {KEY}"))  # the first key is that of the agent
    (line,) = caplog.messages
    assert line.startswith("the sessions to show stopped: 401")


def test_check_says_what_a_router_does_not_know_and_what_it_cannot_see(tmp_path):
    model = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "price": {"input": 1, "output": 1}}
    risk = linear(("goal_length",), np.zeros(1), np.ones(1), np.ones(1), 0.0)
    for name, ends in (("unguarded", None), ("guarded", np.array([[0.0], [1.0]]))):
        R2V(threshold=0.5, risk=replace(risk, range_2F=ends)).save(tmp_path / name)

    def shown(router: str, **of_model: int) -> str:
        raw = {"version": 1, "models": {"slm": model | of_model, "teacher": model}, "route": {"router": router},
               "store": {"path": str(tmp_path / "ledger.db")}}  # fmt: skip
        lines: list[str] = []
        problems(validated(GatewaySettings, raw), lines.append)
        return "\n".join(lines)

    assert "fit the router again" in shown(str(tmp_path / "unguarded"))
    assert "fit the router again" not in shown(str(tmp_path / "guarded")) + shown("rules")
    assert "2.50 nats; 5 alternatives show 1.79" in shown("heuristic") and "2.00 nats" in shown("entropy")
    assert "nats" not in shown("rules") + shown("heuristic", vocabulary=32_000) + shown("entropy", top_logprobs=20)
