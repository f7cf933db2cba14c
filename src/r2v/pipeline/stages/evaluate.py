"""8 evaluate: every router drives real episodes on held-out tasks and seeds; results.json says what came out."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from r2v import __version__
from r2v.core.types import Episode, Task
from r2v.evaluation.outcomes import Outcomes, Row, gather
from r2v.evaluation.replay import always, asks_of, oracle, replay
from r2v.evaluation.results import Played, Prices, summarise
from r2v.learning.labels import failure_rows
from r2v.maths.calibration import brier, ece, reliability_bins
from r2v.maths.stats import auroc_or_none
from r2v.pipeline.parts import WITHOUT_KNOB, AgentSpec, make_router
from r2v.pipeline.play import at, operating_points_of, play_agents
from r2v.pipeline.runner import StageContext
from r2v.pipeline.splits import read_split
from r2v.pipeline.stages.fit import OperatingPoint, read_operating_points
from r2v.pipeline.stages.prefer import chosen_slm
from r2v.routers.mlp import load_router
from r2v.runtime.store import read_json, sha256, write_episodes, write_json
from r2v.studies.oracle_bound import clairvoyant

CANNOT_REPLAY = ("cascade_routing", "restart")


def evaluate(ctx: StageContext) -> None:
    tasks = read_split(ctx.read("collect") / "tasks.json", "test")
    evaluate_on(ctx, tasks, ctx.settings.perturbations.test, "test tasks of the run")


def evaluate_on(ctx: StageContext, tasks: Sequence[Task], seeds: Sequence[int], split: str) -> None:
    """Play every router on every task under every seed; write `results.json` and `episodes.parquet` to `ctx.out`."""
    fitted, slm = ctx.read("fit"), chosen_slm(ctx)
    operating_points = read_operating_points(fitted)
    label_of = {name: at(name, operating_point.threshold) for name, operating_point in operating_points.items()}
    label_of |= {name: name for name in WITHOUT_KNOB}
    agents = {
        "slm_only": AgentSpec("routed", slm),
        "llm_only": AgentSpec("teacher"),
        **operating_points_of(
            {name: (*operating_point.grid, operating_point.threshold) for name, operating_point in operating_points.items()},
            slm,
            fitted,
        ),
    }
    rows, episodes = play_agents(ctx, agents, tasks, seeds, "routers", keep=list(label_of.values()))
    chosen = {name: episodes[label_of[name]] for name in (*WITHOUT_KNOB, *operating_points)}
    write_episodes(ctx.out / "episodes.parquet", [episode for name in chosen for episode in chosen[name]])

    def outcomes(rows: Sequence[Row]) -> Outcomes:
        return gather(rows, [task.id for task in tasks], seeds, ctx.settings.environment.horizon)

    played = {name: Played(outcomes(rows[name]), None) for name in WITHOUT_KNOB}
    for name, operating_point in operating_points.items():
        points = tuple(outcomes(rows[at(name, threshold)]) for threshold in operating_point.grid)
        played[name] = Played(outcomes(rows[label_of[name]]), operating_point.threshold, operating_point.grid, points)
    s = ctx.settings
    prices = Prices(s.prices.slm, s.prices.teacher)
    common = (seeds, prices, s.router.alpha, s.evaluate.resamples, s.seed)
    routers, differences = summarise(played, *common)
    replayed = _replay(ctx, operating_points, chosen["slm_only"], outcomes)
    write_json(
        ctx.out / "results.json",
        {
            "protocol": "closed_loop",
            "tasks": len(tasks),
            "perturbation_seeds": list(seeds),
            "routers": routers,
            "differences": differences,
            "clairvoyant": clairvoyant(ctx, slm, chosen["slm_only"], routers["llm_only"]["success_rate"]),
            "calibration": _calibration(ctx, chosen["slm_only"]),
            "replay": {
                "protocol": "replay",
                "tasks": len(tasks),
                "perturbation_seeds": list(seeds),
                "routers": summarise(replayed, *common)[0],
            },
            "preference": read_json(ctx.read("prefer") / "choice.json") if s.trains else None,
            "selection": {k: v for k, v in read_json(ctx.read("fit") / "thresholds.json").items() if k != "routers"},
            "provenance": _provenance(ctx, split),
        },
    )


def _replay(
    ctx: StageContext, operating_points: dict[str, OperatingPoint], alone: Sequence[Episode], outcomes: Any
) -> dict[str, Played]:
    """The paper's optimistic protocol on the SLM-only episodes; not for routers that draw anew what was not recorded."""
    result = {
        "slm_only": Played(outcomes(replay(alone, lambda episode: ())), None),
        "llm_only": Played(outcomes(replay(alone, always)), None),
        "oracle": Played(outcomes(replay(alone, oracle)), None),
    }
    for name, operating_point in operating_points.items():
        if name in CANNOT_REPLAY:
            continue
        points = {}
        for threshold in dict.fromkeys((operating_point.threshold, *operating_point.grid)):
            router = make_router(name, threshold, ctx.read("fit"))
            points[threshold] = outcomes(replay(alone, asks_of(router, ctx.settings.environment.horizon)))
        result[name] = Played(
            points[operating_point.threshold],
            operating_point.threshold,
            operating_point.grid,
            tuple(points[t] for t in operating_point.grid),
        )
    return result


def _calibration(ctx: StageContext, alone: Sequence[Episode]) -> dict[str, Any]:
    router = load_router(ctx.read("fit") / "r2v")
    scored = [episode for episode in alone if episode.success is not None]
    rows = failure_rows(scored, router.names)
    p_N = router.risk(rows.x_NF, rows.present_NF)
    third_N = np.array([step.t * 3 // ctx.settings.environment.horizon for e in scored for step in e.steps])
    return {
        "ece": ece(p_N, rows.y_N),
        "brier": brier(p_N, rows.y_N),
        "auroc": auroc_or_none(p_N, rows.y_N),
        "auroc_by_third": [auroc_or_none(p_N[third_N == third], rows.y_N[third_N == third]) for third in range(3)],
        "steps": len(rows),
        "bins": [list(entry) for entry in reliability_bins(p_N, rows.y_N)],
    }


def _provenance(ctx: StageContext, split: str) -> dict[str, Any]:
    stages = ("collect", "perturb", "clone", "propose", "prefer", "rollout", "fit")
    return {
        "r2v": __version__,
        "split": split,
        "seed": ctx.settings.seed,
        "settings_sha256": sha256(ctx.root / "settings.yaml"),
        "slm_sha256": sha256(chosen_slm(ctx)),
        "router_sha256": sha256(ctx.read("fit") / "r2v"),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in ("numpy", "torch", "transformers")},
        "sandbox": ctx.settings.domain.confinement(),
        "times": {stage: read_json(ctx.read(stage) / "manifest.json")["seconds"] for stage in stages},
    }
