"""What one client may take from all others: connections, bytes and time, with real sockets and without a key."""

from __future__ import annotations

import json
import socket
import time
from contextlib import closing

import httpx
import pytest

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
