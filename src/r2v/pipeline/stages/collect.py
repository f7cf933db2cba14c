"""1 collect: the teacher plays the policy tasks clean."""

from __future__ import annotations

from r2v.core.splits import split
from r2v.pipeline.agents import CLEAN, domain_of
from r2v.pipeline.runner import StageContext
from r2v.pipeline.teaching import play_teacher
from r2v.runtime.store import write_episodes


def collect(ctx: StageContext) -> None:
    settings = ctx.settings
    sizes = settings.tasks.model_dump()
    tasks = domain_of(settings).tasks(settings.environment, sum(sizes.values()), settings.seed)
    splits = split(tasks, sizes, seed=settings.seed)
    ctx.run.write_splits(splits)
    if settings.trains:  # without an SLM to train, nobody would read the teacher's episodes
        write_episodes(ctx.out / "episodes.parquet", play_teacher(ctx, splits["policy"], [CLEAN]))
