"""Stages as Ray tasks, on a real cluster of two machines: the same episodes; workers and drivers are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from r2v import __version__
from r2v.runtime.ray_executor import RayTasks, _task
from r2v.runtime.store import read_episodes

if find_spec("ray") is None:  # looked for, not imported: r2v says how before it imports it
    pytest.skip("the extra `ray` is not installed", allow_module_level=True)

HERE = Path(__file__).parent
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
}
LOOPBACK = {**ENVIRONMENT, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray then keeps to 127.0.0.1; who connects says so, too."""
SETTINGS = """\
version: 1
threads: 1
environment: {house: small, receptacles: [4, 5], objects: [4, 6], horizon: 4, families: [pick_and_place_simple]}
tasks: {policy: 50, router: 2, validation: 2, test: 2}
perturbations: {collect: [1]}
slm: {k: 2, max_new_tokens: 3}
"""


def python(*arguments: object, environment: dict[str, str], cwd: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=environment, cwd=cwd,
    )  # fmt: skip


def until(true, what: str, driver: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert driver is None or driver.poll() is None, (
            f"it ended before: {what}\n{driver.stdout.read()}{driver.stderr.read()}"
        )
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def lives(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def address():
    with python(HERE / "ray_cluster.py", environment=LOOPBACK) as cluster:
        found = cluster.stdout.readline().strip()
        assert found, cluster.stderr.read()
        yield found
        cluster.communicate("")


@pytest.fixture
def begun(tmp_path):
    """(number, process) of each job that was begun in `tmp_path`."""

    def read() -> list[tuple[int, int]]:
        file = tmp_path / "begun"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(int(number), int(pid)) for number, pid in map(str.split, lines)]

    return read


def test_a_cluster_plays_the_same_episodes_as_local_processes(address, tmp_path):
    """Expert and SLM; its folder is named relative to the working directory."""
    (tmp_path / "tiny.yaml").write_text(SETTINGS)
    with python(HERE / "ray_play.py", tmp_path, address, environment=LOOPBACK, cwd=tmp_path) as script:
        out, err = script.communicate()
    assert (script.returncode, out, err) == (0, "", "")
    local, ray = (tmp_path / kind / "episodes.parquet" for kind in ("processes", "ray"))
    assert local.read_bytes() == ray.read_bytes()
    assert {episode.agent for episode in read_episodes(ray)} == {"expert", "slm_only"}


def test_the_command_line_runs_stages_on_a_cluster(address, tmp_path):
    (tmp_path / "tiny.yaml").write_text(SETTINGS)
    command = ("-c", "from r2v.cli import app; app()", "run", "tiny.yaml", "--until", "perturb", "--out", "run")
    with python(*command, "--executor", "ray", "--address", address, environment=LOOPBACK, cwd=tmp_path) as run:
        out, err = run.communicate()
    assert (run.returncode, err, len(out.splitlines())) == (0, "", 2), out + err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "settings.yaml", "1-collect", "2-perturb"}


def test_a_killed_worker_costs_its_piece_alone(address, tmp_path, begun):
    with python(HERE / "ray_jobs.py", tmp_path, address, environment=LOOPBACK, cwd=tmp_path) as driver:
        until(lambda: len(begun()) == 6, "the others go on beside the third", driver)
        os.kill(dict(begun())[2], signal.SIGKILL)
        until(lambda: len(begun()) == 7, "it is begun again", driver)
        (tmp_path / "go").touch()
        out, err = driver.communicate()
    assert (out, err) == ("[0, 1, 4, 9, 16, 25]\n", "")
    assert Counter(number for number, _ in begun()) == {0: 1, 1: 1, 2: 2, 3: 1, 4: 1, 5: 1}


def test_nothing_of_a_killed_driver_works_on_and_the_same_command_resumes(address, tmp_path, begun):
    command = (HERE / "ray_jobs.py", tmp_path, address)
    with python(*command, environment=LOOPBACK, cwd=tmp_path) as driver:
        until(lambda: len(list(tmp_path.glob("out/partial/*.json"))) == 5, "the others are done", driver)
        driver.kill()
    until(lambda: not lives(dict(begun())[2]), "its worker works on")
    (tmp_path / "go").touch()
    with python(*command, environment=LOOPBACK, cwd=tmp_path) as driver:
        assert driver.communicate() == ("[0, 1, 4, 9, 16, 25]\n", "")
    assert Counter(number for number, _ in begun()) == {0: 1, 1: 1, 2: 2, 3: 1, 4: 1, 5: 1}
    assert not list(tmp_path.glob("out/.ray-*"))


