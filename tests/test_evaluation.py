"""Outcomes, curves, operating points, replay: by hand and by property."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2v.core.errors import StageError
from r2v.core.features import FEATURES
from r2v.core.fixed import Always, AtSteps, Never, Redraw
from r2v.core.types import NO_USAGE, Action, Usage
from r2v.evaluation import prefixes
from r2v.evaluation.curves import area_B, calls_at, calls_at_B, curve, interval, open_interval, resample_BT, success_at_B
from r2v.evaluation.operating_point import Point, better_policy, by_budget, by_cost, by_target, choose, in_words
from r2v.evaluation.outcomes import Row, gather, row
from r2v.evaluation.prefixes import Scored, by_prefix, curves, measures
from r2v.evaluation.replay import always, escalated_steps, oracle, replay, replayable, replayed
from r2v.evaluation.results import Played, Prices, calibration, summarise
from r2v.maths.calibration import ece
from r2v.routers.judge_latch import JudgeLatch
from r2v.routers.random import Random
from toy import TASK, ThresholdRouter, routed, run

TASKS, SEEDS = ("a", "b"), (1, 2)


def rows(success, asked=(), steps=4):
    cells = [(task, z) for task in TASKS for z in SEEDS]
    return [
        Row(task, z, "flaky" if z == 1 else "partial", s, False, steps, steps, len(asked), tuple(asked), (len(asked), 0, 0))
        for (task, z), s in zip(cells, success, strict=True)
    ]


def outcomes(success, asked=(), steps=4):
    return gather(rows(success, asked, steps), TASKS, SEEDS, horizon=10)


def test_outcomes_are_arranged_and_counted():
    o = outcomes((True, False, True, True), asked=(0, 3))
    assert o.success_TZ.tolist() == [[1, 0], [1, 1]]
    assert o.call_rate_TZ.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert o.success_of_family() == {"flaky": 1.0, "partial": 0.5}
    assert o.escalated_10[:4].tolist() == [1, 0, 0, 1]
    assert np.isnan(o.escalated_10[4:]).all()
    with pytest.raises(ValueError, match="exactly once"):
        gather(rows((True,) * 4)[:3], TASKS, SEEDS, 10)


def test_the_area_is_the_trapezoid_between_the_ends():
    alone, middle, teacher = (
        outcomes((False, False, False, True)),
        outcomes((True, False, True, True), asked=(1, 2)),
        outcomes((True,) * 4, asked=(0, 1, 2, 3)),
    )
    assert curve([teacher, alone, middle]) == [[0.0, 0.25], [0.5, 0.75], [1.0, 1.0]]
    weights = resample_BT(2, 100, seed=0)
    assert area_B([teacher, alone, middle], weights)[0] == pytest.approx(0.5 * (0.25 + 0.75) / 2 + 0.5 * (0.75 + 1) / 2)
    limited = area_B([alone, middle], weights, middle)
    assert limited[0] == pytest.approx((0.25 + 0.75) / 2)
    assert area_B([alone, middle, teacher], weights, middle) == pytest.approx(limited)  # beyond the end of all
    assert area_B([alone], weights, alone) == pytest.approx(weights @ alone.success_T)  # nobody was ever asked
    assert weights.sum(axis=1) == pytest.approx(np.ones(101))


def test_calls_at_equal_success_are_read_off_the_curve():
    alone, middle, worse, teacher = (
        outcomes((False, False, False, True)),
        outcomes((True, False, True, True), asked=(1, 2)),
        outcomes((True, False, False, True), asked=(1, 2, 3)),
        outcomes((True,) * 4, asked=(0, 1, 2, 3)),
    )
    weights = np.full((1, 2), 0.5)

    def calls(points, success):
        return float(calls_at_B(points, np.array([success]), weights)[0])

    points = [teacher, middle, alone, worse]
    assert [calls(points, success) for success in (0.2, 0.25, 0.5, 0.75, 0.875, 1.0)] == [0, 0, 1, 2, 3.75, 4]
    assert calls([alone, middle], 0.8) == np.inf  # never reached
    assert calls([alone, alone, teacher], 0.25) == 0.0  # two points at equal calls
    # where it is not reached in some of the resamples, or in too many of them
    assert open_interval(np.array([1.0, *np.linspace(0, 1, 99), np.inf])) == pytest.approx([2.475 / 98, 96.525 / 98])
    assert open_interval(np.array([1.0, *np.linspace(0, 1, 50), *[np.inf] * 50]))[1] is None
    assert open_interval(np.full(9, np.inf)) == [None, None]
    # of differences that are not known in some of the resamples, too many of them, or in the sample itself
    known, unknown = np.linspace(0, 1, 99), [np.nan] * 2
    low, high = open_interval(np.array([0.5, *known, *unknown]))
    assert 0 <= low < 0.025 and 0.975 < high <= 1
    assert open_interval(np.array([0.5, *known, *unknown * 3])) == [None, None]
    assert open_interval(np.array([np.nan, *known])) == [None, None]


@given(st.integers(0, 10_000), st.floats(0.05, 1.0))
def test_a_curve_has_the_success_at_the_calls_that_it_needs_and_not_before(seed, success):
    rng = np.random.default_rng(seed)
    points = [outcomes(tuple(rng.random(4) < 0.6), asked=tuple(range(n))) for n in rng.permutation(5)[: rng.integers(2, 5)]]
    weights = resample_BT(2, 20, seed)
    calls_B = calls_at_B(points, np.full(21, success), weights)
    for row_T, calls in zip(weights, calls_B, strict=True):
        grid = np.linspace(0, 4, 81)
        reached = [success_at_B(points, x, row_T[None])[0] >= success - 1e-9 for x in grid]
        if np.isinf(calls):
            assert not any(reached)
        else:
            assert success_at_B(points, calls, row_T[None])[0] >= success - 1e-9
            first = min(float(row_T @ p.calls_T) for p in points)
            assert not any(r for x, r in zip(grid, reached, strict=True) if first <= x < calls - 1e-6)


def test_the_bootstrap_covers_the_truth():
    """Tasks of unequal difficulty, several episodes each: 95 % intervals over tasks hold the truth that often."""
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        q_T = rng.beta(2, 1, size=60)
        success_T = (rng.random((60, 4)) < q_T[:, None]).mean(axis=1)
        low, high = interval(resample_BT(60, 400, seed=trial) @ success_T)
        hits += low <= 2 / 3 <= high
    assert 0.9 <= hits / 300 <= 0.985


def test_operating_points():
    def point(threshold, solved, calls):
        return Point(threshold, outcomes([i < solved for i in range(4)], asked=range(calls)))

    points = [point(0.9, 1, 0), point(0.5, 3, 1), point(0.2, 4, 3)]
    assert by_target(points, 0.7).threshold == 0.5
    assert by_target(points, 0.8).threshold == 0.2
    assert by_target(points[:2], 0.99).threshold == 0.5
    assert by_cost(points, kappa=100).threshold == 0.2
    assert by_cost(points, kappa=0.1).threshold == 0.9
    assert by_budget(points, 1.5).threshold == 0.5
    with pytest.raises(StageError, match=r"least: 1\.00"):
        by_budget(points[1:], 0.5)


def test_replay_is_optimistic_and_decides_as_play_did():
    episodes = [run(routed(router=Never()), seed=z, horizon=5) for z in range(6)]
    assert not any(episode.success for episode in episodes)
    assert all(r.success for r in replay(episodes, always))
    assert all(r.success and r.teacher_calls == 5 for r in replay(episodes, oracle))
    assert not any(r.success for r in replay(episodes, escalated_steps(Never(), 5)))
    assert [r.escalated for r in replay(episodes, escalated_steps(Always(), 5))] == [(0, 1, 2, 3, 4)] * 6
    # Up to its first question a routed episode is the SLM's own, so replay must ask there too.
    router = Random(threshold=0.3)
    for episode, told in zip(episodes, replay(episodes, escalated_steps(router, 5)), strict=True):
        played = row(run(routed(router=router), seed=episode.seed, horizon=5))
        assert played.escalated[:1] == told.escalated[:1]


def test_results_compare_with_the_slm_alone():
    played = {
        "slm_only": Played(outcomes((True, False, False, True)), None),
        "llm_only": Played(outcomes((True,) * 4, asked=range(4)), None),
        "r2v": Played(outcomes((True, True, False, False), asked=(1,)), 0.5, (0.5,), (outcomes((True,) * 4, asked=(1,)),)),
    }
    routers, differences = summarise(played, SEEDS, Prices(1, 50), 0.2, 100, 0)
    assert routers["r2v"]["interventions"] == {"helped": 1, "nothing": 2, "hurt": 1}
    assert routers["r2v"]["cost_per_episode"] == 4 + 50
    assert routers["r2v"]["mcnemar_p"] is None
    assert routers["slm_only"]["cvar_failure"] == pytest.approx(0.5)
    assert routers["r2v"]["rescued_by_first_call"] == [[1, 2], [0, 0], [0, 0], [0, 0]]
    assert routers["r2v"]["answers"] == {"same": 1.0, "among": 0.0, "new": 0.0}
    assert routers["slm_only"]["answers"] is None
    assert differences == {}


def test_calls_have_an_interval_over_tasks():
    """One task with one call an episode, one with three: resamples hold either alone."""
    few, many = rows((True,) * 4, asked=(1,))[:2], rows((True,) * 4, asked=(1, 2, 3))[2:]
    played = {name: Played(gather([*few, *many], TASKS, SEEDS, horizon=10), None) for name in ("slm_only", "llm_only")}
    assert summarise(played, SEEDS, Prices(1, 50), 0.2, 400, 0)[0]["slm_only"]["calls_ci95"] == [1.0, 3.0]


def test_answers_of_the_teacher_are_told_apart():
    agreed = run(routed(slm="press red", teacher="press red", router=Always()))
    differed = run(routed(slm="press blue", teacher="press red", router=Always()))
    assert (row(agreed).answers, row(differed).answers) == ((3, 0, 0), (0, 0, 3))
    assert row(run(routed(slm="press red"))).answers == (0, 0, 0)


def test_an_episode_in_numbers():
    """Of five steps the teacher takes two: once it does what the SLM would have done, once what the SLM also proposed."""
    episode = run(routed(slm="press blue", teacher="press red", router=AtSteps(frozenset([1, 3]))), horizon=5)
    step = episode.steps[3]
    among = replace(
        step.choice, candidates=(*step.choice.candidates[:2], replace(step.choice.candidates[2], action=Action("x")))
    )
    same = replace(episode.steps[1].choice, action=Action("press blue"))
    choices = {1: same, 3: replace(among, action=Action("x"))}
    steps = tuple(replace(s, choice=choices.get(s.t, s.choice)) for s in episode.steps)
    assert row(replace(episode, steps=steps)) == Row(
        TASK.id, 1, "none", False, False, 5, 5, 2, (1, 3), (1, 1, 0)
    )  # fmt: skip
    paid, counted = Usage(1, 10, 5, 0.5), Usage(1, 10, 5)
    choices = [replace(s.choice, slm=paid, teacher=paid if s.t in (1, 3) else NO_USAGE) for s in steps]
    priced = replace(episode, steps=tuple(replace(s, choice=choice) for s, choice in zip(steps, choices, strict=True)))
    assert (row(priced).slm_tokens, row(priced).teacher_tokens, row(priced).usd) == (75, 30, 3.5)
    choices[3] = replace(choices[3], teacher=counted)
    unpriced = replace(episode, steps=tuple(replace(s, choice=choice) for s, choice in zip(steps, choices, strict=True)))
    assert (row(unpriced).teacher_tokens, row(unpriced).usd) == (30, None)
    broken = row(run(routed(router=ThresholdRouter("broken", lambda _: 1 / 0, 0.5)), horizon=5))
    assert (broken.success, broken.broken, broken.steps) == (False, True, 0)


def test_outcomes_of_unequal_episodes():
    short, long = rows((True,) * 4, asked=(2,), steps=3)[:2], rows((False,) * 4, asked=(0, 19), steps=20)[2:]
    o = gather([short[0], replace(short[1], broken=True, teacher_calls=0, escalated=()), *long], TASKS, SEEDS, horizon=20)
    assert o.broken_TZ.tolist() == [[False, True], [False, False]]
    assert o.call_rate_TZ.tolist() == [[1 / 3, 0.0], [0.1, 0.1]] and o.steps_TZ.tolist() == [[3, 3], [20, 20]]
    assert (o.first_TZ[0, 0], np.isnan(o.first_TZ[0, 1]), o.first_TZ[1, 0]) == (0, True, 0)
    assert o.escalated_10.tolist() == [2 / 8, 1 / 6, 0, 0, 0, 0, 0, 0, 0, 2 / 4]
    assert (o.success_T.tolist(), o.calls_T.tolist(), o.answers_3.tolist()) == ([1, 0], [0.5, 2], [6, 0, 0])
    assert o.call_rate_T.tolist() == [pytest.approx(1 / 6), 0.1] and o.slm_calls_TZ.tolist() == [[3, 3], [20, 20]]
    late = gather(
        [replace(r, escalated=(t,)) for r, t in zip(rows((True,) * 4), (0, 5, 14, 15), strict=True)], TASKS, SEEDS, 20
    )
    assert late.first_TZ.tolist() == [[0, 1], [2, 3]]


def test_success_at_a_budget_is_the_mixture_of_the_points_on_either_side():
    alone, teacher = outcomes((False, False, False, True)), outcomes((True, True, True, False), asked=(0, 1))
    weights = resample_BT(2, 5, seed=0)
    assert [success_at_B([teacher, alone], calls, weights)[0] for calls in (0, 1, 2, 3)] == [0.25, 0.5, 0.75, 0.75]


def test_ties_go_to_the_smaller_threshold_the_cheaper_point_and_the_simpler_policy():
    def point(threshold, solved, calls):
        return Point(threshold, outcomes([i < solved for i in range(4)], asked=range(calls)))

    points = [point(0.9, 2, 1), point(0.5, 2, 1), point(0.2, 2, 2)]
    assert by_target(points, 0.5).threshold == by_cost(points, 4).threshold == 0.5
    assert by_target(points[::2], 0.6).threshold == by_budget(points[::2], 9).threshold == 0.9
    rising = [point(0.9, 1, 0), point(0.5, 3, 1), point(0.2, 4, 3)]
    assert [by_cost(rising, kappa).threshold for kappa in (1.9, 2.1, 7.9, 8.1)] == [0.9, 0.5, 0.5, 0.2]
    assert by_budget(rising, 1).threshold == 0.5
    rule = {"target": 0.75, "kappa": 100.0, "calls_per_episode": 1.0, "share": 0.2}
    chosen = {name: choose(rising, SimpleNamespace(rule=name, **rule), 1.0, 0.2) for name in ("target", "cost", "budget")}
    assert {name: point.threshold for name, point in chosen.items()} == {"target": 0.5, "cost": 0.2, "budget": 0.5}
    assert choose(rising, SimpleNamespace(rule="target", **rule), 1 / 3, 0.2).threshold == 0.9
    assert all(point.met for point in chosen.values()) and not by_target(rising[:2], 0.9).met
    words = {name: in_words(SimpleNamespace(rule=name, **rule), 0.2) for name in chosen}
    assert "75%" in words["target"] and "100 teacher" in words["cost"] and "at most 1 teacher" in words["budget"]
    clone_T, prefer_T = np.array([0.0, 1.0]), np.array([1.0, 0.5])
    assert better_policy(clone_T, prefer_T, seed=0) == {
        "kept": "prefer", "clone": 0.5, "prefer": 0.75, "difference_ci95": [-0.5, 1.0], "tasks": 2,
    }  # fmt: skip
    assert better_policy(clone_T, clone_T, seed=0)["kept"] == "clone"


def test_a_router_is_asked_in_replay_what_it_was_asked_in_play():
    asked = []

    class Asked(Never):
        def decide(self, context, features, memory, *, seed):
            asked.append((context, features, memory, seed))
            return super().decide(context, features, memory, seed=seed)

    episode = run(routed(router=Asked()), seed=7, horizon=4)
    replay([episode], escalated_steps(Asked(), 4))
    assert asked[:4] == asked[4:] and len(asked) == 8


def test_what_cannot_be_replayed_is_refused_and_a_takeover_keeps_the_rest():
    episodes = [run(routed(router=Never()), seed=z, horizon=5) for z in SEEDS]
    latch = JudgeLatch(threshold=0.5)  # objects to every step, and believes it at the second
    assert [r.escalated for r in replay(episodes, escalated_steps(latch, 5))] == [(1, 2, 3, 4)] * 2
    with pytest.raises(ValueError, match="decides retry"):
        replay(episodes, escalated_steps(Redraw(), 5))
    bare = replace(episodes[0].steps[0], choice=replace(episodes[0].steps[0].choice, features=None))
    with pytest.raises(ValueError, match="has no features"):
        replay([replace(episodes[0], steps=(bare,))], escalated_steps(latch, 5))
    assert replayable(latch.routes) and not any(replayable({"continue", route}) for route in ("retry", "restart"))
    found = replayed(episodes, {"judge": (latch, 0.5, (0.9, 0.5))}, [TASK.id], SEEDS, 5)
    assert list(found) == ["slm_only", "llm_only", "oracle", "judge"]
    calls = {name: played.chosen.teacher_calls_TZ.tolist() for name, played in found.items()}
    assert calls == {"slm_only": [[0, 0]], "llm_only": [[5, 5]], "oracle": [[5, 5]], "judge": [[4, 4]]}
    judge = found["judge"]
    assert (judge.threshold, judge.grid, [p.calls_T.tolist() for p in judge.points]) == (0.5, (0.9, 0.5), [[0], [4]])
    assert [played.threshold for played in found.values()] == [None, None, None, 0.5]
    limited = replayed(episodes, {"judge": (latch, 0.5, (0.9, 0.5))}, [TASK.id], SEEDS, 5, max_calls=3)
    calls = {name: played.chosen.teacher_calls_TZ.tolist() for name, played in limited.items()}
    most = {name: [[3, 3]] for name in ("llm_first", "oracle", "judge")}
    assert calls == {"slm_only": [[0, 0]], "llm_only": [[5, 5]]} | most
    assert escalated_steps(Always(), 5, 2)(episodes[0]) == (0, 1)
    solved = run(routed(slm="press red"))
    assert oracle(solved) == () and [r.success for r in replay([solved], oracle)] == [True]


def test_every_number_of_a_router_by_hand():
    ours, all_ = outcomes((True, True, False, True), asked=(1,)), outcomes((True,) * 4, asked=(1,))
    played = {
        "slm_only": Played(outcomes((True, False, False, True)), None),
        "llm_only": Played(outcomes((True,) * 4, asked=range(4)), None),
        "random": Played(ours, 0.5, (0.5,), (ours,)),
        "r2v": Played(ours, 0.5, (0.5,), (all_,)),
    }
    routers, differences = summarise(played, SEEDS, Prices(1, 50), 0.2, 100, 3)  # whose first resample is uneven
    found = routers["r2v"]
    expected = {
        "success_rate": 0.75, "ci95": pytest.approx([0.0957, 0.9884], abs=1e-4),
        "llm_call_rate": 0.25, "calls_per_episode": 1.0, "calls_ci95": [1.0, 1.0],
        "tokens_per_episode": {"slm": None, "teacher": None}, "usd_per_episode": None,
        "steps_per_episode": 4.0, "cost_per_episode": 54.0, "worst_seed_success": 0.5, "cvar_failure": 0.5,
        "by_family": {"flaky": 0.5, "partial": 1.0}, "by_seed": {"1": 0.5, "2": 1.0},
        "asked_by_position": [0.0, 1.0, 0.0, 0.0, *[None] * 6], "broken": 0, "threshold": 0.5,
        "curve": [[0.0, 0.5], [0.25, 1.0], [1.0, 1.0]], "points": [[0.5, 1.0, 1.0]], "area": pytest.approx(15 / 16),
        "at_calls": {"0.5": 0.75, "1": 1.0, "2": 1.0, "3": 1.0, "4": 1.0},
        "calls_at_equal_success": {
            "0.98": {"calls": pytest.approx(0.96), "ci95": pytest.approx([0.96, 0.96])},
            "0.95": {"calls": pytest.approx(0.9), "ci95": pytest.approx([0.9, 0.9])},
        },
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    assert differences["random"]["area"] == pytest.approx(15 / 16 - (0.625 / 4 + 0.875 * 3 / 4))
    assert differences["random"]["ci95"] == [0.0, 0.25]  # of task a alone, and of b alone
    assert found["over_random"] == {"area": differences["random"]["area"], "ci95": [0.0, 0.25]}
    assert routers["random"]["over_random"]["area"] == 0 and routers["slm_only"]["over_random"] is None
    assert differences["random"]["at_calls"]["1"]["success"] == pytest.approx(0.25)
    low, high = differences["random"]["at_calls"]["1"]["ci95"]
    assert (low, high) == (0.0, 0.5) and list(differences) == ["random"]
    theirs = differences["random"]["calls_at_equal_success"]["0.98"]
    assert theirs["calls"] == pytest.approx(0.96 - (1 + 3 * 0.92))  # theirs: .75 at 1 call, then the line to the teacher
    assert routers["slm_only"]["calls_at_equal_success"] == {}
    assert found["mcnemar_p"] is None
    assert (routers["slm_only"]["curve"], routers["slm_only"]["area"], routers["slm_only"]["at_calls"]) == ([], None, {})


def test_calls_that_neither_reaches_are_not_compared():
    alone, first, teacher = (
        outcomes((False,) * 4),
        outcomes((True, False, False, False), asked=(1,)),
        outcomes((True,) * 4),
    )
    ends = {"slm_only": Played(alone, None), "llm_only": Played(teacher, None), "llm_first": Played(first, None)}
    both = {name: Played(first, 0.5, (0.5,), (first,)) for name in ("r2v", "random")}
    _, differences = summarise(ends | both, SEEDS, Prices(1, 50), 0.2, 100, 3)
    assert differences["random"]["calls_at_equal_success"]["0.98"] == {"calls": None, "ci95": [None, None]}


@pytest.mark.parametrize(("alone", "ours", "p"), [(False, True, 0.5), (True, False, 0.5), (True, True, 1.0)])
def test_four_episodes_of_two_tasks_that_all_differ_are_a_half_by_chance(alone, ours, p):
    ends = {"slm_only": Played(outcomes((alone,) * 4), None), "llm_only": Played(outcomes((alone,) * 4), None)}
    routers, _ = summarise({**ends, "r2v": Played(outcomes((ours,) * 4), 0.5)}, SEEDS, Prices(1, 50), 0.2, 9, 0)
    assert (routers["slm_only"]["mcnemar_p"], routers["r2v"]["mcnemar_p"]) == (p, None)
    assert summarise(ends, SEEDS, Prices(1, 50), 0.2, 9, 0)[0]["slm_only"]["mcnemar_p"] is None


def test_the_calibration_of_a_risk_is_measured_on_the_steps_of_the_slm_alone():
    model = SimpleNamespace(names=FEATURES, risk=lambda x_NF, _: x_NF[:, FEATURES.index("step_index")] / 10)
    failed, solved = run(routed(), horizon=6), run(routed(slm="press red"), horizon=6)
    found = calibration(model, [failed, solved, replace(solved, success=None)], 6)
    p_N, y_N = np.array([0, 1, 2, 3, 4, 5, 0, 1, 2]) / 10, np.array([1.0] * 6 + [0.0] * 3)
    assert (found["steps"], found["brier"], found["auroc"]) == (9, pytest.approx(0.4), 0.75)
    assert found["auroc_by_third"] == [0.5, 0.75, None]
    assert found["ece"] == ece(p_N, y_N) and found["bins"][0] == [0.0, 0.5, 2]


def test_a_risk_after_each_number_of_steps_by_hand(monkeypatch):
    """Two tasks of one episode each: half of the resamples hold one of them alone, and have no AUROC."""
    t_N, task_N = np.array([0, 1, 0, 1]), np.array([3, 3, 8, 8])
    steps = Scored(np.array([0.1, 0.4, 0.2, 1.0]), np.array([0.0, 0, 1, 1]), t_N, task_N, task_N).where(np.ones(4, bool))
    expected = {
        "episodes": 2, "groups": 2, "steps": 4, "failed": 0.5, "auroc": 0.75, "auroc_ci95": [0.75, 0.75],
        "brier": pytest.approx(0.2025), "brier_ci95": pytest.approx([0.085, 0.32]), "base_brier": 0.25,
        "ece": pytest.approx(0.325),
    }  # fmt: skip
    assert measures(steps, seed=0) == expected
    monkeypatch.setattr(prefixes, "CELLS", 8)  # two resamples at once
    assert measures(steps, seed=0) == expected
    assert [(m["t"], m["steps"], m["auroc"]) for m in by_prefix(steps, seed=0)] == [(0, 2, 1.0), (1, 2, 1.0)]
    assert curves(steps.scored_by(np.arange(4.0))) == {
        "failed": [[0.0, 1.0, 2.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0, 3.0]],
        "solved": [[0.0, 1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]],
    }
    same = np.zeros(5, dtype=int)
    many = Scored(np.array([0, 0.25, 0.5, 0.75, 1.0]), np.ones(5), same, same, np.arange(5))
    assert curves(many) == {"failed": [[0.0, 5.0, 0.25, 0.5, 0.75]], "solved": []}
    assert (measures(many, seed=0)["auroc"], measures(many, seed=0)["auroc_ci95"]) == (None, None)
    with pytest.raises(ValueError, match="no steps"):
        measures(many.where(np.zeros(5, bool)), seed=0)


counts = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 10)), min_size=1, max_size=6, unique_by=lambda point: point[0]
)


@given(counts, st.integers(1, 10))
def test_calls_at_a_success_are_where_the_curve_first_has_it(points, wanted):
    """As of `calls_at_B`, on one curve; two of its points may be mixed only if they are neighbours."""
    points = [(float(x), y / 10) for x, y in points]
    found, (x, y) = calls_at(points, wanted / 10), zip(*sorted(points), strict=True)
    assert (found is None) == (not any(value >= wanted / 10 - 1e-12 for value in y))
    if found is not None:
        dense = np.union1d(np.linspace(min(x), max(x), 2001), x)
        first = dense[np.interp(dense, x, y) >= wanted / 10 - 1e-9][0]
        assert found == pytest.approx(first, abs=(max(x) - min(x)) / 1000 + 1e-9)
