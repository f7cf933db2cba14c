"""The state oracle of a run: what a router would need that knows the value of help at each step, but not the future."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from r2v.core.types import Task
from r2v.evaluation.closed_loop import cases
from r2v.evaluation.outcomes import Row, row
from r2v.evaluation.results import state_oracle_entry
from r2v.evaluation.state_oracle import PRICES, StateOracle
from r2v.pipeline.agents import make_environment, make_models
from r2v.pipeline.play import outcomes
from r2v.pipeline.runner import StageContext
from r2v.pipeline.settings import RunSettings

JOB_EPISODES = 10


@dataclass(frozen=True)
class Job:
    settings: RunSettings
    slm: Path
    cases: list[tuple[Task, int]]


def _play(job: Job) -> list[list[dict[str, Any]]]:
    return asyncio.run(_played(job))


async def _played(job: Job) -> list[list[dict[str, Any]]]:
    settings, models = job.settings, make_models(job.settings, job.slm)

    async def one(task: Task, z: int) -> list[dict[str, Any]]:
        oracle = StateOracle(
            models, lambda task, z, redrawn: make_environment(settings, task, z, redrawn), task, z,
            settings.evaluate.state_oracle_futures, settings.environment.horizon, settings.evaluate.max_calls,
        )  # fmt: skip
        return [asdict(row(await oracle.at(price))) for price in sorted(PRICES, reverse=True)]

    return await asyncio.gather(*(one(task, z) for task, z in job.cases))


def state_oracle(
    ctx: StageContext, tasks: Sequence[Task], seeds: Sequence[int], ends: Mapping[str, Sequence[Row]]
) -> dict[str, Any] | None:
    """The `state_oracle` entry of `results.json`: as many tasks as there are, then as many seeds.

    Args:
        ends: the rows of `slm_only` and `llm_only` on these tasks and seeds, and of `llm_first` where calls are limited.
    """
    s = ctx.settings
    wanted = s.evaluate.state_oracle
    if not wanted:
        return None
    some = sorted(Random(s.seed).sample(range(len(tasks)), min(wanted, len(tasks))))
    tasks, seeds = [tasks[i] for i in some], seeds[: max(1, wanted // len(some))]
    played = cases(tasks, seeds)
    jobs = [Job(s, ctx.run.slm, played[i : i + JOB_EPISODES]) for i in range(0, len(played), JOB_EPISODES)]
    found = [msgspec.convert(raw, list[Row]) for piece in ctx.map(_play, jobs, "state oracle") for raw in piece]
    here = {(task.id, z) for task, z in played}
    points = [outcomes(ctx, rows, tasks, seeds) for rows in zip(*found, strict=True)]
    others = {
        name: outcomes(ctx, [r for r in rows if (r.task, r.seed) in here], tasks, seeds) for name, rows in ends.items()
    }
    prices = sorted(PRICES, reverse=True)
    facts = {"episodes": len(played), "futures": s.evaluate.state_oracle_futures}
    return facts | state_oracle_entry(prices, points, others, s.evaluate.resamples, s.seed)
