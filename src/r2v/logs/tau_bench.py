"""Runs of tau-bench ("traj") or tau2-bench ("messages"), or lines with "steps"."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from r2v.logs.mini_swe_agent import plain
from r2v.logs.records import Recorded, Records, outcome_of, task_of
from r2v.messages.conversation import Json


def convert(raw: Json, where: str) -> Recorded:
    if "steps" in raw:
        messages: list[Json] = [{"role": "user", "content": str(raw.get("user_first") or raw.get("instruction") or "")}]
        for i, step in enumerate(raw["steps"]):
            messages += _step(step, f"call_{i}")
        return Recorded(task_of(raw, where), outcome_of(raw), {"messages": messages}, str(raw.get("model", "recorded")))
    messages = [
        {"role": m["role"], **plain({**m, "tool_calls": [_call(c) for c in m.get("tool_calls") or []] or None})}
        for m in raw.get("traj") or raw["messages"]
    ]
    return Recorded(task_of(raw, where), outcome_of(raw), {"messages": messages}, "recorded")


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


FORMAT = Records("tau-bench", "results of tau-bench or tau2-bench, or JSON lines with steps", convert)
