"""What `r2v advise` says on recordings of real agents, and how often it believes noise.

    python benchmarks/advise_recorded.py ../shared/data/trajectories [--shuffles 20] [--only agentdojo ...]

Each set is read whole, and InterCode's SQL sessions of gpt-3.5 also by themselves: shown the reward of each turn
(`intercode, verdict`) and not (`intercode, none`), both beside gpt-4. `unseen` is the gain with the model left out of the
fit beside the tasks. With `--shuffles` outcomes are dealt out anew so many times, of each weaker model among its sessions
and of the stronger one among the tasks: then there is nothing to find, and `route` should come out at most once in 20. The
steps stay those that were drawn, read once; the outcomes and the folds change.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from r2v.core.types import Episode
from r2v.evaluation.gain import SHARES, Verdict
from r2v.logs.detection import detect
from r2v.logs.importing import import_logs
from r2v.studies.advise import advise, measured, verdict_of
from r2v.studies.costs import Costs
from r2v.studies.evidence import Evidence, Paired, paired_labels

SETS = {
    "agentdojo": "agentdojo/episodes.jsonl.xz",
    "intercode": "intercode/episodes.jsonl.xz",
    "workbench": "workbench/episodes.jsonl.xz",
    "mint": "mint/dev_episodes.jsonl.xz",
    "knowagent": "knowagent_alfworld/episodes.jsonl.xz",
    "tau-bench": "tau_bench/episodes.jsonl.xz",
}
STRONG = "gpt-4 multiturn 10 turns"
PARTS = {"intercode, verdict": "gpt-3.5 multiturn 10 turns", "intercode, none": "gpt-3.5 react 10 turns"}
"""Of InterCode: which weaker agent stands beside gpt-4."""


def part(episodes: Sequence[Episode], weak: str) -> list[Episode]:
    """The SQL sessions of two agents."""
    return [e for e in episodes if e.agent in (weak, STRONG) and e.task.id.startswith("sql/")]


def shuffled(evidence: Paired, seed: int) -> Paired:
    """The same steps with outcomes dealt out anew."""
    rng = np.random.default_rng(seed)
    alone_E = evidence.alone_E.copy()
    for model in range(len(evidence.slms)):
        mine = np.flatnonzero(evidence.unit_models == model)
        alone_E[mine] = alone_E[rng.permutation(mine)]
    names = [f"{e.task.id} {e.perturbation} {e.seed}" for e in evidence.episodes]
    _, first, cell_E = np.unique(names, return_index=True, return_inverse=True)
    handed_E = rng.permutation(evidence.handed_E[first])[cell_E]
    labels = paired_labels(evidence.rows, alone_E, handed_E)
    return replace(evidence, labels=labels, alone_E=alone_E, handed_E=handed_E)


def verdict(evidence: Evidence, seed: int) -> Verdict:
    """What would be said of this evidence."""
    first, again = measured(evidence, SHARES, False, seed)
    found: Verdict = verdict_of(evidence, first.gain, again, {})["verdict"]
    return found


def gain(facts: Mapping[str, Any] | None) -> str:
    """In points, with its interval."""
    if facts is None or facts["gain_ci95"] is None:
        return f"{'-':^22}"
    low, high = facts["gain_ci95"]
    return f"{facts['gain_over_random']:+.3f} ({low:+.3f} {high:+.3f})"


def line(name: str, episodes: Sequence[Episode], shuffles: int) -> None:
    """Print what is advised on one set."""
    start = time.perf_counter()
    advice = advise(episodes, Costs())
    took, facts, evidence = time.perf_counter() - start, advice.facts, advice.evidence
    area, unseen = facts["auroc_equal_step"], facts.get("left_out_models")
    over = (facts.get("nulls") or {}).get("gain_over_step_0")
    print(
        f"{name:20} {len(episodes):6} {facts['evidence']!s:9} {facts['verdict']:10} {gain(facts)}  "
        f"{'-' if over is None else format(over['gain'], '+.3f'):>7} {'-' if area is None else format(area, '.3f'):>6} "
        f"{facts['sessions_needed']!s:>7} {took:6.0f} s  {gain(unseen)} "
        f"{'-' if unseen is None else format(unseen['auroc_equal_step'], '.3f')}",
        flush=True,
    )
    if unseen is not None and evidence is not None and evidence.kind == "paired":
        clear = sum(m["gain_ci95"][0] > 0 for m in unseen["models"].values())
        worse = sum(m["gain_ci95"][1] < 0 for m in unseen["models"].values())
        print(f"{'':20} unseen models: {len(unseen['models'])}, {clear} above 0, {worse} below", flush=True)
    if shuffles and evidence is not None and evidence.kind == "paired":
        said: Counter[Verdict] = Counter()
        for seed in range(1, shuffles + 1):
            said[verdict(shuffled(evidence, seed), seed)] += 1
            print(f"{'':20} shuffled outcomes: {dict(said)} {time.perf_counter() - start:6.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--shuffles", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[*SETS, *PARTS])
    arguments = parser.parse_args()
    heads = "over step 0  AUROC  more sessions  unseen (95 %), AUROC"
    print(f"{'set':20} {'logs':>6} {'evidence':9} {'verdict':10} gain over random (95 %)  {heads}")
    for name, file in SETS.items():
        parts = {key: weak for key, weak in PARTS.items() if name == "intercode" and key in arguments.only}
        if name not in arguments.only and not parts:
            continue
        path = arguments.data / file
        episodes, _ = import_logs(path, detect(path))
        if name in arguments.only:
            line(name, episodes, arguments.shuffles)
        for key, weak in parts.items():
            line(key, part(episodes, weak), arguments.shuffles)


if __name__ == "__main__":
    main()
