"""Runs of tau-bench ("traj") or tau2-bench ("messages"), or lines with "steps".

The benchmarks and their versions hold the same tasks under several names, all about some hundred users: what is of one user
stays together, by the id that instruction or chat show.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from r2v.logs.mini_swe_agent import plain
from r2v.logs.records import Recorded, Records, has, outcome_of, task_of
from r2v.messages.conversation import Json

USER = re.compile(r"\b[a-z]+_[a-z]+_\d{4}\b")


def convert(raw: Json, where: str) -> Recorded:
    if "steps" in raw:
        messages: list[Json] = [{"role": "user", "content": str(raw.get("user_first") or raw.get("instruction") or "")}]
        for i, step in enumerate(raw["steps"]):
            messages += _step(step, f"call_{i}")
        return _recorded(raw, where, messages, str(raw.get("model", "recorded")))
    messages = [
        {"role": m["role"], **plain({**m, "tool_calls": [_call(c) for c in m.get("tool_calls") or []] or None})}
        for m in raw.get("traj") or raw["messages"]
    ]
    return _recorded(raw, where, messages, "recorded")


def _recorded(raw: Json, where: str, messages: list[Json], model: str) -> Recorded:
    user = next((found[0] for text in _texts(raw, messages) if (found := USER.search(text))), None)
    return Recorded(task_of(raw, where), outcome_of(raw), {"messages": messages}, model, user)


def _texts(raw: Json, messages: Iterable[Json]) -> Iterable[str]:
    """Where an id may stand, the surest place first. What the system prompt says is an example."""
    yield str(raw.get("instruction") or "")
    for message in messages:
        if message["role"] != "system":
            yield from (str(call["function"].get("arguments")) for call in message.get("tool_calls") or ())
            yield str(message.get("content") or "")


def _step(step: Mapping[str, Any], identity: str) -> list[Json]:
    reply: Json = {"role": "assistant", "content": step.get("action") or ""}
    seen = step.get("observation") or ""
    if not step.get("tool"):
        return [reply, {"role": "user", "content": seen}]
    function = {"name": step["tool"], "arguments": step.get("arguments") or "{}"}
    reply["tool_calls"] = [{"id": identity, "type": "function", "function": function}]
    return [reply, {"role": "tool", "tool_call_id": identity, "content": seen}]


def _call(call: Mapping[str, Any]) -> Json:
    """A tool call, in OpenAI's form or tau2's flat one."""
    if "function" in call:
        return dict(call)
    function = {"name": call["name"], "arguments": json.dumps(call.get("arguments") or {})}
    return {"id": call.get("id"), "type": "function", "function": function}


def _recognises(raw: Any) -> bool:
    return any(one(raw) for one in (has("traj"), has("messages", "reward_info"), has("benchmark", "steps", "user_first")))


FORMAT = Records(
    "tau-bench", "results of tau-bench or tau2-bench, or JSON lines with steps", convert, recognises=_recognises
)
