"""5 prefer: the SLM that is used plays the validation tasks: the cloned one, unless preference training gave a better one.

With `prefer.enabled`: DPO + consistency on the pairs, BC kept. It is not assumed to help: `choice.json` records both
policies' validation results and which was kept.
"""

from __future__ import annotations

from dataclasses import asdict

from r2v.evaluation.operating_point import better_policy
from r2v.pipeline.agents import AgentSpec
from r2v.pipeline.play import outcomes, play, play_episodes
from r2v.pipeline.preference import train_preferences
from r2v.pipeline.runner import StageContext
from r2v.runtime.store import read_json, write_episodes, write_json


def prefer(ctx: StageContext) -> None:
    settings, run = ctx.settings, ctx.run
    tasks, seeds = run.split("validation"), settings.perturbations.validation
    if not settings.prefer.enabled:
        alone = play_episodes(ctx, AgentSpec("routed", run.cloned), tasks, seeds, "validation")
        write_episodes(ctx.out / "validation.parquet", alone)
        success = sum(bool(episode.success) for episode in alone) / len(alone)
        write_json(
            ctx.out / "choice.json",
            {"kept": "clone", "clone": success, "prefer": None, "difference_ci95": None, "tasks": len(tasks)},
        )
        return
    trained = ctx.partial / "report.json"
    if not trained.exists():  # otherwise killed while it played
        write_json(trained, asdict(train_preferences(ctx, settings.prefer, run.preferred)))
    write_json(ctx.out / "report.json", read_json(trained))
    agents = {"clone": AgentSpec("routed", run.cloned), "prefer": AgentSpec("routed", run.preferred)}
    rows, episodes = play(ctx, agents, tasks, seeds, "validation", keep=list(agents))
    cloned, preferred = (outcomes(ctx, rows[name], tasks, seeds).success_T for name in agents)
    choice = better_policy(cloned, preferred, seed=settings.seed)
    write_json(ctx.out / "choice.json", choice)
    write_episodes(ctx.out / "validation.parquet", episodes[choice["kept"]])
