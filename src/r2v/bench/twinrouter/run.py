"""`r2v bench twinrouterbench`: routers on the static bank, beside what needs no router and what others have published.

A label says which tier sufficed at a step after the recorded ones, so this is a replay: no agent acts on what was chosen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from r2v.bench.twinrouter.adapter import HORIZON, Asked, TwinRouter, bounds_of, estimated_tokens
from r2v.bench.twinrouter.bank import read_bank
from r2v.bench.twinrouter.bill import RESAMPLES
from r2v.bench.twinrouter.protocol import CacheStateSnapshot, ModelCacheView, RouterContext, RunConfig
from r2v.bench.twinrouter.published import HIGH, MODELS, PUBLISHED, TIERS
from r2v.bench.twinrouter.static import Bank, Count, Ints, characters
from r2v.core.errors import SettingsError
from r2v.evaluation.curves import interval, resample_BT
from r2v.maths import Floats
from r2v.routers.base import RouterBase
from r2v.runtime.progress import Report

SUITE = "twinrouterbench"
SHUFFLES = 20
"""Random assignments of a router's own tiers to the rows."""
STEP_S = PUBLISHED.cache_s / PUBLISHED.cache_steps
"""Seconds that a step is taken to last: the cache then lives for as many steps as the scores say."""


def bench(
    path: Path,
    routers: Mapping[str, RouterBase],
    *,
    shares: Sequence[float] | None = None,
    cache_aware: bool = False,
    seed: int = 1,
    count: Count = characters,
    progress: Report = lambda *_: None,
) -> dict[str, Any]:
    """Score routers on the static bank.

    Args:
        path: the bank (`bank.read_bank`).
        routers: name -> router at its operating point.
        shares: of steps for low, mid, mid_high and high, by quantiles of a router's scores on the bank (no label is read);
            None: two tiers.
        cache_aware: see `TwinRouter`.
        seed: of draws, of the random nulls and of the intervals.
        count: tokens of a text for a tier's tokeniser.
        progress: called as the rows are decided.

    Returns:
        `suite`, `rows` (one a router), `nulls` (cheapest, strongest, step_0, and random by router), `bound` (the labels
        themselves), `refused` (router -> why), `fidelity`, `published`.

    Raises:
        SettingsError, ArtifactError: the bank cannot be read, or `shares` is wrong.
    """
    if shares is not None:
        bounds_of([0.0], shares)  # wrong shares are no fault of a router
    bank = Bank.priced(read_bank(path), count)
    chosen: dict[str, Ints] = {}
    facts: dict[str, dict[str, Any]] = {}
    refused: dict[str, str] = {}
    for name, router in routers.items():
        try:
            asked = _asked(bank, TwinRouter(router, cache_aware=cache_aware, seed=seed), name, progress)
            facts[name] = {"asked": sum(one.decision is not None for one in asked)}
            if shares is not None and router.kind is not None:
                scores = [
                    one.decision.score
                    for one in asked
                    if one.decision and one.decision.score is not None and one.decision.score_kind == router.kind
                ]
                bounds = bounds_of(scores, shares)
                asked = _asked(bank, TwinRouter(router, tiers=bounds, cache_aware=cache_aware, seed=seed), name, progress)
                facts[name]["tiers"] = bounds
        except SettingsError as error:
            refused[name] = str(error)
            continue
        chosen[name] = np.array([one.tier for one in asked])
        facts[name]["sha256"] = hashlib.sha256(chosen[name].astype(np.int8).tobytes()).hexdigest()
    # Labels are read from here on.
    weights_BJ = resample_BT(int(bank.trajectory_N.max()) + 1, RESAMPLES, seed)
    starts_N = np.r_[True, np.diff(bank.trajectory_N) != 0]
    fixed = {
        "cheapest": np.zeros(len(bank.rows), dtype=np.int64),
        "strongest": np.full(len(bank.rows), HIGH),
        "step_0": np.where(starts_N, HIGH, 0),
    }

    def row(name: str, drawn: Sequence[Ints]) -> dict[str, Any]:
        return _row(bank, name, drawn, weights_BJ)

    rng = np.random.default_rng(seed)
    return {
        "suite": SUITE,
        "rows": [row(name, [tiers]) | facts[name] for name, tiers in chosen.items()],
        "nulls": {
            **{name: row(name, [tiers]) for name, tiers in fixed.items()},
            "random": {
                name: row(f"random, as many of each tier as {name}", [rng.permutation(tiers) for _ in range(SHUFFLES)])
                for name, tiers in chosen.items()
            },
        },
        "bound": row("the labels", [bank.gold_N]),
        "refused": refused,
        "fidelity": _fidelity(bank, count),
        "published": {"static": msgspec.to_builtins(PUBLISHED.static), "source": dict(PUBLISHED.source)},
    }


def _asked(bank: Bank, router: TwinRouter, name: str, progress: Report) -> list[Asked]:
    """The router on every row; a trajectory's cache state follows from its own choices. It sees no label."""
    asked: list[Asked] = []
    views: dict[str, ModelCacheView] = {}
    for n, row in enumerate(bank.rows):
        if n == 0 or bank.rows[n - 1].instance != row.instance:
            views = {}
        now = row.step * STEP_S
        context = RouterContext(
            instance_id=row.instance,
            step_index=row.step - 1,
            messages=row.messages,
            tools=row.functions,
            available_models=tuple(MODELS.values()),
            cache_state=CacheStateSnapshot(PUBLISHED.cache_s, now, dict(views)),
            budget_so_far_usd=0.0,
            run_config=RunConfig(HORIZON, 0.0, PUBLISHED.cache_s, 0.0),
        )
        asked.append(router.ask(context))
        model = MODELS[TIERS[asked[-1].tier]]
        views[model] = ModelCacheView(model, now, estimated_tokens(row.messages))
        progress(n + 1, len(bank.rows), name)
    return asked


def _row(bank: Bank, name: str, drawn: Sequence[Ints], weights_BJ: Floats) -> dict[str, Any]:
    """Means over the draws; the interval is over trajectories. A case is solved where every one of its steps passes."""
    solved_J = np.mean([bank.solved_J(tiers) for tiers in drawn], axis=0)
    success_B = np.round(weights_BJ @ solved_J, 12)  # the weights of a resample add up to 1 but for the last bits
    scores = [bank.scores(tiers) for tiers in drawn]
    solved = float(solved_J.sum())
    mean = {key: float(np.mean([one[key] for one in scores])) for key in scores[0] if key != "cost_save_by_workload"}
    return {
        "router": name,
        "share_strong": float(np.mean([np.mean(tiers == HIGH) for tiers in drawn])),
        "success": float(success_B[0]),
        "ci95": interval(success_B),
        "usd_per_solved": mean["usd"] / solved if solved else None,
        **mean,
        "share_of_tiers": {tier: float(np.mean([np.mean(tiers == t) for tiers in drawn])) for t, tier in enumerate(TIERS)},
        "cost_save_by_workload": {
            key: float(np.mean([one["cost_save_by_workload"][key] for one in scores])) for key in bank.benchmarks
        },
    }


def _fidelity(bank: Bank, count: Count) -> dict[str, Any]:
    """How far this is the published track."""
    workloads = {name: int(n) for name, n in zip(bank.benchmarks, np.bincount(bank.benchmark_N), strict=True)}
    return {
        "rows": len(bank.rows),
        "trajectories": int(bank.trajectory_N.max()) + 1,
        "workloads": workloads,
        "complete": workloads == dict(PUBLISHED.workloads),
        "tokens": "characters / 4; the published figures count with each vendor's tokeniser"
        if count is characters
        else "own",
    }
