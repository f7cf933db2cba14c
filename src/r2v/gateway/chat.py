"""The gateway's one neutral form: an OpenAI chat request. What the other protocols say is converted from and to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from r2v.types import Action, Context, ToolCall

Json = dict[str, Any]
CLIP = 600
"""Characters kept of each observation of a long context: features read all of them at every step."""
CLIP_TOTAL = 30_000


class BadRequest(Exception):
    """The client's request cannot be served; the message says why."""


@dataclass(frozen=True)
class Request:
    """One agent step as the client asked for it."""

    body: Json
    """OpenAI chat-completion body, without `model`, `stream` and `n`."""
    wanted_model: str
    stream: bool

    @property
    def messages(self) -> list[Json]:
        found: list[Json] = self.body["messages"]
        return found

    @property
    def tools(self) -> list[Json]:
        return [tool["function"] for tool in self.body.get("tools") or [] if isinstance(tool.get("function"), dict)]


def parse(raw: Json) -> Request:
    """Raises BadRequest for anything that is not a chat completion request."""
    messages = raw.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise BadRequest("`messages` must be a list of at least one message")
    for i, message in enumerate(messages):
        _check_message(message, f"messages[{i}]")
    tools = raw.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise BadRequest("`tools` must be a list")
    for i, tool in enumerate(tools or []):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRequest(f"tools[{i}] must be an object with a function and its name")
        if not isinstance(function.get("parameters") or {}, dict):
            raise BadRequest(f"the parameters of tools[{i}] must be a JSON schema")
    if raw.get("n") not in (None, 1):
        raise BadRequest("n > 1 is not offered: r2v draws candidates itself and answers with one")
    if not isinstance(raw.get("model") or "", str):
        raise BadRequest("`model` must be a string")
    for key in ("max_tokens", "max_completion_tokens"):
        if raw.get(key) is not None and (not isinstance(raw[key], int) or isinstance(raw[key], bool) or raw[key] < 1):
            raise BadRequest(f"`{key}` must be a positive integer")
    for key in ("temperature", "top_p"):
        if raw.get(key) is not None and (not isinstance(raw[key], int | float) or isinstance(raw[key], bool)):
            raise BadRequest(f"`{key}` must be a number")
    choice = raw.get("tool_choice")
    if isinstance(choice, dict) and not isinstance((choice.get("function") or {}).get("name"), str):
        raise BadRequest("`tool_choice` must be a word or name a function")
    if choice is not None and not isinstance(choice, str | dict):
        raise BadRequest("`tool_choice` must be a word or name a function")
    body = {key: value for key, value in raw.items() if key not in ("model", "stream", "stream_options", "n")}
    return Request(body, raw.get("model") or "r2v", bool(raw.get("stream")))


def _check_message(message: Json, where: str) -> None:
    if message.get("role") not in ("system", "developer", "user", "assistant", "tool", "function"):
        raise BadRequest(f"{where} has the role {str(message.get('role'))[:40]!r}")
    content = message.get("content")
    if not isinstance(content, str | list | None):
        raise BadRequest(f"the content of {where} must be text or a list of parts")
    for part in content if isinstance(content, list) else []:
        if not isinstance(part, dict) or not isinstance(part.get("image_url") or {}, dict):
            raise BadRequest(f"the content of {where} holds a part that is not an object")
    calls = message.get("tool_calls")
    if not isinstance(calls, list | None):
        raise BadRequest(f"`tool_calls` of {where} must be a list")
    for call in calls or []:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRequest(f"a call of {where} has no function with a name")
        if not isinstance(function.get("arguments") or "", str):
            raise BadRequest(f"the arguments of a call of {where} must be JSON text")


