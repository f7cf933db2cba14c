#!/usr/bin/env python3
"""Builds the wheel, installs it with each extra alone in a clean environment, and runs there what that extra promises.

    scripts/package.py [EXTRA...]        base fit gateway serve report train redis postgres archive

What another extra would bring must be missed in one line that names the command. Environments are real installations of the
wheel and of pinned packages from the registry, linked from uv's cache. The extras alfworld, bench, datasets and clients are
installed by CI's own environment only (scripts/setup.sh): compiling and downloading them again takes minutes.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = [sys.executable, "-m", "uv", "-q"]

DECIDE = """
import asyncio, sys
import r2v
from r2v.core.agent import AgentModels, Routed
from r2v.core.types import Action, Candidate, Context, Decision, Memory, Usage

class Says:
    def __init__(self, name): self.name = name
    async def propose(self, context, k, *, seed): return (Candidate(Action(self.name), None, None, Usage(calls=1)),) * k

class Flat:
    async def score(self, context, actions): return (0.5,) * len(actions)

class Escalate:
    name = "escalate"
    def decide(self, context, features, memory, *, seed):
        return Decision("escalate", "always", None, None, None, 1.0, (), "")

agent = Routed(AgentModels(Says("slm"), Says("teacher"), Flat(), 2), Escalate())
context = Context("open the door", ("a door",), (), 5)
choice, _ = asyncio.run(agent.act(context, Memory(), seed=1))
assert (choice.source, choice.action.text) == ("teacher", "teacher"), choice
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & {"torch", "pyarrow", "sklearn", "starlette", "typer", "rich"}, loaded
"""
LEDGER = """
from pathlib import Path
from r2v.gateway.ledger import Ledger
Ledger(Path("ledger.db")).close()
"""
TINY = """\
version: 1
environment: {house: small, receptacles: [4, 5], objects: [4, 6], horizon: 16, families: [pick_and_place_simple]}
tasks: {policy: 60, router: 16, validation: 8, test: 8}
perturbations: {strength: 0.3}
clone: {steps: 160, batch_tokens: 1024}
propose: {tasks: 6}
router: {epochs: 5}
evaluate: {asked_shares: [0.3], clairvoyant: 0, resamples: 50}
routers: [random, r2v]
"""


class Failed(Exception):
    """What an environment did not do."""


class Installed:
    """A clean environment that has the wheel with one extra."""

    def __init__(self, extra: str, wheel: Path, constraints: Path, folder: Path) -> None:
        self.extra = extra
        self.folder = folder / extra
        self.work = self.folder / "work"
        subprocess.run([*UV, "venv", "--python", sys.executable, str(self.folder)], check=True)
        self.work.mkdir()
        what = str(wheel) if extra == "base" else f"{wheel}[{extra}]"
        command = [*UV, "pip", "install", "--python", str(self.python), "-c", str(constraints), what]
        installed = subprocess.run([*command, *_torch_from()], capture_output=True, text=True)
        if installed.returncode:
            raise Failed(f"cannot be installed: {installed.stderr.strip()}")

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def run(self, *command: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """A command of the environment (`r2v ...`, `python ...`). Raises Failed on another exit status."""
        done = subprocess.run(
            [str(self.folder / "bin" / command[0]), *command[1:]],
            cwd=self.work,
            capture_output=True,
            text=True,
            env=_environment(),
        )
        if done.returncode != status:
            raise Failed(f"`{' '.join(command)[:100]}` ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def misses(self, extra: str, *command: str) -> None:
        """The command must say in one line that it needs another extra."""
        told = self.run("r2v", *command, status=1).stderr.strip()
        if "\n" in told or f"pip install 'r2v[{extra}]'" not in told:
            raise Failed(f"`r2v {' '.join(command)}` should ask for r2v[{extra}] in one line, but says:\n{told}")

    def file(self, name: str, text: str) -> str:
        (self.work / name).write_text(text)
        return name


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "R2V_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "120"}


def _torch_from() -> list[str]:
    """Where the CPU build of torch comes from: the registry's own build for Linux brings gigabytes of CUDA."""
    if platform.system() != "Linux":
        return []
    local = os.environ.get("PIP_FIND_LINKS", "").split()
    if any(Path(folder).glob("torch-*+cpu*.whl") for folder in local):
        return [word for folder in local for word in ("--find-links", folder)]
    return ["--extra-index-url", "https://download.pytorch.org/whl/cpu", "--index-strategy", "unsafe-best-match"]


