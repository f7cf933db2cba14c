"""Switchyard's stage rule: tool results and what kinds of calls were made lately."""

from __future__ import annotations

import math
from dataclasses import dataclass

from r2v.core.types import Context
from r2v.routers.rivals.rule import SessionRule
from r2v.routers.rivals.signals import CRITICAL, HARD, kind, latest, severity

DEEP = 8
"""Messages from which on a session that writes nothing stalls; before that it explores."""
UNIT, GAIN = 0.10, 5.0
"""Weight of each signal, and of their sum inside of tanh."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SwitchyardStage(SessionRule):
    """Escalates a step where calls failed lately and nothing is written; one full signal alone scores .46, below .5."""

    name: str = "switchyard_stage"
    threshold: float | None = 0.5
    window: int = 3
    """Newest calls that count."""
    colour = "#76b900"
    cites = "The stage route of NVIDIA Switchyard, picker efficient_first (docs/routing_algorithms/stage_router_routing.md)."

    def signal(self, context: Context) -> float:
        """tanh(5 x .1 x (severity / .7 + spinning + exploring - production)); 1 after a critical error."""
        calls = latest(context, self.window)
        worst = max((severity(result) for _, result in calls), default=0.0)
        if worst == CRITICAL:
            return 1.0
        kinds = [kind(action) for action, _ in calls]
        known = len(kinds) - kinds.count("other")
        production = kinds.count("write") / known if known else 0.0
        messages = 1 + 2 * context.t
        stalls = bool(calls) and messages >= DEEP and not production  # spinning without reads and plans, else exploring
        return math.tanh(GAIN * UNIT * (worst / HARD + stalls - production))
