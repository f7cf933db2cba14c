"""The pieces of a stage as tasks of a Ray cluster: one that is there, or one of this machine, made for the command.

All machines of the cluster have this version of r2v, and see the folder of the run and the working directory at the same
paths: a task reads and writes there, as a process of this machine does.
"""

from __future__ import annotations

import logging
import os
import pickle
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from r2v import __version__
from r2v.core.errors import SettingsError, StageError
from r2v.runtime.progress import Report

RETRIES = 3
"""Times that a piece is begun again when its worker or its machine dies."""
REACH_S = 10
"""Seconds for a cluster to take a connection."""
OBJECT_STORE_BYTES = 256 * 2**20
"""Of a cluster of this machine: it holds jobs alone, and what does not fit goes to disk."""


class RayTasks:
    """An executor whose jobs are Ray tasks with one CPU each.

    A file in `folder` marks this driver: a worker that does not find it stops. So nothing of a driver that was killed
    writes beside the one that resumes, and a machine that does not see the folder is found at once.
    """

    def __init__(self, workers: int, folder: Path, address: str | None) -> None:
        if address is not None and "://" in address:
            raise SettingsError(
                f"--address {address}: give HOST:PORT or auto, and start r2v on a machine of the cluster; a driver outside "
                "of it leaves tasks behind when it is killed"
            )
        self._workers = workers
        self._folder = folder.absolute()
        self._address = address
        self._open = ExitStack()

    def __enter__(self) -> RayTasks:
        """Connects, and asks every machine whether it can work. Raises StageError with the first that cannot."""
        with ExitStack() as opened:
            mark = opened.enter_context(_Mark(self._folder))
            self._ray = opened.enter_context(_Cluster(self._workers, self._address))
            task = self._ray.remote(_task(__version__, Path.cwd(), mark))
            self._task = task.options(num_cpus=1, max_retries=RETRIES)
            self._ask_every_machine(task)
            self._open = opened.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()  # Ray ends the tasks of a driver that is gone

    def map(self, function: Callable[[Any], None], jobs: Sequence[Any], report: Report, note: str = "") -> None:
        """See `Executor`. Raises StageError where a worker died again and again, or cannot work."""
        waiting = [self._task.remote(pickle.dumps((function, job))) for job in jobs]
        while waiting:
            (ready,), waiting = self._ray.wait(waiting, num_returns=1)
            self._finish(ready)
            report(len(jobs) - len(waiting), len(jobs), note)

    def _ask_every_machine(self, task: Any) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if not self._ray.cluster_resources().get("CPU"):
            raise StageError(f"the Ray cluster at {self._address} has no CPUs; start a machine with `ray start`")
        machines = [node["NodeID"] for node in self._ray.nodes() if node["Alive"]]
        # soft: one that leaves in this moment is none that will work
        places = [NodeAffinitySchedulingStrategy(machine, soft=True) for machine in machines]
        for answer in [task.options(num_cpus=0, scheduling_strategy=place).remote(None) for place in places]:
            self._finish(answer)

    def _finish(self, ready: Any) -> None:
        """Raises what a job raised as it would here."""
        exceptions = self._ray.exceptions
        try:
            problem = self._ray.get(ready)
        except exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from error
        except (exceptions.WorkerCrashedError, exceptions.NodeDiedError, exceptions.OutOfMemoryError):
            raise StageError(
                f"a Ray worker died {RETRIES + 1} times at one piece (out of memory?); run the same command again to resume"
            ) from None
        if problem is not None:
            raise StageError(problem)


class _Mark:
    """The file that says that its driver lives."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f".ray-{secrets.token_hex(8)}"

    def __enter__(self) -> Path:
        for old in self._folder.glob(".ray-*"):  # of drivers that were killed: this one holds the folder's lock
            old.unlink(missing_ok=True)
        self._path.touch()
        return self._path

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)


class _Cluster:
    """A connection to a cluster; without an address a cluster of this machine, which listens on 127.0.0.1 alone."""

    def __init__(self, workers: int, address: str | None) -> None:
        self._workers = workers
        self._address = address
        self._ended = ExitStack()

    def __enter__(self) -> Any:
        # Read when Ray is imported: no usage statistics, and nothing of its own on the terminal.
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": "."}
        if self._address is None:  # then services listen on the loopback address, and want a token
            os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # read once in a process
        import ray

        common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address is None:
            folder = self._ended.enter_context(TemporaryDirectory(prefix="r2v-ray-", ignore_cleanup_errors=True))
            common |= {
                "address": "local", "num_cpus": self._workers, "include_dashboard": False, "_temp_dir": folder,
                "object_store_memory": OBJECT_STORE_BYTES,
            }  # fmt: skip
        else:
            common["address"] = self._address
        self._ended.callback(ray.shutdown)
        try:
            if self._address not in (None, "auto"):
                _reach(str(self._address))
            ray.init(**common)
        except (OSError, RuntimeError, ValueError) as error:
            self._ended.close()
            why = str(error).strip().split("\n")[0].rstrip(".")
            if self._address is None:
                raise StageError(f"Ray does not start on this machine: {why}") from None
            mend = "see `ray status` on a machine of the cluster"
            raise StageError(f"no Ray cluster can be used at {self._address}: {why}; {mend}") from None
        return ray

    def __exit__(self, *_: object) -> None:
        self._ended.close()


def _reach(address: str) -> None:
    """Raise OSError or ValueError where nothing listens at HOST:PORT: Ray would try for many minutes."""
    from ray.util import get_node_ip_address

    host, _, port = address.rpartition(":")
    if host in ("localhost", "127.0.0.1"):
        host = get_node_ip_address()  # what Ray takes for it
    socket.create_connection((host, int(port)), timeout=REACH_S).close()


def _task(version: str, working_directory: Path, mark: Path) -> Callable[[bytes | None], str | None]:
    """What runs on a worker: it returns why the machine cannot work, or None."""
    shared = f"the working directory {working_directory} and the folder {mark.parent}"

    def piece(work: bytes | None) -> str | None:
        # Sent as it is and not by name, so that it can say that r2v is not there.
        import os
        import socket

        here = f"the Ray worker on {socket.gethostname()}"
        try:
            from r2v import __version__ as found
        except ImportError:
            return f"{here} has no r2v; install r2v {version} there, with the same extras"
        if found != version:
            return f"{here} has r2v {found}, this is {version}; install the same version on all machines"
        if not (os.path.exists(mark) and os.path.isdir(working_directory)):
            return f"{here} does not see {shared}; start r2v where all machines of the cluster share both"
        from r2v.runtime.ray_executor import run_piece

        try:
            run_piece(working_directory, mark, work)
        except ModuleNotFoundError as error:
            return f"{here} has no module {error.name}; install there what is installed here"
        return None

    return piece


def run_piece(working_directory: Path, mark: Path, work: bytes | None) -> None:
    """Run the pickled (function, job) on a worker as if it were on the driver's machine."""
    _end_without(mark)
    os.chdir(working_directory)
    if str(working_directory) not in sys.path:  # parts named by dotted path are found there
        sys.path.append(str(working_directory))
    if work is not None:
        function, job = pickle.loads(work)
        function(job)


@cache
def _end_without(mark: Path) -> None:
    """Stop this worker soon after its driver's mark is gone, also where Ray does not reach it."""

    def watch() -> None:
        while mark.exists():
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
