"""Cascade routing: of {this answer, another draw, the teacher} take the largest expected quality minus price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from r2v.core.features import batch, featurise
from r2v.core.mlp import RiskMLP
from r2v.core.types import Code, Context, Decision, Episode, Features, Memory, Route
from r2v.routers.base import RouterBase
from r2v.routers.fit_data import FitData

RETRY_PRICE = 0.02
"""Of one more draw of candidates, in teacher calls: the paper's 50 : 1."""
CODES: dict[Route, Code] = {"continue": "risk_below", "escalate": "risk_above", "retry": "retry"}


@dataclass(frozen=True, kw_only=True, eq=False)
class CascadeRouting(RouterBase):
    """Takes the best of answer, another draw and teacher at a price, and plans anew after a draw.

    Quality is the chance of doing what the teacher would; the threshold is the price of one teacher call.
    """

    name: str = "cascade_routing"
    disagreement: RiskMLP
    disagreement_later: RiskMLP
    """The same after another draw, foreseen from the features of now."""
    retry_price: float = RETRY_PRICE
    """Of one draw of candidates, as a share of a teacher call."""
    kind = "disagreement"
    needs = frozenset({"answers", "redraws"})
    routes = frozenset({"continue", "retry", "escalate"})
    colour = "#44aa99"
    cites = "Dekoninck et al., A Unified Approach to Routing and Cascading for LLMs (arXiv 2410.10347)."

    @classmethod
    def fit(cls, data: FitData) -> CascadeRouting:
        now = data.disagreement
        later = fit_later(data, data.redrawn, data.differs_redrawn)
        return cls(disagreement=now, disagreement_later=later, fitted_with=data.fitted_with)

    def score(self, features: Features) -> float:
        return self.disagreement.score(features)

    def rule(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        now, price = 1 - self.disagreement.score(features), self.point
        worth: dict[Route, float] = {"continue": now, "escalate": 1 - price}
        if memory.retries == 0:
            worth["retry"] = 1 - self.disagreement_later.score(features) - price * self.retry_price
        route = max(worth, key=lambda r: worth[r])
        reason = "worth: " + ", ".join(f"{name} {value:.3f}" for name, value in worth.items())
        return Decision(route, CODES[route], 1 - now, self.kind, price, 1.0, (), reason)


def fit_later(data: FitData, episodes: Sequence[Episode], differs: Sequence[Sequence[bool]]) -> RiskMLP:
    """P(the best of two draws differs from the teacher), foreseen from the features of the first."""
    from r2v.learning.labels import Rows

    k, rows, y, seeds, owners = data.k, [], [], [], []
    for i, (episode, of_steps) in enumerate(zip(episodes, differs, strict=True)):
        contexts = episode.contexts(data.horizon)
        for step, context, label in zip(episode.steps, contexts, of_steps, strict=True):
            rows.append(featurise(context, step.choice.candidates[:k], step.choice.scores[:k]))
            y.append(float(label))
            seeds.append(step.seed)
            owners.append(i)
    every = Rows(*batch(rows, data.names), np.array(y), np.array(seeds), np.array(owners))
    out = every.episode_N % 5 == 0  # these episodes choose the epoch and the temperature
    estimates = "the chance that the teacher would act differently after one more draw of candidates"
    return data.probability("cascade_routing", every.where(~out), every.where(out), data.names, estimates=estimates)
