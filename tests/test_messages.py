"""Answers and requests between the protocols: what one says reaches clients of the others, streamed or not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2v.clients.tool_text import HeldStream, OfferedTools
from r2v.messages.anthropic import MESSAGES
from r2v.messages.anthropic_upstream import MessageReader, reply_of, to_messages
from r2v.messages.conversation import BadRequest, action_of, context_of, object_of, tools_of
from r2v.messages.openai_chat import CHAT, StreamAccumulator, chunk_of
from r2v.messages.protocol import Piece, ProtocolAdapter, Reply, Served
from r2v.messages.responses import RESPONSES
from r2v.messages.responses_upstream import ResponseReader, reply_of_response, to_responses
from servers import response_events

ASK: dict[str, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "hi"}]},
    "messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9},
    "responses": {"input": "hi"},
}
ADAPTERS: dict[str, ProtocolAdapter] = {"chat": CHAT, "messages": MESSAGES, "responses": RESPONSES}
SERVED = Served("1", "m", 0)


def parsed(protocol: str, **more: Any):
    return ADAPTERS[protocol].parse(json.dumps(ASK[protocol] | more).encode())


def events(found) -> list[dict[str, Any]]:
    lines = b"".join(found).decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def whole(protocol: str, reply: Reply) -> dict[str, Any]:
    return ADAPTERS[protocol].whole(reply, parsed(protocol), SERVED)


def held(protocol: str, reply: Reply) -> list[dict[str, Any]]:
    return events(ADAPTERS[protocol].held(reply, parsed(protocol), SERVED, {}))


def live(protocol: str, spoken: str, pieces: list[Piece], reply: Reply) -> list[dict[str, Any]]:
    """The events of an answer that a model of the protocol `spoken` writes in these pieces."""
    encoder = ADAPTERS[protocol].encoder(parsed(protocol), SERVED, spoken)
    sent = [part for piece in pieces for part in encoder.add(piece)]
    return events([*sent, *encoder.end(reply, [], {})])


def chat_reply(content: Any = None, finish: str = "stop", **more: Any) -> Reply:
    message = {"role": "assistant", "content": content, **more}
    return Reply({"message": message, "finish_reason": finish}, {}, "chat")


def of_chat(protocol: str, deltas: list[dict[str, Any]], finish: str = "stop") -> list[dict[str, Any]]:
    """The events of an answer that a chat model streams."""
    answer, pieces = StreamAccumulator(), []
    for chunk in (*map(chunk_of, json.loads(json.dumps(deltas))), chunk_of({}, finish)):
        answer.add(chunk)
        pieces.append(Piece(chunk, chunk))
    return live(protocol, "chat", pieces, Reply(answer.choice, answer.usage, "chat"))


def response(*output: dict[str, Any], status: str = "completed", **more: Any) -> dict[str, Any]:
    return {"id": "resp_up", "object": "response", "status": status, "output": list(output), **more}


def said(*parts: dict[str, Any], identity: str = "msg_up") -> dict[str, Any]:
    return {"type": "message", "id": identity, "status": "completed", "role": "assistant", "content": list(parts)}


def text(words: str) -> dict[str, Any]:
    return {"type": "output_text", "text": words, "annotations": [], "logprobs": []}


REFUSAL = {"type": "refusal", "refusal": "I cannot help"}


def built(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The response of streamed events, each of whose items is what its events say."""
    assert [one["sequence_number"] for one in found] == list(range(len(found)))
    items: list[dict[str, Any]] = []
    for one in found:
        kind = one["type"].removeprefix("response.")
        item = items[one["output_index"]] if one.get("output_index", len(items)) < len(items) else {}
        assert one.get("item_id", item.get("id")) == item.get("id")
        if kind == "output_item.added":
            assert one["output_index"] == len(items)
            items.append(json.loads(json.dumps(one["item"])))
        elif kind == "content_part.added":
            assert one["content_index"] == len(item["content"])
            item["content"].append(dict(one["part"]))
        elif kind in ("output_text.delta", "refusal.delta"):
            key = "text" if kind == "output_text.delta" else "refusal"
            item["content"][one["content_index"]][key] += one["delta"]
        elif kind in ("output_text.done", "refusal.done"):
            key = "text" if kind == "output_text.done" else "refusal"
            assert item["content"][one["content_index"]][key] == one[key]
        elif kind == "content_part.done":
            assert item["content"][one["content_index"]] == one["part"]
        elif kind in ("function_call_arguments.delta", "custom_tool_call_input.delta"):
            item["arguments" if "arguments" in kind else "input"] += one["delta"]
        elif kind == "output_item.done":
            assert {**item, "status": None} == {**one["item"], "status": None}
    response = found[-1]["response"]
    assert [{**item, "status": None} for item in items] == [{**item, "status": None} for item in response["output"]]
    return response


