"""Every router with a knob: a score of the step's features, compared with a threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from r2v.protocols import Router
from r2v.types import Context, Decision, Features, Memory

Score = Callable[[Features], float]


@dataclass(frozen=True)
class ThresholdRouter:
    """Asks the teacher iff score >= threshold (`r2v.protocols.Router`)."""

    name: str
    score: Score
    threshold: float

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        risk = self.score(features)
        if risk >= self.threshold:
            return Decision("teacher_step", risk, self.threshold, 1.0, f"{self.name} {risk:.3f} >= {self.threshold:.3f}")
        return Decision("continue", risk, self.threshold, 1.0, f"{self.name} {risk:.3f} < {self.threshold:.3f}")


@dataclass(frozen=True)
class Budgeted:
    """A hard limit around any router: no call once `Memory.calls_left` is 0."""

    router: Router

    @property
    def name(self) -> str:
        return self.router.name

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        decision = self.router.decide(context, features, memory, seed=seed)
        if decision.rung == "continue" or memory.calls_left is None or memory.calls_left > 0:
            return decision
        return Decision("continue", decision.risk, decision.threshold, 1.0, f"{decision.reason}, but no calls are left")
