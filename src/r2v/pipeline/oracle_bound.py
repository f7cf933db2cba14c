"""The oracle bound (clairvoyant policy) of a run: the fewest teacher calls that save its failed episodes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from r2v.core.types import Episode
from r2v.evaluation.oracle_bound import Fewest, bound, fewest_calls
from r2v.pipeline.agents import make_environment, make_models
from r2v.pipeline.runner import StageContext
from r2v.pipeline.settings import RunSettings

JOB_EPISODES = 15


@dataclass(frozen=True)
class Job:
    settings: RunSettings
    slm: Path
    episodes: list[Episode]


def _search(job: Job) -> list[dict[str, Any]]:
    return [asdict(found) for found in asyncio.run(_fewest(job))]


async def _fewest(job: Job) -> list[Fewest]:
    models, horizon = make_models(job.settings, job.slm), job.settings.environment.horizon
    return await asyncio.gather(
        *(
            fewest_calls(models, lambda task, z: make_environment(job.settings, task, z), episode, horizon=horizon)
            for episode in job.episodes
        )
    )


def oracle_bound(ctx: StageContext, alone: Sequence[Episode], teacher_success: float) -> dict[str, Any] | None:
    """The `clairvoyant` entry of `results.json`, from a sample of the failed ones of `alone` (every SLM-only episode)."""
    wanted = ctx.settings.evaluate.clairvoyant
    if not wanted:
        return None
    failed = [episode for episode in alone if not episode.success]
    sampled = Random(ctx.settings.seed).sample(failed, min(wanted, len(failed)))
    slm = ctx.run.slm
    jobs = [Job(ctx.settings, slm, sampled[i : i + JOB_EPISODES]) for i in range(0, len(sampled), JOB_EPISODES)]
    most = ctx.settings.evaluate.max_calls
    fewest = [Fewest(**raw) for found in ctx.map(_search, jobs, "oracle bound") for raw in found]
    fewest = [replace(f, calls=None) if most is not None and (f.calls or 0) > most else f for f in fewest]
    target = ctx.settings.evaluate.clairvoyant_target * teacher_success
    return {"target": target, **asdict(bound(1 - len(failed) / len(alone), fewest, target))}
