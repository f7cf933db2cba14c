"""Size and start of the container image, where there is no Docker: its two stages are made from the same Debian packages.

    python benchmarks/image.py        (as root, on Linux; mmdebstrap and bubblewrap are Debian packages)

The first stage is Debian 13 with the packages of the Dockerfile, in which the Dockerfile's own command installs r2v. The
second is the list of packages of gcr.io/distroless/python3-debian13 (August 2026), unpacked. The gateway then runs in it
with bubblewrap: read-only root, user 65532, no capabilities, its journal in /data and nothing else to write to but /tmp
and /dev/shm. Sizes are those of the files; a registry sends some 0.4 of that.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
PACKAGES = """\
base-files ca-certificates gcc-14-base libatomic1 libbz2-1.0 libc-bin libc6 libcom-err2 libcrypt1 libdb5.3t64 libexpat1
libffi8 libgcc-s1 libgomp1 libgssapi-krb5-2 libk5crypto3 libkeyutils1 libkrb5-3 libkrb5support0 liblzma5 libncursesw6
libnsl2 libpython3.13-minimal libpython3.13-stdlib libreadline8t64 libsqlite3-0 libssl3t64 libstdc++6 libtinfo6
libtirpc3t64 libuuid1 libzstd1 media-types netbase openssl python3.13-minimal python3.13-venv tzdata tzdata-legacy zlib1g
"""
SETTINGS = """
version: 1
models:
  slm: {base_url: "http://127.0.0.1:9/v1", model: a, price: {input: 1, output: 1}}
  teacher: {base_url: "http://127.0.0.1:9/v1", model: b, price: {input: 1, output: 1}}
route: {mode: observe, router: recorded}
server: {port: PORT}
store: {path: /data/journal.db}
"""


def run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(str(word) for word in command)[:200]}\n{done.stdout[-3000:]}")


def build(folder: Path) -> Path:
    """The root of the image."""
    first, root = folder / "build", folder / "root"
    run("mmdebstrap", "--variant=minbase", "--skip=cleanup/apt", '--aptopt=APT::Install-Recommends "false"',
        "--include=python3-venv,ca-certificates", "trixie", first)  # fmt: skip
    authorities = "etc/ssl/certs/ca-certificates.crt"
    shutil.copy(first / authorities, folder)
    for name in ("etc/pip.conf", "etc/resolv.conf", authorities):  # how this machine finds packages
        if Path("/", name).exists():
            shutil.copy(Path("/", name), first / name)
    source = first / "src"
    source.mkdir()
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(HERE / name, source)
    for name in ("src", "examples"):
        shutil.copytree(HERE / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (command,) = re.findall(r"^RUN (python3 -m venv .*?[^\\])$", (HERE / "Dockerfile").read_text(), re.M | re.S)
    run("chroot", first, "/bin/bash", "-euo", "pipefail", "-c", f"cd /src\n{command}")
    run("chroot", first, "/bin/bash", "-ec", f"mkdir /debs && cd /debs && apt-get download -qq {' '.join(PACKAGES.split())}")
    root.mkdir()
    for package in (first / "debs").iterdir():
        run("dpkg", "-x", package, root)
    shutil.rmtree(root / "usr/share/doc")
    shutil.copy(folder / "ca-certificates.crt", root / authorities)
    for name in ("python", "python3"):
        (root / "usr/bin" / name).symlink_to("python3.13")
    for name in ("bin", "sbin", "lib", "lib64"):
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    base = size(root)
    shutil.copytree(first / "opt/r2v", root / "opt/r2v", symlinks=True)
    for name in ("data", "proc", "dev", "tmp", "etc/r2v"):
        (root / name).mkdir(exist_ok=True)
    (root / "etc/r2v/r2v.yaml").touch()
    whole = size(root)
    print(f"image: {whole:.0f} MB, of which {base:.0f} MB are the base and {whole - base:.0f} MB r2v and what it needs")
    return root


def size(folder: Path) -> float:
    """MB of the files."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()) / 1e6


def start(root: Path, folder: Path, port: int) -> float:
    """Seconds until the gateway answers."""
    data, settings = Path(tempfile.mkdtemp(dir=folder)), folder / "r2v.yaml"
    os.chown(data, 65532, 65532)
    settings.write_text(SETTINGS.replace("PORT", str(port)))
    settings.chmod(0o644)
    last = (HERE / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    environment = {"R2V_API_KEY": "sk-image-0123456789", **dict(re.findall(r"\b([A-Z]+(?:_[A-Z]+)*)=(/?[\w/:]+)", last))}
    box = [
        "bwrap", "--ro-bind", root, "/", "--bind", data, "/data", "--ro-bind", settings, "/etc/r2v/r2v.yaml",
        "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--unshare-user", "--uid", "65532", "--gid", "65532",
        "--unshare-pid", "--unshare-ipc", "--cap-drop", "ALL", "--die-with-parent", "--chdir", "/data",
        "/opt/r2v/bin/r2v", "serve", "/etc/r2v/r2v.yaml",
    ]  # fmt: skip
    begun = time.perf_counter()
    as_user = {"user": 65532, "group": 65532, "extra_groups": []}
    process = subprocess.Popen([str(word) for word in box], stdout=subprocess.DEVNULL, env=environment, **as_user)
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).read()
                return time.perf_counter() - begun
            except OSError:
                time.sleep(0.005)
        sys.exit(f"the gateway ended with {process.returncode}")
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=11)
    parser.add_argument("--port", type=int, default=18960)
    parser.add_argument("--root", type=Path, help="start the gateway of a root that was made before")
    parser.add_argument("--keep", type=Path, help="keep the root there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="r2v-image-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        root = arguments.root or build(folder)
        if arguments.keep:
            shutil.copytree(root, arguments.keep, symlinks=True)
        first, *times = (start(root, folder, arguments.port) for _ in range(arguments.starts))
        spread = f"{min(times):.2f} to {max(times):.2f}"
        print(
            f"start: {statistics.median(times):.2f} s until it answers (median of {len(times)}, {spread}; first {first:.2f})"
        )


if __name__ == "__main__":
    main()
