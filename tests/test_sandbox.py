"""The sandbox: honest programs run, hostile ones are contained, nothing is left behind."""

from __future__ import annotations

import marshal
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from r2v.core.errors import SettingsError
from r2v.runtime import sandbox
from r2v.runtime.sandbox import calls, harness, launch, spawn_server
from r2v.runtime.sandbox.calls import call
from r2v.runtime.sandbox.harness import decode, encode
from r2v.runtime.sandbox.launch import BACKENDS, WarmSandbox

LIMITS = {"cpu_s": 1.0, "wall_s": 2.0, "memory_mb": 256, "processes": 16, "disk_mb": 32, "file_mb": 16}


def python(code: str, folder: Path) -> sandbox.RunResult:
    return sandbox.run([sys.executable, "-I", "-c", code], folder=folder, limits=sandbox.Limits(**LIMITS))


def use(monkeypatch: pytest.MonkeyPatch, backend: str) -> str:
    monkeypatch.setenv("R2V_SANDBOX", backend)
    calls.close_idle()
    try:
        assert sandbox.support().backend == backend
    except SettingsError as error:
        pytest.skip(str(error))
    return backend


@pytest.fixture(params=[backend for backend in BACKENDS if backend != "limits"])
def separated(request, monkeypatch):
    """Each backend that separates a program from the host, in turn."""
    yield use(monkeypatch, request.param)
    calls.close_idle()


def test_the_backend_is_the_strongest_that_works_and_can_be_forced(monkeypatch):
    monkeypatch.delenv("R2V_SANDBOX", raising=False)
    found = sandbox.support()
    assert BACKENDS.index(found.backend) == len(found.refused)
    monkeypatch.setenv("R2V_SANDBOX", "limits")
    assert sandbox.support().backend == "limits" and "namespaces" not in sandbox.layers()
    monkeypatch.setenv("R2V_SANDBOX", "chroot")
    with pytest.raises(SettingsError, match="bubblewrap, namespaces, limits"):
        sandbox.layers()


def test_a_broken_bubblewrap_is_passed_over_and_the_reason_given(tmp_path, monkeypatch):
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho No permissions to create a new namespace >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.delenv("R2V_SANDBOX", raising=False)
    monkeypatch.setattr(launch, "SEARCHED", f"{tmp_path}:{launch.SEARCHED}")
    found = launch._support.__wrapped__(None)
    assert found.backend in ("namespaces", "limits") and found.layers[0] != "bubblewrap"
    assert found.refused[0] == "bubblewrap: No permissions to create a new namespace the sandbox ended without a report"


def test_an_honest_program_runs_in_its_folder(tmp_path, separated):
    (tmp_path / "given.txt").write_text("7")
    code = "import sys, os; print(open('given.txt').read() + sys.stdin.read()); open('made.txt', 'w').write(os.getcwd())"
    done = sandbox.run([sys.executable, "-c", code], folder=tmp_path, stdin=b"8")
    assert (done.status, done.code, done.stdout, done.stderr) == ("exited", 0, "78\n", "")
    assert done.ok and done.wall_s > 0
    assert (tmp_path / "made.txt").read_text() == str(tmp_path)
    assert done.layers == sandbox.layers()
    assert {"namespaces", "rlimits", "process group"} <= set(done.layers)
    assert ("bubblewrap" in done.layers) == (separated == "bubblewrap")


def test_exit_codes_signals_and_missing_programs_are_distinguished(tmp_path, separated):
    assert (python("raise SystemExit(3)", tmp_path)).code == 3
    killed = python("import os; os.kill(os.getpid(), 15)", tmp_path)
    assert (killed.status, killed.code) == ("signalled", 15)
    missing = sandbox.run(["no-such-program"], folder=tmp_path)
    assert missing.status == "error" and "No such file" in missing.stderr


