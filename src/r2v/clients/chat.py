"""`ChatPolicy`: a policy behind any server of chat models, in the words of a domain's chat format.

teacher: {kind: chat, base_url: http://localhost:8000/v1, model: my-model, api_key_env: MY_KEY}
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from r2v.clients import make_client
from r2v.clients.cassette import Answer, Cassette, Recording
from r2v.clients.settings import ClientSettings
from r2v.core.types import NO_USAGE, Action, Candidate, Context, Usage
from r2v.messages.chat_format import ChatFormat, messages
from r2v.messages.conversation import Json, Likelihood, parse, text_of
from r2v.runtime.settings import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

OLD_PRICES = {"input": "usd_per_million_prompt_tokens", "output": "usd_per_million_completion_tokens"}
"""Keys of r2v 0.1."""
SLOW = 5.0
"""Tokens a second that a server is believed to write before it has answered once: a large model on a processor."""
PATIENCE = 4.0
"""How many times as long as the slowest token so far each one may take."""


class ChatSettings(ClientSettings):
    kind: Literal["chat"]
    temperature: NonNegativeFloat = 0.0
    max_tokens: PositiveInt = 64
    timeout_s: PositiveFloat = 60.0
    retries: NonNegativeInt = 4
    backoff_s: PositiveFloat = 0.5
    longest_wait_s: PositiveFloat = 30.0
    concurrency: PositiveInt = 16
    system_role: bool = True
    """Whether the model's template takes a system message; otherwise that text begins the first message of the user."""
    revision: str | None = None
    """Hash or version of the weights: answers of others are not taken from the cassette."""
    cassette: str | None = None
    """Where answers are kept (`r2v.clients.cassette`), without a suffix; None: the model is asked every time."""

    @classmethod
    def upgraded(cls, raw: dict[str, Any]) -> dict[str, Any]:
        if set(OLD_PRICES.values()) & set(raw):
            rest = {key: value for key, value in raw.items() if key not in OLD_PRICES.values()}
            price = {key: raw.get(old) for key, old in OLD_PRICES.items()}
            return rest if None in price.values() else {"price": price} | rest
        return raw


class ChatPolicy:
    """A chat model as a policy (`r2v.core.protocols.Policy`)."""

    def __init__(self, settings: ChatSettings, *, name: str, chat_format: ChatFormat, logprobs: bool = True) -> None:
        """`logprobs`: whether the candidates' log-probabilities are of use to anybody. Raises SettingsError when the
        environment variable of the key is not set.
        """
        self.name = name
        self._settings, self._chat_format, self._logprobs = settings, chat_format, logprobs
        self._client = make_client(settings, f"{name} at {settings.base_url}")
        self._cassette = None if settings.cassette is None else Cassette(Path(settings.cassette))
        self._slowest = 0.0  # seconds that a token took at most so far
        self._turns: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None

    async def propose(self, context: Context, k: int, *, seed: int) -> tuple[Candidate, ...]:
        """k candidates in one request where the server offers that, with log-probabilities where it returns them. A single
        greedy answer needs neither them nor a seed. Raises ModelError when the server keeps failing or does not complete.
        """
        s, chat = self._settings, self._chat_format
        body = {
            "messages": messages(context, chat.system, system_role=s.system_role, opening=chat.opening),
            "temperature": s.temperature,
            "max_tokens": s.max_tokens,
        }
        wanted = self._logprobs and (k > 1 or s.temperature > 0)
        seeded = seed if k > 1 or s.temperature > 0 else None

        async def ask() -> Recording:
            return await self._ask(body, k, seeded, wanted)

        question = body | {"model": s.model, "revision": s.revision, "n": k, "seed": seeded, "logprobs": wanted}
        found = await (ask() if self._cassette is None else self._cassette.recall(question, ask))
        return tuple(
            Candidate(self._action(answer.message), answer.logp, answer.entropy, NO_USAGE if i else self._usage(found))
            for i, answer in enumerate(found.answers)
        )

    async def _ask(self, body: Json, k: int, seed: int | None, logprobs: bool) -> Recording:
        most = k * self._settings.max_tokens
        async with self._turn():
            start, endpoint = time.perf_counter(), self._client.endpoint
            endpoint.patience_s = PATIENCE * most * self._slowest or most * (endpoint.in_flight + 1) / SLOW
            draw = await self._client.draw(parse(msgspec.json.encode(body)), k, seed=seed, logprobs=logprobs)
            self._slowest = max(self._slowest, (time.perf_counter() - start) / max(1, draw.tokens.output))
        answers = []
        for reply in draw.replies:
            likely = reply.likelihood or Likelihood.of(reply.choice, self._settings.vocabulary)
            answers.append(Answer(reply.choice["message"], likely.logp, likely.entropy))
        return Recording(answers, draw.usage, None if draw.unknown else draw.tokens)

    def _turn(self) -> asyncio.Semaphore:
        """Of those that may ask at once; who waits for one is not waiting for the model. Each event loop has its own."""
        loop = asyncio.get_running_loop()
        if self._turns is None or self._turns[0] is not loop:
            self._turns = (loop, asyncio.Semaphore(self._settings.concurrency))
        return self._turns[1]

    def _usage(self, found: Recording) -> Usage:
        """Of a draw, at today's price."""
        if self._settings.price is None or found.tokens is None:
            return found.usage
        return replace(found.usage, usd=self._client.usd(found.tokens))

    def _action(self, message: Json) -> Action:
        """A refusal has no content: an empty command."""
        return Action(self._chat_format.read(text_of(message.get("content"))))
