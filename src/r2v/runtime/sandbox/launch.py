"""`run`: one untrusted program from its start to the end of all its processes, under limits. Linux only."""

from __future__ import annotations

import marshal
import math
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from r2v.core.errors import SettingsError
from r2v.runtime.sandbox import seccomp, spawn_server
from r2v.runtime.sandbox.monitor import Lifeline, Monitor

Status = Literal["exited", "signalled", "timeout", "output", "disk", "memory", "processes", "error"]
"""How it ended: by itself; by a signal; stopped because it took too long (wall or CPU), wrote too much, or its processes
together used too much memory or were too many; or it could not be started (`stderr` says why)."""

BACKENDS = ("bubblewrap", "namespaces", "limits")
"""What separates a program from the host, the strongest first: bubblewrap; the same namespaces made by ourselves; nothing
but limits, a user id of its own (for root) and the system-call filter. The environment variable R2V_SANDBOX forces one."""
SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store", "/etc/alternatives",
    "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/nsswitch.conf",
)  # fmt: skip
"""What every program may read, where it exists."""
SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MB = 1 << 20
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_XCPU = "24"


@dataclass(frozen=True)
class Limits:
    """What a program may use. CPU time, memory, file size and open files are limits of each process."""

    cpu_s: float = 10.0
    wall_s: float = 15.0
    memory_mb: int = 1024
    """Address space of a process; also the memory that all processes together may have resident."""
    processes: int = 64
    file_mb: int = 64
    open_files: int = 128
    output_bytes: int = 200_000
    """Standard output and standard error together."""
    disk_mb: int = 256
    """All files in the folder, checked every tenth of a second; and again all files in /tmp."""


@dataclass(frozen=True)
class RunResult:
    status: Status
    code: int | None
    """Exit code, or number of the signal."""
    stdout: str
    stderr: str
    wall_s: float
    layers: tuple[str, ...]
    """What was active in this run: "bubblewrap", "namespaces", "rlimits", "process group", "seccomp"."""

    @property
    def ok(self) -> bool:
        return self.status == "exited" and self.code == 0


@dataclass(frozen=True)
class Support:
    """What this host allows."""

    backend: str
    """One of BACKENDS."""
    layers: tuple[str, ...]
    refused: tuple[str, ...]
    """The stronger backends that do not work here, and why."""


def run(
    argv: Sequence[str],
    *,
    folder: Path,
    limits: Limits = Limits(),
    stdin: bytes = b"",
    readable: Sequence[Path] = (),
    at: str | None = None,
    hidden: Sequence[Path] = (),
) -> RunResult:
    """Run `argv` in `folder`, the one place it may change, and wait until it and all it started are gone.

    It sees system folders, this Python, `readable`, a private /tmp and no variables of ours; no network but its own
    loopback. Where namespaces are not allowed (see `RunResult.layers`) it sees what the user sees. As root, it runs under a
    user id of its own, and the folder is handed to that id. After a run the folder may hold links and pipes: do not open
    files in it without looking.

    Args:
        argv: its first word is looked up on the system's PATH.
        at: where the program finds the folder, if not at its own path.
        hidden: folders that are empty for it, although they lie in something readable.

    Raises:
        SettingsError: no program can be confined here; or `at` or `hidden` are given and there are no namespaces.
    """
    backend = support().backend
    if (at is not None or hidden) and backend == "limits":
        raise SettingsError("this host allows no namespaces, which hidden folders need; `r2v doctor` says why")
    return _run(_spec(backend, argv, folder, limits, readable, at, hidden), folder, limits, stdin)


def layers() -> tuple[str, ...]:
    """The layers of the sandbox that this host allows. Raises SettingsError where no program can be confined."""
    return support().layers


def support() -> Support:
    """The strongest backend that works here, found out once by running `true`; or the one that R2V_SANDBOX names.

    Raises SettingsError where it is none.
    """
    return _support(os.environ.get("R2V_SANDBOX"))


@cache
def _support(forced: str | None) -> Support:
    if sys.platform != "linux":
        raise SettingsError("model-written code runs on Linux only; use a Linux container or WSL for these tasks")
    if forced is not None and forced not in BACKENDS:
        raise SettingsError(f"R2V_SANDBOX is {forced!r}; it may be {', '.join(BACKENDS)}")
    refused: list[str] = []
    for backend in [forced] if forced else BACKENDS:
        with tempfile.TemporaryDirectory() as name:
            folder, limits = Path(name), Limits()
            tried = _run(_spec(backend, ["true"], folder, limits), folder, limits, b"")
        if tried.ok:
            return Support(backend, tried.layers, tuple(refused))
        refused.append(f"{backend}: {' '.join(tried.stderr.split()) or tried.status}")
    raise SettingsError(
        f"no program can be confined on this host ({'; '.join(refused)}); run it where namespaces are allowed"
    )


