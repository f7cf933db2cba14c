"""OpenAI's Responses API. It has no `n` and no seed: k candidates are k requests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

from r2v.clients.base import Client, Part, all_of
from r2v.messages.conversation import Json, Request
from r2v.messages.protocol import Piece, Reply
from r2v.messages.responses_upstream import ResponseReader, own_response_request, reply_of_response, to_responses


class ResponsesClient(Client):
    path = "/responses"
    protocol = "responses"
    streams = True

    def headers(self, key: str | None) -> dict[str, str]:
        return {} if key is None else {"authorization": f"Bearer {key}"}

    async def answers(
        self, request: Request, k: int, *, seed: int | None, logprobs: bool, authors: Mapping[str, str]
    ) -> list[Part]:
        body, dropped = self._body(request)
        found = await all_of([self.post(body) for _ in range(k)])
        replies = [self.read(lambda answer=answer: reply_of_response(answer, dropped)) for answer in found]  # type: ignore[misc]
        return [Part([reply], reply.usage) for reply in replies]

    async def stream(
        self, request: Request, *, logprobs: bool, authors: Mapping[str, str]
    ) -> AsyncGenerator[Piece | Reply, None]:
        body, dropped = self._body(request)
        reader = ResponseReader()
        async for own in self.events({**body, "stream": True}):
            yield Piece(self.read(lambda own=own: reader.add(own)), own)  # type: ignore[misc]
        if reader.response is None:
            raise self.broken("the stream ended too soon")
        self.succeeded()
        yield reply_of_response(reader.response, dropped)

    def _body(self, request: Request) -> tuple[Json, tuple[str, ...]]:
        """The request as this server takes it, and the names of what it lacks of the client's."""
        if request.protocol == self.protocol:
            return own_response_request(request.source, model=self.settings.model), ()
        body, dropped = to_responses(request.body(), model=self.settings.model)
        return body, (*request.dropped, *dropped)
