"""The one loop: whatever is played is played here, one agent's episode or those of many agents on the same task.

Agents that have done the same so far share one environment, and what they see is computed once; where their actions
differ, the environment is copied and each goes its own way. Every episode is the one its agent would have played alone:
sharing changes the time, not the result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from r2v.core.agent import AgentModels, Forked, Routed, StepContext, warn_if_unlike
from r2v.core.errors import BoundaryError, boundary
from r2v.core.protocols import Agent, Branching, Environment, Scoring
from r2v.core.seeds import episode_seed, step_seed
from r2v.core.types import RESTART, Action, Choice, Context, Episode, Failure, Memory, Observation, Step, Task


async def run_episode(
    environment: Environment, agent: Agent, task: Task, *, seed: int, perturbation: str, horizon: int, memory: Memory
) -> Episode:
    """Play one episode to its end, to the horizon, or to the first thing that breaks (recorded, never raised).

    Step seeds depend on task, perturbation seed and t only, so that agents are compared on paired randomness.
    """
    if isinstance(agent, Routed):
        warn_if_unlike(agent.router, stacklevel=2, horizon=horizon)
    (episode,) = await run_together(
        environment, [agent], task, seed=seed, perturbation=perturbation, horizon=horizon, memory=memory
    )
    return episode


async def run_together(
    environment: Environment,
    agents: Sequence[Agent],
    task: Task,
    *,
    seed: int,
    perturbation: str,
    horizon: int,
    memory: Memory,
) -> list[Episode]:
    """What `run_episode` gives for each agent. Two agents or more, and restarts, need an environment with `clone()`."""
    memory = replace(memory, seed=episode_seed(task.id, seed))
    trajectories = [_Trajectory(agent, memory) for agent in agents]
    goal = environment.goal
    snapshot = environment.clone() if isinstance(environment, Branching) else None
    await _Attempt(task, seed, horizon, snapshot).play(environment, trajectories, (), ())
    return [trajectory.finished(task, seed, perturbation, goal) for trajectory in trajectories]


@dataclass
class _Trajectory:
    """One agent's episode while it is being played."""

    agent: Agent
    memory: Memory
    steps: list[Step] = field(default_factory=list)
    final: Observation | None = None
    failure: Failure | None = None

    def fail(self, error: BoundaryError) -> None:
        self.failure = Failure(error.boundary, type(error.cause).__name__, str(error.cause))

    def finished(self, task: Task, seed: int, perturbation: str, goal: str) -> Episode:
        common = (task, seed, perturbation, self.agent.name, goal, tuple(self.steps), self.final)
        if self.failure is not None:
            return Episode(*common, None, "error", self.failure)
        if self.final is not None and self.final.done:
            return Episode(*common, self.final.success, "done", None)
        return Episode(*common, False, "horizon", None)


@dataclass(frozen=True)
class _Attempt:
    task: Task
    seed: int
    horizon: int
    """Steps left from the start of this attempt."""
    snapshot: Branching | None
    """The environment before its start, to restart from."""
    lost: int = 0
    """Steps of earlier attempts, the restart among them."""

    async def play(
        self, environment: Any, trajectories: list[_Trajectory], observations: tuple[str, ...], actions: tuple[Action, ...]
    ) -> None:
        """Take the last of `actions`, which all `trajectories` have chosen, and play on to the end of each."""
        try:
            while True:
                with boundary("environment"):
                    observation = await (environment.step(actions[-1]) if actions else environment.start())
                    if len(actions) == self.horizon and not observation.done and isinstance(environment, Scoring):
                        observation = await environment.out_of_steps() or observation
                for trajectory in trajectories:
                    trajectory.final = observation
                if observation.done or len(actions) == self.horizon:
                    return
                observations += (observation.text,)
                context = Context(environment.goal, observations, actions, self.horizon)
                by_action = await self._choose(trajectories, observation, context)
                restarting = by_action.pop(RESTART, [])
                if len(by_action) != 1 or restarting:
                    break
                ((action, trajectories),) = by_action.items()
                actions += (action,)
            with boundary("environment"):
                environments = [environment, *(environment.clone() for _ in range(len(by_action) - 1))]
            futures = [
                self.play(branch, group, observations, (*actions, action))
                for branch, (action, group) in zip(environments, by_action.items(), strict=False)
            ]
            if restarting:
                futures.append(self._restart(restarting, context.t + 1))
            await asyncio.gather(*futures)
        except BoundaryError as error:
            for trajectory in trajectories:
                trajectory.fail(error)
        finally:
            await environment.close()

    async def _restart(self, trajectories: list[_Trajectory], steps: int) -> None:
        """The next attempt, after one of so many steps."""
        try:
            with boundary("router"):
                if self.snapshot is None:
                    raise RuntimeError("a restart needs an environment with clone()")
                environment = self.snapshot.clone()
        except BoundaryError as error:
            for trajectory in trajectories:
                trajectory.fail(error)
            return
        attempt = replace(self, horizon=self.horizon - steps, lost=self.lost + steps)
        await attempt.play(environment, trajectories, (), ())

    async def _choose(
        self, trajectories: list[_Trajectory], observation: Observation, context: Context
    ) -> dict[Action, list[_Trajectory]]:
        """The trajectories by the action they go on with; one whose agent broke is at its end."""
        t = self.lost + context.t
        seed = step_seed(self.task.id, self.seed, t)
        step_contexts: dict[AgentModels, StepContext] = {}
        by_action: dict[Action, list[_Trajectory]] = {}
        for trajectory in trajectories:
            try:
                choice, trajectory.memory = await self._act(trajectory, context, seed, step_contexts)
            except BoundaryError as error:
                trajectory.fail(error)
                continue
            trajectory.steps.append(Step(t, self.seed, observation, choice))
            by_action.setdefault(choice.action, []).append(trajectory)
        return by_action

    async def _act(
        self, trajectory: _Trajectory, context: Context, seed: int, step_contexts: dict[AgentModels, StepContext]
    ) -> tuple[Choice, Memory]:
        agent = trajectory.agent.at(context.t) if isinstance(trajectory.agent, Forked) else trajectory.agent
        if not isinstance(agent, Routed):
            return await agent.act(context, trajectory.memory, seed=seed)
        if agent.models not in step_contexts:
            step_contexts[agent.models] = StepContext(agent.models, context, seed=seed)
        return await agent.choose(step_contexts[agent.models], trajectory.memory)
