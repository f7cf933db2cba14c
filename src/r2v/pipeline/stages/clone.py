"""3 clone: the SLM imitates the teacher's successful episodes, clean and perturbed."""

from __future__ import annotations

from dataclasses import asdict

from r2v.pipeline.runner import StageContext
from r2v.runtime.store import write_json


def clone(ctx: StageContext) -> None:
    import torch

    from r2v.learning.clone import clone as fit

    settings = ctx.settings
    torch.set_num_threads(settings.threads)
    report = fit(
        ctx.run.teacher_episodes(), settings.slm.trained, settings.clone, ctx.out / "model", checkpoints=ctx.partial,
        seed=settings.seed, progress=ctx.report, pieces=settings.domain.pieces, dropped=settings.domain.dropped,
    )  # fmt: skip
    write_json(ctx.out / "report.json", asdict(report))
