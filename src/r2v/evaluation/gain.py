"""What a router gains over random escalation of as many units, from recorded ones; with nulls, intervals and a verdict.

A unit is what is escalated as a whole: a session that is handed over to the stronger model, or one step. Each has a worth:
what escalating it adds (success of the stronger model minus that of the SLM on the same task; 1 where the teacher differs).
Random escalation of the same share of each model's units gains that share of the mean worth, so the gain over it is the
covariance of "escalated" and worth, within each model: no router gains by knowing which model it looks at.

Axes: U units, G groups of tasks, B bootstrap resamples over groups, S shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from r2v.core.groups import splits
from r2v.evaluation.curves import resample_BT
from r2v.maths import Bools, Floats

SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
RESAMPLES = 2000
RECHOSEN = 500
"""Resamples of which only the variance is used."""
WANTED = 0.03
"""A gain that one would like to see: with as many sessions as it takes, were it there."""
NORMAL = {0.025: 1.95996, 0.005: 2.57583}
"""Share beyond either end of an interval -> quantile of the normal distribution: 95 and 99 %."""
Ints = NDArray[np.int64]
Verdict = Literal["route", "no_route", "not_enough"]


@dataclass(frozen=True, eq=False)
class Units:
    """What may be escalated, with scores of readers that saw no unit of its fold."""

    worth_U: Floats
    scores: Mapping[str, Floats]
    """[U] of each kind of score; the unit is escalated where it reaches the threshold."""
    model_U: Ints
    group_U: Ints
    fold_U: Ints
    """Or [U, 2]: of tasks and of models."""

    def __len__(self) -> int:
        return len(self.worth_U)


@dataclass(frozen=True)
class Point:
    """One operating point: a kind of score, and the share of units that it should escalate."""

    kind: str
    share: float


def threshold(score_U: Floats, share: float) -> float:
    """The score that this share of the units reaches."""
    return float(np.quantile(score_U, 1 - share, method="higher"))


def mean_gain(escalated_U: Floats, worth_U: Floats, model_U: Ints) -> float:
    """Covariance of escalation and worth within each model."""
    return float(gain_B(escalated_U, worth_U, model_U, np.zeros_like(model_U), np.ones((1, 1)))[0])


def gain_B(escalated_U: Floats, worth_U: Floats, model_U: Ints, group_U: Ints, weight_BG: Floats) -> Floats:
    """The same under B sets of weights of the groups."""
    within_BM, n_BM = _within(escalated_U, worth_U, model_U, group_U, weight_BG)
    return np.asarray(within_BM.sum(axis=1) / n_BM.sum(axis=1))


def _within(escalated_U: Floats, worth_U: Floats, model_U: Ints, group_U: Ints, weight_BG: Floats) -> tuple[Floats, Floats]:
    """[B, M]: each model's covariance times its weight, and its weight."""
    models, groups = int(model_U.max()) + 1, weight_BG.shape[1]
    cell_U = group_U * models + model_U

    def sums_BM(value_U: Floats) -> Floats:
        return np.asarray(weight_BG @ np.bincount(cell_U, value_U, minlength=groups * models).reshape(groups, models))

    n, e, w, both = (sums_BM(v) for v in (np.ones(len(worth_U)), escalated_U, worth_U, escalated_U * worth_U))
    return _covariance(n, e, w, both), n


def _covariance(n: Floats, e: Floats, w: Floats, both: Floats) -> Floats:
    """From sums over units: of one, of escalation, of worth, and of the product of the two."""
    return both - e * np.divide(w, n, out=np.zeros_like(w), where=n > 0)


def chosen(units: Units, use_U: Bools, shares: Sequence[float], kinds: Sequence[str]) -> Point:
    """The operating point with the largest gain on some of the units."""
    points = [Point(kind, share) for kind in kinds for share in shares]

    def gain(point: Point) -> float:
        score_U = units.scores[point.kind][use_U]
        escalated_U = (score_U >= threshold(score_U, point.share)).astype(float)
        return mean_gain(escalated_U, units.worth_U[use_U], units.model_U[use_U])

    return max(points, key=gain)


def escalated(units: Units, shares: Sequence[float], kinds: Sequence[str]) -> tuple[Bools, list[Point]]:
    """What is escalated in each fold, at the operating point and the threshold that the other folds chose.

    Returns:
        (escalated_U, the point of each fold).
    """
    found_U, points = np.zeros(len(units), dtype=bool), []
    for held_U, other_U in splits(units.fold_U):
        point = chosen(units, other_U, shares, kinds)
        score_U = units.scores[point.kind]
        found_U[held_U] = score_U[held_U] >= threshold(score_U[other_U], point.share)
        points.append(point)
    return found_U, points


