"""What one client may take from all others: connections, bytes and time, with real sockets and without a key."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import threading
import time
import zlib
from contextlib import closing

import httpx
import msgspec
import pytest

from r2v.clients import make_client
from r2v.clients.server_errors import said_of
from r2v.clients.settings import ClientSettings
from r2v.core.errors import ModelError, SettingsError
from r2v.gateway.settings import ServerSettings
from r2v.messages import json_size
from r2v.messages.conversation import Likelihood, fingerprint, object_of, own_words, parse
from r2v.messages.json_size import JsonSize
from r2v.messages.protocol import json_object
from r2v.runtime.settings import validated
from r2v.runtime.slices import LARGE, in_slices
from test_gateway import ASK, AUTH, make  # noqa: F401  (a fixture)


def connect(world) -> socket.socket:
    host, port = world.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def answer_to(world, *pieces: bytes, pause: float = 0.0) -> bytes:
    """All that comes back until the gateway closes the connection."""
    with closing(connect(world)) as client:
        for piece in pieces:
            try:
                client.sendall(piece)
            except OSError:
                break
            time.sleep(pause)
        return rest_of(client)


def rest_of(client: socket.socket) -> bytes:
    found = b""
    try:
        while piece := client.recv(65536):
            found += piece
    except ConnectionError:
        pass
    return found


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [HEAD + b"a: " + b"x" * 70_000 + b"\r\n\r\n"],
        [HEAD + b"a: ", *[b"x" * 10_000] * 100],
        [b"GET /" + b"x" * 100_000],
        [HEAD, *[b"a: 1\r\n"] * 300, b"\r\n"],
        [HEAD + b"".join(b"a%d: 1\r\n" % i for i in range(5000))],
    ],
    ids=["one header", "endless header", "address", "many headers", "many at once"],
)
def test_a_head_that_is_too_large_is_a_431_and_the_connection_ends(make, pieces):  # noqa: F811
    world = make()
    assert answer_to(world, *pieces).startswith(b"HTTP/1.1 431 ")
    assert world.post().status_code == 200


def test_heads_up_to_the_limit_are_served(make):  # noqa: F811
    world = make()
    assert world.post(headers={"x-long": "x" * 60_000}).status_code == 200
    assert world.client.get("/health", headers={f"x-{i}": "1" for i in range(100)}).status_code == 200


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"GET /health HTT", b"HTTP/1.1 408 "),
        (HEAD + b"content-length: 100\r\n" + b"authorization: Bearer test-key-1\r\n\r\n{", b"HTTP/1.1 408 "),
        (b"", b""),
        (b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", b"HTTP/1.1 200 "),
    ],
    ids=["half a head", "half a body", "nothing", "idle"],
)
def test_a_request_that_never_ends_is_a_408_and_an_idle_connection_is_closed(make, sent, said):  # noqa: F811
    world = make(server__header_timeout_s=0.4, server__body_timeout_s=0.4)
    start = time.monotonic()
    found = answer_to(world, sent)
    assert found.startswith(said) and bool(found) == bool(said)
    assert time.monotonic() - start < 8


def test_a_byte_now_and_then_does_not_keep_a_head_alive(make):  # noqa: F811
    world = make(server__header_timeout_s=0.5)
    assert answer_to(world, *[bytes([c]) for c in HEAD], pause=0.05).startswith(b"HTTP/1.1 408 ")


def test_slow_answers_are_no_slow_requests(make):  # noqa: F811
    world = make(server__header_timeout_s=0.3, server__body_timeout_s=0.3)
    world.small.delay = 1.0
    assert world.post().status_code == 200


def test_more_connections_than_allowed_take_the_place_of_those_that_wait_for_longest(make):  # noqa: F811
    world = make(server__max_connections=5)
    halves = [connect(world) for _ in range(12)]
    for half in halves:
        half.sendall(b"GET /health HTTP/1.1\r\n")
    time.sleep(0.2)
    assert httpx.get(f"{world.url}/health").status_code == 200
    assert world.post().status_code == 200
    assert rest_of(halves[0]) == b""  # ended
    for half in halves:
        half.close()


def test_where_all_connections_are_being_answered_a_further_one_is_a_503(make):  # noqa: F811
    world = make(server__max_connections=2)
    world.small.delay = 2.0
    body = json.dumps({"messages": ASK}).encode()
    head = HEAD + b"authorization: Bearer test-key-1\r\ncontent-length: %d\r\n\r\n" % len(body)
    busy = [connect(world) for _ in range(2)]
    for one in busy:
        one.sendall(head + body)
    time.sleep(0.3)
    assert answer_to(world).startswith(b"HTTP/1.1 503 ")
    assert all(one.recv(100).startswith(b"HTTP/1.1 200 ") for one in busy)
    for one in busy:
        one.close()


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [CHUNKED, b"1;", *[b"x" * 50_000] * 40],
        [CHUNKED, chunk(b"{}"), b"0\r\na: ", *[b"x" * 50_000] * 40],
        [CHUNKED, *[chunk(b"x" * 50_000)] * 40],
        [CHUNKED, *[chunk(b"x") * 10_000] * 40],
    ],
    ids=["extension of a chunk", "trailer", "body without a key", "tiny chunks"],
)
def test_what_never_ends_after_the_head_ends(make, pieces):  # noqa: F811
    world = make(server__max_body_bytes=100_000)
    start = time.monotonic()
    assert answer_to(world, *pieces).startswith(b"HTTP/1.1 4")
    assert time.monotonic() - start < 4
    assert world.post().status_code == 200


def test_requests_that_wait_on_one_connection_are_few(make):  # noqa: F811
    world = make()
    one = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    assert answer_to(world, one * 3 + one.replace(b"host", b"connection: close\r\nhost")).count(b"HTTP/1.1 200") == 4
    assert answer_to(world, one * 5000).count(b"HTTP/1.1 200") < 10


def test_a_client_that_does_not_read_its_answer_is_left(make):  # noqa: F811
    world = make(server__write_timeout_s=0.3, server__cors_origins=())
    body = json.dumps({"messages": ASK}).encode()
    head = HEAD + b"authorization: Bearer test-key-1\r\ncontent-length: %d\r\n\r\n" % len(body)
    world.small.reply = lambda request: long_answer(30_000_000)
    with closing(connect(world)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(head + body)
        time.sleep(3)
        assert len(rest_of(client)) < 30_000_000
    assert httpx.get(f"{world.url}/v1/models", headers=AUTH).status_code == 200


def long_answer(size: int) -> dict:
    message = {"role": "assistant", "content": "x" * size}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": {}}


# -- bodies -------------------------------------------------------------------------------------------------------


def size_of(text: bytes, step: int) -> JsonSize:
    size = JsonSize()
    for i in range(0, len(text), step):
        size.add(text[i : i + step])
    return size


@pytest.mark.parametrize("step", [1, 7, 65_536])
def test_values_are_counted_outside_of_strings_alone(step, monkeypatch):
    monkeypatch.setattr(json_size, "SMALL", 0)
    monkeypatch.setattr(json_size, "VALUES", -1)
    text = json.dumps({"a": ["x,[{", 'quote " \\', "\\\\", "\\", {"b": 'é,"['}], "c": [[], {}]}).encode()
    size = size_of(text, step)
    assert size.values == sum(character in (b",[{") for character in b'{"":["","","","",{"":""}],"":[[],{}]}')
    assert size.escapes == text.count(b"\\")


def test_marks_in_strings_are_no_values():
    text = json.dumps({"a": "[1,2],{}" * 20_000}).encode()
    for step in (777, 65_536, 1_000_000):
        assert size_of(text, step).values == 1  # the object


def test_small_texts_are_not_counted():
    assert size_of(b"[1,1]" * 1000, 512).values == 0 < size_of(b"[1,1]" * 100_000, 65_536).values


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b'{"messages": [{"role": "user", "content": "x"}], "x": [' + b"[]," * 200_000 + b"1]}", 413, "values"),
        (b'{"messages": [' + b'{"role": "user", "content": ""},' * 60_000 + b'{"role": "user"}]}', 413, "values"),
        (b'{"messages": [' + b'{"role": "user"},' * 12_000 + b'{"role": "user"}]}', 400, "12001 messages"),
        (b'{"messages": [{"role": "user", "content": "' + b"\\n" * 1_200_000 + b'"}]}', 413, "escaped"),
        (b'{"messages": [{"role": "user"}], "x": ' + b"[" * 40_000, 400, "not JSON"),
        (b'{"messages": [{"role": "user"}], "x": ' + b"[" * 200_000, 413, "values"),
        (b'{"messages": [{"role": "user", "content": "' + "é".encode() * 2_100_000 + b'"}]}', 413, "not ASCII"),
        (b'{"messages": [{"role": "user"}]' + b"".join(b',"f%d":0' % i for i in range(1_001)) + b"}", 400, "1002 fields"),
        (b'{"messages": [{"role": "user", "content": "' + b"x" * 200_000 + b'"}, {"role": "x"}]}', 400, "messages[1]"),
        (b"[" + b" " * 200_000 + b"]", 400, "object"),
        (b'{"messages": [{"role": "user", "content": "x"}], "model": "' + b"x" * 600 + b'"}', 400, "length"),
        (b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 100_000 + b"}", 200, ""),
    ],
    ids=[
        "values",
        "messages",
        "many messages",
        "escapes",
        "nesting",
        "deep nesting",
        "not ASCII",
        "fields",
        "one message",
        "list",
        "name of a model",
        "giant number",
    ],
)
def test_what_costs_more_than_its_bytes_is_refused_in_one_line(make, body, status, said):  # noqa: F811
    world = make()
    answer = world.client.post("/v1/chat/completions", content=body)
    assert (answer.status_code, said in answer.text) == (status, True), answer.text[:300]
    assert "\n" not in answer.json().get("error", {}).get("message", "")


def agents_chat(size: int) -> list[dict]:
    """Messages of an agent's long session: calls, and results full of code and of other alphabets."""
    result = 'def f(x):\n\treturn "a" + x  # größer, 大きい\n' * 60
    found: list[dict] = [{"role": "user", "content": "look for the red value"}]
    while len(found) * len(result) < 2 * size:
        call = {"id": f"c{len(found)}", "type": "function", "function": {"name": "look", "arguments": '{"where": "here"}'}}
        found.append({"role": "assistant", "content": None, "tool_calls": [call]})
        found.append({"role": "tool", "tool_call_id": call["id"], "content": f"{len(found)} {result}"})
    return found


