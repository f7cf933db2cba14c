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
    """Whether it would do something else than the teacher; empty of the teacher itself."""


@dataclass(frozen=True)
class Job:
    settings: RunSettings
    slm: Path
    first: int
    """Number of the first episode."""
    episodes: list[Episode]
    branches: int
    """Steps branched in each episode."""
    models: tuple[str, ...]
    """Who is asked: the teacher, and other models of the pool."""


def _answer(job: Job) -> dict[str, Any]:
    policies = {name: make_teacher(job.settings, name) for name in job.models}  # held: their connections close with the loop
    models = make_models(job.settings, job.slm) if job.branches else None
    return asyncio.run(_answers(job, policies, models))


async def _answers(job: Job, policies: Mapping[str, Policy], models: AgentModels | None) -> dict[str, Any]:
    horizon, episodes = job.settings.environment.horizon, job.episodes
    said = {
        name: await asyncio.gather(*(answers(episode, policy, horizon, name) for episode in episodes))
        for name, policy in policies.items()
    }
    found = {}
    for name, own in said.items():
        differ = [differing(episode, of_episode) for episode, of_episode in zip(episodes, own, strict=True)]
        unlike = None
        if name != TEACHER:
            pairs = [zip(mine, teachers, strict=True) for mine, teachers in zip(own, said[TEACHER], strict=True)]
            unlike = [[not alike(a, b) for a, b in of_episode] for of_episode in pairs]
        branches = [] if models is None else await _branches(job, models, name, differ)
        found[name] = {"differs": differ, "branches": [asdict(b) for b in branches], "unlike_teacher": unlike}
    return found


async def _branches(job: Job, models: AgentModels, model: str, differ: Sequence[Sequence[bool]]) -> list[Branch]:
    played = await asyncio.gather(
        *(
            branch(
                models, lambda task, z: make_environment(job.settings, task, z), job.first + i, episode,
                _sample(episode, differ[i], job.branches), model=model, draws=job.settings.help.draws,
                horizon=job.settings.environment.horizon,
            )
            for i, episode in enumerate(job.episodes)
            if any(differ[i])
        )
    )  # fmt: skip
    return [b for branches in played for b in branches]


def _sample(episode: Episode, differ: Sequence[bool], count: int) -> list[int]:
    steps = [t for t, other in enumerate(differ) if other]
    draw = Random(derive_seed("branch", episode.task.id, episode.seed))
    return sorted(draw.sample(steps, min(count, len(steps))))


def teacher_answers(
    ctx: StageContext, episodes: Sequence[Episode], label: str, models: Sequence[str], *, branches: int = 0
) -> dict[str, Answers]:
    """What each of some stronger models would do on recorded episodes; every one is asked once at each step.

    Args:
        ctx: of the stage.
        episodes: of the SLM alone.
        label: names the work on the disk and in the progress bar.
        models: the teacher, and other models of the pool.
        branches: branched steps of each episode on which a model differs from the SLM.
    """
    slm = ctx.run.slm
    jobs = [
        Job(ctx.settings, slm, i, list(episodes[i : i + JOB_EPISODES]), branches, tuple(models))
        for i in range(0, len(episodes), JOB_EPISODES)
    ]
    done = ctx.map(_answer, jobs, label)
    return {name: _together([raw[name] for raw in done]) for name in models}


def _together(pieces: Sequence[dict[str, Any]]) -> Answers:
    return Answers(
        [row for piece in pieces for row in piece["differs"]],
        [Branch(**b) for piece in pieces for b in piece["branches"]],
        [row for piece in pieces for row in piece["unlike_teacher"] or ()],
    )