def choice_widens(units: Units, shares: Sequence[float], kinds: Sequence[str], seed: int) -> float:
    """By how much wider an interval of the gain is because the operating points were chosen on these units, 1 at least.

    Resamples that hold them fixed vary too little, and those that each choose anew too much, because noise is drawn in them
    twice. The variance is the mean of both: `benchmarks/gain_intervals.py` counts how often such intervals hold the truth.
    """
    points = [Point(kind, share) for kind in kinds for share in shares]
    if len(points) == 1:
        return 1.0
    _, group_U = np.unique(units.group_U, return_inverse=True)
    models, groups = int(units.model_U.max()) + 1, int(group_U.max()) + 1
    weight_BG, cell_U = resample_BT(groups, RECHOSEN, seed), group_U * models + units.model_U
    every_B = np.arange(len(weight_BG))

    def sums(use_U: Bools, value_UC: Floats) -> Floats:
        """[C, B, M]."""
        cell = cell_U[use_U]
        found = [np.bincount(cell, value, minlength=groups * models).reshape(groups, models) for value in value_UC]
        return np.asarray(weight_BG @ np.array(found))

    w_U, every_U = units.worth_U, np.ones(len(units), dtype=bool)
    e_2BM = both_2BM = np.zeros((2, len(weight_BG), models))
    for held_U, rest_U in splits(units.fold_U):
        e_PU = np.array([
            units.scores[p.kind] >= threshold(units.scores[p.kind][rest_U], p.share) for p in points
        ], dtype=float)  # fmt: skip
        n, w = sums(rest_U, np.stack([np.ones(rest_U.sum()), w_U[rest_U]]))
        e, both = (sums(rest_U, v) for v in (e_PU[:, rest_U], e_PU[:, rest_U] * w_U[rest_U]))
        best_B = _covariance(n, e, w, both).sum(axis=2).argmax(axis=0)
        e, both = (sums(held_U, v) for v in (e_PU[:, held_U], e_PU[:, held_U] * w_U[held_U]))
        e_2BM = e_2BM + np.stack([e[best_B[0]], e[best_B, every_B]])
        both_2BM = both_2BM + np.stack([both[best_B[0]], both[best_B, every_B]])
    n, w = sums(every_U, np.stack([np.ones(len(units)), w_U]))
    gain_2B = _covariance(n, e_2BM, w, both_2BM).sum(axis=2) / n.sum(axis=1)
    fixed, anew = gain_2B[:, 1:].var(axis=1)
    return float(np.sqrt((1 + max(1.0, anew / fixed)) / 2)) if fixed > 0 else 1.0


@dataclass(frozen=True)
class Gain:
    """What escalating some units gained over random escalation of as many, on groups left out."""

    share: float
    gain: float
    ci95: tuple[float, float]
    ci99: tuple[float, float]
    groups: int

    @property
    def beats_random(self) -> bool:
        """99 in 100, not 95: among many logs of pure noise one in 200 may be believed, not one in 40."""
        return self.ci99[0] > 0

    @property
    def groups_needed(self) -> int:
        """Groups of tasks with which the gain found would show; where none was, one of `WANTED`."""
        effect = self.gain if self.gain > WANTED / 3 else WANTED
        half = (self.ci99[1] - self.ci99[0]) / 2
        return int(np.ceil(self.groups * (half / effect) ** 2))


def gain_of(escalated_U: Bools | Floats, units: Units, seed: int, *, wider: float = 1.0) -> Gain:
    """With intervals over groups (bootstrap); `wider`: of `choice_widens`, where the operating points were chosen."""
    _, group_U = np.unique(units.group_U, return_inverse=True)
    size_G = np.bincount(group_U)
    weight_BG = resample_BT(len(size_G), RESAMPLES, seed)
    e_U = np.asarray(escalated_U, dtype=float)
    found_B = gain_B(e_U, units.worth_U, units.model_U, group_U, weight_BG)
    return _gain(found_B, e_U, size_G, wider)


def gain_by_model(escalated_U: Bools, units: Units, seed: int, *, wider: float = 1.0) -> dict[int, Gain]:
    """The same of each model's units alone."""
    _, group_U = np.unique(units.group_U, return_inverse=True)
    e_U = escalated_U.astype(float)
    weight_BG = resample_BT(int(group_U.max()) + 1, RESAMPLES, seed)
    within_BM, n_BM = _within(e_U, units.worth_U, units.model_U, group_U, weight_BG)
    found = {}
    for model in np.unique(units.model_U).tolist():
        mine, drawn_B = units.model_U == model, n_BM[:, model] > 0
        size_G = np.bincount(group_U[mine])
        found[model] = _gain(
            (within_BM[:, model] / np.where(drawn_B, n_BM[:, model], 1))[drawn_B], e_U[mine], size_G[size_G > 0], wider
        )
    return found


def _gain(found_B: Floats, escalated_U: Floats, size_G: Ints, wider: float) -> Gain:
    found_B = found_B[0] + wider * (found_B - found_B[0])
    ci95, ci99 = (wide_interval(found_B, size_G, outside) for outside in NORMAL)
    return Gain(float(escalated_U.mean()), float(found_B[0]), ci95, ci99, len(size_G))


def paired_interval(change_T: Floats, resamples: int, seed: int) -> tuple[float, float]:
    """95 % interval of the mean of the tasks' changes, by bootstrap over tasks, widened where they are few."""
    mean_B = np.asarray(resample_BT(len(change_T), resamples, seed) @ change_T)
    return wide_interval(mean_B, np.ones(len(change_T), dtype=np.int64), 0.025)


def wide_interval(found_B: Floats, size_G: Ints, outside: float) -> tuple[float, float]:
    """Percentile interval of resamples (the first is the sample itself), widened as Student's quantile is over the normal
    one: few groups, or a few large ones, make the bootstrap too sure of itself.

    Args:
        found_B: what each resample shows.
        size_G: units of each group.
        outside: share beyond either end, one of `NORMAL`.
    """
    z, groups = NORMAL[outside], float(size_G.sum() ** 2 / (size_G**2).sum())
    degrees = max(2.0, groups - 1)
    student = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    wider = student / z * float(np.sqrt((degrees + 1) / degrees))
    low, high = (float(found_B[0] + wider * (end - found_B[0])) for end in np.quantile(found_B[1:], [outside, 1 - outside]))
    return low, high
