"""A chat request as a policy: proposing draws answers from a model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace

from r2v.clients.base import Client, Draw, ServerAnswer
from r2v.clients.endpoint import on_lost
from r2v.clients.tokens import Tokens
from r2v.core.errors import ModelError
from r2v.core.types import Action, Candidate, Context
from r2v.gateway.budgets import Amount
from r2v.gateway.telemetry import model_call
from r2v.messages.conversation import Json, Request, action_of
from r2v.messages.protocol import Piece, Reply
from r2v.runtime.slices import in_slices

OPENING = frozenset({"message_start", "ping", "response.created", "response.in_progress", "response.queued"})
"""Events before the first word of an answer, which servers send before they know whether they will answer."""
AHEAD = 200
"""Pieces of an answer that a model may be ahead of the client."""


def most(client: Client, request: Request, answers: int) -> Amount:
    """An upper bound of what so many answers of a model can cost."""
    tokens, usd = client.bound(request, answers)
    return Amount(0, tokens, usd)


class LiveAnswer:
    """An answer on its way to the client while its model writes it."""

    def __init__(self) -> None:
        self.facts: Json = {}
        """Of the step, as far as they are known."""
        self.source: CandidateSource | None = None
        """Who writes; None as long as nothing has been written. From then on no other model can answer."""
        self.rest: list[Piece] = []
        """From the finish reason on: they leave when the step is in the ledger."""
        self._pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        self._opening: list[tuple[CandidateSource, Piece]] = []

    def put(self, source: CandidateSource, piece: Piece) -> None:
        if self.source is None:
            if _opens(piece):
                self._opening.append((source, piece))
                return
            self.source = source
            # The SLM's answer is streamed only where it is before anything is decided.
            self.facts |= {"arm": source.role} if source.stronger else {"arm": "slm", "reason": "early"}
            for opened, earlier in self._opening:
                if opened is source:
                    self._pieces.put_nowait(earlier)
        choices = (piece.chunk or {}).get("choices") or []
        if self.rest or any(choice.get("finish_reason") for choice in choices):
            self.rest.append(piece)
        else:
            self._pieces.put_nowait(piece)

    async def room(self) -> None:
        """Wait for a client that takes less than the model writes: what it has not taken is kept in memory."""
        while self._pieces.qsize() > AHEAD:
            await asyncio.sleep(0.005)

    def close(self) -> None:
        """Nothing more will come."""
        self._pieces.put_nowait(None)

    async def next(self, patience_s: float) -> Piece | None:
        """The next piece; None: there is none. Raises TimeoutError where none comes in that time."""
        await asyncio.sleep(0)  # where there are many, others come in between
        async with asyncio.timeout(patience_s):
            return await self._pieces.get()


def _opens(piece: Piece) -> bool:
    """Whether nothing of the answer itself is in it."""
    if piece.own is not None and piece.own.get("type") in OPENING:
        return True
    choices = (piece.chunk or {}).get("choices") or []
    if not choices or choices[0].get("finish_reason"):
        return False
    return not any(value for name, value in (choices[0].get("delta") or {}).items() if name != "role")


@dataclass
class PaidAnswers:
    """Answers that a step has been charged for already."""

    answers: int


class CandidateSource:
    """The candidates of one model at one step (`r2v.core.protocols.Policy`), and what they cost."""

    def __init__(
        self, client: Client, request: Request, authors: Mapping[str, str], *, role: str, live: LiveAnswer | None = None,
        paid: PaidAnswers | None = None, pay: Callable[[Amount], Awaitable[bool]] | None = None,
    ) -> None:  # fmt: skip
        """Only the SLM returns log-probabilities.

        Args:
            client: of the model.
            request: what it is asked.
            authors: signature of a thinking block -> the model that wrote it.
            role: slm, teacher, or the name of a model between them.
            live: where a single answer goes while it is written.
            paid: what the step has been charged for; of the stronger models one shares it with the others.
            pay: charges the step for more; whether there is room for it. None: nobody counts.
        """
        self.name, self.client, self.role, self.stronger = client.name, client, role, role != "slm"
        self._request, self._authors, self._live = request, authors, live
        self._paid, self._pay = paid or PaidAnswers(0), pay
        self._replies: dict[Action, Reply] = {}
        self.tokens = Tokens()
        self.usd = 0.0
        self.lost = Amount()
        """What cancelled or broken calls can have cost at most: their usage is not known."""
        self.drawn = 0
        """Answers so far."""
        self.parsed = 0
        """Those of them whose tool calls were read in their text."""
        self.seconds = 0.0
        self.asked = False

    async def propose(self, context: Context, k: int, *, seed: int) -> tuple[Candidate, ...]:
        self.asked = True
        if not await self._afford(k):
            raise ModelError(f"{self.name}: the budget has no room for further answers")
        start, token = time.perf_counter(), on_lost.set(self._lost_try)
        try:
            with model_call(self.role, self.client, k) as call:
                if k == 1 and self._live is not None and self.client.streams:
                    draw = await self._streamed(self._live)
                else:
                    drawn_by = None if self.stronger else seed
                    draw = await self.client.draw(
                        self._request, k, seed=drawn_by, logprobs=not self.stronger, authors=self._authors
                    )
                call.tokens = None if draw.unknown else draw.tokens
        except BaseException as error:
            if not isinstance(error, ModelError) or error.paid:
                self._lose(k)
            raise
        finally:
            on_lost.reset(token)
            self.seconds += time.perf_counter() - start
        return await self._take(draw)

    async def _streamed(self, live: LiveAnswer) -> Draw:
        self.client.check_length(self._request)
        reply = None
        async with aclosing(self.client.streamed(self._request, logprobs=not self.stronger, authors=self._authors)) as parts:
            async for part in parts:
                if isinstance(part, Reply):
                    reply = part
                else:
                    live.put(self, part)
                    await live.room()
        assert reply is not None
        return self.client.priced(self._request, [ServerAnswer([reply], reply.usage)])

    async def pay(self, amount: Amount) -> bool:
        """Charge the step for more; whether there is room for it."""
        return self._pay is None or await self._pay(amount)

    async def _afford(self, k: int) -> bool:
        """Whether k more answers are paid for, or can be."""
        missing = max(0, k - self._paid.answers)
        self._paid.answers -= k - missing
        return not missing or await self.pay(self._most(missing))

    async def _lost_try(self, answers: int, again: bool) -> bool:
        """`r2v.clients.endpoint.on_lost`."""
        self._lose(answers)
        return not again or await self._afford(answers)

    def _most(self, answers: int) -> Amount:
        return most(self.client, self._request, answers) + Amount(calls=int(self.stronger))

    def _lose(self, k: int) -> None:
        """Nobody will know what k answers cost that had begun."""
        self.lost += self._most(k)

    async def _take(self, draw: Draw) -> tuple[Candidate, ...]:
        self.usd += self.client.usd(draw.tokens)
        self.tokens += draw.tokens
        self.drawn += len(draw.replies)
        self.parsed += sum(reply.parsed_calls > 0 for reply in draw.replies)
        if draw.unknown:
            self.lost += self._most(draw.unknown) - Amount(calls=int(self.stronger))  # the answer is there: it is one call
        calls = [call for reply in draw.replies for call in reply.choice["message"].get("tool_calls") or ()]
        size = sum(len(str((call.get("function") or {}).get("arguments", ""))) for call in calls)
        candidates = await in_slices(size, lambda: self.client.candidates(draw, action_of))
        for candidate, reply in zip(candidates, draw.replies, strict=True):
            self._replies.setdefault(candidate.action, reply)
        return candidates

    def reply(self, action: Action) -> Reply:
        """What the model answered, as the client sees it: log-probabilities only where it asked for them."""
        found = self._replies[action]
        if self._request.logprobs:
            return found
        return replace(found, choice={key: value for key, value in found.choice.items() if key != "logprobs"})

    @property
    def usable(self) -> bool:
        """Whether the model is called at all, and the request fits its context."""
        most = self.client.settings.context_tokens
        return self.client.available and (most is None or self._request.tokens <= most)

    @property
    def spent(self) -> Amount:
        """What is known to have been spent; `lost` comes on top of it."""
        return Amount(int(self.stronger and self.drawn > 0), self.tokens.total, self.usd)
