"""The first process inside a sandbox: runs the program under limits, counts processes and memory, reports the end.

It imports nothing of r2v: the supervisor calls `run_init` in a fork, or hands this code to a bare interpreter inside
bubblewrap. Modules that only one case needs are imported there, since the interpreter's start is most of what a run costs.
"""

from __future__ import annotations

import os
import resource
import sys

TYPE_CHECKING = False  # typing is slow to import, and so are the enumerations of signal
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from typing import Any
else:
    import _signal as signal

CHECK_S = 0.02
PAGE = os.sysconf("SC_PAGE_SIZE")
MOST_FILES = 1 << 16
"""In /tmp: empty files use no bytes of it, but the kernel's memory."""
PDEATHSIG, DUMPABLE, SECCOMP, SUBREAPER, NO_NEW_PRIVS = 1, 4, 22, 36, 38
"""Options of prctl."""


def run_init(spec: dict[str, Any]) -> None:
    """Run the program of `spec`; with a script, run its `main()` in a fork for each request on the socket `spec["io"]`."""
    os.umask(0o022)
    os.environ.clear()
    for descriptor in (spec["status"], *spec["io"]):
        os.set_inheritable(descriptor, False)  # a program that held the status could forge its end
    if spec["backend"] == "namespaces":
        prctl(PDEATHSIG, signal.SIGKILL)
    elif spec["backend"] == "limits":
        prctl(SUBREAPER, 1)
    if spec["backend"] != "bubblewrap" or os.getuid() == spec["uid"]:
        prctl(DUMPABLE, 0)  # the program may have the same user id
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    if spec["script"] is None:
        _run_program(spec, None)
    else:
        _serve(spec)


def _serve(spec: dict[str, Any]) -> None:
    """A request is four descriptors: stdin, stdout, stderr, status. "ready": no trace of an earlier run is left."""
    import gc
    import socket
    from importlib import import_module

    for name in spec["preload"]:
        import_module(name)
    namespace: dict[str, Any] = {"__name__": "inside"}
    exec(spec["script"], namespace)
    gc.freeze()  # collections in forks would copy every page
    report(spec["status"], "ready")
    requests = socket.socket(fileno=spec["io"][0])
    while True:
        _, descriptors, _, _ = socket.recv_fds(requests, 1, 4)
        if not descriptors:
            return
        *io, status = descriptors
        os.set_inheritable(status, False)
        _run_program(spec | {"io": io, "status": status}, namespace["main"])
        for folder in spec["writable"]:
            _empty(folder, spec["mounted"])
        report(status, "ready")
        os.close(status)


def _run_program(spec: dict[str, Any], main: Callable[[], None] | None) -> None:
    """Run the program (`main` in a fork, or else its command), report how it ended, and end what it left behind."""
    program = os.fork()
    if program == 0:
        _become(spec, main)
    for descriptor in spec["io"]:
        os.close(descriptor)  # their end of file is the program's end
    try:
        while True:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == program:
                    code = os.waitstatus_to_exitcode(ended[1])
                    return report(spec["status"], f"exited {code}" if code >= 0 else f"signalled {-code}")
            signal.sigtimedwait([signal.SIGCHLD], CHECK_S)
            if over := _exceeded(spec):
                return report(spec["status"], over)
    finally:
        end_descendants()


def _become(spec: dict[str, Any], main: Callable[[], None] | None) -> None:
    """Give up all privileges, take on the limits, become the program. Does not return."""
    status = spec["status"]
    try:
        os.setsid()  # or a signal to its process group would reach the supervisor
        os.chdir(spec["at"])
        for number, descriptor in enumerate(spec["io"]):
            os.dup2(descriptor, number)
        os.closerange(3, status)
        os.closerange(status + 1, 1 << 20)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        for number in (signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        if os.getuid() == 0:
            os.setgroups([])
            os.setresgid(*(spec["uid"],) * 3)
            os.setresuid(*(spec["uid"],) * 3)
        for name, soft, hard in spec["rlimits"]:
            resource.setrlimit(getattr(resource, name), (soft, hard))
        active = {"bubblewrap": ["bubblewrap", "namespaces"], "namespaces": ["namespaces"], "limits": []}[spec["backend"]]
        active += ["rlimits", "process group"]
        if spec["backend"] != "bubblewrap":
            if os.getuid() != 0:
                _drop_capabilities()
            prctl(NO_NEW_PRIVS, 1)
        if spec["seccomp"] is not None and (spec["backend"] == "bubblewrap" or _filter(spec["seccomp"])):
            active.append("seccomp")
        for layer in active:
            report(status, f"layer {layer}")
        if main is None:
            os.execve(spec["argv"][0], spec["argv"], spec["environment"])
    except BaseException as error:
        report(status, f"error {error}")
        os._exit(127)
    os.close(status)
    sys.path[:] = spec["path"]
    try:
        main()  # this interpreter holds nothing that the program might not see
    except BaseException:
        os._exit(1)
    os._exit(0)


def report(status: int, line: str) -> None:
    os.write(status, f"{line.splitlines()[0]}\n".encode())


def prctl(option: int, value: int, pointer: object = 0) -> None:
    """Raises OSError."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(option, value, pointer, 0, 0) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl {option}: {os.strerror(error)}")


def _drop_capabilities() -> None:
    """Those that an own user namespace gave; the program's bounding set does not matter without privileges to gain."""
    import ctypes

    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(ctypes.byref(header), ctypes.byref(none)) < 0:
        raise OSError(ctypes.get_errno(), "capset")


def _filter(code: bytes) -> bool:
    """Whether the kernel took the filter of system calls."""
    import ctypes

    class Program(ctypes.Structure):
        _fields_ = [("count", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    held = ctypes.create_string_buffer(code, len(code))
    try:
        prctl(SECCOMP, 2, ctypes.byref(Program(len(code) // 8, ctypes.addressof(held))))
    except OSError:
        return False
    return True


def _exceeded(spec: dict[str, Any]) -> str | None:
    """Which limit on all processes together is exceeded; the kernel sees to those of each process."""
    pids = descendants()
    if len(pids) > spec["processes"]:
        return "processes"
    used = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm") as file:
                _, resident, shared, *_ = map(int, file.read().split())
        except (OSError, ValueError):
            continue
        used += (resident - shared) * PAGE
    if used > spec["memory"]:
        return "memory"
    if spec["backend"] != "limits" and (files := os.statvfs("/tmp")).f_files - files.f_ffree > MOST_FILES:
        return "disk"
    return None


def descendants() -> list[int]:
    """All processes below this one; none where /proc could not be mounted."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            children.setdefault(parent, []).append(int(name))
    found, new = [], [os.getpid()]
    while new:
        new = [child for pid in new for child in children.get(pid, [])]
        found += new
    return found


def end_descendants() -> None:
    """End all processes below this one and wait for them; orphans come to this one, so none can fork its way out."""
    try:
        while True:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            for pid in [-1] if os.getpid() == 1 else descendants():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            os.waitpid(-1, 0)
    except ChildProcessError:
        return


def _empty(folder: str, mounts: list[str]) -> None:
    """Remove what a run left; what is mounted below /tmp, and the way there, is not the program's to change."""
    import shutil

    for entry in os.scandir(folder):
        if any(mount == entry.path or mount.startswith(f"{entry.path}/") for mount in mounts):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
