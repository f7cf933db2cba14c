"""Preference training on what a run proposed; the stage and the ablation call it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from r2v.learning.settings import PreferSettings
from r2v.pipeline.runner import StageContext

if TYPE_CHECKING:
    from r2v.learning.prefer import PreferReport


def train_preferences(ctx: StageContext, settings: PreferSettings, out: Path) -> PreferReport:
    """Train the cloned SLM on the run's pairs and views, and write the model to `out`."""
    import torch

    from r2v.learning.prefer import prefer

    torch.set_num_threads(ctx.settings.threads)
    run = ctx.run
    return prefer(
        run.cloned, ctx.settings.slm.trained, run.teacher_episodes(), run.proposals(), run.pairs(), run.views(), settings,
        out, seed=ctx.settings.seed, progress=ctx.report,
    )  # fmt: skip