def test_a_hidden_folder_is_empty_however_its_place_is_called(tmp_path, separated):
    real, folder = tmp_path / "real", tmp_path / "inside"
    (real / "package" / "answers").mkdir(parents=True)
    (real / "package" / "answers" / "1").write_text("42")
    (real / "package" / "question").write_text("6 * 7")
    folder.mkdir()
    (tmp_path / "link").symlink_to(real)
    listing = [f"{place}/package/{name}" for place in (tmp_path / "link", real) for name in ("", "answers")]
    done = sandbox.run(
        ["ls", *listing],
        folder=folder,
        readable=[tmp_path / "link", real],
        hidden=[tmp_path / "link" / "package" / "answers", tmp_path / "nowhere"],
    )
    assert done.ok and done.stdout.split().count("question") == 2 and "1" not in done.stdout.split(), done


def test_a_service_and_its_client_meet_inside(tmp_path, separated):
    code = """
import socket, threading
server = socket.create_server(("127.0.0.1", 8000))
threading.Thread(target=lambda: server.accept()[0].sendall(b"hello"), daemon=True).start()
print(socket.create_connection(("127.0.0.1", 8000)).recv(5).decode())
"""
    assert python(code, tmp_path).stdout == "hello\n"


def test_it_can_be_imported_where_there_is_no_unix():
    code = """
import sys
sys.modules.update(dict.fromkeys(("resource", "fcntl", "pwd", "grp", "termios"), None))
import os, signal, socket, r2v  # with the libraries that look at the platform
sys.platform = "win32"
del os.getuid, os.memfd_create, os.fork, os.pidfd_open, signal.SIGALRM, signal.setitimer, socket.AF_UNIX
from r2v.core.errors import SettingsError
from r2v.runtime import sandbox
from r2v.runtime.sandbox import try_solution
try: sandbox.layers()
except SettingsError as error: print(error)
try: try_solution.attempt("def f(): return 1", "f", (), limit_s=1)
except SettingsError as error: print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"R2V_SANDBOX": "limits"}
    )
    assert done.stdout.count("Linux only") == 2 and not done.stderr, done


def test_a_killed_spawn_server_is_replaced(tmp_path):
    assert sandbox.run(["true"], folder=tmp_path).ok
    assert spawn_server._server is not None
    spawn_server._server._process.kill()
    spawn_server._server._process.wait()
    assert sandbox.run(["true"], folder=tmp_path).ok


def test_a_program_ends_with_r2v(tmp_path, separated):
    """Although r2v is killed, and the supervisor cannot be asked for anything."""
    code = """
