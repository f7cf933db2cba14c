"""Any server with OpenAI's `/chat/completions`: vLLM, llama.cpp, Ollama, OpenAI and other hosted models."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec

from r2v.clients.base import Client, Part, all_of, decoded
from r2v.messages.conversation import NULL, Json, Likelihood, Request, sent_id
from r2v.messages.openai_chat import StreamAccumulator
from r2v.messages.protocol import Piece, Reply

PRIVATE = ("thinking_blocks", "reasoning_content")
"""Keys of messages that are for one model alone."""
ITS_OWN = "https://api.openai.com/"
"""Newer models there refuse `max_tokens`, the only name that many other servers know."""
CHOICES = 128
"""Of one answer; r2v asks for at most 32."""
SEEDS = 2**31
"""Servers take seeds below this."""
_raw = msgspec.json.Decoder(dict[str, msgspec.Raw])
_choices = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])


class OpenAIClient(Client):
    path = "/chat/completions"
    protocol = "chat"
    streams = True

    async def answers(
        self, request: Request, k: int, *, seed: int | None, logprobs: bool, authors: Mapping[str, str]
    ) -> list[Part]:
        body = self._body(request, logprobs)

        def single(i: int) -> Json:
            return body if seed is None else {**body, "seed": (seed + i) % SEEDS}

        drawn, parts = 0, []
        if k > 1 and self.settings.offers_n:
            parts = await self._all([{**single(0), "n": k}], request.dropped)
            drawn = len(parts[0].replies)  # a server that does not know `n` answers with fewer
        first = int(bool(parts))
        others = await self._all([single(i) for i in range(first, first + k - drawn)], request.dropped)
        return parts + [Part(part.replies[:1], part.usage) for part in others]

    async def stream(
        self, request: Request, *, logprobs: bool, authors: Mapping[str, str]
    ) -> AsyncGenerator[Piece | Reply, None]:
        body = self._body(request, logprobs) | {"stream": True, "stream_options": {"include_usage": True}}
        answer = StreamAccumulator()
        async for chunk in self.events(body):
            self.read(lambda chunk=chunk: answer.add(chunk))  # type: ignore[misc]
            yield Piece(chunk, chunk)
        if not answer.ended:
            raise self.broken("the stream ended too soon")
        self.succeeded()
        yield Reply(answer.choice, answer.usage, self.protocol, None, request.dropped)

    async def _all(self, bodies: list[Json], dropped: tuple[str, ...]) -> list[Part]:
        found = await all_of([self.post(body) for body in bodies])
        return [self.read(lambda answer=answer: _part(answer, dropped)) for answer in found]  # type: ignore[misc]

    def decoded(self, content: bytes) -> tuple[Any, list[Likelihood]]:
        """(an answer, what the log-probabilities of each choice say): they are most of it, and stay unread otherwise."""
        try:
            raw = _raw.decode(content)
            choices = _choices.decode(raw.pop("choices"))
        except (KeyError, ValueError, RecursionError):
            return decoded(content), []
        if len(choices) > CHOICES:
            raise ValueError(f"{len(choices)} choices")
        read = [{key: one if key == "logprobs" else decoded(one) for key, one in choice.items()} for choice in choices]
        for choice in read:
            if choice.get("logprobs") == NULL:
                choice["logprobs"] = None
        answer = {key: decoded(value) for key, value in raw.items()} | {"choices": read}
        return answer, [Likelihood.of(choice, self.settings.vocabulary) for choice in read]

    def _body(self, request: Request, logprobs: bool) -> Json:
        """The request as such a server takes it."""
        s, body = self.settings, Json(request.fields, model=self.settings.model)
        if not request.plain:
            body["messages"] = [_sendable(message) for message in request.body()["messages"]]
        if s.base_url.startswith(ITS_OWN) and "max_tokens" in body:
            body["max_completion_tokens"] = body.pop("max_tokens")
        if logprobs and s.offers_logprobs and not request.logprobs:
            body |= {"logprobs": True, "top_logprobs": s.top_logprobs}
        return body


def _sendable(message: Json) -> Json:
    """A message without what is for one model alone, and with ids that are not too long."""
    found = {key: value for key, value in message.items() if key not in PRIVATE}
    if found.get("tool_call_id"):
        found["tool_call_id"] = sent_id(found["tool_call_id"])
    if found.get("tool_calls"):
        found["tool_calls"] = [{**call, "id": sent_id(call.get("id"))} for call in found["tool_calls"]]
    return found


def _part(read: tuple[Json, list[Likelihood]], dropped: tuple[str, ...]) -> Part:
    """Raises KeyError, TypeError or ValueError for what is not a completion."""
    answer, likelihoods = read
    choices, usage = answer["choices"], answer.get("usage") or {}
    if not isinstance(choices, list) or not choices or not isinstance(usage, dict):
        raise ValueError
    for choice in choices:
        if not isinstance(choice["message"], dict) or not isinstance(choice["message"].get("content"), str | list | None):
            raise ValueError
    if len(choices) == 1:
        (likely,) = likelihoods
        return Part([Reply(choices[0], usage, "chat", answer, dropped, likely)], usage)
    shares = _shares(choices, likelihoods, usage)
    replies = [
        Reply(choice, share, "chat", None, dropped, likely)
        for choice, share, likely in zip(choices, shares, likelihoods, strict=True)
    ]
    return Part(replies, usage)


def _shares(choices: list[Json], likelihoods: list[Likelihood], usage: Json) -> list[Json]:
    """The usage of each of several answers to one request: the server counts the prompt once and the answers together. The
    tokens of one are those that it lists with their log-probabilities; without them its part of what all answers wrote.
    """
    prompt, output = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    own = [likely.tokens for likely in likelihoods]
    if not all(own):
        lengths = [
            1 + len(str(one["message"].get("content"))) + len(str(one["message"].get("tool_calls"))) for one in choices
        ]
        own = [tokens or round(output * length / sum(lengths)) for tokens, length in zip(own, lengths, strict=True)]
    return [{**usage, "completion_tokens": one, "total_tokens": prompt + one} for one in own]
