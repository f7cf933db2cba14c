"""6 rollout: the deployed SLM plays alone, under perturbation seeds, and is labelled with its own outcomes.

(The paper's released code labelled steps with the recorded teacher's outcome; see method, section 2.) For routers that
learn what help is worth, help is then tried on the same tasks: by branching, and by random help with a logged probability.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from r2v.pipeline.interventions import help_on
from r2v.pipeline.parts import AgentSpec
from r2v.pipeline.play import at, operating_points_of, play_agents, play_episodes
from r2v.pipeline.runner import StageContext
from r2v.pipeline.settings import RouterName
from r2v.pipeline.splits import read_split
from r2v.pipeline.stages.prefer import chosen_slm, validation_episodes
from r2v.runtime.store import write_episodes, write_json

NEED_ANSWERS: set[RouterName] = {"benefit", "helper", "cascade", "cascade_routing"}
NEED_BRANCHES: set[RouterName] = {"benefit"}
NEED_EXPLORATION: set[RouterName] = {"helper", "bandit"}


def rollout(ctx: StageContext) -> None:
    settings, slm = ctx.settings, chosen_slm(ctx)
    tasks = read_split(ctx.read("collect") / "tasks.json", "router")
    seeds = settings.perturbations.rollout
    episodes = play_episodes(ctx, AgentSpec("routed", slm=slm), tasks, seeds, "router")
    write_episodes(ctx.out / "router.parquet", episodes)
    if not settings.trains:
        held = read_split(ctx.read("collect") / "tasks.json", "validation")
        alone = play_episodes(ctx, AgentSpec("routed", slm=slm), held, settings.perturbations.validation, "validation")
        write_episodes(ctx.out / "validation.parquet", alone)
    wanted: set[RouterName] = set(settings.routers)
    if wanted & NEED_ANSWERS:
        count = settings.help.branches if wanted & NEED_BRANCHES else 0
        differ, branches = help_on(ctx, slm, episodes, "branches", branches=count)
        validation, _ = help_on(ctx, slm, validation_episodes(ctx), "answers")
        help: dict[str, Any] = {
            "differs": differ,
            "differs_validation": validation,
            "branches": [asdict(b) for b in branches],
        }
        if "cascade_routing" in wanted:
            agent = AgentSpec("routed", slm, "redraw", 0.0)
            redrawn = play_episodes(ctx, agent, tasks, seeds[:1], "redrawn")
            write_episodes(ctx.out / "redrawn.parquet", redrawn)
            help["differs_redrawn"], _ = help_on(ctx, slm, redrawn, "answers-redrawn")
        write_json(ctx.out / "help.json", help)
    if wanted & NEED_EXPLORATION:
        agents = operating_points_of({"random": settings.help.rates}, slm, ctx.out)
        names = [at("random", rate) for rate in settings.help.rates]
        _, explored = play_agents(ctx, agents, tasks, seeds[: settings.help.explore_seeds], "explore", keep=names)
        write_episodes(ctx.out / "explored.parquet", [e for name in names for e in explored[name]])