import sys
from pathlib import Path
from r2v.runtime import sandbox
sandbox.run(["/bin/sh", "-c", "touch started; sleep 600"], folder=Path(sys.argv[1]), limits=sandbox.Limits(wall_s=600))
"""
    inside = tmp_path / "inside"
    inside.mkdir()
    r2v = subprocess.Popen([sys.executable, "-c", code, inside])
    while not (inside / "started").exists():
        assert r2v.poll() is None
        time.sleep(0.01)
    assert processes_with(str(inside))
    r2v.kill()
    r2v.wait()
    end = time.monotonic() + 60
    while processes_with(str(inside)) and time.monotonic() < end:
        time.sleep(0.01)
    assert not processes_with(str(inside))


CONTAINED = {
    # name: (program, how it may end)
    "fork bomb": ("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", ("timeout", "processes", "memory")),
    "thread bomb": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()",
        ("exited", "timeout"),
    ),
    "memory": ("kept = []\nwhile True: kept.append(bytearray(1 << 24))", ("exited",)),
    "memory in many processes": (
        "import os, time\nfor _ in range(8):\n  if os.fork() == 0: break\nx = bytearray(b'x') * (100 << 20)\ntime.sleep(9)",
        ("memory",),
    ),
    "one huge file": ("f = open('x', 'wb')\nwhile True: f.write(bytes(1 << 20))", ("exited", "signalled")),
    "many large files": ("i = 0\nwhile True:\n  i += 1\n  open(f'{i}', 'wb').write(bytes(1 << 22))", ("disk",)),
    "a million small files": ("i = 0\nwhile True:\n  i += 1\n  open(f'{i}', 'w')", ("disk", "timeout")),
    "a full /tmp": ("i = 0\nwhile True:\n  i += 1\n  open(f'/tmp/{i}', 'wb').write(bytes(1 << 22))", ("exited", "memory")),
    "endless output": ("while True: print('x' * 10000)", ("output",)),
    "endless errors": ("import sys\nwhile True: sys.stderr.write('x' * 10000)", ("output",)),
    "endless loop": ("while True: pass", ("timeout",)),
    "endless sleep": ("import time; time.sleep(999)", ("timeout",)),
    "signals ignored": (
        "import signal\nfor s in set(signal.Signals) - {9, 19}: signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
        ("timeout", "signalled"),
    ),
    "open files": ("kept = [open('/dev/null') for _ in range(10000)]", ("exited",)),
    "a million small files in /tmp": ("i = 0\nwhile True:\n  i += 1\n  open(f'/tmp/{i}', 'w')", ("disk", "timeout")),
    "killing the parent": ("import os; os.kill(os.getppid(), 9); os.killpg(0, 9)", ("signalled", "exited")),
    "killing everything": ("import os; os.kill(-1, 9); raise SystemExit(1)", ("signalled", "exited")),
    "a crash in C": ("import ctypes; ctypes.string_at(0)", ("signalled",)),
    "deep recursion": ("import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()", ("signalled", "exited", "timeout")),
    "forging its end": (
        "import os\nfor fd in range(3, 200):\n  try: os.write(fd, b'exited 0')\n  except OSError: pass\nos._exit(1)",
        ("exited",),
    ),
}


@pytest.mark.parametrize("name", CONTAINED)
def test_what_takes_too_much_is_stopped(name, tmp_path, separated):
    check_contained(name, sys.executable, tmp_path)


@pytest.fixture
def limits_alone(monkeypatch):
    """A host that allows no namespaces. Yields a folder that everybody may reach."""
    if os.geteuid() != 0:
        pytest.skip("not root: without namespaces the programs would run as we do, and end us too")
    use(monkeypatch, "limits")
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
    calls.close_idle()


@pytest.mark.parametrize("name", [name for name in CONTAINED if "/tmp" not in name])  # that one is the host's
def test_it_is_stopped_without_namespaces_too(name, limits_alone):
    check_contained(name, "/usr/bin/python3", limits_alone)


def test_what_is_missing_without_namespaces_is_reported(limits_alone):
    done = sandbox.run(["/usr/bin/python3", "-c", "import socket; socket.socket(socket.AF_INET)"], folder=limits_alone)
    assert done.code == 1 and "Operation not permitted" in done.stderr
    assert "namespaces" not in done.layers and {"rlimits", "process group"} <= set(done.layers)
    with pytest.raises(SettingsError, match="namespaces"):
        sandbox.run(["true"], folder=limits_alone, at="/task")
    warm = WarmSandbox(Path(harness.__file__), calls.LIMITS, calls.PRELOAD)
    job = {"code": "def f(x): return x", "entry_point": "f", "inputs": [[1]], "limits_s": [1.0], "whole": False}
    done = warm.run(marshal.dumps({**job, "timed": False}), wall_s=10, enough=lambda piece: False)
    warm.close()
    assert done.ok and done.stdout.startswith("= [1]"), done


def check_contained(name: str, interpreter: str, folder: Path) -> None:
    code, ends = CONTAINED[name]
    limits = {**LIMITS, "wall_s": 1.0 if "timeout" in ends else 60.0}
    done = sandbox.run([interpreter, "-I", "-c", code], folder=folder, limits=sandbox.Limits(**limits))
    assert done.status in ends and not done.ok, done
    assert len(done.stdout) + len(done.stderr) < 1_000_000
    assert sum(p.lstat().st_size for p in folder.rglob("*")) < 300 << 20
    assert not processes_with(str(folder))


def processes_with(word: str) -> list[str]:
    """Command lines of processes that name a word, and working folders that are below it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
                if word in line or os.readlink(entry / "cwd").startswith(word):
                    found.append(line)
            except OSError:
                continue
    return found


def test_daemons_end_with_the_program(tmp_path, separated):
    mark = uuid.uuid4().hex
    code = f"""
import os, sys, time
for _ in range(2):
    if os.fork(): os.wait() if _ == 0 else os._exit(0); break
    os.setsid()
else:
    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60) # {mark}"])
time.sleep(0.3)
"""
    done = python(code, tmp_path)
    assert done.status == "exited"
    assert not processes_with(mark)


