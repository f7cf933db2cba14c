"""Routing whole episodes by the goal alone, as query routers do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from r2v.core.types import Context, Decision, Episode, Features, Memory
from r2v.routers.base import RouterBase, compare, quantiles
from r2v.routers.fit_data import FitData

RARE = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Query(RouterBase):
    """Gives the whole episode to the teacher or to the SLM, by the words of the goal."""

    name: str = "query"
    bias: float = 0.0
    weights: Mapping[str, float] = field(default_factory=dict)
    """Log-odds of failure that each word adds."""
    kind = "goal_risk"
    routes = frozenset({"continue", "takeover"})
    colour = "#999933"
    cites = "RouteLLM (arXiv 2406.18665) and Hybrid LLM (arXiv 2404.14618), with a bag of words."

    @classmethod
    def fit(cls, data: FitData) -> Query:
        bias, weights = fit_goal([e.goal for e in data.rollouts], [not e.success for e in data.rollouts])
        return cls(bias=bias, weights=weights, fitted_with=data.fitted_with)

    def risk(self, goal: str) -> float:
        """P(the SLM fails an episode with this goal)."""
        return float(1 / (1 + np.exp(-self.bias - sum(self.weights.get(word, 0.0) for word in words_of(goal)))))

    def thresholds(self, validation: Sequence[Episode], shares: Sequence[float]) -> list[float]:
        return quantiles([self.risk(episode.goal) for episode in validation], shares)

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        if context.t > 0:
            return Decision("continue", "scheduled", None, None, self.point, 1.0, (), "the goal was given to the SLM")
        return compare("risk of this goal", "goal_risk", self.risk(context.goal), self.point, above="takeover")


def words_of(goal: str) -> set[str]:
    return set(re.findall(r"[a-z]+", goal.lower()))


def fit_goal(
    goals: Sequence[str], failed: Sequence[bool], *, penalty: float = 10.0, rare: int = RARE
) -> tuple[float, dict[str, float]]:
    """(bias, weight a word) of P(failure | words of the goal), from one goal an episode; a word of fewer than `rare` goals
    gets no weight.
    """
    from r2v.learning.linear import fit_logistic

    bags = [words_of(goal) for goal in goals]
    count = Counter(word for words in bags for word in words)
    known = sorted(word for word, n in count.items() if n >= rare)
    column = {word: i for i, word in enumerate(known)}
    x_NF = np.zeros((len(bags), len(known)))
    for row, words in zip(x_NF, bags, strict=True):
        row[[column[word] for word in words if word in column]] = 1
    weights, bias = fit_logistic(x_NF, np.array(failed, dtype=float), penalty)
    return bias, dict(zip(known, weights.tolist(), strict=True))
