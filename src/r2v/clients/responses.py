"""OpenAI's Responses API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from r2v.clients.base import SingleAnswerClient
from r2v.messages.conversation import Json, Request
from r2v.messages.protocol import Reply
from r2v.messages.responses_upstream import ResponseReader, own_response_request, reply_of_response, to_responses


class ResponsesClient(SingleAnswerClient):
    path = "/responses"
    protocol = "responses"
    reader = ResponseReader

    def body(self, request: Request, authors: Mapping[str, str]) -> tuple[Json, Sequence[str]]:
        if request.protocol == self.protocol:
            return own_response_request(request.source, model=self.settings.model)
        return to_responses(request.body(), model=self.settings.model)

    def reply(self, answer: Json, dropped: tuple[str, ...]) -> Reply:
        return reply_of_response(answer, dropped)
