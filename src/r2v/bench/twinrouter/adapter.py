"""A router of r2v as one of TwinRouterBench's: `select(RouterContext) -> RouterDecision`.

The benchmark asks before any model is called, so there is no draft of this step. A router that reads drafts therefore
decides on the newest step that has one: the latest assistant message is the draft, and the context is what was known when
it was written. The decision comes one step late, and what the environment answered since is not read. Before the first
assistant message such a router is not asked: the call goes to the tier `first`. Routers that read no draft (`random`,
`query`, or any with the class attribute `reads_draft = False`) decide on this very step.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from r2v.bench.twinrouter.bill import usd
from r2v.bench.twinrouter.protocol import RouterContext, RouterDecision
from r2v.bench.twinrouter.published import HIGH, MODELS, PRICES, PUBLISHED, TIERS
from r2v.clients.tokens import Tokens
from r2v.core.agent import MAX_RETRIES
from r2v.core.errors import SettingsError
from r2v.core.features import FEATURES, featurise, proposing, seen_as
from r2v.core.seeds import derive_seed
from r2v.core.types import NO_USAGE, TEACHER, Candidate, Decision, Features, Memory
from r2v.messages.conversation import BadRequest, Json, Request, context_of, parse, text_of, tools_of
from r2v.routers import SHIPPED, load_router, router_class
from r2v.routers.base import RouterBase
from r2v.routers.query import Query
from r2v.routers.random import Random
from r2v.studies.costs import CHARACTERS
from r2v.verifiers import verifier_named

BASH: Json = {
    "type": "function",
    "function": {"name": "bash", "parameters": {"type": "object", "properties": {"command": {"type": "string"}},
                                                "required": ["command"]}},
}  # fmt: skip
"""The only tool of mini-swe-agent: its harness offers it to the models and does not show it to routers."""
HORIZON = 250
"""Steps of an episode at most, as in the harness, for routers that were fitted with no horizon."""
KEYS = ("role", "tool_call_id")
UNREAD = Features((0.0,) * len(FEATURES), (False,) * len(FEATURES))
"""For routers that read no draft: nothing is known of one."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What one step came to."""

    tier: int
    decision: Decision | None
    """None where the router was not asked."""
    reason: str


@dataclass(frozen=True, slots=True)
class _Session:
    """What is known of one instance."""

    step: int
    memory: Memory
    tier: int


