"""6 rollout: the deployed SLM plays alone, under perturbation seeds, and is labelled with its own outcomes.

(The paper's released code labelled steps with the recorded teacher's outcome; see method, section 2.) What the wanted
routers need besides is tried on the same tasks: the teacher's answers, branches, random escalation at logged probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from r2v.core.types import TEACHER, Episode, Task
from r2v.evaluation.branches import with_mistakes
from r2v.pipeline.agents import AgentSpec
from r2v.pipeline.branching import teacher_answers
from r2v.pipeline.play import at, play, play_episodes
from r2v.pipeline.run_folder import Interventions, explored_file, interventions_file
from r2v.pipeline.runner import StageContext
from r2v.routers.base import Need
from r2v.runtime.store import write_episodes, write_json


def rollout(ctx: StageContext) -> None:
    settings, run = ctx.settings, ctx.run
    slm, tasks, seeds = run.slm, run.split("router"), settings.perturbations.rollout
    alone = AgentSpec("routed", slm)
    episodes = play_episodes(ctx, alone, tasks, seeds, "router")
    write_episodes(ctx.out / "router.parquet", episodes)
    if not settings.trains:
        held = play_episodes(ctx, alone, run.split("validation"), settings.perturbations.validation, "validation")
        write_episodes(ctx.out / "validation.parquet", held)
    needs: set[Need] = {need for router, _ in settings.chosen_routers.values() for need in router.needs}
    pool = settings.pool if "pool" in needs else ()
    redrawn = None
    if "redraws" in needs:
        redrawn = play_episodes(ctx, AgentSpec("routed", slm, "redraw"), tasks, seeds[:1], "redrawn")
        write_episodes(ctx.out / "redrawn.parquet", redrawn)
    if "answers" in needs:
        _interventions(ctx, episodes, redrawn, (TEACHER, *pool), settings.help.branches if "branches" in needs else 0)
    if "exploration" in needs:
        for model in (TEACHER, *pool):
            _explore(ctx, tasks, seeds[: settings.help.explore_seeds], model)


def _interventions(
    ctx: StageContext, episodes: list[Episode], redrawn: list[Episode] | None, models: Sequence[str], branches: int
) -> None:
    """What stronger models would do on the recorded steps, and what comes of it on some."""
    found = teacher_answers(ctx, episodes, "branches", models, branches=branches)
    held = teacher_answers(ctx, ctx.run.validation_episodes(), "answers", models)
    again = {} if redrawn is None else teacher_answers(ctx, redrawn, "answers-redrawn", models)
    for model in models:
        own, own_held = found[model], held[model]
        differs_redrawn = again[model].differs if again else None
        unlike = None if model == TEACHER else (own.unlike_teacher, own_held.unlike_teacher)
        tried = Interventions(own.differs, own_held.differs, own.branches, differs_redrawn, unlike)
        write_json(ctx.out / interventions_file(model), asdict(tried))
    if branched := found[TEACHER].branches:
        write_episodes(ctx.out / "router.parquet", with_mistakes(episodes, branched, found[TEACHER].differs))


def _explore(ctx: StageContext, tasks: Sequence[Task], seeds: Sequence[int], model: str) -> None:
    """Episodes with random escalation to one stronger model."""
    stronger = None if model == TEACHER else model
    agents = {
        at("random", rate): AgentSpec("routed", ctx.run.slm, "random", rate, stronger) for rate in ctx.settings.help.rates
    }
    label = "explore" if stronger is None else f"explore-{model}"
    _, explored = play(ctx, agents, tasks, seeds, label, keep=list(agents))
    write_episodes(ctx.out / explored_file(model), [e for name in agents for e in explored[name]])
