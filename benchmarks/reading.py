"""What reading is worth: AUROC of the risk among steps of the same number, on tasks left out.

    python benchmarks/reading.py ../shared/data/trajectories [--only mint ...] [--steps 25000]

Rows of whole episodes, drawn where there are more steps than `--steps`. The difference is that of the reading model and
the small network on features (what r2v fitted before), with its 95 % interval over groups of tasks. `within` compares
steps of one model with each other alone: what is left once it is known which model is good.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from advise_recorded import SETS
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from r2v.core.groups import folds, groups
from r2v.evaluation.curves import interval, resample_BT
from r2v.learning.reading import ReadRows, cross_fitted, read_rows
from r2v.logs.detection import detect
from r2v.logs.importing import import_logs
from r2v.maths import Floats
from r2v.maths.stats import auroc_equal_B
from r2v.studies.evidence import drawn_within, own_steps
from r2v.studies.inspect_logs import by_features

FOLDS, RESAMPLES = 5, 300


def boosted(x_NF: Floats, y_N: Floats, fold_N: NDArray[np.int64]) -> Floats:
    """Gradient-boosted trees, each fold by the others."""
    p_N = np.zeros(len(y_N))
    for fold in range(FOLDS):
        held = fold_N == fold
        model = HistGradientBoostingClassifier(max_iter=100, learning_rate=0.08, max_leaf_nodes=15, random_state=0)
        p_N[held] = model.fit(x_NF[~held], y_N[~held]).predict_proba(x_NF[held])[:, 1]
    return p_N


def on_top(rows: ReadRows, y_N: Floats, fold_N: NDArray[np.int64], seen_NF: Floats) -> Floats:
    """Boosted trees that see the reader's own probability beside the features, left out inside of the training folds."""
    p_N = np.zeros(len(y_N))
    for fold in range(FOLDS):
        held = fold_N == fold
        inner_N = np.where(held, -1, fold_N)
        reader_N = cross_fitted(rows, y_N, inner_N, seed=0)[0]  # of the held fold: by a reader of all others
        model = HistGradientBoostingClassifier(max_iter=80, learning_rate=0.06, max_leaf_nodes=8, random_state=0)
        x_NF = np.column_stack([seen_NF, reader_N])
        p_N[held] = model.fit(x_NF[~held], y_N[~held]).predict_proba(x_NF[held])[:, 1]
    return p_N


def measure(name: str, path: Path, most: int, top: bool) -> None:
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
        "29 features, small network (before)": by_features(rows, y_N, fold_N, 0),
        "29 features, boosted": boosted(seen_NF, y_N, fold_N),
        "reading": cross_fitted(rows, y_N, fold_N, seed=0)[0],
    }
    if top:
        models["reading, boosted on top"] = on_top(rows, y_N, fold_N, seen_NF)
    group_N = np.unique(rows.group_N, return_inverse=True)[1]
    weights_BG = resample_BT(int(group_N.max()) + 1, RESAMPLES, 0)
    within_N = rows.t_N + (rows.t_N.max() + 1) * rows.agent_N
    areas = {key: auroc_equal_B(p_N, y_N, group_N, rows.t_N, weights_BG) for key, p_N in models.items()}
    print(f"{name}: {len(episodes)} episodes, {len(rows)} steps, {found.count} groups of {found.tasks} tasks")
    for key, area_B in areas.items():
        inside = auroc_equal_B(models[key], y_N, group_N, within_N, weights_BG[:1])[0]
        print(f"   {key:36} {area_B[0]:.3f} ({', '.join(f'{q:.3f}' for q in interval(area_B))})  within {inside:.3f}")
    gap_B = areas["reading"] - areas["29 features, small network (before)"]
    low, high = interval(gap_B)
    print(f"   difference to before                 {gap_B[0]:+.3f} ({low:+.3f} to {high:+.3f})", end="")
    print(f"   {time.perf_counter() - start:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="*", default=list(SETS))
    parser.add_argument("--steps", type=int, default=25_000)
    parser.add_argument("--top", action="store_true", help="also boosted trees on top of the reader (slow)")
    arguments = parser.parse_args()
    for name in arguments.only:
        measure(name, arguments.data / SETS[name], arguments.steps, arguments.top)


if __name__ == "__main__":
    main()
