"""What reading is worth: AUROC of the risk among steps of the same number, on tasks left out.

    python benchmarks/reading.py ../shared/data/trajectories [--only mint ...] [--steps 25000]

Rows of whole episodes, drawn where there are more steps than `--steps`. The difference is that of the reading model and
the small network on features (what r2v fitted before), with its 95 % interval over groups of tasks. `within` compares
steps of one model with each other alone: what is left once it is known which model is good.

Boosted trees are measured beside it: on the features alone, and on the features and the reader's log-odds together
(stacked, in two sizes). A reader that reads with trees on top would be built if it won by .01 with its interval above zero
on two sets. It wins on none (stacked less linear, few small trees: WorkBench -.021, AgentDojo -.033, tau-bench -.010,
InterCode .000, KnowAgent +.001, MINT -.006), so the reader stays linear.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
from advise_recorded import SETS
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from r2v.core.groups import folds, groups
from r2v.evaluation.curves import interval, resample_BT
from r2v.learning.reading import ReadRows, fit_reader, logit, read_rows
from r2v.logs.detection import detect
from r2v.logs.importing import import_logs
from r2v.maths import Bools, Floats
from r2v.maths.stats import auroc_equal_B
from r2v.studies.evidence import drawn_within, own_steps
from r2v.studies.inspect_logs import by_features

FOLDS, RESAMPLES = 5, 300
LARGE = {"max_iter": 100, "learning_rate": 0.08, "max_leaf_nodes": 15}
SMALL = {"max_iter": 80, "learning_rate": 0.06, "max_leaf_nodes": 8}
BEFORE = "29 features, small network"


def trees(x_NF: Floats, y_N: Floats, held: Bools, size: Mapping[str, Any]) -> Floats:
    """P(y = 1) of the rows that are held out, by gradient-boosted trees on the others."""
    model = HistGradientBoostingClassifier(random_state=0, **size)
    return np.asarray(model.fit(x_NF[~held], y_N[~held]).predict_proba(x_NF[held])[:, 1])


def boosted(x_NF: Floats, y_N: Floats, fold_N: NDArray[np.int64]) -> Floats:
    """Trees on the features alone, each fold by the others."""
    p_N = np.zeros(len(y_N))
    for fold in range(FOLDS):
        p_N[fold_N == fold] = trees(x_NF, y_N, fold_N == fold, LARGE)
    return p_N


def stacked(rows: ReadRows, y_N: Floats, fold_N: NDArray[np.int64], x_NF: Floats) -> dict[str, Floats]:
    """P(y = 1) of the reader, each fold by the others, and of trees that see its log-odds beside the features. The log-odds
    that trees are fitted on are of readers that saw neither the row's own fold nor the one held out.
    """
    every = np.ones(len(y_N), dtype=bool)
    without = {
        (one, other): logit(fit_reader(rows, y_N, (fold_N != one) & (fold_N != other), seed=0), rows, every)
        for one, other in combinations_with_replacement(range(FOLDS), 2)
    }
    on_top = {"reading, boosted on top": LARGE, "reading, few small trees on top": SMALL}
    found = {key: np.zeros(len(y_N)) for key in ("reading", *on_top)}
    for fold in range(FOLDS):
        seen_N = np.choose(fold_N, [without[min(fold, k), max(fold, k)] for k in range(FOLDS)])
        held = fold_N == fold
        found["reading"][held] = 1 / (1 + np.exp(-seen_N[held]))
        for key, size in on_top.items():
            found[key][held] = trees(np.column_stack([x_NF, seen_N]), y_N, held, size)
    return found


def measure(name: str, path: Path, most: int) -> None:
    """Print the lines of one set."""
    start = time.perf_counter()
    episodes, _ = import_logs(path, detect(path))
    episodes = [e for e in episodes if e.success is not None and own_steps(e)]
    episodes = [episodes[i] for i in sorted(drawn_within([len(e.steps) for e in episodes], most, 0))]
    found = groups(episodes)
    rows = read_rows(episodes, found.group_E, [own_steps(e) for e in episodes])
    y_N = np.array([float(not e.success) for e in episodes])[rows.episode_N]
    fold_N = folds(rows.group_N, FOLDS, 0)
    keep = rows.present_NF.sum(axis=0) > len(rows) // 100
    seen_NF = np.where(rows.present_NF, rows.x_NF, np.nan)[:, keep]
    rate_A = np.array([[y_N[(rows.agent_N == a) & (fold_N != k)].mean() if ((rows.agent_N == a) & (fold_N != k)).any()
                        else y_N.mean() for a in range(len(rows.agents))] for k in range(FOLDS)])  # fmt: skip
    models = {
        "which model": rate_A[fold_N, rows.agent_N],
        BEFORE: by_features(rows, y_N, fold_N, 0),
        "29 features, boosted": boosted(seen_NF, y_N, fold_N),
        **stacked(rows, y_N, fold_N, seen_NF),
    }
    group_N = np.unique(rows.group_N, return_inverse=True)[1]
    weights_BG = resample_BT(int(group_N.max()) + 1, RESAMPLES, 0)
    within_N = rows.t_N + (rows.t_N.max() + 1) * rows.agent_N
    areas = {key: auroc_equal_B(p_N, y_N, group_N, rows.t_N, weights_BG) for key, p_N in models.items()}
    print(f"{name}: {len(episodes)} episodes, {len(rows)} steps, {found.count} groups of {found.tasks} tasks")
    for key, area_B in areas.items():
        inside = auroc_equal_B(models[key], y_N, group_N, within_N, weights_BG[:1])[0]
        print(f"   {key:36} {area_B[0]:.3f} ({', '.join(f'{q:.3f}' for q in interval(area_B))})  within {inside:.3f}")
    for one, other in (("reading", BEFORE), *((key, "reading") for key in models if "boosted" in key or "trees" in key)):
        gap_B = areas[one] - areas[other]
        low, high = interval(gap_B)
        print(f"   {f'{one}, less {other}':62} {gap_B[0]:+.3f} ({low:+.3f} to {high:+.3f})")
    print(f"   {time.perf_counter() - start:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="*", default=list(SETS))
    parser.add_argument("--steps", type=int, default=25_000)
    arguments = parser.parse_args()
    for name in arguments.only:
        measure(name, arguments.data / SETS[name], arguments.steps)


if __name__ == "__main__":
    main()