def blocks(found: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(the blocks of a streamed message, what its end says); they come one after the other."""
    made: list[dict[str, Any]] = []
    is_open = False
    for one in found:
        if one["type"] == "content_block_start":
            assert not is_open and one["index"] == len(made)
            is_open = True
            made.append({**one["content_block"], "json": ""})
        elif one["type"] == "content_block_delta":
            assert is_open and one["index"] == len(made) - 1
            delta, block = one["delta"], made[-1]
            if delta["type"] == "citations_delta":
                block["citations"].append(delta["citation"])
            else:
                key = {"text_delta": "text", "input_json_delta": "json", "thinking_delta": "thinking"}[delta["type"]]
                block[key] += delta.get("partial_json", delta.get("text", delta.get("thinking")))
        elif one["type"] == "content_block_stop":
            is_open = False
    assert not is_open
    for block in made:
        written = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(written or "{}")
    return made, next(one["delta"] for one in found if one["type"] == "message_delta")


# -- answers of Responses models ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "output",
    [
        [said(REFUSAL)],
        [said()],
        [said(text("one"), identity="msg_1"), said(text("two"), identity="msg_2")],
        [said(text("one"), text("two"), REFUSAL)],
        [{"type": "reasoning", "id": "rs", "summary": []}, said(text("")), said(text("x" * 999), identity="msg_2")],
        [{"type": "function_call", "id": "fc", "call_id": "c", "name": "f", "arguments": {"a": 1}, "status": "completed"}],
        [{"type": "custom_tool_call", "id": "ctc", "call_id": "c", "name": "f", "status": "completed"}],
    ],
)
def test_a_held_response_streams_each_item_and_each_part(output):
    found = held("responses", reply_of_response(response(*output)))
    made = built(found)
    assert [item["id"] for item in made["output"]] == [item["id"] for item in output]


def response_pieces(output: list[dict[str, Any]]) -> tuple[list[Piece], Reply]:
    """What a Responses model streams, up to the end of its last item."""
    reader, pieces = ResponseReader(), []
    answer = response(*output)
    for _, own in response_events(answer):
        pieces.append(Piece(reader.add(own), own))
    return pieces, reply_of_response(answer)


def test_the_texts_of_a_response_are_one_text_streamed_or_not():
    output = [said(text("one"), identity="msg_1"), said(text("two"), identity="msg_2")]
    pieces, reply = response_pieces(output)
    assert reply.choice["message"]["content"] == "one\ntwo"
    deltas = [one["choices"][0]["delta"] for one in live("chat", "responses", pieces, reply) if one["choices"]]
    assert deltas[0]["role"] == "assistant" and not any("role" in delta for delta in deltas[1:])
    assert "".join(delta.get("content", "") for delta in deltas) == "one\ntwo"


WRITTEN = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'


def streamed_with_calls(output: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client reads of the stream of a Responses model that writes its calls as text."""
    request = parsed("responses", tools=[{"type": "function", "name": "f", "parameters": {"type": "object"}}])
    offered = OfferedTools.of(request)
    assert offered is not None
    pieces, reply = response_pieces(output)
    stream, encoder = HeldStream(offered), RESPONSES.encoder(request, SERVED, "responses")
    sent = [part for piece in pieces[:-1] for one in stream.add(piece) for part in encoder.add(one)]
    last = list(stream.add(pieces[-1]))
    *rest, made = stream.end(reply)
    return built(events([*sent, *encoder.end(made, [*last, *rest], {})]))


def test_calls_read_in_the_second_of_two_messages_leave_the_first_as_it_is():
    answer = streamed_with_calls([said(text("one"), identity="msg_1"), said(text(WRITTEN), identity="msg_2")])
    assert [item["type"] for item in answer["output"]] == ["message", "function_call"]
    assert answer["output"][0]["content"][0]["text"] == "one"


words = st.lists(st.sampled_from(["one ", "a", "\n", " ", WRITTEN]), max_size=3).map("".join)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.none(), st.lists(words, max_size=2)), min_size=1, max_size=3))
def test_whatever_was_streamed_before_a_call_was_read_is_in_the_answer(found):
    """None: reasoning; otherwise the texts of a message."""
    output = [
        {"type": "reasoning", "id": f"rs_{i}", "summary": []}
        if texts is None
        else said(*map(text, texts), identity=f"msg_{i}")
        for i, texts in enumerate(found)
    ]
    calls = [item for item in streamed_with_calls(output)["output"] if item["type"] == "function_call"]
    assert not calls or len(calls) == sum(one.count(WRITTEN) for texts in found for one in texts or ())


