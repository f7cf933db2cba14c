"""What a log format is: it turns the records of some program into chats with a task and an outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import msgspec

from r2v.core.errors import ArtifactError
from r2v.core.types import SOLVED, Episode
from r2v.logs.files import objects
from r2v.messages.conversation import BadRequest, Json, Request, parse

WRONG = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, BadRequest)
"""What data of another shape raise where they are read."""
Source = Callable[[Path], Iterator[tuple[str, Any]]]
"""(where, raw record) of all that a path holds. Raises ArtifactError."""


@dataclass(frozen=True)
class Recorded:
    """One trajectory in the neutral form."""

    task: str
    success: bool | None
    """None: not known. It is left out, unless its outcome is in another file."""
    body: Json
    """Chat-completion body (OpenAI) with all messages, and the tools if any were offered."""
    model: str
    """Who acted: the model, and what else makes it another agent. It becomes `Episode.agent`."""
    group: str | None = None
    """What a split must keep together beyond the task, e.g. the user or the data base of several tasks; None: the task."""
    perturbation: str = "none"
    """What disturbed the episode: agents are compared where both task and perturbation are the same."""
    mistake: int | None = None
    """The step at which it went wrong, if the log says so."""

    @cached_property
    def request(self) -> Request:
        """The body with its types checked. Raises BadRequest."""
        return parse(msgspec.json.encode(self.body))


class LogFormat(Protocol):
    """How the logs of a program are read.

    One that also has `recognises(raw) -> bool` is found by `r2v.logs.detection.detect` where JSON records are its own.
    """

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str:
        """One line for people."""
        ...

    @property
    def verifier(self) -> str | None:
        """What scores the actions; None where the records hold scores."""
        ...

    def read(self, path: Path) -> Iterator[Recorded | Episode]:
        """All trajectories, as chats or as episodes (`success` is None where it is not known). Raises ArtifactError."""
        ...


@dataclass(frozen=True)
class Records:
    """A `LogFormat` whose records are read one by one."""

    name: str
    description: str
    convert: Callable[[Any, str], Recorded]
    """Of one raw record and where it lies. May raise what wrong data raise (KeyError, TypeError, ValueError, ...)."""
    source: Source = objects
    verifier: str = "tool_calls"
    recognises: Callable[[Any], bool] = lambda raw: False
    """Whether a JSON record is of this format and of no other; False for formats that are not JSON."""

    def read(self, path: Path) -> Iterator[Recorded]:
        """Raises ArtifactError that names file and line."""
        where = str(path)
        try:
            for where, raw in self.source(path):
                recorded = self.convert(raw, where)
                _ = recorded.request  # checked here, where its place is known
                f"{recorded.task}{recorded.model}{recorded.group}".encode()  # half a character cannot be written
                yield recorded
        except WRONG as error:
            raise ArtifactError(f"{where} is not {self.name} ({type(error).__name__}: {error})") from None


def has(*keys: str) -> Callable[[Any], bool]:
    """What recognises JSON objects that have all these keys."""
    return lambda raw: isinstance(raw, Mapping) and raw.keys() >= set(keys)


def outcome_of(raw: Mapping[str, Any]) -> bool | None:
    """The success of a record, from the places where records hold it: a truth value, or a reward of at least .5."""
    places = (raw, *(raw.get(key) for key in ("info", "extra", "metadata", "reward_info")))
    for place in places:
        if not isinstance(place, Mapping):
            continue
        for key in ("success", "resolved", "passed", "reward", "score"):
            value = place.get(key)
            if isinstance(value, bool | int | float):
                return value >= SOLVED
    return None


def task_of(raw: Mapping[str, Any], otherwise: str) -> str:
    """The name of a record's task: its episodes never fall on both sides of a split."""
    for place in (raw, raw.get("info")):
        if not isinstance(place, Mapping):
            continue
        for key in ("task", "task_id", "instance_id", "problem_id"):
            if place.get(key) is not None:
                benchmark = raw.get("benchmark")
                return f"{benchmark}/{place[key]}" if benchmark else str(place[key])
    return otherwise


def turns(goal: str, pairs: list[tuple[str, str]]) -> list[Json]:
    """A chat of plain texts: the goal, then each action and what it led to."""
    messages: list[Json] = [{"role": "user", "content": goal}]
    for action, seen in pairs:
        messages += [{"role": "assistant", "content": action}, {"role": "user", "content": seen}]
    return messages
