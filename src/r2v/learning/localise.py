"""Fits a localiser to failures whose decisive step is known: a conditional logit over the steps of each, by Newton's method.

The penalty is chosen by the likelihood of failures left out, group by group, inside of what the fit is given.

Axes: E episodes, N steps of all of them, F features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2v.core.arrays import to_bytes
from r2v.core.localiser import CARD, FORMAT, NAMES, WEIGHTS, Localiser
from r2v.maths import Floats
from r2v.runtime.store import whole_file, write_text

PENALTIES = (10.0, 30.0, 100.0, 300.0)
INNER_FOLDS = 5
LEAST_GROUPS = 10
"""Groups of labelled failures below which nothing is fitted."""
Ints = NDArray[np.int64]


def fit_localiser(
    x_ETF: Sequence[Floats],
    step_E: Sequence[int],
    group_E: Ints,
    *,
    seed: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> Localiser:
    """Fit with the penalty of `PENALTIES` that is best on groups left out.

    Args:
        x_ETF: of each failure the rows of its steps (`r2v.core.localiser.step_features`).
        step_E: the decisive step of each.
        group_E: what must stay together, numbered from 0; ValueError is raised for fewer than `LEAST_GROUPS`.
        seed: of the folds.
        facts: the card.
    """
    at_E, groups = np.array(step_E), int(group_E.max(initial=-1)) + 1
    if groups < LEAST_GROUPS:
        raise ValueError(f"failures of {groups} groups of tasks are too few for a localiser: it takes {LEAST_GROUPS}")
    fold_E = (np.random.default_rng(seed).permutation(groups) % INNER_FOLDS)[group_E]
    loss = dict.fromkeys(PENALTIES, 0.0)
    for fold in range(INNER_FOLDS):
        inside, outside = np.flatnonzero(fold_E != fold).tolist(), np.flatnonzero(fold_E == fold).tolist()
        made = _scale([x_ETF[i] for i in inside])
        z_ETF = [made.standardised(x_ETF[i]) for i in inside]
        weight_F = made.weight_F
        for penalty in sorted(PENALTIES, reverse=True):  # each starts from the smoother one
            weight_F = _newton(z_ETF, at_E[inside], penalty, weight_F)
            now = replace(made, weight_F=weight_F)
            loss[penalty] -= sum(float(np.log(now.of_features(x_ETF[i])[at_E[i]] + 1e-12)) for i in outside)
    penalty = min(PENALTIES, key=loss.__getitem__)
    made = _scale(x_ETF)
    weight_F = _newton([made.standardised(x_TF) for x_TF in x_ETF], at_E, penalty, made.weight_F)
    return replace(made, weight_F=weight_F, facts={"failures": len(at_E), "penalty": penalty, **(facts or {})})


def _scale(x_ETF: Sequence[Floats]) -> Localiser:
    """One that knows nothing but the mean, spread and range of each feature."""
    x_NF = np.vstack(x_ETF)
    std_F = x_NF.std(axis=0)
    std_F[std_F < 1e-9] = 1.0
    return Localiser(NAMES, x_NF.mean(axis=0), std_F, np.stack([x_NF.min(axis=0), x_NF.max(axis=0)]), np.zeros(len(NAMES)))


def _newton(z_ETF: Sequence[Floats], at_E: Ints, penalty: float, weight_F: Floats) -> Floats:
    """Weights that minimise - sum over episodes of log P(the labelled step) + penalty/2 |weights|^2 (convex)."""
    z_NF = np.vstack(z_ETF)
    length_E = np.array([len(z_TF) for z_TF in z_ETF])
    first_E = np.concatenate([[0], np.cumsum(length_E)[:-1]])
    owner_N = np.repeat(np.arange(len(z_ETF)), length_E)
    wanted_E = first_E + at_E

    def loss(w_F: Floats) -> tuple[float, Floats]:
        score_N = z_NF @ w_F
        top_E = np.maximum.reduceat(score_N, first_E)
        e_N = np.exp(score_N - top_E[owner_N])
        sum_E = np.add.reduceat(e_N, first_E)
        fit = (score_N[wanted_E] - top_E - np.log(sum_E)).sum()
        return float(penalty / 2 * w_F @ w_F - fit), e_N / sum_E[owner_N]

    now, p_N = loss(weight_F)
    for _ in range(50):
        weighted_NF = z_NF * p_N[:, None]
        mean_EF = np.add.reduceat(weighted_NF, first_E)
        gradient_F = mean_EF.sum(axis=0) - z_NF[wanted_E].sum(axis=0) + penalty * weight_F
        hessian_FF = weighted_NF.T @ z_NF - mean_EF.T @ mean_EF + penalty * np.eye(len(weight_F))
        step_F = np.linalg.solve(hessian_FF, gradient_F)
        length = 1.0
        while (after := loss(weight_F - length * step_F))[0] > now and length > 1e-6:
            length /= 2
        weight_F = weight_F - length * step_F
        gained, (now, p_N) = now - after[0], after
        if gained < 1e-6:
            break
    return weight_F


def save_localiser(localiser: Localiser, folder: Path) -> None:
    """Write the folder that `r2v.core.localiser.load_localiser` reads."""
    card = {"format": FORMAT, "features": localiser.names, "facts": localiser.facts}
    with whole_file(folder / WEIGHTS) as aside:
        aside.write_bytes(to_bytes(localiser.arrays))
    write_text(folder / CARD, json.dumps(card, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
