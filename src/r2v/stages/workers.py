"""Worker processes for playing episodes. One thread each, and each keeps its own share of the tasks.

Keeping a task on one worker matters: many routers replay the same beginning of an episode, and the worker's SLM
remembers what it proposed there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from types import TracebackType
from typing import Any, TypeVar

from r2v.errors import StageError
from r2v.stages.progress import Report

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """A fixed number of single-process pools, started when first used."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pools: list[ProcessPoolExecutor] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for pool in self._pools:
            if error is not None:
                for process in list((pool._processes or {}).values()):
                    process.terminate()
            pool.shutdown(wait=error is None, cancel_futures=True)

    def shards(self, items: Sequence[T]) -> list[tuple[T, ...]]:
        """One interleaved share a worker; depends on the items' order only, so reruns give equal shards."""
        return [tuple(items[i :: self.count]) for i in range(self.count)]

    def map(self, function: Callable[[Any], R], jobs: Sequence[tuple[int, Any]], report: Report, note: str = "") -> list[R]:
        """Run `function(job)` for each (worker, job); results in the order of `jobs`. Progress counts jobs."""
        if not self._pools:
            context = get_context("spawn")
            self._pools = [ProcessPoolExecutor(1, mp_context=context) for _ in range(self.count)]
        futures: list[Future[R]] = [self._pools[worker].submit(function, job) for worker, job in jobs]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                report(done, len(futures), note)
        except BrokenProcessPool:
            raise StageError("a worker process was killed (out of memory?); run the same command again to resume") from None
        finally:
            for future in futures:
                future.cancel()
        return [future.result() for future in futures]
