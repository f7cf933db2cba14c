"""One request is one agent step: session, candidates, verifier, features, risk, decision, answer, ledger.

The decision is `r2v.agent.Routed.choose`, the code that rollouts and evaluation run; the request is only wrapped as two
policies, one for each model. What the gateway adds around it: budgets that hold under concurrency, fallbacks when a model is
down, and the row in the ledger that is written before the answer leaves.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from r2v.agent import MAX_RETRIES, NO_USAGE, Moment, Parts, Routed
from r2v.errors import BoundaryError, SettingsError
from r2v.features import best
from r2v.gateway import chat
from r2v.gateway.accounts import DAY, Accounts, Exhausted, Hold, LocalAccounts, Session, limits_of
from r2v.gateway.chat import Json, Request
from r2v.gateway.drafts import Draft, added
from r2v.gateway.ledger import Amount, Entry, Ledger
from r2v.gateway.meters import Meters
from r2v.gateway.routing import GatewayRouter, load_configured
from r2v.gateway.settings import GatewaySettings
from r2v.gateway.upstream import Upstream, UpstreamError
from r2v.policies.scripted import Known
from r2v.protocols import Verifier
from r2v.seeds import derive_seed, derive_uniform
from r2v.types import Action, Candidate, Choice, Context, Decision, Memory, Observation, Step
from r2v.verifiers import VerifierName, verifier_named


class Refused(Exception):
    """The step cannot be served; `status` and `facts` go to the client."""

    def __init__(self, message: str, status: int, facts: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.status, self.facts = status, facts


@dataclass(frozen=True)
class Answer:
    completion: Json
    facts: Json
    """What the response headers and the last stream chunk say."""


@dataclass(frozen=True)
class Wish:
    """What the client said about this step besides the request."""

    key: str
    """Hash of its key."""
    session: str
    """Its own name for the session within its key, or `chat.fingerprint`."""
    arm: str | None = None
    threshold: float | None = None
    shadow: bool = False
    """Decide, but let the small model answer."""
    session_usd: float | None = None
    """What the whole session may cost."""
    dry: bool = False
    """Decide, but do not answer."""


@dataclass(eq=False)
class Visit:
    """One step of one session while it is served."""

    request: Request
    wish: Wish
    session: Session
    hold: Hold
    small: Draft
    teacher: Draft
    facts: Json
    start: float

    def tell(self, choice: Choice, model: str) -> None:
        """What the client and the ledger are told of the choice; the time since the start is without the models'."""
        assert choice.decision is not None
        waited = self.small.seconds + self.teacher.seconds
        self.facts |= {
            "arm": choice.actor,
            "reason": choice.decision.reason.split(":", 1)[0],
            "model": model,
            "risk": choice.decision.risk,
            "threshold": choice.decision.threshold,
            "overhead-ms": round(1000 * (time.perf_counter() - self.start - waited), 3),
        }
        if self.hold.calls_left is not None:
            self.facts["budget-left"] = max(0, self.hold.calls_left - (choice.actor == "teacher"))


