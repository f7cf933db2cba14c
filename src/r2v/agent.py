"""Who acts, and the one decision path (Algorithm 2 of the R2V paper). The loop is in `r2v.loop`.

Collection, SLM rollouts, evaluation and gateway differ only in which `Agent` they hand to the same code:

    Solo(teacher)                       collect
    Noisy(Solo(teacher))                collect, with label-masked mistakes to recover from
    Routed(slm, teacher, ..., Never())  rollouts of the deployed SLM
    Routed(slm, teacher, ..., router)   evaluation, production
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from r2v.errors import boundary
from r2v.features import best, featurise
from r2v.protocols import Agent, Policy, Router, Verifier
from r2v.seeds import derive_seed, derive_uniform
from r2v.types import Action, Candidate, Choice, Context, Features, Memory, Usage

NO_USAGE = Usage()


@dataclass(frozen=True)
class Solo:
    """An agent that always acts with the first proposal of one policy."""

    policy: Policy
    actor: Literal["slm", "teacher"]

    @property
    def name(self) -> str:
        return self.policy.name

    async def act(self, context: Context, memory: Memory, *, seed: int) -> tuple[Choice, Memory]:
        with boundary(self.actor):
            candidates = await self.policy.propose(context, 1, seed=derive_seed(seed, self.actor))
        usage = candidates[0].usage
        slm, teacher = (usage, NO_USAGE) if self.actor == "slm" else (NO_USAGE, usage)
        return Choice(candidates[0].action, self.actor, candidates, (), None, None, slm, teacher), memory


@dataclass(frozen=True)
class Noisy:
    """Replaces a share of another agent's actions by random ones, so that its recoveries can be learned from.

    The replaced choice keeps its usage and is marked with the actor "noise"; training puts no loss on it.
    """

    agent: Agent
    rate: float
    """Probability that an action is replaced."""
    draw: Callable[[Context, int], Action]
    """A random action from what the agent may know (context, seed)."""

    @property
    def name(self) -> str:
        return f"{self.agent.name}+noise"

    async def act(self, context: Context, memory: Memory, *, seed: int) -> tuple[Choice, Memory]:
        choice, memory = await self.agent.act(context, memory, seed=seed)
        if derive_uniform(seed, "noise?") >= self.rate:
            return choice, memory
        return replace(choice, action=self.draw(context, derive_seed(seed, "noise")), actor="noise"), memory


@dataclass(frozen=True, eq=False)
class Parts:
    """What a routed agent is made of besides its router. Agents that hold the same object see and hear the same."""

    slm: Policy
    teacher: Policy
    verifier: Verifier
    k: int
    """Candidates drawn from the SLM at each step."""


class Moment:
    """One context as one set of parts sees it. Nothing is asked twice, however many routers decide on it."""

    def __init__(self, parts: Parts, context: Context, *, seed: int) -> None:
        self._parts, self._context, self.seed = parts, context, seed
        self._seen: tuple[tuple[Candidate, ...], tuple[float, ...], Features] | None = None
        self._answer: Candidate | None = None

    async def look(self) -> tuple[tuple[Candidate, ...], tuple[float, ...], Features]:
        """The SLM's candidates, their verifier scores, and the features of both."""
        if self._seen is None:
            parts, context = self._parts, self._context
            with boundary("slm"):
                candidates = await parts.slm.propose(context, parts.k, seed=derive_seed(self.seed, "slm"))
            with boundary("verifier"):
                scores = await parts.verifier.score(context, [candidate.action for candidate in candidates])
            with boundary("router"):
                self._seen = candidates, scores, featurise(context, candidates, scores)
        return self._seen

    async def ask_teacher(self) -> Candidate:
        if self._answer is None:
            with boundary("teacher"):
                (self._answer,) = await self._parts.teacher.propose(self._context, 1, seed=derive_seed(self.seed, "teacher"))
        return self._answer


@dataclass(frozen=True)
class Routed:
    """An agent made of two policies, a verifier and a router."""

    parts: Parts
    router: Router

    @property
    def name(self) -> str:
        return self.router.name

    async def act(self, context: Context, memory: Memory, *, seed: int) -> tuple[Choice, Memory]:
        return await self.choose(Moment(self.parts, context, seed=seed), memory)

    async def choose(self, moment: Moment, memory: Memory) -> tuple[Choice, Memory]:
        """Features -> risk -> decision -> action: the path that rollouts, evaluation and gateway share."""
        candidates, scores, features = await moment.look()
        with boundary("router"):
            decision = self.router.decide(features, memory, seed=derive_seed(moment.seed, "router"))
        slm = candidates[0].usage
        if decision.rung == "continue":
            action = candidates[best(candidates, scores)].action
            return Choice(action, "slm", candidates, scores, features, decision, slm, NO_USAGE), memory
        answer = await moment.ask_teacher()
        if memory.calls_left is not None:
            memory = replace(memory, calls_left=memory.calls_left - 1)
        return Choice(answer.action, "teacher", candidates, scores, features, decision, slm, answer.usage), memory