def test_two_megabytes_of_an_agent_are_served_by_every_protocol(make):  # noqa: F811
    world = make(small__context_tokens=1_000_000)
    chat = agents_chat(2_000_000)
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    blocks, items = [], []
    for message in chat:
        if message["role"] == "user":
            blocks.append(message)
            items.append(message)
        elif message["role"] == "assistant":
            (call,) = message["tool_calls"]
            used = {"type": "tool_use", "id": call["id"], "name": "look", "input": {"where": "here"}}
            blocks.append({"role": "assistant", "content": [used]})
            items.append({"type": "function_call", "call_id": call["id"], **call["function"]})
        else:
            result = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": message["content"]}
            blocks.append({"role": "user", "content": [result]})
            output = {"call_id": message["tool_call_id"], "output": message["content"]}
            items.append({"type": "function_call_output", **output})
    sent = {
        "/v1/chat/completions": {"messages": chat, "tools": tools},
        "/v1/messages": {"max_tokens": 10, "messages": blocks, "tools": [{"name": "look", "input_schema": {}}]},
        "/v1/responses": {"input": items, "tools": [{"type": "function", "name": "look", "parameters": {}}]},
    }
    for path, body in sent.items():
        answer = world.post(path, body | {"model": "r2v"})
        assert answer.status_code == 200, answer.text[:300]
        asked = world.small.seen[-1]["messages"]
        assert [message.get("content") for message in asked] == [message["content"] for message in chat]


