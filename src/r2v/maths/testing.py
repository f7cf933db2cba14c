"""P-values and sequences of tests for Learn-then-Test (arXiv 2110.01052). Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from r2v.maths import Floats


def betting_p(x_N: Floats, bound: float, delta: float) -> float:
    """P-value of "the mean of these independent numbers in [0, 1] is at least `bound`", valid for every n.

    A gambler who bets that the mean is lower multiplies his capital by 1 - bet (x - bound); under the hypothesis he gains
    nothing on average, so a capital of c happens with probability at most 1 / c (Waudby-Smith and Ramdas, 2010.09686).
    `delta` only sizes the bets. The order of x must not depend on x.
    """
    if len(x_N) == 0 or x_N.min() < 0 or x_N.max() > 1:
        raise ValueError("needs at least one number, all in [0, 1]")
    n = np.arange(1, len(x_N) + 1)
    mean_N = (0.5 + x_N.cumsum()) / (n + 1)
    variance_N = (0.25 + ((x_N - mean_N) ** 2).cumsum()) / (n + 1)
    before_N = np.append(0.25, variance_N[:-1])  # a bet knows only what came before it
    bet_N = np.minimum(1.0, np.sqrt(2 * np.log(1 / delta) / (len(x_N) * before_N)))
    capital_N = np.cumsum(np.log(np.maximum(1 - bet_N * (x_N - bound), 1e-300)))
    return float(np.exp(-max(0.0, capital_N.max())))


def cvar_p(x_TZ: Floats, worst: int, bound: float, delta: float) -> float:
    """P-value of "the mean over the `worst` worst of these Z groups is at least `bound`" (T independent rows).

    That mean is the largest over all choices of so many groups; it is below the bound only if each choice's is, so the
    largest of their p-values is valid.
    """
    Z = x_TZ.shape[1]
    if not 1 <= worst <= Z:
        raise ValueError(f"the worst {worst} of {Z} groups do not exist")
    return max(betting_p(x_TZ[:, list(groups)].mean(axis=1), bound, delta) for groups in combinations(range(Z), worst))


def fixed_sequence(p: Sequence[float], delta: float) -> int:
    """How many hypotheses, in the order fixed beforehand, may be rejected: up to the first p > delta. With probability at
    least 1 - delta none of them is true.
    """
    return next((i for i, value in enumerate(p) if value > delta), len(p))
