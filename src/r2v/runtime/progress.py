"""Progress of long work: a bar with the remaining time on a terminal, a line every few seconds elsewhere (CI logs)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 15.0


class Report(Protocol):
    def __call__(self, done: int, total: int | None, note: str = "") -> None:
        """`total`: None where nobody knows it yet."""


@contextmanager
def progress(console: Console, label: str) -> Iterator[Report]:
    """Yields `report(done, total, note)`; call it as often as you like."""
    if console.is_terminal:
        with Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        ) as bars:
            bar = bars.add_task(label, total=None, note="")
            yield lambda done, total, note="": bars.update(bar, completed=done, total=total, note=note)
        return
    start = last = time.monotonic()

    def line(done: int, total: int | None, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_EVERY_S and done:
            last = now
            if total is None:
                console.print(f"  {label}: {done}{note and f' {note}'} so far", highlight=False)
                return
            left = (now - start) / done * (total - done)
            console.print(f"  {label}: {done}/{total}, about {left:.0f} s left {note}".rstrip(), highlight=False)

    yield line
