"""LiteLLM's stall escalation: a loop of equal or failing calls."""

from __future__ import annotations

from dataclasses import dataclass

from r2v.core.types import Context
from r2v.routers.rivals.rule import SessionRule
from r2v.routers.rivals.signals import stuck


@dataclass(frozen=True, kw_only=True, eq=False)
class LiteLLMStall(SessionRule):
    """Escalates a step while the newest call was made 3 times among the last 6, or failed as 3 of them did."""

    name: str = "litellm_stall"
    threshold: float | None = 3.0
    window: int = 6
    """Newest calls that count."""
    fixed = True
    colour = "#4b9cd3"
    cites = (
        "LiteLLM's auto-router, stall_escalation_window 6 and stall_escalation_repeat_threshold 3 "
        "(docs.litellm.ai/blog/auto-router-stall-escalation)."
    )

    def signal(self, context: Context) -> float:
        return float(stuck(context, self.window))
