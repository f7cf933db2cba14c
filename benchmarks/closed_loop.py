"""Routed closed-loop environment steps a second of a finished run, in one process with one thread and then in two.

    python benchmarks/closed_loop.py runs/quickstart

Every step: five candidates from the SLM, verifier, features, risk, decision, sometimes the teacher, environment. One router
alone, so nothing is shared between routers as it is in an evaluation. Floor: 1,000 on two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from r2v.evaluation.closed_loop import cases, play
from r2v.pipeline.agents import AgentSpec, make_agents, make_environment
from r2v.pipeline.run_folder import RunFolder

FLOOR = 1000


def measure(run: Path, shard: int, shards: int) -> tuple[int, float]:
    """(steps, seconds) of one process; loading is not counted."""
    folder = RunFolder(run)
    settings, tasks = folder.settings, folder.split("test")[shard::shards]
    (agent,) = make_agents(settings, [AgentSpec("routed", folder.slm, folder.router_folder("r2v"))])
    start = time.perf_counter()
    episodes = asyncio.run(
        play(
            agent,
            cases(tasks, settings.perturbations.test),
            lambda task, z: make_environment(settings, task, z),
            horizon=settings.environment.horizon,
        )
    )
    return sum(len(episode.steps) for episode in episodes), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    run = parser.parse_args().run
    for processes in (1, 2):
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            jobs = [pool.submit(measure, run, i, processes) for i in range(processes)]
            done = [job.result() for job in jobs]
        rate = sum(steps for steps, _ in done) / max(seconds for _, seconds in done)
        verdict = "" if processes == 1 else f" (floor {FLOOR:,}): {'ok' if rate >= FLOOR else 'SHORT'}"
        print(f"{processes} process(es): {rate:,.0f} routed steps/s{verdict}")


if __name__ == "__main__":
    main()
