"""`ChatPolicy`: a policy behind any server of chat models, in the words of a domain's chat format.

teacher: {kind: chat, base_url: http://localhost:8000/v1, model: my-model, api_key_env: MY_KEY}
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from r2v.clients import make_client
from r2v.clients.settings import ClientSettings
from r2v.core.types import Action, Candidate, Context
from r2v.messages.chat_format import ChatFormat, messages
from r2v.messages.conversation import Json, parse, text_of
from r2v.runtime.settings import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

OLD_PRICES = {"input": "usd_per_million_prompt_tokens", "output": "usd_per_million_completion_tokens"}
"""Keys of r2v 0.1."""


class ChatSettings(ClientSettings):
    kind: Literal["chat"]
    temperature: NonNegativeFloat = 0.0
    max_tokens: PositiveInt = 64
    timeout_s: PositiveFloat = 60.0
    retries: NonNegativeInt = 4
    backoff_s: PositiveFloat = 0.5
    longest_wait_s: PositiveFloat = 30.0
    concurrency: PositiveInt = 16

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

    async def propose(self, context: Context, k: int, *, seed: int) -> tuple[Candidate, ...]:
        """k candidates in one request where the server offers that, with log-probabilities where it returns them. A single
        greedy answer needs none. Raises ModelError when the server keeps failing or answers with something else.
        """
        s = self._settings
        body = {
            "messages": messages(context, self._chat_format.system),
            "temperature": s.temperature,
            "max_tokens": s.max_tokens,
        }
        wanted = self._logprobs and (k > 1 or s.temperature > 0)
        draw = await self._client.draw(parse(msgspec.json.encode(body)), k, seed=seed, logprobs=wanted)
        return self._client.candidates(draw, self._action)

    def _action(self, message: Json) -> Action:
        """A refusal has no content: an empty command."""
        return Action(self._chat_format.read(text_of(message.get("content"))))
