"""Verdicts on solutions, with EvalPlus's semantics: base and plus inputs, all outputs equal to the canonical solution's.

The solution runs in the sandbox and answers with data; comparison happens here, so no answer can declare
itself right, and what is expected never enters its process. Where the file has a `check` function instead of inputs, that is
run once with the canonical solution (in the sandbox too), and the calls it makes are the inputs.
"""

from __future__ import annotations

import ast
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from r2v.core.errors import ArtifactError
from r2v.domains.humaneval.problems import Problem
from r2v.runtime.sandbox.calls import call
from r2v.runtime.sandbox.harness import UNREADABLE, decode, encode
from r2v.runtime.store import write_json

LEAST_LIMIT_S, LIMIT_FACTOR = 1.0, 4.0
"""A call may take so long at least, and so many times as long as the canonical solution (CPU time)."""
RTOL, FLOAT_ATOL = 1e-7, 1e-6
"""Of floats that are not equal; the absolute one where the problem states none."""
REFERENCE_LIMIT_S = 30.0
VERSION = 4
"""Of the cache's content."""

RECORDER = """
{solution}

{test}

def _r2v_calls():
    import copy, random
    random.seed(0)
    calls = []
    def candidate(*arguments):
        calls.append(copy.deepcopy(list(arguments)))
        return {entry_point}(*arguments)
    check(candidate)
    return calls
"""


@dataclass(frozen=True)
class Reference:
    """What the canonical solution did."""

    inputs: list[Any]
    """Argument lists, base first."""
    base: int
    """How many of them are base."""
    expected: list[Any]
    """Encoded outputs, an input each."""
    limits_s: list[float]


@dataclass(frozen=True)
class Verdict:
    base: bool
    """All base inputs are right."""
    passed: bool
    """So are the plus inputs."""
    problem: str | None
    """The first thing that was wrong, in one line; without the expected output, which an agent could copy."""


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "r2v" / "humaneval"


@lru_cache(maxsize=512)
def reference(problem: Problem) -> Reference:
    """From the cache, or by running the canonical solution. Raises ArtifactError where that one fails."""
    path = cache_folder() / f"{problem.key}-{VERSION}.json"
    try:
        raw = json.loads(path.read_text())
        return Reference(decode(raw["inputs"]), raw["base"], raw["expected"], raw["limits_s"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # absent or damaged: made anew
    made = _run_canonical(problem)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**asdict(made), "inputs": encode(made.inputs)})
    return made


def _run_canonical(problem: Problem) -> Reference:
    solution = problem.prompt + problem.canonical
    inputs = [*problem.base, *problem.plus] if problem.test is None else _inputs_of_test(problem, problem.test, solution)
    answers = call(solution, problem.entry_point, inputs, [REFERENCE_LIMIT_S] * len(inputs), timed=True)
    if answers.problem is not None:
        raise ArtifactError(f"{problem.id}: its canonical solution fails ({answers.problem})")
    limits = [max(LEAST_LIMIT_S, LIMIT_FACTOR * seconds) for seconds in answers.seconds]
    return Reference(inputs, len(inputs) if problem.test is not None else len(problem.base), list(answers.values), limits)


def _inputs_of_test(problem: Problem, test: str, solution: str) -> list[Any]:
    if problem.entry_point == FIND_ZERO and (listed := _listed_inputs(test)) is not None:
        return listed
    recorder = RECORDER.format(solution=solution, test=test, entry_point=problem.entry_point)
    calls = call(recorder, "_r2v_calls", [[]], [REFERENCE_LIMIT_S], whole=True)
    if calls.problem is not None:
        raise ArtifactError(f"{problem.id}: its test fails its canonical solution ({calls.problem})")
    recorded: list[Any] = decode(calls.values[0])
    return recorded


def _listed_inputs(test: str) -> list[list[Any]] | None:
    """`inputs = [...]` in the text of a test. EvalPlus's file on Hugging Face has one test that no solution can pass: it
    unpacks the root that `find_zero` returns.
    """
    for node in ast.walk(ast.parse(test)):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "inputs":
            listed: list[list[Any]] = ast.literal_eval(node.value)
            return listed
    return None


