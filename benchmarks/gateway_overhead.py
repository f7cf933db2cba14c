"""What the gateway adds to a request, and requests a second, against the bare upstream, a bare pass-through, and others.

    python benchmarks/gateway_overhead.py [--litellm PATH] [--switchyard PYTHON]

Starts, each as a process of its own, an instant upstream (a fixed answer with four choices and log-probabilities), the
gateway (four candidates, verifier, features, a router of the fitted size, ledger), and a pass-through on the same server
and client stack that reads and forwards bytes and does nothing else. Chat requests with a context of 50 steps go to each in
turns at 100 a second, then streams, then as many as go. PATH: a `litellm` command with its proxy extra. PYTHON: that of an
environment with `nemo-switchyard`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import subprocess
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import aiohttp
import numpy as np
from serving import KEY, respond, whole_body

from r2v.runtime.settings import validated

STEPS = 50
TOOL = {"name": "look", "parameters": {"type": "object", "properties": {"where": {"type": "string"}}, "required": ["where"]}}
PATH = "/v1/chat/completions"


def body() -> bytes:
    """A request with 50 steps behind it, as agents send it."""
    messages: list[dict] = [{"role": "user", "content": "look for the red value in every place"}]
    for t in range(STEPS):
        call = {"id": f"c{t}", "type": "function", "function": {"name": "look", "arguments": f'{{"where": "place {t}"}}'}}
        seen = f"In place {t} there is a book {t % 7} and a pen. " * 4
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": f"c{t}", "content": seen})
    return json.dumps({"model": "r2v", "messages": messages, "tools": [{"type": "function", "function": TOOL}]}).encode()


def answer() -> bytes:
    choices = []
    for i in range(4):
        call = {
            "id": f"a{i}",
            "type": "function",
            "function": {"name": "look", "arguments": f'{{"where": "place {i % 2}"}}'},
        }
        top = [{"token": "x", "logprob": -0.2, "bytes": None}, {"token": "y", "logprob": -2.0, "bytes": None}]
        content = [{"token": "x", "logprob": -0.2, "bytes": None, "top_logprobs": top}] * 12
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choices.append({"index": i, "message": message, "finish_reason": "tool_calls", "logprobs": {"content": content}})
    usage = {"prompt_tokens": 3000, "completion_tokens": 48, "total_tokens": 3048}
    head = {"id": "x", "object": "chat.completion", "created": 0, "model": "instant"}
    return json.dumps({**head, "choices": choices, "usage": usage}).encode()


def upstream(port: int) -> None:
    import uvicorn

    completion = answer()
    delta = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "instant"}
    pieces = [{"content": "first"}, {"content": " second"}, {}]
    events = [{**delta, "choices": [{"index": 0, "delta": d, "finish_reason": None if d else "stop"}]} for d in pieces]

    async def app(scope, receive, send) -> None:
        if scope["type"] == "http":
            if b'"stream":true' in await whole_body(receive):
                await send(
                    {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
                )
                for event in events:
                    event_line = b"data: " + json.dumps(event).encode() + b"\n\n"
                    await send({"type": "http.response.body", "body": event_line, "more_body": True})
                    await asyncio.sleep(0.02)
                await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
                return
            await respond(send, 200, completion)

    uvicorn.run(app, port=port, log_level="warning", access_log=False, lifespan="off")


def pass_through(port: int, to: int) -> None:
    """The same stack as the gateway's, without parsing and deciding."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    clients: list[aiohttp.ClientSession] = []

    async def forward(request: Request) -> Response:
        if not clients:
            clients.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        sent = await request.body()
        async with clients[0].post(f"http://127.0.0.1:{to}{PATH}", data=sent) as response:
            return Response(await response.read(), response.status, media_type="application/json")

    app = Starlette(routes=[Route(PATH, forward, methods=["POST"])])
    uvicorn.run(app, port=port, log_level="warning", access_log=False)


