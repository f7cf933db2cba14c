"""Who acts, and the one decision path (Algorithm 2 of the R2V paper). The loop is in `r2v.core.loop`.

Collection, SLM rollouts, evaluation and gateway differ only in which `Agent` they hand to the same code:

    Solo(teacher)                       collect
    Noisy(Solo(teacher))                collect, with label-masked mistakes to recover from
    Routed(models, Never())             rollouts of the deployed SLM
    Routed(models, router)              evaluation, production
    Forked(Routed, Routed, t)           branches: two futures of one step
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Literal

from r2v.core.errors import boundary
from r2v.core.features import (
    View,
    best,
    check_candidates,
    check_context,
    check_scores,
    featurise,
    proposing,
    seen_as,
)
from r2v.core.protocols import Agent, Policy, PricedVerifier, Router, Verifier
from r2v.core.seeds import call_seed, derive_seed, derive_uniform
from r2v.core.types import NO_USAGE, RESTART, TEACHER, Action, Candidate, Choice, Context, Decision, Features, Memory, Usage

MAX_RETRIES = 3
"""A router that still wants further candidates after so many is an error: it would never act."""


@dataclass(frozen=True)
class Solo:
    """An agent that always acts with the first proposal of one policy."""

    policy: Policy
    source: Literal["slm", "teacher"]

    @property
    def name(self) -> str:
        return self.policy.name

    async def act(self, context: Context, memory: Memory, *, seed: int) -> tuple[Choice, Memory]:
        with boundary(self.source):
            candidates = await self.policy.propose(context, 1, seed=call_seed(seed, self.source))
            usage = candidates[0].usage
        slm, teacher = (usage, NO_USAGE) if self.source == "slm" else (NO_USAGE, usage)
        return Choice(candidates[0].action, self.source, candidates, (), None, None, slm, teacher), memory


@dataclass(frozen=True)
class Noisy:
    """Replaces a share of another agent's actions by random ones, so that its recoveries can be learned from.

    The replaced choice keeps its usage and is marked with the source "noise"; training puts no loss on it.
    """

    agent: Agent
    rate: float
    """Probability that an action is replaced."""
    draw: Callable[[Context, int], Action]
    """A random action from what the agent may know (context, seed)."""

    @property
    def name(self) -> str:
        return f"{self.agent.name}+noise"

    async def act(self, context: Context, memory: Memory, *, seed: int) -> tuple[Choice, Memory]:
        choice, memory = await self.agent.act(context, memory, seed=seed)
        if derive_uniform(seed, "noise?") >= self.rate:
            return choice, memory
        return replace(choice, action=self.draw(context, derive_seed(seed, "noise")), source="noise"), memory


@dataclass(frozen=True, eq=False)
class AgentModels:
    """What a routed agent is made of besides its router. Agents that hold the same object share every draw."""

    slm: Policy
    teacher: Policy
    verifier: Verifier
    k: int
    """Candidates drawn from the SLM at each step, and again at each retry."""
    first: int | None = None
    """Adaptive K: so many are drawn at first, and the rest of the k at the first retry."""
    draw: int = 0
    """AgentModels that differ in this alone draw other candidates from the same context: another continuation."""
    view: View = "full"
    """What the router sees of the step."""
    pool: Mapping[str, Policy] = field(default_factory=dict)
    """Further models that a decision may name, between SLM and teacher."""

    def __post_init__(self) -> None:
        for name, part, method in (("slm", self.slm, "propose"), ("teacher", self.teacher, "propose"),
                                   ("verifier", self.verifier, "score")):  # fmt: skip
            if not callable(getattr(part, method, None)):
                raise ValueError(f"the {name} is {part!r}, which has no method `{method}` (r2v.core.protocols)")
        if self.k < 1 or (self.first is not None and not 1 <= self.first < self.k):
            raise ValueError(f"k = {self.k}, first = {self.first}: k is 1 at least, and first, if any, from 1 to k - 1")

    def stronger(self, model: str) -> Policy:
        """The model that a decision names. Raises LookupError."""
        if model == TEACHER:
            return self.teacher
        if model not in self.pool:
            known = ", ".join(self.pool) or "empty"
            raise LookupError(f"the router escalates to {model}, which is not in the pool ({known})")
        return self.pool[model]

    def size(self, retries: int) -> int:
        """Candidates of one draw."""
        if self.first is None or retries > 1:
            return self.k
        return self.k - self.first if retries else self.first


class StepContext:
    """One context as one set of models sees it. Each model is called once, however many routers decide on it."""

    def __init__(self, models: AgentModels, context: Context, *, seed: int) -> None:
        self._models, self.context, self.seed = models, context, seed
        self._seen: list[tuple[tuple[Candidate, ...], tuple[float, ...], Features]] = []
        self._scoring: list[Usage] = []
        self._answers: dict[str, Candidate] = {}

    async def look(self, retries: int = 0) -> tuple[tuple[Candidate, ...], tuple[float, ...], Features]:
        """The SLM's candidates of this and all earlier draws, their verifier scores, and the features of both."""
        if len(self._seen) <= retries:
            models, context = self._models, self.context
            before, scored = (await self.look(retries - 1))[:2] if retries else ((), ())
            labels = [models.draw, retries] if models.draw or retries else []
            with boundary("slm"):
                fresh = await models.slm.propose(context, models.size(retries), seed=call_seed(self.seed, "slm", *labels))
                check_candidates(fresh)
            with boundary("verifier"):
                added, cost = await priced(models.verifier, context, [candidate.action for candidate in fresh])
                check_scores(added, len(fresh))
                scores = scored + added
                self._scoring.append(cost)
            with boundary("router"):
                candidates = before + fresh
                features = seen_as(models.view, featurise(context, candidates, scores), scores)
                self._seen.append((candidates, scores, features))
        return self._seen[retries]

    def scoring(self, retries: int = 0) -> Usage:
        """What the scores of this and all earlier draws cost."""
        return sum(self._scoring[: retries + 1], NO_USAGE)

    async def answer(self, model: str = TEACHER) -> Candidate:
        """What the teacher, or another model of the pool, does here."""
        if model not in self._answers:
            with boundary("router"):
                policy = self._models.stronger(model)
            with boundary("teacher"):
                (self._answers[model],) = await policy.propose(self.context, 1, seed=call_seed(self.seed, model))
        return self._answers[model]