# -- calls --------------------------------------------------------------------------------------------------------

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


@pytest.mark.parametrize("call", [CALL, {**CALL, "id": None}, {**CALL, "function": {"name": "f", "arguments": {"a": 1}}}])
@pytest.mark.parametrize("streams", [False, True])
def test_a_call_without_an_id_or_with_an_object_as_arguments_is_one_in_every_protocol(call, streams):
    def answer(protocol: str) -> list[dict[str, Any]]:
        if streams:
            return of_chat(protocol, [{"role": "assistant"}, {"tool_calls": [{"index": 0, **call}]}])
        return held(protocol, chat_reply(tool_calls=[call]))

    ((block,), _), made = blocks(answer("messages")), built(answer("responses"))
    assert block["input"] == {"a": 1} and (block["id"] == "c" or block["id"].startswith("call_"))
    assert json.loads(made["output"][0]["arguments"]) == {"a": 1} and made["output"][0]["call_id"]
    parts = [part for one in answer("chat") for part in one["choices"][0]["delta"].get("tool_calls") or []]
    assert json.loads("".join(part["function"].get("arguments") or "" for part in parts)) == {"a": 1} and parts[0]["id"]


def test_an_id_that_comes_late_is_not_a_second_one():
    parts = [{"index": 0, "function": {"name": "f"}}, {"index": 0, "id": "late", "function": {"arguments": "{}"}}]
    found = of_chat("chat", [{"tool_calls": [part]} for part in parts])
    ids = [part["id"] for one in found for part in one["choices"][0]["delta"].get("tool_calls") or [] if "id" in part]
    assert len(ids) == 1


@pytest.mark.parametrize("streams", [False, True])
def test_a_forced_call_ends_with_tool_use_for_anthropics_clients(streams):
    found = of_chat("messages", [{"tool_calls": [CALL]}]) if streams else held("messages", chat_reply(tool_calls=[CALL]))
    made, end = blocks(found)
    assert [block["type"] for block in made] == ["tool_use"] and end["stop_reason"] == "tool_use"
    assert whole("messages", chat_reply(tool_calls=[CALL]))["stop_reason"] == "tool_use"
    assert whole("messages", chat_reply(tool_calls=[CALL], finish="length"))["stop_reason"] == "max_tokens"
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    assert whole("messages", reply_of_response(response(call)))["stop_reason"] == "tool_use"


def part(index: int, arguments: str = "", **more: Any) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": more.pop("name")} if "name" in more else {})
    return {"tool_calls": [{"index": index, **more, "function": function}]}


@pytest.mark.parametrize(
    ("deltas", "wanted"),
    [
        ([part(0, '{"a":', id="c0", name="f"), {"content": "\n"}, part(0, "1}")], [{"a": 1}, "\n"]),
        ([part(0, id="c0", name="f"), {"content": "x"}, part(1, "{}", id="c1", name="g")], [{}, "x", {}]),
        (
            [part(0, '{"a":', id="c0", name="f"), part(1, '{"b":', id="c1", name="g"), part(0, "1}"), part(1, "2}")],
            [{"a": 1}, {"b": 2}],
        ),
        ([part(0, id="c0"), {"content": "x"}, part(0, '{"a":', name="f"), part(0, "1}")], [{"a": 1}, "x"]),
        ([part(0, "{}", id="c0", name="f"), {"content": "x"}, part(0, "\n")], [{}, "x"]),
        (
            [{"content": "x"}, part(0, "{", id="c0", name="f"), {"content": "y"}, {"content": "z"}, part(0, "}")],
            ["x", {}, "yz"],
        ),
    ],
)  # fmt: skip
def test_text_and_other_calls_between_the_parts_of_a_call_come_after_it(deltas, wanted):
    made, _ = blocks(of_chat("messages", deltas, "tool_calls"))
    assert [block.get("input", block.get("text")) for block in made] == wanted
    assert all(block["id"] and block["name"] for block in made if block["type"] == "tool_use")


