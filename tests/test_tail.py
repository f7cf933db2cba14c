"""Groups of CVaR and the tail that decides: settings, draws of severities, the rule, and what stands in results.json."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2v.core.errors import SettingsError
from r2v.evaluation.operating_point import Point, choose, in_words
from r2v.evaluation.outcomes import Outcomes, Row, gather, row
from r2v.evaluation.results import Played, Prices, summarise
from r2v.learning.labels import failure_rows
from r2v.maths.risk import cvar
from r2v.perturbations import family_of, group_of, severity_of
from r2v.pipeline.agents import make_environment, with_severity
from r2v.pipeline.settings import CERTIFY_SEEDS_FROM, FRESH_SEEDS_FROM, IMPROVE_SEEDS_FROM, RunSettings
from r2v.report.tables import summary
from r2v.runtime.settings import validated
from r2v.runtime.store import read_episodes, write_episodes
from toy import routed, run

FAMILIES, SEVERITIES = ("flaky", "partial", "inject", "distract"), (0.5, 1.0, 2.0)


def run_settings(**perturbations) -> RunSettings:
    return validated(RunSettings, {"version": 1, "perturbations": perturbations})


@given(st.text(max_size=20), st.integers(1, 10**7), st.integers(1, 4), st.integers(1, 5))
def test_as_many_seeds_as_pairs_give_each_task_each_pair_of_family_and_severity_once(task, first, families, severities):
    names, factors = FAMILIES[:families], tuple(0.5 * (i + 1) for i in range(severities))
    zs = range(first, first + families * severities)
    pairs = {(family_of(task, z, names), severity_of(task, z, factors, names)) for z in zs}
    assert len(pairs) == families * severities
    assert severity_of(task, 0, factors, names) is None and severity_of(task, first, (), names) is None


def test_with_four_seeds_each_pair_comes_equally_often():
    drawn = Counter(
        (family_of(f"task {i}", z, FAMILIES), severity_of(f"task {i}", z, SEVERITIES, FAMILIES))
        for i in range(1200)
        for z in range(31, 35)
    )
    assert len(drawn) == 12 and all(abs(n - 400) < 5 * 18 for n in drawn.values())


def test_severities_change_the_strength_and_other_ones_are_held_out_for_tests():
    both = run_settings(severities=[0.5, 1, 2], test_severities=[4.0])
    of = both.perturbations.severity
    tasks = both.domain.tasks(both.environment, 40, 0)
    assert {of(task.id, 31) for task in tasks} == {0.5, 1.0, 2.0}
    assert {of(task.id, z) for task in tasks for z in (41, FRESH_SEEDS_FROM, CERTIFY_SEEDS_FROM)} == {4.0}
    assert {of(task.id, IMPROVE_SEEDS_FROM + 1_001_000) for task in tasks} == {0.5, 1.0, 2.0}  # a round trains on these
    assert of(tasks[0].id, 0) is None and run_settings().perturbations.severity(tasks[0].id, 41) is None
    strength = {make_environment(both, task, 31)[0]._perturbation.strength for task in tasks}
    assert strength == {0.5, 1.0, 2.0} and make_environment(both, tasks[0], 41)[0]._perturbation.strength == 4.0
    assert {make_environment(run_settings(strength=2), task, 31)[0]._perturbation.strength for task in tasks} == {2.0}


def test_the_severity_is_recorded_on_the_episode(tmp_path):
    known = run_settings(severities=[3.0])
    write_episodes(tmp_path / "e.parquet", with_severity(known, [run(routed(), seed=3, horizon=2)]))
    (episode,) = read_episodes(tmp_path / "e.parquet")
    assert episode.severity == row(episode).severity == 3.0
    (plain,) = with_severity(run_settings(), [replace(episode, severity=None)])
    assert plain.severity is None


@pytest.mark.parametrize(
    ("perturbations", "message"),
    [
        ({"groups": ["severity"]}, "no `severities`"),
        ({"groups": ["seed", "seed"]}, "twice"),
        ({"groups": []}, "groups"),
        ({"groups": ["task"]}, "groups"),
        ({"severities": [0]}, "severities"),
        ({"groups": ["family"], "families": ["flaky"]}, "one family alone is one group"),
        ({"groups": ["severity"], "severities": [2]}, "one severity alone is one group"),
        (
            {"groups": ["severity"], "severities": [1, 2], "test_severities": [2]},
            "one severity of the test alone is one group",
        ),
        ({"groups": ["family"], "families": ["flaky", "flaky"]}, "one family alone is one group"),
        ({"severities": [1, 1.0]}, "`severities` names one of them twice"),
        ({"severities": [1], "test_severities": [2, 2]}, "`test_severities` names one of them twice"),
        ({"test": [41, 42, 41]}, "seed 41 is in `test` twice"),
        ({"collect": []}, "collect names no seed"),
    ],
)
def test_groups_that_cannot_be_are_refused(perturbations, message):
    with pytest.raises(SettingsError, match=message):
        run_settings(**perturbations)


def test_a_group_is_named_by_its_parts_and_seeds_are_samples_where_there_is_more():
    assert group_of(("family", "severity", "seed"), "flaky", 0.5, 31) == "flaky, severity 0.5, seed 31"
    assert group_of(("seed",), "flaky", None, 31) == "seed 31"
    assert run_settings().perturbations.kinds == ("seed",)
    assert run_settings(groups=["family", "seed"]).perturbations.kinds == ("family",)


def test_rows_of_the_fit_are_grouped_as_the_settings_say():
    played = [run(routed(), seed=z, horizon=2) for z in (5, 6, 7)]
    episodes = [replace(e, perturbation=f, success=False) for e, f in zip(played, ("a", "b", "a"), strict=True)]
    assert failure_rows(episodes).group_N.tolist() == [0, 0, 1, 1, 2, 2]
    assert failure_rows(episodes, groups=("family",)).group_N.tolist() == [0, 0, 1, 1, 0, 0]


def outcomes(rate_F, calls: float, *, tasks: int = 80, seed: int = 0, groups=("family",)) -> Outcomes:
    """Four families that fail at these rates, each once a task; the same random numbers for each router."""
    rng = np.random.default_rng(seed)
    names = [f"task {i}" for i in range(tasks)]
    rows = [
        Row(name, z, FAMILIES[z - 1], bool(rng.random() >= rate_F[z - 1]), False, 10, 10, calls, (), (0, 0, 0))
        for name in names
        for z in (1, 2, 3, 4)
    ]
    return gather(rows, names, (1, 2, 3, 4), 40, groups)


def rule(**changes) -> SimpleNamespace:
    return SimpleNamespace(**{"rule": "cvar", "max_failure": 0.2, "worst_group": None, "confidence": 0.9} | changes)


@cache
def points(tasks: int = 300) -> list[Point]:
    """The strictest first: ever fewer failures, and the last family always fails three times as often."""
    rates = {0.9: 0.2, 0.7: 0.12, 0.5: 0.08, 0.3: 0.04, 0.1: 0.02}
    return [
        Point(t, outcomes([rate, rate, rate, 3 * rate], 10 * (1 - t), tasks=tasks, seed=i))
        for i, (t, rate) in enumerate(rates.items())
    ]


@pytest.mark.parametrize("confidence", [0.0, 0.9])
def test_smaller_alphas_and_bounds_never_choose_fewer_calls(confidence):
    for bound in (0.1, 0.2, 0.3, 0.5):
        calls = [choose(points(), rule(max_failure=bound, confidence=confidence), 1.0, a).calls for a in (1.0, 0.5, 0.25)]
        assert calls == sorted(calls)
    strict, loose = (choose(points(), rule(max_failure=b, confidence=confidence), 1.0, 0.25) for b in (0.2, 0.5))
    assert strict.calls > loose.calls and strict.met and loose.met
    mean, worst = (choose(points(), rule(max_failure=0.2, confidence=confidence), 1.0, alpha) for alpha in (1.0, 0.25))
    assert worst.calls > mean.calls  # the tail decides


def test_the_worst_group_may_have_a_bound_of_its_own():
    mild = choose(points(), rule(), 1.0, 1.0)
    strict = choose(points(), rule(worst_group=0.2), 1.0, 1.0)
    assert strict.calls > mild.calls and strict.threshold == choose(points(), rule(), 1.0, 0.25).threshold
    assert "at most 0.2 in the worst one, shown at confidence 0.9" in in_words(rule(worst_group=0.2), 0.5)


def test_where_no_point_meets_the_bound_the_safest_is_taken_and_said_to_be_so():
    point = choose(points(), rule(max_failure=0.001), 1.0, 0.25)
    assert (point.threshold, point.met) == (0.1, False)
    hopeless = [
        Point(t, outcomes([rate, rate, 1.0, 1.0], calls)) for t, rate, calls in ((0.9, 0.9, 1), (0.5, 0.1, 4), (0.3, 0.1, 6))
    ]
    point = choose(hopeless, rule(max_failure=0.1, confidence=0.0), 1.0, 0.5)  # of all three the worst group always fails
    assert (point.threshold, point.met) == (0.5, False)


def test_the_bound_holds_on_other_tasks_as_often_as_the_confidence_says():
    """A point whose worst family fails exactly at the bound, and a safer one: how often is the first taken?"""
    taken = {0.0: 0, 0.9: 0}
    for draw in range(60):
        pair = [Point(t, outcomes([0.05, 0.05, 0.05, rate], 1 - t, seed=2 * draw + i)) for i, (t, rate) in
                enumerate([(0.9, 0.2), (0.5, 0.05)])]  # fmt: skip
        for confidence in taken:
            taken[confidence] += choose(pair, rule(confidence=confidence), 1.0, 0.25).threshold == 0.9
    assert taken[0.9] <= 6 + 2 * 2.3 and taken[0.0] > 20


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.floats(0.01, 1), st.floats(0.01, 1))
def test_cvar_rises_as_alpha_falls_up_to_the_worst_group(risks, one, other):
    risk_Z = np.array(risks)
    small, large = sorted((one, other))
    assert cvar(risk_Z, small) >= cvar(risk_Z, large) - 1e-12
    assert cvar(risk_Z, 1e-6) == risk_Z.max()


def test_results_name_the_worst_group_and_take_cvar_over_groups():
    alone, teacher = outcomes([0.3, 0.1, 0.1, 0.6], 0), outcomes([0, 0, 0, 0.1], 9)
    played = {"slm_only": Played(alone, None), "llm_only": Played(teacher, None)}
    found = summarise(played, (1, 2, 3, 4), Prices(1, 50), 0.5, 20, 0)[0]["slm_only"]
    failure = alone.failure_of_group()
    assert found["worst_group"] == {"group": "distract", "success_rate": 1 - failure["distract"]}
    assert found["cvar_failure"] == pytest.approx((failure["distract"] + failure["flaky"]) / 2)
    seeds = outcomes([0.3, 0.1, 0.1, 0.6], 0, groups=("seed",))
    assert list(seeds.failure_of_group()) == ["seed 1", "seed 2", "seed 3", "seed 4"]
    assert "met the rule" not in str(summary(shown(found, [])).caption)
    assert "no threshold of r2v met the rule" in str(summary(shown(found, ["r2v"])).caption)


def shown(router, unmet):
    return {"perturbation_seeds": [1], "tasks": 2, "routers": {"r2v": router}, "selection": {"unmet": unmet}}
