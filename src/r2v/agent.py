"""The one loop and the one decision path (Algorithm 2 of the R2V paper).

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

from r2v.errors import BoundaryError, boundary
from r2v.features import featurise
from r2v.protocols import Agent, Environment, Policy, Router, Verifier
from r2v.seeds import derive_seed, derive_uniform
from r2v.types import (
    Action,
    Candidate,
    Choice,
    Context,
    Decision,
    Episode,
    Failure,
    Features,
    Memory,
    Observation,
    Step,
    Stop,
    Task,
    Usage,
)

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


@dataclass(frozen=True)
class Routed:
    """An agent made of two policies, a verifier and a router."""

    slm: Policy
    teacher: Policy
    verifier: Verifier
    router: Router
    k: int
    """Candidates drawn from the SLM at each step."""

    @property
    def name(self) -> str:
        return self.router.name

    async def act(self, context: Context, memory: Memory, *, seed: int) -> tuple[Choice, Memory]:
        with boundary("slm"):
            candidates = await self.slm.propose(context, self.k, seed=derive_seed(seed, "slm"))
        with boundary("verifier"):
            scores = await self.verifier.score(context, [candidate.action for candidate in candidates])
        features, decision = decide(self.router, context, candidates, scores, memory, seed=derive_seed(seed, "router"))
        slm = candidates[0].usage
        if decision.rung == "continue":
            action = candidates[best(candidates, scores)].action
            return Choice(action, "slm", candidates, scores, features, decision, slm, NO_USAGE), memory
        with boundary("teacher"):
            (answer,) = await self.teacher.propose(context, 1, seed=derive_seed(seed, "teacher"))
        if memory.calls_left is not None:
            memory = replace(memory, calls_left=memory.calls_left - 1)
        return Choice(answer.action, "teacher", candidates, scores, features, decision, slm, answer.usage), memory


def decide(
    router: Router,
    context: Context,
    candidates: tuple[Candidate, ...],
    scores: tuple[float, ...],
    memory: Memory,
    *,
    seed: int,
) -> tuple[Features, Decision]:
    """Features -> risk -> decision: the function that rollouts, evaluation and gateway all call."""
    with boundary("router"):
        features = featurise(context, candidates, scores)
        return features, router.decide(features, memory, seed=seed)


def best(candidates: tuple[Candidate, ...], scores: tuple[float, ...]) -> int:
    """Index of the best-scored candidate; ties go to the likelier one, then to the earlier one."""
    return max(
        range(len(candidates)),
        key=lambda k: (scores[k], candidates[k].logp if candidates[k].logp is not None else float("-inf"), -k),
    )


async def run_episode(
    environment: Environment, agent: Agent, task: Task, *, seed: int, perturbation: str, horizon: int, memory: Memory
) -> Episode:
    """Play one episode to its end, to the horizon, or to the first thing that breaks (recorded, never raised).

    Step seeds depend on task, perturbation seed and t only, so that agents are compared on paired randomness.
    """
    steps: list[Step] = []
    observation: Observation | None = None
    failure: Failure | None = None
    stop: Stop = "horizon"
    observations: tuple[str, ...] = ()
    actions: tuple[Action, ...] = ()
    try:
        with boundary("environment"):
            observation = await environment.start()
        for t in range(horizon):
            observations += (observation.text,)
            context = Context(environment.goal, observations, actions, horizon)
            choice, memory = await agent.act(context, memory, seed=derive_seed(task.id, seed, t))
            steps.append(Step(t, seed, observation, choice))
            actions += (choice.action,)
            with boundary("environment"):
                observation = await environment.step(choice.action)
            if observation.done:
                stop = "done"
                break
    except BoundaryError as error:
        stop, failure = "error", Failure(error.boundary, type(error.cause).__name__, str(error.cause))
    finally:
        await environment.close()
    if stop == "done":
        success = observation.success if observation else None
    else:
        success = None if failure else False
    goal = environment.goal
    return Episode(task, seed, perturbation, agent.name, goal, tuple(steps), observation, success, stop, failure)
