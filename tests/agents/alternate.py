"""A third-party router for the matrix of agents: the models take turns, as long as the session is one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from r2v.core.types import Context, Decision, Features, Memory
from r2v.routers.base import RouterBase, compare


@dataclass(frozen=True, kw_only=True, eq=False)
class Alternating(RouterBase):
    """SLM, teacher, SLM, teacher, SLM. It doubts every step, so that the next one is never streamed before it is decided."""

    name: str = "alternating"
    threshold: float | None = 0.5
    kind = "custom"

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        slm_was_last = bool(memory.decisions) and memory.decisions[-1].route == "continue"
        decision = compare(self.name, "custom", float(slm_was_last), self.point)
        return replace(decision, score=1.0)
