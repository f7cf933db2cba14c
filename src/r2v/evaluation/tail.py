"""The worst groups of episodes: how they did (CVaR), and a test of how they do on all tasks like these.

A group is a kind of disturbance (`perturbations.groups`); which one a task meets under a perturbation seed is drawn by the
task's hash, each with the same probability. Tasks are the exchangeable unit: a row is a task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from r2v.core.errors import SettingsError
from r2v.evaluation.outcomes import Outcomes
from r2v.maths import Floats
from r2v.maths.testing import betting_p

MOST_CHOICES = 20_000
"""Of the worst groups among all; each is tested."""


@dataclass(frozen=True, eq=False)
class Losses:
    """What is bounded: the mean of `excess_TZ` over the worst groups is to be below 0."""

    excess_TZ: Floats
    most: float
    """The largest that a cell can be."""
    variance: float
    """Of a cell, guessed beforehand."""
    group_TZ: NDArray[np.str_]

    def by_group(self) -> Floats:
        """Mean excess of each group."""
        names, index = np.unique(self.group_TZ, return_inverse=True)
        index_N = index.ravel()
        return np.bincount(index_N, self.excess_TZ.ravel(), len(names)) / np.bincount(index_N)


def failures(o: Outcomes, bound: float) -> Losses:
    """The failure rate is to be below `bound`."""
    return Losses(1 - o.success_TZ - bound, 1 - bound, bound * (1 - bound), o.group_TZ)


def against_teacher(o: Outcomes, teacher: Outcomes, share: float) -> Losses:
    """The success rate is to be above this share of the teacher's on the same episodes (paired differences)."""
    return Losses(share * teacher.success_TZ - o.success_TZ, share, 0.1, o.group_TZ)


def worst_of(alpha: float | None, groups: int) -> int:
    """How many groups CVaR looks at; None: at all of them, which is the mean."""
    return groups if alpha is None else math.ceil(alpha * groups - 1e-12)


def worst_mean(losses: Losses, alpha: float | None) -> float:
    """Observed mean excess of the worst share alpha of the groups."""
    if alpha is None:
        return float(losses.excess_TZ.mean())
    found = np.sort(losses.by_group())
    return float(found[-worst_of(alpha, len(found)) :].mean())


def worst_p(several: Sequence[Losses], alpha: float | None, delta: float) -> list[float]:
    """P-value of "the mean excess of the worst share alpha of the groups is at least 0", for each of several routers.

    That mean is the largest over all choices of so many groups; it is below 0 only if each choice's is, so the largest of
    their p-values is valid.

    Args:
        several: of the same tasks and seeds, with the same bound.

    Raises:
        SettingsError: there are too many choices.
    """
    group_TZ = several[0].group_TZ
    names, index = np.unique(group_TZ, return_inverse=True)
    (T, Z), G = group_TZ.shape, len(names)
    worst = worst_of(alpha, G)
    if (choices := math.comb(G, worst)) > MOST_CHOICES:
        raise SettingsError(
            f"the worst {worst} of {G} groups may be chosen in more than {MOST_CHOICES} ways, and each is tested; name "
            "fewer parts in perturbations.groups, or fewer severities"
        )
    in_group_TZG = index.reshape(T, Z, 1) == np.arange(G)
    chosen_GC = np.zeros((G, choices))
    for choice, members in enumerate(combinations(range(G), worst)):
        chosen_GC[list(members), choice] = 1
    excess_TPG = np.einsum("ptz,tzg->tpg", np.stack([losses.excess_TZ for losses in several]), in_group_TZG.astype(float))
    cells = min(Z, worst * int(in_group_TZG.sum(axis=1).max()))  # of a task in a choice, at most
    p_N = betting_p(
        (excess_TPG @ chosen_GC).reshape(T, -1), cells * several[0].most, delta, Z * worst / G * several[0].variance
    )
    return [float(p) for p in p_N.reshape(len(several), choices).max(axis=1)]
