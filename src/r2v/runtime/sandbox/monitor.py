"""Watching a sandboxed program from outside: what it writes is collected until its end, or until it exceeds a limit."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal

CLOSE_S = 0.2
"""For a program to notice that nobody reads any more."""
GRACE_S = 10.0
"""For the supervisor to end everything once the lifeline is closed; far more than it needs."""
DISK_CHECK_S = 0.1
SMALLEST_FILE = 4096
"""What a file counts at least, so that a million empty ones are too many."""


class Lifeline:
    """A pipe that a sandbox lives as long as: when `close` is called, or this process ends, everything inside is ended."""

    def __init__(self) -> None:
        self.theirs, self._ours = os.pipe()
        self.is_closed = False

    def close(self) -> None:
        if not self.is_closed:
            os.close(self._ours)
            self.is_closed = True


class Monitor:
    """The pipes of one program: `theirs` are stdout, stderr and the status, to be handed over."""

    def __init__(self, lifeline: Lifeline) -> None:
        out, err, status = os.pipe(), os.pipe(), os.pipe()
        self.theirs = [out[1], err[1], status[1]]
        self._lifeline = lifeline
        self._ours = {"stdout": out[0], "stderr": err[0], "status": status[0]}
        self.texts = {name: bytearray() for name in self._ours}

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for descriptor in (*self.theirs, *self._ours.values()):
            os.close(descriptor)

    def handed_over(self) -> None:
        """The program has its ends; ours of them are closed, so that its end is seen."""
        for descriptor in self.theirs:
            os.close(descriptor)
        self.theirs = []

    def wait(
        self, folder: Path, *, end: float, output_bytes: int, disk_bytes: int, enough: Callable[[bytes], bool]
    ) -> Literal["timeout", "output", "disk"] | None:
        """Wait until nothing is left of the program. Returns why it was stopped, or None if it was not.

        Args:
            folder: whose size is limited.
            end: when the program is stopped, in seconds of the monotonic clock.
            output_bytes: of standard output and error together.
            disk_bytes: of all files in the folder.
            enough: called with each piece of standard output; if it returns True the pipe is closed, and a program that
                writes to it after that is ended.
        """
        why: Literal["timeout", "output", "disk"] | None = None
        checked = time.monotonic()
        with selectors.DefaultSelector() as pipes:
            for name, descriptor in self._ours.items():
                pipes.register(descriptor, selectors.EVENT_READ, name)
            while pipes.get_map():
                now = time.monotonic()
                if now >= end:
                    if self._lifeline.is_closed:
                        break
                    why, end = None if "stdout" not in self._ours else "timeout", self._stop(now)
                piece = self._read(pipes, min(DISK_CHECK_S, max(0.0, end - now)))
                if piece and "stdout" in self._ours and enough(piece):
                    pipes.unregister(self._ours["stdout"])
                    os.close(self._ours.pop("stdout"))
                    end = min(end, now + CLOSE_S)
                if why is None and len(self.texts["stdout"]) + len(self.texts["stderr"]) > output_bytes:
                    why, end = "output", self._stop(now)
                if why is None and now - checked >= DISK_CHECK_S:
                    checked = now
                    if used(folder) > disk_bytes:
                        why, end = "disk", self._stop(now)
        return why or ("disk" if used(folder) > disk_bytes else None)

    def _stop(self, now: float) -> float:
        """Have the supervisor end everything; returns until when to wait for it."""
        self._lifeline.close()
        return now + GRACE_S

    def _read(self, pipes: selectors.BaseSelector, timeout_s: float) -> bytes:
        """What is new on standard output."""
        new = b""
        for key, _ in pipes.select(timeout_s):
            data = os.read(key.fd, 1 << 16)
            if key.data == "status" or not self._lifeline.is_closed:  # what is written while it is being ended is not kept
                self.texts[key.data] += data
            if key.data == "stdout":
                new = data
            if not data:
                pipes.unregister(key.fd)
        return new


def used(folder: Path) -> int:
    """Bytes on the disk of everything in a folder; links are not followed."""
    total = 0
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            try:
                total += max(SMALLEST_FILE, os.lstat(os.path.join(place, name)).st_blocks * 512)
            except OSError:
                continue  # gone meanwhile
    return total