async def priced(verifier: Verifier, context: Context, actions: Sequence[Action]) -> tuple[tuple[float, ...], Usage]:
    """A verifier's score of each action, and what that cost."""
    if isinstance(verifier, PricedVerifier):
        return await verifier.priced(context, actions)
    return await verifier.score(context, actions), NO_USAGE


def warn_if_unlike(router: Router, *, stacklevel: int, **here: object) -> None:
    """Warn where a router decides under other conditions (k, horizon, ...) than those that it was fitted with."""
    fitted = getattr(router, "fitted_with", None)
    known = {key: getattr(fitted, key, None) for key in here}
    if "restart" in getattr(router, "routes", ()):
        known["horizon"] = None  # what is left of it shrinks with each attempt
    wrong = [f"{key} {known[key]}, not {now}" for key, now in here.items() if known[key] not in (None, now)]
    if wrong:
        name, text = router.name, "; ".join(wrong)
        warnings.warn(f"router {name} was fitted with {text}: its score is not what was measured", stacklevel=stacklevel + 1)


def sha256_of(verifier: object) -> str:
    """Hash of a verifier's source, and of what it was made from; empty where the source is not at hand."""
    try:
        source = inspect.getsource(sys.modules[type(verifier).__module__])
    except (OSError, TypeError, KeyError):
        return ""
    return hashlib.sha256((source + getattr(verifier, "fingerprint", "")).encode()).hexdigest()


