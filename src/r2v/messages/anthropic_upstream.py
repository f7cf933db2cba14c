"""Anthropic's Messages protocol as models speak it: requests to them, their answers and streams.

Thinking blocks belong to the model that wrote them: they are kept when that model reads them again and dropped for another.
Calls and their results stay pairs: a result without a call, or a call without a result before the next turn, is refused by
Anthropic's API, so such leftovers become plain text. It also refuses ids with other characters than letters, digits, _, -,
and an id that comes twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from r2v.messages.anthropic import assistant, tool_uses
from r2v.messages.conversation import Json, counted, object_of, sent_id, text_of, words_of
from r2v.messages.openai_chat import chunk_of, offered
from r2v.messages.protocol import Reply

FINISH = {
    "end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls",
    "refusal": "content_filter", "model_context_window_exceeded": "length",
}  # fmt: skip
CONVERTED = (
    "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "tools", "tool_choice",
    "parallel_tool_calls", "response_format", "stream", "stream_options", "model",
)  # fmt: skip
NOTHING = {"type": "text", "text": "(nothing)"}
THINKING = ("thinking", "redacted_thinking")
MARK = {"cache_control": {"type": "ephemeral"}}


def own_messages(source: Json, *, model: str, max_tokens: int, foreign: Callable[[Json], bool]) -> tuple[Json, list[str]]:
    """A client's own Messages request for a model: with that model's name, without what other models wrote for themselves.

    Args:
        source: the client's body.
        model: name of the model.
        max_tokens: where the client sets no limit.
        foreign: whether another model wrote this thinking block.

    Returns:
        (body, names of what it lacks of the client's).
    """
    messages, dropped = [], []
    for message in source["messages"]:
        content = message["content"]
        if message["role"] == "assistant" and isinstance(content, list):
            kept = [block for block in content if block.get("type") not in THINKING or not foreign(block)]
            dropped += ["thinking of another model"] * (len(kept) < len(content))
            message = {**message, "content": kept or [NOTHING]}
        messages.append(message)
    body = {"max_tokens": max_tokens, **source, "model": model, "messages": _unique(messages)}
    body.pop("stream", None)
    thinking = source.get("thinking")
    if isinstance(thinking, dict) and thinking.get("type") == "enabled" and _thoughtless(messages):
        # The API refuses to think on in a turn that another model began without thinking.
        dropped.append("thinking")
        del body["thinking"]
        body.pop("context_management", None)  # what it clears is thinking, which must then be enabled
    return body, dropped


def _thoughtless(messages: list[Json]) -> bool:
    """Whether the turn that goes on, the results of its tools being sent, began without thinking."""
    said = [message["content"] for message in messages if message["role"] == "assistant"]
    if not said or messages[-1]["role"] == "assistant" or not isinstance(said[-1], list):
        return False
    kinds = [block.get("type") for block in said[-1]]
    return "tool_use" in kinds and kinds[0] not in THINKING


def to_messages(body: Json, *, model: str, max_tokens: int, foreign: Callable[[Json], bool]) -> tuple[Json, list[str]]:
    """A chat-completion body as a Messages request; see `own_messages`."""
    dropped = [key for key in body if key not in CONVERTED]
    system, messages = [], []
    for message in body["messages"]:
        role, content = message["role"], message.get("content")
        if role in ("system", "developer"):
            system.append(text_of(content))
        elif role == "assistant":
            messages.append({"role": "assistant", "content": _blocks_of_assistant(message, foreign)})
        elif role in ("tool", "function"):
            said = _blocks(content, dropped)
            result = said if any(block["type"] != "text" for block in said) else text_of(content)
            block = {"type": "tool_result", "tool_use_id": message.get("tool_call_id"), "content": result}
            messages.append({"role": "user", "content": [block]})
        else:
            messages.append({"role": "user", "content": _blocks(content, dropped)})
    raw: Json = {"model": model, "messages": _paired(_unique(_merged(messages))), "max_tokens": max_tokens}
    for key in ("max_tokens", "max_completion_tokens"):
        if body.get(key):
            raw["max_tokens"] = body[key]
    if any(system):
        raw["system"] = [{"type": "text", "text": "\n\n".join(text for text in system if text), **MARK}]
    raw |= {key: min(body[key], 1.0) for key in ("temperature", "top_p") if body.get(key) is not None}
    stops = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or []
    if kept := [stop for stop in stops if stop.strip()]:
        raw["stop_sequences"] = kept
    dropped += ["stop"] * (len(kept) < len(stops))  # the API refuses one of space alone
    form = body.get("response_format") or {}
    if form.get("type") == "json_schema":
        schema = (form.get("json_schema") or {}).get("schema") or {}
        raw["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    elif form.get("type") not in (None, "text"):
        dropped.append("response_format")
    tools, choice = offered(body, dropped)
    if tools:
        raw["tools"] = [
            {
                "name": t["name"],
                "description": t.get("description", ""),
                "input_schema": {"type": "object", **(t.get("parameters") or {})},
            }
            for t in tools
        ]
        kind: Json = (
            {"type": "tool", "name": choice["name"]}
            if isinstance(choice, dict)
            else {"type": {"required": "any", "none": "none"}.get(choice, "auto")}
        )
        if body.get("parallel_tool_calls") is False and kind["type"] != "none":
            kind["disable_parallel_tool_use"] = True
        raw["tool_choice"] = kind
    _mark(raw["messages"])
    return raw, dropped


def _mark(messages: list[Json]) -> None:
    """Have the prompt cached up to here: clients of other protocols cannot say so, and each step repeats the one before."""
    content = messages[-1]["content"]
    if messages[-1]["role"] == "user":  # thinking cannot be marked
        content[-1] = {**content[-1], **MARK}


def _blocks_of_assistant(message: Json, foreign: Callable[[Json], bool]) -> list[Json]:
    blocks: list[Json] = [block for block in message.get("thinking_blocks") or [] if not foreign(block)]
    if words := words_of(message).strip():
        blocks.append({"type": "text", "text": words})
    blocks += tool_uses(message)
    return blocks or [NOTHING]


def _blocks(content: Any, dropped: list[str]) -> list[Json]:
    """What a user, or a tool, says; the types of what that cannot hold are added to `dropped`."""
    if not isinstance(content, list):
        return [{"type": "text", "text": _words(content)}]
    blocks: list[Json] = []
    for part in content:
        url = str((part.get("image_url") or {}).get("url", ""))
        file = part.get("file") or {}
        if part.get("type") == "image_url":
            blocks.append({"type": "image", "source": _source(url) or {"type": "url", "url": url}})
        elif (source := _source(str(file.get("file_data")))) and source["media_type"] == "application/pdf":
            named = {"title": str(file["filename"])} if file.get("filename") else {}
            blocks.append({"type": "document", "source": source, **named})
        else:
            dropped += [str(part.get("type"))] * (not {"text", "refusal"} & part.keys())
            blocks.append({"type": "text", "text": _words([part])})
    return blocks or [NOTHING]


def _source(url: str) -> Json | None:
    """The data that an URL holds itself."""
    kind, found, data = url.removeprefix("data:").partition(";base64,")
    return {"type": "base64", "media_type": kind, "data": data} if found and url.startswith("data:") else None


def _words(content: Any) -> str:
    """Text that the API takes: it refuses blank blocks."""
    text = text_of(content)
    return text if text.strip() else "(nothing)"


def _merged(messages: list[Json]) -> list[Json]:
    """Neighbours of one role become one message; the first is the user's."""
    found: list[Json] = []
    for message in messages:
        if found and found[-1]["role"] == message["role"]:
            found[-1]["content"] += message["content"]  # lists that are made here alone
        else:
            found.append(message)
    if not found or found[0]["role"] == "assistant":
        found.insert(0, {"role": "user", "content": [{"type": "text", "text": "(begin)"}]})
    return found


def _unique(messages: list[Json]) -> list[Json]:
    """Every id as the API takes it, and used by one call alone; results keep to the latest call of theirs."""
    used: dict[str, int] = {}
    latest: dict[Any, str] = {}

    def block(one: Json) -> Json:
        if one.get("type") == "tool_use":
            name = free = sent_id(one.get("id"), 60)
            while free in used:
                used[name] += 1
                free = f"{name}_{used[name]}"
            used[free] = 1
            latest[one.get("id")] = name = free
            return one if name == one.get("id") else {**one, "id": name}
        if one.get("type") == "tool_result":
            name = latest.get(one.get("tool_use_id")) or sent_id(one.get("tool_use_id"), 60)
            return one if name == one.get("tool_use_id") else {**one, "tool_use_id": name}
        return one

    found = []
    for message in messages:
        content = message["content"]
        found.append({**message, "content": [block(one) for one in content]} if isinstance(content, list) else message)
    return found


def _paired(messages: list[Json]) -> list[Json]:
    """Every call is answered in the next message and every result answers a call in the one before; results come first."""
    found: list[Json] = []
    for i, message in enumerate(messages):
        blocks = message["content"]
        if message["role"] == "assistant":
            following = messages[i + 1]["content"] if i + 1 < len(messages) else []
            open_calls = {b["tool_use_id"] for b in following if b["type"] == "tool_result"}
            kept = []
            for b in blocks:
                lost = b["type"] == "tool_use" and b["id"] not in open_calls
                kept.append(_as_text(b) if lost else b)
            blocks = kept
        else:
            called = {b["id"] for b in found[-1]["content"] if b["type"] == "tool_use"} if found else set()
            results, rest, seen = [], [], set()
            for b in blocks:
                if b["type"] == "tool_result" and b["tool_use_id"] in called and b["tool_use_id"] not in seen:
                    seen.add(b["tool_use_id"])
                    results.append(b)
                else:
                    rest.append(_as_text(b) if b["type"] == "tool_result" else b)
            blocks = [*results, *rest]
        found.append({**message, "content": blocks})
    return found


def _as_text(block: Json) -> Json:
    """A call or a result that has lost its other half, in words."""
    if block["type"] == "tool_use":
        return {"type": "text", "text": f"[called {block['name']} with {json.dumps(block['input'], ensure_ascii=False)}]"}
    return {"type": "text", "text": f"[result of a tool: {text_of(block['content'])}]"}


def reply_of(answer: Json, dropped: tuple[str, ...] = ()) -> Reply:
    """A Messages answer as a reply. Raises ValueError when it is something else."""
    if answer.get("type") != "message" or not isinstance(answer.get("content"), list):
        raise ValueError("not a message")
    (message,) = assistant(answer["content"], [])
    choice = {"message": message, "finish_reason": FINISH.get(str(answer.get("stop_reason")), "stop")}
    return Reply(choice, _usage(answer.get("usage") or {}), "messages", answer, dropped)


def _usage(raw: Json) -> Json:
    """As a chat completion says it; nothing where the server does not say both counts."""
    fresh, output = counted(raw.get("input_tokens")), counted(raw.get("output_tokens"))
    if fresh is None or output is None:
        return {}
    cached, written = (counted(raw.get(f"cache_{way}_input_tokens")) or 0 for way in ("read", "creation"))
    prompt = fresh + cached + written  # Anthropic counts the three apart
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_creation_tokens": written},
    }


