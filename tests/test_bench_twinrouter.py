"""TwinRouterBench: its arithmetic against its own published tables, its protocol, its bank by schema, and a whole bench."""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import make_dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

from r2v.bench.twinrouter.adapter import BASH, TwinRouter, bounds_of, named_router
from r2v.bench.twinrouter.bank import Row, read_bank
from r2v.bench.twinrouter.bill import (
    Case,
    PromptCaches,
    ledger_cases,
    published_rows,
    row_of,
    score_run,
    tokens_of,
    total,
    usd,
)
from r2v.bench.twinrouter.protocol import CacheStateSnapshot, ModelCacheView, RouterContext, RouterDecision, RunConfig
from r2v.bench.twinrouter.published import MODELS, PRICES, PUBLISHED, TIERS
from r2v.bench.twinrouter.run import bench
from r2v.bench.twinrouter.static import Bank
from r2v.clients.settings import PriceSettings
from r2v.clients.tokens import Tokens
from r2v.core.errors import ArtifactError, R2VError, SettingsError
from r2v.core.types import Decision
from r2v.gateway.settings import GatewaySettings
from r2v.routers.base import FittedWith, RouterBase
from r2v.routers.entropy import Entropy
from r2v.routers.judge_latch import JudgeLatch
from r2v.routers.query import Query
from r2v.routers.random import Random
from r2v.routers.restart import Restart
from r2v.routers.rules import Rules
from r2v.routers.verifier import VerifierRouter
from r2v.runtime.settings import validated
from test_gateway import TOOLS, make  # noqa: F401  (a fixture)

LOW, MID, MID_HIGH, HIGH = MODELS.values()
SYSTEM, ASK = {"role": "system", "content": "You fix code."}, {"role": "user", "content": "mend the parser in module"}

# -- the arithmetic against published tables -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "cached", "cents"),
    [(4_000, 0, (3.621, 3.530, 3.467)), (20_000, 20_000, (1.965, 2.032, 1.900)), (100_000, 0, (61.13, 60.65, 62.67))],
    ids=["4k cold", "20k warm", "100k cold"],
)
def test_the_rates_give_the_published_savings_of_a_step(prompt, cached, cents):
    """Table A16, whose steps write 500 tokens."""
    step = Tokens(prompt, PUBLISHED.output_tokens, cached, prompt - cached)
    always = usd(step, PUBLISHED.rates["high"])
    for tier, saved in zip(TIERS, cents, strict=False):
        assert 100 * (always - usd(step, PUBLISHED.rates[tier])) == pytest.approx(saved, abs=0.006 if saved > 9 else 0.0006)


PLAN_A = [
    (1321, 112, 0.0111), (1744, 71, 0.0051), (1846, 69, 0.0032), (2502, 67, 0.0067), (3287, 89, 0.0084), (4103, 256, 0.0131),
    (4512, 55, 0.0060), (4612, 168, 0.0071), (4921, 241, 0.0103), (5149, 85, 0.0060), (5591, 63, 0.0069), (5653, 56, 0.0046),
    (5864, 111, 0.0069),
]  # fmt: skip
PLAN_B = [
    ("mid", 1284, 108, 0.0005), ("mid", 1699, 68, 0.0003), ("mid_high", 1647, 66, 0.0003), ("mid_high", 2343, 65, 0.0003),
    ("low", 3729, 87, 0.0010), ("mid_high", 3900, 254, 0.0010), ("low", 5215, 55, 0.0009), ("mid_high", 4403, 168, 0.0007),
    ("high", 4921, 241, 0.0368), ("high", 5149, 85, 0.0060), ("high", 5591, 63, 0.0069), ("low", 6789, 59, 0.0018),
    ("low", 7077, 109, 0.0010),
]  # fmt: skip


def test_a_published_trajectory_is_priced_step_by_step():
    """Table A7: always high, and routed. A model finds what it read before although others were called in between, and not
    after more than three steps; the table's mid tiers write at the prices of the pool, not at the rates of table A5.
    """
    caches = PromptCaches(PUBLISHED.cache_steps)
    costs = [usd(caches.call("high", t, read, wrote), PUBLISHED.rates["high"]) for t, (read, wrote, _) in enumerate(PLAN_A)]
    assert costs == pytest.approx([cost for _, _, cost in PLAN_A], abs=6e-5)
    assert sum(costs) == pytest.approx(0.0953, abs=5e-5)
    prices = dict(PUBLISHED.rates)
    for tier in ("mid", "mid_high"):
        rate = prices[tier]
        output = PUBLISHED.pool[tier].price.output
        prices[tier] = PriceSettings(input=rate.input, output=output, cached=rate.cached, cache_write=rate.cache_write)
    caches = PromptCaches(PUBLISHED.cache_steps)
    costs = [usd(caches.call(tier, t, read, wrote), prices[tier]) for t, (tier, read, wrote, _) in enumerate(PLAN_B)]
    assert costs == pytest.approx([cost for *_, cost in PLAN_B], abs=6e-5)
    assert sum(costs) == pytest.approx(0.0576, abs=5e-5)


