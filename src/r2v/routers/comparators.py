"""Routers of other papers as strategies over the same steps, each trained and tuned on the same episodes as ours.

`cascade` (FrugalGPT) is `ThresholdRouter` on a learned scorer of the SLM's answer: P(the teacher would answer otherwise).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from r2v.core.features import FEATURES
from r2v.core.protocols import Floats
from r2v.core.seeds import derive_uniform
from r2v.core.types import Code, Context, Decision, Features, Memory, Route
from r2v.routers.mlp import RiskMLP
from r2v.routers.threshold import Score, compare

_BEST = FEATURES.index("verifier_best")
_CODES: dict[Route, Code] = {"continue": "risk_below", "escalate": "risk_above", "retry": "retry"}


@dataclass(frozen=True)
class GoalModel:
    """P(the SLM fails | words of the goal): logistic, a weight a word."""

    bias: float
    weights: Mapping[str, float]

    def risk(self, goal: str) -> float:
        return float(1 / (1 + np.exp(-self.bias - sum(self.weights.get(word, 0.0) for word in words_of(goal)))))


def words_of(goal: str) -> set[str]:
    return set(re.findall(r"[a-z]+", goal.lower()))


@dataclass(frozen=True)
class Query:
    """Once an episode, on the goal alone: the teacher or the SLM to the end (RouteLLM, arXiv 2406.18665; Hybrid LLM)."""

    model: GoalModel
    threshold: float
    name: str = "query"

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        if context.t > 0:
            return Decision("continue", "scheduled", None, None, self.threshold, 1.0, (), "the goal was given to the SLM")
        return compare("risk of this goal", "goal_risk", self.model.risk(context.goal), self.threshold, above="takeover")


@dataclass(frozen=True)
class JudgeLatch:
    """A boolean judge of each step; two objections in a row give the episode to the teacher (the turn-level routers of
    method, peers: judge, confirm, latch). The judge is the verifier: it objects when no candidate scores high enough.
    """

    threshold: float
    """Objects when 1 - best verifier score is at least this."""
    name: str = "judge_latch"

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        doubt = 1 - features.values[_BEST]
        objected = bool(memory.decisions) and memory.decisions[-1].state == (1.0,)
        decision = compare(
            "doubt", "verifier_doubt", doubt, self.threshold, above="takeover", state=(float(doubt >= self.threshold),)
        )
        if decision.route == "continue" or objected:
            return decision
        return replace(
            decision, route="continue", code="risk_below", reason=f"{decision.reason}; one objection is not enough"
        )


@dataclass(frozen=True, eq=False)
class Band:
    """What the running mean of the risk does on solved episodes: mean and spread by step, and how far one may stray.

    From split conformal prediction on the largest standardised excess over an episode: a solved episode exchangeable with
    those it was calibrated on leaves the band with level q with probability at most 1 - (share of excesses <= q).
    """

    mean_H: Floats
    std_H: Floats
    excess_N: Floats
    """Sorted largest excess of each calibration episode."""

    def limit(self, alpha: float) -> float:
        """Excess exceeded by a solved episode with probability at most alpha; infinite with too few episodes for it."""
        n = len(self.excess_N)
        rank = int(np.ceil((n + 1) * (1 - alpha)))
        return float("inf") if rank > n else float(self.excess_N[max(rank, 1) - 1])


@dataclass(frozen=True)
class Conformal:
    """Functional conformal monitor (SAFE, arXiv 2506.09937): once the running mean of the risk leaves the band that solved
    episodes keep, the teacher takes over. `alpha` bounds the share of false alarms.
    """

    score: Score
    band: Band
    alpha: float
    name: str = "conformal"

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        t = len(memory.decisions)
        before = memory.decisions[-1].state[0] if t else 0.0
        mean = (before * t + self.score(features)) / (t + 1)
        at = min(t, len(self.band.mean_H) - 1)
        edge = float(self.band.mean_H[at] + self.band.limit(self.alpha) * self.band.std_H[at])
        if mean > edge:
            reason = f"mean risk {mean:.3f} left the band at {edge:.3f}"
            return Decision("takeover", "risk_above", mean, "mean_risk", edge, 1.0, (mean,), reason)
        reason = f"mean risk {mean:.3f} within the band up to {edge:.3f}"
        return Decision("continue", "risk_below", mean, "mean_risk", edge, 1.0, (mean,), reason)


@dataclass(frozen=True, eq=False)
class LinUCB:
    """Contextual bandit with delayed reward (Li et al. 2010; in the chat_format of Symphony-Coord): one linear model of the
    episode's reward for each arm, plus a bonus for what was tried little. Frozen here: it learned on the explored episodes.
    """

    scale: RiskMLP
    """Standardises the features (its weights are those of the difference of the arms)."""
    inverse_AFF: Floats
    bonus: float

    def score(self, features: Features) -> float:
        """Upper bound of the reward with help minus that without."""
        z = np.append(self.scale.standardised(features), 1.0)
        alone, helped = (float(np.sqrt(z @ inverse @ z)) for inverse in self.inverse_AFF)
        return self.scale.value(features) + self.bonus * (helped - alone)


@dataclass(frozen=True)
class CascadeRouting:
    """Cascade routing (Dekoninck et al., arXiv 2410.10347): of {this answer, another draw, the teacher} take the largest
    expected quality minus price, and plan anew after each draw. Quality is the chance of doing what the teacher would.
    """

    differs: Score
    """P(the best candidate differs from the teacher's action), now."""
    differs_later: Score
    """The same after another draw, foreseen from the features of now."""
    price: float
    """Of one teacher call."""
    retry_price: float
    """Of one draw of candidates, as a share of a teacher call."""
    name: str = "cascade_routing"

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        now = 1 - self.differs(features)
        worth: dict[Route, float] = {"continue": now, "escalate": 1 - self.price}
        if memory.retries == 0:
            worth["retry"] = 1 - self.differs_later(features) - self.price * self.retry_price
        route = max(worth, key=lambda r: worth[r])
        reason = "worth: " + ", ".join(f"{name} {value:.3f}" for name, value in worth.items())
        return Decision(route, _CODES[route], 1 - now, "disagreement", self.price, 1.0, (), reason)


@dataclass(frozen=True)
class Renewal:
    """An attempt that a detector may stop, with a fresh attempt after every stop or failure (arXiv 2301.10846). Times in
    steps, means over the episodes concerned.
    """

    p: float
    """Chance that an attempt which nobody stops succeeds."""
    solved: float
    failed: float
    """Length of an attempt that succeeds, and of one that fails."""
    tpr: float
    fpr: float
    """Share of the failing, and of the succeeding, attempts that the detector stops."""
    alarm_failed: float
    alarm_solved: float
    """When it stops them."""
    reset: float = 1.0
    """What a restart takes."""

    def time_to_success(self, stopping: bool = True) -> float:
        """Expected steps until an attempt succeeds; infinite where none can."""
        t, f = (self.tpr, self.fpr) if stopping else (0.0, 0.0)
        if self.p * (1 - f) <= 0:
            return float("inf")
        good = self.p * ((1 - f) * self.solved + f * self.alarm_solved)
        bad = (1 - self.p) * ((1 - t) * self.failed + t * self.alarm_failed)
        return (good + bad + self.reset) / (self.p * (1 - f))

    @property
    def pays(self) -> bool:
        return self.time_to_success() < self.time_to_success(stopping=False)


@dataclass(frozen=True)
class Restart:
    """Early restart: at the first alarm the SLM begins again, if the renewal formula says that stopping pays and a solved
    attempt still fits in; at any other alarm the teacher takes the step.
    """

    score: Score
    threshold: float
    renewal: Renewal
    """Of this threshold."""
    name: str = "restart"

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        risk = self.score(features)
        decision = compare("risk", "risk", risk, self.threshold)
        if decision.route == "continue":
            return decision
        before = any(decision.route == "restart" for decision in memory.decisions)
        fits = context.horizon - context.t - self.renewal.reset >= self.renewal.solved
        if context.t and not before and fits and self.renewal.pays:
            return replace(decision, route="restart", reason=f"{decision.reason}; a fresh attempt is quicker")
        return decision


@dataclass(frozen=True)
class Mixture:
    """One of two routers, drawn once an episode: `second` with probability `weight`. Meets an expected budget exactly."""

    first: object
    second: object
    weight: float
    name: str

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        taken = self.second if derive_uniform(memory.seed, "mixture") < self.weight else self.first
        decision: Decision = taken.decide(context, features, memory, seed=seed)  # type: ignore[attr-defined]
        return decision
