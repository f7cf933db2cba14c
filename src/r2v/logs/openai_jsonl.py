"""A line an episode: {"messages": [...], "tools": [...], "task": ..., "model": ..., "success" or "reward": ...}."""

from __future__ import annotations

from r2v.logs.records import Recorded, Records, outcome_of, task_of
from r2v.messages.conversation import Json


def convert(raw: Json, where: str) -> Recorded:
    body = {"messages": raw["messages"], **({"tools": raw["tools"]} if raw.get("tools") else {})}
    goal = next((str(m.get("content")) for m in raw["messages"] if m.get("role") == "user"), where)
    return Recorded(task_of(raw, goal), outcome_of(raw), body, str(raw.get("model", "recorded")))


FORMAT = Records("openai-jsonl", "JSON lines of OpenAI chats with a task and an outcome", convert)