def test_a_cache_ends_after_300_seconds_and_with_another_beginning():
    caches = PromptCaches()
    assert caches.call("a", 0.0, 100, 5, ["s", "u"]) == Tokens(100, 5, 0, 100)
    assert caches.call("b", 10.0, 100, 5, ["s", "u"]) == Tokens(100, 5, 0, 100)
    assert caches.call("a", 300.0, 140, 5, ["s", "u", "v"]) == Tokens(140, 5, 100, 40)
    assert caches.call("a", 600.5, 150, 5, ["s", "u", "v", "w"]) == Tokens(150, 5, 0, 150)
    assert caches.call("a", 601.0, 160, 5, ["s", "x", "v", "w"]) == Tokens(160, 5, 0, 160)


def flat(gold, chosen, benchmark="b"):
    """A bank of single steps, and what was chosen."""
    rows = [Row(str(i), benchmark, str(i), 1, ({"role": "user", "content": "x"},), (), tier) for i, tier in enumerate(gold)]
    return Bank.priced(rows), np.array(chosen)


@pytest.mark.parametrize(
    ("row", "exact", "up", "high", "below", "high_found"),
    [(0, 627, 10, 117, 46, 137), (1, 107, 649, 21, 23, 7), (2, 488, 47, 217, 48, 105), (3, 0, 0, 800, 0, 170)],
    ids=[row.router for row in PUBLISHED.static],
)
def test_published_errors_give_the_published_row_scores(row, exact, up, high, below, high_found):
    """Tables A14 and A15 against table 2: 800 rows below high, 170 of high. All steps stand alone here."""
    pairs = [(1, 1)] * exact + [(1, 2)] * up + [(1, 3)] * high + [(1, 0)] * below
    pairs += [(3, 3)] * high_found + [(3, 0)] * (170 - high_found)
    assert len(pairs) == 970
    bank, chosen_N = flat(*zip(*pairs, strict=True))
    found, published = bank.scores(chosen_N), PUBLISHED.static[row]
    assert found["row_pass"] == pytest.approx(published.row_pass, abs=0.005)
    assert found["row_exact"] == pytest.approx(published.row_exact, abs=0.005)
    assert found["under"] == pytest.approx(100 - published.row_pass, abs=0.005)
    assert found["over"] == pytest.approx(100 * (up + high) / 970)
    if row == 3:
        assert found["traj_pass"] == 100 and found["cost_save"] == 0
        assert found["combined"] == pytest.approx(published.combined, abs=0.005)


def test_published_workloads_add_up_to_the_published_scores():
    for row in PUBLISHED.static:
        assert (row.row_pass + row.row_exact + row.traj_pass + row.cost_save) / 4 == pytest.approx(row.combined, abs=0.0051)
        if by := row.cost_save_by_workload:
            weighted = sum(by[name] * rows for name, rows in PUBLISHED.workloads.items()) / 970
            assert weighted == pytest.approx(row.cost_save, abs=0.01)  # each is rounded to .005


def test_published_runs_give_the_published_bills():
    """Table 3."""
    rows = {row["router"]: row for row in published_rows()}
    bills = {name: round(row["total_leaderboard_bill_usd"], 2) for name, row in rows.items()}
    assert list(bills.items()) == [
        ("UncommonRoute trained", 40.66),
        ("Claude Opus 4.6 reference", 70.33),
        ("SR-KNN", 70.61),
        ("UncommonRoute v0.6", 188.76),
    ]
    penalties = [round(row["total_penalty_cost_usd"], 2) for row in rows.values()]
    assert penalties == [15.0, 15.6, 15.0, 16.2]
    assert rows["SR-KNN"]["share_strong"] == pytest.approx(988 / 4997)
    assert rows["UncommonRoute trained"]["share_strong"] is None  # not published
    assert rows["SR-KNN"]["usd_per_solved"] == pytest.approx(55.607370784 / 75)
    low, high = rows["SR-KNN"]["ci95"]
    assert low < 0.75 < high and high - low == pytest.approx(0.17, abs=0.02)  # of 100 draws at .75: 4 x .0433


# -- the static scores on an example that is worked out by hand ----------------------------------------------------------


def test_static_scores_by_hand():
    """One token a character. Workload a has one trajectory of three steps, b one step."""
    first = ({"role": "user", "content": "abcd"},)  # 4 + 4 + 2 = 10 tokens
    wrote = {"role": "assistant", "content": "ef", "tool_calls": [{"id": "1", "function": {"name": "g", "arguments": "{}"}}]}
    result = {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "hi"}]}
    second = (*first, wrote, result)  # + (2 + 1 + 1 + 1 + 2) + 4 + 2 + 4 = 27; the step before wrote 7 + 4 = 11
    third = (*second[:-1], {**result, "content": "hi"}, {"role": "user", "content": "k"})  # + 1 + 4 = 32, nothing written
    rows = [
        Row("a2", "a", "A", 2, second, (), 1), Row("a1", "a", "A", 1, first, (), 0), Row("a3", "a", "A", 3, third, (), 1),
        Row("b1", "b", "B", 1, first, (), 3),
    ]  # fmt: skip
    bank = Bank.priced(rows, count=lambda text, tier: len(text))
    assert [row.id for row in bank.rows] == ["a1", "a2", "a3", "b1"]
    rate = {tier: (r.cached, r.cache_write, r.output) for tier, r in PUBLISHED.rates.items()}

    def cost(tier, read, written, output):
        a, b, c = rate[tier]
        return (read * a + written * b + output * c) / 1e6

    always = [cost("high", 0, 10, 11), cost("high", 10, 17, 0), cost("high", 27, 5, 11), cost("high", 0, 10, 500)]
    chosen = np.array([0, 1, 1, 2])
    spent = [cost("low", 0, 10, 11), cost("mid", 0, 27, 0), cost("mid", 27, 5, 11), cost("mid_high", 0, 10, 500)]
    assert bank.usd_N(np.full(4, 3)).tolist() == pytest.approx(always)
    assert bank.usd_N(chosen).tolist() == pytest.approx(spent)
    saved_a = 100 * (sum(always[:3]) - sum(spent[:3])) / sum(always[:3])
    saved_b = -100 * spent[3] / always[3]
    found = bank.scores(chosen)
    assert (found["row_pass"], found["row_exact"], found["traj_pass"], found["under"], found["over"]) == (75, 75, 75, 25, 0)
    assert found["cost_save_by_workload"] == pytest.approx({"a": saved_a, "b": saved_b})
    assert found["cost_save"] == pytest.approx(0.75 * saved_a + 0.25 * saved_b)
    assert found["combined"] == pytest.approx((225 + found["cost_save"]) / 4)