@st.composite
def interleaved(draw) -> list[dict[str, Any]]:
    """Deltas of up to three calls and of text in any order that keeps that of each; calls begin one after the other."""
    queues = []
    for i in range(draw(st.integers(0, 3))):
        arguments = draw(st.sampled_from(['{"a": 1}', "{}", "", '{"a": {"b": "}"}}', "{bad"]))
        cut, named = draw(st.integers(0, len(arguments))), draw(st.booleans())
        begun = [part(i, id=f"c{i}", name="f")] if named else [part(i, id=f"c{i}"), part(i, name="f")]
        queues.append(begun + [part(i, piece) for piece in (arguments[:cut], arguments[cut:]) if piece])
    queues.append([{"content": piece} for piece in draw(st.lists(st.sampled_from("xy\n"), max_size=4))])
    found: list[dict[str, Any]] = []
    begun_calls = 0
    while any(queues):
        free = [i for i, queue in enumerate(queues) if queue and (i <= begun_calls or i == len(queues) - 1)]
        i = draw(st.sampled_from(free))
        begun_calls = max(begun_calls, i + 1 if i < len(queues) - 1 else 0)
        found.append(queues[i].pop(0))
    return found


@settings(max_examples=150, deadline=None)
@given(interleaved())
def test_no_order_of_the_parts_of_an_answer_loses_any_of_it(deltas):
    answer = StreamAccumulator()
    for delta in json.loads(json.dumps(deltas)):
        answer.add(chunk_of(delta))
    message = answer.choice["message"]
    found = of_chat("messages", deltas)
    begun = [one["content_block"] for one in found if one["type"] == "content_block_start"]
    sent = [(begun[one["index"]].get("id"), one["delta"]) for one in found if one["type"] == "content_block_delta"]
    for call in message.get("tool_calls") or []:
        written = "".join(delta["partial_json"] for identity, delta in sent if identity == call["id"])
        assert written == call["function"]["arguments"]
    assert "".join(delta["text"] for identity, delta in sent if identity is None) == (message["content"] or "")
    assert len([block for block in begun if block.get("name") == "f"]) == len(message.get("tool_calls") or [])
    assert built(of_chat("responses", deltas))["status"] == "completed"


# -- how an answer ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["chat", "chat streamed", "responses", "responses streamed"])
def test_a_refusal_is_one_in_every_protocol(how):
    spoken, _, streamed = how.partition(" ")
    words = REFUSAL["refusal"]
    if spoken == "chat":
        reply = chat_reply(refusal=words)
        pieces = [Piece(chunk_of(delta), None) for delta in ({"refusal": "I cannot"}, {"refusal": " help"})]
    else:
        reply, where = reply_of_response(response(said(REFUSAL))), {"output_index": 0, "content_index": 0}
        reader = ResponseReader()
        own = [{"type": "response.refusal.delta", **where, "delta": delta} for delta in ("I cannot", " help")]
        pieces = [Piece(reader.add(one), one) for one in own]

    def answer(protocol: str) -> list[dict[str, Any]]:
        return live(protocol, spoken, pieces, reply) if streamed else held(protocol, reply)

    deltas = [one["choices"][0]["delta"] for one in answer("chat") if one.get("choices")]
    assert "".join(delta.get("refusal") or "" for delta in deltas) == words
    assert not any(delta.get("content") for delta in deltas)
    made, end = blocks(answer("messages"))
    assert [block["text"] for block in made] == [words] and end["stop_reason"] == "refusal"
    if how != "responses streamed":  # then the events are the model's own
        output = built(answer("responses"))["output"]
        assert output[0]["content"] == [REFUSAL]
    message = whole("chat", reply)["choices"][0]["message"]
    assert (message["content"], message["refusal"]) == (None, words)
    assert whole("messages", reply)["content"] == [{"type": "text", "text": words}]