SECRETS = {
    # Each prints what it finds; the secret of the test must not be in it.
    "the environment": "import os; print(dict(os.environ))",
    "the parent's environment": "print(open('/proc/%d/environ' % __import__('os').getppid()).read())",
    "environments of all processes": """
import glob
for path in glob.glob('/proc/*/environ') + glob.glob('/proc/*/cmdline'):
    try: print(open(path).read())
    except OSError: pass
""",
    "the user's home": """
import os
for place, folders, files in os.walk(HOME):
    for name in files:
        try: print(open(os.path.join(place, name), errors='replace').read(2000))
        except OSError: pass
""",
    "a file by its path": "print(open(SECRET).read())",
    "a link to a file": "import os; os.symlink(SECRET, 'link'); print(open('link').read())",
    "a hard link to a file": "import os; os.link(SECRET, 'link'); print(open('link').read())",
    "out of the folder": "import os; print(open('../' * 20 + SECRET).read())",
    "the root of another process": "print(open('/proc/1/root' + SECRET).read())",
    "a folder of another process": "import os; print(os.listdir('/proc/1/cwd'), open('/proc/1/cwd' + SECRET).read())",
    "memory of the parent": """
import os
for line in open(f'/proc/{os.getppid()}/maps'):
    low, high = (int(x, 16) for x in line.split()[0].split('-'))
    with open(f'/proc/{os.getppid()}/mem', 'rb') as memory:
        memory.seek(low); print(memory.read(high - low))
""",
    "inherited files": """
import os
for fd in range(3, 100):
    try: print(os.read(fd, 10000))
    except OSError: pass
""",
    "ptrace by ctypes": """
import ctypes, os
assert ctypes.CDLL(None, use_errno=True).ptrace(16, os.getppid(), 0, 0) == 0
print(open(SECRET).read())
""",
    "mounting by ctypes": """
import ctypes
assert ctypes.CDLL(None).unshare(0x10020000) == 0
assert ctypes.CDLL(None).mount(b'/dev/vda', b'/mnt', b'ext4', 0, None) == 0
print(open(SECRET).read())
""",
    "chroot out": """
import os
os.mkdir('x'); os.chroot('x'); [os.chdir('..') for _ in range(99)]; os.chroot('.'); print(open(SECRET).read())
""",
    "becoming root": "import os; os.setuid(0); print(open(SECRET).read())",
    "a socket to us": "import socket; s = socket.create_connection(('127.0.0.1', PORT), 1); print(s.recv(100))",
    "an abstract socket to us": r"""
import socket; s = socket.socket(socket.AF_UNIX); s.connect(NAME); print(s.recv(100))
""",
}


@pytest.fixture
def secret(tmp_path, monkeypatch):
    """A secret in our environment, home, memory, and behind our sockets."""
    word = f"secret-{uuid.uuid4().hex}"
    home = tmp_path / "home"
    home.mkdir()
    (home / "key").write_text(word)
    (home / "key").chmod(0o644)
    monkeypatch.setenv("R2V_TEST_KEY", word)
    name = f"\0r2v-{uuid.uuid4().hex}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(name)
        unix.listen()
        for server in (tcp, unix):
            threading.Thread(target=_give_away, args=(server, word), daemon=True).start()
        given = {"SECRET": str(home / "key"), "HOME": str(home), "PORT": tcp.getsockname()[1], "NAME": name}
        yield word, "\n".join(f"{key} = {value!r}" for key, value in given.items())


def _give_away(server: socket.socket, word: str) -> None:
    try:
        connection, _ = server.accept()
        connection.sendall(word.encode())
    except OSError:
        return


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_stay_ours(name, secret, tmp_path, separated):
    word, given = secret
    folder = tmp_path / "inside"
    folder.mkdir()
    done = python(f"{given}\n{SECRETS[name]}", folder)
    assert word not in done.stdout + done.stderr
    assert done.status in ("exited", "signalled"), done
    assert not (folder / "link").is_file() or (folder / "link").is_symlink()  # a link's target was never opened inside


