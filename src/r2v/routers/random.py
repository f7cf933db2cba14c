"""Escalate at random: what every other router has to beat at equal cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from r2v.core.seeds import derive_uniform
from r2v.core.types import Context, Decision, Episode, Features, Memory
from r2v.routers.base import RouterBase


@dataclass(frozen=True, kw_only=True, eq=False)
class Random(RouterBase):
    """Escalates with the same probability at every step; the propensity is logged."""

    name: str = "random"
    kind = None
    colour = "#b0a090"

    def thresholds(self, validation: Sequence[Episode], shares: Sequence[float]) -> list[float]:
        return sorted(shares)

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        draw, rate = derive_uniform(seed, "random router"), self.point
        if draw < rate:
            return Decision("escalate", "random", None, None, rate, rate, (), f"drew {draw:.3f} < {rate:.3f}")
        return Decision("continue", "random", None, None, rate, 1 - rate, (), f"drew {draw:.3f} >= {rate:.3f}")
