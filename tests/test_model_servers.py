"""The scripted model servers refuse what the real APIs refuse: one fault at a time in conversations that they accept."""

from __future__ import annotations

from copy import deepcopy

import pytest

from model_servers import CHAT, MESSAGES, TASK, RefusedRequest, Server

SCHEMA = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}


def a_chat() -> dict:
    call = {"id": "call_1", "type": "function", "function": {"name": "bash", "arguments": "{}"}}
    return {
        "model": "m",
        "tools": [{"type": "function", "function": {"name": "bash", "parameters": SCHEMA}}],
        "messages": [
            {"role": "user", "content": TASK},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "ok"},
        ],
    }


def some_messages(server: Server) -> dict:
    thought = {"type": "thinking", "thinking": "hm", "signature": server.signature("hm")}
    return {
        "model": "m",
        "max_tokens": 4096,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "tools": [{"name": "bash", "input_schema": SCHEMA}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": TASK}]},
            {"role": "assistant", "content": [thought, {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "ok"}]},
        ],
    }


def put(value, *path):
    """A change of a body: this value at this path; an existing list is added to where the path ends in `+`."""

    def change(body):
        at = body
        for key in path[:-1]:
            at = at[key]
        if path[-1] == "+":
            at.append(value)
        else:
            at[path[-1]] = value

    return change


MARK = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("slm", "messages", 1, "r2v_model"), "Unknown parameter: 'messages[1].r2v_model'"),
        (put([], "messages", 1, "thinking_blocks"), "Unknown parameter"),
        (put("x", "messages", 1, "reasoning_content"), "Unknown parameter"),
        (put("http://x", "api_base"), "Unknown parameter: 'api_base'"),
        (put("call_2", "messages", 2, "tool_call_id"), "must be a response to a preceeding message"),
        (put({"role": "user", "content": "x"}, "messages", 2), "without response: ['call_1']"),
        (put("c" * 41, "messages", 1, "tool_calls", 0, "id"), "string too long"),
        (put([], "tools"), "only allowed|too short"),
        (put("a.b", "tools", 0, "function", "name"), "function.name"),
        (put(True, "tools", 0, "function", "strict"), "'additionalProperties'"),
        (put({"include_usage": True}, "stream_options"), "only allowed when streaming"),
        (put({"role": "assistant", "content": None}, "messages", "+"), "expected a string, got null"),
    ],
)
def test_a_faulty_chat_is_refused(change, message):
    server, body = Server("chat", "key"), a_chat()
    CHAT.check(server, deepcopy(body), {})
    change(body)
    with pytest.raises(RefusedRequest) as refused:
        CHAT.check(server, body, {})
    assert any(part in str(refused.value) for part in message.split("|"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("x", "messages", 1, "r2v_model"), "messages.1.r2v_model: Extra inputs are not permitted"),
        (put("forged", "messages", 1, "content", 0, "signature"), "Invalid `signature`"),
        (lambda body: body["messages"][1]["content"].pop(0), "must start with a thinking block"),
        (put(0.5, "temperature"), "`temperature` may only be set to 1"),
        (lambda body: body.pop("max_tokens"), "max_tokens: Field required"),
        (put({"role": "system", "content": "x"}, "messages", "+"), "Input should be 'user' or 'assistant'"),
        (put("a:0", "messages", 1, "content", 1, "id"), "String should match pattern"),
        (put("toolu_2", "messages", 2, "content", 0, "tool_use_id"), "without `tool_result` blocks immediately after"),
        (put({"type": "tool_result", "tool_use_id": "toolu_9"}, "messages", 2, "content", "+"), "unexpected `tool_use_id`"),
        (lambda body: body["messages"][2]["content"].insert(0, {"type": "text", "text": "x"}), "must come first"),
        (put({"type": "text", "text": " "}, "messages", 2, "content", "+"), "non-whitespace"),
        (put([MARK] * 5, "system"), "Found 5"),
        (put({"edits": []}, "context_management"), "context_management: Extra inputs"),
        (put({"session_id": "x"}, "metadata"), "metadata.session_id: Extra inputs"),
        (put({"format": {"schema": SCHEMA}}, "output_config"), "'additionalProperties'"),
        (put(True, "tools", 0, "defer_loading"), "defer_loading: Extra inputs"),
    ],
)
def test_faulty_messages_are_refused(change, message):
    server = Server("messages", "key")
    body, headers = some_messages(server), {"anthropic-version": "2023-06-01"}
    MESSAGES.check(server, deepcopy(body), headers)
    with pytest.raises(RefusedRequest, match="anthropic-version"):
        MESSAGES.check(server, body, {})
    change(body)
    with pytest.raises(RefusedRequest) as refused:
        MESSAGES.check(server, body, headers)
    assert message in str(refused.value)


def test_the_prompt_cache_holds_what_was_marked():
    server = Server("messages", "key")
    body = some_messages(server)
    first = server.count(*MESSAGES.prefixes(body))
    body["messages"][0]["content"][0]["cache_control"] = {"type": "ephemeral"}
    second, third = (server.count(*MESSAGES.prefixes(body)) for _ in range(2))
    assert first.cached == first.written == second.cached == 0 < second.written == third.cached
    assert third.written == 0
