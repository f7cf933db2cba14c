"""How much later the first byte of a teacher's answer comes through the gateway than from the teacher itself.

`python benchmarks/first_token.py [--runs 60]` starts a made-up teacher that speaks all three protocols and the gateway, each
as a process of its own, and asks both in turns for streams: the gateway with the decision forced (the teacher is asked at
once). The same request, once 2 kB and once 100 kB long, by every protocol; median and the 90th percentile of the difference.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx
from serving import KEY, served

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

TOOL = {"type": "object", "properties": {"where": {"type": "string"}}, "required": ["where"]}
PROVIDERS = {"/v1/chat/completions": "openai", "/v1/messages": "anthropic", "/v1/responses": "openai_responses"}


def body(path: str, size: int) -> dict:
    words = "look for the red value. " * (size // 24)
    if path == "/v1/responses":
        tools = [{"type": "function", "name": "look", "parameters": TOOL}]
        return {"model": "m", "input": [{"role": "user", "content": words}], "tools": tools, "stream": True}
    messages = [{"role": "user", "content": words}]
    if path == "/v1/messages":
        tools = [{"name": "look", "input_schema": TOOL}]
        return {"model": "m", "max_tokens": 99, "messages": messages, "tools": tools, "stream": True}
    tools = [{"type": "function", "function": {"name": "look", "parameters": TOOL}}]
    return {"model": "m", "messages": messages, "tools": tools, "stream": True}


def teacher(port) -> None:
    import asyncio

    import uvicorn

    from servers import Model

    server = uvicorn.Server(uvicorn.Config(Model("teacher-1").app(), port=0, log_level="warning"))

    async def serve() -> None:
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port.send(server.servers[0].sockets[0].getsockname()[1])
        await task

    asyncio.run(serve())


def first_byte(client: httpx.Client, url: str, content: bytes, headers: dict[str, str]) -> float:
    """Seconds until the first event."""
    start = time.perf_counter()
    with client.stream("POST", url, content=content, headers={**headers, "content-type": "application/json"}) as answer:
        answer.raise_for_status()
        pieces = answer.iter_bytes()
        next(pieces)
        seconds = time.perf_counter() - start
        for _ in pieces:  # to the end, so that the connection serves the next request
            pass
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=60)
    runs = parser.parse_args().runs
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=teacher, args=(theirs,), daemon=True)
    process.start()
    direct = f"http://127.0.0.1:{ours.recv()}"
    print(f"{'protocol':24}{'bytes':>8}{'direct ms':>11}{'gateway ms':>12}{'more ms':>9}{'p90 more':>10}")
    for path, provider in PROVIDERS.items():
        with tempfile.TemporaryDirectory() as folder:
            there = direct if provider == "anthropic" else f"{direct}/v1"
            model = {"base_url": f"{direct}/v1", "model": "small-1", "price": {"input": 1, "output": 2}}
            models = {"slm": model, "teacher": {**model, "provider": provider, "base_url": there, "model": "teacher-1"}}
            with served(folder, {"models": models}) as gateway:
                report(path, direct, gateway.url, runs)
    process.terminate()


def report(path: str, direct: str, gateway: str, runs: int) -> None:
    headers = {"authorization": f"Bearer {KEY}", "x-r2v-arm": "teacher"}
    with httpx.Client(timeout=20) as client:
        for size in (2_000, 100_000):
            content = json.dumps(body(path, size)).encode()
            pairs = [
                (first_byte(client, direct + path, content, headers), first_byte(client, gateway + path, content, headers))
                for _ in range(runs + 5)
            ][5:]
            more = sorted(through - alone for alone, through in pairs)
            medians = [1000 * statistics.median(side) for side in zip(*pairs, strict=True)]
            p90 = 1000 * more[int(0.9 * len(more))]
            print(
                f"{path:24}{size:8}{medians[0]:11.1f}{medians[1]:12.1f}{1000 * statistics.median(more):9.1f}{p90:10.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