def test_a_prompt_that_begins_otherwise_or_comes_late_is_written_whole():
    def bank_of(second, step):
        first = ({"role": "user", "content": "a" * 40},)
        return Bank.priced([Row("1", "b", "A", 1, first, (), 0), Row("2", "b", "A", step, second, (), 0)])

    same = ({"role": "user", "content": [{"type": "text", "text": "a" * 40}]}, {"role": "user", "content": "b"})
    other = ({"role": "user", "content": "c" * 40}, {"role": "user", "content": "b"})
    for bank, before in ((bank_of(same, 4), 0), (bank_of(same, 5), -1), (bank_of(other, 2), -1)):
        assert bank.before_N.tolist() == [-1, before]
        low_N = np.zeros(2, dtype=int)
        assert (bank.usd_N(low_N)[1] < bank.cold_NT[1, 0]) == (before == 0)


# -- a run of the dynamic track ------------------------------------------------------------------------------------------


def usage(prompt, output, cached=0, written=0):
    details = {"cached_tokens": cached, "cache_write_tokens": written}
    return {"prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": details}


@pytest.fixture
def run_folder(tmp_path):
    """Two instances as the harness writes them; what it says that a step cost is not believed."""
    (tmp_path / "results").mkdir()
    calls = {
        "django__django-1": (True, [(LOW, usage(1000, 100)), (HIGH, usage(2000, 50, 500, 1500))]),
        "django__django-2": (False, [(MID, {"input_tokens": 10.0, "output_tokens": 2, "prompt_tokens": 0})]),
    }
    for name, (resolved, steps) in calls.items():
        lines = [{"model_id": model, "raw_usage": used, "step_cost_usd": 9.0} for model, used in steps]
        lines.append({"__marker__": "loop_summary"})
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps({"instance_id": name, "resolved": resolved}))
        (tmp_path / f"{name}.trace.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return tmp_path


def test_a_run_is_repriced_and_unsolved_cases_cost_sixty_cents(run_folder):
    cases = score_run(run_folder)
    one = (1000 * 0.252 + 100 * 0.378 + 500 * 0.5 + 1500 * 6.25 + 50 * 25) / 1e6
    two = (10 * 0.3 + 2 * 1.2) / 1e6
    assert cases == [
        Case("django__django-1", True, pytest.approx(one), {LOW: 1, HIGH: 1}),
        Case("django__django-2", False, pytest.approx(two), {MID: 1}),
    ]
    found = row_of("mine", cases)
    assert found["total_leaderboard_bill_usd"] == pytest.approx(one + two + 0.6)
    assert found["avg_cost_per_resolved_usd"] == pytest.approx(one + two + 0.6)
    assert found["usd_per_solved"] == pytest.approx(one + two)
    assert (found["share_strong"], found["success"], found["ci95"]) == (pytest.approx(1 / 3), 0.5, [0.0, 1.0])
    assert [case.instance for case in score_run(run_folder, {"django__django-2"})] == ["django__django-2"]
    assert total([])["resolved_rate"] is None and total(cases[1:])["avg_cost_per_resolved_usd"] is None


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"model_id": LOW}, "no 'raw_usage'"),
        ({"model_id": "gpt-x", "raw_usage": usage(1, 1)}, "no 'gpt-x'"),
        ({"model_id": LOW, "raw_usage": {"prompt_tokens": 5}}, "whole numbers of prompt_tokens"),
        ({"model_id": LOW, "raw_usage": usage(5, 1, 3, 3)}, "3 + 3 cached tokens in a prompt of 5"),
        ([], "list indices"),
    ],
)
def test_a_call_without_a_price_is_one_line(run_folder, step, said):
    trace = run_folder / "django__django-1.trace.jsonl"
    trace.write_text(json.dumps(step) + "\n")
    with pytest.raises(ArtifactError) as error:
        score_run(run_folder)
    assert str(error.value).startswith(f"{trace}, line 1: ") and said in str(error.value) and "\n" not in str(error.value)


