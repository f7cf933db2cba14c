"""Calls a function of untrusted code on many inputs and writes down what it returns, as data. Runs inside the sandbox.

stdin: `marshal` data, {"code": ..., "entry_point": "f", "inputs": [[argument, ...], ...], "limits_s": [...], "whole": False,
       "timed": False}
stdout: JSON lines, `= [VALUE, ...]` with what the next calls returned, then `! WHAT WAS RAISED`, or `. [SECONDS, ...]` if
nothing was (no seconds unless `timed`). What is expected is not known here, and nothing that comes from here is more than
data: `encode` and `decode` are the whole language.

    None, bool, int, float, str and lists are themselves in JSON (with NaN and Infinity); all else is {"kind": ...}.
    {"digest": ...} stands for a long value; those are sent on request (`whole`).
"""

from __future__ import annotations

import hashlib
import json
import marshal
import math
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

LONG = 2000
"""Characters from which on a digest is sent."""
CHECK_S, AGAIN_S = 0.005, 0.1
BUSY = 3.0
PLAIN = frozenset((type(None), bool, float, str))
SAFE_INT = 1 << 63
"""Larger integers travel in hexadecimal: decimal digits take quadratic time, and JSON readers refuse very long ones."""


def encode(value: Any) -> Any:
    """Plain data as JSON can hold it. Objects of any other type become their type's name, equal to nothing."""
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind is int:
        return value if -SAFE_INT < value < SAFE_INT else {"int": hex(value)}
    if kind is list or kind is tuple:
        items = value if _is_plain(value) else [encode(item) for item in value]
        return items if kind is list else {"tuple": list(items)}
    if kind is dict:
        return {"dict": sorted(([encode(key), encode(item)] for key, item in value.items()), key=json.dumps)}
    if kind is set or kind is frozenset:
        return {"set": sorted((encode(item) for item in value), key=json.dumps)}
    if kind is bytes:
        return {"bytes": value.hex()}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    if kind is Decimal:
        return {"decimal": str(value)}
    if kind is Fraction:
        return {"fraction": [hex(value.numerator), hex(value.denominator)]}
    for base in (int, float, str, list, tuple, dict, set, frozenset):
        if isinstance(value, base):  # a subclass such as Counter or a named tuple: what it holds, read by its base
            return encode(_plain(value, base))
    if kind.__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return encode(value.item())
    return {"other": kind.__name__}


def _is_plain(items: Any) -> bool:
    """Whether JSON can hold all items as they are; spares long lists a call for each."""
    kinds = set(map(type, items))
    if kinds == {int}:
        return bool(max(items) < SAFE_INT and min(items) > -SAFE_INT)
    return kinds <= PLAIN


def _plain(value: Any, base: type) -> Any:
    if base is dict:
        return dict(dict.items(value))
    if base in (list, tuple, set, frozenset):
        return base(base.__iter__(value))
    return {int: int.__int__, float: float.__float__, str: str.__str__}[base](value)


class Other:
    """Stands for an object that is no plain data; equal to nothing, itself included."""

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return "an object of another kind"  # its address would make each run's texts others


UNREADABLE = (TypeError, ValueError, ArithmeticError, RecursionError, AttributeError)
"""What reading and comparing data may raise that no honest program sends."""


def decode(data: Any) -> Any:
    """The value that `encode` saw. Raises one of `UNREADABLE` for what it cannot have written."""
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    ((kind, held),) = data.items()
    if kind == "tuple":
        return tuple(decode(item) for item in held)
    if kind == "dict":
        return {decode(key): decode(item) for key, item in held}
    if kind == "set":
        return {decode(item) for item in held}
    if kind == "int":
        return int(held, 16)
    if kind == "bytes":
        return bytes.fromhex(held)
    if kind == "complex":
        return complex(*held)
    if kind == "decimal":
        return Decimal(held)
    if kind == "fraction":
        return Fraction(*(int(part, 16) for part in held))
    if kind == "other":
        return Other()
    raise ValueError(f"no value is written as {kind}")