def text_of(content: Any) -> str:
    """The words of a message's content; parts that are not text are named."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) else {} for part in content]
        return "\n".join(str(part["text"]) if "text" in part else f"[{part.get('type', 'part')}]" for part in parts)
    return ""


def action_of(message: Mapping[str, Any]) -> Action:
    """An assistant message as an action. The text holds the calls too: equal texts are equal actions."""
    calls = []
    for call in message.get("tool_calls") or []:
        function = call.get("function") or {}
        calls.append(ToolCall(str(function.get("name", "")), str(function.get("arguments", ""))))
    words = text_of(message.get("content")).strip()
    told = [f"{call.name} {_canonical(call.arguments)}" for call in calls]
    return Action("\n".join(told) if told else words, tuple(calls))


def _canonical(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True, ensure_ascii=False)
    except ValueError:
        return arguments


def context_of(request: Request, horizon: int) -> Context:
    """What the router sees: the first thing the user asked for, what came back since, what the assistant did."""
    goal = ""
    observations: list[str] = []
    actions: list[Action] = []
    pending: list[str] = []
    for message in request.messages:
        if message["role"] == "assistant":
            observations.append("\n".join(pending))
            actions.append(action_of(message))
            pending = []
        else:
            text = text_of(message.get("content"))
            if not goal and message["role"] == "user":
                goal = text
            pending.append(text)
    observations.append("\n".join(pending))
    total = sum(map(len, observations))
    limit = max(CLIP, CLIP_TOTAL // len(observations)) if total > CLIP_TOTAL else total
    return Context(clip(goal, CLIP_TOTAL // 10), tuple(clip(text, limit) for text in observations), tuple(actions), horizon)


def clip(text: str, limit: int) -> str:
    """The first third and the last two thirds of what is allowed: errors stand at the end."""
    return text if len(text) <= limit else text[: limit // 3] + text[len(text) - (limit - limit // 3) :]


def fingerprint(request: Request, key: str) -> str:
    """A session id for clients that send none: the system prompt, the tools and the first user message, for one key."""
    head: list[Any] = []
    for message in request.messages:
        head.append([message["role"], message.get("content")])
        if message["role"] == "user":
            break
    text = json.dumps([key, head, request.body.get("tools")], sort_keys=True, default=str)
    return "auto-" + hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:24]


def completion(choice: Json, usage: Json | None, *, model: str, identity: str, created: int) -> Json:
    """A chat completion with one choice."""
    return {
        "id": f"chatcmpl-{identity}",
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [{**choice, "index": 0}],
        "usage": usage or {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }


def chunks(answer: Json, include_usage: bool, extra: Json, size: int = 400) -> list[Json]:
    """The same answer as stream chunks: role, text, calls, the end; `extra` goes into the last one."""
    choice = answer["choices"][0]
    message = choice["message"]
    head = {"id": answer["id"], "object": "chat.completion.chunk", "created": answer["created"], "model": answer["model"]}

    def chunk(delta: Json, finish: str | None = None) -> Json:
        return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    found = [chunk({"role": "assistant", "content": ""})]
    for text in pieces(message.get("content") or "", size):
        found.append(chunk({"content": text}))
    for key in ("reasoning_content", "refusal"):
        if message.get(key):
            found.append(chunk({key: message[key]}))
    for i, call in enumerate(message.get("tool_calls") or []):
        function = call.get("function") or {}
        begin = {
            "index": i,
            "id": call.get("id"),
            "type": "function",
            "function": {"name": function.get("name"), "arguments": ""},
        }
        found.append(chunk({"tool_calls": [begin]}))
        for text in pieces(function.get("arguments") or "", size):
            found.append(chunk({"tool_calls": [{"index": i, "function": {"arguments": text}}]}))
    found.append({**chunk({}, choice.get("finish_reason") or "stop"), "r2v": extra})
    if include_usage:
        found.append({**head, "choices": [], "usage": answer["usage"], "r2v": extra})
    return found


class Told:
    """Puts a streamed answer together again."""

    def __init__(self) -> None:
        self._text, self._finish = "", None
        self._calls: dict[int, Json] = {}

    def add(self, choice: Json) -> None:
        delta = choice.get("delta") or {}
        self._text += delta.get("content") or ""
        self._finish = choice.get("finish_reason") or self._finish
        for part in delta.get("tool_calls") or []:
            call = self._calls.setdefault(
                part.get("index", 0), {"type": "function", "function": {"name": "", "arguments": ""}}
            )
            if part.get("id"):
                call["id"] = part["id"]
            function = part.get("function") or {}
            call["function"]["name"] += function.get("name") or ""
            call["function"]["arguments"] += function.get("arguments") or ""

    @property
    def choice(self) -> Json:
        message: Json = {"role": "assistant", "content": self._text or None}
        if self._calls:
            message["tool_calls"] = [self._calls[i] for i in sorted(self._calls)]
        return {"index": 0, "message": message, "finish_reason": self._finish or "stop"}


def pieces(text: str, size: int = 400) -> Sequence[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]
