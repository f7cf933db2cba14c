"""AgentDojo's records in its own engine: fidelity, what a fork takes, what the ground-truth teacher is worth at each step.

    python benchmarks/agentdojo_forks.py ../shared/data [--all-settings [VERSION...]]

Needs `pip install 'r2v[bench]'`. Some 45 s on one core; `--all-settings` replays all 17 settings, with the
tasks of each version of the benchmark that is named (v1; 30 s each).
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from r2v.bench.suite import Loaded, Outcome
from r2v.bench.suites import agentdojo
from r2v.bench.suites.agentdojo import ONE_STEP, TAKEOVER
from r2v.domains.agentdojo.engine import VERSION, Cell, models
from r2v.logs.agentdojo import FORMAT
from r2v.logs.files import objects
from r2v.logs.importing import import_logs

LAST = 5
"""Steps from here on are one row."""


def quiet(what: str, done: int, of: int) -> None:
    pass


def mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f}" if len(values) else "-"


def fidelity(name: str, found: dict) -> None:
    attacked = found["attacked"]
    for kind, part in (("clean", found), ("attacked", attacked)):
        print(f"{name}, {kind}: {part['replayed']} of {part['of']} ({part['share']:.1%}) replay")
        for episode in part["left_out"]:
            print(f"    not: {episode}")


def table(title: str, loaded: Loaded, alone: list[Outcome], forks: list[tuple[int, int]], outcomes: list[Outcome]) -> None:
    print(f"\n{title}: success and injected share at the episodes that reach the step, beside the weak model alone there")
    for attacked in (False, True):
        print("attacked" if attacked else "clean")
        for step in range(LAST + 1):
            rows = [
                (alone[i], outcome)
                for (i, t), outcome in zip(forks, outcomes, strict=True)
                if min(t, LAST) == step and (outcome.injected is not None) == attacked
            ]
            if rows:
                success = f"{mean([a.success for a, _ in rows])} -> {mean([o.success for _, o in rows])}"
                injected = f"{mean([bool(a.injected) for a, _ in rows])} -> {mean([bool(o.injected) for _, o in rows])}"
                more = "+" if step == LAST else " "
                planted = f"  injected {injected}" if attacked else ""
                print(f"  step {step}{more} {len(rows):5d}  success {success}{planted}")


def teachers(loaded: Loaded, forks: list[tuple[int, int]]) -> None:
    """The teacher of the suites beside two simpler ones, on all steps."""
    solved: dict[str, list[bool]] = {"plan": [], "calls not made yet": [], "all calls again": []}
    for i, t in forks:
        session = loaded.play.sessions[i]
        cell, state = session.cell, session.cell.start
        for turn in session.turns[:t]:
            state = state.after(turn.calls)
        for name, calls in zip(solved, (cell.plan(state), cell.missing(state), cell.solution), strict=True):
            solved[name].append(cell.judge(state.one_by_one(calls), cell.answer).success)
    print("\ntakeover at all steps, by teacher:", ", ".join(f"{name} {mean(found)}" for name, found in solved.items()))


def all_settings(data: Path, version: str) -> None:
    def plain(name: str) -> str:
        return re.sub(r"[^a-z0-9]+", "-", name.lower())

    path = data / agentdojo.RECORDS
    raw = [(where, row) for where, row in objects(path) if row["messages"]]
    episodes, _ = import_logs(path, replace(FORMAT, source=lambda _: iter(raw)), keep_unknown=True)
    cells: dict[tuple, Cell] = {}
    same: dict[bool, list[bool]] = {False: [], True: []}
    for (_, row), episode in zip(raw, episodes, strict=True):
        victim = next(name for name in models() if plain(name) in plain(row["model"]))
        session = agentdojo.session_of(row, episode, victim, agentdojo.TEACHER)
        key = session.cell.suite, session.cell.user_task, session.cell.injection_task, session.cell.addressed, version
        session = replace(session, cell=cells.setdefault(key, Cell(*key)))
        same[row["attack"] is not None].append(session.alone() == session.recorded)
    for attacked, found in same.items():
        kind = "attacked" if attacked else "clean"
        print(f"all 17 settings, {version}, {kind}: {sum(found)} of {len(found)} ({np.mean(found):.1%}) replay")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--all-settings", nargs="*", metavar="VERSION")
    arguments = parser.parse_args()
    begun = time.process_time()
    loaded = TAKEOVER.load(arguments.data, quiet)
    print(f"load and replay: {time.process_time() - begun:.1f} s of one core")
    fidelity("7 weak settings", loaded.fidelity)
    numbers = range(len(loaded.episodes))
    forks = [(i, step.t) for i in numbers for step in loaded.episodes[i].steps]
    alone = loaded.play([(i, ()) for i in numbers], quiet)
    for kind, planted in (("clean", False), ("attacked", True)):
        found = [o for o in alone if (o.injected is not None) == planted]
        injected = f", injected {mean([bool(o.injected) for o in found])}" if planted else ""
        print(f"alone, {kind}: {len(found)} episodes, success {mean([o.success for o in found])}{injected}")
    for suite in (TAKEOVER, ONE_STEP):
        chosen = loaded if suite is TAKEOVER else suite.load(arguments.data, quiet)
        begun = time.process_time()
        outcomes = chosen.play([(i, (t,)) for i, t in forks], quiet)
        took = time.process_time() - begun
        table(f"{suite.name}: {len(forks)} forks, {took:.1f} s of one core", chosen, alone, forks, outcomes)
    every = chosen.play([(i, tuple(step.t for step in loaded.episodes[i].steps)) for i in numbers], quiet)
    print(f"one step, every step escalated: success {mean([outcome.success for outcome in every])}")
    teachers(loaded, forks)
    print("\nthe recorded stronger model in the same history:", loaded.facts["recorded_stronger_model"])
    if arguments.all_settings is not None:
        for version in arguments.all_settings or [VERSION]:
            all_settings(arguments.data, version)


if __name__ == "__main__":
    main()
