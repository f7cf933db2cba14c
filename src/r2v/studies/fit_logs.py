"""`r2v fit LOGS`: a router from recorded episodes alone, no environment, no training of the SLM.

Every number is from task-wise cross-validation: a task's episodes are never on both sides. With too few episodes for a
threshold that means something, it reports how many there are and how many it takes, and writes no router.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2v.core.features import FEATURES, batch
from r2v.core.mlp import RiskMLP
from r2v.core.types import Episode
from r2v.evaluation.prefixes import auroc_over_tasks
from r2v.learning.labels import Rows
from r2v.maths import Floats
from r2v.maths.calibration import brier, ece
from r2v.routers.base import FittedWith
from r2v.routers.r2v import R2V
from r2v.runtime.store import write_json

FOLDS = 5
LEAST_FAILED = 20
LEAST_TASKS = 50
"""Of each kind of outcome, and of tasks: below that the interval of the AUROC spans everything from chance to perfect."""
WANTED_WIDTH = 0.1


@dataclass(frozen=True)
class LogFit:
    """What was learned, and how sure one can be of it."""

    episodes: int
    helped: int
    """Of them, with a step of the teacher: left out."""
    tasks: int
    failed: int
    steps: int
    auroc: float | None
    auroc_ci95: tuple[float, float] | None
    ece: float | None
    brier: float | None
    base_brier: float | None
    """Of always predicting the share of failed steps."""
    episodes_needed: int
    """For an interval of the AUROC of +-.05, by the width found here; or for a first fit."""
    threshold: float | None
    asked_share: float | None
    """Share of the steps that are escalated: at or above the threshold."""
    router: str | None
    """Folder, or None with `refused`."""
    refused: str | None

    @property
    def beats_random(self) -> bool:
        """Whether it finds failing episodes better than random escalation of as many steps, on tasks left out."""
        if self.auroc_ci95 is None or self.brier is None or self.base_brier is None:
            return False
        return self.auroc_ci95[0] > 0.5 and self.brier < self.base_brier


def fitted_with(episodes: Sequence[Episode], verifier: str | None) -> FittedWith:
    """How the steps were seen: served otherwise, the risk would be another one. What they do not agree on is None."""
    step_index, fraction = FEATURES.index("step_index"), FEATURES.index("horizon_fraction")
    choices = [step.choice for episode in episodes for step in episode.steps if step.choice.features is not None]
    counts = {len(choice.candidates) for choice in choices}
    rows = [choice.features.values for choice in choices if choice.features is not None]
    horizons = {round(row[step_index] / row[fraction]) for row in rows if row[fraction]}
    k, horizon = (found.pop() if len(found) == 1 else None for found in (counts, horizons))
    return FittedWith(k, horizon, verifier)


def own_steps(episodes: Sequence[Episode]) -> tuple[Rows, list[str]]:
    """Steps of the episodes that the SLM played alone, labelled with the outcome; and the task of each.

    An episode with a step of the teacher does not show how the SLM would have ended, and leaving out only that step would
    keep its outcome. The teacher answers in the modes observe and shadow: the sessions are routed or forced (r2v:slm) ones.
    """
    features, y, owners, tasks = [], [], [], []
    for i, episode in enumerate(episodes):
        if episode.success is None or any(step.choice.source != "slm" for step in episode.steps):
            continue
        for step in episode.steps:
            if step.choice.features is not None:
                features.append(step.choice.features)
                y.append(float(not episode.success))
                owners.append(i)
                tasks.append(episode.task.id)
    x_NF, present_NF = batch(features)
    zeros = np.zeros(len(y), dtype=int)
    return Rows(x_NF, present_NF, np.array(y), zeros, np.array(owners, dtype=int)), tasks


def fit_logs(
    episodes: Sequence[Episode], out: Path, *, verifier: str | None, seed: int = 0, asked_share: float = 0.15
) -> LogFit:
    """Fit and write a router folder, if the logs allow it.

    Args:
        episodes: recorded ones with features, e.g. of `r2v.logs.importing.import_logs`.
        out: the folder; nothing is written where the fit is refused.
        verifier: what scored the steps, where that is known; the gateway then scores with the same.
        seed: of the folds and of the fits.
        asked_share: the share of steps that one is willing to escalate, which places the threshold: without a teacher's
            outcomes no log shows which threshold reaches a target.
    """
    from r2v.learning.tabular import fit_risk

    scored = [episode for episode in episodes if episode.success is not None]
    rows, tasks = own_steps(episodes)
    names, task_N = np.unique(tasks, return_inverse=True)
    failed = len({i for i, y in zip(rows.episode_N.tolist(), rows.y_N.tolist(), strict=True) if y})
    solved = len(set(rows.episode_N.tolist())) - failed
    helped = sum(any(step.choice.source != "slm" for step in episode.steps) for episode in scored)
    counts: dict[str, Any] = {
        "episodes": len(scored), "helped": helped, "tasks": len(names), "failed": failed, "steps": len(rows),
    }  # fmt: skip
    if min(failed, solved) < LEAST_FAILED or len(names) < LEAST_TASKS:
        refused = (
            f"{len(scored)} episodes of {len(names)} tasks, {failed} failed and {solved} solved by the SLM alone: a "
            f"router needs at least {LEAST_TASKS} tasks and {LEAST_FAILED} episodes of each kind"
        )
        rare = max(min(failed, solved) / max(1, len(scored)), 0.02)
        needed = max(int(np.ceil(LEAST_FAILED / rare)), int(np.ceil(LEAST_TASKS * len(scored) / max(1, len(names)))))
        unknown: dict[str, Any] = dict.fromkeys(
            ("auroc", "auroc_ci95", "ece", "brier", "base_brier", "threshold", "asked_share", "router")
        )
        return LogFit(**counts, **unknown, episodes_needed=needed, refused=refused)
    fold_N = folds(task_N, seed)
    p_N = held_out_risk(rows, fold_N, seed)
    area, area_ci95 = auroc_over_tasks(p_N, rows.y_N, task_N, seed=seed)
    assert area is not None and area_ci95 is not None
    low, high = area_ci95
    last = fold_N == 0
    known = _known(rows)
    every = rows.columns(known)
    router = fit_risk(every.where(~last), every.where(last), known, seed=seed, facts=counts)
    risk_N = router.risk(every.x_NF, every.present_NF)
    threshold = float(np.quantile(risk_N, 1 - asked_share, method="higher"))
    conditions = fitted_with(scored, verifier)
    R2V(risk=router, threshold=threshold, fitted_with=conditions).save(out)
    base = float(rows.y_N.mean())
    found = LogFit(
        **counts, auroc=area, auroc_ci95=(low, high), ece=ece(p_N, rows.y_N), brier=brier(p_N, rows.y_N),
        base_brier=base * (1 - base), episodes_needed=int(np.ceil(len(scored) * ((high - low) / WANTED_WIDTH) ** 2)),
        threshold=threshold, asked_share=float((risk_N >= threshold).mean()), router=str(out), refused=None,
    )  # fmt: skip
    write_json(out / "fit.json", {**asdict(found), "beats_random": found.beats_random})
    return found


def folds(task_N: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The fold of each row; a task, numbered from 0, is in one fold."""
    return np.asarray(np.random.default_rng(seed).permutation(int(task_N.max()) + 1)[task_N] % FOLDS)


def fold_models(rows: Rows, fold_N: NDArray[np.int64], seed: int) -> list[RiskMLP]:
    """For each fold, a risk fitted and calibrated on the others."""
    from r2v.learning.tabular import fit_risk

    models = []
    for fold in range(FOLDS):
        held, inner = fold_N == fold, fold_N == (fold + 1) % FOLDS
        train, check = rows.where(~held & ~inner), rows.where(inner)
        models.append(fit_risk(train, check, FEATURES, seed=seed))
    return models


def held_out_risk(rows: Rows, fold_N: NDArray[np.int64], seed: int) -> Floats:
    """Risk of each row by the model that did not see its fold."""
    p_N = np.zeros(len(rows))
    for fold, model in enumerate(fold_models(rows, fold_N, seed)):
        held = fold_N == fold
        p_N[held] = model.risk(rows.x_NF[held], rows.present_NF[held])
    return p_N


def _known(rows: Rows) -> tuple[str, ...]:
    """Features that the logs have at all: black-box logs have no log-probabilities."""
    return tuple(name for i, name in enumerate(FEATURES) if rows.present_NF[:, i].any())
