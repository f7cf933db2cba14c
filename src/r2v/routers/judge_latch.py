"""Judge, confirm, latch: turn-level routing by a boolean judge."""

from __future__ import annotations

from dataclasses import dataclass, replace

from r2v.core.types import Context, Decision, Features, Memory
from r2v.routers.base import compare
from r2v.routers.verifier import VerifierRouter


@dataclass(frozen=True, kw_only=True, eq=False)
class JudgeLatch(VerifierRouter):
    """Hands the episode to the teacher once a judge objects to two steps in a row.

    The judge is the verifier: it objects where 1 - the best verifier score reaches the threshold.
    """

    name: str = "judge_latch"
    routes = frozenset({"continue", "takeover"})
    colour = "#882255"
    cites = (
        "The escalation route of NVIDIA Switchyard, 2 confirmations (docs/routing_algorithms/escalation_router_routing.md)."
    )

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        doubt, threshold = self.score(features), self.point
        objects = (float(doubt >= threshold),)
        decision = compare("doubt", "verifier_doubt", doubt, threshold, above="takeover", state=objects)
        objected = bool(memory.decisions) and memory.decisions[-1].state == (1.0,)
        if decision.route == "continue" or objected:
            return decision
        return replace(decision, route="continue", code="risk_below", reason=f"{decision.reason}; once is not enough")
