"""What runs between r2v and untrusted programs: a script for a bare interpreter (`python -I -S supervisor.py SOCKET`).

    spawn server   one a process of r2v; forks a supervisor for each request on its socket, ends when the socket closes
      supervisor   outside the sandbox; ends everything when the lifeline closes, as it does when r2v dies
        init       first process inside (`container_init.py`); started by bubblewrap, or here in namespaces of our own
          program  the untrusted one; has no file descriptors but 0, 1 and 2

It imports nothing of r2v. A request is descriptors: what to run (`marshal` data made by `r2v.runtime.sandbox.launch`), the
lifeline, the status, and the program's stdin, stdout and stderr, or a socket for requests to a script of ours. To the
status is written what happens, a line each: `layer NAME`, then one of `exited CODE`, `signalled NUMBER`, `processes`,
`memory`, `disk`, `error WHAT`. Its end of file means that nothing is left.
"""

from __future__ import annotations

import ctypes
import fcntl
import marshal
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from types import CodeType
from typing import Any

_NEW = {"ns": 0x00020000, "uts": 0x04000000, "ipc": 0x08000000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}
_REC, _PRIVATE, _BIND, _REMOUNT, _READ_ONLY, _NOSUID, _NODEV, _NOEXEC = 0x4000, 0x40000, 0x1000, 0x20, 1, 2, 4, 8
_DETACH, _AT_FDCWD, _AT_RECURSIVE, _MOUNT_SETATTR = 2, -100, 0x8000, 442
_OLD = "/.old"
_CAPABILITIES = ("CAP_SETUID", "CAP_SETGID", "CAP_KILL", "CAP_DAC_OVERRIDE", "CAP_FOWNER")
"""Of init, where we are root: to give the program another user id, to end it, and to remove its files."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def serve(requests: socket.socket) -> None:
    """The spawn server. Forking from here costs a fraction of starting an interpreter."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for supervisors
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "container_init.py")
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec")
    while True:
        _, descriptors, _, _ = socket.recv_fds(requests, 1, 6)
        if not descriptors:
            return
        if os.fork() == 0:
            try:
                requests.close()
                os.setsid()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for descriptor in descriptors:
                    os.set_inheritable(descriptor, False)
                _supervise(code, *descriptors)
            finally:
                os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def _supervise(code: CodeType, what: int, lifeline: int, status: int, *io: int) -> None:
    """Run a program to its end, or until the lifeline closes; return when nothing of it is left."""
    with open(what, "rb") as file:
        spec = marshal.load(file) | {"status": status, "io": io}
    inside: dict[str, Any] = {"__name__": "inside"}
    exec(code, inside)
    os.dup2(0, 2)
    child = 0
    try:
        inside["prctl"](inside["SUBREAPER"], 1)
        if spec["backend"] == "namespaces":
            _leave()
        child = os.fork()
        if child == 0:
            if spec["backend"] == "bubblewrap":
                _exec_bubblewrap(spec, code)
            if spec["backend"] == "namespaces":
                _build_root(spec["mounts"])
            inside["run_init"](spec)
    except BaseException as error:  # the child must never go on as a copy of its parent
        inside["report"](status, f"error {type(error).__name__}: {error}")
    if child == 0:
        return
    for descriptor in io:
        os.close(descriptor)
    events = select.poll()
    for descriptor in (lifeline, os.pidfd_open(child)):
        events.register(descriptor, select.POLLIN)
    events.poll()
    if spec["backend"] == "namespaces":  # /proc is the sandbox's for this process too, so it cannot look for descendants
        os.kill(child, signal.SIGKILL)  # and with the first process everything in its namespace
        os.waitpid(child, 0)
    else:
        inside["end_descendants"]()


