"""The helper policy (arXiv 2502.04576; method, section 8): from episodes with random interventions to a price and a router.

State keys are bins of two fitted numbers, P(the teacher differs) and P(the SLM fails), at every step of the horizon. Counts
of what followed each key with and without an intervention, smoothed, are the model; backward induction gives the value of
intervening at a price; a regression on the step's features carries it to states that no key has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from r2v.core.features import FEATURES, batch
from r2v.core.mlp import RiskMLP
from r2v.core.types import Episode
from r2v.learning.router import fit_values
from r2v.learning.settings import RouterSettings
from r2v.maths import Floats
from r2v.maths.mdp import Mdp, limited, meet_budget

DIFFERS_EDGES = (0.6, 0.75, 0.85, 0.92, 0.96, 0.98)
RISK_EDGES = (0.33, 0.67)
"""Quantiles between the bins of the two numbers. Help goes to few steps, so the first is fine where it is high."""
KEYS = (len(DIFFERS_EDGES) + 1) * (len(RISK_EDGES) + 1)
BUCKET = 4
"""Steps that share their counts."""
SMOOTHING = 8.0
"""Weight, in observations, of the same key at all steps; and of all keys."""
EPOCHS = 40


@dataclass(frozen=True, eq=False)
class _Steps:
    """One row a step of the explored episodes, in order; the last of an episode has `next_N` WON or LOST."""

    x_NF: Floats
    present_NF: NDArray[np.bool_]
    t_N: NDArray[np.int64]
    escalated_N: NDArray[np.int64]
    key_N: NDArray[np.int64]
    share_N: Floats
    """P(the teacher differs) over its mean within the key."""
    next_N: NDArray[np.int64]


WON, LOST = KEYS, KEYS + 1


@dataclass(frozen=True, eq=False)
class HelperFit:
    """The value of intervening for each budget, and the price it has to exceed."""

    budgets: tuple[float, ...]
    prices: tuple[float, ...]
    values: list[RiskMLP]
    """One a budget; with a limit of calls one for each number of calls left, from 1 on, of the first budget, then of the
    next."""
    mdp: Mdp


def fit_helper(
    episodes: Sequence[Episode],
    differs: RiskMLP,
    risk: RiskMLP,
    budgets: Sequence[float],
    horizon: int,
    settings: RouterSettings,
    *,
    seed: int,
    max_calls: int | None = None,
    names: tuple[str, ...] = FEATURES,
) -> HelperFit:
    """The value of intervening, its price held to each budget. Raises ValueError where no step was escalated.

    Args:
        episodes: routed, with random escalations (also none).
        differs: P(the teacher differs).
        risk: P(the SLM fails).
        budgets: teacher calls an episode, on average.
        horizon: steps of an episode.
        settings: of the regression.
        seed: of the regression.
        max_calls: in an episode at most; the calls that are left are then part of the state.
        names: features that the regression reads.
    """
    steps = _read(episodes, differs, risk)
    if not steps.escalated_N.any():
        raise ValueError("no step of these episodes had help; the helper needs exploration")
    first = np.array([0, *np.flatnonzero(steps.next_N >= WON)[:-1] + 1])
    prior = 1 - risk.risk(*_columns(steps.x_NF, steps.present_NF, risk))
    mdp = model(steps.t_N, steps.escalated_N, steps.key_N, steps.next_N, steps.key_N[first], prior, horizon)
    planned = mdp if max_calls is None else limited(mdp, max_calls)
    prices, targets = [], []
    for budget in budgets:
        mix = meet_budget(planned, budget)
        price = (mix.cheap.price + mix.dear.price) / 2
        q_HAS = mix.dear.q_HAS
        gain_HBS = (q_HAS[:, 1] - q_HAS[:, 0] + mix.dear.price).reshape(horizon, -1, KEYS)
        prices.append(price)
        for gain_HS in (gain_HBS[:, 0],) if max_calls is None else np.moveaxis(gain_HBS, 1, 0)[1:]:
            targets.append(gain_HS[steps.t_N, steps.key_N] * steps.share_N)
    columns = [FEATURES.index(name) for name in names]
    values = fit_values(
        steps.x_NF[:, columns], steps.present_NF[:, columns], np.stack(targets, axis=1), names, settings, seed=seed,
        epochs=EPOCHS, facts={"estimates": "what the teacher's step adds to the chance of success", "rows": len(steps.t_N)},
    )  # fmt: skip
    return HelperFit(tuple(budgets), tuple(prices), values, mdp)


def model(
    t_N: NDArray[np.int64],
    escalated_N: NDArray[np.int64],
    key_N: NDArray[np.int64],
    next_N: NDArray[np.int64],
    start: NDArray[np.int64],
    prior_N: Floats,
    horizon: int,
) -> Mdp:
    """Smoothed transition frequencies. A key never seen with an intervention is taken to gain nothing from
    it; a key never seen at all ends at once with the PRM's mean chance of success (`prior_N` holds the PRM of each row).
    """
    S, buckets = KEYS, -(-horizon // BUCKET)
    count = np.zeros((buckets, 2, S, S + 2))
    np.add.at(count, (t_N // BUCKET, escalated_N, key_N, next_N), 1)
    always = count.sum(axis=0)
    anywhere = always.sum(axis=1, keepdims=True)
    level = (always + SMOOTHING * anywhere / np.maximum(anywhere.sum(axis=2, keepdims=True), 1)) / (
        always.sum(axis=2, keepdims=True) + SMOOTHING
    )
    chance = (count + SMOOTHING * level) / (count.sum(axis=3, keepdims=True) + SMOOTHING)
    unseen = always.sum(axis=2) == 0
    for key in np.flatnonzero(unseen[0]):
        chance[:, 0, key] = 0
        chance[:, 0, key, WON] = prior_N.mean()
    for key in np.flatnonzero(unseen[1]):
        chance[:, 1, key] = chance[:, 0, key]
    per_step = chance[np.arange(horizon) // BUCKET]
    start_S = np.bincount(start, minlength=S).astype(float)
    return Mdp(per_step[..., :S], per_step[..., WON], start_S / start_S.sum(), np.array([0.0, 1.0]))


def _read(episodes: Sequence[Episode], differs: RiskMLP, risk: RiskMLP) -> _Steps:
    rows, t, escalated, last = [], [], [], []
    for episode in episodes:
        for step in episode.steps:
            assert step.choice.features is not None
            rows.append(step.choice.features)
            t.append(step.t)
            escalated.append(int(step.choice.source == "teacher"))
            last.append(-1)
        if episode.steps:
            last[-1] = WON if episode.success else LOST
    x_NF, present_NF = batch(rows)
    differs_N, risk_N = (model.risk(*_columns(x_NF, present_NF, model)) for model in (differs, risk))
    key_N = _binned(differs_N, DIFFERS_EDGES) * (len(RISK_EDGES) + 1) + _binned(risk_N, RISK_EDGES)
    mean_K = np.bincount(key_N, differs_N, KEYS) / np.maximum(np.bincount(key_N, minlength=KEYS), 1)
    last_N = np.array(last)
    next_N = np.where(last_N >= 0, last_N, np.append(key_N[1:], 0))
    return _Steps(
        x_NF, present_NF, np.array(t), np.array(escalated), key_N, differs_N / np.maximum(mean_K[key_N], 1e-9), next_N
    )


def _columns(x_NF: Floats, present_NF: NDArray[np.bool_], model: RiskMLP) -> tuple[Floats, NDArray[np.bool_]]:
    return x_NF[:, model.columns], present_NF[:, model.columns]


def _binned(p_N: Floats, quantiles: Sequence[float]) -> NDArray[np.int64]:
    return np.searchsorted(np.quantile(p_N, quantiles), p_N, side="right")
