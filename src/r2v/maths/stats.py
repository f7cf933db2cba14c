"""Statistics of comparisons. Pure functions."""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import NDArray

from r2v.maths import Floats


def auroc(score_N: Floats, y_N: Floats) -> float:
    """P(score of a positive > score of a negative), ties counted half. Raises ValueError without both classes."""
    positives = int(y_N.sum())
    if not 0 < positives < len(y_N):
        raise ValueError("AUROC needs both classes")
    _, index, counts = np.unique(score_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    rank_N = (last - (counts - 1) / 2)[index]
    return float((rank_N[y_N == 1].sum() - positives * (positives + 1) / 2) / (positives * (len(y_N) - positives)))


def auroc_or_none(score_N: Floats, y_N: Floats) -> float | None:
    """None where one class is missing."""
    return auroc(score_N, y_N) if 0 < y_N.sum() < len(y_N) else None


def auroc_B(score_N: Floats, y_N: Floats, task_N: NDArray[np.int64], weights_BT: Floats) -> Floats:
    """The AUROC with each row's weight of its task, for B sets of weights; NaN where one class has no weight."""
    return _share(*_pairs_B(score_N, y_N, task_N, weights_BT))


def auroc_equal_B(
    score_N: Floats, y_N: Floats, task_N: NDArray[np.int64], stratum_N: NDArray[np.int64], weights_BT: Floats
) -> Floats:
    """The same over pairs of one stratum alone: of steps of the same number, say, where age tells nothing."""
    won_B, pairs_B = np.zeros(len(weights_BT)), np.zeros(len(weights_BT))
    for stratum in np.unique(stratum_N):
        inside = stratum_N == stratum
        if 0 < y_N[inside].mean() < 1:
            won, pairs = _pairs_B(score_N[inside], y_N[inside], task_N[inside], weights_BT)
            won_B, pairs_B = won_B + won, pairs_B + pairs
    return _share(won_B, pairs_B)


def _pairs_B(score_N: Floats, y_N: Floats, task_N: NDArray[np.int64], weights_BT: Floats) -> tuple[Floats, Floats]:
    """(weight of the pairs in which the positive scores higher, weight of all pairs of both classes)."""
    by_score_N = np.argsort(score_N, kind="stable")
    positive, negative = by_score_N[y_N[by_score_N] == 1], by_score_N[y_N[by_score_N] == 0]
    below_BK = np.zeros((len(weights_BT), len(negative) + 1))  # weight of the k lowest negatives
    np.cumsum(weights_BT[:, task_N[negative]], axis=1, out=below_BK[:, 1:])
    weight_BP = weights_BT[:, task_N[positive]]
    less, not_more = (np.searchsorted(score_N[negative], score_N[positive], side) for side in ("left", "right"))
    won_B = np.einsum("bp,bp->b", weight_BP, below_BK[:, less] + below_BK[:, not_more]) / 2
    return won_B, np.asarray(weight_BP.sum(axis=1) * below_BK[:, -1])


def _share(won_B: Floats, pairs_B: Floats) -> Floats:
    return np.asarray(np.divide(won_B, pairs_B, out=np.full(len(pairs_B), np.nan), where=pairs_B > 0))


def sign_flip(won_T: NDArray[np.int64]) -> float:
    """Exact two-sided p-value that paired successes have equal rates, from each task's successes less the other's.

    The episodes of a task are not independent, so a task's difference is kept whole: if nothing differs it is as likely to
    have the other sign. With one episode a task this is McNemar's exact test. 1.0 where no task differs.
    """
    sizes, total = np.abs(won_T[won_T != 0]), int(np.abs(won_T).sum())
    chance = np.zeros(2 * total + 1)  # of each sum, from -total on
    chance[total] = 1.0
    for size in sizes:
        chance = (np.roll(chance, size) + np.roll(chance, -size)) / 2  # nothing wraps: all sizes add up to `total`
    sums = np.arange(-total, total + 1)
    return min(1.0, float(chance[np.abs(sums) >= abs(int(won_T.sum()))].sum()))


Z95 = 1.959964


def wilson(positive: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); (0, 1) without observations."""
    return (0.0, 1.0) if n == 0 else _wilson(positive / n, n, Z95)


def _wilson(p: float, n: float, z: float) -> tuple[float, float]:
    middle, half = (p + z**2 / (2 * n)) / (1 + z**2 / n), z / (1 + z**2 / n) * sqrt(p * (1 - p) / n + z**2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def wilson_over_tasks(success_TZ: Floats) -> list[float]:
    """95 % interval of a share of episodes, Z of each of T tasks, which are the exchangeable unit.

    Wilson's, of as many independent episodes as the spread of the tasks is worth, with Student's quantile (Dean and Pagano
    2015). Where none or all are 1 the spread says nothing, and a task counts as one episode. Unlike the percentile bootstrap
    it is never a point, and covers with few tasks and near 0 and 1 (`benchmarks/coverage.py`).
    """
    (tasks, seeds), share = success_TZ.shape, float(success_TZ.mean())
    if tasks == 1:
        return [0.0, 1.0]
    worth, spread = float(tasks), float(success_TZ.mean(axis=1).var(ddof=1)) / tasks
    if 0 < share < 1:
        worth = min(float(tasks * seeds), share * (1 - share) / spread) if spread > 0 else float(tasks * seeds)
    low, high = _wilson(share, worth, student95(tasks - 1))
    return [min(low, share), max(high, share)]  # rounding leaves 1 outside


def student95(degrees: float) -> float:
    """The .975 quantile of Student's distribution (expansion of Fisher and Cornish); 1 degree counts as 2."""
    d = max(2.0, degrees)
    return Z95 + (Z95**3 + Z95) / (4 * d) + (5 * Z95**5 + 16 * Z95**3 + 3 * Z95) / (96 * d**2)


def newcombe(positive: int, n: int, other_positive: int, other_n: int) -> tuple[float, float]:
    """95 % interval of the difference of two independent shares, the first less the second (Newcombe 1998, method 10)."""
    (low, high), (other_low, other_high) = wilson(positive, n), wilson(other_positive, other_n)
    p, q = positive / max(1, n), other_positive / max(1, other_n)
    return p - q - sqrt((p - low) ** 2 + (other_high - q) ** 2), p - q + sqrt((high - p) ** 2 + (q - other_low) ** 2)
