"""Agent Trajectory Interchange Format: files with the outcome in `extra`, or a job of Harbor.

Harbor is the harness of Terminal-Bench 2: what an agent did and how it ended lie in two files of a trial's folder.

JOB/TRIAL/agent/trajectory.json    ATIF; trajectory.cont-1.json and so on where a history was cut and went on
JOB/TRIAL/result.json              {"task_name": ..., "verifier_result": {"rewards": {"reward": 1.0}} | null, ...}
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r2v.logs.files import json_of, objects, text_of
from r2v.logs.records import Recorded, Records, outcome_of, task_of
from r2v.messages.conversation import Json

WHOLE = "agent/trajectory.json"


def trajectories(path: Path) -> Iterator[tuple[str, Json]]:
    """(file, ATIF trajectory with task and reward in `extra`) of each trial of a job; of any other path its JSON objects.

    Without a reward (the trial broke before it was judged, or still runs) `extra` has none. Raises ArtifactError.
    """
    files = sorted(path.rglob(WHOLE)) if path.is_dir() else []
    if not files:
        yield from objects(path)
    for file in files:
        whole = _read(file)
        for more in sorted(file.parent.glob("trajectory.cont-*.json"), key=lambda p: int(p.stem.rsplit("-", 1)[1])):
            whole["steps"] += [step for step in _read(more)["steps"] if not step.get("is_copied_context")]
        trial = file.parent.parent
        result = _read(trial / "result.json") if (trial / "result.json").exists() else {}
        rewards = (result.get("verifier_result") or {}).get("rewards") or {}
        about: Json = {"task": result.get("task_name", trial.name)}
        about |= {"reward": rewards["reward"]} if "reward" in rewards else {}
        yield str(file), {**whole, "extra": about}


def _read(file: Path) -> Any:
    return json_of(text_of(file), str(file))


def convert(raw: Json, where: str) -> Recorded:
    """Raises ValueError for JSON of another schema."""
    if not _recognises(raw):
        raise ValueError("no schema_version ATIF-...")
    messages: list[Json] = []
    for step in raw["steps"]:
        source, text = step["source"], step.get("message")
        message: Json = {"role": {"agent": "assistant"}.get(source, source), "content": text if text is not None else ""}
        if calls := [_call(call) for call in step.get("tool_calls") or []]:
            message["tool_calls"] = calls
        messages.append(message)
        for result in (step.get("observation") or {}).get("results") or []:
            call = result.get("source_call_id")
            seen = {"role": "tool", "tool_call_id": call} if call else {"role": "user"}
            messages.append({**seen, "content": result.get("content") or ""})
    agent = raw.get("agent") or {}
    task = task_of(raw.get("extra") or {}, task_of(raw, str(raw.get("session_id") or where)))
    return Recorded(task, outcome_of(raw), {"messages": messages}, str(agent.get("model_name") or "recorded"))


def _call(call: Json) -> Json:
    function = {"name": call["function_name"], "arguments": json.dumps(call.get("arguments") or {})}
    return {"id": call["tool_call_id"], "type": "function", "function": function}


def _recognises(raw: Any) -> bool:
    return isinstance(raw, dict) and str(raw.get("schema_version", "")).startswith("ATIF")


FORMAT = Records(
    "atif", "Agent Trajectory Interchange Format files, or a job folder of Harbor", convert, trajectories,
    recognises=_recognises,
)  # fmt: skip