@pytest.mark.parametrize(
    ("reply", "chat", "messages", "responses"),
    [
        (chat_reply("x", "content_filter"), "content_filter", "refusal", "content_filter"),
        (chat_reply("x", "length"), "length", "max_tokens", "max_output_tokens"),
        (chat_reply("x"), "stop", "end_turn", None),
        (
            reply_of_response(response(status="incomplete", incomplete_details={"reason": "content_filter"})),
            "content_filter", "refusal", "content_filter",
        ),
        (
            reply_of_response(response(status="incomplete", incomplete_details={"reason": "max_output_tokens"})),
            "length", "max_tokens", "max_output_tokens",
        ),
        (
            reply_of({"type": "message", "content": [], "stop_reason": "model_context_window_exceeded"}),
            "length", "model_context_window_exceeded", "max_output_tokens",
        ),
        (
            reply_of({"type": "message", "content": [], "stop_reason": "refusal"}),
            "content_filter", "refusal", "content_filter",
        ),
    ],
)  # fmt: skip
def test_each_end_of_an_answer_has_its_name_in_every_protocol(reply, chat, messages, responses):
    assert whole("chat", reply)["choices"][0]["finish_reason"] == chat
    assert whole("messages", reply)["stop_reason"] == messages
    made = whole("responses", reply)
    assert (made["incomplete_details"] or {}).get("reason") == responses if responses else made["status"] == "completed"
    assert made["status"] == ("incomplete" if responses else "completed")
    assert held("responses", reply)[-1]["type"] == f"response.{made['status']}"


def test_the_stream_of_a_filtered_response_ends_so():
    reader = ResponseReader()
    answer = response(status="incomplete", incomplete_details={"reason": "content_filter"})
    chunk = reader.add({"type": "response.incomplete", "response": answer})
    assert chunk is not None and chunk["choices"][0]["finish_reason"] == "content_filter"


def test_a_held_message_says_at_its_end_what_stopped_it_and_keeps_citations():
    cited = {"type": "char_location", "cited_text": "x", "document_index": 0}
    content = [{"type": "text", "text": "abc", "citations": [cited]}]
    answer = {"type": "message", "content": content, "stop_reason": "stop_sequence", "stop_sequence": "END"}
    found = held("messages", reply_of(answer))
    assert found[0]["message"]["stop_reason"] is None and found[0]["message"]["stop_sequence"] is None
    made, end = blocks(found)
    assert made == content and end == {"stop_reason": "stop_sequence", "stop_sequence": "END"}
    reader = MessageReader()
    for one in held("messages", reply_of(answer)):
        reader.add(one)
    assert reader.answer is not None and reader.answer["content"] == content


def test_a_number_out_of_range_is_kept_as_text_and_the_other_arguments_as_they_are():
    call = {**CALL, "function": {"name": "f", "arguments": '{"a": 1e400, "b": [-1e999, 2.5], "c": 12345678901234567890123}'}}
    wanted = {"a": "1e400", "b": ["-1e999", 2.5], "c": 12345678901234567890123}
    assert whole("messages", chat_reply(tool_calls=[call]))["content"][0]["input"] == wanted
    assert object_of('{"a": 1e400, "b": "\\ud800"}').keys() == {"arguments"}  # would be no JSON again
    assert object_of('{"a": 1e400').keys() == {"arguments"}


# -- requests -----------------------------------------------------------------------------------------------------

FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
OTHER = {"type": "function", "function": {"name": "g", "parameters": {"type": "object"}}}
FREE = {"type": "custom", "custom": {"name": "py", "description": "run it"}}
ONLY_F = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [FUNCTION]}}
USED = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "tool_calls": [{"id": "a", "type": "custom", "custom": {"name": "py", "input": "1"}}]},
    {"role": "tool", "tool_call_id": "a", "content": "1"},
]


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [FUNCTION, OTHER], "tool_choice": ONLY_F},
        {"tools": [FREE, FUNCTION]},
        {"tools": [FREE], "tool_choice": {"type": "custom", "custom": {"name": "py"}}},
        {"messages": USED},
    ],
)
def test_what_the_neutral_form_knows_goes_on_as_it_came(more):
    assert parsed("chat", **more).body() == ASK["chat"] | more


def anthropic_request(**more: Any) -> tuple[dict[str, Any], list[str]]:
    return to_messages(ASK["chat"] | more, model="m", max_tokens=9, foreign=lambda block: True)


