"""A router of your own: `routers: [r2v, {kind: "examples.own_router:OwnRouter"}]` in the settings of a run.

It is fitted, played and shown in the report like the built-in ones. `r2v check examples.own_router:OwnRouter` tries it.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from r2v.core.mlp import RiskMLP, linear
from r2v.core.types import Features
from r2v.learning.labels import failure_rows
from r2v.learning.linear import fit_logistic, standardisation
from r2v.routers.base import RouterBase
from r2v.routers.fit_data import FitData

FEATURES = ("verifier_best", "repeats_in_last_five", "steps_since_new")  # of r2v.core.features


class OwnSettings(msgspec.Struct):  # its entry under `routers` may have these: {kind: ..., penalty: 10}
    penalty: float = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class OwnRouter(RouterBase):
    """Escalates where three numbers say that the small model is stuck: a logistic regression of its failures."""

    name: str = "own_router"
    risk: RiskMLP  # fields are what was fitted: they are saved and loaded
    kind = "risk"  # what the score estimates
    needs = frozenset()  # besides the small model's episodes, e.g. {"answers"}: what the teacher would have done
    colour = "#c2185b"
    cites = "Yours: where the idea comes from."
    Settings = OwnSettings

    @classmethod
    def fit(cls, data: FitData) -> OwnRouter:
        rows = failure_rows(data.rollouts, FEATURES)
        mean, std = standardisation(rows.x_NF, rows.present_NF)
        z = np.where(rows.present_NF, (rows.x_NF - mean) / std, 0.0)
        weights, bias = fit_logistic(z, rows.y_N, data.settings_of(cls).penalty)
        return cls(risk=linear(FEATURES, mean, std, weights, bias), fitted_with=data.fitted_with)

    def score(self, features: Features) -> float:  # escalates where it reaches the threshold; or write `rule` instead
        return self.risk.score(features)
