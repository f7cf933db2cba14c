"""The helper policy: values of intervening for budgets of teacher calls, mixed so that the calls made meet the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from r2v.core.fixed import Never
from r2v.core.mlp import RiskMLP
from r2v.core.seeds import derive_uniform
from r2v.core.types import Context, Decision, Episode, Features, Memory
from r2v.routers.base import FitData, Play, RouterBase, features_of

FACTORS = (0.4, 0.7, 1.0, 1.5, 2.5)
"""Prices tried for a budget: those at which the SLM's own steps would escalate this many times the budget."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Price(RouterBase):
    """Escalates where the value of intervening reaches a price."""

    name: str = "helper"
    value: RiskMLP
    kind = "benefit"

    def score(self, features: Features) -> float:
        return self.value.value(features)


@dataclass(frozen=True)
class Mixture:
    """Two prices of one budget, of which one is drawn for each episode."""

    budget: float
    value: int
    """Index into `values`."""
    first: float | None
    """Price; None never escalates."""
    second: float | None
    weight: float
    """Share of episodes at the second price."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Helper(RouterBase):
    """Escalates where the value of intervening exceeds its price, so that a budget of teacher calls is met.

    The threshold is the budget, in teacher calls an episode.
    """

    name: str = "helper"
    budgets: tuple[float, ...]
    prices: tuple[float, ...]
    """What intervening must be worth at each budget, by the fitted decision process."""
    values: tuple[RiskMLP, ...]
    mixtures: tuple[Mixture, ...] = ()

    def __post_init__(self) -> None:
        if not all(0 <= mixture.value < len(self.values) for mixture in self.mixtures):
            raise ValueError(f"a mixture of a value beyond the {len(self.values)} that there are")

    kind = "benefit"
    needs = frozenset({"answers", "exploration"})
    colour = "#9467bd"
    cites = "Self-Regulation and Requesting Interventions (arXiv 2502.04576)."

    @classmethod
    def fit(cls, data: FitData) -> Helper:
        from r2v.learning.helper import fit_helper

        disagreement, risk = data.disagreement, data.risk
        explored = [episode for episode in data.explored if episode.success is not None]
        found = fit_helper(
            [*data.rollouts, *explored], disagreement, risk, data.budgets, data.horizon, data.settings,
            seed=data.seed,
        )  # fmt: skip
        values = tuple(found.values)
        return cls(budgets=found.budgets, prices=found.prices, values=values, fitted_with=data.fitted_with)

    def tuned(self, play: Play, data: FitData) -> Helper:
        """Play each budget's value of intervening at some prices, and mix two neighbours so that the calls made meet it.

        What the fitted decision process promises is not trusted: its usage is off, and the regression flattens its values.
        Calls are counted on validation tasks and, because a mean of 80 tasks is off by a tenth, on the router tasks under
        one seed.
        """
        features = [f for episode in data.held for f in features_of(episode)]
        steps = len(features) / len(data.held)
        tried: list[Price] = []
        owners: list[int] = []
        for i, (budget, value) in enumerate(zip(self.budgets, self.values, strict=True)):
            values = [value.value(row) for row in features]
            shares = [max(0.0, 1 - factor * budget / steps) for factor in FACTORS]
            prices = dict.fromkeys(np.quantile(values, shares, method="higher").tolist())
            tried += [Price(value=value, threshold=price) for price in prices]
            owners += [i] * len(prices)
        calls = play({str(p): price for p, price in enumerate(tried)})
        usage = [float(np.mean(calls[str(p)])) for p in range(len(tried))]
        mixtures = []
        for i, budget in enumerate(self.budgets):
            rising = sorted([(0.0, -1), *((usage[p], p) for p, owner in enumerate(owners) if owner == i)])
            below = max(entry for entry in rising if entry[0] <= budget)
            above = min((entry for entry in rising if entry[0] > budget), default=below)
            weight = (budget - below[0]) / (above[0] - below[0]) if above[0] > below[0] else 0.0
            first, second = (None if p < 0 else tried[p].threshold for _, p in (below, above))
            mixtures.append(Mixture(budget, i, first, second, weight))
        return replace(self, mixtures=tuple(mixtures))

    def thresholds(self, validation: Sequence[Episode], shares: Sequence[float]) -> list[float]:
        return sorted(self.budgets)

    def rule(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        mixture = next((m for m in self.mixtures if m.budget == self.point), None)
        if mixture is None:
            raise ValueError(f"the helper was fitted for {', '.join(map(str, self.budgets))} calls, not {self.point}")
        second = derive_uniform(memory.seed, "mixture") < mixture.weight
        price = mixture.second if second else mixture.first
        if price is None:
            return Never().decide(context, features, memory, seed=seed)
        return Price(value=self.values[mixture.value], threshold=price).rule(context, features, memory, seed=seed)
