"""CPU milliseconds that one step costs the gateway's process, four candidates, verifier, features, router and row included.

    python benchmarks/gateway_cpu.py [--src FOLDER]

Steadier than times on a machine that is shared: what the process used while it served some thousand requests, one after the
other, by the kernel's count. A context of 50 steps and one of 300, in a session each 50 requests. `--src`: the sources of
another version of r2v. All versions are served in turns, so that a change of the machine's speed meets each alike: compare
the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
from gateway_overhead import PATH, body
from serving import KEY, wait_for

HERE = Path(__file__).parent
ROUNDS, REQUESTS = 10, 100
"""Of each context: rounds, and requests to each version in each of them."""


def used(process: int) -> float:
    """CPU seconds of a process so far."""
    return time.clock_gettime((~process << 3) | 2)  # the clock of another process, as clock_getcpuclockid(3) names it


def long(steps: int) -> bytes:
    """The request of `gateway_overhead`, with so many steps behind it."""
    read = json.loads(body())
    first, *rest = read["messages"]
    return json.dumps(read | {"messages": [first, *(rest * (steps // 50))]}).encode()


def started(code: str, src: Path) -> subprocess.Popen[bytes]:
    path = f"{src}{os.pathsep}{HERE}"
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"})


class Gateway:
    """One version, while it serves."""

    def __init__(self, src: Path, port: int, model_port: int, stack: ExitStack, otlp: str | None = None) -> None:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        self._process = started(f"import gateway_overhead as g; g.gateway({port}, {model_port}, {folder!r}, {otlp!r})", src)
        stack.callback(self._process.wait)
        stack.callback(self._process.terminate)
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        self._client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers))
        self._asked = 0

    def cost(self, steps: int, content: bytes, requests: int) -> float:
        """CPU milliseconds of each of so many requests."""
        before = used(self._process.pid)
        for _ in range(requests):
            headers = {"x-session-id": f"{steps}-{self._asked // 50}"}
            self._client.post(PATH, content=content, headers=headers).raise_for_status()
            self._asked += 1
        return 1000 * (used(self._process.pid) - before) / requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--src", type=Path, action="append", default=[], help="sources of another version")
    parser.add_argument("--port", type=int, default=18900)
    arguments = parser.parse_args()
    sources, port = [HERE.parent / "src", *arguments.src], arguments.port
    with ExitStack() as stack:
        model = started(f"import gateway_overhead as g; g.upstream({port})", sources[0].resolve())
        stack.callback(model.wait)
        stack.callback(model.terminate)
        gateways = [Gateway(src.resolve(), port + 1 + i, port, stack) for i, src in enumerate(sources)]
        for i in range(len(gateways)):
            wait_for(port + 1 + i)
        for steps in (50, 300):
            content = long(steps)
            costs: list[list[float]] = [[] for _ in gateways]
            for turn in range(-1, ROUNDS):
                for gateway, found in list(zip(gateways, costs, strict=True))[:: 1 if turn % 2 else -1]:
                    cost = gateway.cost(steps, content, REQUESTS)
                    if turn >= 0:  # the first round warms up
                        found.append(cost)
            print(
                f"{steps} steps: CPU ms a request, median and least of {ROUNDS} rounds; the median ratio of a round's costs"
            )
            for src, found in zip(sources, costs, strict=True):
                ratio = statistics.median(a / b for a, b in zip(found, costs[0], strict=True))
                print(f"  {src}: {statistics.median(found):.2f} {min(found):.2f}, {ratio:.2f} x the first", flush=True)


if __name__ == "__main__":
    main()
