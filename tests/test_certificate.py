"""Certificates: p-values are valid, coverage holds, and a certificate is for one run alone."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2v.core.errors import ArtifactError
from r2v.evaluation.certificate import Certificate, Target, certified, load_certificate
from r2v.evaluation.outcomes import Outcomes, Row, gather
from r2v.maths.testing import betting_p, cvar_p, fixed_sequence

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


@pytest.mark.parametrize("bound", [0.05, 0.2])
@pytest.mark.parametrize("spread", ["two-valued", "graded"])
def test_p_values_are_small_by_chance_no_more_often_than_they_say(bound, spread):
    """The mean is exactly the bound: P(p <= u) <= u."""
    rng = np.random.default_rng(1)
    p = []
    for _ in range(2000):
        if spread == "two-valued":
            x_N = (rng.random(100) < bound).astype(float)
        else:
            x_N = rng.binomial(4, rng.beta(0.5, 0.5 * (1 - bound) / bound, 100)) / 4
        p.append(betting_p(x_N, bound, 0.1))
    for u in (0.02, 0.1, 0.3):
        assert np.mean(np.array(p) <= u) <= u + 3 * np.sqrt(u * (1 - u) / len(p))


def test_p_values_have_power():
    rng = np.random.default_rng(1)
    x_N = (rng.random(300) < 0.03).astype(float)
    assert betting_p(x_N, 0.1, 0.1) < 0.01
    assert betting_p(x_N, 0.02, 0.1) > 0.3
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        betting_p(np.array([2.0]), 0.1, 0.1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 0.5))
def test_the_sequence_stops_at_the_first_that_is_not_rejected(p, delta):
    n = fixed_sequence(p, delta)
    assert all(value <= delta for value in p[:n])
    assert n == len(p) or p[n] > delta


def test_cvar_over_one_group_is_the_worst_group_and_over_all_the_mean():
    rng = np.random.default_rng(3)
    x_TZ = (rng.random((400, 4)) < [0.02, 0.02, 0.02, 0.3]).astype(float)
    assert cvar_p(x_TZ, 1, 0.2, 0.1) == betting_p(x_TZ[:, 3], 0.2, 0.1) > 0.5
    assert cvar_p(x_TZ, 4, 0.2, 0.1) == betting_p(x_TZ.mean(axis=1), 0.2, 0.1) < 0.01
    with pytest.raises(ValueError, match="do not exist"):
        cvar_p(x_TZ, 5, 0.2, 0.1)


@pytest.mark.parametrize(("alpha", "delta"), [(None, 0.1), (0.25, 0.1), (0.5, 0.1)])
def test_coverage_over_200_calibration_sets(alpha, delta):
    """Episodes of a task go together; failure rises as calls fall. How often is the certified threshold really too bad?"""
    rng = np.random.default_rng(7)
    rates = [0.02, 0.06, 0.09, 0.11, 0.16]  # the bound .1 lies between two thresholds that are close to it
    harder = np.array([0.8, 1.0, 1.0, 1.2])  # seeds differ
    truth = [r if alpha is None else r * np.sort(harder)[-int(np.ceil(alpha * 4)) :].mean() for r in rates]
    wrong = useful = 0
    for _ in range(200):
        task_T = rng.beta(0.4, 0.4, 300)  # some tasks are hard for every threshold and seed
        points = []
        for i, rate in enumerate(rates):
            chance_TZ = np.clip(rate * harder * 2 * task_T[:, None], 0, 1)
            points.append((float(i), outcomes(rng.random((300, 4)) >= chance_TZ, 10 - i)))
        threshold, _ = certified(points, Target(0.1, delta, alpha))
        useful += threshold is not None
        wrong += threshold is not None and truth[int(threshold)] > 0.1
    assert wrong <= delta * 200
    assert useful > 150  # a procedure that certifies nothing would cover, too


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
