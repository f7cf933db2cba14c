"""7 fit: routers on the SLM's own rollouts; calibration and thresholds on validation tasks, never on test tasks.

Every router with a threshold gets the same treatment: its thresholds are quantiles of its own score on the SLM's
validation steps, each position is played in closed loop on the validation tasks, and the rule of the settings picks one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from r2v.core.errors import ArtifactError
from r2v.core.types import Episode, Task
from r2v.evaluation.operating_point import Point, by_budget, by_cost, by_target
from r2v.evaluation.outcomes import Outcomes, gather, row
from r2v.pipeline.fit_routers import fit_routers
from r2v.pipeline.parts import AgentSpec, make_goal_model, make_score
from r2v.pipeline.play import at, operating_points_of, play_agents
from r2v.pipeline.runner import StageContext
from r2v.pipeline.settings import RouterName
from r2v.pipeline.splits import read_split
from r2v.pipeline.stages.prefer import chosen_slm, validation_episodes
from r2v.routers.mlp import load_router
from r2v.runtime.store import read_json, write_json

HELPER_FACTORS = (0.4, 0.7, 1.0, 1.5, 2.5)
"""Prices tried for a budget: those at which the SLM's own steps would ask this many times the budget."""


def fit(ctx: StageContext) -> None:
    settings = ctx.settings
    alone = validation_episodes(ctx)
    fit_routers(ctx, alone)
    validation = [episode for episode in alone if episode.success is not None]
    if "helper" in settings.routers:
        _mix_helper(ctx, validation)
    grid: dict[str, list[float]] = {name: _grid(ctx, name, validation) for name in settings.routers}
    thresholds = _choose(ctx, grid, alone)
    write_json(ctx.out / "thresholds.json", thresholds)
    for name in ("r2v", "r2v_paper", "cascade"):
        if name in settings.routers:
            load_router(ctx.out / name).with_threshold(thresholds["routers"][name]["threshold"]).save(ctx.out / name)


def _grid(ctx: StageContext, name: RouterName, episodes: Sequence[Episode]) -> list[float]:
    """OperatingPoint positions, from the strictest on: quantiles of the router's own score on SLM-only validation steps.

    The operating_points of `random` and `conformal` are rates already, that of `helper` is a budget; `query` scores goals.
    """
    shares = ctx.settings.evaluate.asked_shares
    if name in ("random", "conformal"):
        return sorted(shares)
    if name == "helper":
        return sorted(ctx.settings.help.budgets)
    if name == "query":
        scores = [make_goal_model(ctx.out).risk(episode.goal) for episode in episodes]
    else:
        score = make_score(name, ctx.out)
        scores = [score(step.choice.features) for e in episodes for step in e.steps if step.choice.features is not None]
    quantiles = np.quantile(scores, [1 - share for share in shares], method="higher")
    return [float(q) for q in dict.fromkeys(quantiles.tolist())]


def _choose(ctx: StageContext, grid: Mapping[str, Sequence[float]], slm_episodes: Sequence[Episode]) -> dict[str, Any]:
    settings = ctx.settings
    played = _play_validation(ctx, {"llm_only": AgentSpec("teacher"), **operating_points_of(grid, chosen_slm(ctx), ctx.out)})
    teacher_success = float(played["llm_only"].success_TZ.mean())
    tasks = [task.id for task in _validation_tasks(ctx)]
    alone = gather(map(row, slm_episodes), tasks, settings.perturbations.validation, settings.environment.horizon)
    rule = settings.evaluate
    routers = {}
    for name, thresholds in grid.items():
        points = [Point(threshold, played[at(name, threshold)]) for threshold in thresholds]
        if rule.rule == "target":
            chosen = by_target(points, rule.target * teacher_success)
        elif rule.rule == "cost":
            chosen = by_cost(points, rule.kappa)
        else:
            chosen = by_budget(points, rule.calls_per_episode)
        routers[name] = {
            "threshold": chosen.threshold,
            "grid": list(thresholds),
            "validation": [[float(p.outcomes.call_rate_TZ.mean()), p.success, p.calls] for p in points],
        }
    return {
        "fitted_with": {"verifier": settings.domain.verifier, "k": settings.slm.k, "horizon": settings.environment.horizon},
        "rule": _rule_in_words(ctx),
        "target": rule.target,
        "teacher_success": teacher_success,
        "slm_success": float(alone.success_TZ.mean()),
        "tasks": len(tasks),
        "routers": routers,
    }


