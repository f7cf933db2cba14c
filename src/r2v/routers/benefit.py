"""Escalate where it helps, not where it is risky: uplift (conditional average treatment effect) of one teacher step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from r2v.core.features import batch
from r2v.core.mlp import RiskMLP
from r2v.core.types import Features
from r2v.routers.base import RouterBase
from r2v.routers.fit_data import FitData


@dataclass(frozen=True, kw_only=True, eq=False)
class Benefit(RouterBase):
    """Escalates where P(the teacher acts otherwise) x what its step then adds to the chance of success is high."""

    name: str = "benefit"
    disagreement: RiskMLP
    worth: RiskMLP
    """A regression: success with the teacher's step minus success without, where both differ."""
    kind = "benefit"
    needs = frozenset({"answers", "branches"})
    colour = "#d55e00"
    cites = (
        "Ours; the target is the value of one intervention (arXiv 2502.04576), measured by playing both futures of a step."
    )

    @classmethod
    def fit(cls, data: FitData) -> Benefit:
        return cls(disagreement=data.disagreement, worth=fit_worth(data), fitted_with=data.fitted_with)

    def score(self, features: Features) -> float:
        return self.disagreement.score(features) * self.worth.value(features)


def fit_worth(data: FitData) -> RiskMLP:
    """Least squares on the branched steps, every draw of the future a row."""
    from r2v.learning.linear import fit_ridge

    recorded, branches = data.recorded, data.branches
    features = [recorded[b.episode].steps[b.t].choice.features for b in branches]
    x_NF, present_NF = batch([row for row in features if row is not None], data.names)
    gain_N = np.array([float(b.helped) - float(b.alone) for b in branches])
    number = {task: i for i, task in enumerate(sorted({e.task.id for e in recorded}))}
    task_N = np.array([number[recorded[b.episode].task.id] for b in branches])
    estimates = "what the teacher's step adds to success where it differs"
    return fit_ridge(x_NF, present_NF, gain_N, task_N, data.names, estimates)