class TwinRouter:
    """A `Router` of TwinRouterBench; one object serves many instances at once, each with a memory of its own."""

    def __init__(
        self,
        router: RouterBase,
        *,
        tiers: Sequence[float] | None = None,
        models: Mapping[str, str] = MODELS,
        first: str = TIERS[0],
        cache_aware: bool = False,
        tools: Sequence[Json] = (),
        seed: int = 0,
    ) -> None:
        """Wrap a router.

        Args:
            router: at its operating point.
            tiers: scores from which on a step goes to mid, mid_high and high (`bounds_of`). None: the cheapest where the
                router continues, the strongest where it escalates or hands over, and the one that it names where it chooses
                among a pool whose models have the names of tiers.
            models: tier -> model.
            first: tier of a call before which no assistant message was written, for routers that read drafts.
            cache_aware: take a stronger tier than the router's where its next call costs no more, by the prices of the
                pool and what its cache holds.
            tools: what is offered where a context names none.
            seed: of routers that draw.

        Raises:
            SettingsError: the router cannot decide without a draft, or the settings do not fit it.
        """
        if problem := problem_of(router):
            raise SettingsError(f"router {router.name} cannot play TwinRouterBench: {problem}")
        if first not in TIERS:
            raise SettingsError(f"first = {first}: it is no tier; write one of {', '.join(TIERS)}")
        if missing := [tier for tier in TIERS if tier not in models]:
            raise SettingsError(f"models has no tier {missing[0]}; name a model for each of {', '.join(TIERS)}")
        if tiers is not None:
            if len(tiers) != HIGH or any(a > b for a, b in pairwise(tiers)):
                raise SettingsError(f"tiers = {list(tiers)}: write three rising scores, of mid, mid_high and high")
            if router.kind is None:
                raise SettingsError(f"router {router.name} has no score, so it has two tiers alone; leave out tiers")
        if other := [model for model in router.models if model not in (TEACHER, *TIERS)]:
            raise SettingsError(
                f"router {router.name} chooses {other[0]}; a pool's models must be {', '.join(TIERS[1:])} here"
            )
        if cache_aware and (unknown := [model for model in models.values() if model not in PRICES]):
            raise SettingsError(f"cache_aware: {unknown[0]} has no price in the pool; leave it out, or name pool models")
        self.router, self.name = router, router.name
        self._bounds, self._models, self._first = tiers, models, TIERS.index(first)
        self._cache_aware, self._tools, self._seed = cache_aware, tuple(tools), seed
        self._reads_draft = reads_draft(router)
        fitted = router.fitted_with
        self._horizon = HORIZON if fitted is None or fitted.horizon is None else fitted.horizon
        self._verifier = "tool_calls" if fitted is None or fitted.verifier is None else fitted.verifier
        self._view: Any = "full" if fitted is None else fitted.view
        self._sessions: dict[str, _Session] = {}
        self._lock = threading.Lock()

    @classmethod
    def from_cli_args(
        cls, router: str, threshold: str = "", tiers: str = "", first: str = TIERS[0], cache_aware: str = "", seed: str = "0"
    ) -> TwinRouter:
        """What `twinrouterbench dynamic run --router-import` calls, with each `--router-arg` as text.

        Args:
            router: a router's folder, `recorded`, a rule by name (`rules`), or `package.module:Class`.
            threshold: the operating point; empty: the router's own.
            tiers: three numbers with commas between; empty: two tiers.
            first: see `__init__`.
            cache_aware: `yes` or empty.
            seed: a whole number.

        Raises SettingsError, ArtifactError.
        """
        if cache_aware not in ("", "yes"):
            raise SettingsError(f"cache_aware={cache_aware}: write cache_aware=yes, or leave it out")
        try:
            bounds = [float(part) for part in tiers.split(",")] if tiers else None
            point, number = float(threshold) if threshold else None, int(seed)
        except ValueError as error:
            raise SettingsError(f"threshold, tiers and seed are numbers ({error})") from None
        found = named_router(router)
        found = found if point is None else found.at(point)
        return cls(found, tiers=bounds, first=first, cache_aware=bool(cache_aware), tools=[BASH], seed=number)

    def select(self, ctx: RouterContext) -> Any:
        """The model for this step, as a `RouterDecision` of the module that the context is of.

        Raises:
            SettingsError: a message cannot be read, or a tier's model is not available.
        """
        asked = self.ask(ctx)
        kind = getattr(sys.modules[type(ctx).__module__], "RouterDecision", RouterDecision)
        return kind(model_id=self._models[TIERS[asked.tier]], rationale=f"{TIERS[asked.tier]}: {asked.reason}")

    def ask(self, ctx: RouterContext) -> Asked:
        """The same as a tier, with what the router said."""
        if missing := [model for model in self._models.values() if model not in ctx.available_models]:
            raise SettingsError(f"{missing[0]} is not among the available models; name others in models")
        with self._lock:
            session = self._sessions.get(ctx.instance_id)
        if session is None or ctx.step_index <= session.step:  # a new run of it
            session = _Session(-1, Memory(seed=derive_seed(self._seed, ctx.instance_id)), self._first)
        decision = self._decide(ctx, session.memory, session.step < 0)
        if decision is None:
            asked = Asked(self._first, None, "no step before this one has a draft")
        else:
            asked = Asked(self._tier_of(decision, session.tier), decision, decision.reason)
        if self._cache_aware:
            asked = self._no_dearer(asked, ctx)
        memory = session.memory if decision is None else session.memory.after(decision)
        with self._lock:
            self._sessions[ctx.instance_id] = _Session(ctx.step_index, replace(memory, retries=0), asked.tier)
        return asked

    def _decide(self, ctx: RouterContext, memory: Memory, new: bool) -> Decision | None:
        """None where there is no draft to decide on. `new`: it is the first step of the instance."""
        if memory.decisions and memory.decisions[-1].route == "takeover":
            kept = memory.decisions[-1].model
            return Decision("takeover", "latch", None, None, None, 1.0, (), "this model keeps the instance", kept)
        messages = [_message(message, ctx) for message in ctx.messages]
        latest = len(messages)
        if self._reads_draft:
            written = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
            if not written:
                return None
            latest = written[-1]
        request = self._read(ctx, messages[: latest + 1])
        context, features = context_of(replace(request, messages=request.messages[:latest]), self._horizon), UNREAD
        if self._reads_draft:
            draft = context_of(request, self._horizon).actions[-1]
            candidates = (Candidate(draft, None, None, NO_USAGE),)
            scores = asyncio.run(verifier_named(self._verifier, tools_of(request.tools)).score(context, [draft]))
            features = seen_as(self._view, featurise(context, candidates, scores), scores)
            context = proposing(context, candidates, scores)
        elif new:  # what was said before is not of this episode: routers of whole episodes decide now
            context = replace(context, observations=context.observations[-1:], actions=())
        seed = derive_seed(self._seed, ctx.instance_id, ctx.step_index, "router")
        for retries in range(MAX_RETRIES + 1):  # no further draft can be had: it is asked again as after one
            decision = self.router.decide(context, features, replace(memory, retries=retries), seed=seed)
            if decision.route != "retry":
                return decision
        raise SettingsError(f"router {self.name} wants further drafts, and TwinRouterBench has none; give another one")

    def _read(self, ctx: RouterContext, messages: Sequence[Json]) -> Request:
        """The messages as the gateway reads them, with the tools that are offered."""
        tools = [_tool(tool) for tool in ctx.tools or self._tools]
        try:
            return parse(msgspec.json.encode({"messages": messages} | ({"tools": tools} if tools else {})))
        except (BadRequest, TypeError, ValueError) as error:
            raise SettingsError(f"{ctx.instance_id}, step {ctx.step_index}: cannot read the messages ({error})") from None

    def _tier_of(self, decision: Decision, before: int) -> int:
        if decision.route != "continue" and decision.model in TIERS:
            return TIERS.index(decision.model)
        if decision.route == "takeover":
            return HIGH
        # Scores of two kinds are never compared, and one far outside of the fit is no score.
        comparable = decision.score_kind == self.router.kind and decision.code != "out_of_range"
        if self._bounds is not None and decision.score is not None and comparable:
            return sum(decision.score >= bound for bound in self._bounds)
        if decision.code == "scheduled" and self._bounds is not None:
            return before  # decided for the whole instance at its start
        return 0 if decision.route == "continue" else HIGH

    def _no_dearer(self, asked: Asked, ctx: RouterContext) -> Asked:
        """Of this tier and the stronger ones, the one whose next call costs least; the strongest of equals."""
        prompt = estimated_tokens(ctx.messages)
        cost = {}
        for tier in range(asked.tier, HIGH + 1):
            model = self._models[TIERS[tier]]
            held, price = min(_held(ctx, model), prompt), PRICES[model]
            cost[tier] = usd(Tokens(prompt, PUBLISHED.output_tokens, held), price)
        best = min(cost, key=lambda tier: (cost[tier], -tier))
        if best == asked.tier:
            return asked
        return replace(asked, tier=best, reason=f"{asked.reason}; {TIERS[best]} costs no more, by what its cache holds")


