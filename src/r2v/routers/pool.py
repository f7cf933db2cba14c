"""Choosing among more than two models: each stronger one is worth what it gains, less what it costs.

A pool is the SLM, the teacher and models between them. For each stronger model there is an estimate of what its taking this
step gains; the threshold is the price of one teacher call, of which each model costs a part. The pair is the case of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from r2v.core.errors import StageError
from r2v.core.features import proposing
from r2v.core.mlp import RiskMLP
from r2v.core.types import TEACHER, Context, Decision, Episode, Features, Member, Memory, Route
from r2v.routers.bandit import Bandit
from r2v.routers.base import InnerRouter, RouterBase, quantiles
from r2v.routers.benefit import Benefit
from r2v.routers.cascade_routing import CODES, CascadeRouting, fit_later
from r2v.routers.fit_data import FitData
from r2v.routers.reading_benefit import ReadingBenefit


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool(RouterBase):
    """Base of routers that choose among several stronger models; one router of a pair estimates the gain of each."""

    members: tuple[Member, ...]
    """The stronger models; the last is the teacher."""
    gains: tuple[InnerRouter, ...]
    """Of each, the router whose estimate is what the model gains."""
    kind = "benefit"
    of: ClassVar[type[RouterBase]]
    """The router of a pair."""

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    @cached_property
    def model(self) -> RiskMLP | None:
        """That of the teacher's gain: it knows what was seen in the fit."""
        return self.gains[-1].router.model

    @classmethod
    def fit(cls, data: FitData) -> Pool:
        stronger = (*with_pool(data, cls.name), (Member(TEACHER, 1.0), data))
        gains = tuple(InnerRouter(cls.of.fit(own)) for _, own in stronger)
        return cls(members=tuple(member for member, _ in stronger), gains=gains, fitted_with=data.fitted_with)

    def estimate(self, context: Context, features: Features) -> float:
        """The highest price of a teacher call at which some model is worth it."""
        return _price(self._gains(context, features))

    def thresholds(self, validation: Sequence[Episode], shares: Sequence[float]) -> list[float]:
        """See `RouterBase.thresholds`; routers that read are given what there is to read."""
        assert self.fitted_with is not None and self.fitted_with.horizon is not None
        scores = [
            self.estimate(proposing(context, step.choice.candidates, step.choice.scores), step.choice.features)
            for episode in validation
            for context, step in zip(episode.contexts(self.fitted_with.horizon), episode.steps, strict=True)
            if step.choice.features is not None
        ]
        return quantiles(scores, shares)

    def rule(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        price, gains = self.point, self._gains(context, features)
        score = _price(gains)
        worth = {member.name: gain - price * member.price for member, gain in gains}
        reason = f"at {price:.3f} a teacher call: " + ", ".join(f"{name} {value:+.3f}" for name, value in worth.items())
        if score < price:
            return Decision("continue", "risk_below", score, self.kind, price, 1.0, (), reason)
        best = max(worth, key=lambda name: worth[name])
        return Decision("escalate", "risk_above", score, self.kind, price, 1.0, (), reason, best)

    def _gains(self, context: Context, features: Features) -> list[tuple[Member, float]]:
        return [(m, gain.router.estimate(context, features)) for m, gain in zip(self.members, self.gains, strict=True)]


def _price(gains: Sequence[tuple[Member, float]]) -> float:
    return max(gain / member.price for member, gain in gains)


@dataclass(frozen=True, kw_only=True, eq=False)
class PoolBenefit(Pool):
    """`benefit` among several models: what one step of each adds to the chance of success, less its price."""

    name: str = "pool_benefit"
    needs = Benefit.needs | {"pool"}
    of = Benefit
    colour = "#8c2d04"
    cites = Benefit.cites


@dataclass(frozen=True, kw_only=True, eq=False)
class PoolBandit(Pool):
    """`bandit` among several models, of which each is an arm."""

    name: str = "pool_bandit"
    needs = Bandit.needs | {"pool"}
    of = Bandit
    colour = "#762a83"
    cites = Bandit.cites


@dataclass(frozen=True, kw_only=True, eq=False)
class PoolReadingBenefit(Pool):
    """`reading_benefit` among several models: where the SLM fails and that one does not, less its price."""

    name: str = "pool_reading_benefit"
    needs = ReadingBenefit.needs | {"pool"}
    of = ReadingBenefit
    colour = "#882255"
    cites = ReadingBenefit.cites


@dataclass(frozen=True, kw_only=True, eq=False)
class PoolCascadeRouting(CascadeRouting):
    """`cascade_routing` among several models: this answer, another draw or a stronger model, whichever is worth most.

    Quality is the chance of doing what the teacher would; the threshold is the price of one teacher call.
    """

    name: str = "pool_cascade_routing"
    members: tuple[Member, ...]
    """The models between SLM and teacher."""
    disagreement_of: tuple[RiskMLP, ...]
    """Of each of them: the chance that it acts otherwise than the teacher."""
    needs = CascadeRouting.needs | {"pool"}
    colour = "#117733"

    @classmethod
    def fit(cls, data: FitData) -> PoolCascadeRouting:
        pool = with_pool(data, cls.name)
        return cls(
            disagreement=data.disagreement,
            disagreement_later=fit_later(data, data.redrawn, data.differs_redrawn),
            members=tuple(member for member, _ in pool),
            disagreement_of=tuple(_unlike_teacher(member.name, own) for member, own in pool),
            fitted_with=data.fitted_with,
        )

    @property
    def models(self) -> tuple[str, ...]:
        return (*(member.name for member in self.members), TEACHER)

    def score(self, features: Features) -> float:
        """The highest price of a teacher call at which some model is worth it, beside this answer."""
        now = self.disagreement.score(features)
        return max(now, *((now - unlike) / member.price for member, unlike in self._unlike(features)))

    def rule(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        price, now = self.point, self.disagreement.score(features)
        worth: dict[tuple[Route, str], float] = {("continue", ""): 1 - now}
        for member, unlike in self._unlike(features):
            worth["escalate", member.name] = 1 - unlike - price * member.price
        worth["escalate", TEACHER] = 1 - price
        if memory.retries == 0:
            worth["retry", ""] = 1 - self.disagreement_later.score(features) - price * self.retry_price
        route, model = max(worth, key=lambda key: worth[key])
        reason = "worth: " + ", ".join(f"{model or route} {value:.3f}" for (route, model), value in worth.items())
        code = CODES[route]
        return Decision(route, code, self.score(features), self.kind, price, 1.0, (), reason, model or TEACHER)

    def _unlike(self, features: Features) -> list[tuple[Member, float]]:
        return [(m, model.score(features)) for m, model in zip(self.members, self.disagreement_of, strict=True)]


def with_pool(data: FitData, name: str) -> tuple[tuple[Member, FitData], ...]:
    """The pool of a fit. Raises StageError where it has none."""
    if not data.pool:
        raise StageError(f"router {name} chooses among more than two models; name those between SLM and teacher in `pool`")
    return tuple(data.pool)


def _unlike_teacher(name: str, data: FitData) -> RiskMLP:
    from r2v.learning.labels import labelled_rows

    train = labelled_rows(data.recorded, data.unlike_teacher, data.names)
    held = labelled_rows(data.validation, data.unlike_teacher_validation, data.names)
    estimates = f"the chance that {name} acts otherwise than the teacher"
    return data.probability(f"cascade_routing of {name}", train, held, data.names, estimates=estimates)
