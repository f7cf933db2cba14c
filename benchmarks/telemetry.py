"""What OpenTelemetry costs the gateway: CPU and time of a step, without it, with a collector, with one that is down.

    python benchmarks/telemetry.py

Three gateways (those of `gateway_overhead`: four candidates, verifier, features, router, row) serve the same requests in
turns, as in `gateway_cpu`, so that a change of the machine's speed meets each alike: compare the ratios. Each step is two
spans, one of the step and one of the model call; the collector reads them and answers at once. On a busy machine that is
noise; so before that the spans of steps that do nothing are made and sent in this process, and its CPU time is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from contextlib import ExitStack

from gateway_cpu import HERE, REQUESTS, ROUNDS, Gateway, long, started
from serving import wait_for

from r2v.clients import make_client
from r2v.clients.settings import ClientSettings
from r2v.clients.tokens import Tokens
from r2v.gateway.keys import OPEN
from r2v.gateway.settings import TelemetrySettings
from r2v.gateway.step import Answer, RequestOptions
from r2v.gateway.telemetry import Telemetry, model_call
from r2v.messages.openai_chat import CHAT
from r2v.messages.protocol import Reply, Served

COLLECTOR = """
import uvicorn
from serving import respond, whole_body

async def app(scope, receive, send):
    if scope["type"] == "http":
        await whole_body(receive)
        await respond(send, 200, b"")

uvicorn.run(app, port={port}, log_level="warning", access_log=False, lifespan="off")
"""
STEPS, OF_BATCH = 10_000, 200
NAMES = ("off", "collector", "collector down")


def alone(otlp: str) -> float:
    """CPU microseconds of the spans and metrics of a step, with encoding and sending them."""
    request = CHAT.parse(long(50), {})
    client = make_client(ClientSettings(base_url="http://127.0.0.1:9/v1", model="small"), "small")
    tokens = Tokens(3000, 48)
    facts = {
        "decision-id": "0123456789abcdef", "session-id": "s1", "step": 3, "arm": "slm", "reason": "risk_below",
        "model": "small", "risk": 0.2, "threshold": 0.5, "overhead-ms": 2.0, "cost-usd": 0.001,
    }  # fmt: skip
    answer = Answer(Reply({}, tokens.usage, "openai"), Served("0123456789abcdef", "small", 0), facts)

    async def step() -> Answer:
        with model_call("slm", client, 4) as call:
            call.tokens = tokens
        return answer

    async def work() -> float:
        telemetry = Telemetry(TelemetrySettings(otlp=otlp))
        start = time.process_time()
        for i in range(STEPS):
            await telemetry.traced(request, RequestOptions(OPEN, "open/s1"), step())
            if i % OF_BATCH == OF_BATCH - 1:
                telemetry._providers[0].force_flush()
        taken = time.process_time() - start
        await telemetry.close()
        return 1e6 * taken / STEPS

    return asyncio.run(work())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=18920)
    port = parser.parse_args().port
    source = (HERE.parent / "src").resolve()
    os.environ["OTEL_METRIC_EXPORT_INTERVAL"] = "5000"
    with ExitStack() as stack:
        for code in (f"import gateway_overhead as g; g.upstream({port})", COLLECTOR.format(port=port + 1)):
            process = started(code, source)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        wait_for(port + 1)
        print(f"{alone(f'http://127.0.0.1:{port + 1}'):.0f} microseconds of CPU for the spans of a step", flush=True)
        telemetry = (None, f"http://127.0.0.1:{port + 1}", f"http://127.0.0.1:{port + 9}")
        gateways = [Gateway(source, port + 2 + i, port, stack, otlp) for i, otlp in enumerate(telemetry)]
        for i in range(len(gateways)):
            wait_for(port + 2 + i)
        content = long(50)
        cpu, took = ([[] for _ in gateways] for _ in range(2))
        for turn in range(-1, ROUNDS):
            for gateway, costs, times in list(zip(gateways, cpu, took, strict=True))[:: 1 if turn % 2 else -1]:
                start = time.perf_counter()
                cost = gateway.cost(50, content, REQUESTS)
                if turn >= 0:  # the first round warms up
                    costs.append(cost)
                    times.append(1000 * (time.perf_counter() - start) / REQUESTS)
    print(
        f"milliseconds a step, medians of {ROUNDS} rounds of {REQUESTS}; medians of a round's ratios to off, least and most"
    )
    for what, all_found in (("CPU", cpu), ("time", took)):
        for name, found in zip(NAMES, all_found, strict=True):
            ratios = [a / b for a, b in zip(found, all_found[0], strict=True)]
            spread = f"{statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"  {what:<5}{name:<15}{statistics.median(found):6.2f}   {spread}", flush=True)


if __name__ == "__main__":
    main()
