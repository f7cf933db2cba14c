"""What the two chat models of a run solve alone, where a run cannot fit a router because one of them solves nothing.

    python benchmarks/real_alone.py examples/terminal-real.yaml [--seeds 0]

Every task of the settings is played by the SLM (its verifier chooses among its candidates) and by the teacher, undisturbed
(seed 0) or under perturbation seeds. Answers are taken from the settings' cassette; new ones need the models' servers.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from pathlib import Path

import msgspec

from r2v.core.agent import Routed, Solo
from r2v.core.fixed import Never
from r2v.evaluation.closed_loop import cases, play_all
from r2v.pipeline.agents import make_environment, make_models
from r2v.pipeline.settings import RunSettings
from r2v.runtime.settings import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    settings = load(arguments.settings, RunSettings)
    count = sum(msgspec.to_builtins(settings.tasks).values())
    tasks = settings.domain.tasks(settings.environment, count, settings.seed)
    models = make_models(settings, Path())
    agents = [Routed(models, Never()), Solo(models.teacher, "teacher")]
    played = asyncio.run(
        play_all(
            agents, cases(tasks, arguments.seeds), lambda task, z: make_environment(settings, task, z),
            horizon=settings.environment.horizon, concurrency=8,
        )
    )  # fmt: skip
    for name, episodes in zip(("SLM", "teacher"), played, strict=True):
        solved = [f"{episode.task.id} ({episode.seed})" for episode in episodes if episode.success]
        steps = sum(len(episode.steps) for episode in episodes)
        print(f"{name:8} solves {len(solved)} of {len(episodes)} episodes in {steps} steps: {', '.join(solved) or 'none'}")
        if failures := Counter(str(episode.failure) for episode in episodes if episode.failure is not None):
            print(f"         broken: {dict(failures)}")


if __name__ == "__main__":
    main()
