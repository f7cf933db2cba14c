"""7 fit: routers on the SLM's own rollouts; calibration and thresholds on validation tasks, never on test tasks.

Every router with a knob gets the same treatment: its knob positions are quantiles of its own score on the SLM's
validation steps, each position is played in closed loop on the validation tasks, and the rule of the settings picks one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from r2v.build.parts import WITH_KNOB, Player, make_score
from r2v.errors import ArtifactError
from r2v.evaluation.operating_point import Point, by_budget, by_cost, by_target
from r2v.evaluation.outcomes import gather, row
from r2v.features import EXTENDED, PAPER
from r2v.labels import failure_rows
from r2v.learning.settings import RouterSettings
from r2v.maths.calibration import brier, ece
from r2v.maths.stats import auroc
from r2v.routers.mlp import load_router
from r2v.stages.play import play_players
from r2v.stages.prefer import chosen_slm
from r2v.stages.runner import Bench
from r2v.stages.splits import read_split
from r2v.store import read_episodes, read_json, write_json
from r2v.types import Episode

FITTED: tuple[tuple[str, Literal["decoupled", "paper"]], ...] = (("r2v", "decoupled"), ("r2v_paper", "paper"))


def fit(bench: Bench) -> None:
    settings = bench.settings
    alone = read_episodes(bench.read("prefer") / "validation.parquet")
    validation = [episode for episode in alone if episode.success is not None]
    _fit_routers(bench, read_episodes(bench.read("rollout") / "router.parquet"), validation)
    grid = {name: _grid(name, validation, settings.evaluate.asked_shares, bench.out) for name in WITH_KNOB}
    thresholds = _choose(bench, grid, alone)
    write_json(bench.out / "thresholds.json", thresholds)
    for name, _ in FITTED:
        load_router(bench.out / name).with_threshold(thresholds["routers"][name]["threshold"]).save(bench.out / name)


def _fit_routers(bench: Bench, rollouts: Sequence[Episode], validation: Sequence[Episode]) -> None:
    import torch

    from r2v.learning.router import fit_router

    settings = bench.settings
    torch.set_num_threads(settings.threads)
    scored = [episode for episode in rollouts if episode.success is not None]
    quality = {}
    for name, objective in FITTED:
        names = feature_names(settings.router) if name == "r2v" else PAPER
        train, held = failure_rows(scored, names), failure_rows(validation, names)
        facts = {"rollout episodes": len(scored), "seed": settings.seed, "slm": chosen_slm(bench).parent.name}
        router = fit_router(
            train, held, names, settings.router, objective, seed=settings.seed, progress=bench.report, facts=facts
        )
        router.save(bench.out / name)
        p_N = router.risk(held.x_NF, held.present_NF)
        quality[name] = {"ece": ece(p_N, held.y_N), "brier": brier(p_N, held.y_N), "auroc": auroc(p_N, held.y_N)}
    write_json(bench.out / "validation.json", quality)


def feature_names(settings: RouterSettings) -> tuple[str, ...]:
    return PAPER if settings.features == "paper" else EXTENDED


def _grid(name: str, episodes: Sequence[Episode], shares: Sequence[float], fitted: Path) -> list[float]:
    """Knob positions from the strictest on: the score's quantiles on SLM-only validation steps (for random, the rates)."""
    if name == "random":
        return sorted(shares)
    score = make_score(name, fitted)
    scores = [score(step.choice.features) for e in episodes for step in e.steps if step.choice.features is not None]
    quantiles = np.quantile(scores, [1 - share for share in shares], method="higher")
    return [float(q) for q in dict.fromkeys(quantiles.tolist())]


def _choose(bench: Bench, grid: dict[str, list[float]], slm_episodes: Sequence[Episode]) -> dict[str, Any]:
    settings = bench.settings
    tasks = read_split(bench.read("collect") / "tasks.json", "validation")
    seeds, ids, horizon = settings.perturbations.validation, [t.id for t in tasks], settings.environment.horizon
    players = {"llm_only": Player("teacher"), **knob_players(grid, chosen_slm(bench), bench.out)}
    played, _ = play_players(bench, players, tasks, seeds, "validation")
    teacher = gather(played["llm_only"], ids, seeds, horizon)
    alone = gather(map(row, slm_episodes), ids, seeds, horizon)
    teacher_success = float(teacher.success_TZ.mean())
    rule = settings.evaluate
    routers = {}
    for name in WITH_KNOB:
        points = [Point(threshold, gather(played[at(name, threshold)], ids, seeds, horizon)) for threshold in grid[name]]
        if rule.rule == "target":
            chosen = by_target(points, rule.target * teacher_success)
        elif rule.rule == "cost":
            chosen = by_cost(points, rule.kappa)
        else:
            chosen = by_budget(points, rule.calls_per_episode)
        routers[name] = {
            "threshold": chosen.threshold,
            "grid": grid[name],
            "validation": [[float(p.outcomes.call_rate_TZ.mean()), p.success, p.calls] for p in points],
        }
    return {
        "rule": _rule_in_words(bench),
        "target": rule.target,
        "teacher_success": teacher_success,
        "slm_success": float(alone.success_TZ.mean()),
        "tasks": len(tasks),
        "routers": routers,
    }


def knob_players(grid: Mapping[str, Sequence[float]], slm: Path, fitted: Path) -> dict[str, Player]:
    """A player for every knob position of every router with a knob, by the name that `at` gives it."""
    return {
        at(name, threshold): Player("routed", slm, name, threshold, fitted)
        for name, thresholds in grid.items()
        for threshold in thresholds
    }


def at(name: str, threshold: float) -> str:
    """Name of a router at one knob position."""
    return f"{name}@{threshold!r}"


def _rule_in_words(bench: Bench) -> str:
    rule = bench.settings.evaluate
    return {
        "target": f"fewest teacher calls with at least {rule.target:.0%} of the teacher's success",
        "cost": f"least cost, a failed episode priced at {rule.kappa:g} teacher calls",
        "budget": f"best success with at most {rule.calls_per_episode:g} teacher calls an episode",
    }[rule.rule]


@dataclass(frozen=True)
class Knob:
    threshold: float
    grid: tuple[float, ...]


def read_knobs(folder: Path) -> dict[str, Knob]:
    """The chosen thresholds and knob positions of every router with a knob."""
    raw = read_json(folder / "thresholds.json")
    try:
        return {name: Knob(raw["routers"][name]["threshold"], tuple(raw["routers"][name]["grid"])) for name in WITH_KNOB}
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / 'thresholds.json'} is incomplete ({error}); run the stage fit again") from None
