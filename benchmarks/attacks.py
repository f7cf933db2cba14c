"""What one hostile client, or one hostile model, makes all others wait, and what memory it takes.

`python benchmarks/attacks.py [NAME ...]` starts the gateway and its models as processes of their own. A probe asks for
/health and for a small step 50 times a second (`--rate`: fewer on a busy machine), first alone, then beside each attack,
which another process makes four times a second. Printed are the probe's waits in milliseconds, those of them in which the
gateway computed ("own": all its threads together; the rest is other work on the machine), and the gateway's memory.
Where the own part is over 50 ms more than idle, the attack is tried again, twice; where it stays so, the status is 1.
NAME: a part of an attack's name.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import io
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import numpy as np
from serving import free_port, memory_mb, wait_for

KEY = "sk-attacks-0123456789abcdef"
HEAD = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n".encode()
ALLOWED_MS = 50.0
SECONDS = 4.0
PAUSE = 0.25
TEACHER = "r2v:teacher"
"""Which speaks the Messages protocol here; the SLM speaks Chat Completions."""
RATE = 50.0
BODY = 9_900_000
"""Bytes of the largest bodies: just below what the gateway takes."""
Attack = Callable[[int, int], Awaitable[None]]
"""(port of the gateway, number of the repetition)."""
Waits = list[tuple[float, float]]
"""Of each request: (milliseconds, those of them in which the gateway computed)."""


# -- the models ---------------------------------------------------------------------------------------------------------


def completion(arguments: object = None, name: str = "look", content: str | None = None, logprobs: int = 5) -> bytes:
    """An answer with four choices."""
    top = [{"token": "x", "logprob": -0.2 - i, "bytes": [120]} for i in range(5)]
    listed = [{"token": "x", "logprob": -0.2, "bytes": [120], "top_logprobs": top}] * logprobs
    text = json.dumps({"where": "here"} if arguments is None else arguments)
    calls = [{"id": "a", "type": "function", "function": {"name": name, "arguments": text}}]
    message = {"role": "assistant", "content": content, "tool_calls": [] if content else calls}
    choice = {"message": message, "finish_reason": "stop", "logprobs": {"content": listed}}
    usage = {"prompt_tokens": 30, "completion_tokens": 4, "total_tokens": 34}
    return json.dumps({"id": "x", "choices": [{**choice, "index": i} for i in range(4)], "usage": usage}).encode()


def message(arguments: object, calls: int = 1) -> bytes:
    """An answer of the Messages protocol."""
    blocks = [{"type": "tool_use", "id": f"c{i}", "name": "look", "input": {"a": arguments}} for i in range(calls)]
    head = {"id": "x", "type": "message", "role": "assistant", "model": "m", "stop_reason": "tool_use"}
    return json.dumps({**head, "content": blocks, "usage": {"input_tokens": 30, "output_tokens": 4}}).encode()


def http(body: bytes, more: bytes = b"", status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 " + status + b"\r\ncontent-type: application/json\r\n"
    return head + more + b"content-length: %d\r\n\r\n" % len(body) + body


def answers() -> dict[str, bytes]:
    """What the models answer to a request that holds `attack-NAME`."""
    rows = [{"a": i, "b": [i]} for i in range(3000)]
    error = {"error": {"message": "unknown field 'f7' of the request", "type": "invalid_request_error", "param": "f7"}}
    thoughts = [{"type": "thinking", "thinking": "x", "signature": f"s{k}"} for k in range(12_000)]
    many: Any = json.loads(completion())
    for choice in many["choices"]:
        choice["message"]["tool_calls"] = choice["message"]["tool_calls"] * 250
    unending = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: "
    return {
        "pattern": http(completion({"a": "a" * 30 + "!"})),
        "unique": http(completion({"a": rows})),
        "nested": http(completion({"a": "x" * 1000})),
        "dense-call": http(completion([[]] * 500_000)),
        "long-call": http(completion({"command": "echo 'a b' " * 30_000})),
        "logprobs": http(completion(logprobs=4_000)),
        "long-answer": http(completion(content="word " * 1_000_000)),
        "dense-answer": http(b"[" + b"[]," * 8_000_000 + b"1]"),
        "choices": http(b'{"choices": [' + b'{"message": {"content": "x"}},' * 60_000 + b'{"message": {}}]}'),
        "many-calls": http(json.dumps(many).encode()),
        "lists": http(completion([[]] * 200_000)),
        "escapes": http(completion(content="x\n" * 300_000)),
        "emoji": http(json.dumps(json.loads(completion(content="a\U0001f600" * 190_000)), ensure_ascii=False).encode()),
        "long-logprobs": http(completion(logprobs=11_000)),
        "refusal": http(json.dumps(error).encode(), status=b"400 Bad Request"),
        "long-refusal": http(b"[" + b"[]," * 8_000_000 + b"1]", status=b"400 Bad Request"),
        "thinking": http(json.dumps({**json.loads(message(1)), "content": thoughts}).encode()),
        "message": http(message([[]] * 24_000)),
        "message-calls": http(message([[]] * 40, 250)),
        "bomb": http(gzip.compress(b" " * 300_000_000), b"content-encoding: gzip\r\n"),
        "endless-line": unending + b"x" * 100_000_000,
        "text-events": unending
        + b'{"type":"message_start","message":{"content":[],"usage":{}}}\n\n'
        + b'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
        + b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"x"}}\n\n' * 300_000,
        "small-events": unending + b'{"choices":[{"delta":{"content":"x"}}]}\n\ndata: ' * 500_000,
    }


def models(port: int) -> None:
    plain, hostile = {"completions": http(completion()), "messages": http(message("here"))}, answers()
    os.nice(5)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
                body = await reader.readexactly(length)
                place = body.rfind(b"attack-")
                name = "" if place < 0 else body[place + 7 : place + 40].split(b'"')[0].decode()
                if name == "drip":
                    writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
                    for _ in range(1000):
                        writer.write(b" ")
                        await writer.drain()
                        await asyncio.sleep(0.01)
                path = head.split(b" ", 2)[1].rsplit(b"/", 1)[-1].decode()
                answer = memoryview(hostile.get(name, plain[path]))
                for i in range(0, len(answer), 65_536):  # the probe's answers come in between
                    writer.write(answer[i : i + 65_536])
                    await writer.drain()
                    await asyncio.sleep(0)
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", port, limit=2**25)
        await server.serve_forever()

    asyncio.run(run())


def gateway(port: int, to: int, folder: str, stream: str) -> None:
    from r2v.gateway.serve import serve
    from r2v.gateway.settings import GatewaySettings
    from r2v.runtime.settings import validated

    os.environ["R2V_API_KEY"] = KEY
    model = {
        "base_url": f"http://127.0.0.1:{to}/v1", "model": "m", "price": {"input": 1, "output": 1},
        "context_tokens": 10_000_000, "breaker_failures": 1_000_000, "retries": 0,
    }  # fmt: skip
    teacher = model | {"provider": "anthropic", "base_url": f"http://127.0.0.1:{to}"}
    raw = {
        "version": 1, "models": {"slm": model, "teacher": teacher}, "server": {"port": port},
        "store": {"path": f"{folder}/{stream}.db"}, "route": {"stream": stream},
    }  # fmt: skip
    serve(validated(GatewaySettings, raw), mock=False, announce=lambda url, admin_url: None)


# -- attacks without a key ----------------------------------------------------------------------------------------------


async def sent(port: int, *pieces: bytes, pause: float = 0.0, wait: float = 0.5) -> None:
    """Send as long as the gateway takes it, then wait for a while."""
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                if pause:
                    await asyncio.sleep(pause)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await reader.read()
        finally:
            writer.close()


async def many(count: int, one: Callable[[], Awaitable[None]]) -> None:
    await asyncio.gather(*(one() for _ in range(count)))


CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
WITH_KEY = HEAD + b"transfer-encoding: chunked\r\n\r\n"
CONNECTIONS: dict[str, Attack] = {
    "endless header": lambda port, i: sent(port, b"GET / HTTP/1.1\r\na: ", *[b"x" * 1_000_000] * 83),
    "many headers": lambda port, i: sent(port, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 500_000),
    "endless address": lambda port, i: sent(port, b"GET /", *[b"x" * 1_000_000] * 83),
    "half headers": lambda port, i: many(500, lambda: sent(port, b"GET / HTTP/1.1\r\na", wait=3)),
    "connections that say nothing": lambda port, i: many(3000, lambda: sent(port, wait=3)),
    "pipelined requests": lambda port, i: sent(port, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 30_000),
    "extension of a chunk": lambda port, i: sent(port, CHUNKED + b"1;", *[b"x" * 1_000_000] * 40),
    "endless trailer": lambda port, i: sent(port, CHUNKED + b"0\r\na: ", *[b"x" * 1_000_000] * 40),
    "endless body without a key": lambda port, i: sent(port, CHUNKED, *[b"ffff\r\n" + b"x" * 65535 + b"\r\n"] * 2000),
    "chunks of one byte": lambda port, i: sent(port, WITH_KEY, *[b"1\r\nx\r\n" * 100_000] * 30),
    "slow bodies": lambda port, i: many(300, lambda: sent(port, WITH_KEY, *[b"1\r\nx\r\n"] * 30, pause=0.1)),
}


# -- attacks with a key -------------------------------------------------------------------------------------------------


async def post(port: int, body: bytes, path: str = "chat/completions", headers: dict[str, str] | None = None) -> None:
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        timeout, headers = aiohttp.ClientTimeout(total=10), {"authorization": f"Bearer {KEY}", **(headers or {})}
        url = f"http://127.0.0.1:{port}/v1/{path}"
        # Of a large body aiohttp wants a file, which it sends in pieces.
        async with (
            aiohttp.ClientSession(headers=headers, timeout=timeout) as client,
            client.post(url, data=io.BytesIO(body)) as got,
        ):
            await got.read()


def asked(name: str, i: int, schema: object = None, **more: object) -> bytes:
    """A request to which the models answer as `answers` says."""
    parameters = {"type": "object", "properties": {"a": {} if schema is None else schema}, "title": str(i)}
    tools = [{"type": "function", "function": {"name": "look", "parameters": parameters}}]
    messages = [{"role": "user", "content": f"look {i}"}, {"role": "user", "content": f"attack-{name}"}]
    return json.dumps({"messages": messages, "tools": tools, **more}).encode()


def said(*messages: object, **more: object) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "look"}, *messages], **more}).encode()


def anthropic(*blocks: object, **more: object) -> bytes:
    """Of the Messages protocol: what a user sends."""
    return json.dumps(
        {"max_tokens": 9, "messages": [{"role": "user", "content": blocks}], **more}, ensure_ascii=False
    ).encode()


def used(i: int) -> bytes:
    """Of the Messages protocol: calls, and results with pictures."""
    call = {"type": "tool_use", "id": "c", "name": "look", "input": {"a": [[]] * 200}}
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 80_000}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "x"}, image]}
    turns = [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}] * 100
    first = {"role": "user", "content": f"look {i}"}
    return json.dumps({"model": TEACHER, "max_tokens": 9, "messages": [first, *turns]}).encode()


def step(text: str, arguments: str = "{}", name: str = "look") -> list[object]:
    call = {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}
    return [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": text}]


def nested(keyword: str, levels: int) -> object:
    found: object = {"type": "null"}
    for _ in range(levels):
        found = {keyword: [found, found]}
    return found


def doubling(levels: int) -> object:
    parts: dict[str, object] = {f"l{i}": {"anyOf": [{"$ref": f"#/properties/a/$defs/l{i + 1}"}] * 2} for i in range(levels)}
    return {"$defs": {**parts, f"l{levels}": {"type": "null"}}, "$ref": "#/properties/a/$defs/l0"}


def large_tools(i: int) -> bytes:
    """Four megabytes, others at each repetition."""
    tools = [
        {"type": "function", "function": {"name": f"t{k}", "description": f"{i} " + "word " * 4000, "parameters": {}}}
        for k in range(200)
    ]
    return said(tools=tools)


def wide_tools(i: int) -> bytes:
    schema = {f"k{k}": {"type": "string", "description": f"{i}"} for k in range(20_000)}
    return asked("pattern", i, {"properties": schema})


def items(calls: int, tools: int) -> bytes:
    """Of the Responses protocol."""
    offered = [{"type": "function", "name": f"tool{k}", "parameters": {}} for k in range(tools)]
    made = [
        {"type": "function_call", "call_id": f"c{k}", "name": f"tool{k % tools}", "arguments": "{}"} for k in range(calls)
    ]
    return json.dumps({"model": "r2v", "input": [{"role": "user", "content": "x"}, *made], "tools": offered}).encode()


def kept(i: int) -> bytes:
    """Of the Responses protocol: a long input that later requests may refer to."""
    return json.dumps({"model": "r2v", "input": [{"role": "user", "content": f"{i} " + LONG}]}).encode()


WIDE = "a\U0001f600" * 750_000
"""Characters of one byte and of four, which is the slowest text: 3 MB that are not ASCII."""
NEAR = " ".join(f"placf{k}" for k in range(4_000))
LONG = "word " * (BODY // 5)
BODIES: dict[str, Callable[[int], bytes]] = {
    "schema: backtracking pattern": lambda i: asked("pattern", i, {"pattern": "^(a+)+$"}),
    "schema: uniqueItems": lambda i: asked("unique", i, {"uniqueItems": True}),
    "schema: nested anyOf": lambda i: asked("nested", i, nested("anyOf", 14)),
    "schema: doubling references": lambda i: asked("nested", i, doubling(40)),
    "schema: enum": lambda i: asked("unique", i, {"items": {"enum": [{"a": k} for k in range(8_000)]}}),
    "schema: 20,000 properties": wide_tools,
    "schema: call of 500,000 lists": lambda i: asked("dense-call", i),
    "tools of 4 MB, always others": large_tools,
    "text of 10 MB": lambda i: said({"role": "user", "content": LONG}),
    "first text of 10 MB": lambda i: json.dumps({"messages": [{"role": "user", "content": LONG}]}).encode(),
    "image of 10 MB": lambda i: said(
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * BODY}}]}
    ),
    "900,000 escapes": lambda i: said({"role": "user", "content": "\n" * 900_000}),
    "9 MB of escapes": lambda i: said({"role": "user", "content": "\n" * 4_500_000}),
    "3 million lists": lambda i: said(x=[[]] * 3_000_000),
    "90,000 values": lambda i: said(tools=None, metadata={"a": [[]] * 90_000}),
    "250 kB of lists": lambda i: said(metadata={"a": [[]] * 60_000}),
    "10,000 messages": lambda i: said(*[{"role": "user", "content": "look"}] * 9_990),
    "10,000 calls": lambda i: said(*step("seen " * 20, '{"where": "here"}') * 4_990),
    "20,000 calls in one message": lambda i: said(
        {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{}"}}] * 20_000}
    ),
    "calls of 100 kB of lists": lambda i: said(*(step("x", "[" + "[]," * 33_000 + f"{i}]") * 60)),
    "500 calls of 19 kB of lists": lambda i: said(*(step("x", "[" + "[]," * 6_300 + f"{i}]") * 500)),
    "calls of 100 kB of lists for another protocol": lambda i: said(
        *(step("x", "[" + "[]," * 33_000 + f"{i}]") * 60), model=TEACHER
    ),
    "long texts for another protocol": lambda i: said(*(step("seen \n" * 2_000) * 300), model=TEACHER),
    "slow text": lambda i: json.dumps({"messages": [{"role": "user", "content": WIDE}]}, ensure_ascii=False).encode(),
    "slow texts": lambda i: json.dumps(
        {"messages": [{"role": "user", "content": WIDE[:3_000]}] * 400}, ensure_ascii=False
    ).encode(),
    "10 MB of slow text": lambda i: json.dumps(
        {"messages": [{"role": "user", "content": WIDE * 2}]}, ensure_ascii=False
    ).encode(),
    "900 fields that a model refuses": lambda i: asked("refusal", i, **{f"f{k}": k for k in range(900)}),
    "50,000 fields": lambda i: said(**{f"f{k}": 0 for k in range(49_000)}),
    "schema: one deep value": lambda i: asked("unique", i, {"enum": [[[[]] * 40] * 400]}),
    "schema: 40,000 names": lambda i: asked("unique", i, {"required": [f"k{k}" for k in range(40_000)]}),
    "schemas of 20,000 objects": lambda i: said(tools=[
        {"type": "function", "function": {"name": f"t{k}", "parameters": {"properties": {f"p{i}": {"not": {}}} }}}
        for k in range(4_500)
    ]),
    "parts": lambda i: said({"role": "user", "content": [{"type": "text", "text": "x"}] * 30_000}),
    "near-miss words": lambda i: said(*step(NEAR) * 20),
    "blocks before the goal": lambda i: json.dumps(
        {"messages": [{"role": "user", "content": "<" + "context" * (BODY // 10)}]}
    ).encode(),
    "nesting": lambda i: b'{"messages": [{"role": "user", "content": "x"}], "x": ' + b"[" * 5_000_000,
    "giant number": lambda i: b'{"messages": [{"role": "user", "content": "x"}], "x": ' + b"9" * 5_000_000 + b"}",
    "user of 10 MB": lambda i: said(metadata={"user_id": "session_" * (BODY // 9)}),
    "answer: call of 300 kB": lambda i: asked("long-call", i),
    "answer: log-probabilities": lambda i: asked("logprobs", i),
    "answer: 20 MB of text": lambda i: asked("long-answer", i),
    "answer: 24 MB of lists": lambda i: asked("dense-answer", i),
    "answer: 60,000 choices": lambda i: asked("choices", i),
    "answer: 1,000 calls": lambda i: asked("many-calls", i),
    "answer: escapes": lambda i: asked("escapes", i),
    "answer: slow text": lambda i: asked("emoji", i),
    "answer: text of 1 MB as a stream": lambda i: asked("escapes", i, stream=True),
    "answer: 14 MB of log-probabilities": lambda i: asked("long-logprobs", i, logprobs=True),
    "answer: an error of 24 MB": lambda i: asked("long-refusal", i),
    "answer: packed 300 MB": lambda i: asked("bomb", i),
    "answer: a byte now and then": lambda i: asked("drip", i),
    "answer: endless line of a stream": lambda i: asked("endless-line", i, stream=True, model="r2v:slm"),
    "answer: small events": lambda i: asked("small-events", i, stream=True, model="r2v:slm"),
    "answer: small events of another protocol": lambda i: asked("text-events", i, stream=True, model=TEACHER),
}  # fmt: skip
EARLY = ("answer: endless line of a stream", "answer: small events")
"""Streams of the SLM, which only a gateway with `route.stream: early` asks for."""
OTHERS: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "messages: text of 10 MB": (
        "messages", lambda i: json.dumps({"max_tokens": 9, "messages": [{"role": "user", "content": LONG}]}).encode(),
    ),
    "messages: slow text": ("messages", lambda i: anthropic({"type": "text", "text": WIDE})),
    "messages: 100 calls and pictures": ("messages", used),
    "messages: answer: calls of lists": (
        "messages", lambda i: anthropic({"type": "text", "text": f"{i} attack-lists"}, stream=bool(i % 2)),
    ),
    "messages: answer: lists of its own": (
        "messages", lambda i: anthropic({"type": "text", "text": f"{i} attack-message"}, model=TEACHER),
    ),
    "messages: answer: calls of its own": (
        "messages", lambda i: anthropic({"type": "text", "text": f"{i} attack-message-calls"}, model=TEACHER),
    ),
    "messages: answer: 12,000 thoughts": (
        "messages", lambda i: anthropic({"type": "text", "text": f"{i} attack-thinking"}, model=TEACHER),
    ),
    "chat: 8,000 results for another protocol": (
        "chat/completions",
        lambda i: said(*[{"role": "tool", "tool_call_id": f"{k}", "content": "x"} for k in range(8_000)], model=TEACHER),
    ),
    "responses: instructions of 10 MB in each event": (
        "responses",
        lambda i: json.dumps({"model": "r2v", "instructions": LONG, "input": f"look {i}", "stream": True}).encode(),
    ),
    "chat: answer of another protocol": ("chat/completions", lambda i: asked("message-calls", i, model=TEACHER)),
    "messages: tokens of 10 MB": ("messages/count_tokens", lambda i: anthropic({"type": "text", "text": LONG})),
    "outcomes: 100,000 values": ("outcomes", lambda i: json.dumps({"session_id": "x", "a": [[]] * 100_000}).encode()),
    "decision: text of 10 MB": ("decision", lambda i: said({"role": "user", "content": LONG})),
    "responses: input of 10 MB that is kept": ("responses", kept),
    "responses: 8,000 calls of 4,000 tools": ("responses", lambda i: items(8_000, 4_000)),
    "responses: 6,000 calls of 2,000 tools": ("responses", lambda i: items(6_000, 2_000)),
}  # fmt: skip


async def unread(port: int, i: int) -> None:
    """Ask for long answers and read none of them."""
    body = asked("long-answer", i)
    await many(4, lambda: sent_unread(port, HEAD + b"content-length: %d\r\n\r\n" % len(body) + body))


async def sent_unread(port: int, request: bytes) -> None:
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(request)
        await asyncio.sleep(3)
        writer.close()


def posting(make: Callable[[int], bytes], path: str) -> Attack:
    bodies = [b"", b""]

    async def attack(port: int, i: int) -> None:
        bodies[i % 2] = bodies[i % 2] or make(i)  # made by turns: making them is work, too
        await post(port, bodies[i % 2], path)

    return attack


async def together(port: int, i: int) -> None:
    """Many large requests at once."""
    body = said({"role": "user", "content": f"{i} " + LONG[:2_000_000]})
    await many(12, lambda: post(port, body))


async def unlike(port: int, i: int) -> None:
    """Always another session, with a long name, and tools that nobody had before."""
    tool = {"type": "function", "function": {"name": f"t{i}", "parameters": {"title": f"{i}" * 100}}}
    body = said(tools=[tool] * 200)
    await many(3, lambda: post(port, body, headers={"x-session-id": f"{time.perf_counter()}" + "x" * 8_000}))


ATTACKS: dict[str, Attack] = {
    **CONNECTIONS,
    "12 requests of 2 MB at once": together,
    "sessions with long names": unlike,
    **{name: posting(make, "chat/completions") for name, make in BODIES.items()},
    **{name: posting(make, path) for name, (path, make) in OTHERS.items()},
    "answers that are not read": unread,
}


def attacker(name: str, port: int) -> None:
    """The attack, again and again; the probe and the gateway come first where there are few processors."""
    os.nice(10)
    with contextlib.suppress(ValueError, ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)

    async def run() -> None:
        for i in range(10**9):
            await ATTACKS[name](port, i)
            await asyncio.sleep(PAUSE)

    asyncio.run(run())


# -- the probe ----------------------------------------------------------------------------------------------------------


async def waits(port: int, process: int, seconds: float, rate: float) -> Waits:
    """What each request of the probe waited; a failed one counts as ten seconds."""
    found: Waits = []
    small = json.dumps({"messages": [{"role": "user", "content": "look for the red value"}]}).encode()
    timeout, headers = aiohttp.ClientTimeout(total=10), {"authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", timeout=timeout, headers=headers) as client:

        async def one(k: int, at: float) -> None:
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            start, used = time.perf_counter(), computed(process)
            try:
                asking = client.get("/health") if k % 2 else client.post("/v1/chat/completions", data=small)
                async with asking as response:
                    response.raise_for_status()
                    await response.read()
                wait = 1000 * (time.perf_counter() - start)
                found.append((wait, min(wait, computed(process) - used)))
            except (aiohttp.ClientError, TimeoutError) as error:
                print("probe:", repr(error)[:200], file=sys.stderr)
                found.append((10_000.0, 10_000.0))

        begin = time.perf_counter() + 0.1
        await asyncio.gather(*(one(k, begin + k / rate) for k in range(int(seconds * rate))))
    return found


def computed(process: int) -> float:
    """Milliseconds of processor time that a process has used (Linux: its clock, by `clock_getcpuclockid`)."""
    return 1000 * time.clock_gettime((~process << 3) | 2)


def row(name: str, found: Waits, rest: str) -> str:
    wall, own = np.array(found).T
    return f"{name:46}{np.percentile(wall, 99):9.1f}{wall.max():9.1f}{own.max():9.1f}  {rest}"


def worst(found: Waits) -> float:
    """Milliseconds that the gateway computed at most while one request waited."""
    return max(own for _, own in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each attack")
    parser.add_argument("--rate", type=float, default=RATE, help="requests a second of the probe")
    args = parser.parse_args()
    chosen = [name for name in ATTACKS if not args.names or any(part in name for part in args.names)]
    spawn = multiprocessing.get_context("spawn")
    late = []
    for stream in ("hold", "early"):
        if names := [name for name in chosen if (name in EARLY) == (stream == "early")]:
            late += attacked(stream, names, args.seconds, args.rate, spawn)
    if late:
        sys.exit(f"over {ALLOWED_MS:g} ms more than idle: {'; '.join(late)}")


def attacked(
    stream: str, names: list[str], seconds: float, rate: float, spawn: multiprocessing.context.SpawnContext
) -> list[str]:
    """The attacks that a gateway with this `route.stream` does not withstand."""
    ports = [free_port(), free_port()]
    with tempfile.TemporaryDirectory() as folder:
        upstream = spawn.Process(target=models, args=(ports[1],), daemon=True)
        served = spawn.Process(target=gateway, args=(ports[0], ports[1], folder, stream), daemon=True)
        for process in (upstream, served):
            process.start()
        for port in ports:
            wait_for(port)
        try:
            return run(ports[0], served.pid or 0, names, seconds, rate, spawn)
        finally:
            os.kill(served.pid or 0, signal.SIGTERM)
            served.join(5)
            upstream.terminate()


def run(
    port: int, process: int, chosen: list[str], seconds: float, rate: float, spawn: multiprocessing.context.SpawnContext
) -> list[str]:
    asyncio.run(waits(port, process, 2, rate))
    idle = min((asyncio.run(waits(port, process, max(seconds, 4), rate)) for _ in range(3)), key=worst)
    print(f"{'':46}{'p99':>9}{'worst':>9}{'own':>9}  memory before, after (MB)")
    print(row("idle", idle, f"{memory_mb(process):6.0f}"), flush=True)
    late = []
    for name in chosen:
        before, tries = memory_mb(process), []
        while len(tries) < 3 and not any(worst(found) <= worst(idle) + ALLOWED_MS for found in tries):
            attacking = spawn.Process(target=attacker, args=(name, port), daemon=True)
            attacking.start()
            time.sleep(1.5)  # its imports
            tries.append(asyncio.run(waits(port, process, seconds, rate)))
            attacking.kill()
            attacking.join()
            time.sleep(0.5)
        best = min(tries, key=worst)
        tried = f"  (best of {len(tries)})" if len(tries) > 1 else ""
        print(row(name, best, f"{before:6.0f} {memory_mb(process):6.0f}{tried}"), flush=True)
        if worst(best) > worst(idle) + ALLOWED_MS:
            late.append(name)
    return late


if __name__ == "__main__":
    main()
