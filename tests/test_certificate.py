"""Certificates: p-values are valid, coverage holds, and a certificate is for one run alone."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from r2v.cli import cli
from r2v.core.errors import ArtifactError, SettingsError
from r2v.core.seeds import derive_seed
from r2v.evaluation.certificate import Certificate, Target, certified, load_certificate
from r2v.evaluation.outcomes import Outcomes, Row, gather
from r2v.evaluation.tail import Losses, against_teacher, failures, worst_mean, worst_p
from r2v.maths.testing import betting_p, fixed_sequence
from r2v.pipeline.settings import CERTIFY_SEEDS_FROM, RunSettings
from r2v.runtime.settings import validated
from r2v.studies.certify import drawn, subject

ZS = (1, 2, 3, 4)


@cache
def nothing(T: int) -> Outcomes:
    """T tasks, none solved."""
    tasks = [f"task/{i}" for i in range(T)]
    return gather(
        [Row(task, z, "none", False, False, 10, 10, 0, (), (0, 0, 0)) for task in tasks for z in ZS], tasks, ZS, 40
    )


def outcomes(success_TZ: np.ndarray, calls: float) -> Outcomes:
    return replace(
        nothing(len(success_TZ)), success_TZ=success_TZ.astype(float), teacher_calls_TZ=np.full(success_TZ.shape, calls)
    )


def p_of(x_N: np.ndarray, bound: float, delta: float) -> float:
    """Of "the mean of these numbers is at least the bound"."""
    return float(betting_p(x_N[:, None] - bound, 1 - bound, delta, bound * (1 - bound))[0])


@pytest.mark.parametrize("bound", [0.05, 0.2])
@pytest.mark.parametrize("spread", ["two-valued", "graded"])
def test_p_values_are_small_by_chance_no_more_often_than_they_say(bound, spread):
    """The mean is exactly the bound: P(p <= u) <= u."""
    rng = np.random.default_rng(1)
    draws = 4000
    if spread == "two-valued":
        x_NR = (rng.random((100, draws)) < bound).astype(float)
    else:
        x_NR = rng.binomial(4, rng.beta(0.5, 0.5 * (1 - bound) / bound, (100, draws))) / 4
    for u in (0.02, 0.1, 0.3):
        p = betting_p(x_NR - bound, 1 - bound, u, bound * (1 - bound))
        assert np.mean(p <= u) <= u + 3 * np.sqrt(u * (1 - u) / draws)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.floats(0.01, 0.5), st.floats(1e-4, 1))
def test_capital_never_falls_below_nothing_and_p_is_a_p_value(excess, delta, variance):
    (p,) = betting_p(np.array(excess)[:, None], 1.0, delta, variance)
    assert 0 < p <= 1
    assert p == 1 or min(excess) < 0  # nothing below 0 proves nothing


def test_p_values_have_power():
    rng = np.random.default_rng(1)
    x_N = (rng.random(300) < 0.03).astype(float)
    assert p_of(x_N, 0.1, 0.1) <= 0.1
    assert p_of(x_N, 0.02, 0.1) > 0.3
    x_NR = (rng.random((300, 1000)) < 0.07).astype(float)  # the exact binomial test rejects at 22 of 300 or fewer
    rejected = np.mean(betting_p(x_NR - 0.1, 0.9, 0.1, 0.09) <= 0.1)
    assert rejected > np.mean(x_NR.sum(axis=0) <= 22) - 0.05
    with pytest.raises(ValueError, match="no number above"):
        p_of(np.array([2.0]), 0.1, 0.1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 0.5))
def test_the_sequence_stops_at_the_first_that_is_not_rejected(p, delta):
    n = fixed_sequence(p, delta)
    assert all(value <= delta for value in p[:n])
    assert n == len(p) or p[n] > delta


def test_cvar_over_one_group_is_the_worst_group_and_over_all_the_mean():
    rng = np.random.default_rng(3)
    success_TZ = rng.random((400, 4)) >= [0.02, 0.02, 0.02, 0.3]
    losses = failures(outcomes(success_TZ, 1), 0.2)
    (worst,), (mean,) = worst_p([losses], 0.25, 0.1), worst_p([losses], 1.0, 0.1)
    assert worst == p_of(1.0 - success_TZ[:, 3], 0.2, 0.1) > 0.1
    assert [mean] == worst_p([losses], None, 0.1) and mean <= 0.1
    assert worst_mean(losses, 0.25) == pytest.approx(1 - success_TZ[:, 3].mean() - 0.2)
    many = replace(outcomes(np.ones((40, 40)), 1), group_TZ=np.tile([f"group {i}" for i in range(40)], (40, 1)))
    with pytest.raises(SettingsError, match="the worst 20 of 40 groups"):
        worst_p([failures(many, 0.2)], 0.5, 0.1)


def drawn_groups(rng: np.random.Generator, T: int) -> np.ndarray:
    """Four seeds, six groups of which a task meets four in a row, from one that its hash draws."""
    return (rng.integers(0, 6, T)[:, None] + np.arange(4)) % 6


@pytest.mark.parametrize("alpha", [1 / 6, 0.5])
def test_the_worst_groups_are_covered_where_tasks_meet_some_groups_alone(alpha):
    """The worst groups fail exactly as often as the bound says: rejected with probability delta at most."""
    rng = np.random.default_rng(11)
    rate_G = np.array([0.02, 0.05, 0.05, 0.2, 0.2, 0.2]) if alpha == 0.5 else np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.2])
    rejected = []
    for _ in range(20):
        group_TZ = drawn_groups(rng, 120)
        draws = [
            rng.random((120, 4)) < rate_G[group_TZ] * rng.choice([0.5, 1.5], (120, 1)) for _ in range(15)
        ]  # tasks differ
        p = worst_p([Losses(failed_TZ - 0.2, 0.8, 0.16, group_TZ.astype(str)) for failed_TZ in draws], alpha, 0.1)
        rejected += [value <= 0.1 for value in p]
    assert np.mean(rejected) <= 0.1 + 2 * np.sqrt(0.09 / len(rejected))


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_a_bound_relative_to_the_teacher_covers_and_proves(alpha):
    """The router solves exactly 95 % of what the teacher solves; then 99 %. Both are better on easy tasks."""
    rng = np.random.default_rng(5)
    target, proven = Target(None, 0.1, alpha, 0.95), {0.95: [], 0.99: []}
    for kept, p in proven.items():
        for _ in range(10):
            teacher_TZ = rng.random((300, 4)) < rng.choice([0.85, 0.95], (300, 1))
            routers = [outcomes(teacher_TZ & (rng.random((300, 4)) < kept), 2) for _ in range(20)]
            p += worst_p([against_teacher(o, outcomes(teacher_TZ, 9), 0.95) for o in routers], alpha, 0.1)
    assert np.mean(np.array(proven[0.95]) <= 0.1) <= 0.1 + 2 * np.sqrt(0.09 / 200)
    assert np.mean(np.array(proven[0.99]) <= 0.1) > 0.8
    router_TZ = teacher_TZ & (rng.random((300, 4)) < 0.99)
    points = [(0.5, outcomes(router_TZ, 2))]
    with pytest.raises(ValueError, match="needs the teacher"):
        certified(points, target)
    (tried,) = certified(points, target, outcomes(teacher_TZ, 9))[1]
    paired = against_teacher(outcomes(router_TZ, 2), outcomes(teacher_TZ, 9), 0.95)
    assert tried.shortfall == worst_mean(paired, alpha) and tried.failure > 0
    with pytest.raises(ValueError, match="or the success relative"):
        Target(0.1, 0.1, None, 0.95)


def test_what_a_certificate_claims_in_words():
    assert Target(0.1, 0.1, None).claim == "failure rate below 0.1"
    relative = Target(None, 0.1, 0.25, 0.95).claim
    assert relative == "success rate above 0.95 of the teacher's in the worst 0.25 of the groups of episodes"


def test_two_bounds_are_not_one_certificate(tmp_path):
    given = CliRunner().invoke(cli, ["certify", str(tmp_path), "--max-failure", "0.1", "--relative", "0.95"])
    assert given.exit_code == 2 and "two bounds" in given.output


@pytest.mark.parametrize(("alpha", "delta"), [(None, 0.1), (0.25, 0.1), (0.5, 0.1)])
def test_coverage_over_100_calibration_sets(alpha, delta):
    """Episodes of a task go together; failure rises as calls fall. How often is the certified threshold really too bad?"""
    rng = np.random.default_rng(7)
    rates = [0.02, 0.06, 0.09, 0.11, 0.16]  # the bound .1 lies between two thresholds that are close to it
    harder = np.array([0.8, 1.0, 1.0, 1.2])  # seeds differ
    truth = [r if alpha is None else r * np.sort(harder)[-int(np.ceil(alpha * 4)) :].mean() for r in rates]
    wrong = useful = 0
    for _ in range(100):
        task_T = rng.beta(0.4, 0.4, 300)  # some tasks are hard for every threshold and seed
        points = []
        for i, rate in enumerate(rates):
            chance_TZ = np.clip(rate * harder * 2 * task_T[:, None], 0, 1)
            points.append((float(i), outcomes(rng.random((300, 4)) >= chance_TZ, 10 - i)))
        threshold, _ = certified(points, Target(0.1, delta, alpha))
        useful += threshold is not None
        wrong += threshold is not None and truth[int(threshold)] > 0.1
    assert wrong <= delta * 100
    assert useful > 75  # a procedure that certifies nothing would cover, too


def certificate() -> Certificate:
    points = [(0.1, outcomes(np.ones((200, 4)), 8)), (0.5, outcomes(np.ones((200, 4)), 2))]
    target = Target(0.05, 0.1, None)
    threshold, tried = certified(points, target)
    return Certificate("r2v", target, threshold, 200, ZS, tried, {"router": "a", "settings": "b"}, "2026-01-01")


def test_the_cheapest_proven_threshold_is_certified():
    assert certificate().threshold == 0.5 and certificate().calls_per_episode == 2.0
    bad = [(0.1, outcomes(np.zeros((50, 4)), 8))]
    assert certified(bad, Target(0.05, 0.1, None))[0] is None


def test_what_was_tried_is_told_in_the_measure_of_the_target():
    """The worst half of the four seeds fails with .25 and .75; calls tell the cheapest, whatever the order."""
    success_TZ = np.ones((4, 4))
    success_TZ[0, 1:3] = success_TZ[1:3, 2] = 0
    for alpha, failure in ((None, 0.25), (0.5, 0.5), (0.25, 0.75), (0.3, 0.5), (1.0, 0.25)):
        _, (tried,) = certified([(0.3, outcomes(success_TZ, 7))], Target(0.9, 0.1, alpha))
        assert (tried.threshold, tried.failure, tried.calls_per_episode) == (0.3, failure, 7.0), alpha
    perfect = np.ones((200, 4))
    unordered = [(0.1, outcomes(perfect, 8)), (0.5, outcomes(perfect, 2)), (0.6, outcomes(perfect, 3))]
    assert certified(unordered, Target(0.05, 0.1, 0.5))[0] == 0.5
    stopped = [(0.1, outcomes(perfect, 8)), (0.2, outcomes(1 - perfect, 4)), (0.5, outcomes(perfect, 2))]
    assert certified(stopped, Target(0.05, 0.1, None))[0] == 0.1


def test_a_certificate_is_good_for_what_it_was_made_for_alone(tmp_path):
    path = tmp_path / "certificate.json"
    certificate().save(path)
    assert load_certificate(path, {"router": "a", "settings": "b"}) == certificate()
    with pytest.raises(ArtifactError, match="another settings"):
        load_certificate(path, {"router": "a", "settings": "c"})
    with pytest.raises(ArtifactError, match="another small model"):
        load_certificate(path, {"router": "a", "settings": "b", "small model": "c"})
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(ArtifactError, match="format 2, this r2v reads 1"):
        load_certificate(path, {})
    path.write_text(json.dumps({"format": 1}))
    with pytest.raises(ArtifactError, match="not a certificate"):
        load_certificate(path, {})
    for text, said in ((None, "does not exist; make a"), ("a: yaml", "is not a certificate .*`r2v certify RUN`")):
        path.unlink() if text is None else path.write_text(text)
        with pytest.raises(ArtifactError, match=said):
            load_certificate(path, {})


def run_settings(**settings) -> RunSettings:
    return validated(RunSettings, {"version": 1} | settings)


def test_another_verifier_or_pool_is_another_certificate():
    def pool(mistakes: float, price: float):
        return {"pool": {"mid": {"kind": "expert", "mistakes": mistakes}}, "prices": {"pool": {"mid": price}}}

    several = [{}, {"verifier": "household"}, {"verifier": "tool_calls"}, pool(0.0, 10), pool(0.9, 10), pool(0.0, 20),
               {"evaluate": {"max_calls": 2}}]  # fmt: skip
    assert len({subject(run_settings(**settings)) for settings in several}) == len(several)
    assert subject(run_settings(routers=["r2v"], workers=1)) == subject(run_settings())


def test_the_order_of_the_tasks_is_drawn_not_the_domains():
    settings = run_settings()
    first = drawn(settings, 40, 1)
    made = settings.domain.fresh_tasks(settings.environment, 40, derive_seed("fresh tasks", 42, CERTIFY_SEEDS_FROM + 1))
    assert sorted(t.id for t in first) == sorted(t.id for t in made) and first != made
    assert drawn(settings, 40, 1) == first