@pytest.mark.parametrize("path", ["/v1/outcomes", "/v1/mode", "/v1/kill", "/v1/cleanup", "/v1/reload"])
def test_what_is_no_step_may_have_a_short_body_alone(make, path):  # noqa: F811
    body = json.dumps({"session_id": "x", "on": False, "a": [[]] * 40_000}).encode()
    answer = make().client.post(path, content=body)
    assert (answer.status_code, "65536 bytes" in answer.text) == (413, True), answer.text[:300]


def test_large_bodies_are_read_as_small_ones_are(monkeypatch):
    body = json.dumps({
        "messages": agents_chat(5_000), "tools": [{"type": "function", "function": {"name": "look"}}],
        "user": "x", "stop": [], "metadata": {"a": [1, {"b": None}]}, "temperature": 0.5, "stream": True,
    }).encode()  # fmt: skip
    small, source = parse(body), json_object(body)
    monkeypatch.setattr("r2v.messages.conversation.SMALL", 10)
    monkeypatch.setattr("r2v.messages.protocol.SMALL", 10)
    assert parse(body) == small
    assert json_object(body) == source == json.loads(body)


# -- bodies of all requests together ------------------------------------------------------------------------------


@contextlib.contextmanager
def unfinished(world, sent: int, *, declared: int | None = None, key: str = "test-key-1"):
    """A request of which so many bytes of its body have come, and no more come."""
    length = b"transfer-encoding: chunked" if declared is None else b"content-length: %d" % declared
    body = b"x" * sent if declared is not None else b"%x\r\n%s\r\n" % (sent, b"x" * sent)
    with closing(connect(world)) as client:
        client.sendall(HEAD + b"authorization: Bearer %s\r\n%s\r\n\r\n" % (key.encode(), length) + body)
        yield client