class TooLong(BaseException):
    """Not an Exception, so that code which swallows those is stopped all the same."""


class Watcher:
    """Interrupts the calls every few milliseconds: sends what they returned so far, and raises TooLong in one that takes too
    long, again and again until it ends. So the calls themselves are made without a check of the clock between two of them.

    Limits are of work (CPU time), so that verdicts do not depend on what else the machine does; a call that waits may take
    `BUSY` times as long.
    """

    def __init__(self, out: int, texts: list[str], limits_s: Sequence[float]) -> None:
        """`out`: where to write; `texts`: what the calls returned, to which the next one is added."""
        self._out, self._texts, self._limits = out, texts, limits_s
        self._sent = 0
        self._call = -1
        """Number of the call that was under way at the last check."""
        self._is_over = False
        self._reader = select.poll()
        self._reader.register(out, 0)
        signal.signal(signal.SIGALRM, self._check)
        signal.setitimer(signal.ITIMER_REAL, CHECK_S)

    def _check(self, *_: object) -> None:
        if self._is_over:
            return
        if self._reader.poll(0):  # nobody reads any more
            os._exit(0)
        self._send()
        wait_s = CHECK_S
        try:
            work, now = time.process_time(), time.perf_counter()
            if self._call != self._sent:
                self._call = self._sent
                limit_s = self._limits[self._call] if self._call < len(self._limits) else math.inf
                self._work, self._wall = work + limit_s, now + BUSY * limit_s
            elif work > self._work or now > self._wall:
                wait_s = AGAIN_S
                raise TooLong("too long")
        finally:
            signal.setitimer(signal.ITIMER_REAL, wait_s)

    def _send(self) -> None:
        if self._texts:
            some = self._texts[:]
            write(self._out, f"= [{','.join(some)}]\n")
            del self._texts[: len(some)]
            self._sent += len(some)

    def end(self, last: str) -> None:
        """Send the rest, and the last line."""
        self._is_over = True
        self._send()
        write(self._out, last)


def write(out: int, text: str) -> None:
    data = memoryview(text.encode())
    while data:
        data = data[os.write(out, data) :]


def text_of(value: Any, whole: bool) -> str:
    """JSON of a value, or of its digest."""
    kind = type(value)
    if kind is int and -SAFE_INT < value < SAFE_INT:
        return repr(value)  # json.dumps takes several times as long for these
    if kind is bool:
        return "true" if value else "false"
    text = json.dumps(encode(value))
    if len(text) > LONG and not whole:
        return json.dumps({"digest": hashlib.sha256(text.encode()).hexdigest()})
    return text


def main() -> None:
    job = marshal.loads(sys.stdin.buffer.read())
    answers = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    sys.set_int_max_str_digits(0)
    answer(job, answers)


def answer(job: dict[str, Any], out: int) -> None:
    """Make the calls, and write to `out` what they return."""
    namespace: dict[str, Any] = {}
    try:
        exec(job["code"], namespace)
        function = namespace[job["entry_point"]]
    except BaseException as error:
        write(out, f"! {_error_line(error)}\n")
        return
    whole, timed = job["whole"], job["timed"]
    texts: list[str] = []
    seconds: list[float] = []
    watcher = Watcher(out, texts, job["limits_s"])
    try:
        for arguments in job["inputs"]:
            start = time.process_time() if timed else 0.0
            texts.append(text_of(function(*arguments), whole))
            if timed:
                seconds.append(time.process_time() - start)
        last = f". {json.dumps(seconds)}\n"
    except BaseException as error:
        last = f"! {_error_line(error)}\n"
    watcher.end(last)


def _error_line(error: BaseException) -> str:
    try:
        lines = f"{type(error).__name__}: {error}".splitlines()
    except BaseException:
        return "an error that cannot be printed"
    return (lines or ["error"])[0][:300]
