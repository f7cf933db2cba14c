"""3 clone: the SLM imitates the teacher's successful episodes, clean and perturbed."""

from __future__ import annotations

from dataclasses import asdict

from r2v.pipeline.runner import StageContext
from r2v.pipeline.stages.collect import teacher_episodes
from r2v.runtime.store import write_json


def clone_stage(ctx: StageContext) -> None:
    import torch

    from r2v.learning.clone import clone

    torch.set_num_threads(ctx.settings.threads)
    report = clone(
        teacher_episodes(ctx),
        ctx.settings.slm.trained,
        ctx.settings.clone,
        ctx.out / "model",
        checkpoints=ctx.partial,
        seed=ctx.settings.seed,
        progress=ctx.report,
        pieces=ctx.settings.domain.pieces,
        dropped=ctx.settings.domain.dropped,
    )
    write_json(ctx.out / "report.json", asdict(report))
