"""Which threshold, and which policy: chosen on validation tasks from what was really played (method, section 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from r2v.core.errors import StageError
from r2v.evaluation.curves import interval, resample_BT
from r2v.evaluation.outcomes import Outcomes
from r2v.maths import Floats

RESAMPLES = 2000


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


@dataclass(frozen=True)
class Point:
    """One threshold and what it did on validation."""

    threshold: float
    outcomes: Outcomes

    @property
    def success(self) -> float:
        return float(self.outcomes.success_TZ.mean())

    @property
    def calls(self) -> float:
        """Teacher calls an episode."""
        return float(self.outcomes.teacher_calls_TZ.mean())


def choose(points: Sequence[Point], rule: Rule, teacher_success: float) -> Point:
    """The point that the rule picks; `teacher_success` is that of the teacher alone on the same tasks."""
    if rule.rule == "target":
        return by_target(points, rule.target * teacher_success)
    return by_cost(points, rule.kappa) if rule.rule == "cost" else by_budget(points, rule.calls_per_episode)


def in_words(rule: Rule) -> str:
    """What the rule requires."""
    return {
        "target": f"fewest teacher calls with at least {rule.target:.0%} of the teacher's success",
        "cost": f"least cost, a failed episode priced at {rule.kappa:g} teacher calls",
        "budget": f"best success with at most {rule.calls_per_episode:g} teacher calls an episode",
    }[rule.rule]


def by_target(points: Sequence[Point], target: float) -> Point:
    """Fewest calls with success >= target; where no point reaches it, the best success (fewest calls among equals)."""
    good = [point for point in points if point.success >= target]
    if good:
        return min(good, key=lambda point: (point.calls, point.threshold))
    return max(points, key=lambda point: (point.success, -point.calls))


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
