"""Anthropic's Messages API. It has no `n`, no seed and no log-probabilities: k candidates are k requests."""

from __future__ import annotations

from collections.abc import Mapping

from r2v.clients.base import Client, Part, all_of
from r2v.messages.anthropic import choice_of, to_messages
from r2v.messages.conversation import Json, Request

VERSION = "2023-06-01"


class AnthropicClient(Client):
    path = "/v1/messages"

    def headers(self, key: str | None) -> dict[str, str]:
        return {"anthropic-version": VERSION} | ({} if key is None else {"x-api-key": key})

    async def answers(
        self, request: Request, k: int, *, seed: int | None, logprobs: bool, authors: Mapping[str, str]
    ) -> list[Part]:
        s = self.settings
        body = {**request.body(), "messages": _signed(request, authors)}
        raw = to_messages(body, model=s.model, max_tokens=s.max_output_tokens)
        return [self.read(lambda a=a: self._part(a)) for a in await all_of([self.post(raw) for _ in range(k)])]  # type: ignore[misc]

    def _part(self, answer: Json) -> Part:
        choice, usage = choice_of(answer, self.settings.model)
        return [choice], usage


def _signed(request: Request, authors: Mapping[str, str]) -> list[Json]:
    """Messages with their thinking blocks marked with the model that wrote them: no other model is given them."""
    messages: list[Json] = request.body()["messages"]
    for message in messages:
        if blocks := message.get("thinking_blocks"):
            message["r2v_model"] = authors.get(str(blocks[0].get("signature")))
    return messages
