"""The chat that an episode keeps, to and from OpenAI's form: what a language model is trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

import msgspec

from r2v.core.types import Episode, Message, Role, ToolCall
from r2v.messages.conversation import Json, Request, said_by, words_of

ROLES: tuple[Role, ...] = get_args(Role)
_raw_messages = msgspec.json.Decoder(list[msgspec.Raw])


def message_of(raw: Mapping[str, Any]) -> Message:
    """A message in OpenAI's form; a model's answer may leave out its role. Parts that are not text are named, not kept."""
    said = any(raw.get(key) is not None for key in ("content", "refusal"))
    role: Role = next((role for role in ROLES if role == raw.get("role")), "assistant")
    result_of, name = (text if isinstance(text := raw.get(key), str) else None for key in ("tool_call_id", "name"))
    calls = [(*said_by(call), str(call.get("id") or "")) for call in raw.get("tool_calls") or []]
    return Message(
        role,
        words_of(raw) if said else None,
        tuple(ToolCall(*call) for call in calls),
        result_of,
        name,
    )


def incoming(request: Request, *, first: bool) -> tuple[Message, ...]:
    """What came into the chat since the model's last message; at the first step of a session all that is there."""
    last = max((i for i, message in enumerate(request.messages) if message.role == "assistant"), default=-1)
    raw = _raw_messages.decode(request.fields["messages"])
    return tuple(message_of(msgspec.json.decode(message)) for message in (raw if first else raw[last + 1 :]))


def conversation_of(episode: Episode) -> list[Json]:
    """The whole chat of an episode in OpenAI's form; the tools that were offered are `json.loads(episode.tools)`.

    Raises:
        ValueError: a step has no message of a model: the episode is of a domain without a chat, or a redacted ledger's.
    """
    found: list[Json] = []
    for step in episode.steps:
        if step.choice.reply is None:
            raise ValueError(f"{episode.task.id} step {step.t} keeps no messages: it is no chat, or its ledger was redacted")
        found += [_openai(message) for message in (*step.messages, step.choice.reply)]
    return found + [_openai(message) for message in episode.closing]


def _openai(message: Message) -> Json:
    found: Json = {"role": message.role, "content": message.content}
    if message.tool_calls:
        found["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        found["name"] = message.name
    return found


def tools_text(tools: Any) -> str:
    """`Episode.tools` of a list of tools; empty for none."""
    return json.dumps(tools, ensure_ascii=False, separators=(",", ":")) if tools else ""
