"""How often the intervals of `r2v advise` hold the true gain, and how often they believe noise, in worlds made of numbers.

    python benchmarks/gain_intervals.py --worlds 400

Each world has groups of steps whose route was drawn, or of sessions that two models played; two scores say more or less of
what escalating is worth. `fixed` holds the chosen operating points fixed in all resamples, as r2v 0.2 did; `wider` is what
is served (`choice_widens`). Printed are the shares of worlds in which the 95 % interval holds the true gain of what was
escalated, and in which the 99 % interval lies above it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from r2v.core.groups import folds
from r2v.evaluation import gain
from r2v.evaluation.gain import SHARES, Units, choice_widens, escalated, gain_of, mean_gain
from r2v.maths import Floats
from r2v.maths.offpolicy import doubly_robust_N

KINDS = ("benefit", "risk")
World = tuple[Units, Floats]


def _units(worth_U: Floats, true_U: Floats, scores: dict[str, Floats], group_U: np.ndarray) -> World:
    return Units(worth_U, scores, np.zeros(len(worth_U), dtype=np.int64), group_U, folds(group_U, 5, 0)), true_U


def steps(rng: np.random.Generator, groups: int, each: int, rarest: float, effect: float) -> World:
    """Steps that drew their route, of which help matters at one in six."""
    group_U = np.repeat(np.arange(groups), each)
    n = len(group_U)
    e_U = np.where(rng.random(n) < 0.5, rarest, 1 - rarest)
    helped_U, z_U = (rng.random(n) < e_U).astype(float), rng.normal(size=n)
    chance_U = 0.6 - effect * (z_U > 1) * (1 - helped_U)
    solved_U = (rng.random(n) < chance_U).astype(float)
    flat = np.full(n, 0.6)
    worth_U = doubly_robust_N(helped_U, e_U, solved_U, np.ones(n), flat, flat)
    scores = {"benefit": z_U + rng.normal(size=n), "risk": z_U + 2 * rng.normal(size=n)}
    return _units(worth_U, effect * (z_U > 1), scores, group_U)


def sessions(rng: np.random.Generator, groups: int, each: int, alike: float, effect: float) -> World:
    """Sessions of tasks that two models played; those of a group are alike."""
    group_U = np.repeat(np.arange(groups), each)
    n = len(group_U)

    def drawn() -> Floats:
        return np.asarray(np.sqrt(alike) * rng.normal(size=groups)[group_U] + np.sqrt(1 - alike) * rng.normal(size=n))

    z_U = drawn()
    up = 0.25 + effect * np.tanh(z_U)
    drawn_U = 0.5 * (1 + np.tanh(drawn()))
    worth_U = (drawn_U < up).astype(float) - (drawn_U > 0.75 + effect * np.tanh(z_U)).astype(float)
    scores = {"benefit": z_U + rng.normal(size=n), "risk": z_U + 2 * rng.normal(size=n)}
    return _units(worth_U, 2 * effect * np.tanh(z_U), scores, group_U)


WORLDS: dict[str, Callable[[np.random.Generator], World]] = {
    "600 steps, noise": lambda rng: steps(rng, 60, 10, 0.15, 0.0),
    "600 steps, rarely explored, noise": lambda rng: steps(rng, 60, 10, 0.02, 0.0),
    "600 steps": lambda rng: steps(rng, 60, 10, 0.15, 0.4),
    "3000 steps": lambda rng: steps(rng, 300, 10, 0.06, 0.4),
    "200 sessions of 20 groups, noise": lambda rng: sessions(rng, 20, 10, 0.5, 0.0),
    "240 sessions, noise": lambda rng: sessions(rng, 60, 4, 0.5, 0.0),
    "240 sessions": lambda rng: sessions(rng, 60, 4, 0.5, 0.1),
    "1000 sessions": lambda rng: sessions(rng, 250, 4, 0.3, 0.1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    gain.RESAMPLES = 500
    print(f"{'':36} {'fixed: holds':>12} {'99 % above':>10} {'wider: holds':>12} {'99 % above':>10} {'by':>5}")
    for name, make in WORLDS.items():
        rng, found = np.random.default_rng(options.seed), []
        for _ in range(options.worlds):
            units, true_U = make(rng)
            escalated_U, _ = escalated(units, SHARES, KINDS)
            true = mean_gain(escalated_U.astype(float), true_U, units.model_U)
            wider, row = choice_widens(units, SHARES, KINDS, 0), []
            for factor in (1.0, wider):
                one = gain_of(escalated_U, units, 0, wider=factor)
                row += [one.ci95[0] <= true <= one.ci95[1], one.ci99[0] > true]
            found.append([*row, wider])
        fixed, above, holds, later, by = np.mean(found, axis=0)
        print(f"{name:36} {fixed:12.1%} {above:10.1%} {holds:12.1%} {later:10.1%} {by:5.2f}", flush=True)


if __name__ == "__main__":
    main()
