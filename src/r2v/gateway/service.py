"""One request is one agent step: session, candidates, verifier, features, risk, decision, answer, ledger.

The decision is `r2v.agent.Routed.choose`, the code that rollouts and evaluation run; the request is only wrapped as two
policies, one for each model. What the gateway adds around it: budgets that hold under concurrency, fallbacks when a model is
down, and the row in the ledger that is written before the answer leaves.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from r2v.agent import NO_USAGE, Moment, Parts, Routed
from r2v.errors import BoundaryError
from r2v.features import best, featurise
from r2v.gateway import chat
from r2v.gateway.chat import Json, Request
from r2v.gateway.ledger import Entry, Ledger, decisions_of
from r2v.gateway.routing import GatewayRouter, load_score
from r2v.gateway.settings import GatewaySettings
from r2v.gateway.upstream import Draw, Upstream, UpstreamError
from r2v.seeds import derive_seed, derive_uniform
from r2v.types import Action, Candidate, Choice, Context, Decision, Memory, Observation, Step
from r2v.verifiers.tool_calls import ToolCallVerifier

DECISIONS = 200
"""The latest of a session, kept for its router."""
SESSIONS = 50_000
"""Sessions kept in memory; older ones are read from the ledger again."""


class Refused(Exception):
    """The step cannot be served; `status` and `facts` go to the client."""

    def __init__(self, message: str, status: int, facts: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.status, self.facts = status, facts


class Draft:
    """The request as a policy: proposing is asking the model for answers to it."""

    def __init__(self, upstream: Upstream, body: Json) -> None:
        self.name = upstream.name
        self._upstream, self._body = upstream, body
        self.choices: dict[Action, Json] = {}
        self.candidates: tuple[Candidate, ...] = ()
        """Of the last call."""
        self.usage: Json = {}
        self.usd = 0.0
        self.drawn = 0
        self.seconds = 0.0

    async def propose(self, context: Context, k: int, *, seed: int) -> tuple[Candidate, ...]:
        start = time.perf_counter()
        try:
            draw = await self._upstream.draw(self._body, k, seed=seed)
        finally:
            self.seconds += time.perf_counter() - start
        return self.take(draw)

    def take(self, draw: Draw) -> tuple[Candidate, ...]:
        """The choices of one call as candidates, and what they cost."""
        self.usd += draw.usage.usd or 0.0
        self.usage = _added(self.usage, draw.raw_usage)
        self.drawn += len(draw.choices)
        candidates = []
        for i, choice in enumerate(draw.choices):
            action = chat.action_of(choice["message"])
            self.choices.setdefault(action, choice)
            logp, entropy = _logprobs(choice)
            candidates.append(Candidate(action, logp, entropy, draw.usage if i == 0 else NO_USAGE))
        self.candidates = tuple(candidates)
        return self.candidates


@dataclass
class Session:
    id: str
    memory: Memory
    steps: int
    usd: float
    calls: int
    teacher_at: float = -math.inf
    signatures: dict[str, str] = field(default_factory=dict)
    """Signature of a thinking block -> the model that wrote it; others cannot read it."""

    def remember(self, decision: Decision) -> None:
        self.memory = replace(self.memory, decisions=(*self.memory.decisions, decision)[-DECISIONS:])


@dataclass(frozen=True)
class Answer:
    completion: Json
    facts: Json
    """What the response headers and the last stream chunk say."""
    session: Session


@dataclass(frozen=True)
class Wish:
    """What the client said about this step besides the request."""

    key: str
    """Hash of its key."""
    session: str
    """Its own name for the session within its key, or `chat.fingerprint`."""
    arm: str | None = None
    threshold: float | None = None
    dry: bool = False
    """Decide, but do not answer."""


class Service:
    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.small = Upstream(settings.models["small"], "small")
        self.teacher = Upstream(settings.models["teacher"], "teacher")
        self.router_name, self._score, self.threshold = load_score(settings.route)
        self.ledger = Ledger(Path(settings.store.path))
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._spent: dict[tuple[int, str], float] = {}
        self._reserved: dict[str, float] = {}
        self.killed = False
        """Kill switch: every step is the small model's."""
        self.counts: dict[tuple[str, str], float] = {}

    async def close(self) -> None:
        await self.small.close()
        await self.teacher.close()
        self.ledger.close()

    # -- sessions -------------------------------------------------------------------------------------------------

    def session(self, identity: str) -> Session:
        """From memory, or rebuilt from the ledger."""
        found = self._sessions.get(identity)
        if found is None:
            entries = self.ledger.steps(identity)
            found = Session(
                identity,
                Memory(seed=derive_seed(identity, "episode"), decisions=decisions_of(entries)),
                entries[-1].t + 1 if entries else 0,
                sum(entry.slm_usd + entry.teacher_usd for entry in entries),
                sum(entry.teacher_calls for entry in entries),
            )
            self._sessions[identity] = found
            if len(self._sessions) > SESSIONS:
                self._sessions.popitem(last=False)
        else:
            self._sessions.move_to_end(identity)
        return found

    # -- budgets --------------------------------------------------------------------------------------------------

    def _room(self, session: Session, key: str, usd: float) -> bool:
        """Whether so much more may be spent, with what is being spent right now counted."""
        b, day = self.settings.budget, int(time.time() // 86_400)
        limits = (
            (b.session_usd, f"session {session.id}", session.usd),
            (b.key_usd_per_day, f"key {key}", self._day(day, key) if b.key_usd_per_day is not None else 0.0),
            (b.usd_per_day, "all", self._day(day, "") if b.usd_per_day is not None else 0.0),
        )
        return all(limit is None or spent + self._reserved.get(scope, 0.0) + usd <= limit for limit, scope, spent in limits)

    def _day(self, day: int, key: str) -> float:
        if (day, key) not in self._spent:
            self._spent = {k: v for k, v in self._spent.items() if k[0] == day}
            self._spent[day, key] = self.ledger.spent(day * 86_400, key or None)
        return self._spent[day, key]

    def _reserve(self, session: Session, key: str, usd: float, sign: int) -> None:
        for scope in (f"session {session.id}", f"key {key}", "all"):
            left = self._reserved.get(scope, 0.0) + sign * usd
            if left > 1e-12:
                self._reserved[scope] = left
            else:
                self._reserved.pop(scope, None)

    def _pay(self, session: Session, key: str, usd: float) -> None:
        session.usd += usd
        day = int(time.time() // 86_400)
        for scope in (key, ""):
            if (day, scope) in self._spent:
                self._spent[day, scope] += usd

    # -- the step -------------------------------------------------------------------------------------------------

    async def step(self, request: Request, wish: Wish) -> Answer:
        """Raises Refused."""
        start = time.perf_counter()
        route, budget = self.settings.route, self.settings.budget
        session = self.session(wish.session)
        t, session.steps = session.steps, session.steps + 1
        decision_id = secrets.token_hex(8)
        facts: Json = {"decision-id": decision_id, "session-id": session.id.split("/", 1)[-1], "step": t}
        body = self._marked(request.body, session)
        small_most = self.small.most_usd(body) * route.k
        teacher_most = self.teacher.most_usd(body)
        if not self._room(session, wish.key, small_most):
            raise Refused("the budget is exhausted", 402, {**facts, "reason": "budget_exhausted"})
        affordable = self._room(session, wish.key, small_most + teacher_most)
        reserved = small_most + (teacher_most if affordable else 0.0)
        calls_left = None if budget.session_calls is None else max(0, budget.session_calls - session.calls)
        if not affordable:
            calls_left = 0
        if calls_left == 0 and budget.on_exhaustion == "stop":
            raise Refused("the budget for the teacher is exhausted", 402, {**facts, "reason": "budget_exhausted"})
        counted = calls_left is not None and calls_left > 0
        session.calls += counted  # taken now, given back below: parallel steps of a session cannot both take the last
        self._reserve(session, wish.key, reserved, +1)
        small, teacher = Draft(self.small, body), Draft(self.teacher, body)
        asked = False
        try:
            choice, context = await self._choose(request, wish, session, small, teacher, t, calls_left, facts)
            asked = choice.actor == "teacher"
            answer = self._answer(choice, small, teacher, decision_id)
            facts["overhead-ms"] = round(1000 * (time.perf_counter() - start - small.seconds - teacher.seconds), 3)
            if not wish.dry:
                self._record(choice, context, session, wish, small, teacher, t, facts, answer["model"])
        finally:
            self._reserve(session, wish.key, reserved, -1)
            session.calls += int(asked) - counted
            self._pay(session, wish.key, small.usd + teacher.usd)
            if wish.dry:
                session.steps -= 1
        return Answer(answer, facts, session)

    def may_stream_early(self, wish: Wish) -> bool:
        """Whether what is known before this step says that the small model will do. After the first visible byte nothing
        can be taken back, so the risk is that of the step before.
        """
        route, small = self.settings.route, self.settings.models["small"]
        if route.stream == "hold" or wish.arm == "teacher" or small.provider != "openai":
            return False
        decisions = self.session(wish.session).memory.decisions
        if not decisions:
            return route.stream == "early"
        last, threshold = decisions[-1], self.threshold if wish.threshold is None else wish.threshold
        bar = threshold if route.stream == "early" else threshold / 2
        return last.rung == "continue" and last.risk is not None and last.risk < bar

    async def stream_early(self, request: Request, wish: Wish) -> AsyncGenerator[Json, None]:
        """The small model's first draft, chunk by chunk; the row is in the ledger before the last chunk leaves. Raises
        Refused, before the first chunk or in the middle.
        """
        start = time.perf_counter()
        session = self.session(wish.session)
        t, session.steps = session.steps, session.steps + 1
        facts: Json = {"decision-id": secrets.token_hex(8), "session-id": session.id.split("/", 1)[-1], "step": t}
        body = self._marked(request.body, session)
        most = self.small.most_usd(body)
        if not self._room(session, wish.key, most):
            raise Refused("the budget is exhausted", 402, {**facts, "reason": "budget_exhausted"})
        self._reserve(session, wish.key, most, +1)
        small, told = Draft(self.small, body), chat.Told()
        usage: Json = {}
        last: Json | None = None
        waited = time.perf_counter()
        try:
            async for chunk in self.small.stream(body):
                usage = chunk.get("usage") or usage
                if not chunk.get("choices"):
                    continue
                told.add(chunk["choices"][0])
                chunk = {**chunk, "id": f"chatcmpl-{facts['decision-id']}"}
                if chunk["choices"][0].get("finish_reason"):
                    last = chunk
                else:
                    yield chunk
            small.seconds = time.perf_counter() - waited
            small.take(self.small.priced(told.choice, usage))
            choice, context = await self._told_early(request, session, small, t)
            decision = choice.decision
            assert decision is not None
            facts |= {"arm": "slm", "reason": "early", "risk": decision.risk, "threshold": decision.threshold}
            facts["overhead-ms"] = round(1000 * (time.perf_counter() - start - small.seconds), 3)
            self._record(
                choice, context, session, wish, small, Draft(self.teacher, body), t, facts, self.small.settings.model
            )
            assert last is not None
            yield {**last, "r2v": facts, "usage": small.usage}
        except UpstreamError as error:
            raise Refused(str(error), error.status, {**facts, "reason": "upstream_fallback"}) from None
        finally:
            self._reserve(session, wish.key, most, -1)
            self._pay(session, wish.key, small.usd)

    async def _told_early(self, request: Request, session: Session, small: Draft, t: int) -> tuple[Choice, Context]:
        """What the router makes of the draft that was told: for the ledger, and for the next step."""
        context = chat.context_of(request, self.settings.route.horizon)
        candidates = small.candidates
        scores = await ToolCallVerifier(request.tools).score(context, [candidates[0].action])
        features = featurise(context, candidates, scores)
        risk = self._score(features)
        decision = Decision("continue", risk, self.threshold, 1.0, "early: told as it came")
        session.remember(decision)
        usage = candidates[0].usage
        return Choice(candidates[0].action, "slm", candidates, scores, features, decision, usage, NO_USAGE), context

    async def _choose(
        self,
        request: Request,
        wish: Wish,
        session: Session,
        small: Draft,
        teacher: Draft,
        t: int,
        calls_left: int | None,
        facts: Json,
    ) -> tuple[Choice, Context]:
        route = self.settings.route
        context = chat.context_of(request, route.horizon)
        parts = Parts(small, teacher, ToolCallVerifier(request.tools), route.k)
        canary = route.mode == "canary" and derive_uniform(derive_seed(session.id, "canary"), "canary") < route.canary_share
        router = GatewayRouter(
            self.router_name,
            self._score,
            self.threshold if wish.threshold is None else wish.threshold,
            route,
            active=route.mode == "active" or canary,
            forced="slm" if self.killed else wish.arm,
            cold=time.monotonic() - session.teacher_at > route.cache_ttl_s,
        )
        moment = Moment(parts, context, seed=derive_seed(session.id, t))
        memory = replace(session.memory, calls_left=calls_left)
        try:
            if router.forced == "teacher" and calls_left != 0:
                choice = await self._teacher_alone(moment, "forced", router)
            else:
                choice, _ = await Routed(parts, router).choose(moment, memory)
        except BoundaryError as error:
            choice = await self._fallback(moment, router, error, calls_left, facts)
        assert choice.decision is not None
        session.remember(choice.decision)
        if choice.actor == "teacher":
            session.teacher_at = time.monotonic()
        code = choice.decision.reason.split(":", 1)[0]
        facts |= {
            "arm": choice.actor,
            "reason": code,
            "risk": choice.decision.risk,
            "threshold": choice.decision.threshold,
        }
        if calls_left is not None:
            facts["budget-left"] = max(0, calls_left - (choice.actor == "teacher"))
        return choice, context

    async def _teacher_alone(self, moment: Moment, reason: str, router: GatewayRouter) -> Choice:
        answer = await moment.ask_teacher()
        decision = Decision("teacher_step", None, router.threshold, 1.0, reason)
        return Choice(answer.action, "teacher", (), (), None, decision, NO_USAGE, answer.usage)

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
                return await self._slm_alone(moment, router, f"upstream_fallback: {cause}")
            except BoundaryError:
                raise Refused(f"no model answered: {cause}", 502, {**facts, "reason": "upstream_fallback"}) from None
        code = "upstream_fallback" if error.boundary == "slm" else "verifier_failed"
        if calls_left == 0:
            raise Refused(f"{cause}; the teacher's budget is exhausted", 502, {**facts, "reason": code}) from None
        try:
            return await self._teacher_alone(moment, f"{code}: {cause}", router)
        except BoundaryError as second:
            told = f"no model answered: {cause}; {second.cause}"
            raise Refused(told, 502, {**facts, "reason": "upstream_fallback"}) from None

    async def _slm_alone(self, moment: Moment, router: GatewayRouter, reason: str) -> Choice:
        candidates, scores, features = await moment.look(0)
        risk = router.score(features)
        decision = Decision("continue", risk, router.threshold, 1.0, reason)
        return Choice(
            candidates[best(candidates, scores)].action, "slm", candidates, scores, features, decision,
            candidates[0].usage, NO_USAGE,
        )  # fmt: skip

    def _answer(self, choice: Choice, small: Draft, teacher: Draft, decision_id: str) -> Json:
        draft = teacher if choice.actor == "teacher" else small
        upstream = self.teacher if choice.actor == "teacher" else self.small
        raw = {k: v for k, v in draft.choices[choice.action].items() if k != "logprobs"}
        usage = _added(small.usage, teacher.usage)
        model = upstream.settings.model
        return chat.completion(raw, usage, model=model, identity=decision_id, created=int(time.time()))

    def _record(
        self,
        choice: Choice,
        context: Context,
        session: Session,
        wish: Wish,
        small: Draft,
        teacher: Draft,
        t: int,
        facts: Json,
        model: str,
    ) -> None:
        decision = choice.decision
        assert decision is not None
        redact = self.settings.store.redact
        step = Step(t, 0, Observation(context.observations[-1], False, None, None, "", ()), choice)
        entry = Entry(
            facts["decision-id"], session.id, t, time.time(), wish.key, choice.actor, facts["reason"], model, decision.risk,
            decision.threshold, decision.propensity, small.usd, teacher.usd, int(teacher.drawn > 0), small.drawn,
            facts["overhead-ms"], decision.rung, _hash(context.goal) if redact else context.goal,
            _redacted(step) if redact else step,
        )  # fmt: skip
        try:
            self.ledger.write(entry)
        except Exception as error:  # disk full, locked, corrupt: an answer without its row must not leave
            told = f"the ledger cannot be written ({error}); no answer was given"
            raise Refused(told, 503, {**facts, "reason": "ledger"}) from None
        self._note(entry)
        facts["cost-usd"] = round(small.usd + teacher.usd, 8)

    def _marked(self, body: Json, session: Session) -> Json:
        """Thinking blocks marked with the model that wrote them, so that no other model is given them."""
        if not any("thinking_blocks" in message for message in body["messages"]):
            return body
        messages = []
        for message in body["messages"]:
            if blocks := message.get("thinking_blocks"):
                message = {**message, "r2v_model": session.signatures.get(str(blocks[0].get("signature")))}
            messages.append(message)
        return {**body, "messages": messages}

    def remember_thinking(self, answer: Answer) -> None:
        """Note who wrote the thinking blocks of an answer that leaves."""
        message = answer.completion["choices"][0]["message"]
        if blocks := message.get("thinking_blocks"):
            answer.session.signatures[str(blocks[0].get("signature"))] = str(answer.completion["model"])

    def _note(self, entry: Entry) -> None:
        """Counters of what was served, for metrics and the page."""

        def add(name: str, labels: str, value: float) -> None:
            self.counts[name, labels] = self.counts.get((name, labels), 0.0) + value

        add("r2v_requests_total", f'arm="{entry.arm}"', 1)
        add("r2v_decisions_total", f'arm="{entry.arm}",reason="{entry.reason}"', 1)
        add("r2v_cost_usd_total", 'model="small"', entry.slm_usd)
        add("r2v_cost_usd_total", 'model="teacher"', entry.teacher_usd)
        add("r2v_candidates_total", "", entry.candidates)
        add("r2v_overhead_seconds_sum", "", entry.overhead_ms / 1000)
        add("r2v_overhead_seconds_count", "", 1)
        if entry.session.startswith("auto-"):
            add("r2v_implicit_sessions_total", "", 1)

    def metrics(self) -> str:
        """Prometheus text. Labels are from closed lists."""
        lines = [f"{name}{{{labels}}} {value:.10g}" if labels else f"{name} {value:.10g}" for (name, labels), value in
                 sorted(self.counts.items())]  # fmt: skip
        for upstream in (self.small, self.teacher):
            lines += [
                f'r2v_upstream_attempts_total{{model="{upstream.name}",code="{code}"}} {count}'
                for code, count in sorted(upstream.attempts.items())
            ]
            lines.append(f'r2v_upstream_available{{model="{upstream.name}"}} {int(upstream.available)}')
        return "\n".join(lines) + "\n"

    def stats(self) -> Json:
        """What the live page shows above its sessions."""
        got = self.counts.get
        arms = {arm: int(got(("r2v_requests_total", f'arm="{arm}"'), 0)) for arm in ("slm", "teacher")}
        count = got(("r2v_overhead_seconds_count", ""), 0)
        return {
            "router": self.router_name,
            "threshold": self.threshold,
            "mode": self.settings.route.mode,
            "killed": self.killed,
            "arms": arms,
            "usd": {m: got(("r2v_cost_usd_total", f'model="{m}"'), 0.0) for m in ("small", "teacher")},
            "overhead_ms": 1000 * got(("r2v_overhead_seconds_sum", ""), 0.0) / count if count else None,
            "models": {
                "small": {"model": self.small.settings.model, "available": self.small.available},
                "teacher": {"model": self.teacher.settings.model, "available": self.teacher.available},
            },
        }


def _added(a: Json, b: Json) -> Json:
    """Token counts of two calls together; the client sees all that was spent for its step."""
    if not a or not b:
        return a or b
    cached = sum((x.get("prompt_tokens_details") or {}).get("cached_tokens", 0) for x in (a, b))
    return {
        **{key: a[key] + b[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")},
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _logprobs(choice: Json) -> tuple[float | None, float | None]:
    """(sum over the tokens, entropy of the first token over its listed alternatives); None where they are not told."""
    content = (choice.get("logprobs") or {}).get("content")
    if not content:
        return None, None
    try:
        logp = float(sum(token["logprob"] for token in content))
        top = [math.exp(entry["logprob"]) for entry in content[0].get("top_logprobs") or []]
    except (KeyError, TypeError, OverflowError):
        return None, None
    if not top or not math.isfinite(logp):
        return (logp if math.isfinite(logp) else None), None
    entropy = -sum(p * math.log(p) for p in top if p > 0)
    rest = 1 - sum(top)
    return logp, entropy - (rest * math.log(rest) if rest > 1e-9 else 0.0)


def _hash(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def _redacted(step: Step) -> Step:
    def hidden(action: Action) -> Action:
        return Action(_hash(action.text))

    choice = step.choice
    return replace(
        step,
        observation=replace(step.observation, text=_hash(step.observation.text)),
        choice=replace(
            choice,
            action=hidden(choice.action),
            candidates=tuple(replace(candidate, action=hidden(candidate.action)) for candidate in choice.candidates),
            decision=choice.decision and replace(choice.decision, reason=choice.decision.reason.split(":", 1)[0]),
        ),
    )
