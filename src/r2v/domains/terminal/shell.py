"""One command after another in a folder, each in a sandbox of its own, as in one terminal.

From one command to the next are kept: the folder, the working directory, and the exported variables. Not kept are shell
functions, aliases, options, unexported variables, /tmp, the home directory (it is /tmp), and processes: what a command
leaves running in the background ends with it. A command that is stopped, or that replaces the shell by `exec`, or sets an
exit trap of its own, leaves directory and variables as they were before.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from r2v.domains.terminal.tasks import TASKS
from r2v.runtime.sandbox import Limits, run

HOME = "/task"
"""Where a command finds the folder, whatever its real path."""
ENVIRONMENT = {
    "PATH": f"{sys.base_prefix}/bin:/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "TZ": "UTC",
    "PAGER": "cat",
    "GIT_PAGER": "cat",
    "GIT_EDITOR": "true",
    # Equal commands make equal commits, equal bytes on disk, equal order of sets.
    **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER")
       for what, value in (("NAME", "r2v"), ("EMAIL", "r2v@localhost"), ("DATE", "2024-01-01T00:00:00Z"))},
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
}  # fmt: skip
MOST_STATE = 64_000
"""Bytes of directory and variables; of more, nothing is kept."""
_VARIABLE = re.compile(r"[A-Za-z_]\w*=")
# The command's two outputs go to our standard output, in order; our standard error carries the state alone. All on one line,
# so that bash counts the command's own lines.
_DRIVER = "; ".join(
    (
        "exec {r2v_state}>&2 2>&1",
        """trap 'printf "%s\\0" "$PWD" >&$r2v_state; /usr/bin/env -0 >&$r2v_state' EXIT""",
        f'cd -- "$2" 2>/dev/null || cd {HOME}',
        "r2v_command=$1",
        "set --",
        'eval "$r2v_command"',
    )
)


@dataclass(frozen=True)
class Output:
    code: int | None
    """Exit code; None if the command was stopped."""
    text: str
    stopped: str | None
    """Why it was stopped: "timeout", "memory", ... (`r2v.runtime.sandbox.Status`)."""


@dataclass(frozen=True)
class State:
    """What the shell remembers besides the folder."""

    directory: str = HOME
    variables: Mapping[str, str] = field(default_factory=lambda: dict(ENVIRONMENT))


def execute(command: str, folder: Path, state: State, *, command_s: float, stdin: str = "") -> tuple[Output, State]:
    """Run one command line or script; blocks until it and everything it started are gone."""
    command = command.encode(errors="replace").decode()  # a model's JSON may hold half a character
    if "\0" in command or len(command.encode()) > MOST_STATE:
        return Output(None, f"a command may have {MOST_STATE} bytes and no NUL", "error"), state
    variables = [f"{name}={value}" for name, value in state.variables.items()]
    limits = Limits(cpu_s=command_s, wall_s=command_s, disk_mb=128, file_mb=64)
    ran = run(
        ["/usr/bin/env", "-i", *variables, "bash", "--noprofile", "--norc", "-c", _DRIVER, "bash", command, state.directory],
        folder=folder, limits=limits, stdin=stdin.encode(), at=HOME, hidden=[TASKS],
    )  # fmt: skip
    if ran.status == "signalled" and ran.code is not None:
        return Output(128 + ran.code, ran.stdout, None), state
    if ran.status != "exited":
        return Output(None, ran.stdout + (ran.stderr if ran.status == "error" else ""), ran.status), state
    return Output(ran.code, ran.stdout, None), _read_state(ran.stderr) or state


def _read_state(written: str) -> State | None:
    directory, *entries = written.split("\0")
    if not directory.startswith("/") or len(written.encode()) > MOST_STATE:
        return None
    variables = dict(entry.split("=", 1) for entry in entries if _VARIABLE.match(entry))
    for name in ("_", "SHLVL", "PWD"):
        variables.pop(name, None)
    return State(directory, {name: variables[name] for name in sorted(variables)})
