"""What runs between r2v and untrusted programs: a script for a bare interpreter (`python -I -S stage.py SOCKET`).

    warden         one a process of r2v; forks a supervisor for each request on its socket, ends when the socket closes
      supervisor   outside the sandbox; ends everything when r2v lets go of the leash (or dies)
        keeper     first process inside (pid 1 where there are namespaces); counts processes and memory, reports the end
          program  the untrusted one; has no file descriptors but 0, 1 and 2

It imports nothing of r2v. A request is six file descriptors: what to run (`marshal` data made by
`r2v.runtime.sandbox.launch`), the program's stdin, stdout and stderr,
the leash, and the status. To the status is written what happens, a line each:
`layer NAME`, then one of `exited CODE`, `signalled NUMBER`, `processes`, `memory`, `error WHAT`. Its end of file says that
nothing is left.

With `inside`, the program is `main()` of a script of ours that the keeper runs again and again, in a fork each: stdin is
then a socket, and each message on it holds the four descriptors of one such served. Between two visits all processes are
ended and the folders emptied.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import marshal
import os
import resource
import select
import shutil
import signal
import socket
import struct
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

MODES = ("root", "user", "bare")
"""Namespaces by privilege; namespaces by an own user namespace; none."""
WATCH_S = 0.02
_NEW = {"ns": 0x00020000, "uts": 0x04000000, "ipc": 0x08000000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}
_REC, _PRIVATE, _BIND, _NOSUID, _NODEV, _NOEXEC = 0x4000, 0x40000, 0x1000, 2, 4, 8
_DETACH, _AT_FDCWD, _AT_RECURSIVE, _MOUNT_SETATTR = 2, -100, 0x8000, 442
_PDEATHSIG, _NO_NEW_PRIVS, _SECCOMP, _DUMPABLE, _SUBREAPER = 1, 38, 22, 4, 36
_PAGE = os.sysconf("SC_PAGE_SIZE")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _call(name: str, *arguments: Any) -> None:
    """A libc function that answers 0 or -1. Raises OSError."""
    if getattr(_libc, name)(*arguments) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = (source.encode(), target.encode(), kind.encode() if kind else None)
    _call("mount", *texts, ctypes.c_ulong(flags), data.encode() if data else None)


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


class _FilterProgram(ctypes.Structure):
    _fields_ = [("count", ctypes.c_ushort), ("code", ctypes.c_void_p)]


def _restrict(path: str, attributes: int) -> None:
    """Make the mount at `path`, and those below it, read-only (1), nosuid (2), nodev (4)."""
    wanted = _MountAttributes(attributes, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(wanted))
    if _libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, path.encode(), _AT_RECURSIVE, ctypes.byref(wanted), size) < 0:
        raise OSError(ctypes.get_errno(), f"mount_setattr {path}: {os.strerror(ctypes.get_errno())}")


def keep_watch(requests: socket.socket) -> None:
    """The warden. Forking from here costs a fraction of starting an interpreter."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors need no burial
    scripts: dict[str, Callable[[], None]] = {}
    while True:
        _, descriptors, _, _ = socket.recv_fds(requests, 1, 6)
        if not descriptors:
            return
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)  # a program that held the status could forge its end
        with open(descriptors[0], "rb") as file:
            spec = marshal.load(file)
        if (path := spec["inside"]) is not None and path not in scripts:
            for name in spec["preload"]:
                import_module(name)
            namespace: dict[str, Any] = {"__name__": "inside"}
            with open(path, "rb") as file:
                exec(compile(file.read(), path, "exec"), namespace)
            scripts[path] = namespace["main"]
            gc.freeze()  # collections in forks would copy every page
        if os.fork() == 0:
            try:
                requests.close()
                os.setsid()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for number, descriptor in enumerate(descriptors[1:4]):
                    os.dup2(descriptor, number)
                    os.close(descriptor)
                spec |= {"leash": descriptors[4], "status": descriptors[5], "main": scripts.get(path)}
                supervise(spec)
            finally:
                os._exit(0)
        for descriptor in descriptors[1:]:
            os.close(descriptor)


