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
        count = settings.help.branches if "branches" in needs else 0
        for model in (TEACHER, *pool):
            found = _interventions(ctx, episodes, redrawn, model, count)
            write_json(ctx.out / interventions_file(model), asdict(found))
            if model == TEACHER and found.branches:
                labelled = with_mistakes(episodes, found.branches, found.differs)
                write_episodes(ctx.out / "router.parquet", labelled)
    if "exploration" in needs:
        for model in (TEACHER, *pool):
            _explore(ctx, tasks, seeds[: settings.help.explore_seeds], model)


def _interventions(
    ctx: StageContext, episodes: list[Episode], redrawn: list[Episode] | None, model: str, branches: int
) -> Interventions:
    """What one stronger model would do on the recorded steps, and what comes of it on some."""
    suffix = "" if model == TEACHER else f"-{model}"
    found = teacher_answers(ctx, episodes, f"branches{suffix}", branches=branches, model=model)
    held = teacher_answers(ctx, ctx.run.validation_episodes(), f"answers{suffix}", model=model)
    again = None if redrawn is None else teacher_answers(ctx, redrawn, f"answers-redrawn{suffix}", model=model).differs
    unlike = None if model == TEACHER else (found.unlike_teacher, held.unlike_teacher)
    return Interventions(found.differs, held.differs, found.branches, again, unlike)


def _explore(ctx: StageContext, tasks: Sequence[Task], seeds: Sequence[int], model: str) -> None:
    """Episodes with random escalation to one stronger model."""
    stronger = None if model == TEACHER else model
    agents = {
        at("random", rate): AgentSpec("routed", ctx.run.slm, "random", rate, stronger) for rate in ctx.settings.help.rates
    }
    label = "explore" if stronger is None else f"explore-{model}"
    _, explored = play(ctx, agents, tasks, seeds, label, keep=list(agents))
    write_episodes(ctx.out / explored_file(model), [e for name in agents for e in explored[name]])
