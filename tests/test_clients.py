"""What a model's server may answer, and what comes of it: for the client that asked, and for all others."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from r2v.clients import make_client
from r2v.clients.server_errors import said_of
from r2v.clients.settings import ClientSettings
from r2v.core.errors import ModelError, PromptTooLong
from r2v.gateway.check import problems
from r2v.messages.anthropic import MESSAGES
from r2v.messages.conversation import bounded, parse
from r2v.messages.openai_chat import chunks
from r2v.messages.protocol import Reply
from servers import events_of, response_events
from test_gateway import TOOLS, make  # noqa: F401  (a fixture)
from test_gateway_attacks import EVENTS, drawn_from

ASK = {"model": "r2v:teacher", "input": "hi"}
PROMPT = parse(b'{"messages": [{"role": "user", "content": "hi"}]}')


# -- what is too much to read -----------------------------------------------------------------------------------------


def likely(tokens: int, texts: int = 1) -> dict:
    """An answer with log-probabilities, twenty alternatives a token, and so many texts."""
    one = {"token": "word", "logprob": -0.1, "bytes": [119, 111, 114, 100]}
    listed = [{**one, "top_logprobs": [one] * 20}] * tokens
    part = {"type": "output_text", "text": "word" * tokens, "annotations": [], "logprobs": listed}
    message = {"type": "message", "id": "m", "status": "completed", "role": "assistant", "content": [part]}
    counts = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
    head = {"id": "r", "object": "response", "created_at": 1, "status": "completed", "model": "teacher-1"}
    return {**head, "output": [message] * texts, "usage": counts}


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_a_responses_model_stay_unread_and_whole(make, stream):  # noqa: F811
    world = make(teacher_provider="openai_responses", teacher__breaker_failures=1)
    answer = likely(600)
    if stream:
        events = list(response_events(answer))
        body = "".join(f"event: {kind}\ndata: {json.dumps(content)}\n\n" for kind, content in events)
        world.teacher.body = body.encode()
    else:
        world.teacher.body = json.dumps(answer).encode()
    include = {"include": ["message.output_text.logprobs"], "top_logprobs": 20, "stream": stream}
    got = world.post("/v1/responses", ASK | include)
    assert got.status_code == 200 and len(world.teacher.seen) == 1 and world.service.teacher.available
    found = got.json() if not stream else None
    for line in got.text.splitlines() if stream else ():
        if line.startswith("data: ") and '"response.completed"' in line[:200]:
            found = json.loads(line[6:])["response"]
    assert found is not None and found["output"] == answer["output"]


@pytest.mark.parametrize(
    ("provider", "answer"),
    [
        ("openai_responses", {"output": [{}] * 60_000}), ("openai_responses", {"output": likely(9, 12_000)["output"]}),
        ("openai_responses", {"output": [], "tools": [[]] * 60_000, "logprobs": "x" * 100_000}),
        ("anthropic", {"type": "message", "content": [[]] * 60_000}),
        ("openai", {"choices": [{"message": {"content": [[]] * 60_000}}]}), ("openai", {"choices": [{}] * 129}),
    ],
)  # fmt: skip
def test_what_is_too_much_to_read_is_asked_for_once_and_is_no_failure(make, provider, answer):  # noqa: F811
    world = make(teacher_provider=provider, teacher__retries=2, teacher__breaker_failures=1, teacher__backoff_s=0.01)
    path, ask = "/v1/chat/completions", {"model": "r2v:teacher", "messages": [{"role": "user", "content": "hi"}]}
    body = json.dumps(answer)
    for stream in (False, True) if provider != "openai" else (False,):
        world.teacher.body = (f"data: {body}\n\n" if stream else body).encode()
        got = world.post(path, ask | {"stream": stream})
        assert "its answer has more than" in got.text
    assert len(world.teacher.seen) == 1 + (provider != "openai") and world.service.teacher.available


# -- the breaker ------------------------------------------------------------------------------------------------------


def test_a_request_counts_once_for_the_breaker_however_often_it_is_tried(make):  # noqa: F811
    world = make(teacher__retries=3, teacher__breaker_failures=2, teacher__backoff_s=0.01)
    world.teacher.status = [(500, {})]
    for stream in (False, True):
        assert world.service.teacher.available
        assert world.post(model="r2v:teacher", stream=stream).headers.get("x-r2v-arm") is None
    assert len(world.teacher.seen) == 5 and not world.service.teacher.available  # the second ends with the first try


def test_the_answers_of_one_draw_count_once_for_the_breaker(make):  # noqa: F811
    world = make()
    url = world.config.models["teacher"].base_url
    settings = ClientSettings(base_url=url, model="m", offers_n=False, retries=1, backoff_s=0.01, breaker_failures=2)
    client = make_client(settings, "small")
    world.teacher.status = [(500, {})]

    async def draw() -> None:
        with pytest.raises(ModelError):
            await client.draw(PROMPT, 8)
        await client.close()

    asyncio.run(draw())
    assert client.available
    asyncio.run(draw())
    assert not client.available


# -- the end of a stream ----------------------------------------------------------------------------------------------

CHUNKS = [{"choices": [{"delta": {"content": "look"}}]}, {"choices": [{"delta": {}, "finish_reason": "stop"}]}]
SAID = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": [{"type": "text", "text": "look"}]}
MESSAGE = {**SAID, "stop_reason": "end_turn", "stop_sequence": None, "usage": {"input_tokens": 9, "output_tokens": 5}}
STREAMS = {
    "openai": [*CHUNKS, "[DONE]"],
    "anthropic": [content for _, content in events_of(MESSAGE)],
    "openai_responses": [content for _, content in response_events(likely(1))],
}


def streamed(provider: str, events: list, **changes) -> object:
    """What a client makes of a stream whose connection stays open after these events."""
    body = b"".join(b"data: %s\n\n" % (one if isinstance(one, str) else json.dumps(one)).encode() for one in events)
    return drawn_from([EVENTS + body, b""], pause=1.0, stream=True, provider=provider, timeout_s=0.7, **changes)


@pytest.mark.parametrize("provider", STREAMS)
def test_a_stream_ends_with_its_last_event_not_with_its_connection(provider):
    found = streamed(provider, STREAMS[provider])
    assert isinstance(found, Reply), found
    assert found.choice["message"]["content"] in ("look", "word")


def test_a_response_that_failed_ends_its_stream():
    failed = {"type": "response.failed", "response": {**likely(1), "status": "failed", "error": {"code": "server_error"}}}
    assert str(streamed("openai_responses", [failed])) == "small: the stream ended with an error server_error"
    assert "server_error" in str(streamed("openai_responses", [{"type": "error", "code": "server_error", "message": "x"}]))


def test_a_connection_is_used_again_after_a_stream():
    ports = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            for _ in range(3):
                head = await reader.readuntil(b"\r\n\r\n")
                size = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line)
                await reader.readexactly(size)
                ports.add(writer.get_extra_info("peername")[1])
                body = b"".join(b"data: %s\n\n" % json.dumps(one).encode() for one in CHUNKS) + b"data: [DONE]\n\n"
                writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(body), body))
                await writer.drain()
                await asyncio.sleep(0.005)
                writer.write(b"0\r\n\r\n")
        writer.close()

    async def ask() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = make_client(ClientSettings(base_url=url, model="m", retries=0), "small")
        for _ in range(3):
            assert [part async for part in client.streamed(PROMPT, logprobs=False, authors={})]
        await client.close()
        server.close()
        await server.wait_closed()

    asyncio.run(ask())
    assert len(ports) == 1


# -- prompts that are too long ----------------------------------------------------------------------------------------

OPENAI = "This model's maximum context length is 128000 tokens. However, your messages resulted in 210000 tokens."
VLLM = "This model's maximum context length is 4096 tokens. However, you requested 5096 tokens (4096 in the messages, ...)"
TGI = "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens"
GEMINI = "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."
LLAMA = {"message": "the request exceeds the available context size. try increasing it", "type": "exceed_context_size_error",
         "n_prompt_tokens": 5000, "n_ctx": 4096}  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "counts"),
    [
        ({"error": {"message": OPENAI, "code": "context_length_exceeded"}}, (210000, 128000)),
        ({"error": {"message": "Please reduce the length.", "code": "context_length_exceeded"}}, ()),
        ({"error": {"message": "Your input exceeds the context window of this model."}}, ()),
        ({"error": {"message": "prompt is too long: 210000 tokens > 200000 maximum"}}, (210000, 200000)),
        ({"error": {"message": "input length and `max_tokens` exceed context limit: 199000 + 8192 > 200000"}},
         (207192, 200000)),
        ({"object": "error", "message": VLLM, "code": 400}, (5096, 4096)), ({"error": LLAMA}, (5000, 4096)),
        ({"error": TGI, "error_type": "validation"}, (5000, 4096)), ([{"error": {"message": GEMINI}}], (1200000, 1048576)),
        ({"error": {"message": "prompt too long; exceeded max context length by 55 tokens"}}, ()),
    ],
)  # fmt: skip
def test_a_prompt_that_is_too_long_is_known_by_codes_and_phrases(answer, counts):
    said, found = said_of(answer, {"messages": []})
    assert found == counts and "the prompt is too long" in said


TOO_LONG_FIELD = "Invalid 'tools[0].function.name': string too long. Expected a string with maximum length 64, but got 70."
TOO_MANY_TOOLS = "Invalid 'tools': array too long. Expected an array with maximum length 128, but got length 129 instead."


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (TOO_LONG_FIELD, "string_above_max_length"), (TOO_MANY_TOOLS, "array_above_max_length"),
        ("tools: metadata.user_id is too long", "invalid_request_error"),
        ("tools: max_tokens: 30000 exceeds 8192, the maximum allowed number of output tokens", "invalid_request_error"),
        ("tools: its context is not a list", None),
    ],
)  # fmt: skip
def test_a_field_that_is_too_long_is_no_long_prompt(make, message, code):  # noqa: F811
    assert said_of({"error": {"message": message, "code": code, "param": "tools"}}, {"tools": []})[1] is None
    world = make()
    world.teacher.refuse = 400, {"error": {"message": message, "code": code, "param": "tools"}}
    answer = world.post(model="r2v:teacher", tools=TOOLS)
    assert answer.status_code == 400 and "because of `tools`" in answer.text and "too long" not in answer.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_an_error_of_its_own_and_no_failure(make, stream):  # noqa: F811
    world = make(teacher_provider="openai_responses", teacher__breaker_failures=1)
    error = {"message": OPENAI, "code": "context_length_exceeded"}
    if stream:
        event = {"type": "response.failed", "response": {**likely(1), "status": "failed", "error": error}}
        world.teacher.body = f"data: {json.dumps(event)}\n\n".encode()
    else:
        world.teacher.refuse = 400, {"error": error}

    async def ask() -> None:
        client = make_client(world.config.models["teacher"], "teacher")
        with pytest.raises(PromptTooLong, match="too long: 210000 > 128000 tokens") as caught:
            if stream:
                _ = [part async for part in client.streamed(PROMPT, logprobs=False, authors={})]
            await client.draw(PROMPT, 1)
        assert caught.value.counts == (210000, 128000) and not caught.value.clients_fault and client.available
        await client.close()

    asyncio.run(ask())


def test_a_prompt_that_the_settings_have_no_room_for_is_the_same_error():
    client = make_client(ClientSettings(base_url="http://x", model="m", context_tokens=10), "small")
    with pytest.raises(PromptTooLong) as caught:
        client.check_length(parse(json.dumps({"messages": [{"role": "user", "content": "x" * 400}]}).encode()))
    assert caught.value.counts == (100, 10)


# -- what a model is sent ---------------------------------------------------------------------------------------------

ENCRYPTED = "reasoning.encrypted_content"
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": []}


@pytest.mark.parametrize(
    ("fields", "include"),
    [
        ({}, None), ({"include": ["message.output_text.logprobs"]}, ["message.output_text.logprobs"]),
        ({"include": [ENCRYPTED]}, [ENCRYPTED]), ({"reasoning": {"effort": "low"}}, [ENCRYPTED]),
        ({"input": [{"role": "user", "content": "hi"}, THOUGHT]}, [ENCRYPTED]),
    ],
)  # fmt: skip
def test_encrypted_reasoning_is_asked_for_where_there_is_reasoning(make, fields, include):  # noqa: F811
    """Models that do not reason refuse a request that asks for it."""
    world = make(teacher_provider="openai_responses")
    answer = world.post("/v1/responses", ASK | fields)
    assert answer.status_code == 200 and world.teacher.seen[0].get("include") == include


def test_reasoning_of_a_responses_model_is_sent_to_that_model_alone(make):  # noqa: F811
    world = make(small__provider="openai_responses", teacher_provider="openai_responses")
    asked, history = ASK | {"include": [ENCRYPTED]}, [{"role": "user", "content": "hi"}]
    for role, model in (("slm", world.small), ("teacher", world.teacher)):
        said = json.loads(json.dumps(likely(1)))
        said["output"].insert(0, {**THOUGHT, "encrypted_content": f"of the {role}"})
        model.body = json.dumps(said).encode()
        answer = world.post("/v1/responses", asked | {"model": f"r2v:{role}", "input": history}, {"x-r2v-session-id": "s"})
        history += [*answer.json()["output"], {"role": "user", "content": "go on"}]
    assert answer.headers["x-r2v-dropped"] == "reasoning of another model"
    for role, model in (("slm", world.small), ("teacher", world.teacher)):
        world.post("/v1/responses", asked | {"model": f"r2v:{role}", "input": history}, {"x-r2v-session-id": "s"})
        sent = [item["encrypted_content"] for item in model.seen[-1]["input"] if item.get("type") == "reasoning"]
        assert sent == [f"of the {role}"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("keeps", "sent"),
    [
        (True, ["", "of the teacher", "of nobody"]), (False, [None, None, None]),
    ],
)  # fmt: skip
def test_reasoning_content_is_sent_to_its_author_and_as_the_settings_say(make, keeps, sent, stream):  # noqa: F811
    world = make(teacher__keeps_reasoning=keeps)
    history, number = [{"role": "user", "content": "hi"}], 0

    def answer(body, role):
        nonlocal number
        number += 1
        call = {"id": f"call_{number}", "type": "function", "function": {"name": "look", "arguments": '{"where": "x"}'}}
        said = {"role": "assistant", "content": None, "reasoning_content": f"of the {role}", "tool_calls": [call]}
        usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
        return {"choices": [{"index": i, "message": said, "finish_reason": "tool_calls"} for i in range(body.get("n") or 1)],
                "usage": usage, "id": "c", "created": 1, "model": "m"}  # fmt: skip

    world.small.reply, world.teacher.reply = (lambda body: answer(body, "slm")), (lambda body: answer(body, "teacher"))

    async def events(body):
        for chunk in chunks(answer(body, "teacher"), True, {}):
            yield f"data: {json.dumps(chunk)}\n\n"

    if stream:
        world.teacher.reply, world.teacher._streamed = None, events
    for role in ("slm", "teacher"):
        body = {"model": f"r2v:{role}", "messages": history, "tools": TOOLS, "stream": stream and role == "teacher"}
        got = world.post(body=body, headers={"x-r2v-session-id": "s"})
        made = answer({}, role)["choices"][0]["message"]
        made["tool_calls"][0]["id"] = f"c{len(history)}"
        history += [made, {"role": "tool", "tool_call_id": made["tool_calls"][0]["id"], "content": "x"}]
        assert got.status_code == 200
    odd = {
        "role": "assistant",
        "content": None,
        "reasoning_content": "of nobody",
        "tool_calls": [{**made["tool_calls"][0], "id": "z"}],
    }
    history += [odd, {"role": "tool", "tool_call_id": "z", "content": "x"}]
    body = {"model": "r2v:teacher", "messages": history, "tools": TOOLS}
    world.teacher.reply = lambda body: answer(body, "teacher")
    last = world.post(body=body, headers={"x-r2v-session-id": "s"})
    found = [
        message.get("reasoning_content") for message in world.teacher.seen[-1]["messages"] if message["role"] == "assistant"
    ]
    assert found == sent and last.headers["x-r2v-dropped"] == "reasoning_content"


@pytest.mark.parametrize(
    ("url", "model", "name", "sent"),
    [
        ("https://eu.api.openai.com/v1", "gpt-4.1", "auto", "max_completion_tokens"),
        ("https://api.openai.com:443/v1", "gpt-4.1", "auto", "max_completion_tokens"),
        ("https://me.openai.azure.com/openai/v1", "mine", "auto", "max_completion_tokens"),
        ("http://proxy/v1", "openai/gpt-5-mini", "auto", "max_completion_tokens"),
        ("http://proxy/v1", "o3", "auto", "max_completion_tokens"), ("http://proxy/v1", "gpt-oss-20b", "auto", "max_tokens"),
        ("http://proxy/v1", "mine", "max_completion_tokens", "max_completion_tokens"),
        ("https://api.openai.com/v1", "mine", "max_tokens", "max_tokens"),
    ],
)  # fmt: skip
def test_a_limit_has_the_name_that_its_server_takes(url, model, name, sent):
    client = make_client(ClientSettings(base_url=url, model=model, max_tokens_name=name), "small")
    body, _ = client._body(bounded(PROMPT, 7), False, {})
    assert {key: json.loads(bytes(body[key])) for key in body if key.startswith("max_")} == {sent: 7}


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_refuses_max_tokens_gets_the_newer_name(make, stream):  # noqa: F811
    world = make()
    said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    error = {"message": said, "code": "unsupported_parameter", "param": "max_tokens"}
    world.teacher.refused_fields["max_tokens"] = 400, {"error": error}
    for limit in ("max_completion_tokens", "max_tokens"):
        answer = world.post(model="r2v:teacher", stream=stream, **{limit: 7})
        assert answer.status_code == 200 and "error" not in answer.text
    names = [next(key for key in sent if key.startswith("max_")) for sent in world.teacher.seen]
    assert names == ["max_tokens", "max_completion_tokens", "max_completion_tokens"]


# -- r2v check --------------------------------------------------------------------------------------------------------

GONE = {"error": {"message": "The model `t` does not exist", "code": "model_not_found"}}
SHORT = {
    "error": {"message": "Could not finish the message because max_tokens was reached.", "type": "invalid_request_error"}
}


@pytest.mark.parametrize("provider", ["openai", "anthropic", "openai_responses"])
@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, {"error": {"message": "bad key"}}, ": HTTP 401: the key in TOY_KEY is refused; put a valid one there"),
        (403, {}, ": HTTP 403: the key in TOY_KEY is refused; put a valid one there"),
        (404, GONE, ": HTTP 404: it has no model 'teacher-1', or no PATH below its base_url; mend `model` or `base_url`"),
        (400, GONE, ": HTTP 400: it has no model 'teacher-1', or no PATH below its base_url; mend `model` or `base_url`"),
        (402, {}, ": HTTP 402: mend `base_url`, or the account there"),
        (500, {}, " does not answer: HTTP 500 after 1 try"), (400, SHORT, None), (200, None, None),
    ],
)  # fmt: skip
def test_check_fails_where_a_key_or_a_model_is_wrong(make, monkeypatch, provider, status, body, said):  # noqa: F811
    monkeypatch.setenv("TOY_KEY", "sk-wrong")
    world = make(teacher_provider=provider, teacher__api_key_env="TOY_KEY", teacher__retries=0)
    world.teacher.refuse, shown = None if body is None else (status, body), []
    if status == 500:
        world.teacher.status = [(500, {})]
    found = problems(world.config, shown.append)
    settings = world.config.models["teacher"]
    path = {"openai": "/chat/completions", "anthropic": "/v1/messages", "openai_responses": "/responses"}[provider]
    assert found == ([] if said is None else [f"teacher at {settings.base_url}{said}".replace("PATH", path)])
    assert (f"teacher   teacher-1 at {settings.base_url} answers" in shown) == (said is None)
    assert len(world.teacher.seen) == 1 and "sk-wrong" not in str(found)


# -- what a step costs ------------------------------------------------------------------------------------------------

PRICE = {"input": 3, "output": 15, "cached": 0.3, "cache_write": 3.75}
HOUR = {"system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]}
WRITTEN = {"cache_creation_input_tokens": 100_000, "cache_creation": {"ephemeral_1h_input_tokens": 80_000}}
SEARCH = {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("usage", "body", "price", "usd"),
    [
        (WRITTEN, HOUR, {}, (10 * 3 + 5 * 15 + 20_000 * 3.75 + 80_000 * 6) / 1e6),
        (WRITTEN, HOUR, {"cache_write_1h": 7}, (10 * 3 + 5 * 15 + 20_000 * 3.75 + 80_000 * 7) / 1e6),
        ({"server_tool_use": {"web_search_requests": 7}}, SEARCH, {}, (10 * 3 + 5 * 15) / 1e6 + 0.07),
        ({"server_tool_use": {"web_search_requests": 7}}, SEARCH, {"per_search": 0.02}, (10 * 3 + 5 * 15) / 1e6 + 0.14),
    ],
)
def test_an_hour_in_the_cache_and_searches_have_their_price(make, usage, body, price, usd, stream):  # noqa: F811
    world = make(teacher_provider="anthropic", teacher__price=PRICE | price, teacher__context_tokens=10**6)
    answer = {**MESSAGE, "usage": {"input_tokens": 10, "output_tokens": 5, **usage}}
    world.teacher.event_of, world.teacher.reply = (lambda body: answer) if stream else None, lambda body: answer
    ask = {
        "model": "r2v:teacher",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "hi"}],
        "stream": stream,
        **body,
    }
    world.post("/v1/messages", ask)
    ((record,),) = world.rows("record")
    assert json.loads(record)["choice"]["teacher"]["usd"] == pytest.approx(usd)


def test_searches_of_a_responses_model_have_their_price(make):  # noqa: F811
    world = make(teacher_provider="openai_responses", teacher__price={"input": 1, "output": 1})
    answer = likely(1)
    answer["output"] = [{"type": "web_search_call", "id": f"ws_{i}", "status": "completed"} for i in range(3)] + answer[
        "output"
    ]
    world.teacher.body = json.dumps(answer).encode()
    got = world.post("/v1/responses", ASK | {"tools": [{"type": "web_search"}]})
    assert float(got.headers["x-r2v-cost-usd"]) == pytest.approx(0.03 + 15 / 1e6)


def test_what_an_hour_and_searches_can_cost_is_reserved(make):  # noqa: F811
    world = make(teacher_provider="anthropic", teacher__price={"input": 3, "output": 15}, teacher__context_tokens=10**6)
    client, ask = world.service.teacher, {"max_tokens": 9, "messages": [{"role": "user", "content": "x" * 10_000}]}

    def bound(**more) -> float:
        return client.bound(MESSAGES.parse(json.dumps({"model": "m", **ask, **more}).encode()), 1)[1]

    marked = [{"type": "text", "text": "x" * 10_000, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    within = [{"type": "tool_result", "tool_use_id": "t", "content": marked}]
    for more in (
        HOUR,
        {"messages": [{"role": "user", "content": marked}]},
        {"messages": [{"role": "user", "content": within}]},
    ):
        assert bound(**more) > 1.9 * bound()
    assert bound(**SEARCH) > bound() + 0.1


def test_what_a_total_counts_beside_prompt_and_answer_is_output(make):  # noqa: F811
    """The thinking of Gemini's models."""
    world = make()
    said = {"role": "assistant", "content": "look"}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 5015}
    world.teacher.reply = lambda body: {"choices": [{"message": said, "finish_reason": "stop"}], "usage": usage}
    got = world.post(model="r2v:teacher")
    assert float(got.headers["x-r2v-cost-usd"]) == pytest.approx((10 * 10 + 5005 * 20) / 1e6)


