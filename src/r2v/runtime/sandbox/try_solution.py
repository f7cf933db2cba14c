"""Trying code on the examples of its docstring: what an agent sees of its tests, and what a verifier may know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from r2v.runtime.sandbox.calls import call
from r2v.runtime.sandbox.examples import Example
from r2v.runtime.sandbox.harness import UNREADABLE, decode


@dataclass(frozen=True)
class Attempt:
    passed: int
    total: int
    failures: tuple[str, ...]
    """A line for each example that failed, up to and with the first that raised; where there are no examples, what was
    raised while the code was loaded."""

    @property
    def ok(self) -> bool:
        return not self.failures


def attempt(code: str, entry_point: str, examples: Sequence[Example], *, limit_s: float) -> Attempt:
    """Run `code` on every example in one sandboxed process. Each call may take `limit_s` seconds."""
    if not examples:
        answers = call(
            f"{code}\n\ndef _r2v_is_there():\n    return callable({entry_point})\n", "_r2v_is_there", [[]], [limit_s]
        )
        failures = () if answers.values == (True,) else (answers.problem or f"{entry_point} is not a function",)
        return Attempt(0, 0, failures)
    inputs = [example.arguments for example in examples]
    answers = call(code, entry_point, inputs, [limit_s] * len(examples), whole=True)
    passed, failed = 0, []
    for example, value in zip(examples, answers.values, strict=False):
        if _equals(value, example.expected):
            passed += 1
        else:
            failed.append(f"{example.call} returned {_shown(value)}, expected {example.expected!r}")
    if answers.problem is not None:
        where = examples[len(answers.values)].call if len(answers.values) < len(examples) else entry_point
        failed.append(f"{where} raised {answers.problem}")
    return Attempt(passed, len(examples), tuple(failed))


def _equals(value: Any, expected: Any) -> bool:
    """Equal, floats to what a docstring shows of them."""
    try:
        output = decode(value)
        if isinstance(expected, float) and isinstance(output, float):
            return abs(output - expected) <= 1e-6 * max(1.0, abs(expected))
        return bool(output == expected)
    except UNREADABLE:
        return False


def _shown(value: Any) -> str:
    try:
        text = repr(decode(value))
    except UNREADABLE:
        return "something unreadable"
    return text if len(text) <= 200 else f"{text[:200]}..."
