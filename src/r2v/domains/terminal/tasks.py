"""The terminal tasks: a folder each below `tasks/`.

task.yaml    goal, family, difficulty, tags, the programs it needs, seconds a command may take
files/       the start folder
setup.sh     optional: makes the rest of it, in the sandbox (e.g. a git history)
solution.sh  a reference solution
grade.py     grade(run): what is wrong, or None (see `grading.py`)
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from r2v.core.errors import SettingsError
from r2v.core.types import Task
from r2v.runtime.settings import PositiveInt, Settings, load

TASKS = Path(__file__).parent / "tasks"


class TaskFile(Settings):
    """The contents of a `task.yaml`."""

    goal: str
    family: Literal["build", "git", "data", "service", "numeric", "shell", "text", "test", "archive", "logic"]
    difficulty: Literal["easy", "medium", "hard"]
    tags: tuple[str, ...]
    needs: tuple[str, ...]
    """Programs besides bash, coreutils and python3."""
    command_s: PositiveInt


@dataclass(frozen=True)
class TerminalTask:
    name: str
    folder: Path
    definition: TaskFile

    def missing(self) -> list[str]:
        """Programs it needs that are not on this machine."""
        return [program for program in self.definition.needs if shutil.which(program) is None]


@cache
def all_tasks() -> tuple[TerminalTask, ...]:
    """Every task, sorted by name. Raises SettingsError naming a `task.yaml` that is wrong."""
    folders = sorted(path.parent for path in TASKS.glob("*/task.yaml"))
    return tuple(TerminalTask(folder.name, folder, load(folder / "task.yaml", TaskFile)) for folder in folders)


def task_named(name: str) -> TerminalTask:
    """Raises SettingsError when there is no such task."""
    for task in all_tasks():
        if task.name == name:
            return task
    raise SettingsError(f"no terminal task `{name}`; there are {', '.join(task.name for task in all_tasks())}")


def make_tasks(names: Iterable[str] | None = None) -> list[Task]:
    """The named tasks, or all whose programs are here. Raises SettingsError when a named one needs what is missing."""
    found = [task for task in all_tasks() if not task.missing()] if names is None else [task_named(name) for name in names]
    for task in found:
        if missing := task.missing():
            raise SettingsError(f"terminal task {task.name} needs {', '.join(missing)}; install it or leave the task out")
    return [Task(f"terminal/{task.name}", task.definition.family, "terminal", task.definition.goal) for task in found]
