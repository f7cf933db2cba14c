"""Perturbations disturb what an agent reads, never the environment's state (method, section 3). A domain brings its own."""

from __future__ import annotations

from collections.abc import Sequence

from r2v.core.seeds import derive_seed

FAMILIES = ("flaky", "partial", "inject", "distract")
CLEAN = "none"
TOGETHER = "+"
"""Joins the names of families that disturb the same episode."""


def family_of(task_id: str, z: int, families: Sequence[str] = FAMILIES) -> str:
    """The family of episode (task, perturbation seed z): consecutive seeds give each task each family in turn.

    So every seed group holds all families in equal shares, and groups differ by chance only. z = 0 is clean, and so is all
    where there are no families.
    """
    if z == 0 or not families:
        return CLEAN
    return families[(derive_seed("family", task_id) + z) % len(families)]
