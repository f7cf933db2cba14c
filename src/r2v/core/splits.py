"""Splits by task: what is trained on, chosen on and reported on never meets."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from r2v.core.errors import SettingsError
from r2v.core.types import Task


def split(tasks: Sequence[Task], sizes: Mapping[str, int], *, seed: int) -> dict[str, tuple[Task, ...]]:
    """Disjoint named splits of the given sizes, each with the families in the proportions of `tasks`.

    Deterministic in seed and independent of the order of `tasks`. Raises SettingsError when there are too few tasks.
    """
    wanted = sum(sizes.values())
    if wanted > len(tasks):
        raise SettingsError(f"the splits need {wanted} tasks but there are {len(tasks)}; lower the sizes under `tasks`")
    if len({task.id for task in tasks}) != len(tasks):
        raise SettingsError("two tasks have the same id; every task must occur once")
    by_family: dict[str, list[Task]] = {}
    for task in sorted(tasks, key=lambda task: task.id):
        by_family.setdefault(task.family, []).append(task)
    ranked: list[tuple[float, str, Task]] = []
    for family, members in by_family.items():
        random.Random(f"{seed}/{family}").shuffle(members)
        # Rank i of n gets position (i + 1/2) / n: any run of the merged order then holds each family in proportion.
        ranked += [((i + 0.5) / len(members), family, task) for i, task in enumerate(members)]
    order = [task for _, _, task in sorted(ranked, key=lambda entry: entry[:2])]
    result, start = {}, 0
    for name, size in sizes.items():
        result[name] = tuple(order[start : start + size])
        start += size
    return result
