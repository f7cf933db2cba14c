"""Early restart: begin again where that is quicker than going on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from r2v.core.mlp import RiskMLP
from r2v.core.types import Context, Decision, Episode, Features, Memory
from r2v.maths import Floats
from r2v.routers.base import RouterBase, features_of
from r2v.routers.fit_data import FitData

THRESHOLDS = 101


@dataclass(frozen=True)
class Renewal:
    """An attempt that a detector may stop, with a fresh attempt after every stop or failure (arXiv 2301.10846). Times in
    steps, means over the episodes concerned.
    """

    p: float
    """Chance that an attempt that is not stopped succeeds."""
    solved: float
    failed: float
    """Length of an attempt that succeeds, and of one that fails."""
    tpr: float
    fpr: float
    """Share of the failing, and of the succeeding, attempts that the detector stops."""
    alarm_failed: float
    alarm_solved: float
    """When it stops them."""
    reset: float = 1.0
    """What a restart takes."""

    def time_to_success(self, stopping: bool = True) -> float:
        """Expected steps until an attempt succeeds; infinite where none can."""
        t, f = (self.tpr, self.fpr) if stopping else (0.0, 0.0)
        if self.p * (1 - f) <= 0:
            return float("inf")
        good = self.p * ((1 - f) * self.solved + f * self.alarm_solved)
        bad = (1 - self.p) * ((1 - t) * self.failed + t * self.alarm_failed)
        return (good + bad + self.reset) / (self.p * (1 - f))

    @property
    def pays(self) -> bool:
        return self.time_to_success() < self.time_to_success(stopping=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class Restart(RouterBase):
    """Begins again at the first alarm, if stopping pays by the renewal formula; later alarms escalate."""

    name: str = "restart"
    risk: RiskMLP
    measured: Annotated[tuple[tuple[float, Renewal], ...], Meta(min_length=1)]
    """What stopping at each of some thresholds does."""
    routes = frozenset({"continue", "restart", "escalate"})
    colour = "#332288"
    cites = "Early restart by renewal theory (arXiv 2301.10846)."

    @classmethod
    def fit(cls, data: FitData) -> Restart:
        scores = [np.array([data.risk.score(f) for f in features_of(e)]) for e in data.rollouts]
        thresholds = np.quantile(np.concatenate(scores), np.linspace(0, 1, THRESHOLDS))
        measured = tuple((float(t), renewal_at(data.rollouts, scores, float(t))) for t in thresholds)
        return cls(risk=data.risk, measured=measured, fitted_with=data.fitted_with)

    def score(self, features: Features) -> float:
        return self.risk.score(features)

    @property
    def renewal(self) -> Renewal:
        """What was measured at the threshold nearest to this one."""
        return min(self.measured, key=lambda entry: abs(entry[0] - self.point))[1]

    def rule(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        decision = super().rule(context, features, memory, seed=seed)
        if decision.route == "continue":
            return decision
        renewal, before = self.renewal, any(earlier.route == "restart" for earlier in memory.decisions)
        fits = context.horizon - context.t - renewal.reset >= renewal.solved
        if context.t and not before and fits and renewal.pays:
            return replace(decision, route="restart", reason=f"{decision.reason}; a fresh attempt is quicker")
        return decision


def renewal_at(episodes: Sequence[Episode], scores: Sequence[Floats], threshold: float) -> Renewal:
    """What stopping at this threshold would have done to SLM-only episodes; `scores` are those of their steps."""
    solved_N = np.array([bool(episode.success) for episode in episodes])
    length_N = np.array([len(row) for row in scores], dtype=float)
    alarm_N = np.array([next((t for t, s in enumerate(row) if s >= threshold), np.inf) for row in scores])
    stopped_N = np.isfinite(alarm_N)

    def mean(values_N: Floats, where_N: NDArray[np.bool_]) -> float:
        return float(values_N[where_N].mean()) if where_N.any() else 0.0

    return Renewal(
        p=float(solved_N.mean()),
        solved=mean(length_N, solved_N),
        failed=mean(length_N, ~solved_N),
        tpr=mean(stopped_N.astype(float), ~solved_N),
        fpr=mean(stopped_N.astype(float), solved_N),
        alarm_failed=mean(alarm_N, stopped_N & ~solved_N),
        alarm_solved=mean(alarm_N, stopped_N & solved_N),
    )
