"""Success against calls: one curve a router, the area under it, success at equal calls, and paired intervals over tasks.

Axes: P points of a curve, T tasks, B bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from r2v.evaluation.outcomes import Outcomes
from r2v.maths import Floats


def resample_BT(tasks: int, resamples: int, seed: int) -> Floats:
    """Bootstrap weights: how often each task was drawn, divided by the number of tasks. Row 0 is the sample itself.

    Tasks are the exchangeable unit: the episodes of one task are not independent. The same weights for every router make
    the comparison paired.
    """
    rng = np.random.default_rng(seed)
    drawn_BT = rng.multinomial(tasks, np.full(tasks, 1 / tasks), size=resamples)
    return np.vstack([np.ones(tasks), drawn_BT]) / tasks


def area_B(points: Sequence[Outcomes], weights_BT: Floats, first: Outcomes | None = None) -> Floats:
    """Area under success against call rate over [0, 1] for each resample, by the trapezoid rule.

    `points` must hold the SLM alone (call rate 0) and the teacher alone (call rate 1); between points the router may mix
    its two neighbours episode by episode, which is the straight line. Where calls are limited, `first` is one of the points
    in the teacher's place: the area is over [0, its call rate], which is the same for all routers, and divided by that.
    """
    rate_BP, success_BP = _curve_BP(points, weights_BT, rate=True)
    if first is None:
        return np.asarray(np.trapezoid(success_BP, rate_BP, axis=1))
    end_B = weights_BT @ first.call_rate_T
    under_B = np.trapezoid(success_BP, np.minimum(rate_BP, end_B[:, None]), axis=1)
    return np.divide(under_B, end_B, out=success_BP[:, 0].copy(), where=end_B > 0)


def success_at_B(points: Sequence[Outcomes], calls: float, weights_BT: Floats, *, rate: bool = False) -> Floats:
    """Success with so many teacher calls an episode on average, for each resample: the mixture of the two points on either
    side, one of which is drawn for each episode. `points` as for `area_B`; `rate`: `calls` is a share of the steps.
    """
    calls_BP, success_BP = _curve_BP(points, weights_BT, rate=rate)
    return np.array([np.interp(calls, x_P, y_P) for x_P, y_P in zip(calls_BP, success_BP, strict=True)])


def calls_at_B(points: Sequence[Outcomes], success_B: Floats, weights_BT: Floats) -> Floats:
    """Fewest teacher calls an episode with which the curve has this success, for each resample; inf where it never has.

    The curve is that of `success_at_B`: straight lines between neighbouring points, from the first on.

    Args:
        points: as for `area_B`.
        success_B: what is wanted in each resample: a share of the teacher's success in the same one.
        weights_BT: of `resample_BT`.
    """
    x_BP, y_BP = _curve_BP(points, weights_BT)
    reached_BP = y_BP >= success_B[:, None] - 1e-12
    after_B = reached_BP.argmax(axis=1)
    rows_B, before_B = np.arange(len(x_BP)), np.maximum(after_B - 1, 0)
    x_B, y_B = x_BP[rows_B, before_B], y_BP[rows_B, before_B]
    rise_B = y_BP[rows_B, after_B] - y_B
    share_B = np.divide(success_B - y_B, rise_B, out=np.ones_like(y_B), where=rise_B > 0)
    found_B = x_B + np.clip(share_B, 0.0, 1.0) * (x_BP[rows_B, after_B] - x_B)
    return np.where(reached_BP.any(axis=1), found_B, np.inf)


def calls_at(points: Sequence[tuple[float, float]], success: float) -> float | None:
    """The same of one curve: (calls an episode, success) of each point; None where it never has this success."""
    before: tuple[float, float] | None = None
    for x, y in sorted(points):
        if y >= success - 1e-12:
            return x if before is None else before[0] + (success - before[1]) / (y - before[1]) * (x - before[0])
        before = x, y
    return None


def _curve_BP(points: Sequence[Outcomes], weights_BT: Floats, *, rate: bool = False) -> tuple[Floats, Floats]:
    """(teacher calls an episode, or a step; success) of each point, by rising calls."""
    calls_BP = weights_BT @ np.stack([point.call_rate_T if rate else point.calls_T for point in points], axis=1)
    success_BP = weights_BT @ np.stack([point.success_T for point in points], axis=1)
    order_BP = np.argsort(calls_BP, axis=1, kind="stable")
    return np.take_along_axis(calls_BP, order_BP, 1), np.take_along_axis(success_BP, order_BP, 1)


def interval(values_B: Floats) -> list[float]:
    """95 % percentile interval of the resamples (row 0, the sample itself, left out)."""
    low, high = np.quantile(values_B[1:], [0.025, 0.975])
    return [float(low), float(high)]


def open_interval(values_B: Floats) -> list[float | None]:
    """`interval` of values that may be infinite: an end that is not finite is None. A value that is not known (NaN) may lie
    beyond either end; where that of the sample itself is not known, neither end is.
    """
    if np.isnan(values_B[0]):
        return [None, None]
    with np.errstate(invalid="ignore"):  # between two infinite neighbours
        ends = [
            np.quantile(np.where(np.isnan(values_B[1:]), beyond, values_B[1:]), share)
            for beyond, share in ((-np.inf, 0.025), (np.inf, 0.975))
        ]
    return [float(end) if np.isfinite(end) else None for end in ends]


def curve(points: Sequence[Outcomes]) -> list[list[float]]:
    """[[call rate, success rate], ...] by rising call rate."""
    return sorted([float(p.call_rate_T.mean()), float(p.success_T.mean())] for p in points)
