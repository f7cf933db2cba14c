"""A chat request as a policy: proposing is asking a model for answers to it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping

from r2v.core.agent import NO_USAGE
from r2v.core.types import Action, Candidate, Context
from r2v.gateway.budgets import Amount
from r2v.gateway.upstream import Draw, Upstream
from r2v.messages import chat
from r2v.messages.chat import Json, Request


class CandidateSource:
    """What one model was asked at one step (`r2v.core.protocols.Policy`), and what it cost."""

    def __init__(self, upstream: Upstream, request: Request, authors: Mapping[str, str], *, teacher: bool) -> None:
        """`authors`: signature of a thinking block -> the model that wrote it. Drafts alone tell log-probabilities."""
        self.name, self.upstream = upstream.name, upstream
        self._request, self._authors, self._teacher = request, authors, teacher
        self._choices: dict[Action, Json] = {}
        self.usage: Json = {}
        self.usd = 0.0
        self.lost = Amount()
        """What calls that were given up can have cost at most; nobody told."""
        self.drawn = 0
        self.seconds = 0.0

    async def propose(self, context: Context, k: int, *, seed: int) -> tuple[Candidate, ...]:
        start = time.perf_counter()
        try:
            draw = await self.upstream.draw(self._request, k, seed=seed, logprobs=not self._teacher, authors=self._authors)
        except asyncio.CancelledError:
            self.give_up(k)
            raise
        finally:
            self.seconds += time.perf_counter() - start
        return self.take(draw)

    def give_up(self, k: int) -> None:
        """The client went away while k answers were being written."""
        self.lost += self.upstream.most(self._request, k) + Amount(calls=int(self._teacher))

    def take(self, draw: Draw) -> tuple[Candidate, ...]:
        """The choices of one call as candidates."""
        self.usd += draw.usage.usd or 0.0
        self.usage = added(self.usage, draw.raw_usage)
        self.drawn += len(draw.choices)
        candidates = []
        for i, choice in enumerate(draw.choices):
            action = chat.action_of(choice["message"])
            self._choices.setdefault(action, choice)
            logp, entropy = logprobs_of(choice, self.upstream.settings.vocabulary)
            candidates.append(Candidate(action, logp, entropy, draw.usage if i == 0 else NO_USAGE))
        return tuple(candidates)

    def choice(self, action: Action) -> Json:
        """What the model answered, as the client sees it."""
        return {key: value for key, value in self._choices[action].items() if key != "logprobs"}

    @property
    def prompt_tokens(self) -> int:
        return int(self.usage.get("prompt_tokens", 0))

    @property
    def spent(self) -> Amount:
        calls = int(self._teacher and self.drawn > 0)
        return Amount(calls, int(self.usage.get("total_tokens", 0)), self.usd) + self.lost


def added(a: Json, b: Json) -> Json:
    """Token counts of two calls together; the client sees all that was spent for its step."""
    if not a or not b:
        return a or b
    cached = sum((x.get("prompt_tokens_details") or {}).get("cached_tokens", 0) for x in (a, b))
    return {
        **{key: a[key] + b[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")},
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def logprobs_of(choice: Json, vocabulary: int | None) -> tuple[float | None, float | None]:
    """(sum over the tokens, entropy of the first token); None where they are not told. What the listed alternatives leave
    out is spread evenly over the rest of the vocabulary, or taken as one token where its size is not known.
    """
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
    entropy, rest = -sum(p * math.log(p) for p in top if p > 0), 1 - sum(top)
    others = 1 if vocabulary is None else vocabulary - len(top)
    return logp, entropy - (rest * math.log(rest / others) if rest > 1e-9 and others > 0 else 0.0)