def test_an_error_of_a_job_is_what_it_raised_and_is_not_tried_again(address, tmp_path, begun):
    for name in ("go", "fail"):
        (tmp_path / name).touch()
    with python(HERE / "ray_jobs.py", tmp_path, address, environment=LOOPBACK, cwd=tmp_path) as driver:
        out, err = driver.communicate()
    assert out.startswith("StageError: job ") and out.endswith(" has no input\n") and err == ""
    assert max(Counter(number for number, _ in begun()).values()) == 1


@pytest.mark.skipif(not Path("/proc").exists(), reason="no /proc on this system")
def test_a_cluster_of_ones_own_listens_on_the_loopback_address_and_ends_with_the_command(tmp_path, begun):
    """Without an address. Its processes are known by the token that they share."""

    def ours() -> list[Path]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if token in (process / "environ").read_bytes() and lives(int(process.name)):
                    found.append(process)
            except OSError:  # it has ended, or is another user's
                continue
        return found

    with python(HERE / "ray_jobs.py", tmp_path, environment=ENVIRONMENT, cwd=tmp_path) as driver:
        until(lambda: 2 in dict(begun()), "the third job", driver)
        environment = Path(f"/proc/{dict(begun())[2]}/environ").read_bytes().split(b"\0")
        (token,) = (entry for entry in environment if entry.startswith(b"RAY_AUTH_TOKEN="))
        inodes = {
            os.readlink(descriptor)[8:-1]
            for process in ours()
            for descriptor in (process / "fd").iterdir()
            if descriptor.is_symlink() and os.readlink(descriptor).startswith("socket:[")
        }
        rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
        listening = {row[1].rpartition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}
        driver.send_signal(signal.SIGINT)
        out, err = driver.communicate()
    assert listening and all(host.endswith("0100007F") for host in listening)  # 127.0.0.1, also as ::ffff:127.0.0.1
    assert out == "" and err.strip().endswith("KeyboardInterrupt")
    until(lambda: not ours(), "processes of the cluster are left")
    assert not list(tmp_path.glob("out/.ray-*"))


def test_a_machine_that_cannot_work_is_one_line(tmp_path):
    mark = tmp_path / ".ray-1"
    assert "does not see" in _task(__version__, tmp_path, mark)(None)
    mark.touch()
    assert "does not see" in _task(__version__, tmp_path / "elsewhere", mark)(None)
    assert f"has r2v {__version__}, this is 0.0.1" in _task("0.0.1", tmp_path, mark)(None)
    code = (
        "import sys, pathlib; from ray import cloudpickle; from r2v.runtime.ray_executor import _task\n"
        "sent = cloudpickle.dumps(_task('0.0.1', pathlib.Path('/'), pathlib.Path('/mark')))\n"
        "for name in [name for name in sys.modules if name.split('.')[0] == 'r2v']: sys.modules[name] = None\n"
        "print(cloudpickle.loads(sent)(None))\n"
    )
    with python("-c", code, environment=ENVIRONMENT) as worker:
        out, err = worker.communicate()
    assert "has no r2v; install r2v 0.0.1 there" in out, err


def test_wrong_addresses_are_one_line(refused, tmp_path):
    (tmp_path / "tiny.yaml").write_text(SETTINGS)
    command = ("run", tmp_path / "tiny.yaml", "--out", tmp_path / "out")
    assert "add --executor ray" in refused(*command, "--address", "auto")
    assert "there are processes and ray" in refused(*command, "--executor", "slurm")
    (tmp_path / "logs.yaml").write_text("version: 1\nlogs: {path: log.jsonl}\n")
    assert "nothing is played" in refused("run", tmp_path / "logs.yaml", "--out", tmp_path / "out", "--executor", "ray")
    for other in ("evaluate", "certify", "ablate"):
        options = ("--fresh-tasks", 2, "--out", tmp_path / "out") if other == "evaluate" else ()
        assert "add --executor ray" in refused(other, tmp_path, *options, "--address", "auto")
    for address, message in (("ray://localhost:10001", "on a machine of the cluster"), ("127.0.0.1:1", "refused")):
        with pytest.raises(Exception, match=message), RayTasks(1, tmp_path, address):
            pass
