"""4 propose: the cloned SLM plays policy tasks under perturbation; its scored candidates become preference pairs.

Chosen is the best-scored candidate, or the teacher's action where no candidate is good; rejected is the worst-scored
one. Each episode is also replayed, action by action, under another perturbation seed: the second view of the same
latent states that the consistency loss compares.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from r2v.clients.scripted import ScriptedPolicy
from r2v.core.agent import Solo
from r2v.core.features import best
from r2v.core.protocols import Policy
from r2v.core.seeds import derive_seed
from r2v.core.types import Episode
from r2v.evaluation.closed_loop import play
from r2v.learning.pairs import PreferencePair, write_pairs
from r2v.pipeline.parts import AgentSpec, make_environment, make_teacher
from r2v.pipeline.play import play_episodes
from r2v.pipeline.runner import StageContext
from r2v.pipeline.settings import RunSettings
from r2v.pipeline.splits import read_split
from r2v.runtime.store import write_episodes


def propose(ctx: StageContext) -> None:
    settings = ctx.settings
    tasks = read_split(ctx.read("collect") / "tasks.json", "policy")[: settings.propose.tasks]
    seeds = settings.perturbations.propose
    agent = AgentSpec("routed", slm=ctx.read("clone") / "model")
    episodes = play_episodes(ctx, agent, tasks, seeds, "proposals")
    write_episodes(ctx.out / "episodes.parquet", episodes)
    pairs = asyncio.run(_pairs(episodes, make_teacher(settings), settings))
    write_pairs(ctx.out / "pairs.json", pairs)
    write_episodes(ctx.out / "views.parquet", asyncio.run(_views(episodes, settings)))


async def _pairs(episodes: Sequence[Episode], teacher: Policy, settings: RunSettings) -> list[PreferencePair]:
    pairs = []
    for index, episode in enumerate(episodes):
        contexts = episode.contexts(settings.environment.horizon)
        for step, context in zip(episode.steps, contexts, strict=True):
            candidates, scores = step.choice.candidates, step.choice.scores
            chosen_k = best(candidates, scores)
            rejected_k = min(range(len(scores)), key=lambda k: (scores[k], k))
            chosen, score = candidates[chosen_k].action.text, scores[chosen_k]
            if score < settings.propose.good:
                seed = derive_seed(episode.task.id, episode.seed, step.t, "propose")
                (answer,) = await teacher.propose(context, 1, seed=seed)
                chosen, score = answer.action.text, 1.0
            rejected = candidates[rejected_k].action.text
            if rejected != chosen and score - scores[rejected_k] >= settings.propose.min_gap:
                pairs.append(PreferencePair(index, step.t, chosen, rejected))
    return pairs


async def _views(episodes: Sequence[Episode], settings: RunSettings) -> list[Episode]:
    """Each episode's actions again, under the next perturbation seed of the list."""
    seeds = settings.perturbations.propose
    views = []
    for episode in episodes:
        actions = [step.choice.action for step in episode.steps]
        other = seeds[(seeds.index(episode.seed) + 1) % len(seeds)]
        agent = Solo(ScriptedPolicy([action.text for action in actions]), "slm")
        views += await play(
            agent,
            [(episode.task, other)],
            lambda task, seed: make_environment(settings, task, seed),
            horizon=len(actions),
        )
    return views
