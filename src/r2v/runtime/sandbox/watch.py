"""Watching a sandboxed program from outside: what it writes is collected until its end, or until it goes too far."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal

MOMENT_S = 0.2
"""For a program to notice that nobody reads any more."""
GRACE_S = 10.0
"""For the supervisor to end everything after it was told to; far more than it needs."""
DISK_WATCH_S = 0.1
SMALLEST_FILE = 4096
"""What a file counts at least, so that a million empty ones are too many."""


class Leash:
    """Holds a sandbox: when it is let go, or this process ends, everything inside is ended."""

    def __init__(self) -> None:
        self.theirs, self._pull = os.pipe()
        self.is_let_go = False

    def let_go(self) -> None:
        if not self.is_let_go:
            os.close(self._pull)
            self.is_let_go = True


class Watch:
    """The pipes of one program: `theirs` are stdout, stderr and the status, to be handed over."""

    def __init__(self, leash: Leash) -> None:
        out, err, told = os.pipe(), os.pipe(), os.pipe()
        self.theirs = [out[1], err[1], told[1]]
        self._leash = leash
        self._ours = {"stdout": out[0], "stderr": err[0], "told": told[0]}
        self.texts = {name: bytearray() for name in self._ours}

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for descriptor in (*self.theirs, *self._ours.values()):
            os.close(descriptor)

    def handed_over(self) -> None:
        """The program has its ends; ours of them are closed, so that its end is seen."""
        for descriptor in self.theirs:
            os.close(descriptor)
        self.theirs = []

    def to_the_end(
        self, folder: Path, *, end: float, output_bytes: int, disk_bytes: int, enough: Callable[[bytes], bool]
    ) -> Literal["timeout", "output", "disk"] | None:
        """Wait until nothing is left of the program. Returns why it was stopped, or None if it was not.

        `end`: the time on the monotonic clock at which it has had its time. `enough`: told each piece of standard output,
        may say that no more is wanted: then the pipe is closed, and who writes on to it is ended.
        """
        why: Literal["timeout", "output", "disk"] | None = None
        looked = time.monotonic()
        with selectors.DefaultSelector() as pipes:
            for name, descriptor in self._ours.items():
                pipes.register(descriptor, selectors.EVENT_READ, name)
            while pipes.get_map():
                now = time.monotonic()
                if now >= end:
                    if self._leash.is_let_go:
                        break
                    why, end = None if "stdout" not in self._ours else "timeout", self._let_go(now)
                piece = self._read(pipes, min(DISK_WATCH_S, max(0.0, end - now)))
                if piece and "stdout" in self._ours and enough(piece):
                    pipes.unregister(self._ours["stdout"])
                    os.close(self._ours.pop("stdout"))
                    end = min(end, now + MOMENT_S)
                if why is None and len(self.texts["stdout"]) + len(self.texts["stderr"]) > output_bytes:
                    why, end = "output", self._let_go(now)
                if why is None and now - looked >= DISK_WATCH_S:
                    looked = now
                    if used(folder) > disk_bytes:
                        why, end = "disk", self._let_go(now)
        return why or ("disk" if used(folder) > disk_bytes else None)

    def _let_go(self, now: float) -> float:
        """Tell the supervisor to end everything; returns until when to wait for it."""
        self._leash.let_go()
        return now + GRACE_S

    def _read(self, pipes: selectors.BaseSelector, timeout_s: float) -> bytes:
        """What is new on standard output."""
        new = b""
        for key, _ in pipes.select(timeout_s):
            data = os.read(key.fd, 1 << 16)
            if key.data == "told" or not self._leash.is_let_go:  # what is written while it is being ended is not kept
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
