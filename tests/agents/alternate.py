"""Third-party routers for the matrix of agents: they escalate by the number of the step, so that the models take turns."""

from __future__ import annotations

from dataclasses import dataclass

from r2v.core.types import Context, Decision, Features, Memory
from r2v.routers.base import RouterBase
from r2v.routers.threshold import compare


@dataclass(frozen=True, kw_only=True, eq=False)
class Alternating(RouterBase):
    """SLM, teacher, SLM, teacher, SLM."""

    name: str = "alternating"
    threshold: float | None = 0.5
    kind = "custom"
    escalates = (1,)
    """Steps, modulo `period`."""
    period = 2

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        return compare(self.name, "custom", float(context.t % self.period in self.escalates), self.point)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs(Alternating):
    """Wants the teacher at two steps of four: a stream that is passed through early is escalated one step late."""

    name: str = "pairs"
    escalates = (1, 2)
    period = 4