def ready(world, wanted: int) -> dict:
    """What /ready says once so many bytes of bodies are held; 10 seconds are enough for that."""
    for _ in range(200):
        found = world.client.get("/ready").json()
        if found["body_bytes"] == wanted:
            return found
        time.sleep(0.05)
    raise AssertionError(found)


def test_bodies_that_do_not_fit_beside_the_others_are_a_503_before_they_are_read(make, capfd, monkeypatch):  # noqa: F811
    monkeypatch.setenv("TWO_KEYS", "test-key-1,test-key-2")
    world = make(server__max_body_bytes=100_000, server__max_bodies_bytes=200_000, server__key_env="TWO_KEYS")
    other = {"authorization": "Bearer test-key-2"}
    assert world.post().status_code == 200 and ready(world, 0)["ready"]
    with unfinished(world, 10, declared=90_000), unfinished(world, 80_000):
        assert ready(world, 170_000)["ready"]
        with unfinished(world, 10, declared=20_000) as one:  # more than one key may take
            answer = one.recv(65536)
            assert answer.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in answer.lower()
        assert ready(world, 170_000)["ready"]  # others still find room
        assert world.client.post("/v1/chat/completions", json={"messages": ASK}, headers=other).status_code == 200
        with unfinished(world, 40_000, key="test-key-2") as one:
            assert one.recv(65536).startswith(b"HTTP/1.1 503 ")
        found = ready(world, 170_000)
        assert not found["ready"] and "max_bodies_bytes" in found["problem"]
        lines = world.client.get("/metrics", headers=AUTH).text.splitlines()
        assert "r2v_refused_bodies_total 2.0" in lines and "r2v_body_bytes 170000.0" in lines
    (logged,) = [line for line in capfd.readouterr().err.splitlines() if "max_bodies_bytes" in line]
    assert "170000" in logged and "test-key" not in logged
    assert ready(world, 0)["body_bytes"] == 0
    assert world.post().status_code == 200 and world.post(stream=True).status_code == 200
    ready(world, 0)


def test_what_one_request_may_have_fits_beside_another():
    with pytest.raises(SettingsError, match="max_bodies_bytes: must be at least twice"):
        validated(ServerSettings, {"max_body_bytes": 200_000_000})


def test_long_work_is_done_one_after_the_other_and_short_work_at_once():
    running, most = 0, 0

    def work() -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.01)
        running -= 1
        return threading.current_thread().name

    async def run() -> list[str]:
        return await asyncio.gather(*(in_slices(size, work) for size in (LARGE + 1,) * 8), in_slices(LARGE, work))

    *threads, last = asyncio.run(run())
    assert len(set(threads)) == 1 and last == threading.current_thread().name != threads[0]
    assert most <= 2


def test_long_texts_and_images_are_served(make):  # noqa: F811
    world = make()
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 3_000_000}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "word " * 60_000}, image]}]
    assert world.post(messages=messages).status_code == 200
    source = {"type": "base64", "media_type": "image/png", "data": "A" * 3_000_000}
    messages = [{"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": "look"}]}]
    assert world.post("/v1/messages", {"max_tokens": 10, "messages": messages}).status_code == 200


