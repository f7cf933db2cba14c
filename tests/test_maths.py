"""The mathematics against hand-computed values and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from r2v.core.mlp import Calibration
from r2v.maths.calibration import FLAT, brier, ece, fit_isotonic, fit_scaling, nll, reliability_bins
from r2v.maths.risk import cvar
from r2v.maths.stats import auroc, newcombe, sign_flip, wilson, wilson_over_tasks
from r2v.routers.base import quantiles

probabilities = hnp.arrays(np.float64, st.integers(4, 60), elements=st.floats(0, 1))


def test_cvar_is_the_mean_of_the_worst_groups():
    risks = np.array([0.1, 0.5, 0.2, 0.4, 0.3])
    assert cvar(risks, 0.2) == pytest.approx(0.5)
    assert cvar(risks, 0.4) == pytest.approx(0.45)
    assert cvar(risks, 0.41) == pytest.approx(0.4)  # ceil: three groups
    assert cvar(risks, 1.0) == pytest.approx(risks.mean())
    with pytest.raises(ValueError, match="two"):
        cvar(risks[:1], 0.5)
    with pytest.raises(ValueError, match="alpha"):
        cvar(risks, 0.0)


@given(hnp.arrays(np.float64, st.integers(2, 30), elements=st.floats(0, 1)), st.floats(0.01, 1), st.floats(0.01, 1))
def test_cvar_falls_as_alpha_grows_and_lies_between_mean_and_maximum(risks, a, b):
    low, high = sorted((a, b))
    assert cvar(risks, low) >= cvar(risks, high) - 1e-12
    assert risks.mean() - 1e-12 <= cvar(risks, low) <= risks.max() + 1e-12


def test_scores_of_a_small_case():
    p, y = np.array([0.1, 0.9, 0.6, 0.4]), np.array([0.0, 1.0, 0.0, 1.0])
    assert brier(p, y) == pytest.approx((0.01 + 0.01 + 0.36 + 0.36) / 4)
    assert nll(p, y) == pytest.approx(-np.mean(np.log([0.9, 0.9, 0.4, 0.4])))
    assert ece(p, y) == pytest.approx((0.1 + 0.1 + 0.6 + 0.6) / 4)


@given(probabilities)
def test_ece_is_a_bounded_mean_over_all_points(p):
    y = (np.arange(len(p)) % 2).astype(float)
    assert 0 <= ece(p, y) <= 1
    assert sum(count for _, _, count in reliability_bins(p, y)) == len(p)


def test_scaling_recovers_a_known_distortion():
    rng = np.random.default_rng(0)
    true_logit = rng.normal(size=40_000) * 1.5
    y = (rng.random(len(true_logit)) < 1 / (1 + np.exp(-true_logit))).astype(float)
    slope, bias = fit_scaling(3 * true_logit + 1.2, y, with_bias=True)
    assert slope == pytest.approx(1 / 3, abs=0.02)
    assert bias == pytest.approx(-0.4, abs=0.05)
    slope, bias = fit_scaling(2 * true_logit, y, with_bias=False)
    assert (slope, bias) == (pytest.approx(0.5, abs=0.02), 0.0)


@given(st.integers(0, 2**32 - 1), st.integers(20, 200), st.sampled_from([0.0, -1.0]), st.booleans())
def test_scaling_keeps_the_order_of_logits_that_say_nothing_or_the_contrary(seed, size, sign, with_bias):
    rng = np.random.default_rng(seed)
    logit_N = rng.normal(size=size)
    y_N = (rng.random(size) < 1 / (1 + np.exp(-sign * 3 * logit_N))).astype(float)
    y_N[:2] = 0, 1
    slope, bias = fit_scaling(logit_N, y_N, with_bias=with_bias)
    assert slope > 0
    if with_bias and slope == FLAT:
        assert 1 / (1 + np.exp(-bias)) == pytest.approx(y_N.mean(), abs=1e-3)


@pytest.mark.parametrize("solved", [0, 1, 126, 127])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("low", [-4.0, 0.01, 2.0])
def test_scaling_keeps_the_order_where_all_or_nearly_all_episodes_came_out_alike(low, with_bias, solved):
    logit_N = np.linspace(low, low + 0.2, 127)
    y_N = (np.arange(127) >= solved).astype(float)  # parted without an error, too
    slope, bias = fit_scaling(logit_N, y_N, with_bias=with_bias)
    risk_N = Calibration(slope, bias)(logit_N)
    assert (np.diff(risk_N) > 0).all()
    strictest = quantiles(risk_N.tolist(), [0.02])[0]
    assert (risk_N >= strictest).sum() == 3  # of 127 steps 2 %, and one more


def test_scaling_of_one_outcome_is_not_surer_than_its_number_allows():
    for y in (0.0, 1.0):
        slope, bias = fit_scaling(np.linspace(-1, 1, 20), np.full(20, y), with_bias=True)
        assert Calibration(slope, bias)(np.zeros(1)) == pytest.approx(21 / 22 if y else 1 / 22)


@given(probabilities)
def test_isotonic_is_monotone_and_keeps_the_mean(p):
    y = (np.arange(len(p)) % 3 == 0).astype(float)
    x, fitted = fit_isotonic(p, y)
    assert (np.diff(fitted) > 0).all() or len(fitted) == 1
    assert (np.diff(x) >= 0).all()
    assert 0 <= fitted.min() <= fitted.max() <= 1


def test_auroc_counts_ties_half():
    y = np.array([1.0, 0.0, 1.0, 0.0])
    assert auroc(np.array([0.9, 0.1, 0.8, 0.2]), y) == 1.0
    assert auroc(np.array([0.5, 0.5, 0.5, 0.5]), y) == 0.5
    assert auroc(np.array([0.5, 0.5, 0.9, 0.1]), y) == pytest.approx(0.875)
    with pytest.raises(ValueError, match="both classes"):
        auroc(np.ones(3), np.ones(3))


@given(hnp.arrays(np.float64, 40, elements=st.sampled_from([0.0, 0.25, 0.5, 1.0])))
def test_auroc_equals_the_pairwise_definition(score):
    y = (np.arange(40) % 4 == 0).astype(float)
    a, b = score[y == 1][:, None], score[y == 0][None]
    assert auroc(score, y) == pytest.approx(((a > b) + 0.5 * (a == b)).mean())


def test_tasks_flip_their_signs_whole():
    assert sign_flip(np.array([0, 1, 1, 1, 1, 1, 0])) == pytest.approx(2 / 2**5)  # one episode a task: McNemar's exact test
    assert sign_flip(np.array([4, 4])) == 0.5  # eight episodes of two tasks are two tasks
    assert sign_flip(np.array([2, -1, 0, 3])) == pytest.approx(4 / 2**3)
    assert sign_flip(np.zeros(3, dtype=int)) == 1.0


def test_equal_routers_differ_by_chance_as_often_as_the_p_value_says():
    """Episodes of a task go together, which a test over episodes takes for evidence."""
    rng = np.random.default_rng(0)
    better_TR = np.where(rng.random((30, 2000)) < 0.5, 4, -4)  # all four episodes of a task
    assert np.mean([sign_flip(won_T) <= 0.05 for won_T in better_TR.T]) <= 0.05 + 2 * 0.005


@pytest.mark.parametrize(("tasks", "share"), [(8, 0.94), (20, 0.94), (60, 0.97), (60, 0.5)])
def test_intervals_of_success_hold_the_truth(tasks, share):
    rng, odds = np.random.default_rng(1), 0.7 / 0.3
    held = 0
    for _ in range(400):
        chance_T = rng.beta(share * odds, (1 - share) * odds, tasks)
        low, high = wilson_over_tasks((rng.random((4, tasks)) < chance_T).T.astype(float))
        assert 0 <= low < high <= 1
        held += low <= share <= high
    assert held / 400 >= 0.92  # the percentile bootstrap: .69, .84, .86, .94


def test_intervals_of_success_at_the_ends_are_those_of_as_many_tasks():
    low, high = wilson_over_tasks(np.ones((8, 4)))
    assert (low, high) == (pytest.approx(0.5903, abs=1e-4), 1.0)
    assert wilson_over_tasks(np.zeros((8, 4)))[0] == 0.0
    assert wilson_over_tasks(np.ones((1, 4))) == [0.0, 1.0]
    assert wilson_over_tasks(np.array([[1.0, 0.0]] * 5))[0] > 0.1  # tasks alike, episodes not


def test_intervals_of_shares_are_those_of_newcombe_1998():
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5) and wilson(0, 0) == (0.0, 1.0)
    assert newcombe(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert newcombe(0, 10, 0, 0) == pytest.approx((-1.0, 0.2775), abs=5e-5)