def test_what_a_run_lacks_is_one_line(run_folder):
    with pytest.raises(ArtifactError, match=r"no django__django-9\.json \(1 missing\)"):
        score_run(run_folder, {"django__django-1", "django__django-9"})
    with pytest.raises(ArtifactError, match="no JSON files; give the --output-dir"):
        score_run(run_folder / "results")
    (run_folder / "django__django-1.trace.jsonl").write_text("{\n")
    with pytest.raises(ArtifactError, match="line 1: it is no JSON"):
        score_run(run_folder)
    (run_folder / "django__django-1.trace.jsonl").unlink()
    with pytest.raises(ArtifactError, match="does not exist; put it beside results"):
        score_run(run_folder)
    (run_folder / "results/django__django-1.json").write_text("[]")
    with pytest.raises(ArtifactError, match="no result of the harness"):
        score_run(run_folder)


def test_tokens_of_needs_counts():
    assert tokens_of({"prompt_tokens": 0, "completion_tokens": 0}) == Tokens()
    with pytest.raises(ValueError, match="whole numbers"):
        tokens_of({"prompt_tokens": 1.5, "completion_tokens": 1})


def test_sessions_of_a_gateway_are_cases(make, tmp_path):  # noqa: F811
    """Drafts count beside the answers: 3 drafts and a teacher's answer where the step is escalated."""
    world = make(route__router="verifier", route__threshold=0.0)  # every step is escalated
    for name in ("django__django-1", "django__django-2"):
        facts = world.post(headers={"x-r2v-session-id": name}, tools=TOOLS).headers
        assert facts["x-r2v-model"] == "teacher-1"
        world.post("/v1/outcomes", {"session_id": name, "reward": float(name.endswith("1"))})
    titled = world.post(headers={"x-r2v-session-id": name}).headers  # without tools: beside the steps
    first, second = ledger_cases(world.ledger)
    assert (first.instance, first.solved, second.solved) == ("django__django-1", True, False)
    assert titled["x-r2v-session-id"] == f"{name}.aside"
    costs = [float(headers["x-r2v-cost-usd"]) for headers in (facts, titled)]
    assert first.calls == {"teacher-1": 1} and second.usd == pytest.approx(sum(costs), abs=1e-8) and min(costs) > 0
    assert total([first, second])["total_leaderboard_bill_usd"] == pytest.approx(first.usd + second.usd + 0.6)
    world.post(headers={"x-r2v-session-id": "django__django-3"}, tools=TOOLS)
    with pytest.raises(ArtifactError, match=r"session django__django-3 has no outcome \(1 have none\)"):
        ledger_cases(world.ledger)
    with pytest.raises(ArtifactError, match="does not exist; give the gateway's ledger"):
        ledger_cases(tmp_path / "none.db")


# -- the adapter ---------------------------------------------------------------------------------------------------------


def said(name, arguments, i=0):
    calls = [{"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": arguments}}]
    return {"role": "assistant", "content": "THOUGHT: look", "tool_calls": calls, "extra": {"cost": 0.1}}


def bash(command, i=0):
    return said("bash", json.dumps({"command": command}), i)


def result(text, i=0):
    return {"role": "tool", "tool_call_id": f"c{i}", "content": text}


FINE = [bash("cat parser.py"), result("<returncode>0</returncode> def parse(module): ...")]
STUCK = [bash("make test"), result("error: no such file"), bash("make test", 1), result("error: no such file", 1)]


def at(messages, step, instance="i", cache=None, models=(LOW, MID, MID_HIGH, HIGH), tools=()):
    state = CacheStateSnapshot(300, 1000.0, cache or {})
    return RouterContext(
        instance, step, (SYSTEM, ASK, *messages), tools, models, state, 0.0, RunConfig(250, 3.0, 300, 30.0)
    )  # fmt: skip


def doubting(**settings):
    """Escalates where the tool-call verifier gives the draft nothing."""
    return TwinRouter(VerifierRouter(threshold=1.0), tools=[BASH], **settings)


def test_a_router_decides_on_the_step_before():
    """Without a draft the first call goes to the cheapest; what repeats a failure goes to the strongest, one step later."""
    twin = doubting()
    assert twin.select(at([], 0)) == RouterDecision(LOW, "low: no step before this one has a draft")
    assert twin.select(at(FINE, 1)).model_id == LOW
    assert twin.select(at(STUCK[:2], 2)).model_id == LOW
    decision = twin.select(at(STUCK, 3))
    assert decision == RouterDecision(HIGH, "high: verifier 1.000 >= 1.000")
    assert doubting(first="mid").select(at([], 0)).model_id == MID


