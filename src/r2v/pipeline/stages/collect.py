"""1 collect: the teacher plays the policy tasks clean.  2 perturb: again, under perturbation seeds.

In a share of the episodes some of the teacher's actions are replaced by random ones: the only way to see how the teacher
recovers from a mistake, which a cloned policy will need (no loss is put on the mistakes themselves).

The teacher really plays under the perturbations instead of having its clean actions replayed: an action chosen with
knowledge that the text no longer shows would teach the SLM to guess.
"""

from __future__ import annotations

from collections.abc import Sequence

from r2v.core.seeds import derive_uniform
from r2v.core.splits import split
from r2v.core.types import Episode
from r2v.pipeline.parts import CLEAN, AgentSpec
from r2v.pipeline.play import play_episodes
from r2v.pipeline.runner import StageContext
from r2v.pipeline.splits import read_split, write_splits
from r2v.runtime.store import read_episodes, write_episodes


def collect(ctx: StageContext) -> None:
    settings = ctx.settings
    sizes = settings.tasks.model_dump()
    tasks = settings.domain.tasks(settings.environment, sum(sizes.values()), settings.seed)
    write_splits(ctx.out / "tasks.json", split(tasks, sizes, seed=settings.seed))
    # Nobody learns from the teacher where the SLM is a chat endpoint, and each of its calls costs money.
    write_episodes(ctx.out / "episodes.parquet", _play_teacher(ctx, [CLEAN]) if settings.trains else [])


def perturb(ctx: StageContext) -> None:
    episodes = _play_teacher(ctx, ctx.settings.perturbations.collect)
    write_episodes(ctx.out / "episodes.parquet", episodes)


def teacher_episodes(ctx: StageContext) -> list[Episode]:
    """What both stages left: all episodes of the teacher, clean and perturbed."""
    return [e for stage in ("collect", "perturb") for e in read_episodes(ctx.read(stage) / "episodes.parquet")]


def _play_teacher(ctx: StageContext, seeds: Sequence[int]) -> list[Episode]:
    source = ctx.out if (ctx.out / "tasks.json").exists() else ctx.read("collect")
    tasks = read_split(source / "tasks.json", "policy")
    share = ctx.settings.collect.noisy_episodes or 0.0
    noisy = [derive_uniform("noisy", task.id) < share for task in tasks]
    groups: tuple[tuple[str, AgentSpec, bool], ...] = (
        ("plain", AgentSpec("teacher"), False),
        ("noisy", AgentSpec("noisy_teacher"), True),
    )
    return [
        episode
        for label, agent, wanted in groups
        for episode in play_episodes(ctx, agent, [t for t, n in zip(tasks, noisy, strict=True) if n == wanted], seeds, label)
    ]
