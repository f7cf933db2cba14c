"""The teacher's episodes, some of them with noise."""

from __future__ import annotations

from collections.abc import Sequence

from r2v.core.seeds import derive_uniform
from r2v.core.types import Episode, Task
from r2v.pipeline.agents import AgentSpec
from r2v.pipeline.play import play_episodes
from r2v.pipeline.runner import StageContext


def play_teacher(ctx: StageContext, tasks: Sequence[Task], seeds: Sequence[int]) -> list[Episode]:
    """The teacher on every task under every seed.

    In a share of the episodes some of its actions are replaced by random ones: the only way to see how it recovers from a
    mistake, which a cloned policy will need (no loss is put on the mistakes themselves).
    """
    share = ctx.settings.collect.noisy_episodes or 0.0
    noisy = [derive_uniform("noisy", task.id) < share for task in tasks]
    plain = [task for task, is_noisy in zip(tasks, noisy, strict=True) if not is_noisy]
    disturbed = [task for task, is_noisy in zip(tasks, noisy, strict=True) if is_noisy]
    found = play_episodes(ctx, AgentSpec("teacher"), plain, seeds, "plain")
    return found + (play_episodes(ctx, AgentSpec("noisy_teacher"), disturbed, seeds, "noisy") if disturbed else [])