def check(problem: Problem, solution: str) -> Verdict:
    """The verdict on a whole program that defines the entry point. Ends at the first wrong output."""
    known = reference(problem)
    judge = _Judge(problem, known)
    answers = call(solution, problem.entry_point, known.inputs, known.limits_s, stop=judge.is_wrong)
    right = next((i for i in judge.doubtful if not _agrees_whole(problem, solution, known, i)), judge.right)
    wrong = right < len(answers.values)
    return Verdict(
        right >= known.base,
        right == len(known.expected),
        f"a wrong output for input {right}" if wrong else answers.problem,
    )


class _Judge:
    """Looks at outputs as they come."""

    def __init__(self, problem: Problem, known: Reference) -> None:
        self._problem, self._known = problem, known
        self.right = 0
        """How many outputs were right before the first wrong one, doubtful ones included."""
        self.doubtful: list[int] = []
        """Long outputs that are not the expected text; they may still be equal (1 and 1.0)."""

    def is_wrong(self, first: int, values: list[Any]) -> bool:
        """Whether one of the values of the inputs from number `first` on is wrong."""
        expected = self._known.expected[first : first + len(values)]
        if values == expected and self._problem.entry_point != FIND_ZERO:
            self.right = first + len(values)
            return False
        for i, value, wanted in zip(range(first, len(self._known.expected)), values, expected, strict=False):
            if value != wanted and (_is_digest(value) or _is_digest(wanted)):
                self.doubtful.append(i)
            elif not _is_right(self._problem, self._known.inputs[i], value, wanted):
                return True
            self.right = i + 1
        return False


def _is_digest(value: Any) -> bool:
    return isinstance(value, dict) and "digest" in value


def _agrees_whole(problem: Problem, solution: str, known: Reference, i: int) -> bool:
    """Compare the outputs for one input, however long they are."""
    arguments, limit_s = known.inputs[i], known.limits_s[i]
    codes = (solution, problem.prompt + problem.canonical)
    answers = [call(code, problem.entry_point, [arguments], [limit_s], whole=True).values for code in codes]
    return all(answers) and _is_right(problem, arguments, answers[0][0], answers[1][0])


def _is_right(problem: Problem, arguments: Sequence[Any], value: Any, expected: Any) -> bool:
    if value == expected and problem.entry_point != FIND_ZERO:
        return True
    try:
        if problem.entry_point == FIND_ZERO:
            return bool(abs(polynomial(arguments[0], decode(value))) <= (problem.atol or FIND_ZERO_ATOL))
        return agrees(decode(value), decode(expected), problem.atol)
    except UNREADABLE:
        return False


FIND_ZERO = "find_zero"
"""HumanEval/32: any root of the polynomial will do."""
FIND_ZERO_ATOL = 1e-4
"""What OpenAI's test allows; EvalPlus's files state it."""


def polynomial(coefficients: Sequence[float], x: float) -> float:
    return sum(coefficient * math.pow(x, i) for i, coefficient in enumerate(coefficients))


def agrees(output: Any, expected: Any, atol: float) -> bool:
    """Whether an output counts as the expected one: equal, or close where the problem allows it or floats are expected."""
    if output == expected:
        return True
    if atol == 0 and not _is_floats(expected):
        return False
    if type(output) is not type(expected):
        return False
    if isinstance(expected, list | tuple):
        return len(output) == len(expected) and all(_is_close(a, b, atol) for a, b in zip(output, expected, strict=True))
    return _is_close(output, expected, atol)


def _is_floats(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _is_close(output: Any, expected: Any, atol: float) -> bool:
    """Nested lists included; raises TypeError for what is no number."""
    if isinstance(expected, list | tuple):
        return len(output) == len(expected) and all(_is_close(a, b, atol) for a, b in zip(output, expected, strict=True))
    if output == expected:  # infinities
        return True
    return bool(abs(output - expected) <= (atol or FLOAT_ATOL) + RTOL * abs(expected)) and math.isfinite(expected)
