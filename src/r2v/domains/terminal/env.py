"""`Terminal`: a task in a shell as an environment. Every action is run by bash; `submit` ends the episode.

Equal commands give equal observations as far as the programs allow: what prints times, process numbers or random numbers
does not (`ls -l` shows the minute in which a file was changed).
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import weakref
from pathlib import Path

from r2v.core.types import Action, Observation
from r2v.domains.terminal import folders
from r2v.domains.terminal.grading import grade
from r2v.domains.terminal.shell import HOME, Output, State, execute
from r2v.domains.terminal.tasks import TerminalTask

END = ("submit", "task complete")
CLIP = 6_000
"""Characters of output that are shown: the first and the last half of them."""
OPENING = (
    "You are in a bash shell in the folder {home}, which holds:\n{listing}\n"
    "Each message of yours is run as one command line or script, for {command_s} seconds at most and without input. The "
    "folder, the working directory and exported variables are kept between commands; background processes are not. There is "
    "no network. Say `submit` when the task is done."
)


class Terminal:
    """One episode of one task (`r2v.core.protocols.Branching`). It has no step limit of its own."""

    def __init__(self, task: TerminalTask) -> None:
        self.task = task
        self.goal = task.definition.goal
        self.problem: str | None = None
        """What the grader found wrong, after the end; None if nothing."""
        self._state = State()
        self._folder: Path | None = None
        self._done = False

    async def start(self) -> Observation:
        """How to work here, and what the folder holds. Raises SettingsError where there is no sandbox with namespaces."""
        self._folder = self._place()
        self._folder.mkdir()
        await asyncio.to_thread(folders.make_start, self.task, self._folder)
        output, _ = await self._execute("LC_ALL=C ls -A -p")
        listing = output.text.strip() or "(nothing)"
        text = OPENING.format(home=HOME, listing=listing, command_s=self.task.definition.command_s)
        return self._observe(text)

    async def step(self, action: Action) -> Observation:
        if self._done:
            raise RuntimeError("the episode is over; build a new environment")
        if self._folder is None:
            raise RuntimeError("the episode has not started, or is closed")
        if action.text.strip().lower().rstrip(".") in END:
            self.problem = await asyncio.to_thread(grade, self.task, self._folder)
            self._done = True
            return self._observe("submitted")
        output, self._state = await self._execute(action.text)
        return self._observe(shown(output, self.task.definition.command_s))

    async def close(self) -> None:
        if self._folder is not None:
            folders.remove(self._folder.parent)
            self._folder = None

    def clone(self) -> Terminal:
        """An independent copy of the present, folder included."""
        copy = Terminal(self.task)
        copy._state, copy._done, copy.problem = self._state, self._done, self.problem
        if self._folder is not None:
            copy._folder = copy._place()
            folders.copy(self._folder, copy._folder)
        return copy

    async def _execute(self, command: str) -> tuple[Output, State]:
        assert self._folder is not None
        return await asyncio.to_thread(execute, command, self._folder, self._state, command_s=self.task.definition.command_s)

    def _place(self) -> Path:
        """Where a folder may be made that disappears with this object, if not before."""
        parent = Path(tempfile.mkdtemp(prefix="r2v-terminal-"))
        weakref.finalize(self, folders.remove, parent)
        return parent / "task"

    def _observe(self, text: str) -> Observation:
        assert self._folder is not None
        success = self.problem is None if self._done else None
        state = repr((self.task.name, self._state.directory, sorted(self._state.variables.items()), self._done))
        latent = hashlib.sha256(f"{folders.fingerprint(self._folder)}{state}".encode()).hexdigest()[:16]
        return Observation(text, self._done, success, None if success is None else float(success), latent, ())


def shown(output: Output, command_s: float) -> str:
    """An output as the agent sees it: how the command ended, then what it wrote, cut in the middle if it is long."""
    text = output.text.rstrip("\n")
    if len(text) > CLIP:
        text = f"{text[: CLIP // 2]}\n... {len(text) - CLIP} characters left out ...\n{text[-CLIP // 2 :]}"
    if output.stopped == "timeout":
        ending = f"exit code 124 (stopped after {command_s:g} s)"
    elif output.stopped is not None:
        ending = f"exit code 137 (stopped: {output.stopped})"
    else:
        ending = f"exit code {output.code}"
    return f"{ending}\n{text}" if text else ending
