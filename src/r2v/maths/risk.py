"""Risk measures. Pure functions."""

from __future__ import annotations

import math

import numpy as np

from r2v.maths import Floats


def cvar(risk_Z: Floats, alpha: float) -> float:
    """Mean of the worst ceil(alpha Z) of Z group risks (R2V paper, section 4; method, section 7).

    Raises ValueError for fewer than two groups (CVaR would silently be the mean) and for alpha outside (0, 1].
    """
    if len(risk_Z) < 2:
        raise ValueError(f"CVaR needs at least two groups, got {len(risk_Z)}")
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be in (0, 1], got {alpha}")
    worst = math.ceil(alpha * len(risk_Z) - 1e-12)
    return float(np.sort(risk_Z)[-worst:].mean())
