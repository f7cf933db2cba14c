"""Model servers for tests with real agents: they solve one small task by a script, refuse what the real APIs refuse, and
keep the books of a real API (usage, prompt cache, signatures).

`Server("chat")` is OpenAI's Chat Completions (or vLLM's: `ugly_ids`), `Server("messages")` is Anthropic's Messages,
`Server("responses")` OpenAI's Responses.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

Json = dict[str, Any]
TASK = "The test test_add.py fails. Fix add.py so that it passes."
TEST = "python3 test_add.py"
WRONG, TRIES = "a - b", ("a * b", "a // b", "a % b", "a + b")
"""What add.py returns, and what an agent that can only edit (aider) tries, one a step."""


class RefusedRequest(Exception):
    """The request is one that the real API refuses; the text is its message."""


def need(condition: Any, message: str) -> None:
    if not condition:
        raise RefusedRequest(message)


# -- what a model does ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    text: str = ""
    calls: Sequence[tuple[str, Json]] = ()
    """Tool and arguments."""


@dataclass(frozen=True)
class Seen:
    """A request as the script sees it, whatever its protocol."""

    text: str
    """All of it."""
    turns: Sequence[str]
    """Roles after the message that holds the task."""
    tools: dict[str, Json]
    """Name -> JSON schema of its arguments."""
    calls: int
    """Tool calls so far."""

    @property
    def step(self) -> int:
        return sum(a == "assistant" and b != "assistant" for a, b in zip(self.turns, ["", *self.turns], strict=False))


def reply(seen: Seen, folder: str) -> Reply:
    """The next step: run the test, read two files at once, edit, run it again, say so."""
    if not seen.tools:
        return edited(seen, folder) if "SEARCH/REPLACE" in seen.text or "*file listing*" in seen.text else Reply("Mend add")
    if seen.step == 0:
        return Reply("I run the test first.", [run(seen, TEST)])
    if seen.step == 1:
        return Reply("", [read(seen, folder, "add.py"), read(seen, folder, "test_add.py")])
    if seen.step == 2:
        return Reply("It subtracts.", [edit(seen, folder)])
    if seen.step == 3:
        return Reply("", [run(seen, TEST)])
    if "final_answer" in seen.tools:
        return Reply("", [("final_answer", {"answer": "The test passes."})])
    if "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT" in seen.text:
        return Reply("", [run(seen, "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT")])
    return Reply("The test passes.")


def edited(seen: Seen, folder: str) -> Reply:
    """For an agent without tools (aider), which shows the test's output and asks again."""
    now = Path(folder, "add.py").read_text()
    before, after = next((old, new) for old, new in pairwise((WRONG, *TRIES)) if old in now)
    old, new = (f"def add(a, b):\n    return {it}\n" for it in (before, after))
    if "SEARCH/REPLACE" in seen.text:
        return Reply(f"It adds.\n\nadd.py\n```python\n<<<<<<< SEARCH\n{old}=======\n{new}>>>>>>> REPLACE\n```\n")
    return Reply(f"It adds.\n\nadd.py\n```\n{new}```\n")


def found(seen: Seen, *names: str) -> tuple[str, Json] | None:
    """The first of these tools that the request has, under whatever prefix its namespace became."""
    for name in names:
        for offered, schema in seen.tools.items():
            if re.fullmatch(rf"(.*[._])?{name}", offered):
                return offered, schema
    return None


def call(tool: tuple[str, Json], **values: Any) -> tuple[str, Json]:
    """A call with a value for each argument that the tool requires, and for those that it calls by another name."""
    name, schema = tool
    other = {"cmd": "command", "filePath": "path", "file_path": "path", "oldString": "old", "old_string": "old",
             "newString": "new", "new_string": "new", "is_background": "background"}  # fmt: skip
    values = {"description": "for the task", "background": False, **values}
    wanted = [key for key in schema["properties"] if other.get(key, key) in values]
    missing = set(schema.get("required", ())) - set(wanted)
    assert not missing, f"the script knows no {missing} of {name}"
    return name, {key: values[other.get(key, key)] for key in wanted}


def run(seen: Seen, command: str) -> tuple[str, Json]:
    if tool := found(seen, "Bash", "bash", "exec_command", "run_shell_command"):
        return call(tool, command=command)
    tool = found(seen, "exec")  # Codex: programs that call its tools
    assert tool, f"the script knows no shell in {list(seen.tools)}"
    return call(tool, input=f"const r = await tools.exec_command({{cmd: {json.dumps(command)}}}); text(r.output);")


def read(seen: Seen, folder: str, name: str) -> tuple[str, Json]:
    tool = found(seen, "Read", "read", "read_file")
    return call(tool, path=f"{folder}/{name}") if tool else run(seen, f"cat {name}")


