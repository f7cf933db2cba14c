"""A format made on the spot for JSON records of no known format: where in a record each part lies, as dotted paths.

    task=id  success=result.status  messages=chat                                  records with an OpenAI chat
    task=id  success=ok  goal=prompt  steps=trace  action=do  observation=out      records with a list of steps

Paths of `action`, `observation`, `tool` and `arguments` begin at a step. A number in a path is a place in a list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from r2v.core.errors import SettingsError
from r2v.logs.records import Recorded, Records, check_chat, outcome_in
from r2v.messages.conversation import Json

CHAT = ("messages", "tools")
STEPS = ("goal", "steps", "action", "observation", "tool", "arguments")
ANY = ("task", "success", "model", "group")


def mapping_of(pairs: Sequence[str]) -> dict[str, str]:
    """`KEY=PATH` texts of a command line as a mapping. Raises SettingsError."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, path = pair.partition("=")
        if not equals or not path:
            raise SettingsError(f"--map {pair}: write KEY=PATH, e.g. --map task=info.id")
        if key in found:
            raise SettingsError(f"--map {key} is given twice")
        found[key] = path
    return found


def mapped(mapping: Mapping[str, str], verifier: str = "tool_calls") -> Records:
    """A log format that reads records by a mapping.

    Args:
        mapping: part -> dotted path. `task` and `success`, and either `messages` (perhaps `tools`) or `goal`, `steps`
            and `action` (perhaps `observation`, `tool`, `arguments`) are wanted; `model` and `group` may be.
        verifier: what scores the actions.

    Raises:
        SettingsError: a part has a name that is none, or one is missing.
    """
    known = (*ANY, *CHAT, *STEPS)
    for key in mapping:
        if key not in known:
            raise SettingsError(f"--map has no key {key}; there are {', '.join(known)}")
    if len({"messages", "steps"} & mapping.keys()) != 1:
        raise SettingsError("--map wants either messages=PATH (a chat) or steps=PATH (a list of steps)")
    chat = "messages" in mapping
    for key in ("task", "success", *(() if chat else ("goal", "action"))):
        if key not in mapping:
            raise SettingsError(f"--map {key}=PATH is missing: records with {'messages' if chat else 'steps'} need it")
    for key in STEPS if chat else CHAT:
        if key in mapping:
            raise SettingsError(f"--map {key} does not go with {'messages' if chat else 'steps'}")
    return Records("mapped", "JSON records, read by a mapping", partial(_convert, dict(mapping)), verifier=verifier)


def _convert(mapping: Mapping[str, str], raw: Json, where: str) -> Recorded:
    body: Json = {"messages": _at(raw, mapping["messages"]) if "messages" in mapping else _chat(mapping, raw)}
    check_chat(body["messages"])
    if "tools" in mapping and (tools := _at(raw, mapping["tools"])):
        body["tools"] = tools
    model = _at(raw, mapping["model"]) if "model" in mapping else "recorded"
    group = _at(raw, mapping["group"]) if "group" in mapping else None
    return Recorded(
        str(_at(raw, mapping["task"])), outcome_in(_at(raw, mapping["success"])), body, str(model),
        None if group is None else str(group),
    )  # fmt: skip


def _chat(mapping: Mapping[str, str], raw: Json) -> list[Json]:
    """Steps as a chat: the goal, then each action, a tool's call where the step has one, and what it led to."""
    messages: list[Json] = [{"role": "user", "content": _text(_at(raw, mapping["goal"]))}]
    steps = _at(raw, mapping["steps"])
    for number, step in enumerate(steps):
        # The last step may have led to nothing, and steps without a tool have no keys for one.
        free = ("tool", "arguments") if number < len(steps) - 1 else ("tool", "arguments", "observation")
        part = {key: _at(step, mapping[key], free=key in free) for key in STEPS[2:] if key in mapping}
        reply: Json = {"role": "assistant", "content": _text(part["action"])}
        seen: Json = {"role": "user", "content": _text(part.get("observation"))}
        if part.get("tool"):
            arguments = part.get("arguments")
            function = {"name": str(part["tool"]), "arguments": "{}" if arguments is None else _text(arguments)}
            reply["tool_calls"] = [{"id": f"call_{number}", "type": "function", "function": function}]
            seen |= {"role": "tool", "tool_call_id": f"call_{number}"}
        messages += [reply, seen]
    return messages


def _at(raw: Any, path: str, *, free: bool = False) -> Any:
    """What lies at a dotted path; null is something. Raises ValueError where there is nothing, unless it is `free` to be."""
    value = raw
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif free:
            return None
        else:
            keys = f"; there are {', '.join(map(str, value))}" if isinstance(value, Mapping) and value else ""
            raise ValueError(f"nothing at {path}: no {part}{keys}")
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
