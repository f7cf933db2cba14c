"""One decision: features of a 30-step context with five candidates, risk, threshold, NumPy alone. Floor: median < 100 us."""

from __future__ import annotations

import statistics
import time
from itertools import pairwise

import numpy as np

from r2v.core.features import FEATURES, featurise
from r2v.core.mlp import RiskMLP
from r2v.core.types import Action, Candidate, Context, Memory, Usage
from r2v.routers.r2v import R2V

FLOOR_US = 100


def main() -> None:
    rng = np.random.default_rng(0)
    widths = (len(FEATURES), 128, 64, 1)
    layers = tuple((rng.normal(size=(a, b)) / a**0.5, rng.normal(size=b)) for a, b in pairwise(widths))
    model = RiskMLP(FEATURES, np.zeros(widths[0]), np.ones(widths[0]), layers)
    router = R2V(risk=model, threshold=0.5)
    seen = [
        f"You arrive at shelf {i % 9}. On the shelf {i % 9}, you see a book {i % 4}, a pen {i % 3}, and a mug 1."
        for i in range(31)
    ]
    context = Context("put two pen in drawer.", tuple(seen), tuple(Action(f"go to shelf {i % 9}") for i in range(30)), 40)
    candidates = tuple(Candidate(Action(f"go to shelf {i}"), -0.5 * i, 0.4, Usage(1)) for i in range(5))
    scores = (0.7, 0.6, 0.7, 0.5, 0.4)
    times_us = []
    for i in range(3000):
        start = time.perf_counter()
        router.decide(context, featurise(context, candidates, scores), Memory(), seed=i)
        times_us.append(1e6 * (time.perf_counter() - start))
    median = statistics.median(times_us)
    print(f"decision: median {median:.0f} us (floor {FLOOR_US} us): {'ok' if median < FLOOR_US else 'SHORT'}")


if __name__ == "__main__":
    main()
