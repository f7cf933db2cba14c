"""lemonade's stall and hedge: the SLM tries, and where it has produced nothing the strong model takes the task."""

from __future__ import annotations

from dataclasses import dataclass

from r2v.core.types import Context
from r2v.routers.rivals.rule import SessionRule
from r2v.routers.rivals.signals import finishes, kind

EMPTY = 50.0
"""Steps that ending with nothing written counts as: more than a session waits for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LemonadeStall(SessionRule):
    """Hands over after so many steps in which nothing was written, and where the SLM would end with nothing written.

    The source counts minutes, which records do not have; that 8 steps take their place is ours.
    """

    name: str = "lemonade_stall"
    threshold: float | None = 8.0
    routes = frozenset({"continue", "takeover"})
    colour = "#e6c619"
    cites = "lemonade's study of agentic coding (github.com/lemonade-sdk/lemonade/issues/3086)."

    def signal(self, context: Context) -> float:
        """Steps so far, if nothing was written in them."""
        if any(kind(action) == "write" for action in context.actions):
            return 0.0
        return max(float(context.t), EMPTY if finishes(context) else 0.0)
