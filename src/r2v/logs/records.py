"""What a log format is: it turns the records of some program into chats with a task and an outcome."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, get_args

import msgspec

from r2v.core.errors import ArtifactError
from r2v.core.types import SOLVED, Episode, Role
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
        raw: Any = {}
        try:
            for where, raw in self.source(path):
                recorded = self.convert(raw, where)
                _ = recorded.request  # checked here, where its place is known
                f"{recorded.task}{recorded.model}{recorded.group}".encode()  # half a character cannot be written
                yield recorded
        except WRONG as error:
            raise ArtifactError(f"{where} is not {self.name} ({said(error, raw)})") from None


def said(error: Exception, raw: Any) -> str:
    """What is wrong with a record, for people: not in the words of Python and msgspec."""
    if isinstance(error, KeyError):
        return f"it lacks the key {error}"
    if isinstance(error, UnicodeEncodeError):
        return "half a character, a lone surrogate, is in it"
    if isinstance(error, TypeError | AttributeError):
        return f"it is {kind_of(raw)}" if not isinstance(raw, Mapping) else f"a part is of another kind: {error}"
    if isinstance(error, BadRequest):
        what, _, place = str(error).partition(" - at `$.")
        what = what.replace("Invalid enum value", f"the role must be one of {', '.join(get_args(Role))}, not")
        return f"{place.rstrip('`')}: {what}" if place else what
    return str(error)


def kind_of(raw: Any) -> str:
    """What a JSON value is, in JSON's words."""
    kinds = {list: "an array", str: "a string", bool: "true or false", type(None): "null", dict: "an object"}
    return kinds.get(type(raw), "a number")


def has(*keys: str) -> Callable[[Any], bool]:
    """What recognises JSON objects that have all these keys."""
    return lambda raw: isinstance(raw, Mapping) and raw.keys() >= set(keys)


WORDS = {
    **dict.fromkeys(
        ("true", "yes", "pass", "passed", "success", "succeeded", "successful", "solved", "resolved", "ok"), True
    ),
    **dict.fromkeys(("false", "no", "fail", "failed", "failure", "error", "unsolved", "unresolved", "not resolved"), False),
}
"""What programs write for an outcome."""


def outcome_in(value: Any) -> bool | None:
    """A truth value, a word for one, or a reward from 0 to 1, solved from .5 on; null is not known.

    Raises ValueError for what is no outcome.
    """
    if value is None:
        return None
    word = value.strip().lower().replace("_", " ") if isinstance(value, str) else ""
    if word in WORDS:
        return WORDS[word]
    try:
        number = float(value) if isinstance(value, bool | int | float | str) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if 0 <= number <= 1:  # NaN is not
        return number >= SOLVED
    shown = repr(value) if len(repr(value)) < 80 else f"{repr(value)[:77]}..."
    raise ValueError(
        f"its outcome is {shown}; true, a number from 0 to 1 or a word such as {', '.join(list(WORDS)[2:5])} can be read"
    )


def outcome_of(raw: Mapping[str, Any]) -> bool | None:
    """The success of a record, from the places where records hold it. Raises ValueError for what is no outcome."""
    places = (raw, *(raw.get(key) for key in ("info", "extra", "metadata", "reward_info")))
    for place in places:
        if not isinstance(place, Mapping):
            continue
        for key in ("success", "resolved", "passed", "reward", "score"):
            if isinstance(value := place.get(key), bool | int | float | str):
                return outcome_in(value)
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


ANTHROPIC = {"tool_use", "tool_result", "thinking", "redacted_thinking"}
"""Types of blocks that OpenAI's chats do not have."""


def block_types(messages: Any) -> set[str]:
    """The types of all parts of the messages of a chat of either provider."""
    contents = [m.get("content") for m in messages if isinstance(m, Mapping)]
    blocks = [block for content in contents if isinstance(content, list) for block in content]
    return {str(block.get("type")) for block in blocks if isinstance(block, Mapping)}


def check_chat(messages: Any) -> None:
    """Raise ValueError for a chat of Anthropic's: read as one of OpenAI's it would lose its calls and their results."""
    if not isinstance(messages, list):
        raise ValueError(f"`messages` is {kind_of(messages)}, no array")
    if found := block_types(messages) & ANTHROPIC:
        raise ValueError(
            f"it has blocks of the type {min(found)}, as Anthropic's chats; read it by --format anthropic-jsonl"
        )


def turns(goal: str, pairs: list[tuple[str, str]]) -> list[Json]:
    """A chat of plain texts: the goal, then each action and what it led to."""
    messages: list[Json] = [{"role": "user", "content": goal}]
    for action, seen in pairs:
        messages += [{"role": "assistant", "content": action}, {"role": "user", "content": seen}]
    return messages
