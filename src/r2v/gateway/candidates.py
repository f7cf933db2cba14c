"""A chat request as a policy: proposing draws answers from a model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from r2v.clients.base import Client, Draw, Tokens
from r2v.core.types import Action, Candidate, Context
from r2v.gateway.budgets import Amount
from r2v.messages.conversation import Json, Request, action_of


def most(client: Client, request: Request, answers: int) -> Amount:
    """An upper bound of what so many answers of a model can cost."""
    tokens, usd = client.bound(request, answers)
    return Amount(0, tokens, usd)


class CandidateSource:
    """The candidates of one model at one step (`r2v.core.protocols.Policy`), and what they cost."""

    def __init__(self, client: Client, request: Request, authors: Mapping[str, str], *, teacher: bool) -> None:
        """`authors`: signature of a thinking block -> the model that wrote it. Only the SLM returns log-probabilities."""
        self.name, self.client = client.name, client
        self._request, self._authors, self._teacher = request, authors, teacher
        self._choices: dict[Action, Json] = {}
        self.tokens = Tokens()
        self.usd = 0.0
        self.lost = Amount()
        """What cancelled calls can have cost at most: their usage is not known."""
        self.drawn = 0
        """Answers so far."""
        self.seconds = 0.0

    async def propose(self, context: Context, k: int, *, seed: int) -> tuple[Candidate, ...]:
        start = time.perf_counter()
        seeded = None if self._teacher else seed
        try:
            draw = await self.client.draw(self._request, k, seed=seeded, logprobs=not self._teacher, authors=self._authors)
        except asyncio.CancelledError:
            self.cancelled(k)
            raise
        finally:
            self.seconds += time.perf_counter() - start
        return self.take(draw)

    def cancelled(self, k: int) -> None:
        """The client went away while k answers were being written."""
        self.lost += most(self.client, self._request, k) + Amount(calls=int(self._teacher))

    def take(self, draw: Draw) -> tuple[Candidate, ...]:
        """The choices of one draw as candidates."""
        self.usd += self.client.usd(draw.tokens)
        self.tokens += draw.tokens
        self.drawn += len(draw.choices)
        candidates = self.client.candidates(draw, action_of)
        for candidate, choice in zip(candidates, draw.choices, strict=True):
            self._choices.setdefault(candidate.action, choice)
        return candidates

    def choice(self, action: Action) -> Json:
        """What the model answered, as the client sees it."""
        return {key: value for key, value in self._choices[action].items() if key != "logprobs"}

    @property
    def spent(self) -> Amount:
        calls = int(self._teacher and self.drawn > 0)
        return Amount(calls, self.tokens.total, self.usd) + self.lost


class Known:
    """A policy that proposes the candidates that it was given, in every context."""

    name = "known"

    def __init__(self, candidates: tuple[Candidate, ...]) -> None:
        self._candidates = candidates

    async def propose(self, context: Context, k: int, *, seed: int) -> tuple[Candidate, ...]:
        return self._candidates
