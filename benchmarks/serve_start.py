"""How long `r2v serve --mock` takes until it listens, in processor time, against the libraries that it stands on.

`python benchmarks/serve_start.py [--runs N]` starts each command N times in a fresh process and prints the minimum of the
processor time that was used: by `r2v serve --mock` until its port accepts a connection, and by a bare
`python -c 'import uvicorn, starlette, aiohttp'`. The minimum, because whatever else runs on the machine only adds.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time

from serving import cpu_s, free_port


def used_by(command: list[str], folder: str, port: int | None) -> tuple[float, float]:
    """(processor seconds, seconds) of a command, until it ends or accepts connections on `port`."""
    # Byte code is kept, as it is where r2v is installed, whatever the machine says of that.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{folder}/byte code"}
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder, env=environment)
    if port is None:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, command
        return usage.ru_utime + usage.ru_stime, time.perf_counter() - start
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, command
                time.sleep(0.002)
        waited = time.perf_counter() - start
        return cpu_s(process.pid), waited
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    bare = [sys.executable, "-c", "import uvicorn, starlette, aiohttp"]
    found: dict[str, list[tuple[float, float]]] = {"bare imports": [], "r2v serve --mock": []}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(runs + 1):  # the first run writes byte code
            port = free_port()
            serve = [sys.executable, "-c", "from r2v.cli import app; app()", "serve", "--mock", "--port", str(port)]
            both = used_by(bare, folder, None), used_by(serve, folder, port)
            if i:
                for name, one in zip(found, both, strict=True):
                    found[name].append(one)
    for name, of_runs in found.items():
        processor, elapsed = (min(values) for values in zip(*of_runs, strict=True))
        print(f"{name:<18} {processor:5.2f} s of processor time, {elapsed:5.2f} s by the clock (minima of {runs})")
    ratio = min(p for p, _ in found["r2v serve --mock"]) / min(p for p, _ in found["bare imports"])
    print(f"ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
