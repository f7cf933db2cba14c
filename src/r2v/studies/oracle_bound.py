"""The work of one worker process on failed episodes: the fewest teacher calls that would have saved them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from r2v.core.types import Episode
from r2v.evaluation.oracle_bound import Fewest, bound, fewest_calls
from r2v.pipeline.parts import make_environment, make_models
from r2v.pipeline.runner import StageContext
from r2v.pipeline.settings import RunSettings
from r2v.runtime.store import read_json, write_json

JOB_EPISODES = 15


@dataclass(frozen=True)
class Job:
    settings: RunSettings
    slm: Path
    episodes: list[Episode]
    path: Path


def run_job(job: Job) -> None:
    if not job.path.exists():
        write_json(job.path, [asdict(found) for found in asyncio.run(_search(job))])


async def _search(job: Job) -> list[Fewest]:
    parts, horizon = make_models(job.settings, job.slm), job.settings.environment.horizon
    return await asyncio.gather(
        *(
            fewest_calls(parts, lambda task, z: make_environment(job.settings, task, z), episode, horizon=horizon)
            for episode in job.episodes
        )
    )


def clairvoyant(ctx: StageContext, slm: Path, alone: Sequence[Episode], teacher_success: float) -> dict[str, Any] | None:
    """The `clairvoyant` entry of `results.json`, from a sample of the failed ones of `alone` (every SLM-only episode)."""
    wanted = ctx.settings.evaluate.clairvoyant
    if not wanted:
        return None
    failed = [episode for episode in alone if not episode.success]
    sampled = Random(ctx.settings.seed).sample(failed, min(wanted, len(failed)))
    jobs = [
        Job(ctx.settings, slm, sampled[i : i + JOB_EPISODES], ctx.partial / f"clairvoyant-{i}.json")
        for i in range(0, len(sampled), JOB_EPISODES)
    ]
    ctx.workers.map(run_job, jobs, ctx.report, "clairvoyant")
    fewest = [Fewest(**raw) for job in jobs for raw in read_json(job.path)]
    target = ctx.settings.evaluate.clairvoyant_target * teacher_success
    return {"target": target, **asdict(bound(1 - len(failed) / len(alone), fewest, target))}
