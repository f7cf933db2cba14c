"""vLLM Semantic Router's session-aware rule: what a switch costs, and none inside of a tool loop."""

from __future__ import annotations

from dataclasses import dataclass

from r2v.core.types import Action, Context, Features
from r2v.routers.reading import Reading

MARGIN, HANDOFF, CACHE, DEAR = 0.05, 0.05, 0.20, 2.5
"""switch_margin, handoff_penalty, cache_weight, and max_cache_cost_multiplier, which a much dearer model reaches."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VLLMSRSession(Reading):
    """Hands over where the risk less the price of a switch is high: at the start, and where no tool is being called.

    Its base selectors judge a request; a reader of the risk takes their place. The first request pays no switch. Later the
    previous model is kept while tools are called; of an agent that calls one at each step only the start remains.
    """

    name: str = "vllm_sr_session"
    threshold: float | None = 0.5
    hands_over: bool = True
    routes = frozenset({"continue", "takeover"})
    colour = "#fdb515"
    cites = (
        "Session-aware routing of vLLM Semantic Router, tool_loop_hard_lock on "
        "(website/docs/tutorials/learning/session-aware.md)."
    )

    def reads(self, context: Context, action: Action) -> bool:
        return not (context.actions and context.actions[-1].tool_calls)

    def score_of(self, context: Context, action: Action, features: Features) -> float:
        """The risk; after the start less margin, handoff, and the cache by how much of the context it holds."""
        risk = super().score_of(context, action, features)
        if not context.t:
            return risk
        newest = len(context.actions[-1].text) + len(context.observations[-1])
        read = len(context.goal) + sum(map(len, context.observations)) + sum(len(a.text) for a in context.actions)
        return risk - MARGIN - HANDOFF - CACHE * DEAR * (1 - newest / max(1, read))
