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
from r2v.core.groups import folds, groups
from r2v.core.types import Episode, Step
from r2v.evaluation.prefixes import Scored, auroc_equal_step, auroc_over_tasks, by_prefix, curves, measures
from r2v.learning.labels import Rows
from r2v.learning.reading import ReadRows, cross_fitted, read_rows
from r2v.maths import Floats
from r2v.maths.calibration import reliability_bins
from r2v.studies.advise import FOLDS
from r2v.studies.evidence import LEAST_EACH, own_steps
from r2v.studies.localise import locate
from r2v.studies.stronger import LEAST_GROUPS


@dataclass(frozen=True)
class Inspection:
    results: dict[str, Any]
    """What `inspect.json` holds."""
    risks: list[list[float]]
    """Of each episode, a risk for each step; empty for an episode that was left out."""
    named: list[int | None]
    """Of each failed episode, the step at which it went wrong (`r2v.studies.localise`)."""


def inspect_logs(episodes: Sequence[Episode], *, view: View = "full", seed: int = 0) -> Inspection:
    """Raises StageError where the logs are too few for any estimate."""
    seen = [_seen_as(view, episode) for episode in episodes]
    wanted = [own_steps(episode) if episode.success is not None else [] for episode in seen]
    used = [i for i, steps in enumerate(wanted) if steps]
    failed = sum(not seen[i].success for i in used)
    found = groups([seen[i] for i in used])
    if found.count < LEAST_GROUPS or min(failed, len(used) - failed) < LEAST_EACH:
        raise StageError(
            f"{len(used)} episodes of {found.tasks} tasks in {found.count} groups of alike ones, {failed} of them failed, "
            f"are too few to inspect: it takes {LEAST_GROUPS} groups and {LEAST_EACH} episodes of each outcome; log more, "
            "or give outcomes (--outcomes)"
        )
    rows = read_rows([seen[i] for i in used], found.group_E, [wanted[i] for i in used])
    failed_N = np.array([float(not seen[i].success) for i in used])[rows.episode_N]
    fold_N = folds(rows.group_N, FOLDS, seed)
    owner_N = np.array(used)[rows.episode_N]
    steps = Scored(cross_fitted(rows, failed_N, fold_N, seed=seed)[0], failed_N, rows.t_N, rows.group_N, owner_N)
    _, first_N = np.unique(owner_N, return_index=True)
    several = len(rows.agents) > 1
    rate_N = _rate_elsewhere(steps, rows.agent_N, fold_N, first_N)
    results = {
        "view": view,
        "seed": seed,
        "folds": FOLDS,
        "left_out": len(episodes) - len(used),
        **found.facts(),
        "overall": measures(steps, seed=seed),
        "auroc_equal_step": _equal(steps, seed),
        "auroc_equal_step_within_model": _equal(steps, seed, rows.agent_N) if several else None,
        "baselines": {
            "29 features, a small network": _equal(steps.scored_by(by_features(rows, failed_N, fold_N, seed)), seed),
            **({"which model it is": _equal(steps.scored_by(rate_N), seed)} if several else {}),
        },
        "without_looking": _without_looking(steps, rate_N if several else None, seed),
        "by_prefix": by_prefix(steps, seed=seed),
        "which_model_by_prefix": _areas(steps.scored_by(rate_N), seed) if several else [],
        "by_model": _by_model(steps, rows.agents, rows.agent_N, seed) if several else {},
        "curves": curves(steps),
        "calibration": reliability_bins(steps.p_N, steps.y_N),
    }
    risks: list[list[float]] = [[] for _ in episodes]
    for owner, p in zip(owner_N.tolist(), steps.p_N.tolist(), strict=True):
        if len(wanted[owner]) == len(episodes[owner].steps):  # else some steps have no risk of the SLM's own
            risks[owner].append(p)
    located = locate(episodes, risks, seed=seed)
    return Inspection({**results, "localiser": located.results}, risks, located.named)


def _equal(steps: Scored, seed: int, within_N: NDArray[np.int64] | None = None) -> dict[str, Any]:
    """AUROC among steps of the same number."""
    area, area_ci95 = auroc_equal_step(steps.p_N, steps.y_N, steps.t_N, steps.task_N, seed=seed, within_N=within_N)
    return {"auroc": area, "auroc_ci95": area_ci95}


def by_features(rows: ReadRows, failed_N: Floats, fold_N: NDArray[np.int64], seed: int) -> Floats:
    """Risk of each row by a small network on the features alone: what reads nothing."""
    from r2v.learning.tabular import held_out_risk

    f = len(FEATURES)
    none_N = np.zeros(len(rows), dtype=int)
    plain = Rows(rows.x_NF[:, :f], rows.present_NF[:, :f], failed_N, none_N, rows.episode_N)
    return held_out_risk(plain, fold_N, seed)


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


def _by_model(steps: Scored, agents: Sequence[str], agent_N: NDArray[np.int64], seed: int) -> dict[str, Any]:
    parts = {str(agents[i]): steps.where(agent_N == i) for i in np.unique(agent_N)}
    return {
        agent: {"overall": measures(part, seed=seed), "by_prefix": by_prefix(part, seed=seed)}
        for agent, part in parts.items()
    }
