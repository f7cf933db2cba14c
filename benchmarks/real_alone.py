"""What the two chat models of a run solve alone, where a run cannot fit a router because one of them solves nothing.

    python benchmarks/real_alone.py examples/terminal-real.yaml [--split test] [--most 20] [--seeds 0] [--concurrency 8]
        [--out FOLDER]

The tasks that the run would take, or the first ones of a split, are played by the SLM (its verifier chooses among its
candidates) and by the teacher, undisturbed (seed 0) or under perturbation seeds. Answers are taken from the settings'
cassette; new ones need the models' servers. FOLDER gets the episodes.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from pathlib import Path

import msgspec

from r2v.core.agent import Routed, Solo
from r2v.core.fixed import Never
from r2v.core.splits import split
from r2v.core.types import NO_USAGE
from r2v.evaluation.closed_loop import cases, play_all
from r2v.pipeline.agents import make_environment, make_models
from r2v.pipeline.settings import RunSettings
from r2v.runtime.settings import load
from r2v.runtime.store import write_episodes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path)
    parser.add_argument("--split", choices=("router", "validation", "test"), help="of the run; all of them unless given")
    parser.add_argument("--most", type=int, help="tasks of each split that are played")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--concurrency", type=int, default=8, help="tasks at once: not more than a server's slots hold")
    parser.add_argument("--out", type=Path, help="folder for the episodes, as slm.parquet and teacher.parquet")
    arguments = parser.parse_args()
    settings = load(arguments.settings, RunSettings)
    sizes = msgspec.to_builtins(settings.tasks)
    known = settings.domain.tasks(settings.environment, sum(sizes.values()), settings.seed)
    parts = split(known, sizes, seed=settings.seed)
    wanted = parts if arguments.split is None else [arguments.split]
    tasks = [task for name in wanted for task in parts[name][: arguments.most]]
    models = make_models(settings, Path())
    agents = [Routed(models, Never()), Solo(models.teacher, "teacher")]
    played = asyncio.run(
        play_all(
            agents, cases(tasks, arguments.seeds), lambda task, z: make_environment(settings, task, z),
            horizon=settings.environment.horizon, concurrency=arguments.concurrency,
        )
    )  # fmt: skip
    for name, episodes in zip(("SLM", "teacher"), played, strict=True):
        if arguments.out is not None:
            arguments.out.mkdir(parents=True, exist_ok=True)
            write_episodes(arguments.out / f"{name.lower()}.parquet", episodes)
        solved = [f"{episode.task.id} ({episode.seed})" for episode in episodes if episode.success]
        steps = sum(len(episode.steps) for episode in episodes)
        print(f"{name:8} solves {len(solved)} of {len(episodes)} episodes in {steps} steps: {', '.join(solved) or 'none'}")
        spent = sum((step.choice.slm + step.choice.teacher for episode in episodes for step in episode.steps), NO_USAGE)
        usd = "no price set" if spent.usd is None else f"{spent.usd:.4f} USD"
        print(f"         {spent.calls} answers, {spent.prompt_tokens} tokens read, {spent.completion_tokens} written, {usd}")
        if failures := Counter(str(episode.failure) for episode in episodes if episode.failure is not None):
            print(f"         broken: {dict(failures)}")


if __name__ == "__main__":
    main()
