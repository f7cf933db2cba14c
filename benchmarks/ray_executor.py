"""Rollouts on one and on two Ray workers and in local processes, and what a killed worker costs.

    python benchmarks/ray_executor.py [--tasks 160]

The expert plays household tasks, ten in a job, on a cluster of this machine. Seconds are those of one `map` whose workers
have imported what they need, CPU seconds those of the jobs. On a machine with other work the CPU at once says what a second
worker brings. In the last row a worker is killed in the middle of its job.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from r2v.core.types import Task
from r2v.evaluation.closed_loop import cases
from r2v.pipeline.agents import AgentSpec
from r2v.pipeline.play import Job, _play
from r2v.pipeline.settings import RunSettings
from r2v.runtime.executor import Executor, ExecutorChoice

JOB_TASKS = 10
SEEDS = (21, 22, 23, 24)


def timed(job: Job) -> None:
    """Play, and note who began and what it took."""
    log = job.folder.parent / "begun"
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    begin = time.process_time()
    _play(job)
    with (log.parent / "cpu").open("a") as file:
        file.write(f"{time.process_time() - begin}\n")


def jobs_of(settings: RunSettings, tasks: Sequence[Task], folder: Path) -> list[Job]:
    agents = {"teacher": AgentSpec("teacher")}
    return [
        Job(settings, agents, ["teacher"], cases(tasks[i : i + JOB_TASKS], SEEDS), folder / str(i))
        for i in range(0, len(tasks), JOB_TASKS)
    ]


def measured(executor: Executor, jobs: list[Job], folder: Path, kill: bool = False) -> dict[str, Any]:
    for name in ("begun", "cpu"):
        (folder / name).unlink(missing_ok=True)
    if kill:
        threading.Thread(target=_kill_one, args=(folder / "begun", len(jobs) // 2)).start()
    begin = time.perf_counter()
    named: Any = __import__("ray_executor").timed  # by the name that workers know
    executor.map(named, jobs, lambda *_: None)
    seconds = time.perf_counter() - begin
    cpu = sum(map(float, (folder / "cpu").read_text().split()))
    return {"seconds": seconds, "cpu": cpu, "begun": len((folder / "begun").read_text().split())}


def _kill_one(log: Path, after: int) -> None:
    while not log.exists() or len(log.read_text().split()) < after:
        time.sleep(0.01)
    os.kill(int(log.read_text().split()[-1]), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=160)
    tasks = parser.parse_args().tasks
    settings = RunSettings(version=1)
    played = settings.domain.tasks(settings.environment, tasks, 1)[:tasks]
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    found = {}
    for kind, workers in (("processes", 1), ("processes", 2), ("ray", 1), ("ray", 2)):
        with TemporaryDirectory() as folder:
            out = Path(folder)
            jobs = jobs_of(settings, played, out)
            with ExecutorChoice(kind).started(workers, out) as executor:
                measured(executor, jobs[: 2 * workers], out)  # workers start and import
                rows = [(f"{kind} {workers}", measured(executor, jobs, out))]
                if (kind, workers) == ("ray", 2):
                    rows.append(("ray 2, one killed", measured(executor, jobs, out, kill=True)))
        for name, row in rows:
            found[name] = row
            print(
                f"{name:<18} {row['seconds']:6.1f} s  {row['cpu']:6.1f} CPU s  {row['cpu'] / row['seconds']:4.2f} at once  "
                f"{row['begun']} of {len(jobs)} jobs begun",
                flush=True,
            )
    for kind in ("processes", "ray"):
        one, two = found[f"{kind} 1"], found[f"{kind} 2"]
        at_once = (two["cpu"] / two["seconds"]) / (one["cpu"] / one["seconds"])
        print(
            f"{kind}: two workers {one['seconds'] / two['seconds']:.2f} times as fast; {at_once:.2f} times the CPU at once"
        )
    print(f"a killed worker: {found['ray 2, one killed']['seconds'] - found['ray 2']['seconds']:.1f} s")


if __name__ == "__main__":
    main()
