"""One request is one agent step: session, candidates, verifier, features, risk, decision, answer, ledger.

The decision is `r2v.core.agent.Routed.choose`, the code that rollouts and evaluation run; the request is only wrapped as a
policy for each model. What the gateway adds around it: budgets that hold under concurrency, fallbacks when a model is down,
and the row in the ledger that is written before the answer leaves.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import secrets
import sqlite3
import time
from collections import OrderedDict
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import TYPE_CHECKING

from r2v.clients import make_client
from r2v.clients.authors import marks_of
from r2v.clients.base import Client
from r2v.clients.tokens import Tokens
from r2v.core.agent import MAX_RETRIES, AgentModels, Routed, StepContext
from r2v.core.agreement import alike
from r2v.core.cache import remembered
from r2v.core.errors import BoundaryError, ModelError, PromptTooLong
from r2v.core.features import best, proposing
from r2v.core.protocols import PricedVerifier, Verifier
from r2v.core.seeds import derive_seed
from r2v.core.types import NO_USAGE, TEACHER, Choice, Code, Context, Decision, Memory, Observation, Route, Step
from r2v.gateway.budgets import (
    DAY,
    Account,
    Amount,
    Exhausted,
    Limits,
    Reservation,
    limits_of,
    touch,
)
from r2v.gateway.candidates import CandidateSource, LiveAnswer, PaidAnswers, most
from r2v.gateway.keys import KeyRing
from r2v.gateway.metrics import Metrics
from r2v.gateway.modes import Modes, Part, part_of
from r2v.gateway.redaction import Redactor, secret_of
from r2v.gateway.routing import GatewayRouter, ShadowRouter, load_configured
from r2v.gateway.rows import Entry
from r2v.gateway.scoring import PaidVerifier
from r2v.gateway.sessions import SESSIONS, Session
from r2v.gateway.settings import GatewaySettings
from r2v.gateway.step import (
    Refused,
    RequestOptions,
    ServedStep,
    StepAnswer,
    reachable,
    unanswered,
    unreachable,
    unwritten,
    with_messages,
)
from r2v.gateway.stores import Stores
from r2v.gateway.telemetry import Telemetry
from r2v.messages.conversation import Json, Request, bounded, context_of, limited, tools_of
from r2v.messages.protocol import Served
from r2v.runtime.json_schema import footprint
from r2v.runtime.slices import in_slices, in_thread
from r2v.verifiers import verifier_named

if TYPE_CHECKING:
    from r2v.gateway.verdicts import SessionVerdicts

CHECKPOINT_S = 0.5
WARN_S = 60.0
"""Between two lines in the log about drafts that fail."""
OF_CONTEXT = 4
"""The SLM's answers may fill this part of its context: agents ask for as many tokens as the large models can write."""
VERIFIER_BYTES = 64_000_000
"""Memory for verifiers, of which each holds the tools of its requests."""
ASIDE = re.compile(r"\btitle|\bsummar|\bnew topic", re.IGNORECASE)
"""In the system prompt of requests that agents make beside the steps of a session, sometimes before its first."""


@dataclass
class Lasting:
    """What outlives a reload: the service before it and the one after it share this."""

    stores: Stores
    metrics: Metrics
    telemetry: Telemetry | None
    with_tools: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """Sessions of clients in which tools were offered; the latest ones."""


