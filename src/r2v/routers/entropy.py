"""Escalate where the SLM is unsure of its first token."""

from __future__ import annotations

from dataclasses import dataclass

from r2v.core.features import FEATURES
from r2v.core.types import Features
from r2v.routers.base import RouterBase

_ENTROPY = FEATURES.index("first_token_entropy")


@dataclass(frozen=True, kw_only=True, eq=False)
class Entropy(RouterBase):
    """Escalates where the entropy of the first action token is high (nats; 0 where it is unknown)."""

    name: str = "entropy"
    threshold: float | None = 2.0
    kind = "entropy"
    cites = "A baseline of the R2V-Agent paper (arXiv 2605.16604)."
    colour = "#e69f00"

    def score(self, features: Features) -> float:
        return features.values[_ENTROPY]
