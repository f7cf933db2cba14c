"""Long work beside an event loop: others are served between its steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

LARGE = 250_000
"""Bytes from which on work on them is long."""
P = ParamSpec("P")
T = TypeVar("T")
_thread = ThreadPoolExecutor(1, "r2v-long-work")
"""One alone: whoever waits for the interpreter then waits for one call of long work, however many requests there are."""
_readers = ThreadPoolExecutor(5, "r2v-reads")
"""What may wait long, for a server say: it takes no thread from what agents wait for."""


async def in_thread(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """What `work` returns, in a thread for what may wait long."""
    return await asyncio.get_running_loop().run_in_executor(_readers, partial(work, *arguments, **named))


async def in_slices(size: int, work: Callable[[], T]) -> T:
    """What `work` makes of so many bytes. Of many bytes it runs in a thread: others are served between its steps."""
    if size <= LARGE:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_thread, work)
