"""2 perturb: the teacher plays the policy tasks again, under perturbation seeds.

It really plays, instead of having its clean actions replayed: an action chosen with knowledge that the text no longer shows
would teach the SLM to guess.
"""

from __future__ import annotations

from r2v.pipeline.runner import StageContext
from r2v.pipeline.teaching import play_teacher
from r2v.runtime.store import write_episodes


def perturb(ctx: StageContext) -> None:
    episodes = play_teacher(ctx, ctx.run.split("policy"), ctx.settings.perturbations.collect)
    write_episodes(ctx.out / "episodes.parquet", episodes)