def gateway(port: int, to: int, folder: str, otlp: str | None = None) -> None:

    from r2v.core.features import EXTENDED
    from r2v.core.mlp import RiskMLP
    from r2v.gateway.serve import serve
    from r2v.gateway.settings import GatewaySettings
    from r2v.routers.r2v import R2V

    os.environ["R2V_API_KEY"] = KEY
    draw, sizes = np.random.default_rng(0), (len(EXTENDED), 128, 64, 1)  # the size of a fitted one
    layers = [(draw.normal(size=(a, b)) / a, np.zeros(b)) for a, b in pairwise(sizes)]
    ones = np.ones(len(EXTENDED))
    R2V(threshold=2.0, risk=RiskMLP(EXTENDED, 0 * ones, ones, tuple(layers))).save(Path(folder, "router"))
    model = {"base_url": f"http://127.0.0.1:{to}/v1", "model": "instant", "price": {"input": 1, "output": 1}}
    route = {
        "k": 4,
        "router": f"{folder}/router",
        "stream": "early",
    }  # its threshold is above all risks: all streams are early
    raw = {
        "version": 1, "models": {"slm": model, "teacher": model}, "route": route,
        "server": {"port": port}, "store": {"path": f"{folder}/ledger.db"}, "budget": {"session": {"usd": 1e9}},
        "telemetry": otlp and {"otlp": otlp},
    }  # fmt: skip
    serve(validated(GatewaySettings, raw), mock=False, announce=lambda *urls: None)


def litellm(command: str, port: int, to: int, folder: str) -> subprocess.Popen:
    config = Path(folder, "litellm.yaml")
    route = {"model": "openai/instant", "api_base": f"http://127.0.0.1:{to}/v1", "api_key": "x"}
    config.write_text(json.dumps({"model_list": [{"model_name": "r2v", "litellm_params": route}]}))
    arguments = ["--config", str(config), "--port", str(port), "--host", "127.0.0.1", "--num_workers", "1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(
        [command, *arguments], **quiet, env={**os.environ, "LITELLM_LOG": "ERROR", "LITELLM_MASTER_KEY": KEY}
    )


def switchyard(python: str, port: int, to: int, folder: str) -> subprocess.Popen:
    """The proxy of `nemo-switchyard`, whose router looks at each turn and picks one of two models."""
    config = Path(folder, "routes.toml")
    config.write_text(f"""
schema_version = 1
[llm_clients.upstream]
format = "openai_chat"
base_url = "http://127.0.0.1:{to}/v1"
api_key_env = "R2V_API_KEY"
[targets.capable]
id = "instant"
llm_client = "upstream"
[targets.efficient]
id = "instant-too"
llm_client = "upstream"
[routes.r2v]
id = "r2v"
type = "stage_router"
capable_target = "capable"
efficient_target = "efficient"
picker = "efficient_first"
confidence_threshold = 0.5
""")
    code = f"import time; from switchyard_rust.server import Server; s = Server({str(config)!r}, {port}); time.sleep(1e6)"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([python, "-c", code], **quiet, env={**os.environ, "R2V_API_KEY": KEY, "RUST_LOG": "error"})


async def at_rate(client: aiohttp.ClientSession, url: str, sent: bytes, rate: float, count: int) -> list[float]:
    """Milliseconds of each of `count` requests sent at a steady rate, whatever is still open."""
    times: list[float] = []

    async def one(at: float) -> None:
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        start = time.perf_counter()
        async with client.post(url, data=sent) as response:
            response.raise_for_status()
            await response.read()
        times.append(1000 * (time.perf_counter() - start))

    begin = time.perf_counter()
    await asyncio.gather(*(one(begin + i / rate) for i in range(count)))
    return times


async def first_tokens(client: aiohttp.ClientSession, url: str, sent: bytes, rate: float, count: int) -> list[float]:
    """Milliseconds to the first words of each of `count` streams."""
    times: list[float] = []

    async def one(at: float) -> None:
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        start, seen = time.perf_counter(), b""
        async with client.post(url, data=sent) as response:
            response.raise_for_status()
            async for piece in response.content.iter_any():
                seen += piece
                if b"first" in piece:
                    times.append(1000 * (time.perf_counter() - start))
        assert b"[DONE]" in seen, seen[-300:]

    begin = time.perf_counter()
    await asyncio.gather(*(one(begin + i / rate) for i in range(count)))
    return times


