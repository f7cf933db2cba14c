"""4 propose: the cloned SLM plays policy tasks under perturbation; its scored candidates become preference pairs.

Each episode is also replayed, action by action, under another perturbation seed: the second view of the same latent states
that the consistency loss compares.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from r2v.clients.scripted import ScriptedPolicy
from r2v.core.agent import Solo
from r2v.core.types import Episode
from r2v.evaluation.closed_loop import play
from r2v.learning.pairs import preference_pairs, write_pairs
from r2v.pipeline.agents import AgentSpec, make_environment, make_teacher, with_severity
from r2v.pipeline.play import play_episodes
from r2v.pipeline.runner import StageContext
from r2v.pipeline.settings import RunSettings
from r2v.runtime.store import write_episodes


def propose(ctx: StageContext) -> None:
    settings = ctx.settings
    tasks = ctx.run.split("policy")[: settings.propose.tasks]
    agent = AgentSpec("routed", ctx.run.cloned)
    episodes = play_episodes(ctx, agent, tasks, settings.perturbations.propose, "proposals")
    write_episodes(ctx.out / "episodes.parquet", episodes)
    pairs = preference_pairs(
        episodes, make_teacher(settings), horizon=settings.environment.horizon, good=settings.propose.good,
        min_gap=settings.propose.min_gap,
    )  # fmt: skip
    write_pairs(ctx.out / "pairs.json", asyncio.run(pairs))
    write_episodes(ctx.out / "views.parquet", asyncio.run(_views(episodes, settings)))


async def _views(episodes: Sequence[Episode], settings: RunSettings) -> list[Episode]:
    """Each episode's actions again, under the next perturbation seed of the list."""
    seeds = settings.perturbations.propose
    views = []
    for episode in episodes:
        actions = [step.choice.action.text for step in episode.steps]
        other = seeds[(seeds.index(episode.seed) + 1) % len(seeds)]
        views += await play(
            Solo(ScriptedPolicy(actions), "slm"),
            [(episode.task, other)],
            lambda task, seed: make_environment(settings, task, seed),
            horizon=len(actions),
        )
    return with_severity(settings, views)
