"""The helper policy: values of intervening for budgets of teacher calls, mixed so that the calls made meet the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from r2v.core.fixed import Never
from r2v.core.mlp import RiskMLP
from r2v.core.seeds import derive_uniform
from r2v.core.types import Context, Decision, Episode, Features, Memory
from r2v.routers.base import Play, RouterBase, compare, features_of
from r2v.routers.fit_data import FitData

FACTORS = (0.4, 0.7, 1.0, 1.5, 2.5)
"""Prices tried for a budget: those at which the SLM's own steps would escalate this many times the budget."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Price(RouterBase):
    """Escalates where the value of intervening reaches a price."""

    name: str = "helper"
    values: tuple[RiskMLP, ...]
    """One for each number of calls left, from 1 on; a single one where calls are not limited."""
    kind = "benefit"

    def rule(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        most = len(self.values)
        left = most if memory.calls_left is None else min(max(memory.calls_left, 1), most)
        return compare(self.name, "benefit", self.values[left - 1].value(features), self.point)


@dataclass(frozen=True)
class Mixture:
    """Two prices of one budget, of which one is drawn for each episode."""

    budget: float
    value: int
    """Number of its values of intervening."""
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
    """One a budget, or `max_calls` of them, as in `r2v.learning.helper.HelperFit`."""
    mixtures: tuple[Mixture, ...] = ()
    max_calls: int | None = None
    """The limit of calls of an episode that it was fitted for."""

    def __post_init__(self) -> None:
        if not all(0 <= mixture.value < len(self.values) // (self.max_calls or 1) for mixture in self.mixtures):
            raise ValueError(f"a mixture of a value beyond the {len(self.values)} that there are")

    def values_of(self, number: int) -> tuple[RiskMLP, ...]:
        """Those of a budget, one for each number of calls left where these are limited."""
        each = self.max_calls or 1
        return self.values[number * each : (number + 1) * each]

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
            seed=data.seed, max_calls=data.max_calls, names=data.names,
        )  # fmt: skip
        values, most = tuple(found.values), data.max_calls
        return cls(budgets=found.budgets, prices=found.prices, values=values, max_calls=most, fitted_with=data.fitted_with)

    @classmethod
    def tuning(cls, budgets: int) -> int:
        return budgets * len(FACTORS)

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
        for i, budget in enumerate(self.budgets):
            of_budget = self.values_of(i)
            values = [of_budget[-1].value(row) for row in features]
            shares = [max(0.0, 1 - factor * budget / steps) for factor in FACTORS]
            prices = dict.fromkeys(np.quantile(values, shares, method="higher").tolist())
            tried += [Price(values=of_budget, threshold=price) for price in prices]
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
        return Price(values=self.values_of(mixture.value), threshold=price).rule(context, features, memory, seed=seed)
