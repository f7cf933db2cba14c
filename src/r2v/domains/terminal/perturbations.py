"""Tool flakiness and partial observability for shell output: "exit code 0", then what the command wrote, line by line.

Terminal tasks are perturbed by these two families only (method, section 3). The command has had its effect, whatever the
text reads. The opening, which explains how to work and lists the folder, is left alone.
"""

from __future__ import annotations

import random
import re

from r2v.perturbations.operators import Materials, Operator, Weighted, family, weighted

CUT = "... output cut ..."
_TRACE = re.compile(r"^(?:Traceback \(most recent call last\):|  File \".*|    .*|.*:\d+:.*|make(?:\[\d+\])?: .*)$")
_DETAIL = re.compile(r"(?:[\w.-]*/)+[\w.-]+|\b[\w-]+\.\w{1,4}\b|\b\d+\b")
"""Paths, file names and numbers: what a mask may hide."""


def failure(text: str, rng: random.Random, materials: Materials) -> str:
    return rng.choice(
        (
            "exit code 1\nbash: fork: Resource temporarily unavailable",
            "exit code 126\nbash: /bin/bash: Input/output error",
            "exit code 255\nterminal: connection closed",
        )
    )


def timeout(text: str, rng: random.Random, materials: Materials) -> str:
    return "exit code 124 (no answer in time)"


def shuffle(text: str, rng: random.Random, materials: Materials) -> str | None:
    ending, lines = _lines(text)
    rng.shuffle(lines)
    return _text(ending, lines)


def partial_response(text: str, rng: random.Random, materials: Materials) -> str | None:
    """The second half never arrives."""
    ending, lines = _lines(text)
    return _text(ending, lines[: (len(lines) + 1) // 2])


def drop(text: str, rng: random.Random, materials: Materials) -> str | None:
    """10-50 % of the lines are missing (method, section 3)."""
    ending, lines = _lines(text)
    if len(lines) < 2:
        return None
    keep = max(1, round(len(lines) * (1 - rng.uniform(0.1, 0.5))))
    return _text(ending, [lines[i] for i in sorted(rng.sample(range(len(lines)), keep))])


def line_drop(text: str, rng: random.Random, materials: Materials) -> str | None:
    ending, lines = _lines(text)
    if not lines:
        return None
    del lines[rng.randrange(len(lines))]
    return _text(ending, lines)


def reorder(text: str, rng: random.Random, materials: Materials) -> str | None:
    """Two blocks of lines arrive in the wrong order."""
    ending, lines = _lines(text)
    if len(lines) < 2:
        return None
    cut = rng.randrange(1, len(lines))
    return _text(ending, lines[cut:] + lines[:cut])


def truncation(text: str, rng: random.Random, materials: Materials) -> str | None:
    ending, lines = _lines(text)
    output = "\n".join(lines)
    if len(output) < 20:
        return None
    return f"{ending}\n{output[: round(len(output) * rng.uniform(0.4, 0.8))]} ..."


def information_mask(text: str, rng: random.Random, materials: Materials) -> str | None:
    ending, lines = _lines(text)
    output = "\n".join(lines)
    found = list(_DETAIL.finditer(output))
    if not found:
        return None
    masked = rng.choice(found)
    return f"{ending}\n{output[: masked.start()]}[...]{output[masked.end() :]}"


def trace_truncation(text: str, rng: random.Random, materials: Materials) -> str | None:
    """Of a stack trace, or of a compiler's messages, only the first line is left."""
    ending, lines = _lines(text)
    trace = [i for i, line in enumerate(lines) if _TRACE.match(line)]
    if len(trace) < 2:
        return None
    lines[trace[0] + 1 : trace[-1] + 1] = [CUT]
    return _text(ending, lines)


def file_truncation(text: str, rng: random.Random, materials: Materials) -> str | None:
    """A long output, such as a file that was shown, ends early."""
    ending, lines = _lines(text)
    if len(lines) < 8:
        return None
    return _text(ending, [*lines[: round(len(lines) * rng.uniform(0.3, 0.7))], CUT])


def _after_the_opening(*weighted_operators: tuple[str, float, Operator]) -> Weighted:
    """The same operators, which leave the first observation alone."""

    def later(operator: Operator) -> Operator:
        return lambda text, rng, materials: operator(text, rng, materials) if materials.previous else None

    return tuple((name, probability, later(operator)) for name, probability, operator in weighted_operators)


def _lines(text: str) -> tuple[str, list[str]]:
    """(how the command ended, the lines of its output)."""
    ending, *lines = text.split("\n")
    return ending, lines


def _text(ending: str, lines: list[str]) -> str:
    return "\n".join([ending, *lines])


flaky = family(
    "flaky",
    _after_the_opening(
        *weighted(shuffle=shuffle, drop=drop, partial_response=partial_response, failure=failure, timeout=timeout)
    ),
)
partial = family(
    "partial",
    _after_the_opening(
        ("line drop", 0.12, line_drop),
        ("reorder", 0.10, reorder),
        ("stack-trace truncation", 0.12, trace_truncation),
        ("file truncation", 0.12, file_truncation),
        ("information mask", 0.05, information_mask),
        ("truncation", 0.20, truncation),
    ),
)
