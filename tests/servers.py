"""Real servers for the gateway's tests: made-up models that speak the protocol, with faults on demand, and the gateway."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from r2v.clients.mock import MockModel, complete
from r2v.gateway.app import build_app
from r2v.gateway.connections import guarded
from r2v.gateway.service import Service
from r2v.gateway.settings import GatewaySettings
from r2v.messages.openai_chat import chunks
from r2v.messages.protocol import pieces
from r2v.runtime.settings import validated

KEY = "test-key-1"
ON_POSTGRES = bool(os.environ.get("R2V_TEST_POSTGRES"))
"""Every gateway of the tests ships its ledger to a database of its own, and reads it there (`make test-postgres`)."""


def free_port() -> int:
    """One that nobody listens on, and neither on the next; below those that the system gives to clients."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
        return port


class Server(uvicorn.Server):
    """One that ends when it is told, not at the next tenth of a second."""

    async def main_loop(self) -> None:
        await self.on_tick(0)
        while not self.should_exit:
            await asyncio.sleep(0.01)


@contextmanager
def running(app: Any, **config: Any) -> Iterator[str]:
    """Serve on a free port in a thread, as uvicorn's `config` says; yields http://host:port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(512)
    server = Server(uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=2, **config))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline and thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


class Model:
    """A made-up model whose behaviour a test can change while it runs."""

    def __init__(self, name: str, *, error_rate: float = 0.0, knows_n: bool = True) -> None:
        self.mock_model = MockModel(name, error_rate=error_rate)
        self.knows_n = knows_n
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.delay = 0.0
        self.status: list[tuple[int, dict[str, str]]] = []
        """Answers to give instead, the first first; the last stays."""
        self.body: bytes | None = None
        self.refuse: tuple[int, Any] | None = None
        """Status and body of every answer, if set."""
        self.refused_fields: dict[str, tuple[int, Any]] = {}
        """Field -> status and body of the answer to each request that holds it."""
        self.reply: Any = None
        """Called with the request, gives the answer, if set."""
        self.says: str | None = None
        """What each answer says, in any protocol, if set; over chat completions as llama.cpp's server answers."""
        self.event_of: Any = None
        """Called with a Messages request, gives the answer that is streamed, if set."""
        self.started = self.finished = 0
        self.pace = 0.0
        """Seconds between the chunks of a stream."""
        self.may_go_on: threading.Event | None = None
        """Awaited before the last chunk of a stream, if set."""
        self.cut: int | None = None
        """Chunk before which a stream ends."""

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.completions, methods=["POST"]),
                Route("/v1/messages", self.messages, methods=["POST"]),
                Route("/v1/responses", self.responses, methods=["POST"]),
            ]
        )

    async def _before(self, request: Request) -> Response | None:
        body = await request.json()
        self.seen.append(body)
        self.headers.append(dict(request.headers))
        self.started += 1
        waited = 0.0
        while waited < self.delay:
            if await request.is_disconnected():
                return Response(status_code=499)
            await asyncio.sleep(0.02)
            waited += 0.02
        self.finished += 1
        if self.status:
            status, headers = self.status[0] if len(self.status) == 1 else self.status.pop(0)
            if status != 200:
                return JSONResponse({"error": {"message": f"made-up {status}"}}, status, headers)
        refused = [answer for field, answer in self.refused_fields.items() if field in body]
        if self.refuse is not None:
            refused.insert(0, self.refuse)
        for code, said in refused[:1]:
            return JSONResponse(said, code)
        if self.body is not None:
            return Response(self.body, media_type="application/json")
        return None

    async def completions(self, request: Request) -> Response:
        early = await self._before(request)
        if early is not None:
            return early
        body = self.seen[-1]
        if self.reply is not None:
            return JSONResponse(self.reply(body))
        if self.says is not None and body.get("stream"):
            return StreamingResponse(self._of_llama(self.says), media_type="text/event-stream")
        if self.says is not None:
            return JSONResponse(of_llama(self.says, body.get("n") or 1))
        if body.get("stream"):
            return StreamingResponse(self._streamed(body), media_type="text/event-stream")
        return JSONResponse(complete(self.mock_model, body if self.knows_n else {**body, "n": 1}))

    async def _streamed(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        answer = chunks(complete(self.mock_model, body), True, {}, 5)
        for i, chunk in enumerate(answer):
            if self.cut is not None and i == self.cut:
                return
            if self.may_go_on is not None and i + 1 == len(answer):
                await asyncio.to_thread(self.may_go_on.wait, 20)
            yield f"data: {json.dumps(chunk)}\n\n".encode()
            await asyncio.sleep(self.pace)
        yield b"data: [DONE]\n\n"

    async def _of_llama(self, says: str) -> AsyncIterator[bytes]:
        """Three characters at a time."""
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None}, *({"content": t} for t in pieces(says, 3))]
        choices = [{"finish_reason": None, "index": 0, "delta": delta} for delta in deltas]
        head = {key: value for key, value in of_llama(says, 1).items() if key not in ("choices", "usage")}
        for choice in [*choices, {"finish_reason": "stop", "index": 0, "delta": {}}]:
            if self.may_go_on is not None and choice["finish_reason"]:
                await asyncio.to_thread(self.may_go_on.wait, 20)
            yield f"data: {json.dumps({**head, 'choices': [choice]})}\n\n".encode()
            await asyncio.sleep(self.pace)
        yield f"data: {json.dumps({**head, 'choices': [], 'usage': of_llama(says, 1)['usage']})}\n\n".encode()
        yield b"data: [DONE]\n\n"

    async def messages(self, request: Request) -> Response:
        """Anthropic's side: refuses what the real API refuses."""
        early = await self._before(request)
        if early is not None:
            return early
        body = self.seen[-1]
        if problem := refused_by_anthropic(body):
            return JSONResponse({"type": "error", "error": {"type": "invalid_request_error", "message": problem}}, 400)
        if self.event_of is not None:
            return StreamingResponse(self._events(self.event_of(body)), media_type="text/event-stream")
        if self.reply is not None:
            return JSONResponse(self.reply(body))
        content: list[dict[str, Any]] = [{"type": "text", "text": "done"}]
        stop = "end_turn"
        if self.says is not None:
            content = [{"type": "text", "text": self.says}]
        elif body.get("tools") and len(body["messages"]) < 6:
            content = [
                {
                    "type": "tool_use",
                    "id": f"toolu_{len(self.seen)}",
                    "name": body["tools"][0]["name"],
                    "input": {"where": "x"},
                }
            ]
            stop = "tool_use"
        answer = {
            "id": "msg_1", "type": "message", "role": "assistant", "model": self.mock_model.name, "content": content,
            "stop_reason": stop, "stop_sequence": None, "usage": {"input_tokens": 10, "output_tokens": 5},
        }  # fmt: skip
        if body.get("stream"):
            return StreamingResponse(self._events(answer), media_type="text/event-stream")
        return JSONResponse(answer)

    async def responses(self, request: Request) -> Response:
        """OpenAI's Responses side, with reasoning that only it can read."""
        early = await self._before(request)
        if early is not None:
            return early
        body = self.seen[-1]
        if "previous_response_id" in body or any(item.get("type") == "item_reference" for item in body["input"]):
            return JSONResponse({"error": {"message": "nothing is stored here"}}, 400)
        words = {"type": "output_text", "text": self.says or "all done", "annotations": [], "logprobs": []}
        done = {"id": "msg_up", "type": "message", "role": "assistant", "status": "completed", "content": [words]}
        output = [{"type": "reasoning", "id": "rs_up", "summary": [], "encrypted_content": "only-mine"}, done]
        if (
            body.get("tools")
            and self.says is None
            and not any(item.get("type") == "function_call_output" for item in body["input"])
        ):
            call = {"type": "function_call", "id": "fc_up", "call_id": "call_up", "name": body["tools"][0]["name"]}
            output[1] = {**call, "arguments": '{"where": "x"}', "status": "completed"}
        counts = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15, "input_tokens_details": {"cached_tokens": 4}}
        answer = {
            "id": "resp_up", "object": "response", "created_at": 1, "status": "completed", "model": self.mock_model.name,
            "output": output, "usage": counts, "store": False, "tools": body.get("tools") or [], "error": None,
            "parallel_tool_calls": True, "tool_choice": "auto",
        }  # fmt: skip
        if not body.get("stream"):
            return JSONResponse(answer)
        return StreamingResponse(self._paced(response_events(answer)), media_type="text/event-stream")

    def _events(self, answer: dict[str, Any]) -> AsyncIterator[bytes]:
        return self._paced(events_of(answer))

    async def _paced(self, events: Iterator[tuple[str, dict[str, Any]]]) -> AsyncIterator[bytes]:
        for i, (name, content) in enumerate(events):
            if i == self.cut:
                return
            if self.may_go_on is not None and name in ("message_delta", "response.completed"):
                await asyncio.to_thread(self.may_go_on.wait, 20)
            yield f"event: {name}\ndata: {json.dumps(content)}\n\n".encode()
            await asyncio.sleep(self.pace)


