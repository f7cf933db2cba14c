"""Proper scores and calibration. Pure functions; p_N probabilities, y_N in {0, 1}, logit_N before the sigmoid."""

from __future__ import annotations

import numpy as np

from r2v.maths import Floats

BINS = 15
FLAT = 1e-6
"""The least slope of a scaling."""
STEEPEST = 30.0
"""The largest log-odds that a scaling gives: far beyond, a float knows one risk from another no more."""


def log_odds(p_N: Floats, least: float = 1e-6) -> Floats:
    """Of probabilities, which count as `least` at least, and as 1 - `least` at most."""
    p_N = np.clip(p_N, least, 1 - least)
    return np.asarray(np.log(p_N / (1 - p_N)))


def brier(p_N: Floats, y_N: Floats) -> float:
    return float(np.mean((p_N - y_N) ** 2))


def nll(p_N: Floats, y_N: Floats, weight_N: Floats | None = None) -> float:
    """(Weighted) mean negative log-likelihood in nats; p is clipped to [1e-7, 1 - 1e-7]."""
    p_N = np.clip(p_N, 1e-7, 1 - 1e-7)
    return float(-np.average(y_N * np.log(p_N) + (1 - y_N) * np.log(1 - p_N), weights=weight_N))


def reliability_bins(p_N: Floats, y_N: Floats, bins: int = BINS) -> list[tuple[float, float, int]]:
    """[(mean p, share of y = 1, count), ...] of the non-empty equal-width bins."""
    index = np.minimum((p_N * bins).astype(int), bins - 1)
    return [
        (float(p_N[index == b].mean()), float(y_N[index == b].mean()), int((index == b).sum()))
        for b in range(bins)
        if (index == b).any()
    ]


def ece(p_N: Floats, y_N: Floats, bins: int = BINS) -> float:
    """Expected calibration error: count-weighted mean of |mean p - share of y = 1| over equal-width bins (Guo 2017)."""
    return sum(count * abs(p - share) for p, share, count in reliability_bins(p_N, y_N, bins)) / len(p_N)


def fit_scaling(logit_N: Floats, y_N: Floats, *, with_bias: bool) -> tuple[float, float]:
    """(slope, bias) minimising the NLL of sigmoid(slope x logit + bias): temperature scaling, or Platt's with a bias.

    Of logits that say nothing, or the contrary, the slope is `FLAT`: the order of risks is kept, and all are about the mean
    of y. Where y is all 1 or all 0, or the logits part it without an error, the NLL has no minimum: Platt's targets
    ((n1 + 1) / (n1 + 2) for 1, 1 / (n0 + 2) for 0; Platt 1999) stand for y there, and no risk is beyond `STEEPEST`.
    """
    theta = _newton(logit_N, y_N, with_bias)
    if not 0 < y_N.mean() < 1 or _steepest(theta, logit_N) > STEEPEST:
        ones, n = float(y_N.sum()), len(y_N)
        low, high = 1 / (n - ones + 2), (ones + 1) / (ones + 2)
        theta = _newton(logit_N, low + (high - low) * y_N, with_bias)
        theta /= max(1.0, _steepest(theta, logit_N) / STEEPEST)
    slope, bias = float(theta[0]), float(theta[1]) if with_bias else 0.0
    if slope >= FLAT:
        return slope, bias
    mean = log_odds(np.asarray(y_N.mean()), 1 / (len(y_N) + 2))
    return FLAT, float(mean - FLAT * np.mean(logit_N)) if with_bias else 0.0


def _steepest(theta: Floats, logit_N: Floats) -> float:
    """The largest log-odds, by size, that a scaling gives."""
    return float(np.abs(theta[0] * logit_N + (theta[1] if len(theta) > 1 else 0.0)).max())


def _newton(logit_N: Floats, y_N: Floats, with_bias: bool) -> Floats:
    """[slope], or [slope, bias], by Newton's method with step halving; the NLL is convex."""
    design = np.stack([logit_N, np.ones_like(logit_N)], axis=1) if with_bias else logit_N[:, None]
    theta = np.array([1.0, 0.0])[: design.shape[1]]

    def loss(theta: Floats) -> float:
        z = design @ theta
        return float(np.mean(np.logaddexp(0, z) - y_N * z))

    for _ in range(100):
        p_N = 1 / (1 + np.exp(-np.clip(design @ theta, -40, 40)))
        gradient = design.T @ (p_N - y_N) / len(y_N)
        hessian = (design * (p_N * (1 - p_N))[:, None]).T @ design / len(y_N)
        step = np.linalg.solve(hessian + 1e-9 * np.eye(len(theta)), gradient)
        size = 1.0
        while size > 1e-6 and loss(theta - size * step) > loss(theta):
            size /= 2
        theta = theta - size * step
        if np.abs(size * step).max() < 1e-9:
            break
    return theta


def fit_isotonic(p_N: Floats, y_N: Floats) -> tuple[Floats, Floats]:
    """Knots (x, y) of the monotone step-mean fit by pool-adjacent-violators; interpolate between them."""
    values, index = np.unique(p_N, return_inverse=True)  # equal risks are one case
    counts = np.bincount(index)
    positives = np.bincount(index, weights=y_N)
    blocks: list[list[float]] = []  # [sum of y, sum of p, count]
    for p, y, n in zip(values, positives, counts, strict=True):
        blocks.append([float(y), float(p * n), float(n)])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][2] >= blocks[-1][0] / blocks[-1][2]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    x = np.array([p / count for _, p, count in blocks])
    return x, np.array([y / count for y, _, count in blocks])