def _log(env: Installed) -> str:
    """160 tasks, each played by two models: the small one gets stuck on half of them, and mostly fails there."""
    lines = []
    for i, model in itertools.product(range(160), ("small", "strong")):
        stuck = model == "small" and i % 2 == 0
        messages: list[dict[str, object]] = [{"role": "user", "content": f"do thing {i}"}]
        for t in range(5):
            text = '{"x": 1}' if stuck and t > 1 else json.dumps({"x": i * 7 + t * 13})
            call = {"id": str(t), "type": "function", "function": {"name": "run", "arguments": text}}
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            messages.append({"role": "tool", "tool_call_id": str(t), "content": "Error" if stuck else f"ok {i * t}"})
        success = (i % 10 == 0) if stuck else (i % 10 != 1)
        lines.append(json.dumps({"messages": messages, "success": success, "task": f"t{i}", "model": model}))
    return env.file("log.jsonl", "\n".join(lines))


@contextmanager
def _serving(env: Installed, *arguments: str) -> Iterator[tuple[str, str]]:
    """(URL, key) of a gateway that runs."""
    server = subprocess.Popen(
        [str(env.folder / "bin" / "r2v"), "serve", *arguments],
        cwd=env.work,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=_environment(),
    )
    assert server.stdout is not None
    try:
        first = server.stdout.readline().split()
        if first[:1] != ["gateway"]:
            raise Failed(f"`r2v serve` says {' '.join(first)} {server.stdout.read()}")
        yield first[1], server.stdout.readline().split()[1]
        server.send_signal(signal.SIGTERM)
        if server.wait(30) not in (0, -signal.SIGTERM):  # uvicorn shuts down, then raises the signal again
            raise Failed(f"`r2v serve` ended with {server.returncode}: {server.stdout.read()}")
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def base(env: Installed) -> None:
    env.run("python", "-c", DECIDE)
    if not env.run("r2v", "--version").stdout.startswith("r2v "):
        raise Failed("`r2v --version` does not say it")
    if "evaluate" not in env.run("r2v", "stages").stdout:
        raise Failed("`r2v stages` does not list the stages")
    env.run("r2v", "doctor")
    env.run("r2v", "init", "gateway.yaml")
    for part in ("router", "domain", "verifier"):
        env.run("r2v", "new", part, f"my-{part}")
    env.run("r2v", "check", "my_domain:DOMAIN")
    env.run("r2v", "check", "my_verifier:MyVerifier")
    env.misses("serve", "serve", "--mock")
    env.misses("serve", "check", "gateway.yaml")
    env.run("python", "-c", LEDGER)
    env.misses("archive", "archive", "ledger.db", "days")
    env.misses("fit", "fit", _log(env), "--format", "openai-jsonl", "--out", "router")
    env.misses("report", "inspect", "log.jsonl", "--format", "openai-jsonl", "--out", "inspected")
    env.misses("train", "run", env.file("tiny.yaml", TINY), "--out", "run")


def fit(env: Installed) -> None:
    env.run("r2v", "fit", _log(env), "--format", "openai-jsonl", "--out", "router")
    if not (env.work / "router" / "router.json").exists():
        raise Failed("`r2v fit` wrote no router")
    env.misses("serve", "serve", "--mock")
    env.misses("report", "inspect", "log.jsonl", "--format", "openai-jsonl", "--out", "inspected")
    env.misses("train", "run", env.file("tiny.yaml", TINY), "--out", "run")