class MessageReader:
    """Puts the events of a streamed Messages answer together again, and says what each means in the neutral form."""

    def __init__(self) -> None:
        self.message: Json = {}
        self._arguments: dict[int, list[str]] = {}
        self._texts: dict[tuple[int, str], list[str]] = {}
        """Pieces of a block's text or thinking, by its number."""
        self._calls = 0

    @property
    def answer(self) -> Json | None:
        """The whole answer; None until its stop reason has come."""
        if not self.message.get("stop_reason"):
            return None
        for (index, key), texts in self._texts.items():
            self.message["content"][index][key] = "".join(texts)
        return self.message

    def add(self, own: Json) -> Json | None:
        """The event as a chat-completion chunk; None where that has nothing to say. Raises KeyError, TypeError, ValueError
        for what is no such event.
        """
        kind = own.get("type")
        if kind == "message_start":
            self.message = {**own["message"], "content": []}
            return chunk_of({"role": "assistant", "content": ""})
        if kind == "content_block_start":
            return self._start(own["index"], dict(own["content_block"]))
        if kind == "content_block_delta":
            return self._delta(own["index"], own["delta"])
        if kind == "content_block_stop" and own["index"] in self._arguments:
            self.message["content"][own["index"]]["input"] = object_of("".join(self._arguments[own["index"]]))
        elif kind == "message_delta":
            self.message |= own["delta"]
            self.message["usage"] = self.message.get("usage", {}) | {k: v for k, v in own["usage"].items() if v is not None}
            return chunk_of({}, FINISH.get(str(own["delta"].get("stop_reason")), "stop"))
        return None

    def _start(self, index: int, block: Json) -> Json | None:
        if index != len(self.message["content"]):
            raise ValueError("blocks out of order")
        self.message["content"].append(block)
        if block.get("type") != "tool_use":
            return None
        self._arguments[index], self._calls = [], self._calls + 1
        function = {"name": block["name"], "arguments": ""}
        return chunk_of(
            {"tool_calls": [{"index": self._calls - 1, "id": block["id"], "type": "function", "function": function}]}
        )

    def _delta(self, index: int, delta: Json) -> Json | None:
        block, kind = self.message["content"][index], delta.get("type")
        if kind == "input_json_delta" and block.get("type") == "tool_use":
            self._arguments[index].append("" + delta["partial_json"])
            function = {"arguments": delta["partial_json"]}
            return chunk_of({"tool_calls": [{"index": self._calls - 1, "function": function}]})
        if kind == "text_delta":
            self._add_text(index, "text", delta["text"])
            return chunk_of({"content": delta["text"]})
        if kind == "thinking_delta":
            self._add_text(index, "thinking", delta["thinking"])
        elif kind == "signature_delta":
            block["signature"] = delta["signature"]
        elif kind == "citations_delta":
            block["citations"] = block.get("citations") or []
            block["citations"].append(delta["citation"])
        elif kind == "input_json_delta":  # of a tool on the server's side
            self._arguments.setdefault(index, []).append("" + delta["partial_json"])
        return None

    def _add_text(self, index: int, key: str, text: str) -> None:
        """Raises TypeError for what is no text."""
        begun = self.message["content"][index].get(key) or ""
        self._texts.setdefault((index, key), [begun]).append("" + text)
