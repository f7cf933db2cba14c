"""Benefits from steps that drew their route at random: what advice finds is what the made-up world holds."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from r2v.cli import cli
from r2v.core.features import featurise
from r2v.core.groups import folds, groups
from r2v.core.types import (
    NO_USAGE,
    Action,
    Candidate,
    Choice,
    Context,
    Decision,
    Episode,
    Memory,
    Observation,
    Step,
    Task,
    Usage,
)
from r2v.evaluation.gain import SHARES, escalated, mean_gain
from r2v.gateway.routing import GatewayRouter
from r2v.gateway.settings import RouteSettings
from r2v.report.advice import page, paragraph, table
from r2v.routers import decide, load_router
from r2v.runtime.store import write_episodes
from r2v.studies.advise import FOLDS, advise
from r2v.studies.costs import Costs, read_prices
from r2v.studies.evidence import LEAST_EXPLORED, Explored, escalation_propensity, evidence_of, explored_steps

STEPS = 3
FAILS = 0.1
"""What is left of the chance of success after a tricky step that the small model takes."""
TRICKY, PLAIN = ("refund", "escrow", "dispute"), ("lookup", "status", "greeting")
HARD, EASY = ("mountain", "glacier"), ("meadow", "harbour")


def world(sessions: int, *, explore: float = 0.3, seed: int = 0) -> tuple[list[Episode], np.ndarray]:
    """A deployment whose router escalates hard tasks, of which few succeed, where help matters at tricky steps alone.

    Returns:
        (episodes, [session, step] the true benefit of escalating each step).
    """
    rng = np.random.default_rng(seed)
    episodes, benefit = [], np.zeros((sessions, STEPS))
    for i in range(sessions):
        hard, tricky_T = bool(rng.random() < 0.5), rng.random(STEPS) < 0.35
        wanted = "escalate" if hard else "continue"
        own = 1 - explore / 2
        e = own if hard else 1 - own
        helped_T = rng.random(STEPS) < e
        left_T = np.where(tricky_T & ~helped_T, FAILS, 1.0)
        chance = 0.2 if hard else 0.95
        for t in range(STEPS):
            later = np.where(tricky_T[t + 1 :], e + (1 - e) * FAILS, 1.0).prod()
            benefit[i, t] = tricky_T[t] * (1 - FAILS) * chance * left_T[:t].prod() * later
        goal = f"{(HARD if hard else EASY)[i % 2]} number {i} of customer c{i * 37 % 101} in town t{i * 53 % 89}"
        seen, done, steps = [], [], []
        for t in range(STEPS):
            seen.append(f"entry {i * 7 + t} asks for {(TRICKY if tricky_T[t] else PLAIN)[t % 3]}")
            context = Context(goal, tuple(seen), tuple(done), 50)
            draft = Candidate(Action(f"answer {t}"), None, None, NO_USAGE)
            took = "escalate" if helped_T[t] else "continue"
            decision = Decision(took, "explore", None, None, None, own if took == wanted else 1 - own, (), "")
            action, source = (Action(f"solve {t}"), "teacher") if helped_T[t] else (draft.action, "slm")
            slm, teacher = Usage(1, 100, 10), Usage(1, 100, 20) if helped_T[t] else NO_USAGE
            features = featurise(context, (draft,), (0.5,))
            choice = Choice(action, source, (draft,), (0.5,), features, decision, slm, teacher)
            steps.append(Step(t, 0, Observation(seen[-1], False, None, None, "", ()), choice))
            done.append(action)
        success = bool(rng.random() < chance * left_T.prod())
        task = Task(goal, "served", "gateway", goal)
        episodes.append(Episode(task, 0, "none", "r2v", goal, tuple(steps), None, success, "done", None))
    return episodes, benefit


@pytest.fixture(scope="module")
def made():
    return world(600)


@pytest.fixture(scope="module")
def advice(made):
    return advise(made[0], Costs())


def truth_U(evidence, episodes, benefit) -> np.ndarray:
    place = {episode.goal: i for i, episode in enumerate(episodes)}
    return np.array(
        [
            benefit[place[evidence.episodes[e].goal], t]
            for e, t in zip(evidence.rows.episode_N, evidence.rows.t_N, strict=True)
        ]
    )


def test_the_gain_found_is_that_of_the_world(made, advice):
    facts, evidence = advice.facts, advice.evidence
    assert (facts["verdict"], facts["evidence"], facts["slms"]) == ("route", "explored", ["r2v"])
    units = evidence.units(advice.probabilities, folds(evidence.rows.group_N, FOLDS, 0))
    escalated_U, _ = escalated(units, SHARES, evidence.score_kinds)
    true_U = truth_U(evidence, *made)
    low, high = facts["gain_ci95"]
    true = mean_gain(escalated_U.astype(float), true_U, units.model_U)
    assert low < true < high and true > 0.03 and facts["gain_over_random"] == pytest.approx(true, abs=0.03)
    assert facts["benefit_of_escalated"] == pytest.approx(true_U[escalated_U].mean(), abs=0.12)
    assert facts["at_risk"] == pytest.approx(true_U[~escalated_U].mean(), abs=0.05)
    json.dumps(facts, allow_nan=False)


def test_a_router_that_escalates_hard_tasks_does_not_hide_the_benefit(made, advice):
    """The naive difference says that help harms, because it is given where most sessions fail anyway."""
    episodes, benefit = made
    of = {
        source: np.mean([e.success for e in episodes for s in e.steps if s.choice.source == source])
        for source in ("slm", "teacher")
    }
    low, high = advice.facts["benefit_ci95"]
    assert of["teacher"] - of["slm"] < -0.1 and 0 < low < benefit.mean() < high


def test_outcomes_that_say_nothing_are_no_route(made):
    order = np.random.default_rng(3).permutation(len(made[0]))
    shuffled = [replace(e, success=made[0][n].success) for e, n in zip(made[0], order, strict=True)]
    facts = advise(shuffled, Costs()).facts
    assert (facts["verdict"], facts["evidence"]) == ("no_route", "explored") and facts["sessions_needed"] > 0


def test_no_reader_saw_the_outcome_of_the_step_that_it_predicts(made):
    """With the outcomes of one fold turned round, its own predictions stay and others change."""
    episodes = made[0][:300]
    evidence = evidence_of(episodes, groups(episodes))
    fold_N = folds(evidence.rows.group_N, 3, 0)
    turned = {name: np.where(fold_N == 0, 1 - y_N, y_N) for name, y_N in evidence.labels.items()}
    plain, _ = evidence.probabilities(fold_N, 0)
    other, _ = replace(evidence, labels=turned).probabilities(fold_N, 0)
    for name in ("risk", "teacher_risk"):
        changed = plain[name] != other[name]
        assert not changed[fold_N == 0].any() and changed[fold_N != 0].any()


def test_a_worth_is_the_doubly_robust_one(made):
    episodes = made[0][:300]
    evidence = evidence_of(episodes, groups(episodes))
    n = len(evidence.rows)
    p = {"risk": np.full(n, 0.6), "teacher_risk": np.full(n, 0.1)}
    worth = evidence.worth(p)
    for row in range(20):
        step = evidence.episodes[evidence.rows.episode_N[row]].steps[evidence.rows.t_N[row]]
        y, taken = float(evidence.episodes[evidence.rows.episode_N[row]].success), step.choice.decision.propensity
        away = (y - 0.9) / taken if step.choice.source == "teacher" else -(y - 0.4) / taken
        assert worth[row] == pytest.approx(0.5 + away)


# Several stronger models

POOL = ("medium", "teacher")
SOLVES = {"slm": 0.4, "medium": 0.5, "teacher": 0.7}


class ToMedium:
    """Gives steps that say so to the medium model, and all others to the SLM."""

    name, models = "to medium", POOL

    def decide(self, context: Context, features, memory: Memory, *, seed: int) -> Decision:
        route = "escalate" if "midway" in context.observations[-1] else "continue"
        return Decision(route, "risk_above", 0.5, "benefit", 0.1, 1.0, (), "", "medium")


def pool_world(sessions: int, explore: float) -> list[Episode]:
    """Sessions of one step, half of which the router gives to the medium model."""
    rng = np.random.default_rng(0)
    router = GatewayRouter(ToMedium(), RouteSettings(explore=explore), POOL, POOL, POOL)
    draft = Candidate(Action("answer"), None, None, NO_USAGE)
    episodes = []
    for i in range(sessions):
        goal, seen = (
            f"number {i} of customer c{i * 37 % 101} in town t{i * 53 % 89}",
            f"entry {i} {('midway', 'plain')[i % 2]}",
        )
        context = Context(goal, (seen,), (), 50)
        features = featurise(context, (draft,), (0.5,))
        decision = router.decide(context, features, Memory(), seed=i)
        source = "slm" if decision.route == "continue" else "teacher"
        choice = Choice(Action("x"), source, (draft,), (0.5,), features, decision, Usage(1, 100, 10), Usage(1, 100, 20))
        step = Step(0, 0, Observation(seen, False, None, None, "", ()), choice)
        success = bool(rng.random() < SOLVES[choice.model])
        episodes.append(
            Episode(Task(goal, "served", "gateway", goal), 0, "none", "r2v", goal, (step,), None, success, "done", None)
        )
    return episodes


def test_steps_of_another_model_stay_and_the_weights_of_both_arms_are_one_on_average():
    episodes = pool_world(6000, 0.5)
    evidence = evidence_of(episodes, groups(episodes))
    assert isinstance(evidence, Explored) and len(evidence.rows) == len(episodes)
    helped_N, e_N = evidence.escalated_N, evidence.propensity_N
    alone_N = 1 - helped_N - evidence.other_N
    assert np.mean(helped_N / e_N) == pytest.approx(1, abs=0.1) and np.mean(alone_N / (1 - e_N)) == pytest.approx(1, abs=0.1)
    for wrong in ({"risk": 0.9, "teacher_risk": 0.9}, {"risk": 0.2, "teacher_risk": 0.5}):
        worth_N = evidence.worth({name: np.full(len(episodes), value) for name, value in wrong.items()})
        assert worth_N.mean() == pytest.approx(SOLVES["teacher"] - SOLVES["slm"], abs=0.1)
        assert worth_N[evidence.other_N > 0] == pytest.approx(wrong["risk"] - wrong["teacher_risk"])
    of = [e.success for e in episodes if e.steps[0].choice.model == "medium"]
    assert np.isnan(evidence.labels["risk"]).sum() == len(of) + helped_N.sum() and len(of) == evidence.other_N.sum()
    took = advise(episodes[:1000], Costs()).facts["explored"]
    assert took["escalated"] + took["continued"] == sum(e.steps[0].choice.model != "medium" for e in episodes[:1000])


# What counts as explored


def with_decision(episode: Episode, **changes) -> Episode:
    """The episode with its first decision changed."""
    first, *rest = episode.steps
    choice = replace(first.choice, decision=replace(first.choice.decision, **changes))
    return replace(episode, steps=(replace(first, choice=choice), *rest))


@pytest.mark.parametrize("propensity", [1.0, 0.0, -1.0, 7.0, float("nan"), float("inf"), 0.005, 0.995])
def test_a_step_that_was_certain_or_cannot_be_is_left_out(made, propensity):
    episode = with_decision(made[0][0], propensity=propensity)
    assert escalation_propensity(made[0][0].steps[0]) is not None and escalation_propensity(episode.steps[0]) is None


@pytest.mark.parametrize("explore", [0.01, 0.02, 0.04])
def test_steps_are_left_out_whichever_route_they_drew(explore):
    """Else those that are left would not be as the probabilities say."""
    episodes, _ = world(200, explore=explore)
    counted = {source: [] for source in ("slm", "teacher")}
    for step in (s for e in episodes for s in e.steps):
        counted[step.choice.source].append(escalation_propensity(step) is not None)
    assert all(set(found) == {explore >= 0.02} for found in counted.values())


@pytest.mark.parametrize("explore", [0.03, 0.04])
def test_in_a_pool_steps_are_left_out_whichever_model_they_drew(explore):
    episodes = pool_world(1500, explore)
    counted: dict[str, set[bool]] = {}
    for episode, steps in zip(episodes, explored_steps(episodes), strict=True):
        counted.setdefault(episode.steps[0].choice.model, set()).add(bool(steps))
    assert counted == {model: {explore >= 0.04} for model in SOLVES}


def test_a_row_that_contradicts_itself_is_left_out(made):
    step = next(s for e in made[0] for s in e.steps if s.choice.source == "teacher")
    odd = replace(step, choice=replace(step.choice, source="slm"))
    assert escalation_propensity(step) is not None and escalation_propensity(odd) is None
    undrafted = replace(step, choice=replace(step.choice, features=None))
    assert escalation_propensity(undrafted) is None


def test_certain_steps_are_counted_and_not_read(made):
    episodes = [with_decision(e, propensity=1.0) for e in made[0]]
    evidence = evidence_of(episodes, groups(episodes))
    assert isinstance(evidence, Explored) and (evidence.rows.t_N > 0).all()
    assert evidence.not_explored == len(episodes) and len(evidence.rows) == (STEPS - 1) * len(episodes)


def test_too_few_explored_steps_say_what_to_set(made):
    few = [e if i < 15 else replace(e, steps=with_decision(e, propensity=1.0).steps[:1]) for i, e in enumerate(made[0])]
    facts = advise(few, Costs()).facts
    assert facts["evidence"] != "explored" and facts["explored"]["continued"] < LEAST_EXPLORED
    assert facts["verdict"] == "not_enough" and "set route.explore until" in facts["why"]
    assert f"now {facts['explored']['escalated']} escalated" in paragraph(facts)


def test_a_benefit_goes_before_a_difference(made):
    beside = [replace(e, steps=tuple(replace(s, alike=(i + s.t) % 2 == 0) for s in e.steps)) for i, e in enumerate(made[0])]
    assert evidence_of(beside, groups(beside)).kind == "explored"
    unended = [replace(e, success=None) for e in beside]
    assert evidence_of(unended, groups(unended)).kind == "alike"


# What is shown, and the router


def test_the_page_says_what_escalating_a_step_adds(made, advice, tmp_path):
    facts, shown = advice.facts, page(advice.facts, title="x")
    head, *lines = table(facts)
    assert "steps escalated" in head and "success that escalating one adds" in head and len(lines) == len(SHARES) + 1
    found = [facts["measured"][key] for key in ("share", "benefit_of_escalated", "at_risk")]
    assert found == pytest.approx([facts["share_escalated"], facts["benefit_of_escalated"], facts["at_risk"]])
    assert "adds more success than random escalation" in paragraph(facts) and "others" not in paragraph(facts)
    assert "12 others" in paragraph({**facts, "steps_not_explored": 12})
    assert "escalating it alone adds" in shown and "first step only" in shown and "<svg" not in shown
    path = tmp_path / "prices.yaml"
    path.write_text("slm: {input: 0.5, output: 1.5}\nteacher: {input: 5, output: 15}\n")
    evidence = advice.evidence
    priced = Costs(read_prices(path)).money(evidence, evidence.escalated_N > 0, 0)
    # A continued step costs the teacher as many tokens as the SLM's draft took: 100 read and 10 written.
    always = np.where(evidence.escalated_N > 0, 100 * 5 + 20 * 15, 100 * 5 + 10 * 15).sum() / 1e6
    assert priced["priced"] and priced["usd_teacher_alone"] == pytest.approx(always)


def test_fit_writes_a_router_that_escalates_the_steps_that_help_turns(made, tmp_path):
    write_episodes(tmp_path / "log.parquet", made[0])
    out = tmp_path / "router"
    done = CliRunner().invoke(cli, ["fit", str(tmp_path / "log.parquet"), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["ready"] and facts["evidence"] == "explored" and facts["steps_not_explored"] == 0
    router = load_router(out)
    assert not router.hands_over and router.estimates in ("benefit", "risk")
    asked: dict[bool, list[bool]] = {True: [], False: []}
    for episode in world(100, seed=9)[0]:
        for context, step in zip(episode.contexts(50), episode.steps, strict=True):
            route = decide(router, context, step.choice.candidates, step.choice.scores).route
            assert route in ("continue", "escalate")
            asked[any(word in step.observation.text for word in TRICKY)].append(route == "escalate")
    assert np.mean(asked[True]) > 3 * np.mean(asked[False])
