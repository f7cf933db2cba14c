"""Fits every router that the settings want, on the router tasks, and writes each into its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from r2v.core.features import EXTENDED, PAPER, batch, featurise
from r2v.core.types import Episode
from r2v.evaluation.branches import Branch
from r2v.learning.comparators import fit_band, fit_goal, fit_linucb, renewal_at, running_means
from r2v.learning.labels import Rows, failure_rows, labelled_rows
from r2v.learning.linear import fit_ridge
from r2v.learning.settings import RouterSettings
from r2v.maths.calibration import brier, ece
from r2v.maths.stats import auroc
from r2v.pipeline.runner import StageContext
from r2v.pipeline.stages.prefer import chosen_slm
from r2v.routers.mlp import load_router
from r2v.runtime.store import read_episodes, read_json, write_json

Objective = Literal["decoupled", "paper"]
RESTART_THRESHOLDS = 101
DIFFERS = "the chance that the teacher would act differently"


def fit_routers(ctx: StageContext, validation: Sequence[Episode]) -> None:
    """`validation`: the SLM's own episodes on validation tasks, for early stopping and calibration."""
    import torch

    torch.set_num_threads(ctx.settings.threads)
    wanted, rollout = set(ctx.settings.routers), ctx.read("rollout")
    recorded = read_episodes(rollout / "router.parquet")
    rollouts, held = _scored(recorded), _scored(validation)
    quality = {}
    names = feature_names(ctx.settings.router)
    quality["r2v"] = _fit(ctx, "r2v", "decoupled", failure_rows(rollouts, names), failure_rows(held, names), names)
    if "r2v_paper" in wanted:
        rows = failure_rows(rollouts, PAPER), failure_rows(held, PAPER)
        quality["r2v_paper"] = _fit(ctx, "r2v_paper", "paper", *rows, PAPER)
    if wanted & {"cascade", "benefit", "helper", "cascade_routing"}:
        help = read_json(rollout / "help.json")
        train = labelled_rows(recorded, help["differs"], EXTENDED)
        check = labelled_rows(validation, help["differs_validation"], EXTENDED)
        quality["cascade"] = _fit(ctx, "cascade", "decoupled", train, check, EXTENDED, DIFFERS)
        if "benefit" in wanted:
            _fit_worth(recorded, [Branch(**b) for b in help["branches"]], ctx.out / "benefit")
        if "cascade_routing" in wanted:
            _fit_later(ctx, read_episodes(rollout / "redrawn.parquet"), help["differs_redrawn"])
    if "query" in wanted:
        goal = fit_goal([e.goal for e in rollouts], [not e.success for e in rollouts])
        write_json(ctx.out / "query.json", {"bias": goal.bias, "weights": dict(goal.weights)})
    if "conformal" in wanted:
        _fit_conformal(ctx, rollouts, held)
    if "restart" in wanted:
        _fit_restart(ctx, rollouts)
    if wanted & {"bandit", "helper"}:
        explored = _scored(read_episodes(rollout / "explored.parquet"))
        if "bandit" in wanted:
            bandit = fit_linucb([*rollouts, *explored])
            bandit.scale.save(ctx.out / "bandit")
            arms = {"inverse": bandit.inverse_AFF.tolist(), "bonus": bandit.bonus}
            write_json(ctx.out / "bandit" / "arms.json", arms)
        if "helper" in wanted:
            _fit_helper(ctx, [*rollouts, *explored])
    write_json(ctx.out / "validation.json", quality)


def feature_names(settings: RouterSettings) -> tuple[str, ...]:
    return PAPER if settings.features == "paper" else EXTENDED


def _scored(episodes: Sequence[Episode]) -> list[Episode]:
    return [episode for episode in episodes if episode.success is not None]


