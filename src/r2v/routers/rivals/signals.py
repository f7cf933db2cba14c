"""What the rules of other systems look at in a session: failed results, repeated calls, reading and writing calls.

A text is cut first, and what was found in it is kept: a signal of a step takes some microseconds.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

from r2v.core.types import Action, Context
from r2v.verifiers.tool_calls import FAILED

Kind = Literal["read", "write", "plan", "other"]

END = 500
"""Characters at either end of a result in which errors are searched: they stand first, or after a traceback."""
HEAD = 160
"""Characters of a call that say what it does."""
KEPT = 1 << 15
"""Texts of which it is kept what was found: 33 MB at most."""
SOFT, HARD, CRITICAL = 0.3, 0.7, 1.0
"""How bad a failed result is: no more than an exit code; an error; one that no other call can mend."""
_CRITICAL = re.compile(r"out of memory|memoryerror|no space left|connection ?refused|econnrefused", re.IGNORECASE)
_EXIT = ("exit", "return")
"""How `FAILED` finds exit codes."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_WORDS: dict[Kind, str] = {
    "read": "browse cat check count desc describe examine fetch find get grep head list look lookup ls open query read "
    "search select show tail view",
    "write": "add alter append apply book buy cancel clean cool copy cp create delete drop edit exchange heat insert invite "
    "mkdir modify move mv patch pay post put remove rename replace reschedule reserve return rm save schedule send "
    "set share tee toggle touch transfer update write",
    "plan": "plan think todo",
}
_KINDS: dict[str, Kind] = {word: kind for kind, words in _WORDS.items() for word in words.split()}
_SUBMITS = re.compile(r"^\W*(?:submit|finish|answer|final[ _]answer)\b|<solution>|\bfinal answer\b", re.IGNORECASE)


def latest(context: Context, last: int) -> list[tuple[Action, str]]:
    """(call, its result) of the newest calls, the oldest of them first; where no action calls a tool, actions are calls."""
    done = list(zip(context.actions, context.observations[1:], strict=False))
    return ([pair for pair in done if pair[0].tool_calls] or done)[-last:]


def stuck(context: Context, last: int) -> int:
    """How often among the newest calls the newest one was made, or, where that failed, how many of them failed."""
    calls = latest(context, last)
    if not calls:
        return 0
    newest, result = calls[-1]
    repeated = sum(action.text == newest.text for action, _ in calls)
    return max(repeated, sum(severity(seen) > 0 for _, seen in calls)) if severity(result) else repeated


def severity(result: str) -> float:
    """0 for a result that shows no failure, else `SOFT`, `HARD` or `CRITICAL`."""
    return _severity(result if len(result) <= 2 * END else f"{result[:END]}\n{result[-END:]}")


@lru_cache(KEPT)
def _severity(ends: str) -> float:
    if _CRITICAL.search(ends):
        return CRITICAL
    found = [match.group().lower().startswith(_EXIT) for match in FAILED.finditer(ends)]
    return 0.0 if not found else SOFT if all(found) else HARD


def kind(action: Action) -> Kind:
    """What a call does, by the first word of its beginning that is known."""
    return _kind(action.text[:HEAD])


@lru_cache(KEPT)
def _kind(head: str) -> Kind:
    words = map(str.lower, _WORD.findall(head))
    return next((_KINDS[word] for word in words if word in _KINDS), "other")


def submits(action: Action) -> bool:
    """Whether an action hands in an answer by name."""
    text = action.text
    return _SUBMITS.search(text if len(text) <= 2 * END else f"{text[:END]}\n{text[-END:]}") is not None


def finishes(context: Context) -> bool:
    """Whether the SLM proposes to end: by handing in, or without a call although the session calls tools."""
    action = context.proposed
    if action is None or action.tool_calls:
        return action is not None and submits(action)
    return submits(action) or any(done.tool_calls for done in context.actions)