def within_budget(decision: Decision, memory: Memory) -> Decision:
    """The decision; where no teacher call is left the SLM goes on in the place of one, whatever was drawn."""
    if memory.calls_left != 0 or decision.route in ("retry", "restart"):
        return decision
    if decision.route == "continue":
        return replace(decision, propensity=1.0)
    reason = f"would escalate ({decision.code}: {decision.reason}), but no call is left"
    return replace(decision, route="continue", code="budget_exhausted", propensity=1.0, reason=reason)


@dataclass(frozen=True)
class Routed:
    """An agent made of models (an SLM, stronger ones, a verifier) and a router."""

    models: AgentModels
    router: Router

    def __post_init__(self) -> None:
        fitted = getattr(self.router, "fitted_with", None)
        unlike = getattr(fitted, "verifier_sha256", None) not in (None, sha256_of(self.models.verifier))
        verifier = f"this {type(self.models.verifier).__name__}" if unlike else fitted and fitted.verifier
        warn_if_unlike(self.router, stacklevel=3, k=self.models.k, verifier=verifier)

    @property
    def name(self) -> str:
        return self.router.name

    async def act(self, context: Context, memory: Memory, *, seed: int) -> tuple[Choice, Memory]:
        check_context(context)
        warn_if_unlike(self.router, stacklevel=2, horizon=context.horizon)
        return await self.choose(StepContext(self.models, context, seed=seed), memory)

    async def choose(self, step_context: StepContext, memory: Memory) -> tuple[Choice, Memory]:
        """Features -> risk -> decision -> action: the path that rollouts, evaluation and gateway share."""
        if memory.decisions and memory.decisions[-1].route == "takeover" and memory.calls_left != 0:
            model = memory.decisions[-1].model
            kept = Decision("takeover", "latch", None, None, None, 1.0, (), f"the {model} keeps the episode", model)
            answer = await step_context.answer(model)
            return Choice(answer.action, "teacher", (), (), None, kept, NO_USAGE, answer.usage), memory.after(kept)
        for retries in range(MAX_RETRIES + 1):
            candidates, scores, features = await step_context.look(retries)
            with boundary("router"):
                seed = call_seed(step_context.seed, "router", *([retries] if retries else []))
                known = proposing(step_context.context, candidates, scores)
                memory = memory if memory.retries == retries else replace(memory, retries=retries)
                decision = within_budget(self.router.decide(known, features, memory, seed=seed), memory)
            if decision.route != "retry":
                break
        else:
            with boundary("router"):
                raise RuntimeError(f"{self.name} wants further candidates after {MAX_RETRIES} retries")
        starts = accumulate([0, *(self.models.size(i) for i in range(retries))])
        slm = sum((candidates[start].usage for start in starts), NO_USAGE)
        scoring = step_context.scoring(retries)
        if decision.route == "continue":
            action = candidates[best(candidates, scores)].action
            choice = Choice(action, "slm", candidates, scores, features, decision, slm, NO_USAGE, verifier=scoring)
        elif decision.route == "restart":
            choice = Choice(RESTART, "slm", candidates, scores, features, decision, slm, NO_USAGE, verifier=scoring)
        else:
            answer = await step_context.answer(decision.model)
            choice = Choice(
                answer.action, "teacher", candidates, scores, features, decision, slm, answer.usage, verifier=scoring
            )
        return choice, memory.after(decision)


@dataclass(frozen=True)
class Forked:
    """Plays as `before` up to and with step t, then as `after`: with other models the future is drawn anew."""

    before: Routed
    after: Routed
    t: int

    @property
    def name(self) -> str:
        return f"{self.before.name}, then {self.after.name}"

    def at(self, t: int) -> Routed:
        """Who plays step t."""
        return self.before if t <= self.t else self.after

    async def act(self, context: Context, memory: Memory, *, seed: int) -> tuple[Choice, Memory]:
        return await self.at(context.t).act(context, memory, seed=seed)
