"""One request is one agent step: session, candidates, verifier, features, risk, decision, answer, ledger.

The decision is `r2v.core.agent.Routed.choose`, the code that rollouts and evaluation run; the request is only wrapped as two
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

from r2v.clients import make_client
from r2v.clients.base import ModelError, Tokens
from r2v.core.agent import MAX_RETRIES, AgentModels, Routed, StepContext
from r2v.core.errors import BoundaryError, SettingsError
from r2v.core.features import best
from r2v.core.protocols import Verifier
from r2v.core.seeds import derive_seed, derive_uniform
from r2v.core.types import NO_USAGE, Action, Candidate, Choice, Code, Context, Decision, Memory, Observation, Step
from r2v.gateway.budgets import DAY, Amount, Budgets, Exhausted, LocalBudgets, Reservation, limits_of
from r2v.gateway.candidates import CandidateSource, Known, most
from r2v.gateway.ledger import Entry, Ledger
from r2v.gateway.metrics import Metrics
from r2v.gateway.routing import GatewayRouter, load_configured
from r2v.gateway.sessions import LocalSessions, Session, Sessions
from r2v.gateway.settings import GatewaySettings
from r2v.messages.conversation import Json, Request, context_of, tools_of
from r2v.messages.openai_chat import StreamAccumulator, completion
from r2v.messages.transcript import incoming, message_of
from r2v.verifiers import verifier_named


class Refused(Exception):
    """The step cannot be served; `status` and `facts` go to the client."""

    def __init__(self, message: str, status: int, facts: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.status, self.facts = status, facts


@dataclass(frozen=True)
class Answer:
    completion: Json
    facts: Json
    """Of the response headers and the last stream chunk."""


@dataclass(frozen=True)
class RequestOptions:
    """What the client wants of this step besides the request."""

    key: str
    """Hash of its key."""
    session: str
    """Its own name for the session within its key, or the request's `fingerprint`."""
    forced: str | None = None
    """slm or teacher: the model that must answer."""
    threshold: float | None = None
    shadow: bool = False
    """Decide, but let the SLM answer."""
    session_usd: float | None = None
    """What the whole session may cost."""
    dry: bool = False
    """Decide, but do not answer."""


@dataclass(eq=False)
class ServedStep:
    """One step of one session while it is served."""

    request: Request
    options: RequestOptions
    session: Session
    reservation: Reservation
    slm: CandidateSource
    teacher: CandidateSource
    facts: Json
    start: float

    def describe(self, choice: Choice, model: str) -> None:
        """Put the choice into the facts for the client and the ledger; the overhead is the time without the models'."""
        assert choice.decision is not None
        waited = self.slm.seconds + self.teacher.seconds
        self.facts |= {
            "arm": choice.source,
            "reason": choice.decision.code,
            "model": model,
            "risk": choice.decision.score,
            "threshold": choice.decision.threshold,
            "overhead-ms": round(1000 * (time.perf_counter() - self.start - waited), 3),
        }
        if self.reservation.calls_left is not None:
            self.facts["budget-left"] = max(0, self.reservation.calls_left - (choice.source == "teacher"))

    @property
    def usage(self) -> Json:
        """Tokens of all calls of the step: the client sees all that was spent for it."""
        return (self.slm.tokens + self.teacher.tokens).usage