def test_the_draft_and_its_context_are_those_of_the_gateway():
    """What the router sees equals what r2v's own decision path makes of the same step."""
    import asyncio

    from r2v.core.features import featurise, proposing
    from r2v.core.types import NO_USAGE, Candidate
    from r2v.messages.conversation import contexts_of, parse, tools_of
    from r2v.verifiers.tool_calls import ToolCallVerifier

    seen = []

    class Watching(VerifierRouter):
        def decide(self, context, features, memory, *, seed):
            seen.append((context, features, len(memory.decisions)))
            return super().decide(context, features, memory, seed=seed)

    messages = [*FINE, bash("sed -i s/a/b/ parser.py", 1), result("ok", 1), bash("pytest", 2), result("1 failed", 2)]
    twin = TwinRouter(Watching(fitted_with=FittedWith(1, 40, "tool_calls")), tools=[BASH])
    twin.ask(at(messages[:4], 2))
    twin.ask(at(messages, 3))
    body = {"messages": [SYSTEM, ASK, *messages], "tools": [BASH]}
    request = parse(json.dumps(body).encode())
    *_, context, latest = contexts_of(request, 40)
    candidates = (Candidate(latest.actions[-1], None, None, NO_USAGE),)
    scores = asyncio.run(ToolCallVerifier(tools_of(request.tools)).score(context, [latest.actions[-1]]))
    assert seen[-1] == (proposing(context, candidates, scores), featurise(context, candidates, scores), 1)
    assert seen[-1][0].t == 2 and "pytest" in seen[-1][0].proposed.text
    TwinRouter(Watching(fitted_with=FittedWith(1, 40, None, "pseudo_entropy"))).ask(at(messages, 3))
    assert seen[-1][1].present[0] and not seen[-2][1].present[0]


def test_each_instance_has_a_memory_of_its_own():
    """The latch wants two objections in a row; another instance in between, and a new run, change nothing."""
    twin = TwinRouter(JudgeLatch(threshold=1.0), tools=[BASH])
    longer = [*STUCK, bash("make test", 2), result("error: no such file", 2)]
    picked = [
        twin.select(at(STUCK, 2)).model_id, twin.select(at(FINE, 1, "other")).model_id, twin.select(at(longer, 3)).model_id,
        twin.select(at([*longer, *FINE], 4)).model_id, twin.select(at([*FINE], 2, "other")).model_id,
        twin.select(at(longer, 1)).model_id,
    ]  # fmt: skip
    assert picked == [LOW, LOW, HIGH, HIGH, LOW, LOW]
    assert twin.select(at(longer, 2)).model_id == HIGH
    assert [twin.select(at(longer, 5, "again")).model_id for _ in range(3)] == [LOW] * 3  # each a run of its own


def test_routers_that_read_no_draft_decide_on_this_step():
    hard = Query(threshold=0.5, weights={"parser": 5.0})
    twin = TwinRouter(hard)
    history = [{"role": "assistant", "content": "hello"}, {"role": "user", "content": "go on"}]
    assert [twin.select(at(m, s)).model_id for s, m in enumerate([history, FINE])] == [HIGH, HIGH]
    easy = replace(hard, weights={"parser": -5.0})
    twin = TwinRouter(easy)
    assert [twin.select(at(m, s)).model_id for s, m in enumerate([[], FINE])] == [LOW, LOW]
    graded = TwinRouter(replace(hard, threshold=2.0), tiers=[0.1, 0.5, 1.5])  # the goal's risk is .993
    assert [graded.select(at(m, s)).model_id for s, m in enumerate([[], FINE])] == [MID_HIGH, MID_HIGH]
    drawn = TwinRouter(Random(threshold=0.5))
    picked = [drawn.select(at([], 0, str(i))).model_id for i in range(200)]
    assert picked.count(HIGH) == pytest.approx(100, abs=30) and set(picked) == {LOW, HIGH}
    assert picked == [TwinRouter(Random(threshold=0.5)).select(at([], 0, str(i))).model_id for i in range(200)]


class Scored(RouterBase):
    """Says a score of each step."""

    kind = "custom"
    reads_draft = False
    said = Decision("continue", "risk_below", 0.0, "custom", 9.0, 1.0, (), "")

    def decide(self, context, features, memory, *, seed):
        return self.said


@pytest.mark.parametrize(
    ("change", "model"),
    [
        ({"score": 0.05}, LOW), ({"score": 0.1}, MID), ({"score": 0.29}, MID), ({"score": 0.3}, MID_HIGH),
        ({"score": 0.6}, HIGH),
        ({"score": 0.2, "route": "escalate"}, MID),  # the bounds stand for the threshold
        ({"score": 0.2, "route": "escalate", "code": "out_of_range"}, HIGH), ({"score": 0.9, "score_kind": "risk"}, LOW),
        ({"score": 0.2, "route": "takeover"}, HIGH), ({"score": None, "route": "escalate"}, HIGH), ({"score": None}, LOW),
    ],
)  # fmt: skip
def test_scores_are_spread_over_four_tiers(change, model):
    router = Scored(threshold=9.0)
    object.__setattr__(router, "said", replace(Scored.said, **change))
    assert TwinRouter(router, tiers=[0.1, 0.3, 0.6]).select(at([], 0)).model_id == model


class OfPool(Scored):
    """Names a model of a pool."""

    models = ("mid", "high")
    said = Decision("escalate", "risk_above", 9.0, "custom", 9.0, 1.0, (), "", "mid")


def test_a_pool_whose_models_are_tiers_chooses_among_them():
    assert TwinRouter(OfPool(threshold=9.0)).select(at([], 0)).model_id == MID
    router = OfPool(threshold=9.0)
    object.__setattr__(router, "said", replace(OfPool.said, route="takeover"))
    twin = TwinRouter(router)
    assert [twin.select(at([], step)).model_id for step in (0, 1)] == [MID, MID]  # it keeps the instance
    object.__setattr__(router, "models", ("medium", "teacher"))
    with pytest.raises(SettingsError, match="chooses medium; a pool's models must be mid, mid_high, high"):
        TwinRouter(router)