DEARER = {
    "models": ["openai/o1-pro"], "provider": {"order": ["dear"]}, "route": "fallback", "preset": "mine", "best_of": 20,
    "prediction": {"type": "content", "content": "x"}, "modalities": ["text", "audio"], "audio": {"voice": "alloy"},
    "num_retries": 5, "context_window_fallback_dict": {"a": "b"}, "inference_geo": "us",
}  # fmt: skip


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_fields_that_cost_more_are_not_passed_on_and_named(make, provider):  # noqa: F811
    world = make(teacher_provider=provider)
    path = "/v1/chat/completions" if provider == "openai" else "/v1/messages"
    ask = {"model": "r2v:teacher", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "metadata": {"a": "b"}}
    got = world.post(path, ask | DEARER)
    assert got.status_code == 200 and not DEARER.keys() & world.teacher.seen[0].keys()
    assert DEARER.keys() <= set(got.headers["x-r2v-dropped"].split(",")) and world.teacher.seen[0]["metadata"] == {"a": "b"}


@pytest.mark.parametrize(
    ("context", "sent"), [(None, "other-2025"), (200_000, "other-2025"), (10**6, "context-1m-2025-08-07, other-2025")]
)
def test_a_dear_context_is_asked_for_where_the_settings_have_one(make, context, sent):  # noqa: F811
    world = make(teacher_provider="anthropic", teacher__context_tokens=context)
    ask = {"model": "r2v:teacher", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    got = world.post("/v1/messages", ask, {"anthropic-beta": "context-1m-2025-08-07, other-2025"})
    assert world.teacher.headers[0]["anthropic-beta"] == sent
    assert got.headers.get("x-r2v-dropped") == ("context-1m" if "1m" not in sent else None)
