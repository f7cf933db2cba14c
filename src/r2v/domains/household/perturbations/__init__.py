"""The household's perturbations: four families of operators on its texts (method, section 3)."""

from __future__ import annotations

from r2v.domains.household.perturbations import distract, flaky, inject, partial
from r2v.perturbations.operators import Operators

MAKERS = {"flaky": flaky.make, "partial": partial.make, "inject": inject.make, "distract": distract.make}


def make_perturbation(family: str, strength: float, topic: str) -> Operators:
    """The named family; `topic` is the goal, whose words the injected texts use. Raises ValueError for unknown names."""
    if family not in MAKERS:
        raise ValueError(f"unknown perturbation family {family!r}; known: {', '.join(MAKERS)}")
    return MAKERS[family](strength, topic)
