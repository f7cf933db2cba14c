"""Perturbations disturb what an agent reads, never the environment's state (method, section 3). A domain brings its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from r2v.core.seeds import derive_seed

FAMILIES = ("flaky", "partial", "inject", "distract")
CLEAN = "none"
TOGETHER = "+"
"""Joins the names of families that disturb the same episode."""
GroupPart = Literal["family", "severity", "seed"]
"""What a group of CVaR may be made of."""
BY_SEED: tuple[GroupPart, ...] = ("seed",)


def family_of(task_id: str, z: int, families: Sequence[str] = FAMILIES) -> str:
    """The family of episode (task, perturbation seed z): consecutive seeds give each task each family in turn.

    So every seed group holds all families in equal shares, and groups differ by chance only. z = 0 is clean, and so is all
    where there are no families.
    """
    if z == 0 or not families:
        return CLEAN
    return families[(derive_seed("family", task_id) + z) % len(families)]


def severity_of(task_id: str, z: int, severities: Sequence[float], families: Sequence[str] = FAMILIES) -> float | None:
    """The severity of episode (task, perturbation seed z); None where it is clean or there are no severities.

    It changes after each round of the families, so that as many consecutive seeds as there are pairs of family and severity
    give each task each pair once, and fewer give each pair to as many tasks. The first one is drawn by the task.
    """
    if z == 0 or not severities:
        return None
    rounds = (derive_seed("family", task_id) + z) // max(1, len(families))
    return severities[(derive_seed("severity", task_id) + rounds) % len(severities)]


def group_of(parts: Collection[GroupPart], family: str, severity: float | None, seed: int) -> str:
    """Name of the CVaR group of an episode: episodes of one group are alike in all `parts`."""
    value = {"family": family, "severity": f"severity {severity or 1:g}", "seed": f"seed {seed}"}
    return ", ".join(value[part] for part in parts)
