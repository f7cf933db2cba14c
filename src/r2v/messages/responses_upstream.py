"""OpenAI's Responses protocol as models speak it: requests to them, their answers and streams."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from r2v.messages.conversation import Json, arguments_text, counted, said_by, text_of, words_of
from r2v.messages.openai_chat import chunk_of, offered
from r2v.messages.protocol import Reply
from r2v.messages.responses import BETWEEN, TEXTS

CONVERTED = (
    "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "tools", "tool_choice", "parallel_tool_calls",
    "response_format", "reasoning_effort", "stream", "stream_options", "model",
)  # fmt: skip


ENCRYPTED = "reasoning.encrypted_content"


def own_response_request(source: Json, *, model: str, foreign: Callable[[Json], bool]) -> tuple[Json, list[str]]:
    """A client's own Responses request for a model, and the names of what it lacks. The server is to keep nothing: what the
    request refers to stands in it, and reasoning comes and goes encrypted, for it cannot be referred to either; models that
    do not reason refuse to be asked for that. `foreign`: whether another model wrote this reasoning: only it can read it.
    """
    items = source["input"]
    thoughts = [item for item in items if item.get("type") == "reasoning"]
    unread = [item for item in thoughts if not item.get("encrypted_content")]
    others = [item for item in thoughts if item.get("encrypted_content") and foreign(item)]
    left_out = {id(item) for item in (*unread, *others)}
    body = {key: value for key, value in source.items() if key not in ("stream", "previous_response_id")}
    body |= {"model": model, "store": False, "input": [item for item in items if id(item) not in left_out]}
    if source.get("reasoning") or thoughts:
        body["include"] = list(dict.fromkeys([*(source.get("include") or []), ENCRYPTED]))
    return body, ["reasoning"] * bool(unread) + ["reasoning of another model"] * bool(others)


def to_responses(body: Json, *, model: str) -> tuple[Json, list[str]]:
    """A chat-completion body as a Responses request, and the names of what it lacks of the client's."""
    dropped = [key for key in body if key not in CONVERTED]
    raw: Json = {"model": model, "store": False, "input": _items(body["messages"], dropped)}
    raw |= {key: body[key] for key in ("temperature", "top_p", "parallel_tool_calls") if body.get(key) is not None}
    if most := body.get("max_completion_tokens") or body.get("max_tokens"):
        raw["max_output_tokens"] = most
    if body.get("reasoning_effort"):
        raw["reasoning"] = {"effort": body["reasoning_effort"]}
    form = body.get("response_format") or {}
    if form.get("type") == "json_schema":
        raw["text"] = {"format": {"type": "json_schema", **(form.get("json_schema") or {})}}
    elif form.get("type") == "json_object":
        raw["text"] = {"format": form}
    tools, choice = offered(body, dropped)
    if tools:
        raw["tools"] = [{"type": "function", "strict": False, **tool} for tool in tools]
        raw["tool_choice"] = {"type": "function", "name": choice["name"]} if isinstance(choice, dict) else choice
    return raw, dropped


def _items(messages: list[Json], dropped: list[str]) -> list[Json]:
    """Messages as input items. A call without a result, or a result without a call, is refused: it becomes text."""
    called = {call.get("id") for m in messages for call in m.get("tool_calls") or []}
    answered = {message.get("tool_call_id") for message in messages if message["role"] == "tool"}
    found: list[Json] = []
    for message in messages:
        role, content = message["role"], message.get("content")
        if role == "tool":
            identity, said = message.get("tool_call_id"), _content(content, dropped)
            plain = isinstance(said, str) or all(part["type"] == "input_text" for part in said)
            output = {"type": "function_call_output", "call_id": identity, "output": text_of(content) if plain else said}
            lost = {"role": "user", "content": f"[result of a tool: {text_of(content)}]"}
            found.append(output if identity in called else lost)
            continue
        if role == "assistant":
            if words := words_of(message):
                found.append({"role": "assistant", "content": [{"type": "output_text", "text": words}]})
        else:
            found.append({"role": role, "content": _content(content, dropped)})
        for call in message.get("tool_calls") or []:
            name, arguments = said_by(call)
            arguments = arguments or "{}"
            item = {"type": "function_call", "call_id": call.get("id"), "name": name, "arguments": arguments}
            said = {"role": "assistant", "content": [{"type": "output_text", "text": f"[called {name} with {arguments}]"}]}
            found.append(item if call.get("id") in answered else said)
    return found


def _content(content: Any, dropped: list[str]) -> Any:
    if not isinstance(content, list):
        return text_of(content)
    parts = []
    for part in content:
        if part.get("type") == "image_url":
            parts.append({"type": "input_image", "image_url": (part.get("image_url") or {}).get("url")})
        elif part.get("type") == "file":
            parts.append({"type": "input_file", **(part.get("file") or {})})
        else:
            dropped += [str(part.get("type"))] * (not {"text", "refusal"} & part.keys())
            parts.append({"type": "input_text", "text": text_of([part])})
    return parts


