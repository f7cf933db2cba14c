"""5 prefer: DPO + consistency on the pairs, BC kept; then the SLM that is better on validation tasks is the one used.

Preference training is not assumed to help: `choice.json` says what both policies did on validation and which was kept.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from r2v.core.types import Episode
from r2v.evaluation.curves import interval, resample_BT
from r2v.evaluation.outcomes import gather
from r2v.learning.pairs import read_pairs
from r2v.pipeline.parts import AgentSpec
from r2v.pipeline.play import play_agents
from r2v.pipeline.runner import StageContext, folder_of
from r2v.pipeline.splits import read_split
from r2v.pipeline.stages.collect import teacher_episodes
from r2v.runtime.store import read_episodes, read_json, write_episodes, write_json

RESAMPLES = 2000


def prefer_stage(ctx: StageContext) -> None:
    import torch

    from r2v.learning.prefer import prefer

    settings = ctx.settings
    torch.set_num_threads(settings.threads)
    proposals = ctx.read("propose")
    cloned, preferred = ctx.read("clone") / "model", ctx.out / "model"
    report = prefer(
        cloned,
        settings.slm.trained,
        teacher_episodes(ctx),
        read_episodes(proposals / "episodes.parquet"),
        read_pairs(proposals / "pairs.json"),
        read_episodes(proposals / "views.parquet"),
        settings.prefer,
        preferred,
        seed=settings.seed,
        progress=ctx.report,
    )
    write_json(ctx.out / "report.json", asdict(report))
    choice, alone = _choose(ctx, {"clone": cloned, "prefer": preferred})
    write_json(ctx.out / "choice.json", choice)
    write_episodes(ctx.out / "validation.parquet", alone)


def _choose(ctx: StageContext, models: dict[str, Path]) -> tuple[dict[str, object], list[Episode]]:
    """What both did on validation and which is kept; and the episodes of that one, which the router is calibrated on."""
    settings = ctx.settings
    tasks = read_split(ctx.read("collect") / "tasks.json", "validation")
    seeds = settings.perturbations.validation
    agents = {name: AgentSpec("routed", slm=folder) for name, folder in models.items()}
    rows, episodes = play_agents(ctx, agents, tasks, seeds, "validation", keep=list(agents))
    ids = [task.id for task in tasks]
    clone, prefer = (gather(rows[name], ids, seeds, settings.environment.horizon).success_T for name in models)
    weights_BT = resample_BT(len(tasks), RESAMPLES, settings.seed)
    kept = "prefer" if prefer.mean() > clone.mean() else "clone"  # a tie keeps the simpler policy
    return {
        "kept": kept,
        "clone": float(clone.mean()),
        "prefer": float(prefer.mean()),
        "difference_ci95": interval(np.asarray(weights_BT @ (prefer - clone))),
        "tasks": len(tasks),
    }, episodes[kept]


def chosen_slm(ctx: StageContext) -> Path:
    """Folder of the SLM that was kept; of a chat endpoint, the file that names it."""
    return kept_model(ctx.root) if ctx.settings.trains else ctx.root / "settings.yaml"


def kept_model(run: Path) -> Path:
    """Folder of the SLM that a run trained and kept."""
    kept = read_json(run / folder_of("prefer") / "choice.json")["kept"]
    return run / folder_of(kept) / "model"


def validation_episodes(ctx: StageContext) -> list[Episode]:
    """What the SLM did alone on the validation tasks: played when it was chosen, or with the rollouts if none is trained."""
    return read_episodes(ctx.read("prefer" if ctx.settings.trains else "rollout") / "validation.parquet")
