"""Long work beside an event loop: others are served between its steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

LARGE = 250_000
"""Bytes from which on work on them is long."""
T = TypeVar("T")
_thread = ThreadPoolExecutor(1, "r2v-long-work")
"""One alone: whoever waits for the interpreter then waits for one call of long work, however many requests there are."""


async def in_slices(size: int, work: Callable[[], T]) -> T:
    """What `work` makes of so many bytes. Of many bytes it runs in a thread: others are served between its steps."""
    if size <= LARGE:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_thread, work)
