"""5 prefer: DPO + consistency on the pairs, BC kept; then the SLM that is better on validation tasks is the one used.

Preference training is not assumed to help: `choice.json` records both policies' validation results and which was kept.
"""

from __future__ import annotations

from dataclasses import asdict

from r2v.evaluation.operating_point import better_policy
from r2v.pipeline.agents import AgentSpec
from r2v.pipeline.play import outcomes, play
from r2v.pipeline.preference import train_preferences
from r2v.pipeline.runner import StageContext
from r2v.runtime.store import write_episodes, write_json


def prefer(ctx: StageContext) -> None:
    settings, run = ctx.settings, ctx.run
    report = train_preferences(ctx, settings.prefer, run.preferred)
    write_json(ctx.out / "report.json", asdict(report))
    tasks, seeds = run.split("validation"), settings.perturbations.validation
    agents = {"clone": AgentSpec("routed", run.cloned), "prefer": AgentSpec("routed", run.preferred)}
    rows, episodes = play(ctx, agents, tasks, seeds, "validation", keep=list(agents))
    cloned, preferred = (outcomes(ctx, rows[name], tasks, seeds).success_T for name in agents)
    choice = better_policy(cloned, preferred, seed=settings.seed)
    write_json(ctx.out / "choice.json", choice)
    write_episodes(ctx.out / "validation.parquet", episodes[choice["kept"]])
