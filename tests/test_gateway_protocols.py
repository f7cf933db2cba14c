"""Switching models inside a conversation: whatever was said by whom, the next request is one that each protocol accepts."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2v.core.features import featurise
from r2v.core.types import Action, Candidate, Usage
from r2v.messages import anthropic, responses
from r2v.messages import conversation as chat
from r2v.messages.anthropic_upstream import to_messages
from r2v.messages.protocol import Reply, Served
from r2v.verifiers.tool_calls import ToolCallVerifier
from servers import refused_by_anthropic

words = st.text(max_size=12)
identity = st.sampled_from(["call_1", "call_2", "functions.look:0", "x" * 70])
arguments = st.one_of(st.just("{}"), st.just('{"where": "here"}'), st.just("[1]"), st.just("{broken"), words)


@st.composite
def conversations(draw) -> list[dict]:
    """Messages as agents send them after any sequence of actors: with thinking, parallel calls, lost and foreign results."""
    messages = [{"role": "system", "content": draw(words)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 7))):
        role = draw(st.sampled_from(["user", "assistant", "assistant", "tool", "developer"]))
        if role == "assistant":
            message: dict = {"role": "assistant", "content": draw(st.one_of(st.none(), words))}
            if draw(st.booleans()):
                calls = draw(st.lists(st.tuples(identity, arguments), max_size=3, unique_by=lambda pair: pair[0]))
                message["tool_calls"] = [
                    {"id": i, "type": "function", "function": {"name": "look", "arguments": text}} for i, text in calls
                ]
            if draw(st.booleans()):
                message["thinking_blocks"] = [{"type": "thinking", "thinking": "hm", "signature": draw(words)}]
            messages.append(message)
            for call in message.get("tool_calls") or []:
                if draw(st.integers(0, 5)):
                    messages.append({"role": "tool", "tool_call_id": call["id"], "content": draw(words)})
        elif role == "tool":
            messages.append({"role": "tool", "tool_call_id": draw(identity), "content": draw(words)})
        else:
            parts = [
                {"type": "text", "text": draw(words)},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
            ]
            messages.append({"role": role, "content": draw(st.one_of(words, st.just(parts)))})
    return messages


@settings(max_examples=400, deadline=None)
@given(conversations())
def test_any_conversation_is_a_request_that_anthropics_api_accepts(messages):
    body = {"messages": messages, "tools": []}
    sent, _ = to_messages(body, model="teacher-1", max_tokens=100, foreign=lambda block: block["signature"] > "m")
    assert refused_by_anthropic(sent) is None
    for message in sent["messages"]:
        for block in message["content"]:
            assert block["type"] != "thinking" or message["role"] == "assistant"
    own = [block for m in messages for block in m.get("thinking_blocks") or [] if block["signature"] <= "m"]
    assert [block for m in sent["messages"] for block in m["content"] if block["type"] == "thinking"] == own


@settings(max_examples=200, deadline=None)
@given(conversations())
def test_any_conversation_has_a_context_with_features(messages):
    request = chat.parse(json.dumps({"messages": messages}).encode())
    context = chat.context_of(request, 50)
    assert len(context.observations) == len(context.actions) + 1
    assert context.t == sum(m["role"] == "assistant" for m in messages)
    candidate = Candidate(chat.action_of({"content": "hello"}), None, None, Usage())
    assert featurise(context, (candidate,), (0.5,)).values


@given(st.integers(0, 60), st.integers(0, 5000))
def test_long_contexts_are_clipped_to_a_bound(steps, length):
    messages = [{"role": "user", "content": "g"}]
    for i in range(steps):
        messages += [{"role": "assistant", "content": str(i)}, {"role": "user", "content": "x" * length + "END"}]
    context = chat.context_of(chat.parse(json.dumps({"messages": messages}).encode()), 50)
    assert sum(map(len, context.observations)) <= max(chat.CLIP_TOTAL, 61 * chat.CLIP) + 100
    assert all(text.endswith("END") for text in context.observations[1:])


def long_context(length: int, steps: int = 3):
    """A goal, then so many observations of this length, each with its own beginning and end."""
    messages = [{"role": "user", "content": "g" * 10_000}]
    for i in range(steps):
        text = f"<{i}" + "x" * (length - 4) + f"{i}>"
        messages += [{"role": "assistant", "content": str(i)}, {"role": "user", "content": text}]
    return chat.context_of(chat.parse(json.dumps({"messages": messages}).encode()), 50)


def test_clipping_keeps_the_first_third_and_the_last_two_thirds():
    assert chat.clip("0123456789", 6) == "016789" and chat.clip("0123456789", 10) == "0123456789"
    assert chat.clip("0123456789", 9) == "012456789"


def test_only_contexts_over_the_total_are_clipped_each_observation_to_its_share():
    assert chat.CLIP == 600 and chat.CLIP_TOTAL == 30_000
    kept = long_context((30_000 - 10_000) // 3)
    assert [len(text) for text in kept.observations] == [10_000, 6666, 6666, 6666]
    cut = long_context((30_000 - 10_000) // 3 + 1)  # one character too much in all
    assert [len(text) for text in cut.observations] == [7500, 6667, 6667, 6667]
    exactly = long_context(5000, steps=4)
    assert [len(text) for text in exactly.observations] == [10_000, *[5000] * 4]
    longer = long_context(20_000)
    assert [len(text) for text in longer.observations] == [7500] * 4
    assert all(text.startswith(f"<{i}") and text.endswith(f"{i}>") for i, text in enumerate(longer.observations[1:]))
    assert longer.goal == "g" * 3000
    many = long_context(1000, steps=99)  # a share of 300 would be too little
    assert [len(text) for text in many.observations] == [600] * 100


def test_the_room_of_messages_needs_no_web_server_and_no_client():
    code = (
        "import sys, r2v.messages.responses, r2v.messages.anthropic, r2v.messages.chat_format; "
        "print(sorted({'starlette', 'uvicorn', 'aiohttp', 'r2v.gateway', 'r2v.clients'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


ANTHROPIC = {
    "model": "r2v", "max_tokens": 50, "system": [{"type": "text", "text": "be brief"}], "stop_sequences": ["X"],
    "tools": [{"name": "look", "description": "d", "input_schema": {"type": "object", "properties": {}}}],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    "messages": [
        {"role": "user", "content": "find it"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "looking"},
            {"type": "tool_use", "id": "a", "name": "look", "input": {"x": 1}},
            {"type": "tool_use", "id": "b", "name": "look", "input": {}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "one"}]},
            {"type": "tool_result", "tool_use_id": "b", "content": "two", "is_error": True},
            {"type": "text", "text": "go on"}]},
    ],
}  # fmt: skip


def test_an_anthropic_request_survives_the_neutral_form():
    body, dropped = anthropic.from_messages({**ANTHROPIC, "top_k": 3, "thinking": {"type": "adaptive"}})
    assert dropped == ["top_k", "thinking", "thinking"]  # the setting, and the block of the history
    assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "tool", "tool", "user"]
    assert body["tool_choice"] == "required" and body["parallel_tool_calls"] is False and body["stop"] == ["X"]
    assert json.loads(body["messages"][2]["tool_calls"][0]["function"]["arguments"]) == {"x": 1}
    assert body["messages"][4]["content"] == "[tool error] two"
    back, _ = to_messages(body, model="teacher-1", max_tokens=9, foreign=lambda block: False)
    assert back["messages"][1]["content"] == ANTHROPIC["messages"][1]["content"]
    assert [b["type"] for b in back["messages"][2]["content"]] == ["tool_result", "tool_result", "text"]
    assert back["system"] == [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}]
    assert back["max_tokens"] == 50 and back["stop_sequences"] == ["X"]
    assert back["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}


def test_tools_on_the_servers_side_are_dropped_and_named():
    body, dropped = anthropic.from_messages({**ANTHROPIC, "tools": [{"type": "web_search_20250305", "name": "web_search"}]})
    assert "tools" not in body and "tool_choice" not in body and "tools.web_search" in dropped
    body, dropped = responses.from_responses({"input": "x", "tools": [{"type": "web_search"}], "tool_choice": "auto"})
    assert "tools" not in body and "tool_choice" not in body and dropped == ["tools.web_search"]


def score(action: dict, history: tuple = (), last: str = "ok", goal: str = "look for the red value") -> float:
    import asyncio

    tools = [
        {
            "name": "look",
            "parameters": {"type": "object", "properties": {"where": {"type": "string"}}, "required": ["where"]},
        }
    ]
    messages = [{"role": "user", "content": goal}]
    for i, earlier in enumerate(history):
        messages += [earlier, {"role": "tool", "tool_call_id": "x", "content": last if i + 1 == len(history) else "ok"}]
    context = chat.context_of(chat.parse(json.dumps({"messages": messages}).encode()), 50)
    return asyncio.run(ToolCallVerifier(tools).score(context, [chat.action_of(action)]))[0]


def call(name: str, arguments: str) -> dict:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "x", "function": {"name": name, "arguments": arguments}}],
    }


GOOD = call("look", '{"where": "the red value"}')


def test_the_tool_verifier_prefers_what_fits():
    good = score(GOOD)
    assert good > score(call("unknown", '{"where": "the red value"}'))
    assert good > score(GOOD, (GOOD,), "Error: no such place") + 0.3
    assert score(call("look", '{"where": "elsewhere red value"}'), (GOOD,), "Error: no such place") > 0.8
    assert score(GOOD, (GOOD, GOOD, GOOD)) < good
    assert score({"role": "assistant", "content": ""}) == 0.0
    assert all(0 <= score(action) <= 1 for action in (GOOD, {"role": "assistant", "content": "done"}))


@pytest.mark.parametrize(("counted", "told"), [({}, (0, 0)), ({"prompt_tokens": 7, "completion_tokens": 3}, (7, 3))])
def test_where_nothing_was_counted_in_a_cache_messages_answers_say_none(counted, told):
    choice = {"message": {"content": "x"}, "finish_reason": "stop"}
    answer = anthropic.answer_of(Reply(choice, counted, "chat"), Served("1", "m", 0))
    names = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    assert answer["usage"] == dict(zip(names, (*told, 0, 0), strict=True))


STEP = call("look", '{"where": "elsewhere"}')


@pytest.mark.parametrize(
    ("action", "more", "expected"),
    [
        (GOOD, {}, 1.0),
        (GOOD, {"goal": "go"}, 1.0),  # names nothing: nothing is held against the call
        (STEP, {"goal": "look there, where elsewhere is"}, 1.0),  # two words are enough
        (call("look", '{"where": 3}'), {}, 0.0),  # cannot be executed
        (call("look", "{broken"), {}, 0.0),
        (call("sing", '{"where": "value"}'), {}, 0.0),
        ({"role": "assistant", "content": "done"}, {}, 0.35 / 2 + 0.25 + 0.15 + 0.1),
        (GOOD, {"history": (GOOD,)}, 0.35 + 0.25 * 2 / 3 + 0.15 + 0.15 + 0.1),
        (GOOD, {"history": (GOOD,), "last": "Error: no such place"}, 0.0),  # what has just failed
        (STEP, {"history": (GOOD,), "last": "Error: no such place"}, 0.35 + 0.25 + 0.15 + 0.15 / 2 + 0.1),
        (STEP, {"history": (GOOD, STEP, GOOD)}, 0.35 + 0.25 * 2 / 3 + 0.15 + 0.15 / 2),
    ],
)
def test_the_tool_verifier_by_hand(action, more, expected):
    assert score(action, **more) == pytest.approx(expected)


def test_where_no_tools_are_offered_a_message_is_as_good_as_a_call():
    context = chat.context_of(chat.parse(b'{"messages": [{"role": "user", "content": "find the value"}]}'), 50)
    assert asyncio.run(ToolCallVerifier([]).score(context, [Action("find")])) == (pytest.approx(1 - 0.15 / 2),)


def test_a_schema_that_points_elsewhere_fetches_nothing():
    tools = [{"name": "look", "parameters": {"$ref": "http://127.0.0.1:1/schema.json"}}]
    context = chat.context_of(chat.parse(json.dumps({"messages": [{"role": "user", "content": "x"}]}).encode()), 50)
    (value,) = asyncio.run(ToolCallVerifier(tools).score(context, [chat.action_of(GOOD)]))
    assert value > 0
