"""Fits the risk of failing to a table of features with scikit-learn: for logs, without torch.

A small network with one hidden layer, a few times from different seeds; the mean of their logits is one wider network, which
is what is saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from r2v.core.features import FEATURES
from r2v.core.mlp import Calibration, RiskMLP
from r2v.learning.labels import Rows
from r2v.learning.linear import ranges, standardisation
from r2v.maths import Floats
from r2v.maths.calibration import fit_scaling, nll

NETWORKS = 3
HIDDEN = 128
EPOCHS = 20
BATCH = 512
LEARNING_RATE = 3e-3
PENALTY = 0.01
"""Of the squared weights (scikit-learn's `alpha`)."""
SHARPNESS = 2.0**14
"""`RiskMLP` has GELU, scikit-learn ReLU: gelu(c x) / c differs from relu(x) by less than 0.17 / c, and a power of two
changes no digit of a weight."""
Layer = tuple[NDArray[np.float32], NDArray[np.float32]]


def fit_risk(
    train: Rows, validation: Rows, names: tuple[str, ...], *, seed: int, facts: Mapping[str, Any] | None = None
) -> RiskMLP:
    """Fit P(failure) on `train`; of each network the epoch with the best likelihood on `validation` is kept, and the mean is
    calibrated there by temperature scaling. `names` are the columns of both. Raises ValueError where all labels are equal.
    """
    if not 0 < train.y_N.mean() < 1:
        raise ValueError("the episodes to fit on are all failed or all solved")
    mean_F, std_F = standardisation(train.x_NF, train.present_NF)
    z_NF, z_val_NF = (
        np.where(rows.present_NF, (rows.x_NF - mean_F) / std_F, 0.0).astype(np.float32) for rows in (train, validation)
    )
    with threadpool_limits(1):  # the products are small: a second thread costs more than it gives on a busy machine
        networks = [_network(z_NF, train.y_N, z_val_NF, validation.y_N, seed + i) for i in range(NETWORKS)]
    hidden, out = zip(*networks, strict=True)
    layers = (
        (np.hstack([w for w, _ in hidden]) * SHARPNESS, np.hstack([b for _, b in hidden]) * SHARPNESS),
        (np.vstack([w for w, _ in out]) / np.float32(NETWORKS) / SHARPNESS, np.mean([b for _, b in out], axis=0)),
    )
    rounded = tuple((w.astype(np.float32).astype(float), b.astype(np.float32).astype(float)) for w, b in layers)
    model = RiskMLP(names, mean_F, std_F, rounded, Calibration(), {"rows": len(train), **(facts or {})})
    slope, bias = fit_scaling(model.logit(validation.x_NF, validation.present_NF), validation.y_N, with_bias=False)
    seen = (np.vstack([train.x_NF, validation.x_NF]), np.vstack([train.present_NF, validation.present_NF]))
    return replace(model, calibration=Calibration(slope, bias), range_2F=ranges(*seen))


def _network(
    z_NF: NDArray[np.float32], y_N: Floats, z_val_NF: NDArray[np.float32], y_val_N: Floats, seed: int
) -> list[Layer]:
    """[(weights, bias) of the hidden layer, of the output] after the best epoch."""
    network = MLPClassifier(
        (HIDDEN,), alpha=PENALTY, learning_rate_init=LEARNING_RATE, batch_size=min(BATCH, len(y_N)), random_state=seed
    )
    best_nll, best = float("inf"), []
    for _ in range(EPOCHS):
        network.partial_fit(z_NF, y_N, classes=[0.0, 1.0])
        if (now := nll(network.predict_proba(z_val_NF)[:, 1], y_val_N)) < best_nll:
            best_nll = now
            best = [(w.copy(), b.copy()) for w, b in zip(network.coefs_, network.intercepts_, strict=True)]
    return best


def fold_models(rows: Rows, fold_N: NDArray[np.int64], seed: int) -> list[RiskMLP]:
    """For each fold, a risk on all `FEATURES`, fitted and calibrated on the others."""
    models, count = [], int(fold_N.max()) + 1
    for fold in range(count):
        held, inner = fold_N == fold, fold_N == (fold + 1) % count
        models.append(fit_risk(rows.where(~held & ~inner), rows.where(inner), FEATURES, seed=seed))
    return models


def held_out_risk(rows: Rows, fold_N: NDArray[np.int64], seed: int) -> Floats:
    """Risk of each row by the model that did not see its fold."""
    p_N = np.zeros(len(rows))
    for fold, model in enumerate(fold_models(rows, fold_N, seed)):
        held = fold_N == fold
        p_N[held] = model.risk(rows.x_NF[held], rows.present_NF[held])
    return p_N
