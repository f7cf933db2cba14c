"""CPU milliseconds that one step costs the gateway's process, four candidates, verifier, features, router and row included.

    python benchmarks/gateway_cpu.py [--src FOLDER]

Steadier than times on a machine that is shared: what the process used while it served some thousand requests, one after the
other, by the kernel's count. A context of 50 steps and one of 300, in a session each 50 requests. `--src`: the sources of
another version of r2v, to compare in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
from gateway_overhead import PATH, body
from serving import KEY, cpu_s, wait_for

HERE = Path(__file__).parent
REQUESTS = 1_000


def long(steps: int) -> bytes:
    """The request of `gateway_overhead`, with so many steps behind it."""
    read = json.loads(body())
    first, *rest = read["messages"]
    return json.dumps(read | {"messages": [first, *(rest * (steps // 50))]}).encode()


def started(code: str, src: Path) -> subprocess.Popen[bytes]:
    path = f"{src}{os.pathsep}{HERE}"
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"})


def measure(src: Path, ports: tuple[int, int]) -> dict[int, float]:
    """CPU milliseconds a request by the number of steps behind it."""
    with tempfile.TemporaryDirectory() as folder:
        there, here = ports
        model = started(f"import gateway_overhead as g; g.upstream({there})", src)
        gateway = started(f"import gateway_overhead as g; g.gateway({here}, {there}, {folder!r})", src)
        wait_for(there)
        wait_for(here)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{here}", headers={"authorization": f"Bearer {KEY}"}) as client:
                found = {}
                for steps in (50, 300):
                    content = long(steps)

                    def ask(i: int, content: bytes = content, steps: int = steps) -> None:
                        headers = {"x-session-id": f"{steps}-{i // 50}", "content-type": "application/json"}
                        client.post(PATH, content=content, headers=headers).raise_for_status()

                    for i in range(100):
                        ask(-i)
                    before = cpu_s(gateway.pid)
                    for i in range(REQUESTS):
                        ask(i)
                    found[steps] = 1000 * (cpu_s(gateway.pid) - before) / REQUESTS
            return found
        finally:
            for process in (gateway, model):
                process.terminate()
                process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--src", type=Path, action="append", default=[], help="sources of another version")
    for i, src in enumerate([HERE.parent / "src", *parser.parse_args().src]):
        found = measure(src.resolve(), (18900 + 2 * i, 18901 + 2 * i))
        print(f"{src}: " + ", ".join(f"{steps} steps {ms:.2f} ms" for steps, ms in found.items()), flush=True)


if __name__ == "__main__":
    main()