def edit(seen: Seen, folder: str) -> tuple[str, Json]:
    if tool := found(seen, "Edit", "edit"):
        return call(tool, path=f"{folder}/add.py", old=WRONG, new=TRIES[-1])
    if tool := found(seen, "apply_patch"):
        change = f"@@\n-    return {WRONG}\n+    return {TRIES[-1]}\n"
        return call(tool, patchText=f"*** Begin Patch\n*** Update File: add.py\n{change}*** End Patch")
    return run(seen, f"sed -i 's/{WRONG}/{TRIES[-1]}/' add.py")


# -- a server ---------------------------------------------------------------------------------------------------------


@dataclass
class Served:
    """One answer as the server counted it."""

    prompt: int
    """Tokens; those read from the cache and written to it included."""
    cached: int
    written: int
    completion: int


@dataclass(repr=False)
class Server:
    kind: str
    """chat, messages or responses."""
    key: str
    ugly_ids: bool = False
    """Ids as vLLM and Kimi make them, which Anthropic (characters) and OpenAI (length) refuse."""
    folder: str = ""
    """Where the agent works."""
    requests: list[Json] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    cache: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)
    """Items of answers that were to be stored (Responses)."""

    def app(self) -> Starlette:
        return Starlette(routes=[Route(APIS[self.kind][0], self.answer, methods=["POST"])])

    def forget(self, folder: str) -> None:
        """Start over, for an agent that works in this folder."""
        self.folder = folder
        for kept in (self.requests, self.headers, self.refused, self.served):
            kept.clear()

    async def answer(self, http: Request) -> Response:
        body = json.loads(await http.body())
        self.requests.append(body)
        self.headers.append(dict(http.headers))
        api: Any = APIS[self.kind][1]
        try:
            if (http.headers.get("x-api-key") or http.headers.get("authorization", "").removeprefix("Bearer ")) != self.key:
                raise RefusedRequest(f"invalid key in {sorted(http.headers)}")
            api.check(self, body, http.headers)
        except RefusedRequest as error:
            self.refused.append(str(error))
            return JSONResponse(api.error(str(error)), 400)
        done = reply(api.seen(body), self.folder)
        used = self.count(*api.prefixes(body))
        self.served.append(used)
        whole = api.whole(self, body, done, used)
        if not body.get("stream"):
            return JSONResponse(whole)
        return StreamingResponse(api.events(body, whole), media_type="text/event-stream")

    def count(self, pieces: Sequence[Any], marks: Sequence[int]) -> Served:
        """Usage of an answer: what the cache holds is what an earlier request marked, or had, up to there."""
        sizes, hashes, running = [], [], hashlib.sha256()
        for piece in pieces:
            raw = json.dumps(piece).encode()
            running.update(raw)
            sizes.append(len(raw) // 4 + 1)
            hashes.append(running.hexdigest())
        upto = max(marks, default=-1) + 1
        cached = max((sum(sizes[: i + 1]) for i in range(upto) if hashes[i] in self.cache), default=0)
        self.cache |= {hashes[i] for i in marks}
        # A completion that no other answer of this server has: what a client is told can be traced back to one answer.
        return Served(sum(sizes), cached, sum(sizes[:upto]) - cached, 20 + len(self.served))

    def signature(self, thinking: str) -> str:
        return hmac.new(self.key.encode(), thinking.encode(), "sha256").hexdigest()

    def call_id(self, name: str, index: int, turn: int) -> str:
        long = hashlib.sha256(f"{name}{index}{len(self.served)}".encode()).hexdigest()
        if self.ugly_ids:
            return f"chatcmpl-tool-{long[:32]}" if turn % 4 else f"functions.{name}:{index}"
        return f"toolu_01{long[:22]}" if self.kind == "messages" else f"call_{long[:24]}"


def sse(event: Json, named: bool) -> bytes:
    head = f"event: {event['type']}\n" if named else ""
    return f"{head}data: {json.dumps(event)}\n\n".encode()


def pieces_of(text: str) -> list[str]:
    """Text as it comes in a stream: in parts."""
    return [text[i : i + 11] for i in range(0, len(text), 11)]


def known(given: Iterable[str], allowed: str, where: str, message: str) -> None:
    for key in given:
        need(key in allowed.split(), message.format(where=where, key=key))


def text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or ())


def turns_after_task(messages: Sequence[Json]) -> list[str]:
    for i, message in enumerate(messages):
        if message["role"] == "user" and TASK in text_of(message["content"]):
            return [m["role"] for m in messages[i + 1 :]]
    return []


def strict_schema(schema: Any, where: str, *, all_required: bool) -> None:
    """What both APIs want of a schema that they are to guarantee."""
    if isinstance(schema, list):
        for each in schema:
            strict_schema(each, where, all_required=all_required)
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "object":
        need(schema.get("additionalProperties") is False, f"{where}: 'additionalProperties' is required to be false")
        wanted = set(schema.get("properties", {})) if all_required else set()
        need(wanted <= set(schema.get("required", ())), f"{where}: 'required' has to include every key in properties")
    for each in schema.values():
        strict_schema(each, where, all_required=all_required)


