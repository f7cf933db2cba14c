"""What the teacher would have done on recorded SLM episodes, and what came of it, spread over the executor."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from r2v.core.agent import AgentModels
from r2v.core.agreement import alike
from r2v.core.protocols import Policy
from r2v.core.seeds import derive_seed
from r2v.core.types import TEACHER, Episode
from r2v.evaluation.branches import Branch, answers, branch, differing
from r2v.pipeline.agents import make_environment, make_models, make_teacher
from r2v.pipeline.runner import StageContext
from r2v.pipeline.settings import RunSettings

JOB_EPISODES = 100


@dataclass(frozen=True)
class Answers:
    """What one stronger model would do on recorded SLM episodes. Axes: episodes, steps."""

    differs: list[list[bool]]
    """Whether it would do something else than the SLM."""
    branches: list[Branch]
    unlike_teacher: list[list[bool]]
    """Whether it would do something else than the teacher."""


@dataclass(frozen=True)
class Job:
    settings: RunSettings
    slm: Path
    first: int
    """Number of the first episode."""
    episodes: list[Episode]
    branches: int
    """Steps branched in each episode."""
    model: str
    """Who is asked: the teacher, or another model of the pool."""


def _answer(job: Job) -> dict[str, Any]:
    asked = dict.fromkeys((job.model, TEACHER))
    policies = {name: make_teacher(job.settings, name) for name in asked}  # held: their connections close with the loop
    models = make_models(job.settings, job.slm) if job.branches else None
    return asyncio.run(_answers(job, policies, models))


async def _answers(job: Job, policies: Mapping[str, Policy], models: AgentModels | None) -> dict[str, Any]:
    horizon, episodes = job.settings.environment.horizon, job.episodes
    said = {
        name: await asyncio.gather(*(answers(episode, policy, horizon, name) for episode in episodes))
        for name, policy in policies.items()
    }
    differ = [differing(episode, of_episode) for episode, of_episode in zip(episodes, said[job.model], strict=True)]
    unlike = [
        [not alike(a, b) for a, b in zip(own, teachers, strict=True)]
        for own, teachers in zip(said[job.model], said[TEACHER], strict=True)
    ]
    if models is None:
        return {"differs": differ, "branches": [], "unlike_teacher": unlike}
    played = await asyncio.gather(
        *(
            branch(
                models, lambda task, z: make_environment(job.settings, task, z), job.first + i, episode,
                _sample(episode, differ[i], job.branches), model=job.model, draws=job.settings.help.draws, horizon=horizon,
            )
            for i, episode in enumerate(episodes)
            if any(differ[i])
        )
    )  # fmt: skip
    return {"differs": differ, "branches": [asdict(b) for branches in played for b in branches], "unlike_teacher": unlike}


def _sample(episode: Episode, differ: Sequence[bool], count: int) -> list[int]:
    steps = [t for t, other in enumerate(differ) if other]
    draw = Random(derive_seed("branch", episode.task.id, episode.seed))
    return sorted(draw.sample(steps, min(count, len(steps))))


def teacher_answers(
    ctx: StageContext, episodes: Sequence[Episode], label: str, *, branches: int = 0, model: str = TEACHER
) -> Answers:
    """What the teacher, or another model of the pool, would do on recorded episodes, with `branches` branched steps of each
    on which it differs from the SLM.
    """
    slm = ctx.run.slm
    jobs = [
        Job(ctx.settings, slm, i, list(episodes[i : i + JOB_EPISODES]), branches, model)
        for i in range(0, len(episodes), JOB_EPISODES)
    ]
    done = ctx.map(_answer, jobs, label)
    return Answers(
        [row for raw in done for row in raw["differs"]],
        [Branch(**b) for raw in done for b in raw["branches"]],
        [row for raw in done for row in raw["unlike_teacher"]],
    )
