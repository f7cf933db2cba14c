"""The paper's theory as statistics (method, section 10): each would fail if the code did something else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from r2v.learning.labels import Rows
from r2v.learning.losses import dpo_loss, jsd_loss
from r2v.learning.router import fit_mlp
from r2v.learning.settings import RouterSettings
from r2v.maths.calibration import brier

NAMES = ("verifier_mean", "step_index")
SETTINGS = RouterSettings(hidden=(16, 8), dropout=0.0, epochs=60, batch_size=1000, learning_rate=1e-2)


def rows(n: int, seed: int, worst_q: float = 0.5) -> tuple[Rows, np.ndarray]:
    """Rows with a known q: it depends on two features; one of five seed groups is worse than the others."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    group = rng.integers(0, 5, n)
    q = 1 / (1 + np.exp(-(1.5 * x[:, 0] - 0.5)))
    q = np.where(group == 4, np.maximum(q, worst_q), q)
    y = (rng.random(n) < q).astype(float)
    return Rows(x, np.ones_like(x, dtype=bool), y, group, np.arange(n)), q


def tau_star(c_llm: float, c_slm: float, kappa: float) -> float:
    """Bayes-optimal threshold of the one-step loss (R2V paper, appendix B)."""
    return min(max((c_llm - c_slm) / kappa, 0.0), 1.0)


def test_the_brier_score_is_least_at_q():
    rng = np.random.default_rng(1)
    q = rng.random(200_000)
    y = (rng.random(len(q)) < q).astype(float)
    for other in (q**2, np.clip(q + 0.1, 0, 1), np.round(q), np.full_like(q, 0.5)):
        assert brier(q, y) < brier(other, y) - 1e-3


def test_tau_star_is_the_best_threshold_of_the_one_step_loss():
    rng = np.random.default_rng(2)
    q = rng.random(100_000)
    c_llm, c_slm, kappa = 1.0, 0.1, 2.5

    def cost(tau: float) -> float:
        ask = q >= tau
        return float(np.where(ask, c_llm, c_slm + kappa * q).mean())

    best = min(np.linspace(0, 1, 201), key=cost)
    assert tau_star(c_llm, c_slm, kappa) == pytest.approx(best, abs=0.006)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3])
def test_the_excess_cost_is_bounded_by_the_error_of_p(noise):
    rng = np.random.default_rng(3)
    q = rng.random(50_000)
    p = np.clip(q + rng.normal(size=len(q)) * noise, 0, 1)
    c_llm, c_slm, kappa = 1.0, 0.1, 2.0
    tau = tau_star(c_llm, c_slm, kappa)

    def cost(belief: np.ndarray) -> float:
        return float(np.where(belief >= tau, c_llm, c_slm + kappa * q).mean())

    assert -1e-12 <= cost(p) - cost(q) <= kappa * np.abs(p - q).mean() + 1e-12


def test_total_variation_is_bounded_by_the_divergence():
    generator = torch.Generator().manual_seed(4)
    for scale in (0.1, 1.0, 5.0):
        a, b = (torch.randn(1, 30, generator=generator) * scale for _ in range(2))
        p, q = torch.softmax(a / 2, -1), torch.softmax(b / 2, -1)
        assert 0.5 * (p - q).abs().sum() <= (2 * jsd_loss(a, b)).sqrt() + 1e-6


def test_best_of_k_keeps_its_bound_under_a_noisy_verifier():
    rng = np.random.default_rng(5)
    k, trials = 5, 40_000
    for mu, spread in ((0.3, 0.4), (0.6, 0.2), (0.5, 1.0)):
        good = rng.random((trials, k)) < mu
        score = good + rng.normal(size=good.shape) * spread
        eta = float((rng.normal(size=trials) * spread > 1 + rng.normal(size=trials) * spread).mean())
        hit = good[np.arange(trials), score.argmax(axis=1)].mean()
        assert hit >= 1 - (1 - mu) ** k - k * (k - 1) / 2 * eta - 0.01


@pytest.mark.parametrize("eta", [0.1, 0.3, 0.45])
def test_noisy_preferences_keep_their_sign(eta):
    margin = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([margin], lr=1.0)
    zero = torch.zeros(1)
    for _ in range(2000):
        right = dpo_loss(margin, zero, zero, zero, beta=1.0)
        wrong = dpo_loss(zero, margin, zero, zero, beta=1.0)
        loss = (1 - eta) * right + eta * wrong
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert margin.item() == pytest.approx(np.log((1 - eta) / eta), abs=1e-2)


def test_decoupled_fits_q_and_the_joint_objective_leaves_it():
    train, _ = rows(8000, 6)
    held, q = rows(4000, 7)
    error = {}
    for objective in ("decoupled", "paper"):
        router = fit_mlp(train, held, NAMES, SETTINGS, objective, seed=0)
        raw = 1 / (1 + np.exp(-router.logit(held.x_NF, held.present_NF)))
        error[objective] = float(np.abs(raw - q).mean())
    assert error["decoupled"] < 0.1
    assert error["paper"] > 2 * error["decoupled"]


def test_alpha_changes_the_router():
    """CVaR must act: looking at the worst group only makes the router ask more there than looking at all does."""
    train, _ = rows(6000, 8, worst_q=0.9)
    asked = {}
    for alpha in (0.2, 1.0):
        settings = SETTINGS.but(alpha=alpha, epsilon=0.02, kappa=0.1, epochs=30)
        router = fit_mlp(train, train, NAMES, settings, "paper", seed=0)
        asked[alpha] = float((1 / (1 + np.exp(-router.logit(train.x_NF, train.present_NF)))).mean())
    assert asked[0.2] > asked[1.0] + 0.02


def test_cvar_with_one_seed_group_is_an_error():
    train, _ = rows(200, 9)
    alone = Rows(train.x_NF, train.present_NF, train.y_N, np.zeros(200, dtype=np.int64), train.episode_N)
    with pytest.raises(ValueError, match="two groups"):
        fit_mlp(alone, alone, NAMES, SETTINGS, "paper", seed=0)