def of_llama(says: str, n: int) -> dict[str, Any]:
    """A chat completion as llama.cpp's server answers one, its reading of tool calls having found none."""
    message, written = {"role": "assistant", "content": says}, n * (1 + len(says) // 4)
    return {
        "choices": [{"finish_reason": "stop", "index": i, "message": message} for i in range(n)],
        "created": 1795887705, "model": "small.gguf", "system_fingerprint": "b0-unknown", "object": "chat.completion",
        "usage": {"completion_tokens": written, "prompt_tokens": 16, "total_tokens": 16 + written},
        "id": "chatcmpl-2kZ3", "timings": {"cache_n": 0, "predicted_n": 3},
    }  # fmt: skip


def response_events(answer: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A Responses answer as OpenAI's server streams it."""
    for number, (kind, fields) in enumerate(_response_events(answer)):
        yield kind, {"type": kind, "sequence_number": number, **fields}


def _response_events(answer: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "response.created", {"response": {**answer, "status": "in_progress", "output": [], "usage": None}}
    for i, item in enumerate(answer["output"]):
        begun = {**item, "content": []} if item["type"] == "message" else item
        yield "response.output_item.added", {"output_index": i, "item": begun}
        for j, part in enumerate(item.get("content") or []):
            where = {"item_id": item["id"], "output_index": i, "content_index": j}
            yield "response.content_part.added", {**where, "part": {**part, "text": ""}}
            for text in pieces(part["text"], 20):
                yield "response.output_text.delta", {**where, "delta": text, "logprobs": []}
            yield "response.output_text.done", {**where, "text": part["text"], "logprobs": []}
            yield "response.content_part.done", {**where, "part": part}
        if item["type"] == "function_call":
            where = {"item_id": item["id"], "output_index": i}
            yield "response.function_call_arguments.delta", {**where, "delta": item["arguments"]}
            yield "response.function_call_arguments.done", {**where, "arguments": item["arguments"], "name": item["name"]}
        yield "response.output_item.done", {"output_index": i, "item": item}
    yield "response.completed", {"response": answer}


def events_of(answer: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A Messages answer as Anthropic's server streams it."""
    usage = {**answer["usage"], "output_tokens": 1}
    begun = {**answer, "content": [], "stop_reason": None, "usage": usage}
    yield "message_start", {"type": "message_start", "message": begun}
    yield "ping", {"type": "ping"}
    for i, block in enumerate(answer["content"]):
        start, deltas = block, []
        if block["type"] == "text":
            start, deltas = (
                {**block, "text": ""},
                [{"type": "text_delta", "text": t} for t in (block["text"][:3], block["text"][3:])],
            )
        elif block["type"] == "tool_use":
            text = json.dumps(block["input"])
            start, deltas = (
                {**block, "input": {}},
                [{"type": "input_json_delta", "partial_json": t} for t in ("", text[:4], text[4:])],
            )
        elif block["type"] == "thinking":
            start = {**block, "thinking": "", "signature": ""}
            deltas = [{"type": "thinking_delta", "thinking": block["thinking"]}]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        yield "content_block_start", {"type": "content_block_start", "index": i, "content_block": start}
        for delta in deltas:
            yield "content_block_delta", {"type": "content_block_delta", "index": i, "delta": delta}
        yield "content_block_stop", {"type": "content_block_stop", "index": i}
    ended = {"stop_reason": answer["stop_reason"], "stop_sequence": answer["stop_sequence"]}
    usage = {"output_tokens": answer["usage"]["output_tokens"]}
    yield "message_delta", {"type": "message_delta", "delta": ended, "usage": usage}
    yield "message_stop", {"type": "message_stop"}


@contextmanager
def model_host() -> Iterator[Callable[[Model], str]]:
    """One server for the models of many tests; yields what gives a model a path of its own there, and returns its URL."""
    app = Starlette()
    with running(app) as url:

        def add(model: Model) -> str:
            path = f"/{len(app.routes)}"
            app.mount(path, model.app())
            return url + path

        yield add


def refused_by_anthropic(body: dict[str, Any]) -> str | None:
    """The rules of the Messages API that a switch of models can break; None when the request is fine."""
    if any(m["role"] == "system" for m in body.get("messages") or []):  # as with its beta: at any place
        body = {**body, "messages": [m for m in body["messages"] if m["role"] != "system"]}
    messages = [
        {**m, "content": [{"type": "text", "text": m["content"]}] if isinstance(m["content"], str) else m["content"]}
        for m in body.get("messages") or []
    ]
    if not body.get("model") or not isinstance(body.get("max_tokens"), int) or not messages:
        return "model, max_tokens and messages are required"
    if messages[0]["role"] != "user":
        return "the first message must be the user's"
    for i, message in enumerate(messages):
        if i and message["role"] == messages[i - 1]["role"]:
            return "roles must alternate"
        if not message["content"]:
            return "empty content"
        for block in message["content"]:
            kind = block["type"]
            if kind == "text" and not block["text"].strip():
                return "empty text block"
            if kind == "thinking" and message["role"] != "assistant":
                return "thinking of the user"
        uses = [b["id"] for b in message["content"] if b["type"] == "tool_use"]
        results = [b["tool_use_id"] for b in message["content"] if b["type"] == "tool_result"]
        if uses:
            after = messages[i + 1]["content"] if i + 1 < len(messages) else []
            answered = [b["tool_use_id"] for b in after if b["type"] == "tool_result"]
            if sorted(uses) != sorted(answered) or len(set(uses)) != len(uses):
                return f"tool_use ids {uses} without tool_result blocks immediately after"
            if any(not isinstance(b["input"], dict) for b in message["content"] if b["type"] == "tool_use"):
                return "tool input must be an object"
        if results:
            before = [b["id"] for b in messages[i - 1]["content"] if b["type"] == "tool_use"] if i else []
            if sorted(results) != sorted(before):
                return f"unexpected tool_result {results}"
            if [b["type"] for b in message["content"]][: len(results)] != ["tool_result"] * len(results):
                return "tool_result blocks must come first"
    return None


def settings(small: str, teacher: str, ledger: Any, *, teacher_provider: str = "openai", **changes: Any) -> GatewaySettings:
    fast = {"retries": 1, "timeout_s": 2.0, "connect_timeout_s": 0.5}
    there = teacher if teacher_provider == "anthropic" else f"{teacher}/v1"
    raw: dict[str, Any] = {
        "version": 1,
        "models": {
            "small": {"base_url": f"{small}/v1", "model": "small-1", "price": {"input": 1, "output": 2}, **fast},
            "teacher": {
                "provider": teacher_provider, "base_url": there, "model": "teacher-1",
                "price": {"input": 10, "output": 20}, **fast,
            },
        },
        "route": {"k": 3},
        "server": {"keep_alive_s": 0.3},
        "store": {"path": str(ledger), "redact": False},
    }  # fmt: skip
    for path, value in changes.items():
        group, _, key = path.partition("__")
        if not key:
            raw[group] = value
        elif group in ("small", "teacher"):
            raw["models"][group][key] = value
        else:
            raw.setdefault(group, {})[key] = value
    if ON_POSTGRES and not {"url", "url_env"} & raw["store"].keys():
        raw["store"]["url"] = _database_of(raw["store"]["path"])
    return validated(GatewaySettings, raw)


@cache
def _database_of(ledger: str) -> str:
    """The URL of the shared ledger that this one is shipped to."""
    from postgres_server import cluster

    return cluster().database()


def ship_before_reading(shipping: Any) -> None:
    """So that a test finds in the shared ledger what was answered just before."""
    read = shipping.shared._read

    def read_all(query: str, values: Any) -> Any:
        while shipping.ship():
            pass
        return read(query, values)

    shipping.shared._read = read_all


@contextmanager
def gateway(config: GatewaySettings, *, keys: str = "other", admin: str = KEY) -> Iterator[tuple[str, Service]]:
    """A gateway that takes these keys: of clients, and of the admin."""
    os.environ["R2V_API_KEY"], os.environ["R2V_ADMIN_KEY"] = keys, admin
    service = Service(config)
    if ON_POSTGRES and service.shipping is not None:
        ship_before_reading(service.shipping)
    with running(build_app(service), http=guarded(config.server), ws="none") as url:
        yield url, service
