"""Perturbations: four families that disturb what an agent reads, never the environment's state (method, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

from r2v.perturbations import distract, flaky, inject, partial
from r2v.perturbations.operators import Operators
from r2v.seeds import derive_seed

FAMILIES = ("flaky", "partial", "inject", "distract")
CLEAN = "none"


def make_perturbation(family: str, strength: float, topic: str) -> Operators:
    """The named family; `topic` is the goal, whose words the injected texts use. Raises ValueError for unknown names."""
    makers = {"flaky": flaky.make, "partial": partial.make, "inject": inject.make, "distract": distract.make}
    if family not in makers:
        raise ValueError(f"unknown perturbation family {family!r}; known: {', '.join(FAMILIES)}")
    return makers[family](strength, topic)


def family_of(task_id: str, z: int, families: Sequence[str] = FAMILIES) -> str:
    """The family of episode (task, perturbation seed z): consecutive seeds give each task each family in turn.

    So every seed group holds all families in equal shares, and groups differ by chance only. z = 0 is clean.
    """
    if z == 0:
        return CLEAN
    return families[(derive_seed("family", task_id) + z) % len(families)]
