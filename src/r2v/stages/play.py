"""The work of one worker process: play some cases with one agent and leave the outcome in a file.

The file is the resume point: a job whose file exists is done. Full episodes go to Parquet; where only numbers are needed
(the points of a curve), rows go to JSON.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from r2v.build.parts import Player, make_agent, make_environment
from r2v.build.settings import RunSettings
from r2v.evaluation.closed_loop import cases, play
from r2v.evaluation.outcomes import Row, row
from r2v.stages.runner import Bench
from r2v.store import read_episodes, read_json, write_episodes, write_json
from r2v.types import Episode, Task


@dataclass(frozen=True)
class Job:
    settings: RunSettings
    player: Player
    cases: list[tuple[Task, int]]
    file: Path
    """`*.parquet`: whole episodes; `*.json`: rows only."""


def run_job(job: Job) -> None:
    if job.file.exists():
        return
    agent = make_agent(job.settings, job.player)
    episodes = asyncio.run(
        play(
            agent,
            job.cases,
            lambda task, seed: make_environment(job.settings, task, seed),
            horizon=job.settings.environment.horizon,
        )
    )
    if job.file.suffix == ".json":
        write_json(job.file, [asdict(row(episode)) for episode in episodes])
    else:
        write_episodes(job.file, episodes)


def play_episodes(
    bench: Bench, player: Player, tasks: Sequence[Task], seeds: Sequence[int], label: str, *, chunk: int = 200
) -> list[Episode]:
    """Every task under every seed, spread over the workers in chunks of tasks; episodes by task, then seed."""
    jobs = [
        (
            worker,
            Job(
                bench.settings,
                player,
                cases(shard[i : i + chunk], seeds),
                bench.partial / f"{label}-{worker}-{i}.parquet",
            ),
        )
        for worker, shard in enumerate(bench.workers.shards(tasks))
        for i in range(0, len(shard), chunk)
    ]
    bench.workers.map(run_job, jobs, bench.report, label)
    episodes = {(e.task.id, e.seed): e for _, job in jobs for e in read_episodes(job.file)}
    return [episodes[task.id, seed] for task in tasks for seed in seeds]


def play_rows(
    bench: Bench, players: Sequence[tuple[str, Player]], tasks: Sequence[Task], seeds: Sequence[int], label: str
) -> list[list[Row]]:
    """The rows of each named player on every task under every seed."""
    shards = bench.workers.shards(tasks)
    jobs = [
        (worker, Job(bench.settings, player, cases(shard, seeds), bench.partial / f"{label}-{name}-{worker}.json"))
        for name, player in players
        for worker, shard in enumerate(shards)
    ]
    bench.workers.map(run_job, jobs, bench.report, label)
    rows = [[Row(**{**raw, "asked": tuple(raw["asked"])}) for raw in read_json(job.file)] for _, job in jobs]
    per_player = len(shards)
    return [list(chain.from_iterable(rows[i : i + per_player])) for i in range(0, len(rows), per_player)]
