"""Which threshold: chosen on validation tasks from points that were really played (method, section 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from r2v.core.errors import StageError
from r2v.evaluation.outcomes import Outcomes


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
