"""Closed-loop play: every router drives real episodes; success is what the environment reports (method, section 9)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from r2v.core.loop import run_together
from r2v.core.protocols import Agent, Environment
from r2v.core.types import Episode, Memory, Task

MakeEnvironment = Callable[[Task, int], tuple[Environment, str]]
"""(task, perturbation seed) -> a fresh environment and the name of its perturbation family."""


async def play(
    agent: Agent,
    cases: Iterable[tuple[Task, int]],
    make_environment: MakeEnvironment,
    *,
    horizon: int,
    memory: Memory | None = None,
    concurrency: int = 512,
) -> list[Episode]:
    """One episode for each (task, perturbation seed), in that order, up to `concurrency` of them advancing together."""
    (episodes,) = await play_all([agent], cases, make_environment, horizon=horizon, memory=memory, concurrency=concurrency)
    return episodes


async def play_all(
    agents: Sequence[Agent],
    cases: Iterable[tuple[Task, int]],
    make_environment: MakeEnvironment,
    *,
    horizon: int,
    memory: Memory | None = None,
    concurrency: int = 512,
) -> list[list[Episode]]:
    """What `play` gives for each agent, in their order. Equal beginnings are played once if environments can be cloned."""
    gate = asyncio.Semaphore(concurrency)
    start = memory or Memory()

    async def one(task: Task, seed: int) -> list[Episode]:
        async with gate:
            environment, perturbation = make_environment(task, seed)
            episodes: list[Episode] = []
            for group in [agents] if hasattr(environment, "clone") else [[agent] for agent in agents]:
                if episodes:
                    environment, _ = make_environment(task, seed)
                episodes += await run_together(
                    environment, group, task, seed=seed, perturbation=perturbation, horizon=horizon, memory=start
                )
            return episodes

    by_case = await asyncio.gather(*(one(task, seed) for task, seed in cases))
    return [[episodes[i] for episodes in by_case] for i in range(len(agents))]


def cases(tasks: Sequence[Task], seeds: Sequence[int]) -> list[tuple[Task, int]]:
    """Every task under every seed, task by task."""
    return [(task, seed) for task in tasks for seed in seeds]
