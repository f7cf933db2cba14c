"""Is the risk known early, or only once the episode is long? What it is worth after each number of steps, over tasks.

At a fixed number of steps every episode that got so far has the same age, so a risk that only counts steps is at chance
there, however good it looks over all steps together (failing episodes are longer, so late steps fail more often).

Axes: N steps, T tasks, B bootstrap resamples over tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2v.evaluation.curves import interval, resample_BT
from r2v.maths import Bools, Floats
from r2v.maths.calibration import ece
from r2v.maths.stats import auroc_B, auroc_equal_B

RESAMPLES = 1000
EQUAL_RESAMPLES = 300
CELLS = 4_000_000
"""Weights held at once."""
Measures = dict[str, Any]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Scored:
    """Steps with a score from a model that did not see their tasks."""

    p_N: Floats
    y_N: Floats
    """1 where the episode failed, the same for all its steps."""
    t_N: Ints
    task_N: Ints
    """Numbered from 0."""
    episode_N: Ints

    def where(self, keep_N: Bools) -> Scored:
        task_N = np.unique(self.task_N[keep_N], return_inverse=True)[1]
        return Scored(self.p_N[keep_N], self.y_N[keep_N], self.t_N[keep_N], task_N, self.episode_N[keep_N])

    def scored_by(self, p_N: Floats) -> Scored:
        return replace(self, p_N=p_N)


def measures(steps: Scored, *, seed: int) -> Measures:
    """AUROC and Brier score with 95 % intervals over tasks, ECE, and the Brier score of the mere share of failures.

    The ECE has no interval: noise in the bins raises it, resampled bins are noisier still, and an interval of the resamples
    never held the truth of a calibrated risk. It is too high by that noise where episodes are few.
    AUROC and its interval are None without both outcomes. Raises ValueError without steps.
    """
    if not len(steps.y_N):
        raise ValueError("no steps to measure")
    base = float(steps.y_N.mean())
    area, area_ci95 = auroc_over_tasks(steps.p_N, steps.y_N, steps.task_N, seed=seed)
    weights_BT = _weights_BT(int(steps.task_N.max()) + 1, seed)
    brier_B = _mean_B(weights_BT, steps.task_N, (steps.p_N - steps.y_N) ** 2)
    return {
        "episodes": len(np.unique(steps.episode_N)), "groups": int(steps.task_N.max()) + 1, "steps": len(steps.y_N),
        "failed": base, "auroc": area, "auroc_ci95": area_ci95, "brier": float(brier_B[0]), "brier_ci95": interval(brier_B),
        "base_brier": base * (1 - base), "ece": ece(steps.p_N, steps.y_N),
    }  # fmt: skip


def auroc_over_tasks(p_N: Floats, y_N: Floats, task_N: Ints, *, seed: int) -> tuple[float | None, list[float] | None]:
    """The AUROC and its 95 % interval, over the resamples of tasks that hold both outcomes; None where `y_N` does not."""
    if not 0 < y_N.mean() < 1:
        return None, None
    weights_BT = _weights_BT(int(task_N.max()) + 1, seed)
    at_once = max(1, CELLS // len(y_N))
    pieces = [auroc_B(p_N, y_N, task_N, weights_BT[i : i + at_once]) for i in range(0, len(weights_BT), at_once)]
    values_B = np.concatenate(pieces)
    return float(values_B[0]), interval(values_B[~np.isnan(values_B)])


def auroc_equal_step(
    p_N: Floats, y_N: Floats, t_N: Ints, task_N: Ints, *, seed: int, within_N: Ints | None = None
) -> tuple[float | None, list[float] | None]:
    """The AUROC over pairs of steps of the same number (and of the same `within_N`, a model say), with its 95 % interval
    over tasks; None where no such pair has both outcomes.
    """
    stratum_N = t_N if within_N is None else t_N + (t_N.max() + 1) * within_N
    task_N = np.unique(task_N, return_inverse=True)[1]
    weights_BT = _weights_BT(int(task_N.max()) + 1, seed)[: EQUAL_RESAMPLES + 1]
    values_B = auroc_equal_B(p_N, y_N, task_N, stratum_N, weights_BT)
    if np.isnan(values_B[0]):
        return None, None
    return float(values_B[0]), interval(values_B[~np.isnan(values_B)])


def by_prefix(steps: Scored, *, seed: int) -> list[Measures]:
    """`measures` of the risk at step t of the episodes that got so far, for each t that any did."""
    return [{"t": int(t), **measures(steps.where(steps.t_N == t), seed=seed)} for t in np.unique(steps.t_N)]


def curves(steps: Scored) -> dict[str, list[list[float]]]:
    """Failed and solved episodes: [t, episodes, quartile 1, median, quartile 3 of the risk] for each step."""
    found: dict[str, list[list[float]]] = {}
    for name, label in (("failed", 1.0), ("solved", 0.0)):
        part = steps.where(steps.y_N == label)
        found[name] = [
            [float(t), float(len(p)), *np.quantile(p, [0.25, 0.5, 0.75]).tolist()]
            for t in np.unique(part.t_N)
            for p in [part.p_N[part.t_N == t]]
        ]
    return found


@lru_cache(maxsize=2)
def _weights_BT(tasks: int, seed: int) -> Floats:
    return resample_BT(tasks, RESAMPLES, seed)


def _mean_B(weights_BT: Floats, task_N: Ints, value_N: Floats) -> Floats:
    tasks = weights_BT.shape[1]
    total_T, count_T = np.bincount(task_N, value_N, minlength=tasks), np.bincount(task_N, minlength=tasks)
    return np.asarray((weights_BT @ total_T) / (weights_BT @ count_T))