OUTSIDE = {
    "the home": "open(HOME + '/made', 'w')",
    "a system folder": "open('/usr/made-by-r2v-test', 'w')",
    "the interpreter": "import os; open(os.__file__, 'a').write('evil')",
    "an installed package": "import sys; open(sys.prefix + '/made-by-r2v-test', 'w')",
    "the root": "open('/made-by-r2v-test', 'w')",
    "kernel settings": "open('/proc/sys/kernel/hostname', 'w').write('evil')",
    "through a link": "import os; os.symlink(HOME, 'link'); open('link/made', 'w')",
    "deleting ours": "import os; os.remove(HOME + '/key')",
    "a device": "import os; os.mknod('disk', 0o60666, os.makedev(254, 0)); open('disk', 'rb').read(1)",
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_outside_the_folder_changes(name, secret, tmp_path, separated):
    _, given = secret
    folder = tmp_path / "inside"
    folder.mkdir()
    done = python(f"{given}\n{OUTSIDE[name]}", folder)
    assert done.code == 1 and "Error" in done.stderr, done
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["key"]
    for place in ("/usr", "/", sys.prefix):
        assert not (Path(place) / "made-by-r2v-test").exists()


def test_there_is_no_network(tmp_path, separated):
    code = """
import socket
for family in range(1, 46):
    try: socket.socket(family, socket.SOCK_DGRAM)
    except OSError: continue
    print(family, end=' ')
print()
socket.create_connection(('192.0.2.1', 80), 1)
"""
    done = python(code, tmp_path)
    assert done.stdout == "1 2 10 \n"
    assert done.code == 1 and "unreachable" in done.stderr


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        1,
        -(10**400),
        1.5,
        float("inf"),
        "é\n",
        b"\x00",
        [1, [2.0, "x"]],
        (1, (2,)),
        {1: (2, {3})},
        set(),
        2j,
        Decimal("1.50"),
        Fraction(-1, 3),
    ],
)
def test_values_cross_as_they_are(value):
    assert decode(encode(value)) == value and type(decode(encode(value))) is type(value)


def test_objects_do_not_cross():
    class Liar:
        def __eq__(self, other):
            return True

        __hash__ = object.__hash__

    assert encode([Liar()]) == [{"other": "Liar"}]
    for right in (1, "Liar", [Liar()], {"other": "Liar"}):
        assert decode(encode(Liar())) != right


def test_call_ends_at_the_first_problem():
    assert call("def f(x): return 6 // x", "f", [[3], [0], [1]], [1] * 3).values == (2,)
    assert "ZeroDivisionError" in (call("def f(x): return 1 // x", "f", [[0]], [1]).problem or "")
    assert "TooLong" in (
        call("def f(x):\n  try:\n    while True: pass\n  except Exception: return 1", "f", [[0]], [0.2]).problem or ""
    )
    assert "exit code 0" in (call("import os\ndef f(x): os._exit(0)", "f", [[0]], [1]).problem or "")
    assert "KeyError" in (call("g = 1", "f", [[0]], [1]).problem or "")


def test_a_warm_sandbox_serves_again_where_python_itself_lies_below_tmp(tmp_path, monkeypatch, separated):
    """Between two runs /tmp is emptied, but not of what is mounted there."""
    (tmp_path / "venv").mkdir()
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    warm = WarmSandbox(Path(harness.__file__), calls.LIMITS, calls.PRELOAD)
    code = "import os\ndef f(x):\n    open('/tmp/left', 'a').write('x')\n    return os.path.getsize('/tmp/left')"
    job = {"code": code, "entry_point": "f", "inputs": [[1]], "limits_s": [1.0], "whole": False, "timed": False}
    for _ in range(3):
        done = warm.run(marshal.dumps(job), wall_s=10, enough=lambda piece: False)
        assert done.ok and done.stdout.startswith("= [1]"), done
        assert done.layers == sandbox.layers()
    warm.close()
    warm.close()
    assert not warm.is_open


def test_no_call_is_waited_for_when_an_earlier_value_was_enough(separated):
    start = time.monotonic()
    answers = call("def f(x):\n  while x: pass\n  return x", "f", [[0], [1]], [60, 60], stop=lambda first, values: True)
    assert answers == calls.Answers((0,), None, ())
    assert time.monotonic() - start < 20


def test_what_is_no_plain_data_reads_alike_in_every_run():
    assert repr(decode(encode(object()))) == repr(decode(encode(len))) and "0x" not in repr(decode(encode(object())))