async def as_many(client: aiohttp.ClientSession, url: str, sent: bytes, seconds: float, workers: int) -> float:
    """Requests a second with so many workers."""
    done, end = 0, time.perf_counter() + seconds

    async def work() -> None:
        nonlocal done
        while time.perf_counter() < end:
            async with client.post(url, data=sent) as response:
                response.raise_for_status()
                await response.read()
            done += 1

    await asyncio.gather(*(work() for _ in range(workers)))
    return done / seconds


async def measure(urls: dict[str, str], rate: float, count: int, rounds: int) -> None:
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as client:
        sent = body()
        for url in urls.values():
            for _ in range(1200):
                with contextlib.suppress(aiohttp.ClientError):
                    async with client.post(url, data=sent) as response:
                        if response.status == 200:
                            break
                await asyncio.sleep(0.1)
            await at_rate(client, url, sent, rate, 100)
        times: dict[str, list[float]] = {name: [] for name in urls}
        for _ in range(rounds):
            for name, url in urls.items():
                times[name] += await at_rate(client, url, sent, rate, count)
        print(f"{rate:g} requests/s, {STEPS}-step context ({len(sent)} bytes): milliseconds, p50 and p99; added to straight")
        p50, p99 = (np.percentile(times["straight"], q) for q in (50, 99))
        for name, found in times.items():
            a, b = (np.percentile(found, q) for q in (50, 99))
            print(f"  {name:<13}{a:7.2f} {b:8.2f}   {a - p50:+7.2f} {b - p99:+8.2f}")
        stream = sent[:-1] + b', "stream":true}'
        both: dict[str, list[float]] = {"straight": [], "gateway": []}
        for _ in range(rounds):
            for name, found in both.items():
                found += await first_tokens(client, urls[name], stream, rate / 2, count // 2)
        print(f"`early` streaming, {rate / 2:g} streams/s: milliseconds to the first words, p50 and p99; added")
        for name, found in both.items():
            a, b = (np.percentile(found, q) for q in (50, 99))
            c, d = (np.percentile(both["straight"], q) for q in (50, 99))
            print(f"  {name:<13}{a:7.2f} {b:8.2f}   {a - c:+7.2f} {b - d:+8.2f}")
        rates = {name: [] for name in urls}
        for _ in range(rounds):
            for name, url in urls.items():
                rates[name].append(await as_many(client, url, sent, 4, 16))
        print("as many as go, 16 at once: requests/s; the gateway against it")
        for name, found in rates.items():
            print(f"  {name:<13}{np.mean(found):7.0f}   {np.mean(rates['gateway']) / np.mean(found):5.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--count", type=int, default=500, help="requests in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=18651)
    parser.add_argument("--litellm", help="the litellm command to compare with")
    parser.add_argument("--switchyard", help="the Python of an environment with nemo-switchyard to compare with")
    arguments = parser.parse_args()
    port = arguments.port
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=upstream, args=(port,)),
            context.Process(target=pass_through, args=(port + 1, port)),
            context.Process(target=gateway, args=(port + 2, port, folder)),
        ]
        for process in processes:
            process.start()
        others = {
            name: start(where, port + 3 + i, port, folder)
            for i, (name, start, where) in enumerate(
                (name, start, where)
                for name, start, where in (
                    ("litellm", litellm, arguments.litellm), ("switchyard", switchyard, arguments.switchyard)
                )
                if where
            )
        }  # fmt: skip
        names = ("straight", "pass-through", "gateway", *others)
        try:
            urls = {name: f"http://127.0.0.1:{port + i}{PATH}" for i, name in enumerate(names)}
            asyncio.run(measure(urls, arguments.rate, arguments.count, arguments.rounds))
        finally:
            for process in processes:
                process.terminate()
                process.join()
            for other in others.values():
                other.terminate()
                other.wait()


if __name__ == "__main__":
    main()
