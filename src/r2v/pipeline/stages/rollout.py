"""6 rollout: the deployed SLM plays alone, under perturbation seeds, and is labelled with its own outcomes.

(The paper's released code labelled steps with the recorded teacher's outcome; see method, section 2.) What the wanted
routers need besides is tried on the same tasks: the teacher's answers, branches, random escalation at logged probability.
"""

from __future__ import annotations

from dataclasses import asdict

from r2v.evaluation.branches import with_mistakes
from r2v.pipeline.agents import AgentSpec
from r2v.pipeline.branching import teacher_answers
from r2v.pipeline.play import at, play, play_episodes
from r2v.pipeline.run_folder import Interventions
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
    if "answers" in needs:
        count = settings.help.branches if "branches" in needs else 0
        differ, branches = teacher_answers(ctx, episodes, "branches", branches=count)
        if branches:
            write_episodes(ctx.out / "router.parquet", with_mistakes(episodes, branches, differ))
        validation, _ = teacher_answers(ctx, run.validation_episodes(), "answers")
        redrawn_differ = None
        if "redraws" in needs:
            redrawn = play_episodes(ctx, AgentSpec("routed", slm, "redraw"), tasks, seeds[:1], "redrawn")
            write_episodes(ctx.out / "redrawn.parquet", redrawn)
            redrawn_differ, _ = teacher_answers(ctx, redrawn, "answers-redrawn")
        write_json(ctx.out / "help.json", asdict(Interventions(differ, validation, branches, redrawn_differ)))
    if "exploration" in needs:
        agents = {at("random", rate): AgentSpec("routed", slm, "random", rate) for rate in settings.help.rates}
        _, explored = play(ctx, agents, tasks, seeds[: settings.help.explore_seeds], "explore", keep=list(agents))
        write_episodes(ctx.out / "explored.parquet", [e for name in agents for e in explored[name]])
