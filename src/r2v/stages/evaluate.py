"""8 evaluate: every router drives real episodes on held-out tasks and seeds; results.json says what came out."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from r2v import __version__
from r2v.build.parts import WITHOUT_KNOB, Player, make_router
from r2v.build.worlds import confined_by
from r2v.evaluation.outcomes import Outcomes, Row, gather
from r2v.evaluation.replay import always, asks_of, oracle, replay
from r2v.evaluation.results import Played, Prices, summarise
from r2v.labels import failure_rows
from r2v.maths.calibration import brier, ece, reliability_bins
from r2v.maths.stats import auroc_or_none
from r2v.routers.mlp import load_router
from r2v.stages.clairvoyant import clairvoyant
from r2v.stages.fit import Knob, read_knobs
from r2v.stages.play import at, knob_players, play_players
from r2v.stages.prefer import chosen_slm
from r2v.stages.runner import Bench
from r2v.stages.splits import read_split
from r2v.store import read_json, sha256, write_episodes, write_json
from r2v.types import Episode, Task

CANNOT_REPLAY = ("cascade_routing", "restart")


def evaluate(bench: Bench) -> None:
    tasks = read_split(bench.read("collect") / "tasks.json", "test")
    evaluate_on(bench, tasks, bench.settings.perturbations.test, "test tasks of the run")


def evaluate_on(bench: Bench, tasks: Sequence[Task], seeds: Sequence[int], split: str) -> None:
    """Play every router on every task under every seed; write `results.json` and `episodes.parquet` to `bench.out`."""
    fitted, slm = bench.read("fit"), chosen_slm(bench)
    knobs = read_knobs(fitted)
    label_of = {name: at(name, knob.threshold) for name, knob in knobs.items()}
    label_of |= {name: name for name in WITHOUT_KNOB}
    players = {
        "slm_only": Player("routed", slm),
        "llm_only": Player("teacher"),
        **knob_players({name: (*knob.grid, knob.threshold) for name, knob in knobs.items()}, slm, fitted),
    }
    rows, episodes = play_players(bench, players, tasks, seeds, "routers", keep=list(label_of.values()))
    chosen = {name: episodes[label_of[name]] for name in (*WITHOUT_KNOB, *knobs)}
    write_episodes(bench.out / "episodes.parquet", [episode for name in chosen for episode in chosen[name]])

    def outcomes(rows: Sequence[Row]) -> Outcomes:
        return gather(rows, [task.id for task in tasks], seeds, bench.settings.environment.horizon)

    played = {name: Played(outcomes(rows[name]), None) for name in WITHOUT_KNOB}
    for name, knob in knobs.items():
        points = tuple(outcomes(rows[at(name, threshold)]) for threshold in knob.grid)
        played[name] = Played(outcomes(rows[label_of[name]]), knob.threshold, knob.grid, points)
    s = bench.settings
    prices = Prices(s.prices.slm, s.prices.teacher)
    common = (seeds, prices, s.router.alpha, s.evaluate.resamples, s.seed)
    routers, differences = summarise(played, *common)
    replayed = _replay(bench, knobs, chosen["slm_only"], outcomes)
    write_json(
        bench.out / "results.json",
        {
            "protocol": "closed_loop",
            "tasks": len(tasks),
            "perturbation_seeds": list(seeds),
            "routers": routers,
            "differences": differences,
            "clairvoyant": clairvoyant(bench, slm, chosen["slm_only"], routers["llm_only"]["success_rate"]),
            "calibration": _calibration(bench, chosen["slm_only"]),
            "replay": {
                "protocol": "replay",
                "tasks": len(tasks),
                "perturbation_seeds": list(seeds),
                "routers": summarise(replayed, *common)[0],
            },
            "preference": read_json(bench.read("prefer") / "choice.json") if s.trains else None,
            "selection": {k: v for k, v in read_json(bench.read("fit") / "thresholds.json").items() if k != "routers"},
            "provenance": _provenance(bench, split),
        },
    )


def _replay(bench: Bench, knobs: dict[str, Knob], alone: Sequence[Episode], outcomes: Any) -> dict[str, Played]:
    """The paper's optimistic protocol on the SLM-only episodes; not for routers that draw anew what was not recorded."""
    result = {
        "slm_only": Played(outcomes(replay(alone, lambda episode: ())), None),
        "llm_only": Played(outcomes(replay(alone, always)), None),
        "oracle": Played(outcomes(replay(alone, oracle)), None),
    }
    for name, knob in knobs.items():
        if name in CANNOT_REPLAY:
            continue
        points = {}
        for threshold in dict.fromkeys((knob.threshold, *knob.grid)):
            router = make_router(name, threshold, bench.read("fit"))
            points[threshold] = outcomes(replay(alone, asks_of(router, bench.settings.environment.horizon)))
        result[name] = Played(points[knob.threshold], knob.threshold, knob.grid, tuple(points[t] for t in knob.grid))
    return result


def _calibration(bench: Bench, alone: Sequence[Episode]) -> dict[str, Any]:
    router = load_router(bench.read("fit") / "r2v")
    scored = [episode for episode in alone if episode.success is not None]
    rows = failure_rows(scored, router.names)
    p_N = router.risk(rows.x_NF, rows.present_NF)
    third_N = np.array([step.t * 3 // bench.settings.environment.horizon for e in scored for step in e.steps])
    return {
        "ece": ece(p_N, rows.y_N),
        "brier": brier(p_N, rows.y_N),
        "auroc": auroc_or_none(p_N, rows.y_N),
        "auroc_by_third": [auroc_or_none(p_N[third_N == third], rows.y_N[third_N == third]) for third in range(3)],
        "steps": len(rows),
        "bins": [list(entry) for entry in reliability_bins(p_N, rows.y_N)],
    }


def _provenance(bench: Bench, split: str) -> dict[str, Any]:
    stages = ("collect", "perturb", "clone", "propose", "prefer", "rollout", "fit")
    return {
        "r2v": __version__,
        "split": split,
        "seed": bench.settings.seed,
        "settings_sha256": sha256(bench.root / "settings.yaml"),
        "slm_sha256": sha256(chosen_slm(bench)),
        "router_sha256": sha256(bench.read("fit") / "r2v"),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in ("numpy", "torch", "transformers")},
        "sandbox": confined_by(bench.settings),
        "times": {stage: read_json(bench.read(stage) / "manifest.json")["seconds"] for stage in stages},
    }
