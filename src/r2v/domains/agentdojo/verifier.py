"""`tool_calls` for AgentDojo: the tools are those that the first observation lists, and the calls stand in the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from r2v.core.types import Action, Context
from r2v.core.untrusted import parsed_json
from r2v.domains.agentdojo.chat_format import call_of
from r2v.verifiers.tool_calls import ToolCallVerifier


class AgentDojoVerifier:
    """A `Verifier`. A call of a tool that there is not, or with arguments that do not fit it, scores 0."""

    async def score(self, context: Context, actions: Sequence[Action]) -> tuple[float, ...]:
        return await _knowing(context.observations[0]).score(context, [_with_call(action) for action in actions])


@lru_cache(maxsize=16)
def _knowing(listed: str) -> ToolCallVerifier:
    """The verifier that knows the tools of a first observation: each line that is one of them as JSON."""
    return ToolCallVerifier([tool for line in listed.splitlines() if (tool := _tool(line)) is not None])


def _tool(line: str) -> dict[str, Any] | None:
    try:
        tool = parsed_json(line)
    except ValueError:
        return None
    return tool if isinstance(tool, dict) and isinstance(tool.get("name"), str) else None


def _with_call(action: Action) -> Action:
    call = call_of(action.text)
    return action if call is None else replace(action, tool_calls=(call,))
