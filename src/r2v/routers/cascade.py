"""FrugalGPT's cascade at the level of steps: escalate where the SLM's answer is probably not the teacher's."""

from __future__ import annotations

from dataclasses import dataclass

from r2v.core.mlp import RiskMLP
from r2v.core.types import Features
from r2v.routers.base import RouterBase
from r2v.routers.fit_data import FitData


@dataclass(frozen=True, kw_only=True, eq=False)
class Cascade(RouterBase):
    """Escalates where the teacher would probably act otherwise."""

    name: str = "cascade"
    disagreement: RiskMLP
    kind = "disagreement"
    needs = frozenset({"answers"})
    colour = "#117733"
    cites = "FrugalGPT (arXiv 2305.05176): a learned scorer of the SLM's answer, here of each step."

    @classmethod
    def fit(cls, data: FitData) -> Cascade:
        return cls(disagreement=data.disagreement, fitted_with=data.fitted_with)

    def score(self, features: Features) -> float:
        return self.disagreement.score(features)
