"""The work of one worker process on recorded SLM episodes: what the teacher would have done, and what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from r2v.core.seeds import derive_seed
from r2v.core.types import Episode, Task
from r2v.evaluation.branches import Branch, branch, differs
from r2v.pipeline.parts import make_environment, make_models, make_teacher
from r2v.pipeline.runner import StageContext
from r2v.pipeline.settings import RunSettings
from r2v.runtime.store import read_json, write_json

JOB_EPISODES = 100


@dataclass(frozen=True)
class HelpJob:
    settings: RunSettings
    slm: Path
    first: int
    """Number of the first episode."""
    episodes: list[Episode]
    branches: int
    """Steps branched in each episode."""
    path: Path


def run_job(job: HelpJob) -> None:
    if not job.path.exists():
        differ, branches = asyncio.run(_help(job))
        write_json(job.path, {"differs": differ, "branches": [asdict(b) for b in branches]})


async def _help(job: HelpJob) -> tuple[list[list[bool]], list[Branch]]:
    horizon = job.settings.environment.horizon
    teacher = make_teacher(job.settings)
    differ = [await differs(episode, teacher, horizon) for episode in job.episodes]
    if not job.branches:
        return differ, []
    parts = make_models(job.settings, job.slm)

    def environment(task: Task, z: int):  # type: ignore[no-untyped-def]
        return make_environment(job.settings, task, z)

    played = await asyncio.gather(
        *(
            branch(
                parts,
                environment,
                job.first + i,
                episode,
                _sample(episode, differ[i], job.branches),
                draws=job.settings.help.draws,
                horizon=horizon,
            )
            for i, episode in enumerate(job.episodes)
            if any(differ[i])
        )
    )
    return differ, [b for branches in played for b in branches]


def _sample(episode: Episode, differ: Sequence[bool], count: int) -> list[int]:
    steps = [t for t, other in enumerate(differ) if other]
    draw = Random(derive_seed("branch", episode.task.id, episode.seed))
    return sorted(draw.sample(steps, min(count, len(steps))))


def help_on(
    ctx: StageContext, slm: Path, episodes: Sequence[Episode], label: str, *, branches: int = 0
) -> tuple[list[list[bool]], list[Branch]]:
    """(whether the teacher differs at each step of each episode, `branches` branched steps of each where it does)."""
    jobs = [
        HelpJob(ctx.settings, slm, i, list(episodes[i : i + JOB_EPISODES]), branches, ctx.partial / f"{label}-{i}.json")
        for i in range(0, len(episodes), JOB_EPISODES)
    ]
    ctx.workers.map(run_job, jobs, ctx.report, label)
    done = [read_json(job.path) for job in jobs]
    return [row for raw in done for row in raw["differs"]], [Branch(**b) for raw in done for b in raw["branches"]]
