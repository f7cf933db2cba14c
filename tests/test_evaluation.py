"""Outcomes, curves, operating points, replay: by hand and by property."""

from __future__ import annotations

import numpy as np
import pytest

from r2v.core.errors import StageError
from r2v.core.fixed import Always, Never
from r2v.evaluation.curves import area_B, curve, interval, resample_BT
from r2v.evaluation.operating_point import Point, by_budget, by_cost, by_target
from r2v.evaluation.outcomes import Row, gather, row
from r2v.evaluation.replay import always, escalated_steps, oracle, replay
from r2v.evaluation.results import Played, Prices, summarise
from r2v.routers.random import Random
from toy import routed, run

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
    assert weights.sum(axis=1) == pytest.approx(np.ones(101))


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
    for episode, replayed in zip(episodes, replay(episodes, escalated_steps(router, 5)), strict=True):
        played = row(run(routed(router=router), seed=episode.seed, horizon=5))
        assert played.escalated[:1] == replayed.escalated[:1]


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