def _exec_bubblewrap(spec: dict[str, Any], code: CodeType) -> None:
    """Start init as the first process of a sandbox that bubblewrap makes. Does not return, or raises OSError."""
    arguments = [spec["bubblewrap"], "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    arguments += ["--unshare-cgroup-try", "--die-with-parent", "--new-session", "--as-pid-1", "--hostname", "sandbox"]
    arguments += ["--cap-drop", "ALL"]
    if os.getuid() == 0:
        arguments += [word for name in _CAPABILITIES for word in ("--cap-add", name)]
    else:
        arguments.append("--unshare-user")
    if spec["seccomp"] is not None:
        arguments += ["--seccomp", str(_inherited(spec["seccomp"]))]
    for kind, path, *more in spec["mounts"]:
        arguments += ["--dir", os.path.dirname(path)]  # which it would make for its own user alone
        if kind == "tmpfs":
            size, mode = more
            arguments += ["--perms", f"{mode:04o}", "--size", str(size), "--tmpfs", path]
        elif kind == "file":
            arguments += ["--perms", "0444", "--file", str(_inherited(more[0].encode())), path]
        elif kind == "proc":
            arguments += ["--proc", path, "--remount-ro", path]
        else:  # bind, ro-bind, dev-bind, symlink
            arguments += [f"--{kind}", more[0], path]
    for descriptor in (spec["status"], *spec["io"]):
        os.set_inheritable(descriptor, True)
    if spec["script"] is None:
        os.dup2(spec["io"][2], 2)  # where bubblewrap reports why it cannot start
    given = _inherited(marshal.dumps(code) + marshal.dumps(spec))
    start = f"import marshal; f = open({given}, 'rb'); exec(marshal.load(f)); run_init(marshal.load(f))"
    os.execve(
        spec["bubblewrap"],
        [*arguments, "--remount-ro", "/", "--chdir", "/", "--", spec["python"], "-I", "-S", "-c", start],
        {},
    )


def _inherited(data: bytes) -> int:
    """A descriptor of a file in memory, for the next program."""
    descriptor = os.memfd_create("r2v", 0)
    os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _leave() -> None:
    """Leave the host's mounts, processes, network, System V objects and name; of users, if that is needed to do so."""
    uid, gid = os.getuid(), os.getgid()
    _call("unshare", sum(number for name, number in _NEW.items() if name != "user" or uid != 0))
    if uid != 0:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def _build_root(mounts: Sequence[Sequence[Any]]) -> None:
    """A root directory that holds nothing but `mounts`, in namespaces of our own."""
    _mount("none", "/", None, _REC | _PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    os.mkdir(f"/tmp{_OLD}")
    _call("pivot_root", b"/tmp", f"/tmp{_OLD}".encode())
    os.chdir("/")
    for kind, path, *more in mounts:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if kind == "tmpfs":
            os.makedirs(path, exist_ok=True)
            size, mode = more
            _mount("tmpfs", path, "tmpfs", _NOSUID | _NODEV, f"size={size},mode={mode:o}")
        elif kind == "file":
            with open(path, "w") as file:
                file.write(more[0])
        elif kind == "symlink":
            os.symlink(more[0], path)
        elif kind == "proc":
            os.mkdir(path)
            try:
                _mount("proc", path, "proc", _NOSUID | _NODEV | _NOEXEC)
                _restrict(path, _READ_ONLY)
            except PermissionError:
                pass  # inside a container that masks parts of its own /proc
        else:
            _bind(more[0], path)
            _restrict(path, _NOSUID | {"bind": _NODEV, "ro-bind": _NODEV | _READ_ONLY, "dev-bind": _NOEXEC}[kind])
    _call("umount2", _OLD.encode(), _DETACH)
    os.rmdir(_OLD)
    _mount("none", "/", None, _REMOUNT | _BIND | _READ_ONLY | _NOSUID | _NODEV)
    _call("sethostname", b"sandbox", 7)
    with socket.socket(
        socket.AF_INET, socket.SOCK_DGRAM
    ) as control:  # programs may talk to themselves: a service and its test
        fcntl.ioctl(control, 0x8914, struct.pack("16sh22x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS, up and running


def _bind(real: str, path: str) -> None:
    if os.path.isdir(_OLD + real):
        os.makedirs(path, exist_ok=True)
    elif not os.path.exists(path):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    _mount(_OLD + real, path, None, _BIND | _REC)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = (source.encode(), target.encode(), kind.encode() if kind else None)
    _call("mount", *texts, ctypes.c_ulong(flags), data.encode() if data else None)


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def _restrict(path: str, attributes: int) -> None:
    """Make the mount at `path`, and those below it, read-only, nosuid, nodev or noexec."""
    wanted = _MountAttributes(attributes, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(wanted))
    _call("syscall", _MOUNT_SETATTR, _AT_FDCWD, path.encode(), _AT_RECURSIVE, ctypes.byref(wanted), size)


def _call(name: str, *arguments: Any) -> None:
    """A libc function that answers 0 or -1. Raises OSError."""
    if getattr(_libc, name)(*arguments) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
