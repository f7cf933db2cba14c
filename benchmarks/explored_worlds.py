"""How often `r2v advise` proves a gain from explored steps, how often its intervals hold the truth, and believes noise.

    python benchmarks/explored_worlds.py --sessions 700 --explore 0.12 --worlds 42 [--shuffled]

Each world is that of `tests/test_explored.py`, whose true benefits are known. With `--shuffled` outcomes are dealt out anew:
then `route` should never come out, and what is true is 0.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from r2v.core.groups import folds
from r2v.evaluation.gain import SHARES, escalated, mean_gain
from r2v.studies.advise import FOLDS, advise
from r2v.studies.costs import Costs
from test_explored import truth_U, world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=700)
    parser.add_argument("--explore", type=float, default=0.12)
    parser.add_argument("--worlds", type=int, default=10)
    parser.add_argument("--shuffled", action="store_true")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    for seed in range(options.worlds):
        episodes, benefit = world(options.sessions, explore=options.explore, seed=seed)
        if options.shuffled:
            order = np.random.default_rng(seed + 1000).permutation(len(episodes))
            episodes = [replace(e, success=episodes[n].success) for e, n in zip(episodes, order, strict=True)]
            benefit = np.zeros_like(benefit)
        advice = advise(episodes, Costs())
        facts, evidence = advice.facts, advice.evidence
        if evidence is None or facts["evidence"] != "explored":
            counts["too little"] += 1
            continue
        units = evidence.units(advice.probabilities, folds(evidence.rows.group_N, FOLDS, 0))
        escalated_U, _ = escalated(units, SHARES, evidence.score_kinds)
        true_U = truth_U(evidence, episodes, benefit)
        true = mean_gain(escalated_U.astype(float), true_U, units.model_U)
        counts[facts["verdict"]] += 1
        for name, value, (low, high) in (
            ("gain", true, facts["gain_ci95"]), ("benefit", float(true_U.mean()), facts["benefit_ci95"]),
        ):  # fmt: skip
            counts[f"95 % interval of the {name} holds the truth"] += low <= value <= high
        print(f"world {seed}: {facts['verdict']}, gain {facts['gain_over_random']:+.3f}, true {true:+.3f}", flush=True)
    print(dict(counts))


if __name__ == "__main__":
    main()