def supervise(spec: dict[str, Any]) -> None:
    """Run the program of `spec` to its end, or until the leash is let go; return when nothing of it is left."""
    try:
        if spec["mode"] != "bare":
            _leave(spec["mode"] == "user")
    except OSError as error:
        _tell(spec, f"error {error}")
        return
    keeper = os.fork()
    if keeper == 0:
        try:
            _keep(spec)
        except BaseException as error:  # this process must never go on as a copy of its parent
            _tell(spec, f"error {type(error).__name__}: {error}")
        finally:
            os._exit(0)
    ended = os.pidfd_open(keeper)
    events = select.poll()
    for descriptor in (spec["leash"], ended):
        events.register(descriptor, select.POLLIN)
    if ended not in dict(events.poll()):
        if spec["mode"] == "bare":
            os.kill(keeper, signal.SIGTERM)  # it has the program to end first
        else:
            os.kill(keeper, signal.SIGKILL)  # and with pid 1 everything in its namespace
    os.waitpid(keeper, 0)


def _leave(own_user: bool) -> None:
    """Leave the host's mounts, processes, network, System V objects and name."""
    uid, gid = os.getuid(), os.getgid()
    flags = sum(_NEW[name] for name in ("ns", "uts", "ipc", "pid", "net")) | (_NEW["user"] if own_user else 0)
    _call("unshare", flags)
    if own_user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def _keep(spec: dict[str, Any]) -> None:
    bare = spec["mode"] == "bare"
    os.umask(0o022)
    _call("prctl", _DUMPABLE, 0, 0, 0, 0)
    if bare:
        _call("prctl", _SUBREAPER, 1, 0, 0, 0)
        signal.signal(signal.SIGTERM, lambda *_: _kill_below(os.getpid()))
    else:
        _call("prctl", _PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _build_root(spec)
        _call("sethostname", b"sandbox", 7)
        _raise_loopback()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    if spec["main"] is None:
        _watch(spec)
        return
    visits = socket.socket(fileno=os.dup(0))
    while True:
        _, descriptors, _, _ = socket.recv_fds(visits, 1, 4)
        if not descriptors:
            return
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        _watch(spec | {"status": descriptors[3], "io": descriptors[:3]})
        for folder in (spec["folder"],) if bare else (spec["at"], "/tmp"):
            _empty(folder, [spec["at"], *(path for path, _ in spec["readable"])])
        for descriptor in descriptors:
            os.close(descriptor)


def _watch(spec: dict[str, Any]) -> None:
    """Run the program, say how it ended, and end what it left behind."""
    bare = spec["mode"] == "bare"
    main = os.fork()
    if main == 0:
        _become(spec)
    if spec["main"] is None:
        os.closerange(0, 3)  # only the program holds them: their end is its end
    try:
        while True:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == main:
                    return _tell_end(spec, ended[1])
            signal.sigtimedwait([signal.SIGCHLD], WATCH_S)
            if over := _over(spec, _below(os.getpid()) if bare else _others()):
                return _tell(spec, over)
    except ChildProcessError:
        _tell(spec, "signalled 9")  # the leash was let go
    finally:
        if bare:
            _kill_below(os.getpid())
        else:
            _kill_others()


def _kill_others() -> None:
    """End all processes of this namespace but the first, which this is."""
    try:
        os.kill(-1, signal.SIGKILL)
        while True:
            os.waitpid(-1, 0)
    except (ProcessLookupError, ChildProcessError):
        return


def _empty(folder: str, mounts: list[str]) -> None:
    """Remove what a served left; what is mounted below /tmp, and the way there, is not the program's to change."""
    for entry in os.scandir(folder):
        if any(mount == entry.path or mount.startswith(f"{entry.path}/") for mount in mounts):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def _over(spec: dict[str, Any], pids: list[int]) -> str | None:
    """Which limit on all processes together is exceeded; what one may use is the kernel's business."""
    if len(pids) > spec["processes"]:
        return "processes"
    used = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm") as file:
                _, resident, shared, *_ = map(int, file.read().split())
        except (OSError, ValueError):
            continue
        used += (resident - shared) * _PAGE
    return "memory" if used > spec["memory"] else None


def _others() -> list[int]:
    """All processes of this namespace but the first; none where /proc could not be mounted."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal() and name != "1"]


def _below(root: int) -> list[int]:
    """All descendants of a process."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            children.setdefault(parent, []).append(int(name))
    found, new = [], [root]
    while new:
        new = [child for pid in new for child in children.get(pid, [])]
        found += new
    return found


def _kill_below(root: int) -> None:
    """End all descendants; those that fork meanwhile are found again, because orphans come to the keeper."""
    while pids := _below(root):
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            continue


def _build_root(spec: dict[str, Any]) -> None:
    """A root directory of nothing but what the program may see: system folders, its own folder, private /tmp and /proc."""
    _mount("none", "/", None, _REC | _PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    os.mkdir("/tmp/.old")
    _call("pivot_root", b"/tmp", b"/tmp/.old")
    os.chdir("/")
    os.mkdir("/tmp")
    _mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, f"size={spec['disk']},nr_inodes=65536,mode=1777")
    for path, real in spec["readable"]:
        if real is None:  # a symbolic link such as /bin -> usr/bin
            os.symlink(os.readlink(f"/.old{path}"), path)
        else:
            _bind(real, path)
            _restrict(path, 1 | _NOSUID | _NODEV)
    for path in spec["hidden"]:
        if os.path.isdir(path):
            _mount("tmpfs", path, "tmpfs", _NOSUID | _NODEV, "size=4k,mode=755")
    for name in ("null", "zero", "full", "random", "urandom"):
        _bind(f"/dev/{name}", f"/dev/{name}")
        _restrict(f"/dev/{name}", _NOSUID | _NOEXEC)
    for name, target in (
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
        ("shm", "/tmp"),
    ):
        os.symlink(target, f"/dev/{name}")
    os.makedirs("/etc", exist_ok=True)
    with open("/etc/passwd", "w") as file:
        file.write(f"sandbox:x:{spec['uid']}:{spec['uid']}::{spec['at']}:/bin/sh\n")
    with open("/etc/group", "w") as file:
        file.write(f"sandbox:x:{spec['uid']}:\n")
    _bind(spec["folder"], spec["at"])
    _restrict(spec["at"], _NOSUID | _NODEV)
    os.mkdir("/proc")
    try:
        _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
        _restrict("/proc", 1)
    except PermissionError:
        pass  # inside a container that masks parts of its own /proc
    _call("umount2", b"/.old", _DETACH)
    os.rmdir("/.old")
    _call("mount", b"none", b"/", None, ctypes.c_ulong(0x20 | _BIND | 1 | _NOSUID | _NODEV), None)  # remount read-only


def _bind(real: str, path: str) -> None:
    if os.path.isdir(f"/.old{real}"):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if not os.path.exists(path):
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    _mount(f"/.old{real}", path, None, _BIND | _REC)


def _raise_loopback() -> None:
    """Programs may talk to themselves: a service and its test. There is no other interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sh22x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS, up and running


def _become(spec: dict[str, Any]) -> None:
    """Give up all privileges, take on the limits, become the program. Does not return."""
    try:
        os.chdir(spec["at"])
        for number, descriptor in enumerate(spec.get("io", ())):
            os.dup2(descriptor, number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getuid() == 0:
            os.setgroups([])
            os.setresgid(*(spec["uid"],) * 3)
            os.setresuid(*(spec["uid"],) * 3)
        elif spec["mode"] == "user":
            no_capabilities = (ctypes.c_uint32 * 6)()
            _call("capset", ctypes.byref((ctypes.c_uint32 * 2)(0x20080522, 0)), ctypes.byref(no_capabilities))
        for name, soft, hard in spec["rlimits"]:
            resource.setrlimit(name, (soft, hard))
        if spec["mode"] != "bare":
            _tell(spec, "layer namespaces")
        _tell(spec, "layer rlimits")
        _tell(spec, "layer process group")
        _filter(spec)
        if spec["main"] is None:
            os.execve(spec["argv"][0], spec["argv"], spec["environment"])
    except BaseException as error:
        _tell(spec, f"error {error}")
        os._exit(127)
    os.closerange(3, 1 << 20)
    sys.path[:] = spec["path"]
    try:
        spec["main"]()  # this interpreter holds nothing that the program might not see
    except BaseException:
        os._exit(1)
    os._exit(0)


def _filter(spec: dict[str, Any]) -> None:
    _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)
    if spec["seccomp"] is None:
        return
    code = ctypes.create_string_buffer(spec["seccomp"], len(spec["seccomp"]))
    whole = _FilterProgram(len(spec["seccomp"]) // 8, ctypes.addressof(code))
    if _libc.prctl(_SECCOMP, 2, ctypes.byref(whole), 0, 0) == 0:
        _tell(spec, "layer seccomp")


def _tell(spec: dict[str, Any], line: str) -> None:
    os.write(spec["status"], f"{line.splitlines()[0]}\n".encode())


def _tell_end(spec: dict[str, Any], status: int) -> None:
    code = os.waitstatus_to_exitcode(status)
    _tell(spec, f"exited {code}" if code >= 0 else f"signalled {-code}")


if __name__ == "__main__":
    keep_watch(socket.socket(fileno=int(sys.argv[1])))