# -- OpenAI's Chat Completions ------------------------------------------------------------------------------------------


CHAT_FIELDS = """model messages tools tool_choice parallel_tool_calls stream stream_options n temperature top_p max_tokens
max_completion_tokens stop seed logprobs top_logprobs response_format reasoning_effort verbosity frequency_penalty
presence_penalty logit_bias user metadata store service_tier prompt_cache_key prompt_cache_retention safety_identifier
modalities prediction web_search_options"""
CHAT_MESSAGE = {
    "system": "role content name",
    "developer": "role content name",
    "user": "role content name",
    "assistant": "role content name refusal audio tool_calls",
    "tool": "role content tool_call_id",
}
CHAT_PARTS = "text image_url input_audio file refusal"
NO_RESULT = "'tool_calls' must be followed by tool messages responding to each 'tool_call_id'; without response: "


class ChatApi:
    def error(self, message: str) -> Json:
        return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}

    def check(self, server: Server, body: Json, headers: Any) -> None:
        unknown = "Unknown parameter: '{where}{key}'."
        known(body, CHAT_FIELDS, "", unknown)
        need(body.get("model") and body.get("messages"), "Missing required parameter: 'messages'.")
        for key in ("tool_choice", "parallel_tool_calls"):
            need(key not in body or body.get("tools"), f"'{key}' is only allowed when 'tools' are specified.")
        need("tools" not in body or body["tools"], "[] is too short - 'tools'")
        need("stream_options" not in body or body.get("stream"), "'stream_options' is only allowed when streaming.")
        need("top_logprobs" not in body or body.get("logprobs"), "'top_logprobs' needs 'logprobs'.")
        for i, tool in enumerate(body.get("tools", ())):
            need(tool.get("type") == "function", f"Invalid value: '{tool.get('type')}'. Supported values are: 'function'.")
            known(tool, "type function", f"tools[{i}].", unknown)
            known(tool["function"], "name description parameters strict", f"tools[{i}].function.", unknown)
            need(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", tool["function"]["name"]), f"Invalid 'tools[{i}].function.name'.")
            if tool["function"].get("strict"):
                strict_schema(tool["function"]["parameters"], f"tools[{i}]", all_required=True)
        form = body.get("response_format") or {}
        if form.get("type") == "json_schema" and form["json_schema"].get("strict"):
            strict_schema(form["json_schema"]["schema"], "response_format", all_required=True)
        self._messages(body["messages"], unknown, 1000 if server.ugly_ids else 40)

    def _messages(self, messages: Sequence[Json], unknown: str, longest: int) -> None:
        open_ids: list[str] = []
        for i, message in enumerate(messages):
            where, role = f"messages[{i}].", message.get("role")
            need(role in CHAT_MESSAGE, f"Invalid value: '{role}' of '{where}role'.")
            known(message, CHAT_MESSAGE[role], where, unknown)
            if role == "tool":
                asked = message.get("tool_call_id") in open_ids
                need(asked, "messages with role 'tool' must be a response to a preceeding message with 'tool_calls'.")
                open_ids.remove(message["tool_call_id"])
            else:
                need(not open_ids, NO_RESULT + str(open_ids))
            calls = message.get("tool_calls")
            full = message.get("content") is not None or calls
            need(full, f"Invalid value for '{where}content': expected a string, got null.")
            need(message.get("content") != [], f"Invalid '{where}content': empty array.")
            if isinstance(message.get("content"), list):
                for part in message["content"]:
                    need(part.get("type") in CHAT_PARTS.split(), f"Invalid value: '{part.get('type')}' in {where}content.")
                    known(part, f"type {CHAT_PARTS}", f"{where}content[].", unknown)
            need("tool_calls" not in message or calls, f"Invalid '{where}tool_calls': empty array.")
            for each in calls or ():
                known(each, "id type function", f"{where}tool_calls[].", unknown)
                known(each["function"], "name arguments", f"{where}tool_calls[].function.", unknown)
                need(each.get("type") == "function", f"Missing '{where}tool_calls[].type'.")
                text = isinstance(each["function"]["arguments"], str)
                need(text, f"Invalid type for '{where}arguments': expected a string.")
                size = len(each["id"])
                need(size <= longest, f"Invalid '{where}tool_calls[].id': string too long: {size} > {longest}.")
                need(each["id"] not in open_ids, f"Duplicate tool call id {each['id']}.")
                open_ids.append(each["id"])
        need(not open_ids, NO_RESULT + str(open_ids))

    def seen(self, body: Json) -> Seen:
        tools = {t["function"]["name"]: t["function"].get("parameters") or {} for t in body.get("tools", ())}
        calls = sum(len(m.get("tool_calls") or ()) for m in body["messages"])
        text = "\n".join(text_of(m.get("content")) for m in body["messages"])
        return Seen(text, turns_after_task(body["messages"]), tools, calls)

    def prefixes(self, body: Json) -> tuple[list[Any], Sequence[int]]:
        pieces = [body.get("tools"), *body["messages"]]
        return pieces, range(len(pieces))  # cached without marks

    def whole(self, server: Server, body: Json, done: Reply, used: Served) -> Json:
        seen, n = self.seen(body), body.get("n", 1)
        choices = []
        for k in range(n):
            message: Json = {"role": "assistant", "content": done.text or None}
            if server.ugly_ids:
                message["reasoning_content"] = "Let me think."
            if done.calls:
                message["tool_calls"] = [
                    {"id": server.call_id(name, seen.calls + i, seen.step), "type": "function",
                     "function": {"name": name, "arguments": json.dumps(arguments)}}
                    for i, (name, arguments) in enumerate(done.calls)
                ]  # fmt: skip
            choice: Json = {"index": k, "message": message, "finish_reason": "tool_calls" if done.calls else "stop"}
            if body.get("logprobs"):
                other = [{"token": "a", "logprob": -0.1, "bytes": None}, {"token": "b", "logprob": -3.0, "bytes": None}]
                one = {"token": "a", "logprob": -0.1, "bytes": None, "top_logprobs": other[: body.get("top_logprobs", 0)]}
                choice["logprobs"] = {"content": [one] * used.completion, "refusal": None}
            choices.append(choice)
        usage = {
            "prompt_tokens": used.prompt, "completion_tokens": used.completion * n,
            "total_tokens": used.prompt + used.completion * n, "prompt_tokens_details": {"cached_tokens": used.cached},
        }  # fmt: skip
        base = {"id": f"chatcmpl-{len(server.served)}", "object": "chat.completion", "created": 1, "model": body["model"]}
        return {**base, "choices": choices, "usage": usage}

    def events(self, body: Json, whole: Json) -> Iterator[bytes]:
        base = {key: whole[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}

        def chunk(index: int, delta: Json, **more: Any) -> bytes:
            return sse({**base, "choices": [{"index": index, "delta": delta, "finish_reason": None, **more}]}, False)

        for choice in whole["choices"]:
            index, message = choice["index"], choice["message"]
            yield chunk(index, {"role": "assistant", "content": ""})
            for key in ("reasoning_content", "content"):
                for part in pieces_of(message.get(key) or ""):
                    yield chunk(index, {key: part})
            for i, each in enumerate(message.get("tool_calls") or ()):
                function = each["function"]
                yield chunk(index, {"tool_calls": [{**each, "index": i, "function": {**function, "arguments": ""}}]})
                for part in pieces_of(function["arguments"]):
                    yield chunk(index, {"tool_calls": [{"index": i, "function": {"arguments": part}}]})
            more = {"logprobs": choice["logprobs"]} if "logprobs" in choice else {}
            yield chunk(index, {}, **{**more, "finish_reason": choice["finish_reason"]})
        if (body.get("stream_options") or {}).get("include_usage"):
            yield sse({**base, "choices": [], "usage": whole["usage"]}, False)
        yield b"data: [DONE]\n\n"


# -- Anthropic's Messages -------------------------------------------------------------------------------------------------


MESSAGES_FIELDS = """model messages max_tokens system metadata stop_sequences stream temperature top_k top_p tools
tool_choice thinking service_tier container context_management output_config output_format mcp_servers cache_control
inference_geo speed"""
MESSAGES_BLOCKS = {
    "text": "type text cache_control citations",
    "image": "type source cache_control",
    "document": "type source cache_control citations context title",
    "tool_use": "type id name input cache_control caller",
    "tool_result": "type tool_use_id content is_error cache_control",
    "thinking": "type thinking signature",
    "redacted_thinking": "type data",
}
MESSAGES_BETAS = {"context_management": "context-management-", "output_format": "structured-outputs-"}
EXTRA = "{where}{key}: Extra inputs are not permitted"
MUST_THINK = "When `thinking` is enabled, a final `assistant` message must start with a thinking block."


class MessagesApi:
    def error(self, message: str) -> Json:
        return {"type": "error", "error": {"type": "invalid_request_error", "message": message}, "request_id": "req_011C"}

    def check(self, server: Server, body: Json, headers: Any) -> None:
        need(headers.get("anthropic-version") in ("2023-06-01", "2026-10-21"), "anthropic-version: header is required")
        betas = headers.get("anthropic-beta", "")
        known(body, MESSAGES_FIELDS, "", EXTRA)
        for key, beta in MESSAGES_BETAS.items():
            need(key not in body or beta in betas, f"{key}: Extra inputs are not permitted")
        for key in ("model", "max_tokens", "messages"):
            need(body.get(key), f"{key}: Field required")
        known(body.get("metadata") or {}, "user_id", "metadata.", EXTRA)
        marks = json.dumps(body).count('"cache_control":')
        need(marks <= 4, f"A maximum of 4 blocks with cache_control may be provided. Found {marks}.")
        if isinstance(body.get("system"), list):
            self._blocks(server, body["system"], "system.", "text")
        self._tools(body, betas)
        self._thinking(body, betas)
        self._messages(server, body["messages"], betas)
        form = (body.get("output_config") or {}).get("format") or body.get("output_format")
        if form:
            strict_schema(form["schema"], "output_config.format.schema", all_required=False)

    def _tools(self, body: Json, betas: str) -> None:
        allowed = "name description input_schema type cache_control strict eager_input_streaming"
        if "advanced-tool-use-" in betas:
            allowed += " defer_loading input_examples allowed_callers"
        for i, tool in enumerate(body.get("tools") or ()):
            known(tool, allowed, f"tools.{i}.custom.", EXTRA)
            need(tool.get("type", "custom") == "custom", f"tools.{i}: Input tag '{tool.get('type')}' is not known")
            need(re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", tool["name"]), f"tools.{i}.custom.name: String should match pattern")
            need(tool["input_schema"].get("type") == "object", f"tools.{i}.custom.input_schema.type: Field required")
        need(not body.get("tool_choice") or body.get("tools"), "tool_choice may only be specified while providing tools.")

    def _thinking(self, body: Json, betas: str) -> None:
        thinking = body.get("thinking") or {"type": "disabled"}
        if thinking["type"] == "disabled":
            return
        modes = ("enabled", "adaptive")
        need(thinking["type"] in modes, f"thinking.type: Input should be one of {modes} or 'disabled'")
        need(body.get("temperature", 1) == 1, "`temperature` may only be set to 1 when thinking is enabled.")
        need("top_k" not in body, "`top_k` must be unset when thinking is enabled.")
        choice = (body.get("tool_choice") or {}).get("type", "auto")
        need(choice in ("auto", "none"), "Thinking may not be enabled when tool_choice forces tool use.")
        if thinking["type"] == "adaptive":
            return
        budget = thinking.get("budget_tokens")
        need(isinstance(budget, int) and budget >= 1024, "thinking.enabled.budget_tokens: Input should be at least 1024")
        less = budget < body["max_tokens"] or "interleaved-thinking-" in betas
        need(less, "`max_tokens` must be greater than `thinking.budget_tokens`.")
        last = max((i for i, m in enumerate(body["messages"]) if m["role"] == "assistant"), default=None)
        if last is not None and isinstance(content := body["messages"][last]["content"], list):
            kinds = [block["type"] for block in content]
            starts = "tool_use" not in kinds or kinds[0] in ("thinking", "redacted_thinking")
            need(starts, f"messages.{last}.content.0.type: Expected `thinking`, but found `{kinds[0]}`. {MUST_THINK}")

    def _messages(self, server: Server, messages: Sequence[Json], betas: str) -> None:
        need(messages[0]["role"] == "user", 'messages: first message must use the "user" role')
        ids: set[str] = set()
        for i, message in enumerate(messages):
            where, role, content = f"messages.{i}.", message["role"], message["content"]
            roles = ("user", "assistant", "system") if "mid-conversation-" in betas else ("user", "assistant")
            need(role in roles, f"{where}role: Input should be 'user' or 'assistant'")
            known(message, "role content output_config" if "per-turn-" in betas else "role content", where, EXTRA)
            need(content, f"{where}content: messages must have non-empty content")
            blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
            kinds = {"user": "text image document tool_result", "assistant": "text tool_use thinking redacted_thinking"}
            self._blocks(server, blocks, f"{where}content.", kinds.get(role, "text"))
            uses = [block["id"] for block in blocks if block["type"] == "tool_use"]
            need(not ids & set(uses) and len(set(uses)) == len(uses), f"{where}content: `tool_use` ids must be unique")
            ids |= set(uses)
            following = messages[i + 1]["content"] if uses and i + 1 < len(messages) else []
            following = following if isinstance(following, list) else []
            answered = [block["tool_use_id"] for block in following if block["type"] == "tool_result"]
            missing = set(uses) - set(answered)
            need(not missing, f"{where}: `tool_use` ids without `tool_result` blocks immediately after: {missing}")
            kinds_here = [block["type"] for block in blocks]
            results = kinds_here.count("tool_result")
            need(kinds_here[:results] == ["tool_result"] * results, f"{where}content: `tool_result` blocks must come first")
            earlier = messages[i - 1]["content"] if i else []
            asked = {b["id"] for b in earlier if b["type"] == "tool_use"} if isinstance(earlier, list) else set()
            for block in blocks:
                if block["type"] == "tool_result":
                    paired = block["tool_use_id"] in asked
                    need(paired, f"{where}content: unexpected `tool_use_id` in `tool_result`: {block['tool_use_id']}")

    def _blocks(self, server: Server, blocks: Sequence[Json], where: str, kinds: str) -> None:
        for i, block in enumerate(blocks):
            at, kind = f"{where}{i}.", block.get("type")
            need(kind in kinds.split(), f"{at}type: Input tag '{kind}' does not match any of the expected tags: {kinds}")
            known(block, MESSAGES_BLOCKS[kind], f"{at}{kind}.", EXTRA)
            if kind == "text":
                need(block["text"].strip(), f"{at}text: text content blocks must contain non-whitespace text")
            if kind == "thinking":
                genuine = hmac.compare_digest(block["signature"], server.signature(block["thinking"]))
                need(genuine, f"{at}thinking: Invalid `signature` in `thinking` block")
            if kind == "tool_use":
                plain = re.fullmatch(r"[a-zA-Z0-9_-]+", block["id"])
                need(plain, f"{at}tool_use.id: String should match pattern '^[a-zA-Z0-9_-]+$': {block['id']}")
                need(isinstance(block["input"], dict), f"{at}tool_use.input: Input should be an object")
            if kind == "tool_result" and isinstance(block.get("content"), list):
                self._blocks(server, block["content"], f"{at}content.", "text image document")

    def seen(self, body: Json) -> Seen:
        tools = {tool["name"]: tool["input_schema"] for tool in body.get("tools") or ()}
        system, calls = text_of(body.get("system")), json.dumps(body["messages"]).count('"type": "tool_use"')
        text = "\n".join([system, *(text_of(m["content"]) for m in body["messages"])])
        return Seen(text, turns_after_task(body["messages"]), tools, calls)

    def prefixes(self, body: Json) -> tuple[list[Any], list[int]]:
        blocks: list[Json] = list(body.get("tools") or ())
        for content in (body.get("system") or [], *(m["content"] for m in body["messages"])):
            blocks += content if isinstance(content, list) else [{"type": "text", "text": content}]
        plain = [{key: value for key, value in block.items() if key != "cache_control"} for block in blocks]
        return plain, [i for i, block in enumerate(blocks) if "cache_control" in block]

    def whole(self, server: Server, body: Json, done: Reply, used: Served) -> Json:
        seen, content = self.seen(body), []
        thinking = body.get("thinking") or {"type": "disabled"}
        if thinking["type"] != "disabled":
            thought = "" if thinking.get("display") == "omitted" else f"It subtracts, I think ({len(server.served)})."
            content.append({"type": "thinking", "thinking": thought, "signature": server.signature(thought)})
        if done.text:
            content.append({"type": "text", "text": done.text})
        for i, (name, arguments) in enumerate(done.calls):
            content.append(
                {"type": "tool_use", "id": server.call_id(name, seen.calls + i, 0), "name": name, "input": arguments}
            )
        usage = {
            "input_tokens": used.prompt - used.cached - used.written, "cache_read_input_tokens": used.cached,
            "cache_creation_input_tokens": used.written, "output_tokens": used.completion,
        }  # fmt: skip
        return {
            "id": f"msg_{len(server.served)}", "type": "message", "role": "assistant", "model": body["model"],
            "content": content, "stop_reason": "tool_use" if done.calls else "end_turn", "stop_sequence": None,
            "usage": usage,
        }  # fmt: skip

    def events(self, body: Json, whole: Json) -> Iterator[bytes]:
        usage = whole["usage"]
        start = {**whole, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
        yield sse({"type": "message_start", "message": start}, True)
        yield sse({"type": "ping"}, True)
        for i, block in enumerate(whole["content"]):
            empty, deltas = self._deltas(block)
            yield sse({"type": "content_block_start", "index": i, "content_block": empty}, True)
            for delta in deltas:
                yield sse({"type": "content_block_delta", "index": i, "delta": delta}, True)
            yield sse({"type": "content_block_stop", "index": i}, True)
        end = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
        yield sse({"type": "message_delta", "delta": end, "usage": usage}, True)
        yield sse({"type": "message_stop"}, True)

    def _deltas(self, block: Json) -> tuple[Json, list[Json]]:
        """A block as it starts, and what is added to it."""
        if block["type"] == "text":
            return {**block, "text": ""}, [{"type": "text_delta", "text": part} for part in pieces_of(block["text"])]
        if block["type"] == "thinking":
            parts = [{"type": "thinking_delta", "thinking": part} for part in pieces_of(block["thinking"])]
            signed = {"type": "signature_delta", "signature": block["signature"]}
            return {**block, "thinking": "", "signature": ""}, [*parts, signed]
        parts = ["", *pieces_of(json.dumps(block["input"]))]
        return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": part} for part in parts]


# -- OpenAI's Responses ---------------------------------------------------------------------------------------------------


RESPONSES_FIELDS = """model input instructions tools tool_choice parallel_tool_calls stream stream_options temperature top_p
max_output_tokens max_tool_calls text reasoning store include metadata previous_response_id conversation prompt
prompt_cache_key prompt_cache_retention safety_identifier service_tier top_logprobs truncation user background
client_metadata"""
RESPONSES_ITEMS = {
    "message": "role content status phase",
    "function_call": "call_id name namespace arguments status",
    "function_call_output": "call_id output status",
    "custom_tool_call": "call_id name namespace input status",
    "custom_tool_call_output": "call_id output status",
    "reasoning": "summary content encrypted_content status",
    "additional_tools": "role tools",
    "configuration_update": "reasoning",
    "item_reference": "",
}
ID_STARTS = {"message": "msg", "function_call": "fc", "custom_tool_call": "ctc", "reasoning": "rs"}
ASSISTANT = ("reasoning", "function_call", "custom_tool_call", "item_reference")


class ResponsesApi:
    def error(self, message: str) -> Json:
        return CHAT.error(message)

    def check(self, server: Server, body: Json, headers: Any) -> None:
        unknown = "Unknown parameter: '{where}{key}'."
        known(body, RESPONSES_FIELDS, "", unknown)
        need(body.get("model") and body.get("input"), "Missing required parameter: 'input'.")
        need(not body.get("previous_response_id"), f"Previous response '{body.get('previous_response_id')}' not found.")
        need(body.get("max_output_tokens", 16) >= 16, "Invalid 'max_output_tokens': integer below minimum value.")
        for name, tool in self._tools(body):
            need(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name), f"Invalid 'tools[].name': '{name}'.")
            if tool.get("strict"):
                strict_schema(tool["parameters"], f"Invalid schema for function '{name}'", all_required=True)
        form = (body.get("text") or {}).get("format") or {}
        if form.get("type") == "json_schema" and form.get("strict"):
            strict_schema(form["schema"], "text.format", all_required=True)
        called: list[str] = []
        for i, item in enumerate(self._items(body)):
            where, kind = f"input[{i}].", item.get("type", "message")
            need(kind in RESPONSES_ITEMS, f"Invalid value: '{kind}' of '{where}type'.")
            known(item, f"type id internal_chat_message_metadata_passthrough {RESPONSES_ITEMS[kind]}", where, unknown)
            need(kind != "item_reference" or item["id"] in server.kept, f"Item with id '{item.get('id')}' not found.")
            start = ID_STARTS.get(kind, "")
            begins = item.get("id") is None or (item["id"].startswith(start) and len(item["id"]) <= 64)
            need(begins, f"Invalid '{where}id': '{item.get('id')}'. Expected an ID that begins with '{start}'.")
            if kind == "message" and isinstance(item["content"], list):
                kinds = "output_text refusal" if item["role"] == "assistant" else "input_text input_image input_file"
                for part in item["content"]:
                    need(part["type"] in kinds.split(), f"Invalid value: '{part['type']}'. Supported values are: {kinds}.")
            if kind == "reasoning":
                thought, _, seal = (item.get("encrypted_content") or "").partition(".")
                need(not seal or seal == server.signature(thought), "The encrypted content could not be verified.")
                here = seal or item.get("id") in server.kept
                need(here, f"Item with id '{item.get('id')}' not found. Items are not persisted when `store` is false.")
            if kind in ("function_call", "custom_tool_call"):
                need(len(item["call_id"]) <= 64, f"Invalid '{where}call_id': string too long.")
                called.append(item["call_id"])
            if kind.endswith("_output"):
                need(
                    item["call_id"] in called, f"No tool call found for function call output with call_id {item['call_id']}."
                )
                called.remove(item["call_id"])
        need(not called, f"No tool output found for function call {called}.")

    def _items(self, body: Json) -> list[Json]:
        return body["input"] if isinstance(body["input"], list) else [{"role": "user", "content": body["input"]}]

    def _tools(self, body: Json) -> Iterator[tuple[str, Json]]:
        """Name and definition of each tool that the client runs, those in namespaces included."""
        waiting = [*(body.get("tools") or ()), *(tool for item in self._items(body) for tool in item.get("tools") or ())]
        while waiting:
            tool = waiting.pop(0)
            if tool["type"] == "namespace":
                waiting += tool["tools"]
            elif tool["type"] in ("function", "custom"):
                yield tool["name"], tool

    def seen(self, body: Json) -> Seen:
        items = self._items(body)
        free = {"properties": {"input": {"type": "string"}}, "required": ["input"]}
        tools = {name: tool.get("parameters") or free for name, tool in self._tools(body)}
        calls = sum(item.get("type") in ("function_call", "custom_tool_call") for item in items)
        roles = [
            {"role": item.get("role") or ("assistant" if item.get("type") in ASSISTANT else "tool"),
             "content": item.get("content")}
            for item in items
        ]  # fmt: skip
        text = "\n".join([body.get("instructions") or "", *(text_of(role["content"]) for role in roles)])
        return Seen(text, turns_after_task(roles), tools, calls)

    def prefixes(self, body: Json) -> tuple[list[Any], Sequence[int]]:
        pieces = [body.get("tools"), body.get("instructions"), *self._items(body)]
        return pieces, range(len(pieces))

    def whole(self, server: Server, body: Json, done: Reply, used: Served) -> Json:
        seen, number = self.seen(body), len(server.served)
        kinds = {name: tool["type"] for name, tool in self._tools(body)}
        output: list[Json] = []
        if (body.get("reasoning") or {}).get("effort") != "none":
            thought: Json = {"type": "reasoning", "id": f"rs_{number}", "summary": []}
            if "reasoning.encrypted_content" in (body.get("include") or ()):
                thought["encrypted_content"] = f"{thought['id']}.{server.signature(thought['id'])}"
            output.append(thought)
        if done.text:
            part = {"type": "output_text", "text": done.text, "annotations": [], "logprobs": []}
            message = {"type": "message", "id": f"msg_{number}", "role": "assistant", "status": "completed"}
            output.append({**message, "content": [part]})
        for i, (name, arguments) in enumerate(done.calls):
            call_id, free = server.call_id(name, seen.calls + i, 0), kinds[name] == "custom"
            given = {"input": arguments["input"]} if free else {"arguments": json.dumps(arguments)}
            kind, start = ("custom_tool_call", "ctc") if free else ("function_call", "fc")
            base = {"type": kind, "id": f"{start}_{number}_{i}", "call_id": call_id, "name": name, "status": "completed"}
            output.append({**base, **given})
        if body.get("store", True):
            server.kept |= {item["id"] for item in output}
        usage = {
            "input_tokens": used.prompt, "input_tokens_details": {"cached_tokens": used.cached},
            "output_tokens": used.completion, "output_tokens_details": {"reasoning_tokens": 3},
            "total_tokens": used.prompt + used.completion,
        }  # fmt: skip
        return {
            "id": f"resp_{number}", "object": "response", "created_at": 1, "status": "completed", "model": body["model"],
            "output": output, "usage": usage, "error": None, "incomplete_details": None, "metadata": {}, "tools": [],
            "tool_choice": "auto", "parallel_tool_calls": True, "temperature": 1.0, "top_p": 1.0, "instructions": None,
            "store": body.get("store", True),
        }  # fmt: skip

    def events(self, body: Json, whole: Json) -> Iterator[bytes]:
        for number, event in enumerate(self._events(whole)):
            yield sse({**event, "sequence_number": number}, True)

    def _events(self, whole: Json) -> Iterator[Json]:
        yield {"type": "response.created", "response": {**whole, "status": "in_progress", "output": [], "usage": None}}
        for i, item in enumerate(whole["output"]):
            at = {"item_id": item["id"], "output_index": i}
            empty = {"message": {"content": []}, "function_call": {"arguments": ""}, "custom_tool_call": {"input": ""}}
            yield {"type": "response.output_item.added", "output_index": i, "item": item | empty.get(item["type"], {})}
            if item["type"] == "message":
                at, part = {**at, "content_index": 0}, item["content"][0]
                yield {"type": "response.content_part.added", **at, "part": {**part, "text": ""}}
                for text in pieces_of(part["text"]):
                    yield {"type": "response.output_text.delta", **at, "delta": text, "logprobs": []}
                yield {"type": "response.output_text.done", **at, "text": part["text"], "logprobs": []}
                yield {"type": "response.content_part.done", **at, "part": part}
            for key, name in (("arguments", "function_call_arguments"), ("input", "custom_tool_call_input")):
                if key in item:
                    for text in pieces_of(item[key]):
                        yield {"type": f"response.{name}.delta", **at, "delta": text}
                    yield {"type": f"response.{name}.done", **at, key: item[key], "name": item["name"]}
            yield {"type": "response.output_item.done", "output_index": i, "item": item}
        yield {"type": "response.completed", "response": whole}


CHAT, MESSAGES, RESPONSES = ChatApi(), MessagesApi(), ResponsesApi()
APIS = {
    "chat": ("/v1/chat/completions", CHAT),
    "messages": ("/v1/messages", MESSAGES),
    "responses": ("/v1/responses", RESPONSES),
}
