"""OpenAI's Responses protocol, stateless form, to and from the neutral form."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from r2v.messages.conversation import BadRequest, Json, Request, text_of
from r2v.messages.openai_chat import openai_error
from r2v.messages.protocol import ProtocolAdapter, event, pieces


def from_responses(raw: Json) -> Json:
    """A Responses request as a chat-completion body. Raises BadRequest where the server would have to keep state."""
    if raw.get("previous_response_id") or raw.get("conversation"):
        raise BadRequest("r2v keeps no responses: send the whole input (store: false), without previous_response_id")
    items = raw.get("input")
    items = [{"role": "user", "content": items}] if isinstance(items, str) else items
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise BadRequest("`input` must be text or a list of items")
    messages: list[Json] = []
    if raw.get("instructions"):
        messages.append({"role": "system", "content": str(raw["instructions"])})
    for item in items:
        _add(messages, item)
    if not messages:
        raise BadRequest("`input` holds no message")
    body: Json = {"messages": messages, "model": raw.get("model", "r2v"), "stream": raw.get("stream", False)}
    body |= {key: raw[key] for key in ("temperature", "top_p", "parallel_tool_calls") if raw.get(key) is not None}
    if raw.get("max_output_tokens"):
        body["max_tokens"] = raw["max_output_tokens"]
    tools = raw.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRequest("`tools` must be a list of objects")
    if other := sorted({str(tool.get("type")) for tool in tools if tool.get("type") != "function"}):
        raise BadRequest(f"tools that run on OpenAI's servers ({', '.join(other)}) cannot be routed")
    if tools:
        keys = ("name", "description", "parameters", "strict")
        body["tools"] = [{"type": "function", "function": {k: t[k] for k in keys if t.get(k) is not None}} for t in tools]
    choice = raw.get("tool_choice")
    if isinstance(choice, dict):
        body["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    elif choice and tools:
        body["tool_choice"] = choice
    form = (raw.get("text") or {}).get("format") if isinstance(raw.get("text"), dict) else None
    if isinstance(form, dict) and form.get("type") == "json_schema":
        schema = {key: form[key] for key in ("name", "schema", "strict", "description") if key in form}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif isinstance(form, dict) and form.get("type") == "json_object":
        body["response_format"] = {"type": "json_object"}
    return body


def _add(messages: list[Json], item: Json) -> None:
    kind = item.get("type", "message")
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments", "")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        if messages and messages[-1]["role"] == "assistant":
            messages[-1].setdefault("tool_calls", []).append(call)
        else:
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    elif kind == "function_call_output":
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text_of(item.get("output"))})
    elif kind == "message":
        role = item.get("role")
        if role not in ("user", "assistant", "system", "developer"):
            raise BadRequest(f"an input item has the role {role!r}")
        messages.append({"role": role, "content": _content(item.get("content"), role)})
    elif kind != "reasoning":  # reasoning of another turn is not portable and is left out
        raise BadRequest(f"input items of type {kind!r} cannot be routed")


def _content(content: Any, role: str) -> Any:
    if not isinstance(content, list) or role == "assistant":
        return text_of(content)
    parts: list[Json] = []
    for part in content:
        if isinstance(part, dict) and part.get("type") == "input_image":
            parts.append({"type": "image_url", "image_url": {"url": part.get("image_url")}})
        else:
            parts.append({"type": "text", "text": text_of([part])})
    plain = all(part["type"] == "text" for part in parts)
    return "\n".join(part["text"] for part in parts) if plain else parts


def response_of(completion: Json, raw: Json) -> Json:
    """A Responses answer from a chat completion."""
    choice = completion["choices"][0]
    message, usage = choice["message"], completion["usage"]
    identity = completion["id"].replace("chatcmpl-", "")
    output: list[Json] = []
    if text := text_of(message.get("content")):
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        output.append(
            {"type": "message", "id": f"msg_{identity}", "status": "completed", "role": "assistant", "content": [part]}
        )
    for i, call in enumerate(message.get("tool_calls") or []):
        function = call.get("function") or {}
        output.append(
            {
                "type": "function_call", "id": f"fc_{identity}_{i}", "call_id": call.get("id"), "name": function.get("name"),
                "arguments": function.get("arguments") or "", "status": "completed",
            }
        )  # fmt: skip
    cut = choice.get("finish_reason") == "length"
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return {
        "id": f"resp_{identity}",
        "object": "response",
        "created_at": completion["created"],
        "completed_at": int(time.time()),
        "status": "incomplete" if cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": raw.get("instructions"),
        "metadata": raw.get("metadata") or {},
        "model": completion["model"],
        "output": output,
        "parallel_tool_calls": raw.get("parallel_tool_calls", True),
        "temperature": raw.get("temperature"),
        "top_p": raw.get("top_p"),
        "tool_choice": raw.get("tool_choice", "auto"),
        "tools": raw.get("tools") or [],
        "store": False,
        "usage": {
            "input_tokens": usage.get("prompt_tokens") or 0,
            "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": usage.get("completion_tokens") or 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.get("total_tokens") or 0,
        },
    }


def _events(response: Json, extra: Json) -> Iterator[Json]:
    """The same answer as stream events, numbered."""
    number = 0

    def numbered(kind: str, **fields: Any) -> Json:
        nonlocal number
        number += 1
        return {"type": kind, "sequence_number": number - 1, **fields}

    begun = {**response, "status": "in_progress", "output": [], "usage": None, "completed_at": None}
    yield numbered("response.created", response=begun)
    yield numbered("response.in_progress", response=begun)
    for i, item in enumerate(response["output"]):
        where = {"item_id": item["id"], "output_index": i}
        if item["type"] == "message":
            part = item["content"][0]
            yield numbered(
                "response.output_item.added", output_index=i, item={**item, "status": "in_progress", "content": []}
            )
            inside = {**where, "content_index": 0}
            yield numbered("response.content_part.added", **inside, part={**part, "text": ""})
            for text in pieces(part["text"]):
                yield numbered("response.output_text.delta", **inside, delta=text, logprobs=[])
            yield numbered("response.output_text.done", **inside, text=part["text"], logprobs=[])
            yield numbered("response.content_part.done", **inside, part=part)
        else:
            yield numbered(
                "response.output_item.added", output_index=i, item={**item, "status": "in_progress", "arguments": ""}
            )
            for text in pieces(item["arguments"]):
                yield numbered("response.function_call_arguments.delta", **where, delta=text)
            yield numbered("response.function_call_arguments.done", **where, arguments=item["arguments"], name=item["name"])
        yield numbered("response.output_item.done", output_index=i, item=item)
    kind = "response.completed" if response["status"] == "completed" else "response.incomplete"
    yield numbered(kind, response=response, r2v=extra)


class Responses(ProtocolAdapter):
    path = "/responses"

    def body(self, source: Json) -> Json:
        return from_responses(source)

    def whole(self, completion: Json, request: Request) -> Json:
        return response_of(completion, request.source)

    def held(self, completion: Json, request: Request, facts: Json) -> Iterator[bytes]:
        for content in _events(response_of(completion, request.source), facts):
            yield event(content["type"], content)

    def error(self, message: str, status: int) -> Json:
        return openai_error(message, status)

    def broken(self, message: str, status: int, code: str | None) -> bytes:
        return event("error", {"type": "error", "message": message, "code": code, "sequence_number": 0})


RESPONSES = Responses()