class Service:
    lasting: Lasting

    def __init__(self, settings: GatewaySettings, *, owner: bool = True, before: Service | None = None) -> None:
        """Raises SettingsError, ArtifactError.

        Args:
            settings: as the file says.
            owner: whether no other process serves from the ledger; False for one of several workers, whose parent owns it.
            before: the one that it takes the place of, with the same `settings.store`: they share `Lasting`, and a model
                whose settings are the same. It may be made in a thread.
        """
        self.file_settings = settings
        self.slm: Client = _client(settings, "slm", "slm", before.slm if before else None)
        pool = {name: before.stronger.get(name) if before else None for name in settings.stronger}
        self.stronger: dict[str, Client] = {name: _client(settings, name, name, old) for name, old in pool.items()}
        """The models between SLM and teacher, the cheapest first, and the teacher."""
        self.router = load_configured(settings.route, settings.stronger)
        self.settings = settings.but(route=self.router.route)
        self.verdicts = _verdicts(settings)
        # A verifier's files may have changed, too.
        self._verifier = remembered(VERIFIER_BYTES, lambda name, tools: footprint(tools))(_verifier)
        stores = before.lasting.stores if before else Stores(settings, owner=owner)
        self.ledger, self.sessions = stores.ledger, stores.sessions
        self.budgets, self.shipping = stores.budgets, stores.shipping
        # What a step reads and writes at its begin and at its end is one transaction each; none waits for another server.
        self._together = nullcontext if settings.store.redis_env else self.ledger.accounts.transaction
        self._redactor = Redactor(secret_of(settings.store)) if settings.store.redact else None
        self.keys = KeyRing(settings.server, stores.keys)
        if before is None:
            if owner:
                stores.join()
            telemetry = None if settings.telemetry is None else Telemetry(settings.telemetry)
            self.lasting = Lasting(stores, Metrics(self.router, self.clients), telemetry)
        else:
            self.lasting = before.lasting
        self.metrics, self._telemetry = self.lasting.metrics, self.lasting.telemetry
        self.modes = Modes(self.settings.route, self.sessions, stores.reader)
        self._checked, self._problem, self._warned = -math.inf, "", -math.inf

    @property
    def teacher(self) -> Client:
        return self.stronger[TEACHER]

    @property
    def clients(self) -> tuple[Client, ...]:
        """Of all models."""
        return (self.slm, *self.stronger.values())

    def take_over(self) -> None:
        """Steps are served by this one from now on; those that have begun end on the one before."""
        self.sessions.cache_ttl_s = self.settings.route.cache_ttl_s
        self.metrics.use(self.router, self.clients)

    async def upkeep(self) -> None:
        """What is to be done beside serving, until it is cancelled."""
        self.ledger.defer_checkpoints()
        while True:
            await asyncio.sleep(CHECKPOINT_S)
            await asyncio.to_thread(self.ledger.checkpoint)

    async def close(self) -> None:
        for client in self.clients:
            await client.close()
        if self._telemetry is not None:
            await self._telemetry.close()
        await self.lasting.stores.close()

    async def known(self, *names: str) -> str | None:
        """The first name of a session that has a step: here, or at another replica that ships to the same ledger. Raises
        Refused where that cannot be found out.
        """
        here = next(filter(self.ledger.has, names), None)
        if here is not None or self.shipping is None:
            return here
        with reachable():
            for name in names:
                if await self.sessions.begun(name):
                    return name
            there = self.shipping.shared.has
            return await in_thread(lambda: next(filter(there, names), None))

    async def ready(self) -> Json:
        """{"ready": whether a step would be answered now, "models": {name: whether it is called}, "problem": what is wrong}.
        What writes to the ledger is done once a second at most.
        """
        up = {client.name: client.available for client in self.clients}
        if time.monotonic() - self._checked > 1.0:
            self._problem = "" if any(up.values()) else "no model is called for a while, after failures"
            try:
                await self.budgets.check()
            except (OSError, sqlite3.Error) as error:
                self._problem = str(error)
            self._checked = time.monotonic()
        return {"ready": not self._problem, "models": up, **({"problem": self._problem} if self._problem else {})}

    # -- the step -------------------------------------------------------------------------------------------------

    async def step(self, request: Request, options: RequestOptions, live: LiveAnswer | None = None) -> StepAnswer:
        """Answers one request; `live`: where its answer goes while it is written, if the client wants a stream. Raises
        Refused.
        """
        step = self._step(request, options, live)
        try:
            return await (step if self._telemetry is None else self._telemetry.traced(request, options, step))
        except Refused as error:
            self.metrics.note_refusal(error.facts["reason"])
            raise

    async def _step(self, request: Request, options: RequestOptions, live: LiveAnswer | None) -> StepAnswer:
        served = await self._begin(request, options, live)
        became = "refused"
        try:
            answer = await self._answer(served)
            became = "decided only"
            return answer
        except asyncio.CancelledError:
            became = "client gone"
            raise
        except Refused as error:
            became = str(error.facts.get("reason", became))
            raise
        finally:
            await self._end(served, became)

    async def _answer(self, served: ServedStep) -> StepAnswer:
        """Raises Refused."""
        if not served.reservation.teacher and self.settings.budget.on_exhaustion == "stop":
            raise Refused("the budget for the teacher is exhausted", 402, {**served.facts, "reason": "budget_exhausted"})
        choice, context = await self._choose(served)
        answered = served.answered(choice)
        model = answered.client.settings.model
        served.describe(choice, model)
        reply = answered.reply(choice.action)
        if reply.parsed_calls:
            served.facts["parsed-calls"] = reply.parsed_calls
            choice = replace(choice, parsed_calls=reply.parsed_calls)
        if reply.dropped:
            served.facts["dropped"] = ",".join(dict.fromkeys(reply.dropped))  # a name may come of many messages
        if not served.options.dry:
            await self._record(served, choice, context)
            with reachable(served.facts):
                for mark in marks_of(reply):
                    await self.sessions.sign(served.session, mark, model)
        return StepAnswer(reply, self.served(served.facts, model), served.facts)

    def served(self, facts: Json, model: str) -> Served:
        """Who answers, and under which id."""
        return Served(facts["decision-id"], model, int(time.time()))

    def _is_early(self, session: Session, options: RequestOptions, part: Part) -> bool:
        """Whether the step before predicts that the SLM suffices. After the first visible byte nothing
        can be taken back, so the risk is that of the step before.
        """
        route = self.settings.route
        if route.stream == "hold" or options.forced in self.stronger or not self.slm.streams or not part.routed:
            return False
        if not session.memory.decisions:
            return route.stream == "early"
        last = session.memory.decisions[-1]
        threshold = self._threshold(options)
        bar = threshold if route.stream == "early" else threshold / 2
        return last.route == "continue" and last.score is not None and last.score < bar

    async def _begin(self, request: Request, options: RequestOptions, live: LiveAnswer | None) -> ServedStep:
        """A step of the session, with what it can cost at most reserved. Raises Refused where the budget has no room, or
        that cannot be written: before any model is asked.
        """
        start = time.perf_counter()
        facts: Json = {} if live is None else live.facts
        facts["decision-id"] = secrets.token_hex(8)
        try:
            name, owner = await self._names(request, options)
            mode = "shadow" if options.shadow else (await self.modes.current()).mode  # a step that is refused leaves it
            with self._together():
                session = await self.sessions.enter(name, dry=options.dry)
                facts |= {"session-id": name.split("/", 1)[-1], "step": session.t}
                part = part_of(mode, self.settings.route, session.id, session.t)
                early = live is not None and self._is_early(session, options, part)
                drafts = 1 if early else self.settings.route.k
                account = Account(owner, options.key.id, int(time.time() // DAY))
                limits = limits_of(self.settings.budget, account, options.session_usd, options.key.budget)
                to_slm, to_stronger = self._asked(request, limits)
                dearest = reduce(Amount.at_least, (most(self.stronger[name], to, 1) for name, to in to_stronger.items()))
                amounts = most(self.slm, to_slm, drafts), dearest + Amount(calls=1)
                reservation = await self.budgets.reserve(facts["decision-id"], account, limits, *amounts)
        except Exhausted:
            raise Refused("the budget is exhausted", 402, {**facts, "reason": "budget_exhausted"}) from None
        except OSError as error:
            raise unreachable(error, facts) from None
        except sqlite3.Error as error:
            raise unwritten(error, facts) from None
        authors, pay = session.signatures, partial(self._pay, reservation)
        live_slm, one_answer = live if early else None, PaidAnswers(int(reservation.teacher))
        slm = CandidateSource(self.slm, to_slm, authors, role="slm", live=live_slm, paid=PaidAnswers(drafts), pay=pay)
        stronger = {
            name: CandidateSource(self.stronger[name], to, authors, role=name, live=live, paid=one_answer, pay=pay)
            for name, to in to_stronger.items()
        }
        return ServedStep(request, options, session, reservation, slm, stronger, part, live, early, facts, start)

    async def _end(self, served: ServedStep, became: str) -> None:
        """Return what was charged and not spent; `became`: what a step became that left no row. Raises Refused."""
        try:
            await self.budgets.settle(served.reservation, served.spent, served.lost, became)
        except OSError as error:  # what is charged stays so: never more is spent than allowed
            raise unreachable(error, served.facts) from None
        except sqlite3.Error as error:
            raise unwritten(error, served.facts) from None

    async def _pay(self, reservation: Reservation, amount: Amount) -> bool:
        """Charge a step for more; whether there is room for it."""
        try:
            await self.budgets.extend(reservation, amount)
        except (Exhausted, OSError, sqlite3.Error):
            return False
        return True

    async def _names(self, request: Request, options: RequestOptions) -> tuple[str, str]:
        """The session that the step belongs to, and the one whose money it spends."""
        if not options.named:
            fresh = not options.dry and all(message.role != "assistant" for message in request.messages)
            name = await self.sessions.run_of(options.session, fresh=fresh)
            return name, name
        name = f"{options.session}.{options.subagent}" if options.subagent else options.session
        return (f"{name}.aside" if await self._is_aside(name, request) else name), options.session

    def _asked(self, request: Request, limits: Limits) -> tuple[Request, dict[str, Request]]:
        """What the SLM and each stronger model are asked: where money or tokens are limited, so are the answers' lengths."""
        slm, stronger = request, dict.fromkeys(self.stronger, request)
        if any(limit.tokens is not None or limit.usd is not None for _, limit in limits):
            lengths = {client.settings.max_output_tokens for client in self.clients}
            of_length = {length: bounded(request, length) for length in lengths}
            slm = of_length[self.slm.settings.max_output_tokens]
            stronger = {name: of_length[client.settings.max_output_tokens] for name, client in self.stronger.items()}
        if (context := self.slm.settings.context_tokens) is not None:
            slm = limited(slm, context // OF_CONTEXT)
        return slm, stronger

    async def _is_aside(self, name: str, request: Request) -> bool:
        """Whether it is no step of the session: agents also ask for titles and summaries under its name, without tools."""
        if request.tools not in (b"null", b"[]"):
            if name not in self.lasting.with_tools:
                await self.sessions.offer_tools(name)
            self.lasting.with_tools[name] = None
            touch(self.lasting.with_tools, name, SESSIONS)
            return False
        first = request.messages[0]
        return (
            name in self.lasting.with_tools
            or (first.role in ("system", "developer") and ASIDE.search(first.text[:1000]) is not None)
            or await self.sessions.had_tools(name)
        )

    def _threshold(self, options: RequestOptions) -> float:
        return self.router.threshold if options.threshold is None else options.threshold

    def _router(self, served: ServedStep) -> GatewayRouter:
        router = self.router.make(self._threshold(served.options))
        usable = tuple(name for name, source in served.stronger.items() if name == TEACHER or source.usable)
        forced, cold = served.options.forced, served.session.cold
        explored = tuple(name for name in usable if name in self.router.router.models)
        return GatewayRouter(router, self.settings.route, tuple(served.stronger), usable, explored, forced, cold)

    async def _choose(self, served: ServedStep) -> tuple[Choice, Context]:
        route, session = self.settings.route, served.session
        context = await in_slices(served.request.size, lambda: context_of(served.request, route.horizon))
        if self.verdicts is not None:
            served.verdicts = await self.verdicts.of_context(context)
            context = replace(context, verdicts=served.verdicts)
        k = 1 if served.early else route.k
        first = None if route.clear is None or k == 1 else 1
        verifier = self._verifier(route.verifier, served.request.tools)
        if isinstance(verifier, PricedVerifier):
            verifier = served.scoring = PaidVerifier(verifier, served.slm.pay)
        models = AgentModels(
            served.slm, served.stronger[TEACHER], verifier, k, first, view=self.router.view, pool=served.stronger
        )
        router, memory = self._router(served), session.memory
        with reachable(served.facts):
            killed = await self.sessions.killed()
        if killed:
            router = replace(router, forced="slm", killed=True)
        decisions = () if router.forced == "slm" else memory.decisions  # none ends a takeover by the teacher
        calls_left = served.reservation.calls_left if served.reservation.teacher else 0
        memory = Memory(calls_left, memory.seed, decisions)
        step_context = StepContext(models, context, seed=derive_seed(session.id, session.t))
        try:
            if router.forced is not None and router.forced in served.stronger and calls_left != 0:
                return await _stronger_alone(step_context, router.forced, "forced", "forced"), context
            if served.early:
                return await _slm_alone(step_context, router, "early", "streamed as it came"), context
            if router.forced is None and not served.part.routed:
                if calls_left == 0:
                    return await _slm_alone(step_context, router, "budget_exhausted", "no budget for the teacher"), context
                return await self._watched(served.part, models, step_context, router, memory), context
            choice, _ = await Routed(models, router).choose(step_context, memory)
            return choice, context
        except BoundaryError as error:
            return await self._fallback(served, step_context, router, error, calls_left), context

    async def _watched(
        self, part: Part, models: AgentModels, step_context: StepContext, router: GatewayRouter, memory: Memory
    ) -> Choice:
        """The teacher answers, as without r2v; beside it the SLM drafts and the router decides, which is only noted. What is
        not ready when the teacher has answered is given up after a moment.
        """
        code: Code = "shadow" if part.name == "shadow" else "observe"
        kept = bool(memory.decisions) and memory.decisions[-1].route == "takeover"
        watched = ShadowRouter(router)
        drafting = None
        if part.drafted and not kept:
            drafting = asyncio.ensure_future(Routed(models, watched).choose(step_context, memory))
        answer, noted, wanted = None, None, Decision("takeover" if kept else "escalate", code, None, None, None, 1.0, (), "")
        try:
            answer = await step_context.answer()
            if drafting is not None:
                noted, _ = await asyncio.wait_for(drafting, self.settings.route.observe_wait_s)
        except (BoundaryError, TimeoutError) as error:
            if answer is None:
                raise
            if isinstance(error, BoundaryError) and time.monotonic() - self._warned > WARN_S:
                self._warned = time.monotonic()
                logging.getLogger("uvicorn.error").warning("a step could not be compared with the teacher's: %s", error)
        finally:
            if drafting is not None:
                drafting.cancel()
                await asyncio.gather(drafting, return_exceptions=True)  # then it is known what it cost
        if noted is None or watched.wanted is None:
            return Choice(answer.action, "teacher", (), (), None, wanted, NO_USAGE, answer.usage)
        wanted = watched.wanted
        decision = replace(
            wanted, code=code, propensity=1.0, reason=f"would {wanted.route} ({wanted.code}: {wanted.reason})"
        )
        return replace(noted, action=answer.action, source="teacher", decision=decision, teacher=answer.usage)

    async def _fallback(
        self, served: ServedStep, step_context: StepContext, router: GatewayRouter, error: BoundaryError,
        calls_left: int | None,
    ) -> Choice:  # fmt: skip
        """The SLM is down: the teacher serves. So it does for a model between them. The teacher is down: the best candidate,
        unless the client insists on a stronger model. The verifier or the router broke: the teacher, because the risk is
        unknown. All down, or the answer has begun: an error.
        """
        cause, facts = error.cause, served.facts
        # The SLM may refuse what the teacher takes; the client hears of it where the teacher refuses it as well.
        if isinstance(cause, ModelError) and cause.clients_fault and (error.boundary != "slm" or router.forced == "slm"):
            raise Refused(str(cause), cause.status, {**facts, "reason": "upstream_refused"}) from None
        code: Code = "verifier_failed" if error.boundary in ("verifier", "router") else "upstream_fallback"
        if router.killed or (served.live is not None and served.live.source is not None):
            raise unanswered(facts, code, cause)
        if error.boundary == "teacher":
            if router.forced in served.stronger:
                raise unanswered(facts, code, cause)
            if isinstance(cause, PromptTooLong) and not served.part.routed:  # nobody has agreed to the SLM's answers
                raise unanswered(facts, code, cause)
            if not served.stronger[TEACHER].asked:  # one between them is down
                with suppress(BoundaryError):
                    return await _stronger_alone(step_context, TEACHER, code, str(cause))
            try:
                return await _slm_alone(step_context, router, code, str(cause))
            except BoundaryError as second:
                causes = (cause,) if isinstance(cause, PromptTooLong) else (cause, second.cause)
                raise unanswered(facts, code, *causes) from None
        if calls_left == 0:
            raise Refused(f"{cause}; the teacher's budget is exhausted", 502, {**facts, "reason": code}) from None
        try:
            return await _stronger_alone(step_context, TEACHER, code, str(cause))
        except BoundaryError as second:
            if isinstance(second.cause, ModelError) and second.cause.clients_fault:
                raise Refused(str(second.cause), second.cause.status, {**facts, "reason": "upstream_refused"}) from None
            raise unanswered(facts, code, cause, second.cause) from None

    async def _record(self, served: ServedStep, choice: Choice, context: Context) -> None:
        """The row of the step. Raises Refused when it cannot be written: then the answer must not leave."""
        decision, facts, slm, stronger = choice.decision, served.facts, served.slm, served.stronger.values()
        usd = sum(one.usd for one in stronger)
        scoring = served.scoring.spent if served.scoring else Amount()
        assert decision is not None
        verdict = None
        step = Step(served.session.t, 0, Observation(context.observations[-1], False, None, None, "", ()), choice)
        if self.verdicts is not None:
            step = replace(step, verdicts=(*served.verdicts, *self.verdicts.of_step(step)))
            verdict = await self.verdicts.last(served.verdicts, context, choice.action)
        if self._redactor is None:
            goal, kept = context.goal, await in_slices(served.request.size, lambda: with_messages(step, served))
        else:
            goal, kept = self._redactor.hash(context.goal), self._redactor.step(step)
        entry = Entry(
            facts["decision-id"], served.session.id, served.session.t, time.time(), served.options.key.id, choice.source,
            facts["reason"], facts["model"], decision.score, decision.score_kind, decision.threshold, decision.propensity,
            slm.usd + scoring.usd, usd, self._saved(served) - scoring.usd,
            sum(one.tokens.total for one in served.sources) + scoring.tokens,
            sum(one.drawn > 0 for one in stronger), slm.drawn,
            facts["overhead-ms"], decision.route, goal, kept, _alike(choice), served.part.name,
        )  # fmt: skip
        tools = None if self._redactor or served.session.begun else served.request.tools
        try:
            with self._together():
                self.ledger.write(entry, tools, verdict, served.lost)
                await self.sessions.remember(
                    served.session, decision, teacher=choice.source == "teacher",
                    tokens=served.prompt_tokens,
                )  # fmt: skip
        except OSError as error:
            raise unreachable(error, facts) from None
        except Exception as error:  # disk full, locked, corrupt
            raise unwritten(error, facts) from None
        served.reservation.written, self.ledger.accounts.room = True, 0
        self.metrics.note(entry, self.router, [one for one in served.sources if one.drawn], served.answered(choice).role)
        if self._telemetry is not None:
            self._telemetry.note(entry)
        facts["cost-usd"] = round(slm.usd + usd + scoring.usd, 8)

    def _saved(self, served: ServedStep) -> float:
        """USD saved against a teacher that answers every step, the prompt of the step before still in its cache. Its answer
        is taken to be as long as the one that was written. Unused candidates, lost caches and double prompts all count.
        """
        writer, prompt = served.writer, served.prompt_tokens
        output = writer.tokens.output // max(1, writer.drawn)
        alone = self.teacher.usd(Tokens(prompt, output, cached=min(prompt, served.session.prompt_tokens)))
        return alone - sum(one.usd for one in served.sources)


async def _stronger_alone(step_context: StepContext, model: str, code: Code, reason: str) -> Choice:
    answer = await step_context.answer(model)
    decision = Decision("escalate", code, None, None, None, 1.0, (), reason, model)
    return Choice(answer.action, "teacher", (), (), None, decision, NO_USAGE, answer.usage)


async def _slm_alone(step_context: StepContext, router: GatewayRouter, code: Code, reason: str) -> Choice:
    candidates, scores, features = await step_context.look(0)
    known = proposing(step_context.context, candidates, scores)
    wanted = router.router.decide(known, features, Memory(retries=MAX_RETRIES), seed=step_context.seed)
    # What was streamed early is not decided on: what the router wanted is kept for the next step.
    route: Route = wanted.route if code == "early" and wanted.route != "retry" else "continue"
    decision = replace(wanted, route=route, code=code, propensity=1.0, reason=reason)
    action = candidates[best(candidates, scores)].action
    scoring = step_context.scoring()
    return Choice(action, "slm", candidates, scores, features, decision, candidates[0].usage, NO_USAGE, verifier=scoring)


def _alike(choice: Choice) -> bool | None:
    """Whether the SLM would have acted as the teacher did; None where they were not both asked, or it is not known."""
    if choice.model != TEACHER or not choice.candidates:
        return None
    return alike(choice.candidates[best(choice.candidates, choice.scores)].action, choice.action)


def _client(settings: GatewaySettings, role: str, name: str, before: Client | None) -> Client:
    """The model's client: the one before where its settings are the same. Raises SettingsError."""
    wanted = settings.models[role]
    if before is not None and before.settings == wanted:
        return before
    client = make_client(wanted, name)
    if before is not None:
        client.endpoint.attempts = before.endpoint.attempts  # it counts on
    return client


def _verifier(name: str, tools: bytes) -> Verifier:
    return verifier_named(name, tools_of(tools))


def _verdicts(settings: GatewaySettings) -> SessionVerdicts | None:
    if not settings.verdicts:
        return None
    from r2v.gateway.verdicts import SessionVerdicts  # here, because most gateways have none
    from r2v.verdicts import parse_verdicts

    return SessionVerdicts(parse_verdicts(settings.verdicts))
