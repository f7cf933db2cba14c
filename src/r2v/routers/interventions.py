"""One alarm, several answers: the routes between going on and handing the episode over (method, section 11)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from r2v.core.types import Context, Decision, Features, Memory, Route
from r2v.routers.threshold import Score, compare

How = Literal["retry", "escalate", "escalate_3", "takeover", "restart", "rewind"]
HOW: tuple[How, ...] = get_args(How)
"""Draw again and take the best of both draws; the teacher for this step; for three steps; to the end; the SLM from the start
again; the teacher from the start."""
BURST = 3


@dataclass(frozen=True)
class Intervention:
    """Does `how` where the score reaches the threshold. Restarts and rewinds happen once an episode; after a restart the
    teacher takes the step at an alarm, after a rewind it keeps the episode.
    """

    score: Score
    threshold: float
    how: How
    name: str

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        routes = [decision.route for decision in memory.decisions]
        if self.how == "rewind" and routes and routes[-1] == "restart":
            return Decision(
                "takeover", "latch", None, None, self.threshold, 1.0, (), "went back to the start for the teacher"
            )
        if self.how == "escalate_3" and 0 < self._burst(memory) < BURST:
            return Decision("escalate", "hold", None, None, self.threshold, 1.0, (), f"one of {BURST} steps of the teacher")
        risk = self.score(features)
        alarm = risk >= self.threshold
        if not alarm or (self.how == "retry" and memory.retries):
            reason = f"risk {risk:.3f}, threshold {self.threshold:.3f}"
            return Decision("continue", "risk_below", risk, "risk", self.threshold, 1.0, (), reason)
        route: Route = "escalate"
        if self.how in ("retry", "takeover"):
            route = self.how
        elif self.how in ("restart", "rewind") and "restart" not in routes and context.t:
            route = "restart"
        elif self.how == "rewind":
            route = "takeover"
        return compare("risk", "risk", risk, self.threshold, above=route)

    @staticmethod
    def _burst(memory: Memory) -> int:
        """Teacher steps since the last alarm that began a burst."""
        for length, decision in enumerate(reversed(memory.decisions), start=1):
            if decision.route != "escalate":
                return 0
            if decision.code != "hold":
                return length
        return 0