def _held(ctx: RouterContext, model: str) -> int:
    """Tokens of the prompt that a model's cache still holds."""
    view = ctx.cache_state.by_model.get(model)
    if view is None or view.last_call_ts is None:
        return 0
    alive = ctx.cache_state.now_ts - view.last_call_ts <= ctx.cache_state.wallclock_ttl_sec
    return view.prefix_token_count if alive else 0


def estimated_tokens(messages: Sequence[Mapping[str, Any]]) -> int:
    """Of a prompt's words, at four characters each."""
    return sum(len(text_of(message.get("content"))) for message in messages) // CHARACTERS


def reads_draft(router: RouterBase) -> bool:
    """Whether a router looks at what the SLM proposes."""
    found = getattr(router, "reads_draft", None)
    return not isinstance(router, (Random, Query)) if found is None else bool(found)


def problem_of(router: RouterBase) -> str | None:
    """Why a router cannot decide here; None where it can."""
    if router.threshold is None:
        return "it has no threshold yet; choose one with `.at(threshold)`"
    if "restart" in router.routes:
        return "it begins episodes again, which an instance there cannot; give one that continues, escalates or hands over"
    if router.kind == "entropy":
        return "it decides on the entropy of a draft, and no log-probabilities are known there; give one that needs none"
    fitted = router.fitted_with
    if fitted is not None and fitted.verifier not in (None, "tool_calls") and '"learned"' not in str(fitted.verifier):
        return (
            f"it was fitted with the verifier {fitted.verifier}, whose rules are of other tasks; fit it on logs (`r2v fit`)"
        )
    return None


def named_router(name: str) -> RouterBase:
    """A router by its folder, as `recorded`, by the name of a rule, or as `package.module:Class`.

    Raises SettingsError, ArtifactError.
    """
    if name in SHIPPED or (Path(name) / "router.json").exists():
        return load_router(name)
    try:
        return router_class(name)()
    except TypeError:
        raise SettingsError(f"router {name} has to be fitted: give its folder (of `r2v run` or `r2v fit`)") from None


def bounds_of(scores: Sequence[float], shares: Sequence[float]) -> list[float]:
    """Scores from which on steps go to mid, mid_high and high, so that each tier gets its share of these.

    Args:
        scores: of steps like those to come; no label is read.
        shares: of low, mid, mid_high and high; together 1.

    Raises SettingsError.
    """
    if len(shares) != len(TIERS) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise SettingsError(f"shares = {list(shares)}: write four that add up to 1, of {', '.join(TIERS)}")
    if not scores:
        raise SettingsError("shares: no step has a score to take quantiles of; leave out shares")
    below = np.clip(np.round(np.cumsum(shares)[:-1], 12), 0.0, 1.0)
    bounds = np.quantile(scores, below, method="higher")
    beyond = float(np.nextafter(max(scores), np.inf))  # for a tier without a share
    return [beyond if share == 1 else float(bound) for share, bound in zip(below, bounds, strict=True)]


def _message(message: Mapping[str, Any], ctx: RouterContext) -> Json:
    """What is read of a message, in OpenAI's form."""
    found: Json = {key: message[key] for key in KEYS if message.get(key) is not None} | {
        "content": text_of(message.get("content"))
    }
    if "role" not in found:
        raise SettingsError(f"{ctx.instance_id}, step {ctx.step_index}: a message has no role")
    if calls := message.get("tool_calls"):
        found["tool_calls"] = [_call(call) for call in calls]
    return found


def _call(call: Mapping[str, Any]) -> Json:
    function = call.get("function") or call
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments or {}).decode()
    return {"id": call.get("id"), "function": {"name": str(function.get("name") or ""), "arguments": text}}


def _tool(tool: Mapping[str, Any]) -> Json:
    """A tool in OpenAI's form; the static bank has bare functions, too."""
    return dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)}
