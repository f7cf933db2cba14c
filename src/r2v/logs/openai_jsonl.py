"""A line an episode: {"messages": [...], "tools": [...], "task": ..., "model": ..., "success" or "reward": ...}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from r2v.logs.records import ANTHROPIC, Recorded, Records, block_types, check_chat, outcome_of, task_of
from r2v.messages.conversation import Json


def convert(raw: Json, where: str) -> Recorded:
    check_chat(raw["messages"])
    body = {"messages": raw["messages"], **({"tools": raw["tools"]} if raw.get("tools") else {})}
    goal = next((str(m.get("content")) for m in raw["messages"] if m.get("role") == "user"), where)
    return Recorded(task_of(raw, goal), outcome_of(raw), body, str(raw.get("model", "recorded")))


def is_chat(raw: Any) -> bool:
    """Whether it is a chat of either provider, and not one of the programs that keep chats beside facts of their own."""
    messages = raw.get("messages") if isinstance(raw, Mapping) else None
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) and "role" in m for m in messages):
        return False
    # `info` alone is mini-swe-agent's; `traj`, `reward_info` and `suite` are those of benchmarks.
    others = {"traj", "reward_info", "suite"} | (set() if {"task", "model"} & raw.keys() else {"info"})
    return bool(messages) and not others & raw.keys()


def is_anthropic(raw: Any) -> bool:
    """Whether a chat has what only Anthropic's have: a system prompt of its own, blocks of tool use, their tools."""
    tools = [tool for tool in raw.get("tools") or () if isinstance(tool, Mapping)]
    return "system" in raw or bool(block_types(raw["messages"]) & ANTHROPIC) or any("input_schema" in t for t in tools)


FORMAT = Records(
    "openai-jsonl", "JSON lines of OpenAI chats with a task and an outcome", convert,
    recognises=lambda raw: is_chat(raw) and not is_anthropic(raw),
)  # fmt: skip
