"""What a step is charged, whatever a client asks for and a model says: never less than a provider would bill."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest

from r2v.core.untrusted import RECORD_BYTES
from r2v.gateway.sessions import Items
from r2v.messages.anthropic import MESSAGES
from r2v.messages.conversation import Likelihood, parse
from r2v.messages.openai_chat import StreamAccumulator, chunk_of
from r2v.messages.protocol import Piece, Served
from test_budgets import ALWAYS, DAY_SCOPE
from test_gateway import make  # noqa: F401  (a fixture)

SAID = {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "look"}]}
MESSAGE = {"id": "m", "model": "t", "stop_reason": "end_turn", **SAID}
OUTPUT = [{"type": "message", "id": "i", "role": "assistant", "content": [{"type": "output_text", "text": "look"}]}]
RESPONSE = {"id": "r", "object": "response", "status": "completed", "output": OUTPUT}


def charged(world) -> float:
    return world.service.ledger.accounts.charged(DAY_SCOPE).usd


@pytest.mark.parametrize(("provider", "answer"), [("anthropic", MESSAGE), ("openai_responses", RESPONSE)])
@pytest.mark.parametrize("usage", [None, {}, {"input_tokens": 9}, {"input_tokens": 0, "output_tokens": 0}])
def test_a_provider_that_does_not_count_is_charged_in_full(make, provider, answer, usage):  # noqa: F811
    world = make(teacher_provider=provider, **ALWAYS, budget__per_day={"usd": 0.1})
    world.teacher.body = json.dumps(answer | ({} if usage is None else {"usage": usage})).encode()
    arms = [world.post(model="r2v:teacher", max_tokens=1000).headers.get("x-r2v-arm") for _ in range(8)]
    assert arms.count("teacher") == len(world.teacher.seen) == 2 and 0.06 < charged(world) <= 0.1


def test_a_messages_client_gets_a_usage_where_the_model_says_none(make):  # noqa: F811
    world = make(teacher_provider="anthropic", **ALWAYS)
    world.teacher.body = json.dumps(MESSAGE).encode()
    body = {"model": "r2v:teacher", "max_tokens": 9, "messages": [{"role": "user", "content": "look"}]}
    assert world.post("/v1/messages", body).json()["usage"]["output_tokens"] == 0
    assert "message_stop" in world.post("/v1/messages", body | {"model": "r2v", "stream": True}).text


def test_what_a_server_counts_beyond_what_was_expected_is_charged(make):  # noqa: F811
    """A search on its side reads what no request holds."""
    world = make(**ALWAYS, budget__per_day={"usd": 4.0})
    answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "look"}, "finish_reason": "stop"}]}
    world.teacher.reply = lambda body: answer | {"usage": {"prompt_tokens": 300_000, "completion_tokens": 1}}
    assert world.post(model="r2v:teacher", web_search_options={}).headers["x-r2v-arm"] == "teacher"
    assert charged(world) == pytest.approx(3.0, abs=0.1)
    assert world.post(model="r2v:teacher", web_search_options={}).headers["x-r2v-reason"] == "budget_exhausted"


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
FILE = {"type": "file", "file": {"file_id": "file-1"}}


@pytest.mark.parametrize(
    ("parts", "fields", "least"),
    [
        ([IMAGE] * 2, {}, 100_000), ([IMAGE] * 50, {}, 131_072), ([FILE], {}, 131_072),
        ([], {"web_search_options": {}}, 131_072),
    ],
    ids=["images", "many images", "file", "search"],
)  # fmt: skip
def test_what_is_no_text_is_reserved_for(make, parts, fields, least):  # noqa: F811
    client = make().service.teacher
    content = [{"type": "text", "text": "look"}, *parts]
    request = parse(json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 1, **fields}).encode())
    tokens, _ = client.bound(request, 1)
    assert least < tokens < least + 2000 + request.size


@pytest.mark.parametrize(
    ("protocol", "body"),
    [
        ("/v1/messages", {"max_tokens": 9, "tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        ("/v1/responses", {"tools": [{"type": "web_search"}]}),
        ("/v1/responses", {"prompt": {"id": "pmpt_1"}}),
    ],
)
def test_what_a_provider_reads_elsewhere_is_reserved_for(make, protocol, body):  # noqa: F811
    world = make(**ALWAYS, budget__per_day={"usd": 1.0})
    text = {"input": "look"} if protocol.endswith("responses") else {"messages": [{"role": "user", "content": "look"}]}
    answer = world.post(protocol, {"model": "r2v", **text, **body})
    assert answer.headers["x-r2v-reason"] == "budget_exhausted", "the context of the teacher costs 1.3 USD"
    assert not world.teacher.seen


def test_the_smaller_of_two_limits_holds_and_is_all_that_is_sent(make):  # noqa: F811
    world = make(**ALWAYS, budget__per_day={"usd": 0.3})
    world.post(max_completion_tokens=1, max_tokens=100_000)
    world.post(max_completion_tokens=7)
    for sent, limit in zip(world.teacher.seen, (1, 7), strict=True):
        assert sent["max_tokens"] == limit and "max_completion_tokens" not in sent


def test_a_tier_that_costs_more_is_not_passed_on(make):  # noqa: F811
    world = make(**ALWAYS)
    answer = world.post(service_tier="priority")
    assert "service_tier" not in world.teacher.seen[0] and "service_tier" in answer.headers["x-r2v-dropped"]


def test_the_first_of_two_answers_is_charged_where_the_second_fails(make):  # noqa: F811
    world = make(route__k=2, budget__per_day={"tokens": 10**6}, small__retries=0, small__breaker_failures=None)
    said = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "look"}, "finish_reason": "stop"}]}
    world.small.reply = lambda body: said | {"usage": {"prompt_tokens": 900, "completion_tokens": 100}}  # `n` is ignored
    world.small.status = [(200, {}), (500, {})]
    assert world.post(max_tokens=1000).headers["x-r2v-reason"] == "upstream_fallback"
    with closing(sqlite3.connect(world.ledger)) as db:
        ((tokens, why),) = db.execute("SELECT tokens, why FROM abandoned").fetchall()
    assert tokens >= 1000 and why == "lost"


@pytest.mark.parametrize("usage", ["100", [1], 5])
def test_a_stream_with_a_usage_that_is_none_is_charged(make, usage):  # noqa: F811
    world = make(**ALWAYS, budget__per_day={"usd": 0.1}, small__retries=0, teacher__retries=0)

    async def events(body):
        for chunk in (chunk_of({"content": "look"}), chunk_of({}, "stop"), {"choices": [], "usage": usage}):
            yield f"data: {json.dumps(chunk)}\n\n"
        yield "data: [DONE]\n\n"

    world.teacher._streamed = events
    for _ in range(6):
        text = world.post(model="r2v:teacher", stream=True, max_tokens=1000).text
        assert "Error" not in text, "words of Python"
    assert len(world.teacher.seen) <= 3 and 0.03 < charged(world) <= 0.1


def test_a_row_that_is_too_large_fails_one_step_alone(make, monkeypatch):  # noqa: F811
    world = make()
    assert world.post().status_code == 200
    monkeypatch.setattr("r2v.gateway.ledger.RECORD_BYTES", 4000)
    answer = world.post(messages=[{"role": "user", "content": "x" * 9000}])
    assert (answer.status_code, answer.headers["x-r2v-reason"]) == (503, "ledger")
    monkeypatch.setattr("r2v.gateway.ledger.RECORD_BYTES", RECORD_BYTES)
    assert world.post().status_code == 200 and world.client.get("/ready").status_code == 200


# -- what one request may do to others --------------------------------------------------------------------------------


def test_no_reference_grows(make):  # noqa: F811
    """A response may not be referred to as an item, and what is referred to counts as if it had been sent."""
    world = make(server__max_body_bytes=20_000, server__max_bodies_bytes=50_000)
    first = world.post("/v1/responses", {"model": "r2v:teacher", "input": "x" * 12_000}).json()
    grown = world.post("/v1/responses", {"model": "r2v", "input": [{"type": "item_reference", "id": first["id"]}] * 9})
    assert grown.status_code == 400 and "give that as previous_response_id" in grown.text
    one = [{"type": "item_reference", "id": first["output"][0]["id"]}]
    assert world.post("/v1/responses", {"model": "r2v", "input": one}).status_code == 200
    second = world.post("/v1/responses", {"model": "r2v", "previous_response_id": first["id"], "input": "y" * 12_000}).json()
    third = world.post("/v1/responses", {"model": "r2v", "previous_response_id": second["id"], "input": "z"})
    assert third.status_code == 400 and "more than 20000 bytes (server.max_body_bytes)" in third.text
    assert world.client.get("/ready").json()["body_bytes"] == 0


def test_what_is_referred_to_is_reserved_for(make):  # noqa: F811
    world = make(**ALWAYS, budget__per_day={"usd": 1.0})
    first = world.post("/v1/responses", {"model": "r2v:slm", "input": "x" * 100_000, "max_output_tokens": 9}).json()
    body = {"model": "r2v", "previous_response_id": first["id"], "input": "go on", "max_output_tokens": 9}
    assert world.post("/v1/responses", body).headers["x-r2v-reason"] == "budget_exhausted"  # at 10 USD a million


def test_an_item_that_cannot_be_kept_costs_no_answer(make):  # noqa: F811
    world = make(teacher_provider="openai_responses", **ALWAYS)
    for identity in ("i", 2**64, None, "i"):
        said = {**RESPONSE, "output": [{**OUTPUT[0], "id": identity}], "usage": {"input_tokens": 9, "output_tokens": 5}}
        world.teacher.body = json.dumps(said).encode()
        answer = world.post("/v1/responses", {"model": "r2v:teacher", "input": "look"})
        assert answer.status_code == 200, answer.text
    follow = {"model": "r2v:teacher", "previous_response_id": answer.json()["id"], "input": "go on"}
    assert world.post("/v1/responses", follow).status_code == 200


def test_a_list_of_items_is_kept_whole_or_not_at_all():
    items = Items()
    with pytest.raises((OverflowError, sqlite3.Error)):
        items.keep("key", {"a": [{}], 2**64: [{}]})  # type: ignore[dict-item]
    assert items.get("key", "a") is None
    items.keep("key", {"a": [{}]})
    assert items.get("key", "a") == b"[{}]"


def test_arguments_that_json_cannot_hold_are_no_failure_of_the_model(make):  # noqa: F811
    world = make(teacher_provider="anthropic", **ALWAYS)
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"where": "\\ud800"}'}}
    messages = [
        {"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "y"},
    ]  # fmt: skip
    for _ in range(6):
        assert world.post(messages=messages).headers["x-r2v-arm"] == "teacher"
    assert world.service.teacher.available
    world.small.reply = lambda body: {
        "choices": [{"index": i, "message": messages[1], "finish_reason": "tool_calls"} for i in range(body.get("n", 1))],
        "usage": {"prompt_tokens": 9, "completion_tokens": 9},
    }
    body = {"model": "r2v:slm", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    for stream in (False, True):
        answer = world.post("/v1/messages", body | {"stream": stream})
        assert answer.status_code == 200 and "tool_use" in answer.text and "error" not in answer.text


def test_a_refused_step_leaves_the_mode_that_the_settings_were_changed_to(make):  # noqa: F811
    first = make(route__mode="active")
    first.post()
    first.stack.close()
    second = make(route__mode="observe", store__path=str(first.ledger))
    assert second.post(headers={"x-r2v-budget-usd": "0"}).status_code == 402
    answer = second.post()
    assert (answer.headers["x-r2v-arm"], second.client.get("/v1/mode").json()["mode"]) == ("teacher", "observe")


@pytest.mark.parametrize("redact", [False, True])
def test_every_row_that_is_written_can_be_read(make, redact):  # noqa: F811
    world = make(store__redact=redact, store__hash_key_env=None)
    odd = {"token": "a", "logprob": 709.7, "top_logprobs": [{"token": str(i), "logprob": 709.7} for i in range(5)]}
    for message in ({"role": 5, "content": "look"}, {"role": "assistant", "name": {}, "tool_call_id": 1, "content": "look"}):
        world.small.reply = lambda body, message=message: {
            "choices": [
                {"index": i, "message": message, "finish_reason": "stop", "logprobs": {"content": [odd]}}
                for i in range(body.get("n", 1))
            ],
            "usage": {"prompt_tokens": 9, "completion_tokens": 9},
        }
        answer = world.post(model="r2v:slm", messages=[{"role": "user", "name": 5, "content": "look"}])
        assert world.client.get(f"/v1/sessions/{answer.headers['x-r2v-session-id']}").status_code == 200
    assert len(list(world.service.ledger.all_sessions())) == 2


def test_log_probabilities_that_cannot_be_are_not_believed():
    one = lambda logprob: {"logprob": logprob, "top_logprobs": [{"logprob": logprob}] * 5}  # noqa: E731
    assert Likelihood.of({"logprobs": {"content": [one(709.7)]}}, None).logp == 0.0
    assert Likelihood.of({"logprobs": {"content": [one(-1e308)] * 3}}, 100).logp is None


# -- calls that servers split in odd ways -----------------------------------------------------------------------------


def part(index: int | None, identity: str | None, arguments: str, name: str | None = "look") -> dict:
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {"function": function} | ({} if index is None else {"index": index}) | ({"id": identity} if identity else {})


X, Y = '{"where":"x"}', '{"where":"y"}'
ODD = {
    "no index": [part(None, "a", X), part(None, "b", Y)],
    "the same index": [part(0, "a", X), part(0, "b", Y)],
    "neither index nor id": [part(None, None, X), part(None, None, Y)],
    "one after the other": [part(0, "a", ""), part(0, None, X, None), part(1, "b", ""), part(1, None, Y, None)],
    "in turns": [part(0, "a", ""), part(1, "b", ""), part(0, None, X, None), part(1, None, Y, None)],
    "in turns, split": [part(0, "a", X[:4]), part(1, "b", Y[:6]), part(0, None, X[4:], None), part(1, None, Y[6:], None)],
}


@pytest.mark.parametrize("parts", ODD.values(), ids=ODD)
def test_two_calls_stay_two_however_a_server_streams_them(parts):
    request = parse(b'{"messages": [{"role": "user", "content": "look"}]}')
    answer, encoder = StreamAccumulator(), MESSAGES.encoder(request, Served("1", "m", 1), "chat")
    events = b""
    for one in parts:
        chunk = chunk_of({"tool_calls": [dict(one)]})
        answer.add(chunk)
        events += b"".join(encoder.add(Piece(chunk, None)))
    answer.add(chunk_of({}, "tool_calls"))
    assert [call["function"]["arguments"] for call in answer.choice["message"]["tool_calls"]] == [X, Y]
    read = [json.loads(line[6:]) for line in events.split(b"\n") if line.startswith(b"data: ")]
    blocks = [one["content_block"] for one in read if one["type"] == "content_block_start"]
    assert [block["name"] for block in blocks] == ["look", "look"]
    written = ["", ""]
    for one in read:
        if one["type"] == "content_block_delta":
            written[one["index"]] += one["delta"]["partial_json"]
    assert written == [X, Y]
