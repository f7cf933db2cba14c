"""What each program's trajectories mean: one raw record becomes a chat, a task and an outcome (formats: see `importing`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from r2v.core.errors import ArtifactError
from r2v.gateway.export import SOLVED
from r2v.logs.files import objects
from r2v.logs.terminal import from_text, from_trial
from r2v.messages.anthropic import from_messages
from r2v.messages.conversation import Json


@dataclass(frozen=True)
class Recorded:
    """One trajectory in the neutral form."""

    task: str
    success: bool | None
    body: Json
    """Chat-completion body with all messages."""
    model: str


def _outcome(raw: Mapping[str, Any]) -> bool | None:
    """What a record says of its success, in the places where records say it."""
    for place in (
        raw,
        raw.get("info") or {},
        raw.get("extra") or {},
        raw.get("metadata") or {},
        raw.get("reward_info") or {},
    ):
        if not isinstance(place, Mapping):
            continue
        for key in ("success", "resolved", "passed", "reward", "score"):
            value = place.get(key)
            if isinstance(value, bool):
                return value
            if isinstance(value, int | float):
                return value >= SOLVED
    return None


def _task(raw: Mapping[str, Any], otherwise: str) -> str:
    info = raw.get("info") if isinstance(raw.get("info"), Mapping) else {}
    for place in (raw, info):
        assert isinstance(place, Mapping)
        for key in ("task", "task_id", "instance_id", "problem_id"):
            if place.get(key) is not None:
                benchmark = raw.get("benchmark")
                return f"{benchmark}/{place[key]}" if benchmark else str(place[key])
    return otherwise


def openai(raw: Json, where: str) -> Recorded:
    body = {"messages": raw["messages"], **({"tools": raw["tools"]} if raw.get("tools") else {})}
    goal = next((str(m.get("content")) for m in raw["messages"] if m.get("role") == "user"), where)
    return Recorded(_task(raw, goal), _outcome(raw), body, str(raw.get("model", "recorded")))


def terminal_log(raw: str, where: str) -> Recorded:
    return openai(from_text(raw, where), where)


def terminalbench(raw: Json, where: str) -> Recorded:
    return openai(from_trial(raw, where), where)


def anthropic(raw: Json, where: str) -> Recorded:
    body = from_messages({key: raw[key] for key in ("messages", "system", "tools") if key in raw})
    return openai({**raw, "messages": body["messages"], "tools": body.get("tools")}, where)


def mini_swe_agent(raw: Json, where: str) -> Recorded:
    """mini-swe-agent: a chat whose last entries may be the exit; the instance is in the file or is the file's name."""
    messages = [
        {"role": m["role"] if m["role"] in ("system", "user", "assistant", "tool") else "user", **_said(m)}
        for m in raw["messages"]
        if m.get("role") != "exit"
    ]
    config = (raw.get("info") or {}).get("config") or {}
    model = str((config.get("model") or {}).get("model_name", "recorded")) if isinstance(config, Mapping) else "recorded"
    name = Path(where.rsplit(":", 1)[0]).name.split(".")[0]
    return Recorded(_task(raw, name), _outcome(raw), {"messages": messages}, model)


def _said(message: Mapping[str, Any]) -> Json:
    kept = {key: message[key] for key in ("content", "tool_calls", "tool_call_id") if message.get(key) is not None}
    return kept or {"content": ""}


def tau_bench(raw: Json, where: str) -> Recorded:
    """A run of tau-ctx ("traj") or tau2 ("messages"), or our own lines of steps."""
    if "steps" in raw:
        messages: list[Json] = [{"role": "user", "content": str(raw.get("user_first") or raw.get("instruction") or "")}]
        for i, step in enumerate(raw["steps"]):
            messages += _tau_step(step, f"call_{i}")
        return Recorded(_task(raw, where), _outcome(raw), {"messages": messages}, str(raw.get("model", "recorded")))
    messages = [
        {
            "role": m["role"],
            **_said({**m, "tool_calls": [_call(c) for c in m["tool_calls"]] if m.get("tool_calls") else None}),
        }
        for m in raw.get("traj") or raw["messages"]
    ]
    return Recorded(_task(raw, where), _outcome(raw), {"messages": messages}, "recorded")