def reply_of_response(answer: Json, dropped: tuple[str, ...] = ()) -> Reply:
    """A Responses answer as a reply. Raises ValueError when it is something else, or a failure."""
    if answer.get("object") != "response" or answer.get("status") not in ("completed", "incomplete"):
        raise ValueError("not a response")
    answer = {**answer, "output": [_with_text(item) for item in answer["output"]]}
    said: dict[str, list[str]] = {kind: [] for kind in TEXTS}
    calls = []
    for item in answer["output"]:
        if item.get("type") == "message":
            for part in item.get("content") or []:
                if (kind := part.get("type")) in TEXTS and (text := "" + part[TEXTS[kind]]):
                    said[kind].append(text)
        elif str(item.get("type")).endswith("_call") and item.get("call_id"):
            calls.append({"id": item["call_id"], "type": "function", "function": _function(item)})
    words, refusal = map(BETWEEN.join, said.values())
    message: Json = {"role": "assistant", "content": words or None}
    message |= ({"refusal": refusal} if refusal else {}) | ({"tool_calls": calls} if calls else {})
    return Reply(
        {"message": message, "finish_reason": _finish(answer, calls)},
        _usage(answer.get("usage") or {}),
        "responses",
        answer,
        dropped,
    )


def _finish(answer: Json, calls: list[Json]) -> str:
    if answer["status"] == "incomplete":
        reason = (answer.get("incomplete_details") or {}).get("reason")
        return "content_filter" if reason == "content_filter" else "length"
    return "tool_calls" if calls else "stop"


def _with_text(item: Json) -> Json:
    """An output item whose arguments, or input, are text whatever its server wrote."""
    key = {"function_call": "arguments", "custom_tool_call": "input"}.get(str(item.get("type")))
    return item if key is None or isinstance(item.get(key), str) else {**item, key: arguments_text(item.get(key))}


def _function(item: Json) -> Json:
    if "arguments" in item:
        return {"name": item.get("name"), "arguments": item["arguments"]}
    given = {"input": item["input"]} if "input" in item else item.get("action") or {}
    return {"name": item.get("name", "local_shell"), "arguments": json.dumps(given, ensure_ascii=False)}


def _usage(raw: Json) -> Json:
    """As a chat completion says it; nothing where the server does not say both counts."""
    prompt, output = counted(raw.get("input_tokens")), counted(raw.get("output_tokens"))
    if prompt is None or output is None:
        return {}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": (raw.get("input_tokens_details") or {}).get("cached_tokens") or 0},
        "completion_tokens_details": raw.get("output_tokens_details") or {},
    }


class ResponseReader:
    """Says what each event of a streamed Responses answer means in the neutral form; the last holds the whole answer."""

    def __init__(self) -> None:
        self.answer: Json | None = None
        self._begun = False
        self._calls: dict[Any, int] = {}
        self._parts: dict[str, Any] = {}
        """The part of the output that each kind of text was last written to."""

    def add(self, own: Json) -> Json | None:
        """The event as a chat-completion chunk; None where that has nothing to say. Raises KeyError, TypeError, ValueError
        for what is no such event.
        """
        chunk = self._chunk(own)
        if chunk is not None and not self._begun:
            self._begun, chunk["choices"][0]["delta"] = True, {"role": "assistant", **chunk["choices"][0]["delta"]}
        return chunk

    def _text(self, key: str, own: Json) -> Json | None:
        """A piece of text, behind what parts it from that of another part (see `BETWEEN`)."""
        if not own["delta"]:
            return None
        part = (own.get("output_index"), own.get("content_index"))
        another = self._parts.setdefault(key, part) != part
        self._parts[key] = part
        return chunk_of({key: BETWEEN * another + own["delta"]})

    def _chunk(self, own: Json) -> Json | None:
        kind = own.get("type")
        if kind in ("response.completed", "response.incomplete"):
            self.answer = own["response"]
            return chunk_of({}, reply_of_response(own["response"]).choice["finish_reason"])
        if kind == "response.output_text.delta":
            return self._text("content", own)
        if kind == "response.refusal.delta":
            return self._text("refusal", own)
        if kind == "response.output_item.added" and own["item"].get("type") == "function_call":
            item, index = own["item"], len(self._calls)
            self._calls[own["output_index"]] = index
            function = {"name": item["name"], "arguments": ""}
            call = {"index": index, "id": item["call_id"], "type": "function", "function": function}
            return chunk_of({"tool_calls": [call]})
        if kind == "response.function_call_arguments.delta":
            function = {"arguments": own["delta"]}
            return chunk_of({"tool_calls": [{"index": self._calls[own["output_index"]], "function": function}]})
        return None
