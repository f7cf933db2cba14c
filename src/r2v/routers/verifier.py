"""Escalate where no candidate scores well."""

from __future__ import annotations

from dataclasses import dataclass

from r2v.core.features import FEATURES
from r2v.core.types import Features
from r2v.routers.base import RouterBase

_BEST = FEATURES.index("verifier_best")


@dataclass(frozen=True, kw_only=True, eq=False)
class VerifierRouter(RouterBase):
    """Escalates where 1 - the best verifier score is high; the paper's rule is threshold 0.5."""

    name: str = "verifier"
    threshold: float | None = 0.5
    kind = "verifier_doubt"
    cites = "A baseline of the R2V-Agent paper (arXiv 2605.16604)."
    colour = "#56b4e9"

    def score(self, features: Features) -> float:
        return 1 - features.values[_BEST]