def test_bounds_give_each_tier_its_share():
    scores = np.random.default_rng(1).random(1000).tolist()
    bounds = bounds_of(scores, [0.5, 0.2, 0.2, 0.1])
    tiers = [sum(score >= bound for bound in bounds) for score in scores]
    assert [tiers.count(t) for t in range(4)] == pytest.approx([500, 200, 200, 100], abs=1)
    for shares, said in (([0.5, 0.5], "write four"), ([0.5, 0.5, 0.5, -0.5], "write four")):
        with pytest.raises(SettingsError, match=said):
            bounds_of(scores, shares)
    with pytest.raises(SettingsError, match="no step has a score"):
        bounds_of([], [0.25] * 4)


def test_a_warm_stronger_model_that_costs_no_more_is_taken():
    """50,000 tokens: new to low 0.0128 USD, held by mid_high 0.0040 and by high 0.0375; new to mid_high 0.0265."""
    long = [{"role": "user", "content": "x" * 4 * 50_000}]
    warm = {model: ModelCacheView(model, 800.0, 50_000) for model in (MID_HIGH, HIGH)}
    assert doubting(cache_aware=True).select(at(long, 0, cache=warm)).model_id == MID_HIGH
    assert doubting().select(at(long, 0, cache=warm)).model_id == LOW
    for seconds, model in ((300, MID_HIGH), (301, LOW)):
        alive = {MID_HIGH: ModelCacheView(MID_HIGH, 1000.0 - seconds, 50_000)}
        assert doubting(cache_aware=True).select(at(long, 0, cache=alive)).model_id == model
    assert "costs no more" in doubting(cache_aware=True).select(at(long, 0, cache=warm)).rationale
    assert doubting(cache_aware=True, first="high").select(at(long, 0, cache=warm)).model_id == HIGH


def test_the_decision_is_of_the_harness_that_asks(monkeypatch):
    """Its harness takes nothing but its own class."""
    module = ModuleType("made_harness")
    module.RouterDecision = make_dataclass("RouterDecision", ["model_id", "rationale"])
    fields = list(RouterContext.__dataclass_fields__)
    module.RouterContext = make_dataclass("RouterContext", fields, frozen=True)
    module.RouterContext.__module__ = "made_harness"
    monkeypatch.setitem(sys.modules, "made_harness", module)
    ours = at(FINE, 1)
    theirs = module.RouterContext(**{name: getattr(ours, name) for name in fields})
    assert isinstance(doubting().select(theirs), module.RouterDecision)


def test_it_is_made_from_arguments_of_a_command_line(tmp_path):
    VerifierRouter(threshold=0.2).save(tmp_path / "mine")
    twin = TwinRouter.from_cli_args(router=str(tmp_path / "mine"), threshold="1.0", seed="3")
    assert twin.router.threshold == 1.0 and twin.select(at(STUCK, 2)).model_id == HIGH
    assert TwinRouter.from_cli_args(router="rules", tiers="0.2,0.4,0.8", first="mid").select(at([], 0)).model_id == MID
    assert (
        TwinRouter.from_cli_args(router="recorded").select(at(STUCK, 2)).model_id == HIGH
    )  # as rules: it repeats a failure
    for arguments, said in (
        ({"router": "r2v"}, "has to be fitted"), ({"router": "rules", "tiers": "a"}, "are numbers"),
        ({"router": "rules", "cache_aware": "1"}, "cache_aware=yes"),
        ({"router": str(tmp_path / "none")}, "no router is called"),
    ):  # fmt: skip
        with pytest.raises(R2VError, match=said):
            TwinRouter.from_cli_args(**arguments)


REFUSED = [
    (Entropy(), "the entropy of a draft"),
    (VerifierRouter(threshold=None), "it has no threshold yet"),
    (Restart(threshold=0.5, risk=None, measured=()), "begins episodes again"),
    (VerifierRouter(fitted_with=FittedWith(4, 50, "household")), "the verifier household"),
]