class Service:
    def __init__(self, settings: GatewaySettings) -> None:
        """Raises SettingsError, ArtifactError."""
        self.small = Upstream(settings.models["small"], "small")
        self.teacher = Upstream(settings.models["teacher"], "teacher")
        self.router = load_configured(settings.route)
        self.settings = settings.model_copy(update={"route": self.router.route})
        self.ledger = Ledger(Path(settings.store.path))
        self.accounts = _accounts(settings, self.ledger)
        self.meters = Meters(self.router, self.ledger)

    async def close(self) -> None:
        await self.small.close()
        await self.teacher.close()
        await self.accounts.close()
        self.ledger.close()

    # -- the step -------------------------------------------------------------------------------------------------

    async def step(self, request: Request, wish: Wish) -> Answer:
        """Raises Refused."""
        async with self._visit(request, wish, drafts=self.settings.route.k) as visit:
            choice, context = await self._choose(visit)
            answered = visit.teacher if choice.actor == "teacher" else visit.small
            model = answered.upstream.settings.model
            visit.tell(choice, model)
            chosen = answered.choice(choice.action)
            if not wish.dry:
                await self._record(visit, choice, context)
                for block in chosen["message"].get("thinking_blocks") or []:
                    await self.accounts.sign(visit.session, str(block.get("signature")), model)
        usage, identity = _usage(visit), visit.facts["decision-id"]
        completion = chat.completion(chosen, usage, model=model, identity=identity, created=int(time.time()))
        return Answer(completion, visit.facts)

    async def may_stream_early(self, wish: Wish) -> bool:
        """Whether what is known before this step says that the small model will do. After the first visible byte nothing
        can be taken back, so the risk is that of the step before.
        """
        route, small = self.settings.route, self.settings.models["small"]
        if route.stream == "hold" or wish.arm == "teacher" or small.provider != "openai":
            return False
        decisions = (await self.accounts.enter(wish.session, dry=True)).memory.decisions
        if not decisions:
            return route.stream == "early"
        last, threshold = decisions[-1], self.router.threshold if wish.threshold is None else wish.threshold
        bar = threshold if route.stream == "early" else threshold / 2
        return last.rung == "continue" and last.risk is not None and last.risk < bar

    async def stream_early(self, request: Request, wish: Wish) -> AsyncGenerator[Json, None]:
        """The small model's first draft, chunk by chunk; the row is in the ledger before the last chunk leaves. Raises
        Refused, before the first chunk or in the middle.
        """
        async with self._visit(request, wish, drafts=1) as visit:
            told, last, usage = chat.Told(), None, Json()
            waited = time.perf_counter()
            try:
                async with aclosing(self.small.stream(request)) as chunks:
                    async for chunk in chunks:
                        usage = chunk.get("usage") or usage
                        if not chunk.get("choices"):
                            continue
                        told.add(chunk["choices"][0])
                        chunk = {**chunk, "id": f"chatcmpl-{visit.facts['decision-id']}"}
                        if chunk["choices"][0].get("finish_reason"):
                            last = chunk
                        else:
                            yield chunk
            except UpstreamError as error:
                raise Refused(str(error), error.status, {**visit.facts, "reason": "upstream_fallback"}) from None
            except (GeneratorExit, asyncio.CancelledError):
                visit.small.give_up(1)
                raise
            visit.small.seconds = time.perf_counter() - waited
            candidates = visit.small.take(self.small.priced(told.choice, usage))
            context = chat.context_of(request, self.settings.route.horizon)
            parts = Parts(Known(candidates), visit.teacher, _verifier(self.settings.route.verifier, request.tools), 1)
            moment = Moment(parts, context, seed=derive_seed(visit.session.id, visit.session.t))
            choice = await _slm_alone(moment, self._router(visit), "early: told as it came")
            assert last is not None
            visit.tell(choice, self.small.settings.model)
            await self._record(visit, choice, context)
            yield {**last, "r2v": visit.facts, "usage": _usage(visit)}

    @asynccontextmanager
    async def _visit(self, request: Request, wish: Wish, *, drafts: int) -> AsyncIterator[Visit]:
        """A step of the session, with what it can cost at most held back. Raises Refused where the budget has no room."""
        start, budget = time.perf_counter(), self.settings.budget
        facts: Json = {"decision-id": secrets.token_hex(8), "session-id": wish.session.split("/", 1)[-1]}
        limits = limits_of(budget, wish.session, wish.key, int(time.time() // DAY), wish.session_usd)
        try:
            session = await self.accounts.enter(wish.session, dry=wish.dry)
            facts["step"] = session.t
            most = self.small.most(request, drafts), self.teacher.most(request, 1) + Amount(calls=1)
            hold = await self.accounts.hold(facts["decision-id"], limits, *most)
        except Exhausted:
            raise Refused("the budget is exhausted", 402, {**facts, "reason": "budget_exhausted"}) from None
        except OSError as error:
            raise _unreachable(error, facts) from None
        small = Draft(self.small, request, session.signatures, teacher=False)
        teacher = Draft(self.teacher, request, session.signatures, teacher=True)
        try:
            if not hold.teacher and budget.on_exhaustion == "stop":
                told = "the budget for the teacher is exhausted"
                raise Refused(told, 402, {**facts, "reason": "budget_exhausted"})
            yield Visit(request, wish, session, hold, small, teacher, facts, start)
        finally:
            if (lost := small.lost + teacher.lost) != Amount():
                self.ledger.lose(session.id, wish.key, lost)
            try:
                await self.accounts.settle(hold, small.spent + teacher.spent)
            except OSError as error:  # what is held back stays so until it expires: never more is spent than allowed
                raise _unreachable(error, facts) from None

    def _router(self, visit: Visit) -> GatewayRouter:
        route, wish = self.settings.route, visit.wish
        canary = derive_uniform(derive_seed(visit.session.id, "canary"), "canary") < route.canary_share
        return GatewayRouter(
            self.router.make(self.router.threshold if wish.threshold is None else wish.threshold),
            route,
            active=not wish.shadow and (route.mode == "active" or (route.mode == "canary" and canary)),
            forced=wish.arm,
            cold=visit.session.cold,
        )

    async def _choose(self, visit: Visit) -> tuple[Choice, Context]:
        route, session = self.settings.route, visit.session
        context = chat.context_of(visit.request, route.horizon)
        first = None if route.clear is None or route.k == 1 else 1
        parts = Parts(visit.small, visit.teacher, _verifier(route.verifier, visit.request.tools), route.k, first)
        router, memory = self._router(visit), session.memory
        if await self.accounts.killed():
            router = replace(router, forced="slm")
        if router.forced == "slm":
            memory = replace(memory, decisions=())  # the teacher that had latched on lets go
        calls_left = visit.hold.calls_left if visit.hold.teacher else 0
        moment = Moment(parts, context, seed=derive_seed(session.id, session.t))
        try:
            if router.forced == "teacher" and calls_left != 0:
                return await _teacher_alone(moment, "forced"), context
            choice, _ = await Routed(parts, router).choose(moment, replace(memory, calls_left=calls_left))
            return choice, context
        except BoundaryError as error:
            return await self._fallback(moment, router, error, calls_left, visit.facts), context

    async def _fallback(
        self, moment: Moment, router: GatewayRouter, error: BoundaryError, calls_left: int | None, facts: Json
    ) -> Choice:
        """The small model is down: the teacher serves. The teacher is down: the best candidate. The verifier or the router
        broke: the teacher, because nobody knows the risk. Both down: 502.
        """
        cause = error.cause
        if isinstance(cause, UpstreamError) and cause.clients_fault:
            raise Refused(str(cause), cause.status, {**facts, "reason": "upstream_refused"}) from None
        if error.boundary == "teacher":
            try:
                return await _slm_alone(moment, router, f"upstream_fallback: {cause}")
            except BoundaryError:
                raise Refused(f"no model answered: {cause}", 502, {**facts, "reason": "upstream_fallback"}) from None
        code = "upstream_fallback" if error.boundary == "slm" else "verifier_failed"
        if calls_left == 0:
            raise Refused(f"{cause}; the teacher's budget is exhausted", 502, {**facts, "reason": code}) from None
        try:
            return await _teacher_alone(moment, f"{code}: {cause}")
        except BoundaryError as second:
            told = f"no model answered: {cause}; {second.cause}"
            raise Refused(told, 502, {**facts, "reason": "upstream_fallback"}) from None

    async def _record(self, visit: Visit, choice: Choice, context: Context) -> None:
        """The row of the step. Raises Refused when it cannot be written: then the answer must not leave."""
        decision, facts, small, teacher = choice.decision, visit.facts, visit.small, visit.teacher
        assert decision is not None
        redact = self.settings.store.redact
        step = Step(visit.session.t, 0, Observation(context.observations[-1], False, None, None, "", ()), choice)
        entry = Entry(
            facts["decision-id"], visit.session.id, visit.session.t, time.time(), visit.wish.key, choice.actor,
            facts["reason"], facts["model"], decision.risk, decision.threshold, decision.propensity, small.usd, teacher.usd,
            self._saved(visit), small.spent.tokens + teacher.spent.tokens, int(teacher.drawn > 0), small.drawn,
            facts["overhead-ms"], decision.rung, _hash(context.goal) if redact else context.goal,
            _redacted(step) if redact else step,
        )  # fmt: skip
        try:
            self.ledger.write(entry)
        except Exception as error:  # disk full, locked, corrupt
            told = f"the ledger cannot be written ({error}); no answer was given"
            raise Refused(told, 503, {**facts, "reason": "ledger"}) from None
        try:
            await self.accounts.remember(
                visit.session, decision, teacher=choice.actor == "teacher",
                tokens=teacher.prompt_tokens or small.prompt_tokens,
            )  # fmt: skip
        except OSError as error:
            raise _unreachable(error, facts) from None
        self.meters.note(entry)
        facts["cost-usd"] = round(small.usd + teacher.usd, 8)

    def _saved(self, visit: Visit) -> float:
        """USD saved against a teacher that answers every step, the prompt of the step before still in its cache. What it
        would have written is taken to be as long as what was written. Drafts, lost caches and double prompts are all in it.
        """
        small, teacher = visit.small, visit.teacher
        written = teacher.usage or small.usage
        output = written.get("completion_tokens", 0) // max(1, (teacher if teacher.usage else small).drawn)
        prompt = teacher.prompt_tokens or small.prompt_tokens
        alone = self.teacher.usd(prompt, min(prompt, visit.session.prompt_tokens), output)
        return alone - small.usd - teacher.usd


async def _teacher_alone(moment: Moment, reason: str) -> Choice:
    answer = await moment.ask_teacher()
    decision = Decision("teacher_step", None, None, 1.0, reason)
    return Choice(answer.action, "teacher", (), (), None, decision, NO_USAGE, answer.usage)


async def _slm_alone(moment: Moment, router: GatewayRouter, reason: str) -> Choice:
    candidates, scores, features = await moment.look(0)
    wanted = router.router.decide(moment.context, features, Memory(retries=MAX_RETRIES), seed=moment.seed)
    decision = Decision("continue", wanted.risk, wanted.threshold, 1.0, reason)
    action = candidates[best(candidates, scores)].action
    return Choice(action, "slm", candidates, scores, features, decision, candidates[0].usage, NO_USAGE)


@lru_cache(maxsize=256)
def _verifier(name: VerifierName, tools: bytes) -> Verifier:
    return verifier_named(name, chat.tools_of(tools))


def _accounts(settings: GatewaySettings, ledger: Ledger) -> Accounts:
    name, ttl_s = settings.store.redis_env, settings.route.cache_ttl_s
    if name is None:
        return LocalAccounts(ledger, ttl_s)
    if not (url := os.environ.get(name, "").strip()):
        raise SettingsError(f"environment variable {name} of store.redis_env is not set; it must hold the URL of a Redis")
    try:
        from r2v.gateway.shared import RedisAccounts
    except ModuleNotFoundError:
        raise SettingsError("store.redis_env needs the extra redis: pip install 'r2v[redis]'") from None
    models = settings.models.values()
    longest = sum((model.retries + 1) * (model.timeout_s + model.connect_timeout_s + 20) for model in models)
    return RedisAccounts(url, cache_ttl_s=ttl_s, longest_step_s=2 * longest)


def _unreachable(error: OSError, facts: Json) -> Refused:
    return Refused(f"the shared state is out of reach ({error}); no answer was given", 503, {**facts, "reason": "store"})


def _usage(visit: Visit) -> Json:
    """Tokens of all calls of the step: the client sees all that was spent for it."""
    return added(visit.small.usage, visit.teacher.usage)


def _hash(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def _redacted(step: Step) -> Step:
    @cache
    def hidden(action: Action) -> Action:
        return Action(_hash(action.text))

    choice = step.choice
    return replace(
        step,
        observation=replace(step.observation, text=_hash(step.observation.text)),
        choice=replace(
            choice,
            action=hidden(choice.action),
            candidates=tuple(Candidate(hidden(c.action), c.logp, c.entropy, c.usage) for c in choice.candidates),
            decision=choice.decision and replace(choice.decision, reason=choice.decision.reason.split(":", 1)[0]),
        ),
    )
