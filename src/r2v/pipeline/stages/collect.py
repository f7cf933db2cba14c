"""1 collect: the teacher plays the policy tasks clean."""

from __future__ import annotations

import msgspec

from r2v.core.splits import split
from r2v.pipeline.agents import CLEAN
from r2v.pipeline.runner import StageContext
from r2v.pipeline.teaching import play_teacher
from r2v.runtime.store import write_episodes


def collect(ctx: StageContext) -> None:
    settings = ctx.settings
    sizes = msgspec.to_builtins(settings.tasks)
    tasks = settings.domain.tasks(settings.environment, sum(sizes.values()), settings.seed)
    splits = split(tasks, sizes, seed=settings.seed)
    ctx.run.write_splits(splits)
    # Nobody learns from the teacher where the SLM is a chat endpoint, and each of its calls costs money.
    episodes = play_teacher(ctx, splits["policy"], [CLEAN]) if settings.trains else []
    write_episodes(ctx.out / "episodes.parquet", episodes)
