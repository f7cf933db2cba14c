"""AgentDojo: lines with "suite", "user_task", "setting" (model and defence), "attack" and the whole chat.

Clean and attacked episodes of a user task are cells of their own: the attack is the perturbation. Where the chat was not
recorded the episode has an outcome and no steps.
"""

from __future__ import annotations

import json

from r2v.logs.records import Recorded, Records, has, outcome_of
from r2v.messages.conversation import Json


def convert(raw: Json, where: str) -> Recorded:
    messages = [_message(message) for message in raw["messages"]] or [{"role": "user", "content": ""}]
    return Recorded(
        f"{raw['suite']}/{raw['user_task']}", outcome_of(raw), {"messages": messages}, raw["setting"],
        perturbation=raw["attack"] or "none",
    )  # fmt: skip


def _message(message: Json) -> Json:
    found: Json = {"role": message["role"], "content": message["content"]}
    if message["role"] == "tool":
        # A tool that failed has no content: the agent read the error in its place.
        return found | {"content": message.get("error") or message["content"], "tool_call_id": message["tool_call_id"]}
    if calls := message.get("tool_calls"):
        found["tool_calls"] = [_call(call) for call in calls]
    return found


def _call(call: Json) -> Json:
    function = call["function"]
    arguments = function["arguments"]  # an object here, JSON text in a chat
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": call["id"], "type": "function", "function": {"name": function["name"], "arguments": text}}


FORMAT = Records(
    "agentdojo", "AgentDojo's episodes, clean and attacked (JSON lines)", convert,
    recognises=has("suite", "user_task", "setting", "attack", "messages"),
)  # fmt: skip
