"""What a verdict is, and how much of a text any of them reads: bounded, whatever a tool has printed."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from r2v.core.types import Action, Context, Episode, Step

HEAD, TAIL = 2_000, 16_000
"""Characters read at the start of a text, where agents put the exit status, and at its end, where summaries stand."""
LINE = 300
"""Characters read of a line: with patterns that begin at its start, the time is linear in the text."""
TOTAL = 200_000
"""Characters read of all results together, the newest first."""
REMEMBERED_BYTES = 16_000_000
"""Memory of each verdict for texts that it has read."""
COLOURS = re.compile(r"\x1b\[[0-9;]{0,20}[A-Za-z]")
WRAPPED = (
    ("\\r\\n", "\n"), ("\\n", "\n"), ("\\t", "\t"), ("\\u001b", "\x1b"),
    ('": "', '":\n'), ('":"', '":\n'), ('", "', '\n", "'), ('","', '\n","'),
)  # fmt: skip
"""What stands in JSON, and where its strings begin and end: a line of what was printed is one of the text again."""
Known = tuple[tuple[str, float], ...]
_log = logging.getLogger("r2v.verdicts")
_warned: set[tuple[str, str]] = set()


class Verdict(Protocol):
    """Says whether the work so far is right."""

    @property
    def name(self) -> str: ...

    def read(self, context: Context) -> float | None:
        """1.0 right, 0.0 wrong, or a probability between them; None: nothing is known yet. Rests on what the agent has seen
        alone, and takes bounded time on any text.
        """
        ...


@runtime_checkable
class StepVerdict(Verdict, Protocol):
    """One that looks at the drafts of a step; what it says of a step is no outcome of a session."""

    def read_step(self, step: Step) -> float | None: ...


@runtime_checkable
class SessionVerdict(Verdict, Protocol):
    """One that is asked once, after a session has ended, and may cost money."""

    @property
    def usd(self) -> float:
        """What it has spent in this process."""
        ...

    async def judge(self, episode: Episode) -> float | None: ...


def read_all(verdicts: Sequence[Verdict], context: Context) -> Known:
    """(name, value) of each verdict that knows one. One that breaks knows nothing, and is logged once."""
    found = []
    for verdict in verdicts:
        try:
            value = checked(verdict.name, verdict.read(context))
        except Exception as error:
            warn_once(verdict.name, f"it broke ({type(error).__name__}: {error})")
            continue
        if value is not None:
            found.append((verdict.name, value))
    return tuple(found)


def read_steps(verdicts: Sequence[Verdict], step: Step) -> Known:
    """(name, value) of each verdict that knows one from the step's drafts."""
    values = [(v.name, v.read_step(step)) for v in verdicts if isinstance(v, StepVerdict)]
    return tuple((name, value) for name, value in values if value is not None)


def with_answer(context: Context, answer: Action) -> Context:
    """What is known once a step's answer is: nothing has come back yet."""
    return replace(context, observations=(*context.observations, ""), actions=(*context.actions, answer))


def checked(name: str, value: object) -> float | None:
    """A verdict's value as a number in [0, 1]; None, and a line in the log, where it is none."""
    if value is None:
        return None
    if isinstance(value, bool | int | float) and math.isfinite(value) and 0 <= value <= 1:
        return float(value)
    try:  # a scalar of NumPy
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if 0 <= number <= 1:
        return number
    warn_once(name, f"it gave {value!r:.80}, which is no number from 0 to 1")
    return None


def warn_once(name: str, problem: str) -> None:
    """One line in the log for each problem, not one for each step."""
    if (name, problem[:20]) not in _warned:
        _warned.add((name, problem[:20]))
        _log.warning("verdict %s: %s", name, problem)


def results(context: Context) -> Iterator[tuple[str, str]]:
    """(what the agent did, what came back) as far as a verdict reads it, the newest first; not the task itself."""
    left = TOTAL
    for action, text in zip(reversed(context.actions), reversed(context.observations[1:]), strict=False):
        if left <= 0:
            return
        known = ends(text)
        left -= len(known) + 1
        yield action.text, known


def ends(text: str) -> str:
    """The start and the end of a text, without what makes it coloured."""
    if len(text) > HEAD + TAIL:
        text = f"{text[:HEAD]}\n{text[-TAIL:]}"
    return COLOURS.sub("", text) if "\x1b" in text else text


def lines(text: str) -> list[str]:
    """The lines of a text, each as far as it is read. Where an agent wraps what was printed in JSON, its lines."""
    if text.lstrip()[:1] in ("{", "[", '"'):
        for written, meant in WRAPPED:
            text = text.replace(written, meant)
        text = COLOURS.sub("", text)
    return [line[:LINE] for line in text.splitlines()]
