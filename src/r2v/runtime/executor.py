"""Where the pieces of a stage run: an executor takes a function and jobs. Here: worker processes of this machine.

`ray_executor.py` has the other one, tasks of a Ray cluster.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from r2v.core.errors import SettingsError, StageError
from r2v.runtime.progress import Report


class Executor(Protocol):
    def map(self, function: Callable[[Any], None], jobs: Sequence[Any], report: Report, note: str = "") -> None:
        """Run `function(job)` for every job, in any order, and return when all are done; progress counts jobs.

        `function` is importable by name and jobs can be pickled. Jobs are idempotent: a lost one may be run again.
        """
        ...


@dataclass(frozen=True)
class ExecutorChoice:
    """Which executor a command uses."""

    kind: str = "processes"
    """`processes`, or `ray`."""
    address: str | None = None
    """Of a Ray cluster, HOST:PORT or `auto`; None: one of this machine, which ends with the command."""

    def __post_init__(self) -> None:
        if self.kind not in ("processes", "ray"):
            raise SettingsError(f"--executor {self.kind}: there are processes and ray")
        if self.address is not None and self.kind != "ray":
            raise SettingsError(f"--address {self.address} is a Ray cluster's; add --executor ray")

    def started(self, workers: int, folder: Path) -> AbstractContextManager[Executor]:
        """The executor, which ends with the context.

        Args:
            workers: processes of this machine; a cluster that is there has its own number.
            folder: what the jobs write to; the caller holds its lock.
        """
        if self.kind == "processes":
            return LocalProcesses(workers)
        from r2v.runtime.ray_executor import RayTasks  # needs the extra `ray`

        return RayTasks(workers, folder, self.address)


class LocalProcesses:
    """A fixed number of processes, started when first used and stopped at once when the work fails."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> LocalProcesses:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is None:
            return
        if error is not None:
            for process in list((self._pool._processes or {}).values()):
                process.terminate()
        self._pool.shutdown(wait=error is None, cancel_futures=True)

    def map(self, function: Callable[[Any], None], jobs: Sequence[Any], report: Report, note: str = "") -> None:
        """See `Executor`. Raises StageError where a process was killed."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._count, mp_context=get_context("spawn"), initializer=_end_with, initargs=(os.getpid(),)
            )
        futures = [self._pool.submit(function, job) for job in jobs]
        # After an error nothing is cancelled here: the pool's thread breaks on cancelled jobs once its processes are gone.
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                report(done, len(futures), note)
        except BrokenProcessPool:
            raise StageError("a worker process was killed (out of memory?); run the same command again to resume") from None


def _end_with(parent: int) -> None:
    """Stop this process soon after `parent` is gone: a killed run must not go on writing beside the one that resumes it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