@pytest.mark.parametrize(("router", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_a_router_that_cannot_decide_without_a_draft_is_refused(router, said):
    with pytest.raises(SettingsError, match=f"cannot play TwinRouterBench: .*{said}") as error:
        TwinRouter(router)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"first": "best"}, "first = best"), ({"models": {"low": "a"}}, "no tier mid"), ({"tiers": [1, 2]}, "three rising"),
        ({"tiers": [3, 2, 1]}, "three rising"), ({"models": dict.fromkeys(TIERS, "a"), "cache_aware": True}, "no price"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_one_line(settings, said):
    with pytest.raises(SettingsError, match=said):
        TwinRouter(Rules(), **settings)
    with pytest.raises(SettingsError, match="two tiers alone"):
        TwinRouter(Random(threshold=0.5), tiers=[1, 2, 3])


def test_what_cannot_be_read_is_one_line():
    with pytest.raises(SettingsError, match="is not among the available models"):
        doubting().select(at([], 0, models=(LOW,)))
    for message, said in (({"role": "robot", "content": "x"}, "robot"), ({"content": "x"}, "no role")):
        with pytest.raises(SettingsError, match=said) as error:
            doubting().select(at([message, *FINE], 3))
        assert "i, step 3" in str(error.value)


def test_bare_functions_and_calls_with_objects_are_read():
    """As the bank's BFCL rows have them: a call that no function allows gets nothing from the verifier."""
    functions = ({"name": "find", "parameters": {"type": "object", "required": ["q"]}},)
    good, bad = (said(name, {"q": "x"}, 1) | {"content": None} for name in ("find", "lose"))
    twin = TwinRouter(VerifierRouter(threshold=1.0))
    assert twin.select(at([good, result("ok", 1)], 1, tools=functions)).model_id == LOW
    assert twin.select(at([bad, result("ok", 1)], 2, tools=functions)).model_id == HIGH


# -- the bank ------------------------------------------------------------------------------------------------------------


def sample():
    """Rows by the schema of the static bank: two trajectories with steps, a chat of one, a single question."""
    rows = []
    for name, gold, turns in (("django__django-1", (0, 1, 3, 3), STUCK), ("django__django-2", (0, 0, 2), FINE * 2)):
        for t, tier in enumerate(gold):
            rows.append(("swebench", name, t + 1, len(gold), [SYSTEM, ASK, *turns[: 2 * t]], tier))
    asked = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "What is a parser?"}]
    rows.append(("mtrag", "turn_3", 1, 1, [*asked, {"role": "assistant", "content": "A program."}, ASK], 0))
    rows.append(("qmsum", "meeting", 1, 1, asked, 1))
    return [
        {
            "id": f"{benchmark}_{name}_step_{step}", "benchmark": benchmark, "scenario": "x", "instance_id": name,
            "step_index": step, "total_steps": steps, "messages": messages, "target_tier": TIERS[tier],
            "target_tier_id": tier,
        }
        for benchmark, name, step, steps, messages, tier in rows
    ]  # fmt: skip


def write(path: Path, rows) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_the_bank_is_read_from_lines_and_folders(tmp_path):
    rows = sample()
    found = read_bank(write(tmp_path / "a/question_bank.jsonl", rows))
    assert [(row.id, row.gold, row.step, row.instance) for row in found] == [
        (row["id"], row["target_tier_id"], row["step_index"], row["instance_id"]) for row in rows
    ]
    assert found[3].messages[2]["tool_calls"][0]["function"]["name"] == "bash"
    assert read_bank(tmp_path / "a") == found
    assert read_bank(write(tmp_path / "b/data/static/question_bank.jsonl", rows).parents[2]) == found
    assert read_bank(write(tmp_path / "c.jsonl.gz", rows)) == found
    alone = [{key: value for key, value in rows[-1].items() if key != "instance_id"} | {"functions": [{"name": "f"}]}]
    (row,) = read_bank(write(tmp_path / "d.jsonl", alone))
    assert row.instance == row.id and row.functions == ({"name": "f"},)


