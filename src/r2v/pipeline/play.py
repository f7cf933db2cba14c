"""The work of one worker process: agents on some cases, together; what came out lies in a folder.

The folder is the resume point: a job whose `rows.json` exists is done. Full episodes are written for the agents that are
kept; of the others (the points of a curve) only numbers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from r2v.core.types import Episode, Task
from r2v.evaluation.closed_loop import cases, play_all
from r2v.evaluation.outcomes import Row, row
from r2v.pipeline.parts import AgentSpec, make_agents, make_environment
from r2v.pipeline.runner import StageContext
from r2v.pipeline.settings import RunSettings
from r2v.runtime.store import read_episodes, read_json, write_episodes, write_json

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


def run_job(job: Job) -> None:
    if (job.folder / "rows.json").exists():
        return
    played = asyncio.run(
        play_all(
            make_agents(job.settings, job.agents.values()),
            job.cases,
            lambda task, seed: make_environment(job.settings, task, seed),
            horizon=job.settings.environment.horizon,
        )
    )
    episodes_of = dict(zip(job.agents, played, strict=True))
    for name in job.kept:
        write_episodes(job.folder / f"{name}.parquet", episodes_of[name])
    rows = {name: [asdict(row(episode)) for episode in episodes] for name, episodes in episodes_of.items()}
    write_json(job.folder / "rows.json", rows)


def play_agents(
    ctx: StageContext,
    agents: Mapping[str, AgentSpec],
    tasks: Sequence[Task],
    seeds: Sequence[int],
    label: str,
    *,
    keep: Collection[str] = (),
) -> tuple[dict[str, list[Row]], dict[str, list[Episode]]]:
    """Every named agent on every task under every seed, spread over the workers: (rows of all, episodes of those kept).

    Episodes are ordered by task, then seed. `label` names the work on the disk and in the progress bar.
    """
    size = max(1, min(JOB_TASKS, JOB_EPISODES // (len(agents) * len(seeds))))
    jobs = [
        Job(ctx.settings, agents, keep, cases(tasks[i : i + size], seeds), ctx.partial / f"{label}-{i}")
        for i in range(0, len(tasks), size)
    ]
    ctx.workers.map(run_job, jobs, ctx.report, label)
    rows: dict[str, list[Row]] = {name: [] for name in agents}
    for job in jobs:
        for name, raw in read_json(job.folder / "rows.json").items():
            rows[name] += [
                Row(**{**fields, "asked": tuple(fields["asked"]), "answers": tuple(fields["answers"])}) for fields in raw
            ]
    episodes = {}
    for name in keep:
        by_case = {(e.task.id, e.seed): e for job in jobs for e in read_episodes(job.folder / f"{name}.parquet")}
        episodes[name] = [by_case[task.id, seed] for task, seed in cases(tasks, seeds)]
    return rows, episodes


def play_episodes(
    ctx: StageContext, agent: AgentSpec, tasks: Sequence[Task], seeds: Sequence[int], label: str
) -> list[Episode]:
    """The episodes of one agent, ordered by task, then seed."""
    return play_agents(ctx, {label: agent}, tasks, seeds, label, keep=[label])[1][label]


def operating_points_of(grid: Mapping[str, Sequence[float]], slm: Path, fitted: Path) -> dict[str, AgentSpec]:
    """A agent for every threshold of every router with a threshold, by the name that `at` gives it."""
    return {
        at(name, threshold): AgentSpec("routed", slm, name, threshold, fitted)
        for name, thresholds in grid.items()
        for threshold in thresholds
    }


def at(name: str, threshold: float) -> str:
    """Name of a router at one threshold."""
    return f"{name}@{threshold!r}"
