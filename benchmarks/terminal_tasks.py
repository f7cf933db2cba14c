"""Terminal tasks: the reference passes, an empty attempt fails, and each grader gives one verdict, however often it is run.

python benchmarks/terminal_tasks.py [--runs 20] [TASK ...]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from r2v.domains.terminal import folders
from r2v.domains.terminal.grading import grade
from r2v.domains.terminal.shell import State, execute
from r2v.domains.terminal.tasks import TerminalTask, make_tasks, task_named
from r2v.runtime import sandbox

REFERENCE_S = 60


def verdicts(task: TerminalTask, solve: bool, runs: int) -> tuple[set[str | None], float]:
    """(all verdicts of so many runs on one folder, mean seconds of a run)."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "task"
        folder.mkdir()
        folders.make_start(task, folder)
        if solve:
            output, _ = execute((task.folder / "solution.sh").read_text(), folder, State(), command_s=REFERENCE_S)
            if output.code != 0:
                raise SystemExit(f"the reference solution of {task.name} ends with {output}")
        start = time.monotonic()
        found = {grade(task, folder) for _ in range(runs)}
        return found, (time.monotonic() - start) / runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK")
    parser.add_argument("--runs", type=int, default=20)
    arguments = parser.parse_args()
    names = arguments.tasks or [task.id.removeprefix("terminal/") for task in make_tasks()]
    print(f"layers of the sandbox: {', '.join(sandbox.layers())}; {arguments.runs} runs of each grader on one folder")
    print(f"{'task':<20}{'family':<9}{'level':<8}{'reference':<11}{'empty':<8}{'verdicts':<10}seconds a run")
    good = 0
    for task in map(task_named, names):
        solved, first_s = verdicts(task, True, arguments.runs)
        empty, second_s = verdicts(task, False, arguments.runs)
        passes, fails, one = solved == {None}, None not in empty, len(solved) == len(empty) == 1
        good += passes and fails and one
        print(
            f"{task.name:<20}{task.definition.family:<9}{task.definition.difficulty:<8}{'passes' if passes else 'FAILS':<11}"
            f"{'fails' if fails else 'PASSES':<8}{'one' if one else 'SEVERAL':<10}{first_s:.2f} / {second_s:.2f}",
            flush=True,
        )
    print(f"{good} of {len(names)} tasks as they should be: {'ok' if good == len(names) else 'SHORT'}")


if __name__ == "__main__":
    main()