@pytest.mark.parametrize("as_text", [False, True], ids=["lists", "JSON text"])
def test_the_bank_is_read_from_parquet(tmp_path, as_text):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = sample()
    if as_text:
        rows = [row | {"messages": json.dumps(row["messages"])} for row in rows]
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data/train.parquet")
    assert read_bank(tmp_path) == read_bank(write(tmp_path / "lines.jsonl", sample()))
    pq.write_table(pa.table({"id": ["1"]}), tmp_path / "other.parquet")
    with pytest.raises(ArtifactError, match=r"no column benchmark \(it has id\)"):
        read_bank(tmp_path / "other.parquet")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target_tier": "top"}, "target_tier 'top'"), ({"target_tier_id": 2}, "target_tier_id 2"),
        ({"id": None}, "has no id"),
        ({"step_index": 0}, "step_index 0"), ({"step_index": "1"}, "step_index '1'"), ({"messages": []}, "no messages"),
        ({"messages": "x"}, "Expecting value"), ({"messages": [1]}, "no list of objects"),
        ({"id": "mtrag_turn_3_step_1"}, "occurs twice"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_one_line(tmp_path, change, said):
    rows = sample()
    path = write(tmp_path / "bank.jsonl", [*rows[:-1], rows[-1] | change])
    with pytest.raises(ArtifactError) as error:
        read_bank(path)
    assert str(error.value).startswith(f"{path}, row 9: ") and said in str(error.value) and "\n" not in str(error.value)


def test_a_bank_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(SettingsError, match=r"has no question_bank\.jsonl or Parquet file; give one, or write Amorph"):
        read_bank(tmp_path / "nothing")
    (tmp_path / "bank.csv").write_text("a\n")
    with pytest.raises(ArtifactError, match="neither Parquet nor JSON lines"):
        read_bank(tmp_path / "bank.csv")
    with pytest.raises(ArtifactError, match="has no rows"):
        read_bank(write(tmp_path / "empty.jsonl", []))
    (tmp_path / "broken.jsonl").write_text("{}x\n")
    with pytest.raises(ArtifactError, match="line 1: it is no JSON"):
        read_bank(tmp_path / "broken.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SettingsError, match=r"pip install 'r2v\[datasets\]'"):
        read_bank(Path("Amorph/TwinRouterBench"))


# -- the bench -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = write(tmp_path_factory.mktemp("bank") / "question_bank.jsonl", sample())
    routers = {
        "rules": Rules(),
        "verifier": VerifierRouter(threshold=0.4),
        "entropy": Entropy(),
        "query": Query(threshold=0.9),
    }
    return path, routers, bench(path, routers)


def test_the_bench_ends_in_rows_beside_nulls(found):
    _, _, got = found
    assert got["suite"] == "twinrouterbench" and [row["router"] for row in got["rows"]] == ["rules", "verifier", "query"]
    assert "entropy of a draft" in got["refused"]["entropy"]
    rows = {row["router"]: row for row in got["rows"]}
    assert rows["rules"]["share_strong"] == pytest.approx(2 / 9)  # after the repeated failure, and not before
    assert (rows["rules"]["under"], rows["rules"]["over"]) == (pytest.approx(300 / 9), 0)
    cheapest, strongest, first = (got["nulls"][name] for name in ("cheapest", "strongest", "step_0"))
    assert (cheapest["share_strong"], strongest["share_strong"], first["share_strong"]) == (0, 1, pytest.approx(4 / 9))
    assert (cheapest["success"], strongest["success"], first["success"]) == (0.25, 1, 0.5)
    assert strongest["cost_save"] == 0 and strongest["row_pass"] == 100
    assert cheapest["success"] == rows["query"]["success"] and rows["query"]["usd"] == cheapest["usd"]
    assert strongest["usd_per_solved"] == pytest.approx(strongest["usd"] / 4)
    assert got["bound"]["row_exact"] == 100 and got["bound"]["usd"] < strongest["usd"]
    for row in (*rows.values(), cheapest, strongest, first):
        assert row["ci95"][0] <= row["success"] <= row["ci95"][1]
    assert got["fidelity"] == {
        "rows": 9, "trajectories": 4, "workloads": {"swebench": 7, "mtrag": 1, "qmsum": 1}, "complete": False,
        "tokens": "characters / 4; the published figures count with each vendor's tokeniser",
    }  # fmt: skip
    assert got["published"]["static"][0]["router"] == "SR-KNN (in-sample)"
    json.dumps(got, allow_nan=False)


def test_random_has_as_many_of_each_tier(found):
    _, _, got = found
    for row in got["rows"]:
        drawn = got["nulls"]["random"][row["router"]]
        assert drawn["share_of_tiers"] == pytest.approx(row["share_of_tiers"])
    assert 0 < got["rows"][1]["share_strong"] < 1
    assert got["nulls"]["random"]["verifier"]["usd"] != pytest.approx(got["rows"][1]["usd"])


def test_choices_do_not_depend_on_labels_or_on_other_routers(found, tmp_path):
    path, routers, got = found
    rows = [row | {"target_tier": "high", "target_tier_id": 3} for row in sample()]
    other = bench(write(tmp_path / "bank.jsonl", rows), {"verifier": routers["verifier"]})
    assert other["rows"][0]["sha256"] == got["rows"][1]["sha256"]
    assert other["rows"][0]["row_pass"] < got["rows"][1]["row_pass"]
    assert bench(path, routers) == got


def test_shares_spread_a_router_over_the_tiers(found):
    path, _, _ = found
    got = bench(path, {"verifier": VerifierRouter(), "random": Random(threshold=0.3)}, shares=[0.25] * 4)
    verifier, drawn = got["rows"]
    assert len(verifier["tiers"]) == 3 and sum(share > 0 for share in verifier["share_of_tiers"].values()) > 2
    assert "tiers" not in drawn and drawn["share_of_tiers"]["mid"] == 0
    with pytest.raises(SettingsError, match="write four"):
        bench(path, {}, shares=[1.0])


class Words(RouterBase):
    """Scores what was said last."""

    kind = "custom"
    reads_draft = False

    def decide(self, context, features, memory, *, seed):
        hard = float("hard" in context.observations[-1])
        return Decision("continue", "risk_below", hard, "custom", 9.0, 1.0, (), "")


def test_caches_are_of_one_trajectory_and_follow_from_its_choices(tmp_path):
    """A's second step is easy and cheapest where its first was; B has no step before, so it goes to low."""
    hard, easy, long = ({"role": "user", "content": text} for text in ("hard", "easy", "x" * 200_000))
    prompts = {"A": [[long, hard], [long, hard, {"role": "assistant", "content": "done"}, easy]], "B": [[long, easy]]}
    rows = [
        sample()[-1] | {"id": f"{name}{t}", "instance_id": name, "step_index": t + 1, "messages": messages}
        for name, steps in prompts.items()
        for t, messages in enumerate(steps)
    ]
    path, router = write(tmp_path / "bank.jsonl", rows), {"words": Words(threshold=9.0)}
    shares = [2 / 3, 0.0, 1 / 3, 0.0]
    for cache_aware, mid_high in ((False, 1 / 3), (True, 2 / 3)):
        (row,) = bench(path, router, shares=shares, cache_aware=cache_aware)["rows"]
        assert row["share_of_tiers"] == pytest.approx({"low": 1 - mid_high, "mid": 0, "mid_high": mid_high, "high": 0})


# -- the page ------------------------------------------------------------------------------------------------------------


def test_the_pages_gateway_settings_are_the_pools_two_ends():
    text = (Path(__file__).parents[1] / "docs/twinrouterbench.md").read_text()
    settings = validated(GatewaySettings, yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]))
    for role, tier in (("slm", "low"), ("teacher", "high")):
        assert settings.models[role].model == MODELS[tier] and settings.models[role].price == PRICES[MODELS[tier]]
    assert settings.route.cache_ttl_s == PUBLISHED.cache_s
    assert named_router(settings.route.router).name == settings.route.router
