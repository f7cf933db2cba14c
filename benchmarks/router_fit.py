"""Fitting the router on 50,000 rows x 15 features, 50 epochs, two threads. Floor: under 5 s, for each objective."""

from __future__ import annotations

import time
from typing import Literal

import numpy as np
import torch

from r2v.core.features import PAPER
from r2v.learning.labels import Rows
from r2v.learning.router import fit_mlp
from r2v.learning.settings import RouterSettings

FLOOR_S = 5.0


def rows(n: int, seed: int) -> Rows:
    rng = np.random.default_rng(seed)
    x_NF = rng.normal(size=(n, len(PAPER)))
    y_N = (rng.random(n) < 1 / (1 + np.exp(-x_NF[:, 0] - 0.5 * x_NF[:, 4]))).astype(float)
    return Rows(x_NF, np.ones_like(x_NF, dtype=bool), y_N, rng.integers(1, 21, n), np.arange(n) // 20)


def main() -> None:
    torch.set_num_threads(2)
    train, validation = rows(50_000, 0), rows(5_000, 1)
    objectives: tuple[Literal["decoupled", "paper"], ...] = ("decoupled", "paper")
    for objective in objectives:
        start = time.perf_counter()
        fit_mlp(train, validation, PAPER, RouterSettings(epochs=50), objective, seed=0)
        seconds = time.perf_counter() - start
        print(f"{objective}: {seconds:.1f} s (floor {FLOOR_S:.0f} s): {'ok' if seconds < FLOOR_S else 'SHORT'}")


if __name__ == "__main__":
    main()
