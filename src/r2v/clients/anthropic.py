"""Anthropic's Messages API. It has no `n`, no seed and no log-probabilities: k candidates are k requests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

from r2v.clients.base import Client, Part, all_of
from r2v.messages.anthropic_upstream import MessageReader, own_messages, reply_of, to_messages
from r2v.messages.conversation import Json, Request
from r2v.messages.protocol import Piece, Reply

VERSION = "2023-06-01"


class AnthropicClient(Client):
    path = "/v1/messages"
    protocol = "messages"
    streams = True

    def headers(self, key: str | None) -> dict[str, str]:
        return {"anthropic-version": VERSION} | ({} if key is None else {"x-api-key": key})

    async def answers(
        self, request: Request, k: int, *, seed: int | None, logprobs: bool, authors: Mapping[str, str]
    ) -> list[Part]:
        body, dropped = self._body(request, authors)
        found = await all_of([self.post(body, request.headers) for _ in range(k)])
        replies = [self.read(lambda answer=answer: reply_of(answer, dropped)) for answer in found]  # type: ignore[misc]
        return [Part([reply], reply.usage) for reply in replies]

    async def stream(
        self, request: Request, *, logprobs: bool, authors: Mapping[str, str]
    ) -> AsyncGenerator[Piece | Reply, None]:
        body, dropped = self._body(request, authors)
        reader = MessageReader()
        async for own in self.events({**body, "stream": True}, request.headers):
            yield Piece(self.read(lambda own=own: reader.add(own)), own)  # type: ignore[misc]
        if not reader.ended:
            raise self.broken("the stream ended too soon")
        self.succeeded()
        yield self.read(lambda: reply_of(reader.message, dropped))

    def _body(self, request: Request, authors: Mapping[str, str]) -> tuple[Json, tuple[str, ...]]:
        """The request as this server takes it, and the names of what it lacks of the client's."""
        s = self.settings

        def foreign(block: Json) -> bool:
            return authors.get(str(block.get("signature") or block.get("data"))) != s.model

        if request.protocol == self.protocol:
            body, dropped = own_messages(request.source, model=s.model, max_tokens=s.max_output_tokens, foreign=foreign)
            return body, tuple(dropped)
        body, dropped = to_messages(request.body(), model=s.model, max_tokens=s.max_output_tokens, foreign=foreign)
        return body, (*request.dropped, *dropped)
