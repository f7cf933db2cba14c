"""One decision with five candidates: features, score, threshold, NumPy alone. Medians, beside that of a fixed loop.

    python benchmarks/decision_latency.py

A small network on a context of 30 steps (floor: 100 us), and a router that reads, on that context, on one of 100,000 tokens
whose strings are new each time, as a gateway gets them, and on the latter without the features (floor: 200 us each).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from r2v.core.features import FEATURES, featurise, proposing
from r2v.core.mlp import RiskMLP
from r2v.core.reading import FIELDS, ROOM, Reader
from r2v.core.types import Action, Candidate, Context, Features, Memory, Usage
from r2v.routers.base import RouterBase
from r2v.routers.r2v import R2V
from r2v.routers.reading import Reading

STEPS, TOKENS = 30, 100_000
SCORES = (0.7, 0.6, 0.7, 0.5, 0.4)


def short(i: int) -> Context:
    """A household's."""
    seen = [
        f"You arrive at shelf {j % 9} in house {i}. On the shelf {j % 9}, you see a book {(i + j) % 4}, and a mug 1."
        for j in range(STEPS + 1)
    ]
    return Context("put two pen in drawer.", tuple(seen), tuple(Action(f"go to shelf {j % 9}") for j in range(STEPS)), 40)


def long(i: int) -> Context:
    """A coding agent's: 100,000 tokens of four characters."""
    words = [f"name_{(i * 7 + j) % 9000} = call({j})" for j in range(TOKENS * 4 // (STEPS + 1) // 22)]
    seen = [f"file {i} {j}\n" + "\n".join(words) for j in range(STEPS + 1)]
    done = tuple(Action(f"edit file {j} " + " ".join(words[:40])) for j in range(STEPS))
    return Context("mend the failing test in the parser " * 20, tuple(seen), done, 40)


def median_us(decide: Callable[[Context], object], contexts: Iterator[Context]) -> float:
    times = []
    for context in contexts:
        start = time.perf_counter()
        decide(context)
        times.append(1e6 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    rng = np.random.default_rng(0)
    widths = (len(FEATURES), 128, 64, 1)
    layers = tuple((rng.normal(size=(a, b)) / a**0.5, rng.normal(size=b)) for a, b in pairwise(widths))
    network = R2V(risk=RiskMLP(FEATURES, np.zeros(widths[0]), np.ones(widths[0]), layers), threshold=0.5)
    edges, bins = np.sort(rng.normal(size=(len(FEATURES), 4)), axis=1), rng.normal(size=(len(FEATURES), 5))
    ends = np.array([[-1.0] * len(FIELDS), [1.0] * len(FIELDS)])
    reading = Reading(reader=Reader(FEATURES, edges, bins, rng.normal(size=ROOM) / 10, ends, 0.0), threshold=0.5)
    actions = [Action(f"go to shelf {i} " + "then look " * 40 * i) for i in range(5)]
    candidates = tuple(Candidate(action, -0.5 * i, 0.4, Usage(1)) for i, action in enumerate(actions))

    def whole(router: RouterBase) -> Callable[[Context], object]:
        def decide(context: Context) -> object:
            features = featurise(context, candidates, SCORES)
            return router.decide(proposing(context, candidates, SCORES), features, Memory(), seed=0)

        return decide

    def without(router: RouterBase, features: Features) -> Callable[[Context], object]:
        return lambda context: router.decide(proposing(context, candidates, SCORES), features, Memory(), seed=0)

    some = featurise(long(0), candidates, SCORES)
    cases = (
        ("network, 30 short steps", whole(network), (short(i) for i in range(2000)), 100),
        ("reading, 30 short steps", whole(reading), (short(i) for i in range(2000)), 200),
        ("reading, 100,000 tokens", whole(reading), (long(i) for i in range(300)), 200),
        ("  of it without features", without(reading, some), (long(i) for i in range(300)), 200),
    )
    loop = median_us(lambda _: sum(range(10_000)), (short(0) for _ in range(300)))
    print(f"a fixed loop (sum of 10,000 numbers): {loop:.0f} us")
    for name, decide, contexts, floor in cases:
        took = median_us(decide, contexts)
        met = "ok" if took < floor else "SHORT"
        print(f"{name:26} median {took:4.0f} us ({took / loop:.2f} loops; floor {floor} us): {met}")


if __name__ == "__main__":
    main()
