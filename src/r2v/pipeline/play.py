"""Playing agents on tasks, spread over the executor. Full episodes are kept of some agents; of the others only numbers."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from r2v.core.types import TEACHER, Episode, Memory, Task
from r2v.evaluation.closed_loop import cases, play_all
from r2v.evaluation.outcomes import Outcomes, Row, gather, row
from r2v.perturbations import GroupPart
from r2v.pipeline.agents import AgentSpec, make_agents, make_environment, with_severity
from r2v.pipeline.runner import StageContext
from r2v.pipeline.settings import RunSettings
from r2v.runtime.store import read_episodes, write_episodes

JOB_EPISODES = 6000
JOB_TASKS = 40
"""Upper limits of one job. Jobs depend on nothing else, so results are the same with any number of workers."""


@dataclass(frozen=True)
class Job:
    settings: RunSettings
    agents: Mapping[str, AgentSpec]
    kept: Collection[str]
    """Names of the agents whose episodes are written whole."""
    cases: list[tuple[Task, int]]
    folder: Path
    max_calls: int | None
    """Teacher calls that a routed episode may have."""


def _play(job: Job) -> dict[str, Any]:
    agents = make_agents(job.settings, job.agents.values())  # held, so that their connections close with the loop
    played = asyncio.run(
        play_all(
            agents,
            job.cases,
            lambda task, seed: make_environment(job.settings, task, seed),
            horizon=job.settings.environment.horizon,
            memory=Memory(job.max_calls),
        )
    )
    episodes_of = {name: with_severity(job.settings, of_one) for name, of_one in zip(job.agents, played, strict=True)}
    for name in job.kept:
        write_episodes(job.folder / f"{name}.parquet", episodes_of[name])
    return {
        name: [asdict(row(episode, prices_of(job.settings), job.agents[name].stronger or TEACHER)) for episode in episodes]
        for name, episodes in episodes_of.items()
    }


def prices_of(settings: RunSettings) -> dict[str, float] | None:
    """What a call of each stronger model costs, in calls of the teacher; None: there is no other than the teacher."""
    return {m.name: m.price for m in settings.members} | {TEACHER: 1.0} if settings.pool else None


def play(
    ctx: StageContext,
    agents: Mapping[str, AgentSpec],
    tasks: Sequence[Task],
    seeds: Sequence[int],
    label: str,
    *,
    keep: Collection[str] = (),
    max_calls: int | None = None,
) -> tuple[dict[str, list[Row]], dict[str, list[Episode]]]:
    """Every named agent on every task under every seed: (rows of all, episodes of those kept).

    Episodes are ordered by task, then seed. `label` names the work on the disk and in the progress bar. `max_calls`: of the
    teacher, that a routed agent may make in an episode.
    """
    size = max(1, min(JOB_TASKS, JOB_EPISODES // (len(agents) * len(seeds))))
    jobs = [
        Job(ctx.settings, agents, keep, cases(tasks[i : i + size], seeds), ctx.partial / f"{label}-{i}", max_calls)
        for i in range(0, len(tasks), size)
    ]
    rows: dict[str, list[Row]] = {name: [] for name in agents}
    for found in ctx.map(_play, jobs, label):
        for name, raw in found.items():
            rows[name] += msgspec.convert(raw, list[Row])
    episodes = {}
    for name in keep:
        by_case = {(e.task.id, e.seed): e for job in jobs for e in read_episodes(job.folder / f"{name}.parquet")}
        episodes[name] = [by_case[task.id, seed] for task, seed in cases(tasks, seeds)]
    return rows, episodes


def play_episodes(
    ctx: StageContext,
    agent: AgentSpec,
    tasks: Sequence[Task],
    seeds: Sequence[int],
    label: str,
    *,
    max_calls: int | None = None,
) -> list[Episode]:
    """The episodes of one agent, ordered by task, then seed."""
    return play(ctx, {label: agent}, tasks, seeds, label, keep=[label], max_calls=max_calls)[1][label]


def routed_at(grid: Mapping[str, Sequence[float]], routers: Path, slm: Path) -> dict[str, AgentSpec]:
    """An agent for every threshold of every router, whose folder lies in `routers`, by the name that `at` gives it."""
    return {
        at(name, threshold): AgentSpec("routed", slm, routers / name, threshold)
        for name, thresholds in grid.items()
        for threshold in thresholds
    }


def at(name: str, threshold: float) -> str:
    """Name of a router at one threshold."""
    return f"{name}@{threshold!r}"


def outcomes(
    ctx: StageContext,
    rows: Iterable[Row],
    tasks: Sequence[Task],
    seeds: Sequence[int],
    groups: Sequence[GroupPart] | None = None,
) -> Outcomes:
    """Rows of one agent on these tasks and seeds, as arrays; `groups`: other ones than those of the settings."""
    settings = ctx.settings
    return gather(rows, [t.id for t in tasks], seeds, settings.environment.horizon, groups or settings.perturbations.groups)
