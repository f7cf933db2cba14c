"""WorkBench: lines with "query", "template", "model", "tools_in_prompt", and "steps" of tool, input, thought, observation.

Queries of one template ask for the same thing in other words and numbers: they stay together. "steps" is null where the
program that recorded them broke: the outcome is known, what led to it is not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from r2v.logs.records import Recorded, Records, has, outcome_of
from r2v.messages.conversation import Json


def convert(raw: Json, where: str) -> Recorded:
    messages: list[Json] = [{"role": "user", "content": raw["query"]}]
    for number, step in enumerate(raw["steps"] or []):
        messages += _step(step, f"call_{number}")
    return Recorded(
        f"{raw['domain']}/{raw['query']}", outcome_of(raw), {"messages": messages},
        f"{raw['model']} {raw['tools_in_prompt']}", group=raw["template"],
    )  # fmt: skip


def _step(step: Mapping[str, Any], identity: str) -> list[Json]:
    """What the model wrote, its call, and the result; a part that the recording could not read is left out."""
    reply: Json = {"role": "assistant", "content": step["thought"] or ""}
    seen = step["observation"] or ""
    if step["tool"] is None:
        return [reply, {"role": "user", "content": seen}]
    arguments = step["input"]
    text = (
        arguments if isinstance(arguments, str) else json.dumps({} if arguments is None else arguments, ensure_ascii=False)
    )
    reply["tool_calls"] = [{"id": identity, "type": "function", "function": {"name": step["tool"], "arguments": text}}]
    return [reply, {"role": "tool", "tool_call_id": identity, "content": seen}]


FORMAT = Records(
    "workbench", "WorkBench's office tasks (JSON lines)", convert,
    recognises=has("domain", "query", "template", "tools_in_prompt", "steps"),
)  # fmt: skip
