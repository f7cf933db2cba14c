"""Graders: was the task done? They see of the folder only what commands print that run in the sandbox on a copy of it.

A `grade.py` defines `grade(run)`, which returns what is wrong, or None. `run(command, stdin)` gives exit code and output of
one bash command in a fresh sandbox with fresh variables; files that one command writes are there for the next. The grader
itself, with its hidden cases and what it expects, never enters the sandbox: a program can only be right, it cannot look up
the answer or forge the verdict.
"""

from __future__ import annotations

import runpy
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from r2v.domains.terminal import folders
from r2v.domains.terminal.shell import State, execute
from r2v.domains.terminal.tasks import TerminalTask

PATIENCE = 3
"""How much longer than the agent's commands those of a grader may take: a busy machine must not change a verdict."""


@dataclass(frozen=True)
class Answer:
    code: int | None
    """None if the command was stopped."""
    out: str
    """What it wrote on both outputs."""


Run = Callable[..., Answer]


def grade(task: TerminalTask, folder: Path) -> str | None:
    """What is wrong with the folder, or None if the task is done. The folder stays as it is."""
    with tempfile.TemporaryDirectory(prefix="r2v-grade-") as place:
        copied = Path(place) / "folder"

        def run(command: str, stdin: str = "") -> Answer:
            output, _ = execute(command, copied, State(), command_s=PATIENCE * task.definition.command_s, stdin=stdin)
            return Answer(output.code, output.text)

        try:
            folders.copy(folder, copied)
            return _grader(task.folder)(run)
        except subprocess.CalledProcessError:
            return "the folder holds what its owner may not read"
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            # Graders take apart what the agent's programs print: JSON with fields, lines with words.
            return f"an answer is not of the required form ({type(error).__name__})"
        finally:
            folders.remove(copied)


@cache
def _grader(folder: Path) -> Callable[[Run], str | None]:
    found: Callable[[Run], str | None] = runpy.run_path(str(folder / "grade.py"))["grade"]
    return found
