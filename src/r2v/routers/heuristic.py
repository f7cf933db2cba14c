"""Escalate by the paper's rule of thumb."""

from __future__ import annotations

from dataclasses import dataclass

from r2v.core.features import FEATURES
from r2v.core.types import Features
from r2v.routers.base import RouterBase

_ENTROPY = FEATURES.index("first_token_entropy")
_MEAN = FEATURES.index("verifier_mean")
ENTROPY = 2.5
MEAN = 0.4


@dataclass(frozen=True, kw_only=True, eq=False)
class Heuristic(RouterBase):
    """Escalates, at threshold 1, where the entropy exceeds 2.5 nats or the mean verifier score is below 0.4."""

    name: str = "heuristic"
    threshold: float | None = 1.0
    kind = "heuristic"
    cites = "A baseline of the R2V-Agent paper (arXiv 2605.16604)."
    colour = "#cc79a7"

    def score(self, features: Features) -> float:
        return max(features.values[_ENTROPY] / ENTROPY, (1 - features.values[_MEAN]) / (1 - MEAN))