def _spec(
    backend: str,
    argv: Sequence[str],
    folder: Path,
    limits: Limits,
    readable: Sequence[Path] = (),
    at: str | None = None,
    hidden: Sequence[Path] = (),
) -> dict[str, Any]:
    """What `supervisor.py` and `container_init.py` need to know."""
    uid = os.getuid()
    if uid == 0:
        uid = 1_000_000_000 + secrets.randbelow(1 << 29)  # an id of its own: limits on processes do not bind root
        _give(folder, uid)
    at = at or os.path.realpath(folder)
    mounts = _mounts(os.path.realpath(folder), at, uid, limits, readable, hidden)
    rlimits = {
        "RLIMIT_AS": limits.memory_mb * MB,
        # Supervisor and init count too, where they have the same id.
        "RLIMIT_NPROC": limits.processes if uid != os.getuid() else limits.processes + 2,
        "RLIMIT_FSIZE": limits.file_mb * MB,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_CORE": 0,
    }
    cpu_s = math.ceil(limits.cpu_s)
    families = (_AF_UNIX,) if backend == "limits" else (_AF_UNIX, _AF_INET, _AF_INET6)
    return {
        "backend": backend,
        "bubblewrap": shutil.which("bwrap", path=SEARCHED) or "bwrap",
        "python": os.path.realpath(sys.executable),
        "mounts": mounts,
        "seccomp": seccomp.program(families),
        "argv": [argv[0] if "/" in argv[0] else shutil.which(argv[0], path=SEARCHED) or argv[0], *argv[1:]],
        "environment": {"PATH": SEARCHED, "HOME": at, "LANG": "C.UTF-8", "TMPDIR": "/tmp"},
        "script": None,
        "path": sys.path,
        "at": at,
        "writable": [at] if backend == "limits" else [at, "/tmp"],
        "mounted": [mount[1] for mount in mounts if mount[1] != "/tmp"],
        "uid": uid,
        "rlimits": [("RLIMIT_CPU", cpu_s, cpu_s + 1), *((name, value, value) for name, value in rlimits.items())],
        "processes": limits.processes,
        "memory": limits.memory_mb * MB,
    }


def _mounts(
    folder: str, at: str, uid: int, limits: Limits, readable: Sequence[Path], hidden: Sequence[Path]
) -> list[tuple[Any, ...]]:
    """What the program sees, in the order in which it is mounted: (kind, path inside, what it is).

    The kinds are bubblewrap's: bind, ro-bind, dev-bind, symlink (the real path, or the target); tmpfs (size, mode); file
    (text); proc.
    """
    python = (sys.base_prefix, os.path.realpath(sys.base_prefix), sys.prefix)
    paths = (*SYSTEM, *python, *map(str, readable))
    seen: list[tuple[Any, ...]] = []
    for path in dict.fromkeys(map(os.path.abspath, paths)):
        inside = any(path == other or path.startswith(f"{other}/") for _, other, _ in seen)
        if not inside and os.path.exists(path):
            link = os.path.islink(path) and path in SYSTEM and not path.startswith("/etc/")  # such as /bin -> usr/bin
            seen.append(("symlink", path, os.readlink(path)) if link else ("ro-bind", path, os.path.realpath(path)))
    empty = [
        ("tmpfs", path + secret[len(real) :], 4096, 0o755)
        for secret in map(os.path.realpath, hidden)
        for kind, path, real in seen
        if kind == "ro-bind" and os.path.isdir(secret) and (secret == real or secret.startswith(f"{real}/"))
    ]
    links = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "shm": "/tmp"}
    return [
        ("tmpfs", "/tmp", limits.disk_mb * MB, 0o1777),
        *seen,
        *empty,
        *(("dev-bind", f"/dev/{name}", f"/dev/{name}") for name in ("null", "zero", "full", "random", "urandom")),
        *(("symlink", f"/dev/{name}", target) for name, target in links.items()),
        ("file", "/etc/passwd", f"sandbox:x:{uid}:{uid}::{at}:/bin/sh\n"),
        ("file", "/etc/group", f"sandbox:x:{uid}:\n"),
        ("bind", at, folder),
        ("proc", "/proc"),
    ]


def _give(folder: Path, uid: int) -> None:
    """Make everything in the folder the property of `uid`. Nothing runs in it now, and links are not followed."""
    os.chown(folder, uid, uid)
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.lchown(os.path.join(place, name), uid, uid)


