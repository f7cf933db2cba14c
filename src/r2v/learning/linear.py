"""Linear fits in closed form: ridge regression with its penalty chosen by tasks left out, logistic regression by Newton."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from r2v.core.mlp import RiskMLP, linear
from r2v.maths import Bools, Floats

PENALTIES = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
FOLDS = 5


def fit_ridge(
    x_NF: Floats,
    present_NF: Bools,
    y_N: Floats,
    owner_N: NDArray[np.int64],
    names: tuple[str, ...],
    estimates: str,
) -> RiskMLP:
    """Least squares of y on the standardised features; the largest penalty whose error on tasks left out is within one
    standard error of the best (differences of two outcomes are so noisy that the best alone is a matter of luck).

    `owner_N` numbers the tasks: rows of one task are never on both sides. The result's `value` is the prediction.
    """
    mean_F, std_F = standardisation(x_NF, present_NF)
    z_NF = np.where(present_NF, (x_NF - mean_F) / std_F, 0.0)
    task_N = np.unique(owner_N, return_inverse=True)[1]
    fold_N = task_N % FOLDS
    errors: dict[float, Floats] = {}
    for penalty in PENALTIES:
        wrong_N = np.zeros(len(y_N))
        for fold in np.unique(fold_N):
            out = fold_N == fold
            if out.all():
                raise ValueError("a ridge fit needs rows of at least two tasks")
            w, b = _ridge(z_NF[~out], y_N[~out], penalty)
            wrong_N[out] = (y_N[out] - z_NF[out] @ w - b) ** 2
        errors[penalty] = np.asarray(np.bincount(task_N, wrong_N), dtype=float)  # by task: its rows are not independent
    best = min(errors.values(), key=lambda error: float(error.sum()))
    bar = best.sum() + best.std() * np.sqrt(len(best))
    penalty = max(p for p, error in errors.items() if error.sum() <= bar)
    explained = 1 - float(errors[penalty].sum()) / max(float(y_N.var()) * len(y_N), 1e-12)
    w, b = _ridge(z_NF, y_N, penalty)
    facts = {
        "estimates": estimates,
        "rows": len(y_N),
        "penalty": penalty,
        "explained variance, tasks left out": round(explained, 4),
    }
    return linear(names, mean_F, std_F, w, b, facts=facts, range_2F=ranges(x_NF, present_NF))


def standardisation(x_NF: Floats, present_NF: Bools) -> tuple[Floats, Floats]:
    """Mean and standard deviation of what is present; a feature that never varies is divided by 1."""
    x_NF = np.where(present_NF, x_NF, np.nan)
    known_F = present_NF.any(axis=0)
    mean_F, std_F = np.zeros(x_NF.shape[1]), np.ones(x_NF.shape[1])
    mean_F[known_F], std_F[known_F] = np.nanmean(x_NF[:, known_F], axis=0), np.nanstd(x_NF[:, known_F], axis=0)
    # Rounded to what the file holds, so that training and inference see the same inputs.
    std_F = np.where(std_F < 1e-9, 1.0, std_F)
    return mean_F.astype(np.float32).astype(np.float64), std_F.astype(np.float32).astype(np.float64)


def ranges(x_NF: Floats, present_NF: Bools) -> Floats:
    """[2, F]: lowest and highest value of what is present; 0 where nothing is."""
    known_F = present_NF.any(axis=0)
    ends = (np.where(present_NF, x_NF, np.inf).min(axis=0), np.where(present_NF, x_NF, -np.inf).max(axis=0))
    return np.where(known_F, np.stack(ends), 0.0)


def _ridge(z_NF: Floats, y_N: Floats, penalty: float) -> tuple[Floats, float]:
    centre_F, level = z_NF.mean(axis=0), float(y_N.mean())
    z_NF = z_NF - centre_F
    w = np.linalg.solve(z_NF.T @ z_NF + penalty * np.eye(z_NF.shape[1]), z_NF.T @ (y_N - level))
    return np.asarray(w), level - float(centre_F @ w)


def fit_logistic(x_NF: Floats, y_N: Floats, penalty: float) -> tuple[Floats, float]:
    """(weights, bias) minimising the log loss + penalty/2 |weights|^2, by Newton's method (convex)."""
    design = np.hstack([x_NF, np.ones((len(x_NF), 1))])
    theta = np.zeros(design.shape[1])
    shrink = penalty * np.append(np.ones(x_NF.shape[1]), 1e-6)
    for _ in range(50):
        p_N = 1 / (1 + np.exp(-np.clip(design @ theta, -30, 30)))
        gradient = design.T @ (p_N - y_N) + shrink * theta
        hessian = (design * (p_N * (1 - p_N))[:, None]).T @ design + np.diag(shrink + 1e-9)
        step = np.linalg.solve(hessian, gradient)
        theta = theta - step
        if np.abs(step).max() < 1e-9:
            break
    return theta[:-1], float(theta[-1])