class Service:
    def __init__(self, settings: GatewaySettings) -> None:
        """Raises SettingsError, ArtifactError."""
        self.slm = make_client(settings.models["slm"], "small")
        self.teacher = make_client(settings.models["teacher"], "teacher")
        self.router = load_configured(settings.route)
        self.settings = settings.but(route=self.router.route)
        self.ledger = Ledger(Path(settings.store.path))
        self.sessions, self.budgets = _state(settings, self.ledger)
        self.metrics = Metrics(self.router, self.ledger, (self.slm, self.teacher))

    async def close(self) -> None:
        await self.slm.close()
        await self.teacher.close()
        await self.sessions.close()
        await self.budgets.close()
        self.ledger.close()

    # -- the step -------------------------------------------------------------------------------------------------

    async def step(self, request: Request, options: RequestOptions) -> Answer:
        """Raises Refused."""
        async with self._serve(request, options, drafts=self.settings.route.k) as served:
            choice, context = await self._choose(served)
            answered = served.teacher if choice.source == "teacher" else served.slm
            model = answered.client.settings.model
            served.describe(choice, model)
            chosen = answered.choice(choice.action)
            if not options.dry:
                await self._record(served, choice, context)
                for block in chosen["message"].get("thinking_blocks") or []:
                    await self.sessions.sign(served.session, str(block.get("signature")), model)
        answer = completion(
            chosen, served.usage, model=model, identity=served.facts["decision-id"], created=int(time.time())
        )
        return Answer(answer, served.facts)

    async def may_stream_early(self, options: RequestOptions) -> bool:
        """Whether the step before predicts that the SLM suffices. After the first visible byte nothing
        can be taken back, so the risk is that of the step before.
        """
        route = self.settings.route
        if route.stream == "hold" or options.forced == "teacher" or not self.slm.streams:
            return False
        decisions = (await self.sessions.enter(options.session, dry=True)).memory.decisions
        if not decisions:
            return route.stream == "early"
        last, threshold = decisions[-1], self.router.threshold if options.threshold is None else options.threshold
        bar = threshold if route.stream == "early" else threshold / 2
        return last.route == "continue" and last.score is not None and last.score < bar

    async def stream_early(self, request: Request, options: RequestOptions) -> AsyncGenerator[Json, None]:
        """The SLM's first draft, chunk by chunk; the row is in the ledger before the last chunk leaves. Raises
        Refused, before the first chunk or in the middle.
        """
        async with self._serve(request, options, drafts=1) as served:
            answer, last, usage = StreamAccumulator(), Json(), Json()
            start = time.perf_counter()
            try:
                async with aclosing(self.slm.stream(request)) as chunks:
                    async for chunk in chunks:
                        usage = chunk.get("usage") or usage
                        if not chunk.get("choices"):
                            continue
                        answer.add(chunk["choices"][0])
                        chunk = {**chunk, "id": f"chatcmpl-{served.facts['decision-id']}"}
                        if chunk["choices"][0].get("finish_reason"):
                            last = chunk
                        else:
                            yield chunk
            except ModelError as error:
                raise Refused(str(error), error.status, {**served.facts, "reason": "upstream_fallback"}) from None
            except (GeneratorExit, asyncio.CancelledError):
                served.slm.cancelled(1)
                raise
            served.slm.seconds = time.perf_counter() - start
            candidates = served.slm.take(self.slm.priced([([answer.choice], usage)]))
            await self._record_early(served, candidates)
            yield {**last, "r2v": served.facts, "usage": served.usage}

    async def _record_early(self, served: ServedStep, candidates: tuple[Candidate, ...]) -> None:
        """The row of a step whose only candidate has been streamed: its risk decides how the next step is served."""
        context = context_of(served.request, self.settings.route.horizon)
        verifier = _verifier(self.settings.route.verifier, served.request.tools)
        models = AgentModels(Known(candidates), served.teacher, verifier, 1, view=self.router.view)
        step_context = StepContext(models, context, seed=derive_seed(served.session.id, served.session.t))
        choice = await _slm_alone(step_context, self._router(served), "early", "streamed as it came")
        served.describe(choice, self.slm.settings.model)
        await self._record(served, choice, context)

    @asynccontextmanager
    async def _serve(self, request: Request, options: RequestOptions, *, drafts: int) -> AsyncIterator[ServedStep]:
        """A step of the session, with what it can cost at most reserved. Raises Refused where the budget has no room."""
        start, budget = time.perf_counter(), self.settings.budget
        facts: Json = {"decision-id": secrets.token_hex(8), "session-id": options.session.split("/", 1)[-1]}
        limits = limits_of(budget, options.session, options.key, int(time.time() // DAY), options.session_usd)
        try:
            session = await self.sessions.enter(options.session, dry=options.dry)
            facts["step"] = session.t
            amounts = most(self.slm, request, drafts), most(self.teacher, request, 1) + Amount(calls=1)
            reservation = await self.budgets.reserve(facts["decision-id"], limits, *amounts)
        except Exhausted:
            raise Refused("the budget is exhausted", 402, {**facts, "reason": "budget_exhausted"}) from None
        except OSError as error:
            raise _unreachable(error, facts) from None
        slm = CandidateSource(self.slm, request, session.signatures, teacher=False)
        teacher = CandidateSource(self.teacher, request, session.signatures, teacher=True)
        try:
            if not reservation.teacher and budget.on_exhaustion == "stop":
                raise Refused("the budget for the teacher is exhausted", 402, {**facts, "reason": "budget_exhausted"})
            yield ServedStep(request, options, session, reservation, slm, teacher, facts, start)
        finally:
            if (lost := slm.lost + teacher.lost) != Amount():
                self.ledger.abandon(session.id, options.key, lost)
            try:
                await self.budgets.settle(reservation, slm.spent + teacher.spent)
            except OSError as error:  # what is reserved stays so until it expires: never more is spent than allowed
                raise _unreachable(error, facts) from None

    def _router(self, served: ServedStep) -> GatewayRouter:
        route, options = self.settings.route, served.options
        canary = derive_uniform(derive_seed(served.session.id, "canary"), "canary") < route.canary_share
        return GatewayRouter(
            self.router.make(self.router.threshold if options.threshold is None else options.threshold),
            route,
            active=not options.shadow and (route.mode == "active" or (route.mode == "canary" and canary)),
            forced=options.forced,
            cold=served.session.cold,
        )

    async def _choose(self, served: ServedStep) -> tuple[Choice, Context]:
        route, session = self.settings.route, served.session
        context = context_of(served.request, route.horizon)
        first = None if route.clear is None or route.k == 1 else 1
        verifier = _verifier(route.verifier, served.request.tools)
        models = AgentModels(served.slm, served.teacher, verifier, route.k, first, view=self.router.view)
        router, memory = self._router(served), session.memory
        if await self.sessions.killed():
            router = replace(router, forced="slm")
        if router.forced == "slm":
            memory = replace(memory, decisions=())  # ends a takeover by the teacher
        calls_left = served.reservation.calls_left if served.reservation.teacher else 0
        step_context = StepContext(models, context, seed=derive_seed(session.id, session.t))
        try:
            if router.forced == "teacher" and calls_left != 0:
                return await _teacher_alone(step_context, "forced", "forced"), context
            choice, _ = await Routed(models, router).choose(step_context, replace(memory, calls_left=calls_left))
            return choice, context
        except BoundaryError as error:
            return await self._fallback(step_context, router, error, calls_left, served.facts), context

    async def _fallback(
        self, step_context: StepContext, router: GatewayRouter, error: BoundaryError, calls_left: int | None, facts: Json
    ) -> Choice:
        """The SLM is down: the teacher serves. The teacher is down: the best candidate. The verifier or the router
        broke: the teacher, because the risk is unknown. Both down: 502.
        """
        cause = error.cause
        if isinstance(cause, ModelError) and cause.clients_fault:
            raise Refused(str(cause), cause.status, {**facts, "reason": "upstream_refused"}) from None
        if error.boundary == "teacher":
            try:
                return await _slm_alone(step_context, router, "upstream_fallback", str(cause))
            except BoundaryError:
                raise Refused(f"no model answered: {cause}", 502, {**facts, "reason": "upstream_fallback"}) from None
        code: Code = "upstream_fallback" if error.boundary == "slm" else "verifier_failed"
        if calls_left == 0:
            raise Refused(f"{cause}; the teacher's budget is exhausted", 502, {**facts, "reason": code}) from None
        try:
            return await _teacher_alone(step_context, code, str(cause))
        except BoundaryError as second:
            reason = f"no model answered: {cause}; {second.cause}"
            raise Refused(reason, 502, {**facts, "reason": "upstream_fallback"}) from None

    async def _record(self, served: ServedStep, choice: Choice, context: Context) -> None:
        """The row of the step. Raises Refused when it cannot be written: then the answer must not leave."""
        decision, facts, slm, teacher = choice.decision, served.facts, served.slm, served.teacher
        assert decision is not None
        redact = self.settings.store.redact
        step = Step(served.session.t, 0, Observation(context.observations[-1], False, None, None, "", ()), choice)
        entry = Entry(
            facts["decision-id"], served.session.id, served.session.t, time.time(), served.options.key, choice.source,
            facts["reason"], facts["model"], decision.score, decision.score_kind, decision.threshold, decision.propensity,
            slm.usd, teacher.usd, self._saved(served), slm.spent.tokens + teacher.spent.tokens,
            int(teacher.drawn > 0), slm.drawn,
            facts["overhead-ms"], decision.route, _hash(context.goal) if redact else context.goal,
            _redacted(step) if redact else _with_messages(step, served),
        )  # fmt: skip
        try:
            self.ledger.write(entry, None if redact or served.session.t else served.request.tools)
        except Exception as error:  # disk full, locked, corrupt
            reason = f"the ledger cannot be written ({error}); no answer was given"
            raise Refused(reason, 503, {**facts, "reason": "ledger"}) from None
        try:
            await self.sessions.remember(
                served.session, decision, teacher=choice.source == "teacher",
                tokens=teacher.tokens.prompt or slm.tokens.prompt,
            )  # fmt: skip
        except OSError as error:
            raise _unreachable(error, facts) from None
        self.metrics.note(entry, {source.name: source.seconds for source in (slm, teacher) if source.drawn})
        facts["cost-usd"] = round(slm.usd + teacher.usd, 8)

    def _saved(self, served: ServedStep) -> float:
        """USD saved against a teacher that answers every step, the prompt of the step before still in its cache. Its answer
        is taken to be as long as the one that was written. Unused candidates, lost caches and double prompts all count.
        """
        slm, teacher = served.slm, served.teacher
        writer = teacher if teacher.drawn else slm
        prompt, output = teacher.tokens.prompt or slm.tokens.prompt, writer.tokens.output // max(1, writer.drawn)
        alone = self.teacher.usd(Tokens(prompt, output, cached=min(prompt, served.session.prompt_tokens)))
        return alone - slm.usd - teacher.usd


async def _teacher_alone(step_context: StepContext, code: Code, reason: str) -> Choice:
    answer = await step_context.teacher_answer()
    decision = Decision("escalate", code, None, None, None, 1.0, (), reason)
    return Choice(answer.action, "teacher", (), (), None, decision, NO_USAGE, answer.usage)


async def _slm_alone(step_context: StepContext, router: GatewayRouter, code: Code, reason: str) -> Choice:
    candidates, scores, features = await step_context.look(0)
    wanted = router.router.decide(step_context.context, features, Memory(retries=MAX_RETRIES), seed=step_context.seed)
    decision = replace(wanted, route="continue", code=code, propensity=1.0, reason=reason)
    action = candidates[best(candidates, scores)].action
    return Choice(action, "slm", candidates, scores, features, decision, candidates[0].usage, NO_USAGE)


@lru_cache(maxsize=256)
def _verifier(name: str, tools: bytes) -> Verifier:
    return verifier_named(name, tools_of(tools))


def _state(settings: GatewaySettings, ledger: Ledger) -> tuple[Sessions, Budgets]:
    """Of this process, or in the Redis that replicas share. Raises SettingsError."""
    name, ttl_s = settings.store.redis_env, settings.route.cache_ttl_s
    if name is None:
        return LocalSessions(ledger, ttl_s), LocalBudgets(ledger)
    if not (url := os.environ.get(name, "").strip()):
        raise SettingsError(f"environment variable {name} of store.redis_env is not set; it must hold the URL of a Redis")
    try:
        from r2v.gateway.redis_state import Connection, RedisBudgets, RedisSessions
    except ModuleNotFoundError:
        raise SettingsError("store.redis_env needs the extra redis: pip install 'r2v[redis]'") from None
    models = settings.models.values()
    longest = sum((m.retries + 1) * (m.timeout_s + m.connect_timeout_s + m.longest_wait_s) for m in models)
    connection = Connection(url)
    return RedisSessions(connection, ttl_s), RedisBudgets(connection, 2 * longest)


def _unreachable(error: OSError, facts: Json) -> Refused:
    return Refused(f"the shared state is out of reach ({error}); no answer was given", 503, {**facts, "reason": "store"})


def _hash(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def _with_messages(step: Step, served: ServedStep) -> Step:
    answered = served.teacher if step.choice.source == "teacher" else served.slm
    reply = message_of(answered.choice(step.choice.action)["message"])
    messages = incoming(served.request, first=not served.session.t)
    return replace(step, choice=replace(step.choice, reply=reply), messages=messages)


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
            decision=choice.decision and replace(choice.decision, reason=choice.decision.code),
        ),
    )
