"""mini-swe-agent: a chat whose last entries may be the exit; the instance is in the file or is the file's name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r2v.logs.records import Recorded, Records, has, outcome_of, task_of
from r2v.messages.conversation import Json

ROLES = ("system", "user", "assistant", "tool")


def convert(raw: Json, where: str) -> Recorded:
    messages = [
        {"role": m["role"] if m["role"] in ROLES else "user", **plain(m)} for m in raw["messages"] if m.get("role") != "exit"
    ]
    config = (raw.get("info") or {}).get("config") or {}
    model = str((config.get("model") or {}).get("model_name", "recorded")) if isinstance(config, Mapping) else "recorded"
    name = Path(where.rsplit(":", 1)[0]).name.split(".")[0]
    return Recorded(task_of(raw, name), outcome_of(raw), {"messages": messages}, model)


def plain(message: Mapping[str, Any]) -> Json:
    """What the chat protocol knows of a message, without its role."""
    kept = {key: message[key] for key in ("content", "tool_calls", "tool_call_id") if message.get(key) is not None}
    return kept or {"content": ""}


FORMAT = Records(
    "mini-swe-agent", "*.traj.json files or a folder of them; outcomes from the file or a SWE-bench report", convert,
    recognises=lambda raw: has("messages", "info")(raw) and not {"task", "model", "suite", "reward_info"} & raw.keys(),
)  # fmt: skip
