"""Does worth fitted by trees need fewer calls than `benefit`'s ridge? `python benchmarks/worth_by_trees.py RUN --tasks 150`

RUN is a finished run with `benefit` and `cascade`. Extremely randomised trees are fitted to the gain of the run's branched
steps (and to the rows that `value_of_help.py` made of its router tasks: `--rows FILE`); P(the teacher differs) is that of
`benefit`. All are played at shares of the SLM's validation steps on fresh tasks. Also: how well the gain is predicted on
the validation rows of FILE.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import ExtraTreesRegressor

from r2v.core.agent import Routed, Solo
from r2v.core.features import batch
from r2v.core.fixed import Never
from r2v.core.mlp import RiskMLP
from r2v.core.seeds import derive_seed
from r2v.core.types import Features
from r2v.evaluation.closed_loop import cases, play_all
from r2v.evaluation.outcomes import Row, gather, row
from r2v.evaluation.results import Played, Prices, summarise
from r2v.pipeline.agents import make_environment, make_models, make_teacher
from r2v.pipeline.run_folder import RunFolder
from r2v.pipeline.settings import FRESH_SEEDS_FROM
from r2v.routers.base import RouterBase

TREES, LEAF, SHARE = 200, 12, 0.4
"""Trees, rows of a leaf at least, and share of the features that a split may choose from."""
ABSENT = -9.0
"""In the place of a feature that is not known."""
PIECE = 25
"""Tasks that are played together."""
Walk = tuple[np.ndarray, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trees(RouterBase):
    """`benefit` with another regression of what the teacher's step adds."""

    name: str = "trees"
    disagreement: RiskMLP
    fitted: Any
    kind = "benefit"

    def score(self, features: Features) -> float:
        differs = self.disagreement.score(features)
        return differs * (max(0.0, self._worth(features)) + 1e-4)  # of steps that gain nothing, where it differs

    @cached_property
    def _worth(self) -> Any:
        return lru_cache(4096)(self._of_one)

    def _of_one(self, features: Features) -> float:
        feature, threshold, left, right, value, at = self._walk
        x = np.where(features.present, features.values, ABSENT).astype(np.float32)
        while (inner := feature[at] >= 0).any():
            lower = x[np.maximum(feature[at], 0)] <= threshold[at]
            at = np.where(inner, np.where(lower, left[at], right[at]), at)
        return float(value[at].mean())

    @cached_property
    def _walk(self) -> Walk:
        trees = [tree.tree_ for tree in self.fitted.estimators_]
        roots = np.cumsum([0, *(tree.node_count for tree in trees)])[:-1]
        down = [
            np.concatenate([getattr(tree, side) + root for tree, root in zip(trees, roots, strict=True)])
            for side in ("children_left", "children_right")
        ]
        feature, threshold = (np.concatenate([getattr(tree, key) for tree in trees]) for key in ("feature", "threshold"))
        return feature, threshold, *down, np.concatenate([tree.value[:, 0, 0] for tree in trees]), roots


def rows_of(run: RunFolder, kept: dict[str, np.ndarray], split: str) -> tuple[np.ndarray, np.ndarray]:
    """(features, mean gain over all futures) of each branched step: of the run (router tasks), and of the file."""
    found: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
    episodes, tried = (run.rollouts(), run.interventions()) if split == "router" else (run.validation_episodes(), None)
    for b in tried.branches if tried is not None else ():
        found[b.episode, b.t].append(float(b.helped) - float(b.alone))
    for kind in {key.rsplit("/", 1)[0] for key in kept if key.startswith(f"{split}/")}:
        gain_ND = kept[f"{kind}/helped"] - kept[f"{kind}/alone"]
        for i, t, gain_D in zip(kept[f"{kind}/episode"], kept[f"{kind}/t"], gain_ND, strict=True):
            found[int(i), int(t)] += gain_D.tolist()
    x_NF, present_NF = batch([episodes[i].steps[t].choice.features for i, t in found])
    return np.where(present_NF, x_NF, ABSENT), np.array([np.mean(gains) for gains in found.values()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--tasks", type=int, default=150, help="fresh tasks")
    parser.add_argument("--seed", type=int, default=1, help="of the fresh tasks, as in `r2v evaluate`")
    parser.add_argument("--rows", type=Path, help="what value_of_help.py wrote")
    a = parser.parse_args()
    torch.set_num_threads(1)
    run = RunFolder(a.run)
    s, benefit = run.settings, run.router("benefit")
    kept = dict(np.load(a.rows)) if a.rows else {}
    x_NF, gain_N = rows_of(run, kept, "router")
    forest = ExtraTreesRegressor(TREES, min_samples_leaf=LEAF, max_features=SHARE, random_state=0).fit(x_NF, gain_N)
    print(f"{len(gain_N)} branched steps, mean gain {gain_N.mean():+.3f}", flush=True)
    trees = Trees(disagreement=benefit.disagreement, fitted=forest)
    if any(key.startswith("validation/") for key in kept):
        held_NF, held_N = rows_of(run, kept, "validation")
        correlation = np.corrcoef(forest.predict(held_NF), held_N)[0, 1]
        print(f"correlation with the gain of {len(held_N)} validation steps: {correlation:+.3f}", flush=True)
    routers = {name: run.router(name) for name in ("r2v", "benefit", "cascade")} | {"trees": trees}
    held = run.validation_episodes()
    grids = {name: router.thresholds(held, s.evaluate.asked_shares) for name, router in routers.items()}
    tasks = s.domain.fresh_tasks(s.environment, a.tasks, derive_seed("fresh tasks", s.seed, a.seed))
    zs = [FRESH_SEEDS_FROM + a.seed * 1000 + i for i in range(len(s.perturbations.test))]
    rows: dict[str, list[Row]] = {}
    for first in range(0, len(tasks), PIECE):
        models = make_models(s, run.slm)
        agents: dict[str, Any] = {"slm_only": Routed(models, Never()), "llm_only": Solo(make_teacher(s), "teacher")}
        agents |= {f"{name} {t}": Routed(models, routers[name].at(t)) for name, grid in grids.items() for t in grid}
        found = asyncio.run(
            play_all(
                list(agents.values()), cases(tasks[first : first + PIECE], zs),
                lambda task, z: make_environment(s, task, z), horizon=s.environment.horizon,
            )
        )  # fmt: skip
        for name, episodes in zip(agents, found, strict=True):
            rows.setdefault(name, []).extend(map(row, episodes))
        print(f"{first + PIECE} of {len(tasks)} tasks", flush=True)
    of = {name: gather(found, [task.id for task in tasks], zs, s.environment.horizon) for name, found in rows.items()}
    played = {name: Played(of[name], None) for name in ("slm_only", "llm_only")}
    for name, grid in grids.items():
        played[name] = Played(of[f"{name} {grid[0]}"], grid[0], tuple(grid), tuple(of[f"{name} {t}"] for t in grid))
    summary, differences = summarise(played, zs, Prices(1, 50), s.router.alpha, s.evaluate.resamples, s.seed)
    for name in grids:
        equal, ahead = summary[name]["calls_at_equal_success"], differences.get(name, {}).get("calls_at_equal_success")
        print(f"{name}: area {summary[name]['area']:.4f}, calls at equal success {equal}; r2v minus it {ahead}")


if __name__ == "__main__":
    main()
