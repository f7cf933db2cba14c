"""Anthropic's Messages API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from r2v.clients.authors import mark_of
from r2v.clients.base import SingleAnswerClient
from r2v.messages.anthropic_upstream import MessageReader, own_messages, reply_of, to_messages
from r2v.messages.conversation import Json, Request
from r2v.messages.protocol import Reply

VERSION = "2023-06-01"


class AnthropicClient(SingleAnswerClient):
    path = "/v1/messages"
    protocol = "messages"
    reader = MessageReader
    ends = frozenset(("message_stop",))

    def headers(self, key: str | None) -> dict[str, str]:
        return {"anthropic-version": VERSION} | ({} if key is None else {"x-api-key": key})

    def body(self, request: Request, authors: Mapping[str, str]) -> tuple[Json, Sequence[str]]:
        s = self.settings

        def foreign(block: Json) -> bool:
            return authors.get(mark_of(block) or "") != s.model

        if request.protocol == self.protocol:
            return own_messages(request.source, model=s.model, max_tokens=s.max_output_tokens, foreign=foreign)
        return to_messages(request.body(), model=s.model, max_tokens=s.max_output_tokens, foreign=foreign)

    def reply(self, answer: Json, dropped: tuple[str, ...]) -> Reply:
        return reply_of(answer, dropped)
