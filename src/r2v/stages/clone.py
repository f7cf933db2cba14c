"""3 clone: the SLM imitates the teacher's successful episodes, clean and perturbed."""

from __future__ import annotations

from dataclasses import asdict

from r2v.stages.collect import teacher_episodes
from r2v.stages.runner import Bench
from r2v.store import write_json


def clone_stage(bench: Bench) -> None:
    import torch

    from r2v.learning.clone import clone

    torch.set_num_threads(bench.settings.threads)
    report = clone(
        teacher_episodes(bench),
        bench.settings.slm.trained,
        bench.settings.clone,
        bench.out / "model",
        checkpoints=bench.partial,
        seed=bench.settings.seed,
        progress=bench.report,
    )
    write_json(bench.out / "report.json", asdict(report))
