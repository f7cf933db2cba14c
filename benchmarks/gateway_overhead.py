"""What the gateway adds to a request, against the same request sent straight to the upstream; requests a second.

`python benchmarks/gateway_overhead.py` starts an instant made-up upstream and the gateway as processes of their own, sends
chat requests with a context of 50 steps at 100 a second, straight and through the gateway in turns, and then as many as go.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import httpx

KEY = "benchmark"
STEPS = 50
TOOL = {"name": "look", "parameters": {"type": "object", "properties": {"where": {"type": "string"}}, "required": ["where"]}}


def upstream(port: int) -> None:
    import uvicorn

    from r2v.gateway.mock import Character, mock_app

    uvicorn.run(mock_app(Character("instant")), port=port, log_level="warning", access_log=False)


def proxy(port: int, to: int, folder: str) -> None:
    from r2v.gateway.serve import serve
    from r2v.gateway.settings import GatewaySettings

    os.environ["R2V_API_KEY"] = KEY
    model = {"base_url": f"http://127.0.0.1:{to}/v1", "model": "instant", "price": {"input": 1, "output": 1}}
    raw = {
        "version": 1, "models": {"small": model, "teacher": model},
        "route": {"k": 4, "router": "verifier", "threshold": 2.0},
        "server": {"port": port}, "store": {"path": f"{folder}/ledger.db"},
    }  # fmt: skip
    serve(GatewaySettings.model_validate(raw), mock=False, announce=lambda url: None)


def body(n: int) -> dict:
    messages: list[dict] = [{"role": "user", "content": "look for the red value in every place"}]
    for t in range(STEPS):
        call = {"id": f"c{t}", "type": "function", "function": {"name": "look", "arguments": f'{{"where": "place {t}"}}'}}
        seen = f"In place {t} there is a book {t % 7} and a pen. " * 4
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": f"c{t}", "content": seen})
    return {"model": "r2v", "messages": messages, "tools": [{"type": "function", "function": TOOL}], "n": n}


async def at_rate(client: httpx.AsyncClient, url: str, sent: dict, rate: float, count: int) -> list[float]:
    """Milliseconds of each of `count` requests sent at a steady rate."""
    times: list[float] = []

    async def one(at: float) -> None:
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        start = time.perf_counter()
        (await client.post(url, json=sent)).raise_for_status()
        times.append(1000 * (time.perf_counter() - start))

    begin = time.perf_counter()
    await asyncio.gather(*(one(begin + i / rate) for i in range(count)))
    return sorted(times)


async def as_many(client: httpx.AsyncClient, url: str, sent: dict, seconds: float, workers: int) -> float:
    """Requests a second with so many workers."""
    done, end = 0, time.perf_counter() + seconds

    async def work() -> None:
        nonlocal done
        while time.perf_counter() < end:
            (await client.post(url, json=sent)).raise_for_status()
            done += 1

    await asyncio.gather(*(work() for _ in range(workers)))
    return done / seconds


async def measure(straight: str, through: str, rate: float, count: int) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(headers=headers, timeout=30, limits=httpx.Limits(max_connections=256)) as client:
        for url in (straight, through):
            for _ in range(200):
                try:
                    await client.get(url.replace("/v1/chat/completions", "/v1/models"))
                    break
                except httpx.HTTPError:
                    await asyncio.sleep(0.05)
        drafts, one = body(4), body(1)
        await at_rate(client, straight, drafts, rate, 50)
        await at_rate(client, through, one, rate, 50)
        direct, routed = [], []
        for _ in range(3):
            direct += await at_rate(client, straight, drafts, rate, count)
            routed += await at_rate(client, through, one, rate, count)
        direct, routed = sorted(direct), sorted(routed)

        def p(times: list[float], q: float) -> float:
            return times[min(len(times) - 1, int(q * len(times)))]

        print(f"{rate:g} requests/s, {STEPS}-step context, 4 candidates: milliseconds (p50 / p99)")
        print(f"  straight   {p(direct, 0.5):7.2f} {p(direct, 0.99):8.2f}")
        print(f"  gateway    {p(routed, 0.5):7.2f} {p(routed, 0.99):8.2f}")
        added = [p(routed, q) - p(direct, q) for q in (0.5, 0.99)]
        print(f"  added      {added[0]:7.2f} {added[1]:8.2f}   (floors 2, 8)")
        few = [await as_many(client, url, sent, 5, 16) for url, sent in ((straight, drafts), (through, one))]
        print(f"as many as go, 16 at once: straight {few[0]:.0f}/s, gateway {few[1]:.0f}/s ({few[1] / few[0]:.2f} x)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--count", type=int, default=500, help="requests in a round; three rounds")
    parser.add_argument("--port", type=int, default=18651)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=upstream, args=(arguments.port,)),
            context.Process(target=proxy, args=(arguments.port + 1, arguments.port, str(Path(folder)))),
        ]
        for process in processes:
            process.start()
        try:
            urls = (f"http://127.0.0.1:{arguments.port + i}/v1/chat/completions" for i in (0, 1))
            asyncio.run(measure(*urls, arguments.rate, arguments.count))
        finally:
            for process in processes:
                process.terminate()
                process.join()


if __name__ == "__main__":
    main()
