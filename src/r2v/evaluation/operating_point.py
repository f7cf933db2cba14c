"""Which threshold, and which policy: chosen on validation tasks from what was really played (method, section 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from r2v.core.errors import StageError
from r2v.evaluation.curves import interval, resample_BT
from r2v.evaluation.outcomes import Outcomes
from r2v.evaluation.tail import failures, worst_mean, worst_p
from r2v.maths import Floats
from r2v.maths.testing import fixed_sequence

RESAMPLES = 2000
WORST_ALONE = 1e-9
"""The alpha with which CVaR looks at the worst group alone."""


class Rule(Protocol):
    """How operating points are chosen (`evaluate` in the settings of a run)."""

    @property
    def rule(self) -> str: ...
    @property
    def target(self) -> float: ...
    @property
    def kappa(self) -> float: ...
    @property
    def calls_per_episode(self) -> float: ...
    @property
    def share(self) -> float: ...
    @property
    def max_failure(self) -> float: ...
    @property
    def worst_group(self) -> float | None: ...
    @property
    def confidence(self) -> float: ...


@dataclass(frozen=True)
class Point:
    """One threshold and what it did on validation."""

    threshold: float
    outcomes: Outcomes
    met: bool = True
    """Whether it meets what the rule requires; the one that is taken where none does, does not."""

    @property
    def success(self) -> float:
        return float(self.outcomes.success_TZ.mean())

    @property
    def calls(self) -> float:
        """Teacher calls an episode."""
        return float(self.outcomes.teacher_calls_TZ.mean())


def choose(points: Sequence[Point], rule: Rule, teacher_success: float, alpha: float) -> Point:
    """The point that the rule picks.

    Args:
        points: the strictest first.
        teacher_success: that of the teacher alone on the same tasks.
        alpha: share of the groups that CVaR looks at.
    """
    if rule.rule == "target":
        return by_target(points, rule.target * teacher_success)
    if rule.rule == "cvar":
        return by_tail(points, rule, alpha)
    return by_cost(points, rule.kappa) if rule.rule == "cost" else by_budget(points, rule.calls_per_episode)


def in_words(rule: Rule, alpha: float) -> str:
    """What the rule requires."""
    if rule.rule == "cvar":
        worst = "" if rule.worst_group is None else f" and of at most {rule.worst_group:g} in the worst one"
        shown = f", shown at confidence {rule.confidence:g}" if rule.confidence else ""
        of_groups = f"in the worst {alpha:.4g} of the groups of episodes"
        return f"fewest teacher calls with a failure rate of at most {rule.max_failure:g} {of_groups}{worst}{shown}"
    return {
        "target": f"fewest teacher calls with at least {rule.target:.0%} of the teacher's success",
        "cost": f"least cost, a failed episode priced at {rule.kappa:g} teacher calls",
        "budget": f"best success with at most {rule.calls_per_episode:g} teacher calls an episode",
        "share": f"{rule.share:.0%} of the SLM's own steps escalated, nothing played",
    }[rule.rule]


def by_target(points: Sequence[Point], target: float) -> Point:
    """Fewest calls with success >= target; where no point reaches it, the best success (fewest calls among equals)."""
    good = [point for point in points if point.success >= target]
    if good:
        return min(good, key=lambda point: (point.calls, point.threshold))
    return replace(max(points, key=lambda point: (point.success, -point.calls)), met=False)


def by_tail(points: Sequence[Point], rule: Rule, alpha: float) -> Point:
    """Fewest calls with CVaR of failure (and the worst group's) within the bound; where no point is, the least CVaR (of
    equals the one that fails least).

    With a confidence the bounds are tested, from the point with the most calls on until the first that fails: the best of
    many estimates on few tasks looks better than it is.

    Args:
        points: the strictest first.
    """
    bounds = [(rule.max_failure, alpha), *([] if rule.worst_group is None else [(rule.worst_group, WORST_ALONE)])]
    if rule.confidence:
        delta, loosest_first = 1 - rule.confidence, points[::-1]
        each = [worst_p([failures(point.outcomes, b) for point in loosest_first], a, delta) for b, a in bounds]
        good: Sequence[Point] = loosest_first[: fixed_sequence([max(p) for p in zip(*each, strict=True)], delta)]
    else:
        good = [point for point in points if all(worst_mean(failures(point.outcomes, b), a) <= 0 for b, a in bounds)]
    if good:
        return min(good, key=lambda point: (point.calls, point.threshold))

    def badness(point: Point) -> tuple[float, float, float]:
        return worst_mean(failures(point.outcomes, 0), alpha), -point.success, point.calls

    return replace(min(points, key=badness), met=False)


def by_cost(points: Sequence[Point], kappa: float) -> Point:
    """Least expected cost, a failed episode priced at `kappa` teacher calls."""
    return min(points, key=lambda point: (point.calls + kappa * (1 - point.success), point.threshold))


def by_budget(points: Sequence[Point], calls_per_episode: float) -> Point:
    """Best success with at most so many calls an episode. Raises StageError where no point is that cheap."""
    affordable = [point for point in points if point.calls <= calls_per_episode]
    if not affordable:
        least = min(point.calls for point in points)
        raise StageError(
            f"no threshold keeps to {calls_per_episode} teacher calls an episode (least: {least:.2f}); "
            "raise evaluate.calls_per_episode or add smaller evaluate.asked_shares"
        )
    return max(affordable, key=lambda point: (point.success, -point.calls))


def better_policy(clone_T: Floats, prefer_T: Floats, *, seed: int) -> dict[str, Any]:
    """Which of two trained SLMs is kept, from their success on each validation task; a tie keeps the simpler policy."""
    weights_BT = resample_BT(len(clone_T), RESAMPLES, seed)
    return {
        "kept": "prefer" if prefer_T.mean() > clone_T.mean() else "clone",
        "clone": float(clone_T.mean()),
        "prefer": float(prefer_T.mean()),
        "difference_ci95": interval(np.asarray(weights_BT @ (prefer_T - clone_T))),
        "tasks": len(clone_T),
    }
