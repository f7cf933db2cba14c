"""Routers that are fitted on nothing: the two ends of every curve, and what rollouts and branches are played with."""

from __future__ import annotations

from dataclasses import dataclass, replace

from r2v.core.protocols import Router
from r2v.core.types import Code, Context, Decision, Features, Memory, Route


def _fixed(route: Route, code: Code, reason: str) -> Decision:
    return Decision(route, code, None, None, None, 1.0, (), reason)


@dataclass(frozen=True)
class Never:
    """The SLM alone."""

    name: str = "slm_only"

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        return _fixed("continue", "never", "never escalates")


@dataclass(frozen=True)
class Always:
    """The teacher at every step, beside the SLM's candidates."""

    name: str = "llm_only"

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        return _fixed("escalate", "always", "always escalates")


@dataclass(frozen=True)
class Redraw:
    """The SLM alone, with a second draw of candidates at every step."""

    name: str = "redraw"

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        return _fixed("continue", "scheduled", "drew twice") if memory.retries else _fixed("retry", "retry", "draws twice")


@dataclass(frozen=True)
class AtSteps:
    """Escalates exactly at these steps: one future of a branched episode."""

    steps: frozenset[int]
    name: str = "at_steps"

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        route: Route = "escalate" if context.t in self.steps else "continue"
        return _fixed(route, "scheduled", "this branch escalates at fixed steps")


@dataclass(frozen=True)
class Directed:
    """Another router's decisions, with another model of the pool in the teacher's place."""

    router: Router
    model: str

    @property
    def name(self) -> str:
        return self.router.name

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        decision = self.router.decide(context, features, memory, seed=seed)
        return replace(decision, model=self.model)