def test_a_choice_among_allowed_tools_leaves_those_for_models_of_other_protocols():
    sent, dropped = anthropic_request(tools=[FUNCTION, OTHER, FREE], tool_choice=ONLY_F)
    assert [tool["name"] for tool in sent["tools"]] == ["f"] and sent["tool_choice"] == {"type": "any"}
    assert dropped == ["tools.py"]
    sent, dropped = to_responses(ASK["chat"] | {"tools": [FUNCTION, OTHER, FREE], "tool_choice": ONLY_F}, model="m")
    assert [tool["name"] for tool in sent["tools"]] == ["f"] and sent["tool_choice"] == "required"
    assert dropped == ["tools.py"]


def test_a_call_with_free_text_is_read_like_others():
    request = parsed("chat", messages=USED, tools=[FREE])
    (action,) = context_of(request, 9).actions
    assert action == action_of(USED[1]) and json.loads(action.tool_calls[0].arguments) == {"input": "1"}
    assert [tool["name"] for tool in tools_of(request.tools)] == ["py"] and OfferedTools.of(request) is None
    sent, _ = anthropic_request(messages=USED)
    assert sent["messages"][1]["content"] == [{"type": "tool_use", "id": "a", "name": "py", "input": {"input": "1"}}]
    deltas = [{"tool_calls": [{"index": 0, **USED[1]["tool_calls"][0]}]}, part_of_input("2")]  # type: ignore[index]
    answer = StreamAccumulator()
    for delta in deltas:
        answer.add(chunk_of(delta))
    (call,) = answer.choice["message"]["tool_calls"]
    assert call == {"id": "a", "type": "custom", "custom": {"name": "py", "input": "12"}}
    found = held("chat", chat_reply(tool_calls=[call]))
    assert [c for one in found for c in one["choices"][0]["delta"].get("tool_calls", [])] == [{"index": 0, **call}]


def part_of_input(written: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "custom": {"input": written}}]}


@pytest.mark.parametrize(
    ("protocol", "more", "named"),
    [
        ("chat", {"response_format": "json"}, "response_format"),
        ("chat", {"response_format": {"type": "json_schema", "json_schema": "x"}}, "json_schema"),
        ("chat", {"stop": 5}, "stop"),
        ("chat", {"reasoning_effort": [1]}, "reasoning_effort"),
        ("chat", {"tools": [{"type": "function"}]}, "function"),
        ("chat", {"tool_choice": {"type": "allowed_tools", "allowed_tools": "x"}}, "allowed_tools"),
        ("responses", {"include": 5}, "include"),
        ("responses", {"include": [{}]}, "include"),
        ("messages", {"stop_sequences": 5}, "stop"),
    ],
)
def test_a_part_of_the_wrong_type_is_refused_in_one_line_that_names_it(protocol, more, named):
    with pytest.raises(BadRequest, match=named) as refused:
        parsed(protocol, **more)
    assert "\n" not in str(refused.value)


