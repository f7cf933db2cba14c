"""The verifier for agents we know nothing about: is this message, with its tool calls, sensible here? (method, section 4)

    .35 every call names a known tool with arguments that fit its schema      .25 it was not done lately
    .15 after an error it does something else than before                    .15 it names something of the goal
    .10 no oscillation

A message without calls, where tools are offered, gets half of the first part: it may be the answer or a stall. 0 is kept
for what cannot be right: nothing at all, a call that cannot be executed, exactly what has just failed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any

from r2v.core.types import Action, Context, ToolCall
from r2v.runtime.json_schema import UNITS, JsonSchema, Work
from r2v.verifiers.evidence import oscillation, repetition

FAILED = re.compile(
    r"\b(?:error|exception|traceback|failed|failure|not found|no such|invalid|denied|refused|timed? ?out|cannot)\b"
    r"|\b(?:exit(?:ed)?(?: with)?|return)[ _]?(?:code|status)\W{0,3}[1-9]",
    re.IGNORECASE,
)
WORDS = re.compile(r"[a-z0-9_]{4,}")
READ = 100_000
"""Characters of an action in which words of the goal are searched."""


class ToolCallVerifier:
    """A `Verifier`. Scores the action against the tools of this request and the steps so far."""

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """`tools`: OpenAI function definitions; a schema that is itself wrong is not held against a call."""
        self._schemas = {str(tool.get("name")): JsonSchema(tool.get("parameters") or {}) for tool in tools}

    async def score(self, context: Context, actions: Sequence[Action]) -> tuple[float, ...]:
        known: dict[Action, float] = {}
        done = [action.text for action in context.actions]
        goal = set(WORDS.findall(context.goal[:READ].lower()))
        work = Work()
        for action in actions:
            if action not in known:
                repeats = bool(done) and action.text == done[-1]
                wrong = repeats and _failed(done, context.observations)
                known[action] = 0.0 if wrong else self._score(action, done, goal, work)
                if work.left < UNITS // 2:
                    await asyncio.sleep(0)  # much has been checked: others come first
        return tuple(known[action] for action in actions)

    def _score(self, action: Action, done: list[str], goal: set[str], work: Work) -> float:
        if not action.text.strip():
            return 0.0
        if not action.tool_calls:
            fits = 0.5 if self._schemas else 1.0
        elif not self._schemas:
            fits = 0.0  # logs often leave the tools out: that says nothing of the call
        elif all(self._fits(call, work) for call in action.tool_calls):
            fits = 1.0
        else:
            return 0.0
        named = len(goal & set(WORDS.findall(action.text[:READ].lower())))
        return (
            0.35 * fits
            + 0.25 * repetition(action.text, done)
            + 0.15
            + 0.15 * (min(1.0, named / 2) if goal else 1.0)
            + 0.10 * oscillation(action.text, done)
        )

    def _fits(self, call: ToolCall, work: Work) -> bool:
        """Whether it can be executed, as far as that is known."""
        schema = self._schemas.get(call.name)
        return schema is not None and schema.fits(call.arguments or "{}", work) is not False


def _failed(done: Sequence[str], observations: Sequence[str]) -> bool:
    """Whether the last action did: its result says so, wherever, or is the very one that the same action had before."""
    last = (done[-1], observations[-1])
    return FAILED.search(last[1]) is not None or last in zip(done[:-1], observations[1:], strict=False)
