"""The advisor pattern: a few short questions to the strong model in the place of a takeover."""

from __future__ import annotations

from dataclasses import dataclass

from r2v.core.types import Context, Decision, Features, Memory
from r2v.routers.rivals.rule import SessionRule
from r2v.routers.rivals.signals import finishes, latest, stuck

WINDOW, REPEATED = 6, 3
"""It is stuck as `litellm_stall` sees it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Advisor(SessionRule):
    """Escalates one step where the SLM would end, is stuck or has asked nothing for long; 3 times a session at most.

    An advisor answers with words, and the SLM acts on them. Recorded sessions cannot show that, so a question is one step
    of the strong model here.
    """

    name: str = "advisor"
    threshold: float | None = 1.0
    questions: int = 3
    """Most a session."""
    results: int = 3
    """Results before an end is worth a question."""
    turns: int = 30
    """Steps without a question after which one is asked in any case."""
    fixed = True
    colour = "#aa6f9e"
    cites = (
        "The advisor route of NVIDIA Switchyard as tuned for coding (docs/routing_algorithms/advisor_gate_routing.md), and "
        "Anthropic's advisor tool (platform.claude.com/docs/en/agents-and-tools/tool-use/advisor-tool)."
    )

    def signal(self, context: Context) -> float:
        """1 where the SLM would end or is stuck."""
        ends = finishes(context) and len(latest(context, self.results)) >= self.results
        return float(ends or stuck(context, WINDOW) >= REPEATED)

    def rule(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        asked = sum(decision.route == "escalate" for decision in memory.decisions)
        if asked >= self.questions:
            return Decision(
                "continue", "budget_exhausted", None, None, self.point, 1.0, (), f"{asked} questions have been asked"
            )
        if not asked and len(memory.decisions) >= self.turns:
            return Decision(
                "escalate", "scheduled", None, None, self.point, 1.0, (), f"{self.turns} steps without a question"
            )
        return super().rule(context, features, memory, seed=seed)
