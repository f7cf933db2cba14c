"""3 clone: the SLM imitates the teacher's successful episodes, clean and perturbed."""

from __future__ import annotations

from dataclasses import asdict

from r2v.stages.runner import Bench
from r2v.store import read_episodes, write_json


def clone_stage(bench: Bench) -> None:
    import torch

    from r2v.learning.clone import clone

    torch.set_num_threads(bench.settings.threads)
    episodes = [
        episode for stage in ("collect", "perturb") for episode in read_episodes(bench.read(stage) / "episodes.parquet")
    ]
    report = clone(
        episodes,
        bench.settings.slm.model,
        bench.settings.clone,
        bench.out / "model",
        checkpoints=bench.partial,
        seed=bench.settings.seed,
        progress=bench.report,
    )
    write_json(bench.out / "report.json", asdict(report))