def _fit(
    ctx: StageContext,
    name: str,
    objective: Objective,
    train: Rows,
    held: Rows,
    names: tuple[str, ...],
    estimates: str | None = None,
) -> dict[str, float]:
    """Fit, save, and say how good it is on the held-out rows."""
    from r2v.learning.router import fit_router

    settings = ctx.settings
    facts: dict[str, Any] = {"seed": settings.seed, "slm": chosen_slm(ctx).parent.name}
    if estimates is not None:
        facts["estimates"] = estimates
    router = fit_router(train, held, names, settings.router, objective, seed=settings.seed, progress=ctx.report, facts=facts)
    router.save(ctx.out / name)
    p_N = router.risk(held.x_NF, held.present_NF)
    return {"ece": ece(p_N, held.y_N), "brier": brier(p_N, held.y_N), "auroc": auroc(p_N, held.y_N)}


def _fit_worth(episodes: Sequence[Episode], branches: Sequence[Branch], folder: Path) -> None:
    """What the teacher's step is worth where it differs: least squares on the branched steps, every draw a row."""
    features = [episodes[b.episode].steps[b.t].choice.features for b in branches]
    assert all(row is not None for row in features)
    x_NF, present_NF = batch([row for row in features if row is not None])
    gain_N = np.array([float(b.helped) - float(b.alone) for b in branches])
    number = {task: i for i, task in enumerate(sorted({e.task.id for e in episodes}))}
    owner_N = np.array([number[episodes[b.episode].task.id] for b in branches])
    fit_ridge(x_NF, present_NF, gain_N, owner_N, EXTENDED, "what the teacher's step adds to success where it differs").save(
        folder
    )


def _fit_later(ctx: StageContext, episodes: Sequence[Episode], differs: Sequence[Sequence[bool]]) -> None:
    """P(the best of two draws differs from the teacher), foreseen from the features of the first."""
    k, horizon = ctx.settings.slm.k, ctx.settings.environment.horizon
    rows, y, seeds, owners = [], [], [], []
    for i, (episode, of_steps) in enumerate(zip(episodes, differs, strict=True)):
        contexts = episode.contexts(horizon)
        for step, context, label in zip(episode.steps, contexts, of_steps, strict=True):
            rows.append(featurise(context, step.choice.candidates[:k], step.choice.scores[:k]))
            y.append(float(label))
            seeds.append(step.seed)
            owners.append(i)
    every = Rows(*batch(rows), np.array(y), np.array(seeds), np.array(owners))
    out = every.episode_N % 5 == 0  # these episodes choose the epoch and the temperature
    train, held = every.where(~out), every.where(out)
    _fit(ctx, "cascade_routing", "decoupled", train, held, EXTENDED, DIFFERS + " after one more draw of candidates")


def _fit_conformal(ctx: StageContext, rollouts: Sequence[Episode], held: Sequence[Episode]) -> None:
    score = load_router(ctx.out / "r2v").score
    shape, width = (running_means([e for e in episodes if e.success], score) for episodes in (rollouts, held))
    band = fit_band(shape, width, ctx.settings.environment.horizon)
    numbers = {"mean": band.mean_H, "std": band.std_H, "excess": band.excess_N}
    write_json(ctx.out / "conformal.json", {key: value.tolist() for key, value in numbers.items()})


def _fit_restart(ctx: StageContext, episodes: Sequence[Episode]) -> None:
    """What stopping at each of some thresholds does."""
    score = load_router(ctx.out / "r2v").score
    scores = [
        np.array([score(step.choice.features) for step in e.steps if step.choice.features is not None]) for e in episodes
    ]
    thresholds = np.quantile(np.concatenate(scores), np.linspace(0, 1, RESTART_THRESHOLDS))
    table = [{"threshold": float(t), **asdict(renewal_at(episodes, scores, float(t)))} for t in thresholds]
    write_json(ctx.out / "restart.json", table)


def _fit_helper(ctx: StageContext, episodes: Sequence[Episode]) -> None:
    from r2v.learning.helper import fit_helper

    settings = ctx.settings
    differs, risk = load_router(ctx.out / "cascade"), load_router(ctx.out / "r2v")
    helper = fit_helper(
        episodes, differs, risk, settings.help.budgets, settings.environment.horizon, settings.router, seed=settings.seed
    )
    for i, value in enumerate(helper.values):
        value.save(ctx.out / "helper" / str(i))
    write_json(ctx.out / "helper" / "helper.json", {"prices": list(helper.prices), "promised": list(helper.budgets)})
