"""What rules of other systems share: a number read off the session, compared with a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from r2v.core.features import proposing
from r2v.core.types import Context, Decision, Episode, Features, Memory, Route
from r2v.routers.base import RouterBase, compare, quantiles

SHOWN = 1e-9
"""Least signal that escalates, whatever the threshold: 0 is that nothing was seen."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SessionRule(RouterBase):
    """Escalates where `signal` reaches the threshold, which is by default that of the system it is from."""

    kind = "heuristic"
    fixed: ClassVar[bool] = False
    """There is no other operating point than that default."""

    def signal(self, context: Context) -> float:
        """What is compared with the threshold."""
        raise NotImplementedError(f"router {self.name} reads nothing of a session")

    def thresholds(self, validation: Sequence[Episode], shares: Sequence[float]) -> list[float]:
        if self.fixed:
            return [self.point]
        signals = [
            self.signal(proposing(context, step.choice.candidates, step.choice.scores))
            for episode in validation
            for context, step in zip(episode.contexts(1), episode.steps, strict=True)
            if step.choice.candidates
        ]
        return quantiles(signals, shares)

    def rule(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        above: Route = "escalate" if "escalate" in self.routes else "takeover"
        return compare(self.name, "heuristic", self.signal(context), max(self.point, SHOWN), above=above)
