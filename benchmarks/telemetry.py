"""What OpenTelemetry costs the gateway: CPU and time of a step, without it, with a collector, with one that is down.

    python benchmarks/telemetry.py

Three gateways (those of `gateway_overhead`: four candidates, verifier, features, router, row) serve the same requests in
turns, as in `gateway_cpu`, so that a change of the machine's speed meets each alike: compare the ratios. Each step is two
spans, one of the step and one of the model call; the collector reads them and answers at once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from contextlib import ExitStack

from gateway_cpu import HERE, REQUESTS, ROUNDS, Gateway, long, started
from serving import wait_for

COLLECTOR = """
import uvicorn
from serving import respond, whole_body

async def app(scope, receive, send):
    if scope["type"] == "http":
        await whole_body(receive)
        await respond(send, 200, b"")

uvicorn.run(app, port={port}, log_level="warning", access_log=False, lifespan="off")
"""
NAMES = ("off", "collector", "collector down")


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