def _answers(env: Installed) -> None:
    """The gateway answers, with mock models. Raises Failed."""
    with _serving(env, "--mock", "--port", "0") as (url, key):
        body = {"model": "r2v", "messages": [{"role": "user", "content": "hello"}]}
        request = urllib.request.Request(
            f"{url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"authorization": f"Bearer {key}", "content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            if not json.load(answer)["choices"]:
                raise Failed("the gateway answers nothing")


def gateway(env: Installed) -> None:
    _answers(env)
    env.misses("fit", "advise", _log(env), "--format", "openai-jsonl", "--out", "advice")


def serve(env: Installed) -> None:
    _answers(env)
    env.run("r2v", "advise", _log(env), "--format", "openai-jsonl", "--out", "advice")
    env.run("r2v", "fit", "log.jsonl", "--format", "openai-jsonl", "--out", "router")
    if not (env.work / "router" / "router.json").exists():
        raise Failed("`r2v fit` wrote no router")
    env.misses("fit", "import", "log.jsonl", "episodes.parquet", "--format", "openai-jsonl")
    env.misses("train", "run", env.file("tiny.yaml", TINY), "--out", "run")


def report(env: Installed) -> None:
    env.run("r2v", "inspect", _log(env), "--format", "openai-jsonl", "--out", "inspected")
    if not (env.work / "inspected" / "inspect.html").exists():
        raise Failed("`r2v inspect` wrote no page")
    env.misses("serve", "serve", "--mock")
    env.misses("train", "run", env.file("tiny.yaml", TINY), "--out", "run")


def train(env: Installed) -> None:
    env.run("r2v", "run", env.file("tiny.yaml", TINY), "--out", "run")
    if not list((env.work / "run").glob("*/report.html")):
        raise Failed("`r2v run` wrote no report")
    env.misses("serve", "serve", "--mock")
    env.misses("ray", "run", "tiny.yaml", "--out", "spread", "--executor", "ray")


def redis(env: Installed) -> None:
    env.run("python", "-c", "import r2v.gateway.redis_state")
    env.misses("serve", "serve", "--mock")


def postgres(env: Installed) -> None:
    files = "importlib.resources.files('r2v.gateway').joinpath('postgres/0001.sql').read_text()"
    env.run("python", "-c", f"import importlib.resources, r2v.gateway.shared_ledger; {files}")
    env.misses("serve", "serve", "--mock")


def archive(env: Installed) -> None:
    env.run("python", "-c", LEDGER)
    env.run("r2v", "archive", "ledger.db", "days")
    env.misses("serve", "serve", "--mock")


CHECKS: dict[str, Callable[[Installed], None]] = {
    "base": base,
    "fit": fit,
    "gateway": gateway,
    "serve": serve,
    "report": report,
    "train": train,
    "redis": redis,
    "archive": archive,
    "postgres": postgres,
}


def main() -> int:
    wanted = sys.argv[1:] or list(CHECKS)
    if unknown := set(wanted) - set(CHECKS):
        print(f"package: no checks for {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}", file=sys.stderr)
        return 2
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    subprocess.run([*UV, "build", "--wheel", "--out-dir", str(ROOT / "dist"), str(ROOT)], check=True)
    (wheel,) = (ROOT / "dist").glob("*.whl")
    with tempfile.TemporaryDirectory(prefix="r2v-package-") as temporary:
        folder = Path(temporary)
        constraints = folder / "constraints.txt"
        pins = (ROOT / "constraints.txt").read_text()
        if platform.system() == "Linux":
            pins = "".join(line + ("+cpu" if line.startswith("torch==") else "") + "\n" for line in pins.splitlines())
        constraints.write_text(pins)

        def examine(extra: str) -> bool:
            """Whether the extra does what it promises."""
            start = time.monotonic()
            try:
                env = Installed(extra, wheel, constraints, folder)
                installed = time.monotonic() - start
                CHECKS[extra](env)
            except Failed as error:
                print(f"package: r2v[{extra}]: {error}", file=sys.stderr, flush=True)
                return False
            shutil.rmtree(env.folder)
            checked = time.monotonic() - start - installed
            print(f"package: {extra:<7} installed in {installed:.0f} s, checked in {checked:.0f} s", flush=True)
            return True

        with ThreadPoolExecutor(2) as pool:
            return 0 if all(list(pool.map(examine, wanted))) else 1


if __name__ == "__main__":
    sys.exit(main())