def test_a_goal_behind_many_blocks_is_found_in_linear_time():
    block = "<system-reminder>x</system-reminder>\n"
    assert own_words(block * 3 + "look") == "look"
    start = time.process_time()
    for text in ("<" + "context" * 500_000, block * 100_000, "<context>" * 300_000, "<environment-" + "-" * 3_000_000):
        own_words(text)
    assert time.process_time() - start < 1


def test_long_conversations_have_short_fingerprints_that_differ():
    texts = ["x" * 5_000_000, "x" * 5_000_001, "y" + "x" * 4_999_999, "x" * 4_999_999 + "y"]
    bodies = [json.dumps({"messages": [{"role": "user", "content": text}]}).encode() for text in texts]
    assert len({fingerprint(parse(body), "key") for body in bodies}) == 4


# -- models -------------------------------------------------------------------------------------------------------


def drawn_from(answer: list[bytes], *, pause: float = 0.0, stream: bool = False, **changes) -> object:
    """What a client makes of a server that sends these bytes: an error, or the draw; and how long that took."""

    serving: list[asyncio.Task] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for piece in answer:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def draw() -> object:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = make_client(ClientSettings(base_url=url, model="m", retries=0, **changes), "small")
        request = parse(b'{"messages": [{"role": "user", "content": "x"}]}')
        try:
            if stream:
                return [part async for part in client.stream(request, logprobs=False, authors={})][-1]
            return await client.draw(request, 1)
        except ModelError as error:
            return error
        finally:
            await client.close()
            server.close()
            await asyncio.gather(*serving)

    return asyncio.run(draw())


OK = b"HTTP/1.1 200 OK\r\nconnection: close\r\n"
EVENTS = OK + b"content-type: text/event-stream\r\n\r\n"
WHOLE = json.dumps(long_answer(10)).encode()
TEXT_EVENT = b'data: {"choices": [{"index": 0, "delta": {"content": "' + b"x" * 60 + b'"}}]}\n\n'
CALL = b'{"id": "a", "function": {"name": "look", "arguments": "{}"}}'
CALLED = b'{"choices": [{"message": {"content": null, "tool_calls": [%s]}}], "usage": {}}'
BOMB = gzip.compress(b" " * 100_000_000 + WHOLE)


@pytest.mark.parametrize(
    ("answer", "changes", "said"),
    [
        ([OK + b"\r\n", *[b" "] * 100], {"pause": 0.05, "total_s": 0.5}, "no answer in time"),
        ([EVENTS, *[b":\n"] * 100], {"pause": 0.05, "total_s": 0.5, "stream": True}, "the stream broke (Timeout"),
        ([OK + b"\r\n", *[b" " * 100_000] * 50], {"max_answer_bytes": 1_000_000}, "more than 1000000 bytes"),
        ([EVENTS, *[b"data: " + b" " * 100_000] * 50], {"max_answer_bytes": 1_000_000, "stream": True}, "more than 1000000"),
        ([EVENTS, *[b": x\n" * 10_000] * 50], {"max_answer_bytes": 1_000_000, "stream": True}, "more than 1000000 bytes"),
        ([OK + b"content-encoding: gzip\r\n\r\n" + BOMB], {"max_answer_bytes": 1_000_000}, "more than 1000000 bytes"),
        ([OK + b"content-encoding: br\r\n\r\nxxx"], {}, "packed as br"),
        ([OK + b"content-encoding: gzip\r\n\r\nxxx"], {}, "cannot be unpacked"),
        ([b"HTTP/1.1 400 Bad\r\n\r\n", *[b" " * 100_000] * 50], {"max_answer_bytes": 1_000_000}, "HTTP 400"),
        ([OK + b"\r\n[" + b"[]," * 3_000_000 + b"1]"], {}, "more than 1500000 values"),
        ([OK + b"\r\n" + WHOLE.replace(b"xxx", b"x" * 5_000)], {"max_text_bytes": 5_000}, "more than 5000 bytes of text"),
        ([EVENTS, TEXT_EVENT * 100], {"max_text_bytes": 5_000, "stream": True}, "more than 5000 bytes of text"),
        ([EVENTS, b'data: "%s"\n' % (b"x" * 5_000)], {"max_text_bytes": 5_000, "stream": True}, "more than 5000 bytes"),
        ([EVENTS, b"data: " + b"x" * 5_000], {"max_text_bytes": 5_000, "stream": True}, "more than 5000 bytes"),  # no end
        ([OK + b"\r\n" + CALLED % b",".join([CALL] * 257)], {}, "more than 256 calls"),
        ([OK + b"\r\n[" + b"[]," * 150_000 + b"1]"], {}, "more than 50000 values"),
        ([OK + b"\r\n" + b"[" * 100_000], {}, "not JSON"),
        ([OK + b'\r\n{"choices": [' + b'{"message": {}},' * 100_000 + b'{"message": {}}]}'], {}, "more than 128 choices"),
    ],
    ids=[
        "drip", "drip of events", "large", "line", "events", "bomb", "br", "garbled", "error", "values", "text",
        "streamed text", "event", "event without end", "calls", "too many to read", "nesting", "choices",
    ],
)  # fmt: skip
def test_an_answer_without_end_ends_as_one_line(answer, changes, said):
    start = time.monotonic()
    found = drawn_from(answer, **changes)
    assert isinstance(found, ModelError) and said in str(found) and "\n" not in str(found), found
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("kind", ["chat", "messages"])
def test_an_answer_that_is_too_long_may_have_to_be_paid(kind):
    """Else a model that answers too much would cost nothing."""
    whole = WHOLE if kind == "chat" else json.dumps({"type": "message", "content": [], "usage": {}}).encode()
    changes = {} if kind == "chat" else {"provider": "anthropic"}
    found = drawn_from([OK + b"\r\n", whole.replace(b"{", b"{" + b" " * 3_000, 1)], max_answer_bytes=3_000, **changes)
    assert isinstance(found, ModelError) and found.paid and "3000 bytes" in str(found)


