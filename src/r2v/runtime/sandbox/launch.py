"""`run`: one untrusted program from its start to the end of all its processes, under limits. Linux only."""

from __future__ import annotations

import marshal
import math
import os
import resource
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
from typing import Literal, get_args

from r2v.core.errors import SettingsError
from r2v.runtime.sandbox import seccomp, stage, warden
from r2v.runtime.sandbox.watch import Leash, Watch

Status = Literal["exited", "signalled", "timeout", "output", "disk", "memory", "processes", "error"]
"""How it ended: by itself; by a signal; stopped because it took too long (wall or CPU), wrote too much, or its processes
together used too much memory or were too many; or it could not be started (`stderr` says why)."""

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
    """All files in the folder, looked at every tenth of a second; and again all files in /tmp."""


@dataclass(frozen=True)
class Ran:
    status: Status
    code: int | None
    """Exit code, or number of the signal."""
    stdout: str
    stderr: str
    wall_s: float
    layers: tuple[str, ...]
    """What was active in this run: "namespaces", "rlimits", "process group", "seccomp"."""

    @property
    def ok(self) -> bool:
        return self.status == "exited" and self.code == 0


def run(
    argv: Sequence[str],
    *,
    folder: Path,
    limits: Limits = Limits(),
    stdin: bytes = b"",
    readable: Sequence[Path] = (),
    at: str | None = None,
    hidden: Sequence[Path] = (),
) -> Ran:
    """Run `argv` in `folder`, the one place it may change, and wait until it and all it started are gone.

    It sees system folders, this Python, `readable`, a private /tmp and no variables of ours; no network but its own
    loopback. argv[0] is looked up on the system's PATH. Where namespaces are not allowed (see `Ran.layers`) it sees what the
    user sees. As root, it runs under a user id of its own, and the folder is handed to that id. After a run the folder may
    hold links and pipes: do not open files in it without looking. Raises SettingsError where no program can be confined.

    `at`: where the program finds the folder, if not at its own path; `hidden`: folders that are empty for it, although they
    lie in something readable. Both raise SettingsError without namespaces.
    """
    if (at is not None or hidden) and _mode() == "bare":
        raise SettingsError("this host allows no namespaces, which hidden folders need; see `r2v.runtime.sandbox.layers`")
    spec = _spec(argv, _mode(), folder, limits, readable, at)
    return _run(spec | {"hidden": [os.path.abspath(path) for path in hidden]}, folder, limits, stdin)


@cache
def layers() -> tuple[str, ...]:
    """The layers that this host allows, found out by running `true`."""
    with tempfile.TemporaryDirectory() as folder:
        return run(["true"], folder=Path(folder)).layers


@cache
def _mode() -> str:
    """The strongest separation that works here."""
    for mode in stage.MODES[0 if os.geteuid() == 0 else 1 :]:
        with tempfile.TemporaryDirectory() as name:
            folder, limits = Path(name), Limits()
            tried = _run(_spec(["true"], mode, folder, limits, ()), folder, limits, b"")
            if tried.ok:
                return mode
    raise SettingsError(f"no program can be confined on this host ({tried.stderr}); run it where namespaces are allowed")


def _spec(
    argv: Sequence[str], mode: str, folder: Path, limits: Limits, readable: Sequence[Path], at: str | None = None
) -> dict[str, object]:
    uid = os.getuid()
    if uid == 0:
        uid = 1_000_000_000 + secrets.randbelow(1 << 29)  # an id of its own: limits on processes do not bind root
        _give(folder, uid)
    rlimits = {
        resource.RLIMIT_AS: limits.memory_mb * MB,
        # Supervisor and keeper count too, where they have the same id.
        resource.RLIMIT_NPROC: limits.processes if uid != os.getuid() else limits.processes + 2,
        resource.RLIMIT_FSIZE: limits.file_mb * MB,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_CORE: 0,
    }
    cpu_s = math.ceil(limits.cpu_s)
    return {
        "mode": mode,
        "argv": [argv[0] if "/" in argv[0] else shutil.which(argv[0], path=SEARCHED) or argv[0], *argv[1:]],
        "inside": None,
        "path": sys.path,
        "environment": {"PATH": SEARCHED, "HOME": at or str(folder), "LANG": "C.UTF-8", "TMPDIR": "/tmp"},
        "folder": os.path.realpath(folder),
        "at": at or os.path.realpath(folder),
        "hidden": [],
        "readable": _visible((*SYSTEM, sys.base_prefix, sys.prefix, *map(str, readable))),
        "uid": uid,
        "rlimits": [(resource.RLIMIT_CPU, cpu_s, cpu_s + 1), *((name, value, value) for name, value in rlimits.items())],
        "processes": limits.processes,
        "memory": limits.memory_mb * MB,
        "disk": limits.disk_mb * MB,
        "seccomp": seccomp.program((_AF_UNIX,) if mode == "bare" else (_AF_UNIX, _AF_INET, _AF_INET6)),
    }


