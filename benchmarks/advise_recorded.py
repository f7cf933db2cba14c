"""What `r2v advise` says on recordings of real agents, and how often it believes noise.

    python benchmarks/advise_recorded.py ../shared/data/trajectories [--shuffles 20] [--only agentdojo ...]

Each set is read whole, and InterCode's SQL sessions of gpt-3.5 also by themselves: shown the reward of each turn
(`intercode, verdict`) and not (`intercode, none`), both beside gpt-4. With `--shuffles` the outcomes of each model's
sessions are dealt out anew among them so many times: then there is nothing to find, and `route` should come out at most
once in 20.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from r2v.core.types import Episode
from r2v.logs.detection import detect
from r2v.logs.importing import import_logs
from r2v.studies.advise import advise
from r2v.studies.costs import Costs

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


def shuffled(episodes: Sequence[Episode], seed: int) -> list[Episode]:
    """The same sessions with the outcomes of each model dealt out anew."""
    of_model = defaultdict(list)
    for i, episode in enumerate(episodes):
        of_model[episode.agent].append(i)
    success = [episode.success for episode in episodes]
    rng = np.random.default_rng(seed)
    for mine in of_model.values():
        for i, j in zip(mine, rng.permutation(mine), strict=True):
            success[i] = episodes[j].success
    return [replace(episode, success=now) for episode, now in zip(episodes, success, strict=True)]


def line(name: str, episodes: Sequence[Episode], shuffles: int) -> None:
    """Print what is advised on one set."""
    start = time.perf_counter()
    facts = advise(episodes, Costs()).facts
    took = time.perf_counter() - start
    gain = "          -           "
    if facts["gain_ci95"] is not None:
        low, high = facts["gain_ci95"]
        gain = f"{facts['gain_over_random']:+.3f} ({low:+.3f} {high:+.3f})"
    area = facts["auroc_equal_step"]
    over = (facts.get("nulls") or {}).get("gain_over_step_0")
    print(
        f"{name:20} {len(episodes):6} {facts['evidence']!s:9} {facts['verdict']:10} {gain}  "
        f"{'-' if over is None else format(over['gain'], '+.3f'):>7} {'-' if area is None else format(area, '.3f'):>6} "
        f"{facts['sessions_needed']!s:>7} {took:6.0f} s",
        flush=True,
    )
    if shuffles:
        said = Counter(advise(shuffled(episodes, seed), Costs(), seed=seed).verdict for seed in range(1, shuffles + 1))
        print(f"{'':20} shuffled outcomes: {dict(said)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--shuffles", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[*SETS, *PARTS])
    arguments = parser.parse_args()
    print(f"{'set':20} {'logs':>6} {'evidence':9} {'verdict':10} gain over random (95 %)  over step 0  AUROC  more sessions")
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