def test_a_field_that_a_model_refuses_is_named_among_many():
    body = {f"f{i}": i for i in range(900)} | {"a.b": 1}
    assert said_of({"error": {"message": "unknown field 'f7' of the request"}}, body) == (" because of `f7`", None)
    assert said_of({"error": {"message": "f899: no such field"}}, body) == (" because of `f899`", None)
    assert said_of({"error": {"message": "of f8, no field is known"}}, body) == ("", None)


def test_arguments_of_many_values_are_kept_as_text_and_long_texts_are_read():
    dense, long = json.dumps({"a": [[]] * 60_000}), json.dumps({"content": 'x = [1, {"a": 2}]\n' * 20_000})
    assert object_of(dense) == {"arguments": dense}
    assert object_of("[" * 90_000) == {"arguments": "[" * 90_000}
    assert object_of(long) == json.loads(long)


def test_packed_answers_are_unpacked():
    for packed in (gzip.compress(WHOLE), zlib.compress(WHOLE)):
        kind = b"gzip" if packed[:1] == b"\x1f" else b"deflate"
        found = drawn_from([OK + b"content-encoding: %s\r\n\r\n" % kind, packed[:10], packed[10:]])
        assert found.replies[0].choice["message"]["content"] == "x" * 10


def test_streams_of_many_small_pieces_are_put_together_again():
    chunk = {"choices": [{"index": 0, "delta": {"content": "ab"}}]}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    event = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    found = drawn_from(
        [EVENTS, event[:20], event[20:] + event * 49_999, b"data: " + json.dumps(end).encode() + b"\n"], stream=True
    )
    assert found.choice["message"]["content"] == "ab" * 50_000


def test_long_lists_of_log_probabilities_are_read_as_short_ones_are():
    token: dict = {"token": "x", "logprob": -0.5, "bytes": [120]}
    token["top_logprobs"] = [dict(token)] * 2
    for count in (3, 20_000):
        choice = {**long_answer(10)["choices"][0], "logprobs": {"content": [token] * count}}
        body = json.dumps({"choices": [choice], "usage": {}}).encode()
        client = make_client(ClientSettings(base_url="http://x", model="m"), "small")
        read, (likely,) = client.decoded(body)
        assert likely == Likelihood.of(choice, None)
        assert (likely.tokens, likely.logp) == (count, -0.5 * count) and likely.entropy > 0
        assert json.loads(msgspec.json.encode(read)) == json.loads(body)  # whole, for a client that wants them
