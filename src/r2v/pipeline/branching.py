"""What the teacher would have done on recorded SLM episodes, and what came of it, spread over the executor."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from r2v.core.agent import AgentModels
from r2v.core.protocols import Policy
from r2v.core.seeds import derive_seed
from r2v.core.types import Episode
from r2v.evaluation.branches import Branch, branch, differs
from r2v.pipeline.agents import make_environment, make_models, make_teacher
from r2v.pipeline.runner import StageContext
from r2v.pipeline.settings import RunSettings

JOB_EPISODES = 100


@dataclass(frozen=True)
class Job:
    settings: RunSettings
    slm: Path
    first: int
    """Number of the first episode."""
    episodes: list[Episode]
    branches: int
    """Steps branched in each episode."""


def _answer(job: Job) -> dict[str, Any]:
    teacher = make_teacher(job.settings)  # held, so that its connections close with the loop
    models = make_models(job.settings, job.slm) if job.branches else None
    return asyncio.run(_answers(job, teacher, models))


async def _answers(job: Job, teacher: Policy, models: AgentModels | None) -> dict[str, Any]:
    horizon = job.settings.environment.horizon
    differ = await asyncio.gather(*(differs(episode, teacher, horizon) for episode in job.episodes))
    if models is None:
        return {"differs": differ, "branches": []}
    played = await asyncio.gather(
        *(
            branch(
                models, lambda task, z: make_environment(job.settings, task, z), job.first + i, episode,
                _sample(episode, differ[i], job.branches), draws=job.settings.help.draws, horizon=horizon,
            )
            for i, episode in enumerate(job.episodes)
            if any(differ[i])
        )
    )  # fmt: skip
    return {"differs": differ, "branches": [asdict(b) for branches in played for b in branches]}


def _sample(episode: Episode, differ: Sequence[bool], count: int) -> list[int]:
    steps = [t for t, other in enumerate(differ) if other]
    draw = Random(derive_seed("branch", episode.task.id, episode.seed))
    return sorted(draw.sample(steps, min(count, len(steps))))


def teacher_answers(
    ctx: StageContext, episodes: Sequence[Episode], label: str, *, branches: int = 0
) -> tuple[list[list[bool]], list[Branch]]:
    """(whether the teacher differs at each step of each episode, `branches` branched steps of each where it does)."""
    slm = ctx.run.slm
    jobs = [
        Job(ctx.settings, slm, i, list(episodes[i : i + JOB_EPISODES]), branches)
        for i in range(0, len(episodes), JOB_EPISODES)
    ]
    done = ctx.map(_answer, jobs, label)
    return [row for raw in done for row in raw["differs"]], [Branch(**b) for raw in done for b in raw["branches"]]