def _tau_step(step: Mapping[str, Any], identity: str) -> list[Json]:
    said: Json = {"role": "assistant", "content": step.get("action") or ""}
    seen = step.get("observation") or ""
    if not step.get("tool"):
        return [said, {"role": "user", "content": seen}]
    function = {"name": step["tool"], "arguments": step.get("arguments") or "{}"}
    said["tool_calls"] = [{"id": identity, "type": "function", "function": function}]
    return [said, {"role": "tool", "tool_call_id": identity, "content": seen}]


def _call(call: Mapping[str, Any]) -> Json:
    """A tool call, in OpenAI's form or tau2's flat one."""
    if "function" in call:
        return dict(call)
    function = {"name": call["name"], "arguments": json.dumps(call.get("arguments") or {})}
    return {"id": call.get("id"), "type": "function", "function": function}


def atif(raw: Json, where: str) -> Recorded:
    if not str(raw.get("schema_version", "")).startswith("ATIF"):
        raise ValueError("no schema_version ATIF-...")
    messages: list[Json] = []
    for step in raw["steps"]:
        source = step["source"]
        text = step.get("message")
        said: Json = {"role": {"agent": "assistant"}.get(source, source), "content": text if text is not None else ""}
        calls = step.get("tool_calls") or []
        if calls:
            said["tool_calls"] = [
                {
                    "id": c["tool_call_id"],
                    "type": "function",
                    "function": {"name": c["function_name"], "arguments": json.dumps(c.get("arguments") or {})},
                }
                for c in calls
            ]
        messages.append(said)
        for result in (step.get("observation") or {}).get("results") or []:
            role = "tool" if result.get("source_call_id") else "user"
            messages.append(
                {"role": role, "tool_call_id": result.get("source_call_id"), "content": result.get("content") or ""}
            )
    agent = raw.get("agent") or {}
    task = _task(raw.get("extra") or {}, _task(raw, str(raw.get("session_id") or where)))
    return Recorded(task, _outcome(raw), {"messages": messages}, str(agent.get("model_name") or "recorded"))


def knowagent(raw: Json, where: str) -> Recorded:
    """The model's thoughts between the commands are left out; the room and the goal are one text in the file."""
    room, goal = raw["intro"].split("Your task is to: ", 1)
    messages: list[Json] = [{"role": "user", "content": goal.strip()}, {"role": "user", "content": room.strip()}]
    for step in raw["steps"]:
        messages += [{"role": "assistant", "content": step["action"]}, {"role": "user", "content": step["observation"]}]
    model = f"{raw['model']} {raw['iteration']}"
    return Recorded(_task(raw, where), _outcome(raw), {"messages": messages}, model)


def mint(raw: Json, where: str) -> Recorded:
    """The last action has no observation of its own: what it led to is the outcome."""
    prompts = _mint_prompts(Path(where.rsplit(":", 1)[0]).parent)
    messages: list[Json] = [{"role": "user", "content": prompts[raw["task"]]}]
    for step in raw["steps"]:
        messages.append({"role": "assistant", "content": step["action"]})
        messages.append({"role": "user", "content": step.get("observation") or ""})
    helped = f" + {raw['feedback_kind']} of {raw['teacher']}" if raw["teacher"] else ""
    return Recorded(_task(raw, where), _outcome(raw), {"messages": messages}, f"{raw['model']}{helped}")


@lru_cache(maxsize=1)
def _mint_prompts(folder: Path) -> dict[str, str]:
    path = folder / "tasks.jsonl.xz"
    if not path.exists():
        raise ArtifactError(f"{path} does not exist; MINT's episodes need the file of their tasks beside them")
    return {entry["task"]: entry["prompt"] for _, entry in objects(path)}
