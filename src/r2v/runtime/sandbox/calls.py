"""`call`: a function of untrusted code on many inputs, in one sandboxed process; what comes back is data to be compared."""

from __future__ import annotations

import atexit
import json
import marshal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2v.runtime.sandbox import harness
from r2v.runtime.sandbox.launch import Limits, WarmSandbox

PRELOAD = (
    "json", "math", "re", "collections", "itertools", "functools", "typing", "string", "heapq", "bisect", "copy", "random",
    "statistics", "operator", "datetime", "hashlib", "decimal", "fractions", "cmath", "dataclasses", "enum", "ast",
)  # fmt: skip
"""What solutions import most; loaded once in each warm sandbox."""
LONGEST_S = 60.0
SLACK_S = 2.0
"""For everything but the calls themselves."""
LIMITS = Limits(cpu_s=LONGEST_S + SLACK_S, processes=8, file_mb=16, output_bytes=1 << 25, disk_mb=64)


@dataclass(frozen=True)
class Answers:
    values: tuple[Any, ...]
    """What was returned, encoded (`harness.decode` reads it), an input each, up to the first problem."""
    problem: str | None
    """What was raised, or how the process ended, in one line; None when every input was answered, or enough of them."""
    seconds: tuple[float, ...]
    """Of each call, if `timed` and all were answered."""


def call(
    code: str,
    entry_point: str,
    inputs: Sequence[Sequence[Any]],
    limits_s: Sequence[float],
    *,
    whole: bool = False,
    timed: bool = False,
    stop: Callable[[int, list[Any]], bool] | None = None,
) -> Answers:
    """`entry_point(*arguments)` for each of `inputs`, which are plain data, up to the first problem.

    `limits_s`: of CPU time, for each call; altogether there is a minute. Long values come as digests, unless `whole`.
    `stop`: called with values as they arrive and the number of the first of them; if it returns True no more are wanted.
    """
    job = {"code": code, "entry_point": entry_point, "inputs": inputs, "limits_s": limits_s, "whole": whole, "timed": timed}
    reading = _Reading(stop)
    with _warm_sandbox() as warm:
        done = warm.run(
            marshal.dumps(job), wall_s=harness.BUSY * min(LONGEST_S, sum(limits_s)) + SLACK_S, enough=reading.more
        )
    problem = reading.problem
    if problem is None and not reading.enough and not (len(reading.values) == len(limits_s) and done.ok):
        ended = {
            "exited": f"the process ended with exit code {done.code}",
            "signalled": f"it was ended by signal {done.code}",
        }
        problem = ended.get(done.status, f"stopped: {done.status} {done.stderr[-200:]}".strip())
    return Answers(tuple(reading.values), problem, tuple(reading.seconds))


_idle: list[WarmSandbox] = []
"""Those between two calls; taking and giving back are atomic."""


@contextmanager
def _warm_sandbox() -> Iterator[WarmSandbox]:
    try:
        warm = _idle.pop()
    except IndexError:
        warm = WarmSandbox(Path(harness.__file__), LIMITS, PRELOAD)
    try:
        yield warm
    finally:
        if warm.is_open:
            _idle.append(warm)
        else:
            warm.close()


@atexit.register
def close_idle() -> None:
    """End the warm sandboxes that no call uses."""
    while _idle:
        _idle.pop().close()


class _Reading:
    """The harness's lines, as they arrive in pieces."""

    def __init__(self, stop: Callable[[int, list[Any]], bool] | None) -> None:
        self.values: list[Any] = []
        self.seconds: list[float] = []
        self.problem: str | None = None
        self.enough = False
        self._stop = stop
        self._rest = bytearray()

    def more(self, piece: bytes) -> bool:
        """Whether no more is wanted."""
        self._rest += piece
        if b"\n" in piece:
            *lines, self._rest = self._rest.split(b"\n")
            for line in lines:
                if not self.enough and self.problem is None:
                    self._take(line.decode(errors="replace"))
        return self.enough

    def _take(self, line: str) -> None:
        try:
            if line.startswith("= ["):
                new = json.loads(line[2:])
                self.values += new
                self.enough = self._stop is not None and self._stop(len(self.values) - len(new), new)
            elif line.startswith(". ["):
                self.seconds = [float(s) for s in json.loads(line[2:])]
            else:
                self.problem = line[2:]
        except (ValueError, TypeError, RecursionError):  # the program wrote to the descriptor itself
            self.problem = "an answer that cannot be read"
