"""Plano's routing budget: a switch of models is made only if the session can afford the cache that it loses."""

from __future__ import annotations

from dataclasses import dataclass, replace

from r2v.core.types import Context, Decision, Features, Memory, Route
from r2v.routers.reading import Reading


@dataclass(frozen=True, kw_only=True, eq=False)
class PlanoPrice(Reading):
    """Escalates a risky step unless switches would then cost more than 20 % of what staying would have cost.

    A model that proposes a route each turn is the source's; a reader of the risk takes its place. Money is in prices of one
    character read by the SLM. A session's first step has no cache to lose; a switch that saves money is free.
    """

    name: str = "plano_price"
    threshold: float | None = 0.5
    share: float = 0.2
    """max_switch_spend_pct."""
    ratio: float = 10.0
    """What the strong model asks for a character, the SLM's being 1."""
    cached: float = 0.1
    """cache_read_discount: what a model asks for a character that it has read before, against a new one."""
    routes = frozenset({"continue", "escalate"})
    colour = "#7780d9"
    cites = "The routing budget of Plano (katanemo/plano, demos/llm_routing/routing_budget/GUIDE.md)."

    def rule(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        """State: spent on switches; what staying cost; characters that the SLM and the strong model know; price of the model
        in use, 0 before the first step.
        """
        wanted = super().rule(context, features, memory, seed=seed)
        spent, stayed, *known, used = memory.decisions[-1].state if memory.decisions else (0.0,) * 5
        read = float(len(context.goal) + sum(map(len, context.observations)) + sum(len(a.text) for a in context.actions))
        prices = (1.0, self.ratio)
        costs = [p * (read - (1 - self.cached) * min(k, read)) for p, k in zip(prices, known, strict=True)]
        now, then = int(used == self.ratio), int(wanted.route != "continue")
        switch = max(0.0, costs[then] - costs[now]) if used and then != now else 0.0
        stayed += costs[now] if used else 0.0
        vetoed = switch > 0 and spent + switch > self.share * stayed
        if vetoed:
            switch, then = 0.0, now
        known[then] = read
        state = (spent + switch, stayed, *known, prices[then])
        if not vetoed:
            return replace(wanted, state=state)
        route: Route = "escalate" if then else "continue"
        reason = f"{wanted.reason}; over the budget of switches, so the model stays"
        return replace(wanted, route=route, code="switch_cost", state=state, reason=reason)