def _mix_helper(ctx: StageContext, episodes: Sequence[Episode]) -> None:
    """Play each budget's value of help at some prices, and mix two neighbours so that the calls made meet the budget.

    What the fitted decision process promises is not trusted: its usage is off, and the regression flattens its values. Calls
    are counted on validation tasks and, because a mean of 80 tasks is off by a tenth, on the router tasks under one seed.
    """
    path, budgets = ctx.out / "helper" / "helper.json", ctx.settings.help.budgets
    features = [step.choice.features for e in episodes for step in e.steps if step.choice.features is not None]
    steps = len(features) / len(episodes)
    positions: list[dict[str, float]] = []
    for i, budget in enumerate(budgets):
        value = load_router(ctx.out / "helper" / str(i)).value
        values = [value(row) for row in features]
        shares = [max(0.0, 1 - factor * budget / steps) for factor in HELPER_FACTORS]
        prices = dict.fromkeys(np.quantile(values, shares, method="higher").tolist())
        positions += [{"value": i, "price": price} for price in prices]
    helper = {**read_json(path), "positions": positions}
    write_json(path, helper)
    grid = {"helper_position": [float(i) for i in range(len(positions))]}
    agents, collected = operating_points_of(grid, chosen_slm(ctx), ctx.out), ctx.read("collect") / "tasks.json"
    calls: dict[str, list[int]] = {name: [] for name in agents}
    perturbed = ctx.settings.perturbations
    for split, seeds in (("validation", perturbed.validation), ("router", perturbed.rollout[:1])):
        rows, _ = play_agents(ctx, agents, read_split(collected, split), seeds, f"prices-{split}")
        for name in agents:
            calls[name] += [r.teacher_calls for r in rows[name]]
    usage = [float(np.mean(calls[at("helper_position", float(i))])) for i in range(len(positions))]
    mixtures = []
    for i, budget in enumerate(budgets):
        rising = sorted([(0.0, -1), *((usage[p], p) for p, position in enumerate(positions) if position["value"] == i)])
        below = max(entry for entry in rising if entry[0] <= budget)
        above = min((entry for entry in rising if entry[0] > budget), default=below)
        weight = (budget - below[0]) / (above[0] - below[0]) if above[0] > below[0] else 0.0
        mixtures.append({"budget": budget, "first": below[1], "second": above[1], "weight": weight})
    write_json(path, {**helper, "usage": usage, "mixtures": mixtures})


def _validation_tasks(ctx: StageContext) -> tuple[Task, ...]:
    return read_split(ctx.read("collect") / "tasks.json", "validation")


def _play_validation(ctx: StageContext, agents: Mapping[str, AgentSpec]) -> dict[str, Outcomes]:
    tasks, seeds = _validation_tasks(ctx), ctx.settings.perturbations.validation
    played, _ = play_agents(ctx, agents, tasks, seeds, "validation")
    ids, horizon = [task.id for task in tasks], ctx.settings.environment.horizon
    return {name: gather(rows, ids, seeds, horizon) for name, rows in played.items()}


def _rule_in_words(ctx: StageContext) -> str:
    rule = ctx.settings.evaluate
    return {
        "target": f"fewest teacher calls with at least {rule.target:.0%} of the teacher's success",
        "cost": f"least cost, a failed episode priced at {rule.kappa:g} teacher calls",
        "budget": f"best success with at most {rule.calls_per_episode:g} teacher calls an episode",
    }[rule.rule]


@dataclass(frozen=True)
class OperatingPoint:
    threshold: float
    grid: tuple[float, ...]
    calls: tuple[float, ...]
    """Teacher calls an episode on the validation tasks, at each position of `grid`."""


def read_operating_points(folder: Path) -> dict[str, OperatingPoint]:
    """The chosen thresholds and thresholds of every router with a threshold."""
    raw = read_json(folder / "thresholds.json")
    try:
        return {
            name: OperatingPoint(
                entry["threshold"], tuple(entry["grid"]), tuple(calls for _, _, calls in entry["validation"])
            )
            for name, entry in raw["routers"].items()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder / 'thresholds.json'} is incomplete ({error}); run the stage fit again") from None
