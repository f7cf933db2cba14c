"""One step of one session: what the client wants of it, what it has cost, and why it may be refused."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from r2v.core.errors import ModelError, PromptTooLong
from r2v.core.types import Choice, Code, Step
from r2v.gateway.budgets import Amount, Reservation
from r2v.gateway.candidates import CandidateSource, LiveAnswer
from r2v.gateway.keys import Key
from r2v.gateway.modes import Part
from r2v.gateway.scoring import PaidVerifier
from r2v.gateway.sessions import Session
from r2v.messages.conversation import Json, Request
from r2v.messages.protocol import Reply, Served
from r2v.messages.transcript import incoming, message_of

RETRY_S = 1.0
"""After which a client may try again, where what replicas share was out of reach."""


class Refused(Exception):
    """The step cannot be served; `status`, `facts` and `retry_after` (seconds) go to the client."""

    def __init__(self, message: str, status: int, facts: Mapping[str, Any], *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.facts, self.retry_after = status, facts, retry_after


@dataclass(frozen=True)
class StepAnswer:
    reply: Reply
    served: Served
    facts: Json
    """Of the response headers and the last stream chunk."""


@dataclass(frozen=True)
class RequestOptions:
    """What the client wants of this step besides the request."""

    key: Key
    session: str
    """Its own name for the session, or the request's `fingerprint`, behind the name of its tenant."""
    named: bool = True
    """Whether it is the client's own."""
    forced: str | None = None
    """The model that must answer: slm, teacher, or one between them."""
    threshold: float | None = None
    shadow: bool = False
    """Decide, but let the teacher answer."""
    session_usd: float | None = None
    """What the whole session may cost."""
    dry: bool = False
    """Decide, but do not answer."""
    subagent: str = ""
    """Which of the agents that share the session's name; they share its budget, too. Empty: the one that began it."""
    traceparent: str | None = None
    """Where the client's trace is, as W3C says."""


@dataclass(eq=False)
class ServedStep:
    """One step of one session while it is served."""

    request: Request
    options: RequestOptions
    session: Session
    reservation: Reservation
    slm: CandidateSource
    stronger: Mapping[str, CandidateSource]
    """The models between SLM and teacher, the cheapest first, and the teacher."""
    part: Part
    """What the mode wants of it."""
    live: LiveAnswer | None
    """Where an answer goes that the client wants as a stream."""
    early: bool
    """Whether the SLM's only draft is streamed before anything is decided."""
    facts: Json
    start: float
    verdicts: tuple[tuple[str, float], ...] = ()
    """What was known when the step was decided."""
    scoring: PaidVerifier | None = None
    """The verifier, where it is a model."""

    @property
    def sources(self) -> tuple[CandidateSource, ...]:
        """All models."""
        return (self.slm, *self.stronger.values())

    def answered(self, choice: Choice) -> CandidateSource:
        """The model whose answer the choice is."""
        return self.slm if choice.source == "slm" else self.stronger[choice.model]

    @property
    def spent(self) -> Amount:
        """What the step is known to have cost."""
        return sum((one.spent for one in self.sources), self.scoring.spent if self.scoring else Amount())

    @property
    def lost(self) -> Amount:
        """What it may have cost beside that: no more than it was charged for."""
        lost = sum((one.lost for one in self.sources), self.scoring.lost if self.scoring else Amount())
        return lost if lost == Amount() else lost.at_most(self.reservation.amount - self.spent)

    @property
    def writer(self) -> CandidateSource:
        """The strongest model that has answered."""
        return next((one for one in reversed(self.sources) if one.drawn), self.slm)

    @property
    def prompt_tokens(self) -> int:
        return self.writer.tokens.prompt or self.slm.tokens.prompt

    def describe(self, choice: Choice, model: str) -> None:
        """Put the choice into the facts for the client and the ledger; the overhead is the time without the models'."""
        assert choice.decision is not None
        waited = sum(one.seconds for one in self.sources) + (self.scoring.seconds if self.scoring else 0.0)
        self.facts |= {
            "arm": self.answered(choice).role,
            "reason": choice.decision.code,
            "model": model,
            "risk": choice.decision.score,
            "threshold": choice.decision.threshold,
            "overhead-ms": round(1000 * (time.perf_counter() - self.start - waited), 3),
        }
        if self.reservation.calls_left is not None:
            self.facts["budget-left"] = max(0, self.reservation.calls_left - (choice.source == "teacher"))


def unanswered(facts: Json, code: Code, *causes: Exception) -> Refused:
    """No model answered. Where all of them limit their rate, so does the answer, with the shortest of their waits. Where the
    prompt is too long for all of them it says so, in words by which agents know that they have to shorten it.
    """
    if all(isinstance(cause, PromptTooLong) for cause in causes):
        counts = next((cause.counts for cause in causes if isinstance(cause, PromptTooLong) and cause.counts), None)
        sizes = ": {} tokens > {} maximum".format(*counts) if counts else ""
        problem = f"prompt is too long{sizes} (the model's maximum context length)"
        return Refused(problem, 400, {**facts, "reason": "prompt_too_long"})
    status = 429 if all(isinstance(cause, ModelError) and cause.status == 429 for cause in causes) else 502
    waits = [cause.retry_after for cause in causes if isinstance(cause, ModelError) and cause.retry_after is not None]
    reason = "; ".join(map(str, causes))
    facts = {**facts, "reason": code}
    return Refused(f"no model answered: {reason}", status, facts, retry_after=min(waits, default=None))


def unwritten(error: Exception, facts: Json) -> Refused:
    return Refused(f"the ledger cannot be written ({error}); no answer was given", 503, {**facts, "reason": "ledger"})


@contextmanager
def reachable(facts: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Raises Refused where what replicas share is out of reach."""
    try:
        yield
    except OSError as error:
        raise unreachable(error, facts or {}) from None


def unreachable(error: Exception, facts: Mapping[str, Any]) -> Refused:
    problem = f"what replicas share is out of reach ({error}); try again"
    return Refused(problem, 503, {**facts, "reason": "store"}, retry_after=RETRY_S)


def with_messages(step: Step, served: ServedStep) -> Step:
    reply = message_of(served.answered(step.choice).reply(step.choice.action).choice["message"])
    messages = incoming(served.request, first=not served.session.begun)
    return replace(step, choice=replace(step.choice, reply=reply), messages=messages)
