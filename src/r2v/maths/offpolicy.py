"""The value of one intervention from logs in which it was drawn at random with a logged probability. Pure functions.

A step's benefit is P(success | intervention now, then none) - P(success | none from now on). One row a step: was an
intervention drawn (a_N), with which probability (e_N), what became of the episode (success_N), and the probability that the
rest of the episode drew no intervention where it had none (rest_N; 0 where it had some: such rows carry no information on
the benefit).
"""

from __future__ import annotations

import numpy as np

from r2v.maths import Floats


def ips_N(a_N: Floats, e_N: Floats, success_N: Floats, rest_N: Floats) -> Floats:
    """Inverse-propensity estimate of each row's benefit; unbiased, with much variance. Its mean is the estimate."""
    return doubly_robust_N(a_N, e_N, success_N, rest_N, np.zeros_like(e_N), np.zeros_like(e_N))


def doubly_robust_N(
    a_N: Floats, e_N: Floats, success_N: Floats, rest_N: Floats, helped_N: Floats, alone_N: Floats
) -> Floats:
    """The same around predictions of both outcomes: unbiased whatever they are, less variance the better they are.

    Raises ValueError where a probability is not inside (0, 1): then one of the two outcomes was never tried.
    """
    if not ((e_N > 0) & (e_N < 1)).all():
        raise ValueError(
            "an intervention was certain or impossible on some step; its benefit cannot be estimated from this log"
        )
    weight_N = np.divide(1.0, rest_N, out=np.zeros_like(rest_N), where=rest_N > 0)
    gain_N = a_N / e_N * (weight_N * (success_N - helped_N))
    loss_N = (1 - a_N) / (1 - e_N) * (weight_N * (success_N - alone_N))
    return helped_N - alone_N + gain_N - loss_N
