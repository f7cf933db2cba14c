"""The work of one worker process: players on some cases, together; what came out lies in a folder.

The folder is the resume point: a job whose `rows.json` exists is done. Full episodes are written for the players that are
kept; of the others (the points of a curve) only numbers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from r2v.build.parts import Player, make_agents, make_environment
from r2v.build.settings import RunSettings
from r2v.evaluation.closed_loop import cases, play_all
from r2v.evaluation.outcomes import Row, row
from r2v.stages.runner import Bench
from r2v.store import read_episodes, read_json, write_episodes, write_json
from r2v.types import Episode, Task

JOB_EPISODES = 6000
JOB_TASKS = 40
"""Upper limits of one job. Jobs depend on nothing else, so results are the same with any number of workers."""


@dataclass(frozen=True)
class Job:
    settings: RunSettings
    players: Mapping[str, Player]
    kept: Collection[str]
    """Names of the players whose episodes are written whole."""
    cases: list[tuple[Task, int]]
    folder: Path


def run_job(job: Job) -> None:
    if (job.folder / "rows.json").exists():
        return
    played = asyncio.run(
        play_all(
            make_agents(job.settings, job.players.values()),
            job.cases,
            lambda task, seed: make_environment(job.settings, task, seed),
            horizon=job.settings.environment.horizon,
        )
    )
    episodes_of = dict(zip(job.players, played, strict=True))
    for name in job.kept:
        write_episodes(job.folder / f"{name}.parquet", episodes_of[name])
    rows = {name: [asdict(row(episode)) for episode in episodes] for name, episodes in episodes_of.items()}
    write_json(job.folder / "rows.json", rows)


def play_players(
    bench: Bench,
    players: Mapping[str, Player],
    tasks: Sequence[Task],
    seeds: Sequence[int],
    label: str,
    *,
    keep: Collection[str] = (),
) -> tuple[dict[str, list[Row]], dict[str, list[Episode]]]:
    """Every named player on every task under every seed, spread over the workers: (rows of all, episodes of those kept).

    Episodes are ordered by task, then seed. `label` names the work on the disk and in the progress bar.
    """
    size = max(1, min(JOB_TASKS, JOB_EPISODES // (len(players) * len(seeds))))
    jobs = [
        Job(bench.settings, players, keep, cases(tasks[i : i + size], seeds), bench.partial / f"{label}-{i}")
        for i in range(0, len(tasks), size)
    ]
    bench.workers.map(run_job, jobs, bench.report, label)
    rows: dict[str, list[Row]] = {name: [] for name in players}
    for job in jobs:
        for name, raw in read_json(job.folder / "rows.json").items():
            rows[name] += [
                Row(**{**fields, "asked": tuple(fields["asked"]), "answers": tuple(fields["answers"])}) for fields in raw
            ]
    episodes = {}
    for name in keep:
        by_case = {(e.task.id, e.seed): e for job in jobs for e in read_episodes(job.folder / f"{name}.parquet")}
        episodes[name] = [by_case[task.id, seed] for task, seed in cases(tasks, seeds)]
    return rows, episodes


def play_episodes(bench: Bench, player: Player, tasks: Sequence[Task], seeds: Sequence[int], label: str) -> list[Episode]:
    """The episodes of one player, ordered by task, then seed."""
    return play_players(bench, {label: player}, tasks, seeds, label, keep=[label])[1][label]


def knob_players(grid: Mapping[str, Sequence[float]], slm: Path, fitted: Path) -> dict[str, Player]:
    """A player for every knob position of every router with a knob, by the name that `at` gives it."""
    return {
        at(name, threshold): Player("routed", slm, name, threshold, fitted)
        for name, thresholds in grid.items()
        for threshold in thresholds
    }


def at(name: str, threshold: float) -> str:
    """Name of a router at one knob position."""
    return f"{name}@{threshold!r}"
