"""P-values and sequences of tests for Learn-then-Test (arXiv 2110.01052). Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from r2v.maths import Floats

AIM = 1.1
"""The capital aimed at, over the one that rejects: bets become small near the aim, so it must lie beyond."""
GUESSED = 10
"""Numbers that the guess of the variance counts as."""
_Z = np.linspace(-6, 6, 2401)
_SHARE = np.array([0.0, *map(NormalDist().cdf, _Z), 1.0])
_DENSITY = np.array([0.0, *map(NormalDist().pdf, _Z), 0.0])


def betting_p(excess_NC: Floats, most: float, delta: float, variance: float) -> Floats:
    """P-value of "the mean of these independent numbers is at least 0" for each column, valid for every N.

    A gambler who bets that the mean is lower has the capital 1 - stake x excess after a bet; under the hypothesis he gains
    nothing on average, so the capital c happens with probability at most 1 / c (Waudby-Smith and Ramdas, 2010.09686). These
    bets aim at 1 / delta by the end of the rows and at no more, as in Browne (1999), "Reaching goals by a deadline": where
    the numbers are nearly normal no test of this level rejects more often.

    Args:
        excess_NC: N independent rows, whose order must not depend on them.
        most: what none can exceed.
        delta: the level; it only sizes the bets.
        variance: a guess of that of one number; it only sizes the first bets.
    """
    N, C = excess_NC.shape
    if N == 0 or excess_NC.max() > most + 1e-9:
        raise ValueError(f"needs at least one row, and no number above {most:g}")
    aim, capital_C, highest_C = AIM / delta, np.ones(C), np.ones(C)
    sum_C, squares_C = np.zeros(C), np.full(C, GUESSED * variance)
    for n, excess_C in enumerate(excess_NC):
        mean_C, deviation_C = sum_C / (GUESSED + n), np.sqrt(squares_C / (GUESSED + n))  # of what came before this bet
        density_C = np.interp(capital_C / aim, _SHARE, _DENSITY)
        stake_C = aim * density_C / np.maximum(deviation_C * np.sqrt(N - n), 1e-9)
        stake_C = np.minimum(stake_C, capital_C / max(most, 1e-9))
        capital_C = np.where(highest_C * delta >= 1, capital_C, capital_C - stake_C * excess_C)
        highest_C = np.maximum(highest_C, capital_C)
        squares_C += (excess_C - mean_C) ** 2
        sum_C += excess_C
    return np.asarray(1 / highest_C)


def fixed_sequence(p: Sequence[float], delta: float) -> int:
    """How many hypotheses, in the order fixed beforehand, may be rejected: up to the first p > delta. With probability at
    least 1 - delta none of them is true.
    """
    return next((i for i, value in enumerate(p) if value > delta), len(p))