def _run(spec: dict[str, Any], folder: Path, limits: Limits, stdin: bytes) -> RunResult:
    start = time.monotonic()
    lifeline = Lifeline()
    try:
        with Monitor(lifeline) as monitor, _memory_file(marshal.dumps(spec)) as what, _memory_file(stdin) as given:
            out, err, status = monitor.theirs
            spawn_server.send([what.fileno(), lifeline.theirs, status, given.fileno(), out, err])
            monitor.handed_over()
            return _finish(monitor, folder, limits, start)
    finally:
        lifeline.close()
        os.close(lifeline.theirs)


def _finish(
    monitor: Monitor, folder: Path, limits: Limits, start: float, enough: Callable[[bytes], bool] = lambda piece: False
) -> RunResult:
    why = monitor.wait(
        folder, end=start + limits.wall_s, output_bytes=limits.output_bytes, disk_bytes=limits.disk_mb * MB, enough=enough,
    )  # fmt: skip
    events = [line.partition(" ") for line in monitor.texts["status"].decode(errors="replace").splitlines()]
    stdout, stderr = (monitor.texts[name].decode(errors="replace") for name in ("stdout", "stderr"))
    active = tuple(what for word, _, what in events if word == "layer")
    status, code, message = _ending(events) if why is None else (why, None, "")
    return RunResult(status, code, stdout, stderr + message, time.monotonic() - start, active)


class WarmSandbox:
    """A sandbox in which `main()` of `script` runs again and again, in a fork each: no new sandbox, no new interpreter.

    Between two runs all processes are ended and all files removed. `script` must be our own; it may execute what it reads.
    `preload`: modules that are loaded beforehand. Raises SettingsError when the sandbox cannot be started.
    """

    def __init__(self, script: Path, limits: Limits, preload: Sequence[str]) -> None:
        backend = support().backend
        self._limits, self._lifeline = limits, Lifeline()
        self._folder = Path(tempfile.mkdtemp(prefix="r2v-"))
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = compile(script.read_bytes(), str(script), "exec")
        spec = _spec(backend, [str(script)], self._folder, limits) | {"script": code, "preload": list(preload)}
        events, status = os.pipe()
        self._events = os.fdopen(events, "rb")
        with theirs, _memory_file(marshal.dumps(spec)) as what:
            spawn_server.send([what.fileno(), self._lifeline.theirs, status, theirs.fileno()])
        os.close(status)
        os.close(self._lifeline.theirs)
        if (started := self._events.readline()) != b"ready\n":  # else its start would count as time of the first run
            self.close()
            raise SettingsError(f"no sandbox can be started: {started.decode(errors='replace').strip() or backend}")

    @property
    def is_open(self) -> bool:
        return not self._lifeline.is_closed

    def run(self, stdin: bytes, *, wall_s: float, enough: Callable[[bytes], bool]) -> RunResult:
        """Run the script once. A run that has to be stopped, or whose traces cannot be removed, closes the sandbox.

        Args:
            stdin: what the script reads.
            wall_s: the longest it may take, in seconds.
            enough: called with each piece of standard output; if it returns True no more is wanted.
        """
        start = time.monotonic()
        with Monitor(self._lifeline) as monitor, _memory_file(stdin) as given:
            try:
                socket.send_fds(self._requests, [b"!"], [given.fileno(), *monitor.theirs])
            except OSError:
                self.close()
                return RunResult("error", None, "", "the sandbox is gone", time.monotonic() - start, ())
            monitor.handed_over()
            result = _finish(monitor, self._folder, replace(self._limits, wall_s=wall_s), start, enough)
            if not monitor.texts["status"].endswith(b"\nready\n"):
                self._lifeline.close()
            return result

    def close(self) -> None:
        """End everything inside, and wait for it. A second time does nothing."""
        self._lifeline.close()
        self._requests.close()
        if not self._events.closed:
            with self._events:
                self._events.read()
        shutil.rmtree(self._folder, ignore_errors=True)


def _ending(events: Sequence[tuple[str, str, str]]) -> tuple[Status, int | None, str]:
    """(status, code, a message) from the lines that init wrote."""
    events = [event for event in events if event[0] != "ready"]
    for word, _, what in events:
        if word == "error":
            return "error", None, what
    word, _, what = events[-1] if events else ("", "", "")
    if word not in get_args(Status):
        return "error", None, "the sandbox ended without a report"
    if (word, what) == ("signalled", _XCPU):
        return "timeout", None, ""
    return word, int(what) if what else None, ""  # type: ignore[return-value]


def _memory_file(data: bytes):  # type: ignore[no-untyped-def]
    file = os.fdopen(os.memfd_create("r2v"), "w+b")
    file.write(data)
    file.seek(0)
    return file
