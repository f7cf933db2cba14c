"""A contextual bandit with delayed reward, frozen after learning on the explored episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from r2v.core.features import FEATURES, batch
from r2v.core.mlp import REMEMBERED, RiskMLP, linear
from r2v.core.types import Episode, Features
from r2v.maths import Floats
from r2v.routers.base import RouterBase, features_of
from r2v.routers.fit_data import FitData

BONUS = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Bandit(RouterBase):
    """Escalates where the upper confidence bound of the reward with the teacher is that much higher than without.

    One linear model of the episode's reward for each of {continue, escalate}, plus a bonus for what was tried little.
    """

    name: str = "bandit"
    gain: RiskMLP
    """Linear: reward with the teacher minus reward without."""
    inverse_AFF: Floats
    bonus: float = BONUS
    kind = "benefit"
    needs = frozenset({"exploration"})
    colour = "#aa4499"
    cites = "LinUCB (Li et al. 2010, arXiv 1003.0146)."

    @classmethod
    def fit(cls, data: FitData) -> Bandit:
        explored = [episode for episode in data.explored if episode.success is not None]
        gain, inverse_AFF = fit_linucb([*data.rollouts, *explored], data.names)
        return cls(gain=gain, inverse_AFF=inverse_AFF, fitted_with=data.fitted_with)

    def score(self, features: Features) -> float:
        return float(self._score(features))

    @cached_property
    def _score(self) -> Any:
        def score(features: Features) -> float:
            z = np.append(self.gain.inputs(features), 1.0)
            width_continue, width_escalate = (float(np.sqrt(z @ inverse @ z)) for inverse in self.inverse_AFF)
            return self.gain.value(features) + self.bonus * (width_escalate - width_continue)

        return lru_cache(REMEMBERED)(score)


def fit_linucb(episodes: Sequence[Episode], names: tuple[str, ...] = FEATURES) -> tuple[RiskMLP, Floats]:
    """(linear gain of escalating, inverse Gram matrix of each arm). The reward comes at the end and goes to every step."""
    from r2v.learning.linear import ranges, standardisation

    rows = [features for e in episodes for features in features_of(e)]
    x_NF, present_NF = batch(rows, names)
    mean_F, std_F = standardisation(x_NF, present_NF)
    z_NF = np.hstack([np.where(present_NF, (x_NF - mean_F) / std_F, 0.0), np.ones((len(rows), 1))])
    arm_N = np.array([int(step.choice.source == "teacher") for e in episodes for step in e.steps])
    reward_N = np.array([float(bool(e.success)) for e in episodes for _ in e.steps])
    inverse, theta = [], []
    for arm in (0, 1):
        z, reward = z_NF[arm_N == arm], reward_N[arm_N == arm]
        inverse.append(np.linalg.inv(np.eye(z.shape[1]) + z.T @ z))
        theta.append(inverse[-1] @ z.T @ reward)
    w = theta[1] - theta[0]
    facts = {"rows": len(rows)}
    gain = linear(names, mean_F, std_F, w[:-1], w[-1], facts=facts, range_2F=ranges(x_NF, present_NF))
    return gain, np.stack(inverse)
