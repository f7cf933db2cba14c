"""Every router with a threshold: a score of the step's features, compared with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from r2v.core.protocols import Router
from r2v.core.types import Code, Context, Decision, Features, Memory, Route, ScoreKind

Score = Callable[[Features], float]


def compare(
    name: str,
    kind: ScoreKind,
    score: float,
    threshold: float,
    *,
    above: Route = "escalate",
    state: tuple[float, ...] = (),
    why: str = "",
) -> Decision:
    """`above` where the score is at least the threshold, else `continue`.

    Args:
        name: what the reason calls the score.
        kind: what the score estimates.
        state: what the router wants to read at its next step.
        why: added to the reason.
    """
    reached = score >= threshold
    reason = f"{name} {score:.3f} {'>=' if reached else '<'} {threshold:.3f}{why}"
    if not reached:
        return Decision("continue", "risk_below", score, kind, threshold, 1.0, state, reason)
    code: Code = "retry" if above == "retry" else "risk_above"
    return Decision(above, code, score, kind, threshold, 1.0, state, reason)


@dataclass(frozen=True)
class ThresholdRouter:
    """Escalates iff score >= threshold (`r2v.core.protocols.Router`)."""

    name: str
    score: Score
    threshold: float
    kind: ScoreKind = "risk"

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        return compare(self.name, self.kind, self.score(features), self.threshold)


@dataclass(frozen=True)
class Budgeted:
    """A hard limit around any router: no call once `Memory.calls_left` is 0."""

    router: Router

    @property
    def name(self) -> str:
        return self.router.name

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        decision = self.router.decide(context, features, memory, seed=seed)
        if decision.route == "continue" or memory.calls_left is None or memory.calls_left > 0:
            return decision
        reason = f"{decision.reason}, but no calls are left"
        return replace(decision, route="continue", code="budget_exhausted", propensity=1.0, reason=reason)
