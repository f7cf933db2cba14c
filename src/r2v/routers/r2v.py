"""The router of r2v: calibrated risk, then a threshold."""

from __future__ import annotations

from dataclasses import dataclass

from r2v.core.mlp import RiskMLP
from r2v.core.types import Features
from r2v.routers.base import RouterBase
from r2v.routers.fit_data import FitData


@dataclass(frozen=True, kw_only=True, eq=False)
class R2V(RouterBase):
    """Escalates where the calibrated risk that going on with the SLM fails the episode is high."""

    name: str = "r2v"
    risk: RiskMLP
    colour = "#0072b2"
    cites = "R2V-Agent (arXiv 2605.16604), with the risk fitted by a proper score before any threshold is chosen."

    @classmethod
    def fit(cls, data: FitData) -> R2V:
        return cls(risk=data.risk, fitted_with=data.fitted_with)

    def score(self, features: Features) -> float:
        return self.risk.score(features)
