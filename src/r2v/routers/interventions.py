"""One alarm, several answers: the rungs of the ladder between going on and handing the episode over (method, section 11)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from r2v.routers.threshold import Score
from r2v.types import Context, Decision, Features, Memory, Rung

How = Literal["retry", "teacher_step", "teacher_3", "teacher_latch", "restart", "rewind"]
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
        rungs = [decision.rung for decision in memory.decisions]
        if self.how == "rewind" and rungs and rungs[-1] == "restart":
            return Decision("teacher_latch", None, self.threshold, 1.0, "went back to the start for the teacher")
        if self.how == "teacher_3" and 0 < self._burst(memory) < BURST:
            return Decision("teacher_step", None, self.threshold, 1.0, f"one of {BURST} steps of the teacher")
        risk = self.score(features)
        alarm = risk >= self.threshold
        if not alarm or (self.how == "retry" and memory.retries):
            return Decision("continue", risk, self.threshold, 1.0, f"risk {risk:.3f}, threshold {self.threshold:.3f}")
        rung: Rung = "teacher_step"
        if self.how in ("retry", "teacher_latch"):
            rung = self.how
        elif self.how in ("restart", "rewind") and "restart" not in rungs and context.t:
            rung = "restart"
        elif self.how == "rewind":
            rung = "teacher_latch"
        return Decision(rung, risk, self.threshold, 1.0, f"risk {risk:.3f} >= {self.threshold:.3f}")

    @staticmethod
    def _burst(memory: Memory) -> int:
        """Teacher steps since the last alarm that began a burst."""
        for length, decision in enumerate(reversed(memory.decisions), start=1):
            if decision.rung != "teacher_step":
                return 0
            if decision.risk is not None:
                return length
        return 0
