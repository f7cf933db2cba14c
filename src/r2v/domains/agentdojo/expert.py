"""`GroundTruth`: the benchmark's own solution of each task as a teacher that takes over at any step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from r2v.core.types import Action, Candidate, Context, ToolCall, Usage
from r2v.domains.agentdojo.chat_format import call_of, text_of
from r2v.domains.agentdojo.engine import SUITES, Cell, cell_of, suite_of


class GroundTruth:
    """A policy (`r2v.core.protocols.Policy`) that knows the task by its prompt, and of the session what an agent sees."""

    name = "ground truth"

    async def propose(self, context: Context, k: int, *, seed: int) -> tuple[Candidate, ...]:
        """Raises ValueError for a goal that is no task of AgentDojo's."""
        made = [call for action in context.actions if (call := call_of(action.text)) is not None]
        cell = _cell(context.goal, made, context.observations[1:])
        left = cell.plan(cell.start.one_by_one(made))
        action = Action(text_of(left[0]) if left else cell.answer.strip())
        return tuple(Candidate(action, None, None, Usage(calls=1 - bool(i))) for i in range(k))


def _cell(prompt: str, made: Sequence[ToolCall], seen: tuple[str, ...]) -> Cell:
    """The cell of that prompt in which the calls lead to what was seen: some solutions name what an attacker has planted."""
    suite, task = _task(prompt)
    for injection in (None, *suite_of(suite).injection_tasks):
        cell = cell_of(suite, task, injection)
        if tuple(_results(cell, made)) == seen:
            return cell
    return cell_of(suite, task)  # somebody disturbs the texts


def _results(cell: Cell, made: Sequence[ToolCall]) -> Iterator[str]:
    state = cell.start
    for call in made:
        state = state.after((call,))
        yield state.results[0]


@cache
def _task(prompt: str) -> tuple[str, str]:
    """(suite, user task). Raises ValueError."""
    for suite in SUITES:
        for name, task in suite_of(suite).user_tasks.items():
            if prompt == task.PROMPT:
                return suite, name
    raise ValueError(f"AgentDojo has no task {prompt[:80]!r}")
