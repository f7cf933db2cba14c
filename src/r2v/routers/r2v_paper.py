"""The router of the R2V-Agent paper as it stands there: one joint objective, 15 features."""

from __future__ import annotations

from dataclasses import dataclass

from r2v.core.features import PAPER
from r2v.core.mlp import RiskMLP
from r2v.core.types import Features
from r2v.routers.base import RouterBase
from r2v.routers.fit_data import FitData


@dataclass(frozen=True, kw_only=True, eq=False)
class R2VPaper(RouterBase):
    """Escalates by a network trained on cost, failure and CVaR over groups of episodes at once."""

    name: str = "r2v_paper"
    risk: RiskMLP
    colour = "#009e73"
    cites = "R2V-Agent (arXiv 2605.16604), section 5."

    @classmethod
    def fit(cls, data: FitData) -> R2VPaper:
        from r2v.learning.labels import failure_rows

        train, held = failure_rows(data.rollouts, PAPER, data.groups), failure_rows(data.held, PAPER)
        return cls(risk=data.probability("r2v_paper", train, held, PAPER, objective="paper"), fitted_with=data.fitted_with)

    def score(self, features: Features) -> float:
        return self.risk.score(features)
