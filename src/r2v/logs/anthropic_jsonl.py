"""As `openai_jsonl`, with Anthropic's messages, and "system"."""

from __future__ import annotations

from r2v.logs import openai_jsonl
from r2v.logs.records import Recorded, Records
from r2v.messages.anthropic import from_messages
from r2v.messages.conversation import Json


def convert(raw: Json, where: str) -> Recorded:
    if any("tool_calls" in m or m.get("role") == "tool" for m in raw["messages"]):
        raise ValueError("it has tool calls as OpenAI's chats do; read it by --format openai-jsonl")
    body, _ = from_messages({key: raw[key] for key in ("messages", "system", "tools") if key in raw})
    return openai_jsonl.convert({**raw, "messages": body["messages"], "tools": body.get("tools")}, where)


FORMAT = Records(
    "anthropic-jsonl", "JSON lines of Anthropic Messages with a task and an outcome", convert,
    recognises=lambda raw: openai_jsonl.is_chat(raw) and openai_jsonl.is_anthropic(raw),
)  # fmt: skip