FORMS = [
    ("chat", {"tools": [FUNCTION], "response_format": {"type": "json_object"}}),
    ("chat", {"tools": [FUNCTION], "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}}),
    (
        "responses",
        {
            "tools": [{"type": "function", "name": "f", "parameters": {}}],
            "text": {"format": {"type": "json_schema", "name": "a", "schema": {}}},
        },
    ),
    (
        "messages",
        {
            "tools": [{"name": "f", "input_schema": {"type": "object"}}],
            "output_config": {"format": {"type": "json_schema", "schema": {}}},
        },
    ),
]


@pytest.mark.parametrize(("protocol", "more"), FORMS)
def test_no_call_is_read_in_an_answer_that_is_to_be_json(protocol, more):
    assert OfferedTools.of(parsed(protocol, **more)) is None
    plain = {key: value for key, value in more.items() if key == "tools"}
    assert OfferedTools.of(parsed(protocol, **plain)) is not None


def test_calls_are_read_of_the_allowed_tools_alone():
    offered = OfferedTools.of(parsed("chat", tools=[FUNCTION, OTHER], tool_choice=ONLY_F))
    assert offered is not None and set(offered.schemas) == {"f"}


def test_images_of_several_outputs_follow_the_last_of_them():
    calls = [{"type": "function_call", "call_id": name, "name": "see", "arguments": "{}"} for name in "ab"]
    shown = [{"type": "input_image", "image_url": "data:image/png;base64,AA"}, {"type": "input_text", "text": "seen"}]
    outputs = [{"type": "function_call_output", "call_id": name, "output": shown} for name in "ab"]
    rounds = [{"role": "user", "content": "look"}, *calls, *outputs]
    messages = parsed("responses", input=[*rounds, {"role": "user", "content": "go on"}, *calls, *outputs]).body()[
        "messages"
    ]
    turn = ["assistant", "tool", "tool", "user"]
    assert [message["role"] for message in messages] == ["user", *turn, "user", *turn]
    assert [part["type"] for part in messages[4]["content"]] == ["image_url"] * 2


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
PDF = {"type": "file", "file": {"file_data": "data:application/pdf;base64,BB", "filename": "a.pdf"}}
SOUND = {"type": "input_audio", "input_audio": {"data": "CC", "format": "wav"}}


def test_images_and_documents_of_users_and_tools_reach_anthropics_models_and_the_rest_is_named():
    parts = [{"type": "text", "text": "see"}, IMAGE, PDF, SOUND, {"type": "file", "file": {"file_id": "f"}}]
    call = {"role": "assistant", "tool_calls": [CALL]}
    messages = [{"role": "user", "content": parts}, call, {"role": "tool", "tool_call_id": "c", "content": parts}]
    sent, dropped = anthropic_request(messages=messages)
    assert sorted(set(dropped)) == ["file", "input_audio"]
    (result,) = sent["messages"][2]["content"]
    for content in (sent["messages"][0]["content"], result["content"]):
        assert [block["type"] for block in content] == ["text", "image", "document", "text", "text"]
        assert content[1]["source"] == {"type": "base64", "media_type": "image/png", "data": "AA"}
        assert content[2]["source"] == {"type": "base64", "media_type": "application/pdf", "data": "BB"}
    plain = [*messages[:2], {"role": "tool", "tool_call_id": "c", "content": [parts[0]]}]
    assert anthropic_request(messages=plain)[0]["messages"][2]["content"][0]["content"] == "see"
    lost = [{"role": "user", "content": "x"}, {"role": "tool", "tool_call_id": "gone", "content": parts}]
    assert "[image]" in json.dumps(anthropic_request(messages=lost)[0])


def test_images_and_files_of_tools_reach_responses_models():
    parts = [{"type": "text", "text": "see"}, IMAGE, PDF, SOUND]
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [CALL]}]
    sent, dropped = to_responses(
        {"messages": [*messages, {"role": "tool", "tool_call_id": "c", "content": parts}]}, model="m"
    )
    shown = [part["type"] for part in sent["input"][-1]["output"]]
    assert shown == ["input_text", "input_image", "input_file", "input_text"] and dropped == ["input_audio"]


def test_a_stop_of_space_alone_which_anthropics_api_refuses_is_dropped_and_named():
    sent, dropped = anthropic_request(stop=["\n", "END"])
    assert sent["stop_sequences"] == ["END"] and dropped == ["stop"]
    sent, dropped = anthropic_request(stop="\n")
    assert "stop_sequences" not in sent and dropped == ["stop"]


def test_a_refusal_in_the_history_is_told_to_models_of_other_protocols():
    messages = [
        *ASK["chat"]["messages"],
        {"role": "assistant", "content": None, "refusal": "I cannot"},
        *ASK["chat"]["messages"],
    ]
    assert anthropic_request(messages=messages)[0]["messages"][1]["content"][0]["text"] == "I cannot"
    assert to_responses({"messages": messages}, model="m")[0]["input"][1]["content"][0]["text"] == "I cannot"
    assert context_of(parsed("chat", messages=messages), 9).actions == (action_of(messages[1]),)
    assert action_of(messages[1]).text == "I cannot"
    items = [{"role": "user", "content": "hi"}, said(REFUSAL), {"role": "user", "content": "hi"}]
    assert parsed("responses", input=items).body()["messages"][1]["content"] == REFUSAL["refusal"]


@pytest.mark.parametrize(
    "message",
    [
        {"refusal": {"why": 1}},
        {"tool_calls": [{"id": "c", "function": "f"}]},
        {"tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "f"}}]},
    ],
)
def test_what_no_protocol_could_say_is_no_reply(message):
    with pytest.raises((AttributeError, KeyError, TypeError)):
        chat_reply(**message)


def test_a_part_without_its_text_is_no_response():
    with pytest.raises(TypeError):
        reply_of_response(response(said({"type": "output_text", "text": None})))