def _visible(paths: Sequence[str]) -> list[tuple[str, str | None]]:
    """(path, what it really is; None for a symbolic link of the system) of those that exist, none inside another."""
    found: list[tuple[str, str | None]] = []
    for path in dict.fromkeys(os.path.abspath(path) for path in paths):
        inside = any(path == other or path.startswith(f"{other}/") for other, _ in found)
        if not inside and os.path.exists(path):
            link = os.path.islink(path) and path in SYSTEM and not path.startswith("/etc/")
            found.append((path, None if link else os.path.realpath(path)))
    return found


def _give(folder: Path, uid: int) -> None:
    """Make everything in the folder the property of `uid`. Nothing runs in it now, and links are not followed."""
    os.chown(folder, uid, uid)
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.lchown(os.path.join(place, name), uid, uid)


def _run(spec: dict[str, object], folder: Path, limits: Limits, stdin: bytes) -> Ran:
    start = time.monotonic()
    leash = Leash()
    try:
        with Watch(leash) as watch, _memory_file(marshal.dumps(spec)) as what, _memory_file(stdin) as given:
            out, err, told = watch.theirs
            warden.send([what.fileno(), given.fileno(), out, err, leash.theirs, told])
            watch.handed_over()
            return _finish(watch, folder, limits, start)
    finally:
        leash.let_go()
        os.close(leash.theirs)


def _finish(
    watch: Watch, folder: Path, limits: Limits, start: float, enough: Callable[[bytes], bool] = lambda piece: False
) -> Ran:
    why = watch.to_the_end(
        folder,
        end=start + limits.wall_s,
        output_bytes=limits.output_bytes,
        disk_bytes=limits.disk_mb * MB,
        enough=enough,
    )
    told = [line.partition(" ") for line in watch.texts["told"].decode(errors="replace").splitlines()]
    stdout, stderr = (watch.texts[name].decode(errors="replace") for name in ("stdout", "stderr"))
    active = tuple(what for word, _, what in told if word == "layer")
    status, code, said = _ending(told) if why is None else (why, None, "")
    return Ran(status, code, stdout, stderr + said, time.monotonic() - start, active)


class Room:
    """A sandbox in which `main()` of `script` runs again and again, in a fork each: no new sandbox, no new interpreter.

    Between two runs all processes are ended and all files removed. `script` must be our own; it may execute what it reads.
    `preload`: modules that are loaded beforehand.
    """

    def __init__(self, script: Path, limits: Limits, preload: Sequence[str]) -> None:
        self._limits, self._leash = limits, Leash()
        self._folder = Path(tempfile.mkdtemp(prefix="r2v-"))
        self._visits, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        spec = _spec([str(script)], _mode(), self._folder, limits, ())
        spec |= {"inside": str(script), "preload": list(preload)}
        said, status = os.pipe()
        self._said = os.fdopen(said, "rb")
        with theirs, _memory_file(marshal.dumps(spec)) as what, open(os.devnull, "wb") as nowhere:
            silent = nowhere.fileno()
            warden.send([what.fileno(), theirs.fileno(), silent, silent, self._leash.theirs, status])
        os.close(status)
        os.close(self._leash.theirs)

    @property
    def is_open(self) -> bool:
        return not self._leash.is_let_go

    def run(self, stdin: bytes, *, wall_s: float, enough: Callable[[bytes], bool]) -> Ran:
        """Run the script once. `enough`: told each piece of standard output, may say that no more is wanted.

        A run that has to be stopped closes the room.
        """
        start = time.monotonic()
        with Watch(self._leash) as watch, _memory_file(stdin) as given:
            try:
                socket.send_fds(self._visits, [b"!"], [given.fileno(), *watch.theirs])
            except OSError:
                self.close()
                return Ran("error", None, "", "the sandbox is gone", time.monotonic() - start, ())
            watch.handed_over()
            return _finish(watch, self._folder, replace(self._limits, wall_s=wall_s), start, enough)

    def close(self) -> None:
        """End everything inside, and wait for it. A second time does nothing."""
        self._leash.let_go()
        self._visits.close()
        if not self._said.closed:
            with self._said:
                self._said.read()
        shutil.rmtree(self._folder, ignore_errors=True)


def _ending(told: Sequence[tuple[str, str, str]]) -> tuple[Status, int | None, str]:
    """(status, code, what is to be said about it) from the lines that the stage wrote."""
    for word, _, what in told:
        if word == "error":
            return "error", None, what
    word, _, what = told[-1] if told else ("", "", "")
    if word not in get_args(Status):
        return "error", None, "the sandbox ended without a word"
    if (word, what) == ("signalled", _XCPU):
        return "timeout", None, ""
    return word, int(what) if what else None, ""  # type: ignore[return-value]


def _memory_file(data: bytes):  # type: ignore[no-untyped-def]
    file = os.fdopen(os.memfd_create("r2v"), "w+b")
    file.write(data)
    file.seek(0)
    return file
