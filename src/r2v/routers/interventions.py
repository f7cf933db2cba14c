"""One alarm, several answers: the routes between going on and handing the episode over (method, section 11)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from r2v.core.mlp import RiskMLP
from r2v.core.types import Context, Decision, Features, Memory, Route
from r2v.routers.base import RouterBase, compare

How = Literal["retry", "escalate", "escalate_3", "takeover", "restart", "rewind"]
HOW: tuple[How, ...] = get_args(How)
"""Draw again and take the best of both draws; the teacher for this step; for three steps; to the end; the SLM from the start
again; the teacher from the start."""
BURST = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Intervention(RouterBase):
    """Answers an alarm of the risk in one of several ways.

    Restarts and rewinds happen once an episode; after a restart the teacher takes the step at an alarm, after a rewind it
    keeps the episode.
    """

    risk: RiskMLP
    how: How
    routes = frozenset(get_args(Route))

    def score(self, features: Features) -> float:
        return self.risk.score(features)

    def rule(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        threshold, before = self.point, [decision.route for decision in memory.decisions]
        if self.how == "rewind" and before and before[-1] == "restart":
            return Decision("takeover", "latch", None, None, threshold, 1.0, (), "the teacher plays from the start")
        if self.how == "escalate_3" and 0 < self._burst(memory) < BURST:
            reason = f"one of {BURST} steps of the teacher"
            return Decision("escalate", "hold", None, None, threshold, 1.0, (), reason)
        risk = self.score(features)
        if self.how == "retry" and memory.retries:
            return Decision("continue", "risk_below", risk, "risk", threshold, 1.0, (), "drew again")
        route: Route = "escalate"
        if self.how in ("retry", "takeover"):
            route = self.how
        elif self.how in ("restart", "rewind") and "restart" not in before and context.t:
            route = "restart"
        elif self.how == "rewind":
            route = "takeover"
        return compare("risk", "risk", risk, threshold, above=route)

    @staticmethod
    def _burst(memory: Memory) -> int:
        """Teacher steps since the last alarm that began a burst."""
        for length, decision in enumerate(reversed(memory.decisions), start=1):
            if decision.route != "escalate":
                return 0
            if decision.code != "hold":
                return length
        return 0
