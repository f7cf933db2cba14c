"""`r2v inspect LOGS`: where recorded episodes go wrong, by a risk that never saw their tasks.

Every risk is from task-wise cross-validation, as in `r2v fit`; what it is worth is measured overall, after each number of
steps and for each model of the log, beside what needs no look at the steps: how long the episode is, and which model it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2v.core.errors import StageError
from r2v.core.features import FEATURES, View, seen_as
from r2v.core.types import Episode, Step
from r2v.evaluation.prefixes import Scored, auroc_over_tasks, by_prefix, curves, measures
from r2v.maths import Floats
from r2v.maths.calibration import reliability_bins
from r2v.studies.fit_logs import FOLDS, LEAST_FAILED, LEAST_TASKS, folds, held_out_risk, own_steps


@dataclass(frozen=True)
class Inspection:
    results: dict[str, Any]
    """What `inspect.json` holds."""
    risks: list[list[float]]
    """Of each episode, a risk for each step; empty for an episode that was left out."""


def inspect_logs(episodes: Sequence[Episode], *, view: View = "full", seed: int = 0) -> Inspection:
    """Raises StageError where the logs are too few for any estimate."""
    seen = [_seen_as(view, episode) for episode in episodes]
    rows, tasks = own_steps(seen)
    names, task_N = np.unique(np.array(tasks, dtype=str), return_inverse=True)
    _, first_N = np.unique(rows.episode_N, return_index=True)
    failed = int(rows.y_N[first_N].sum())
    if len(names) < LEAST_TASKS or min(failed, len(first_N) - failed) < LEAST_FAILED:
        raise StageError(
            f"{len(first_N)} episodes of {len(names)} tasks, {failed} of them failed, are too few to inspect: it takes "
            f"{LEAST_TASKS} tasks and {LEAST_FAILED} episodes of each outcome; log more, or give their outcomes (--outcomes)"
        )
    fold_N = folds(task_N, seed)
    t_N = rows.x_NF[:, FEATURES.index("step_index")].astype(np.int64)
    steps = Scored(held_out_risk(rows, fold_N, seed), rows.y_N, t_N, task_N, rows.episode_N)
    agents, agent_E = np.unique([episode.agent for episode in episodes], return_inverse=True)
    agent_N = agent_E[rows.episode_N]
    rate_N = _rate_elsewhere(steps, agent_N, fold_N, first_N)
    results = {
        "view": view,
        "seed": seed,
        "folds": FOLDS,
        "left_out": len(episodes) - len(first_N),
        "overall": measures(steps, seed=seed),
        "without_looking": _without_looking(steps, rate_N if len(agents) > 1 else None, seed),
        "by_prefix": by_prefix(steps, seed=seed),
        "which_model_by_prefix": _areas(steps.scored_by(rate_N), seed) if len(agents) > 1 else [],
        "by_model": _by_model(steps, agents, agent_N, seed) if len(agents) > 1 else {},
        "curves": curves(steps),
        "calibration": reliability_bins(steps.p_N, steps.y_N),
    }
    risks: list[list[float]] = [[] for _ in episodes]
    for owner, p in zip(rows.episode_N.tolist(), steps.p_N.tolist(), strict=True):
        risks[owner].append(p)
    return Inspection(results, risks)


def _seen_as(view: View, episode: Episode) -> Episode:
    if view == "full":
        return episode

    def step(step: Step) -> Step:
        choice = step.choice
        if choice.features is None:
            return step
        return replace(step, choice=replace(choice, features=seen_as(view, choice.features, choice.scores)))

    return replace(episode, steps=tuple(map(step, episode.steps)))


def _rate_elsewhere(
    steps: Scored, agent_N: NDArray[np.int64], fold_N: NDArray[np.int64], first_N: NDArray[np.int64]
) -> Floats:
    """Share of its episodes in other folds that the step's model failed; the share of all models where it has none."""
    rate_N = np.zeros(len(fold_N))
    for fold in range(FOLDS):
        other = first_N[fold_N[first_N] != fold]
        for agent in np.unique(agent_N):
            mine = other[agent_N[other] == agent]
            rate_N[(fold_N == fold) & (agent_N == agent)] = steps.y_N[mine if len(mine) else other].mean()
    return rate_N


def _without_looking(steps: Scored, rate_N: Floats | None, seed: int) -> dict[str, Any]:
    """AUROC over all steps of scores that know nothing of what happened."""
    length_N = np.bincount(steps.episode_N)[steps.episode_N]
    scores = {
        "step index (= share of the horizon)": steps.t_N,
        "length of the whole episode (known only afterwards)": length_N,
        **({} if rate_N is None else {"which model it is": rate_N}),
    }
    return {name: _area(steps.scored_by(score_N.astype(float)), seed) for name, score_N in scores.items()}


def _area(steps: Scored, seed: int) -> dict[str, Any]:
    area, area_ci95 = auroc_over_tasks(steps.p_N, steps.y_N, steps.task_N, seed=seed)
    return {"auroc": area, "auroc_ci95": area_ci95}


def _areas(steps: Scored, seed: int) -> list[dict[str, Any]]:
    return [{"t": int(t), **_area(steps.where(steps.t_N == t), seed)} for t in np.unique(steps.t_N)]


def _by_model(steps: Scored, agents: NDArray[np.str_], agent_N: NDArray[np.int64], seed: int) -> dict[str, Any]:
    parts = {str(agents[i]): steps.where(agent_N == i) for i in np.unique(agent_N)}
    return {
        agent: {"overall": measures(part, seed=seed), "by_prefix": by_prefix(part, seed=seed)}
        for agent, part in parts.items()
    }
