"""Fits of the routers of other papers (`r2v.routers.comparators`), on the same episodes as ours. NumPy alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from r2v.core.features import FEATURES, batch
from r2v.core.protocols import Floats
from r2v.core.types import Episode
from r2v.learning.linear import fit_logistic, standardisation
from r2v.routers.comparators import Band, GoalModel, LinUCB, Renewal, words_of
from r2v.routers.mlp import Calibration, RiskMLP
from r2v.routers.threshold import Score

RARE = 5


def fit_goal(goals: Sequence[str], failed: Sequence[bool], *, penalty: float = 10.0, rare: int = RARE) -> GoalModel:
    """P(failure | words of the goal), from one goal an episode; a word of fewer than `rare` goals gets no weight."""
    bags = [words_of(goal) for goal in goals]
    count = Counter(word for words in bags for word in words)
    known = sorted(word for word, n in count.items() if n >= rare)
    column = {word: i for i, word in enumerate(known)}
    x_NF = np.zeros((len(bags), len(known)))
    for row, words in zip(x_NF, bags, strict=True):
        row[[column[word] for word in words if word in column]] = 1
    weights, bias = fit_logistic(x_NF, np.array(failed, dtype=float), penalty)
    return GoalModel(bias, dict(zip(known, weights.tolist(), strict=True)))


def running_means(episodes: Sequence[Episode], score: Score) -> list[Floats]:
    """For each episode, the mean of its scores up to each step."""
    means = []
    for episode in episodes:
        scores = [score(step.choice.features) for step in episode.steps if step.choice.features is not None]
        means.append(np.cumsum(scores) / np.arange(1, len(scores) + 1))
    return means


def fit_band(shape: Sequence[Floats], held_out: Sequence[Floats], horizon: int) -> Band:
    """The band of solved episodes: its shape from one set of curves, its width from another (split conformal)."""
    table_NH = np.full((len(shape), horizon), np.nan)
    for row, values in zip(table_NH, shape, strict=True):
        row[: len(values)] = values
    live = (~np.isnan(table_NH)).sum(axis=0) >= 5
    last = max(int(live.sum()), 1)  # steps that too few solved episodes reach keep the shape of the last that enough do
    mean_H, std_H = np.nanmean(table_NH[:, :last], axis=0), np.nanstd(table_NH[:, :last], axis=0)
    mean_H = np.concatenate([mean_H, np.full(horizon - last, mean_H[-1])])
    std_H = np.maximum(np.concatenate([std_H, np.full(horizon - last, std_H[-1])]), 1e-3)
    excess = [float(((v - mean_H[: len(v)]) / std_H[: len(v)]).max()) for v in held_out if len(v)]
    return Band(mean_H, std_H, np.sort(excess))


def renewal_at(episodes: Sequence[Episode], scores: Sequence[Floats], threshold: float) -> Renewal:
    """What stopping at this threshold would have done to SLM-only episodes; `scores` are those of their steps."""
    solved_N = np.array([bool(episode.success) for episode in episodes])
    length_N = np.array([len(row) for row in scores], dtype=float)
    alarm_N = np.array([next((t for t, s in enumerate(row) if s >= threshold), np.inf) for row in scores])
    stopped_N = np.isfinite(alarm_N)

    def mean(values_N: Floats, where_N: NDArray[np.bool_]) -> float:
        return float(values_N[where_N].mean()) if where_N.any() else 0.0

    return Renewal(
        p=float(solved_N.mean()),
        solved=mean(length_N, solved_N),
        failed=mean(length_N, ~solved_N),
        tpr=mean(stopped_N.astype(float), ~solved_N),
        fpr=mean(stopped_N.astype(float), solved_N),
        alarm_failed=mean(alarm_N, stopped_N & ~solved_N),
        alarm_solved=mean(alarm_N, stopped_N & solved_N),
    )


def fit_linucb(episodes: Sequence[Episode], bonus: float = 0.5) -> LinUCB:
    """Learns from logged episodes: the reward comes at the end and goes to every step of the episode."""
    rows = [step.choice.features for e in episodes for step in e.steps if step.choice.features is not None]
    x_NF, present_NF = batch(rows)
    mean_F, std_F = standardisation(x_NF, present_NF)
    z_NF = np.hstack([np.where(present_NF, (x_NF - mean_F) / std_F, 0.0), np.ones((len(rows), 1))])
    arm_N = np.array([int(step.choice.source == "teacher") for e in episodes for step in e.steps])
    reward_N = np.array([float(bool(e.success)) for e in episodes for _ in e.steps])
    inverse, theta = [], []
    for arm in (0, 1):
        z, reward = z_NF[arm_N == arm], reward_N[arm_N == arm]
        inverse.append(np.linalg.inv(np.eye(z.shape[1]) + z.T @ z))
        theta.append(inverse[-1] @ z.T @ reward)
    w = theta[1] - theta[0]
    scale = RiskMLP(FEATURES, mean_F, std_F, ((w[:-1, None], w[-1:]),), Calibration(), None, {"rows": len(rows)})
    return LinUCB(scale, np.stack(inverse), bonus)
