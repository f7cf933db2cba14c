"""Anthropic's Messages API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from r2v.clients.authors import mark_of
from r2v.clients.base import SingleAnswerClient
from r2v.messages.anthropic_upstream import MessageReader, own_messages, reply_of, to_messages
from r2v.messages.conversation import Json, Request
from r2v.messages.protocol import Reply

VERSION = "2023-06-01"
BETAS = "anthropic-beta"
LONG = 200_000
"""Tokens of a prompt from which on each costs more, where the beta for such prompts is needed."""


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
        found = reply_of(answer, dropped)
        if not found.usage:
            return found
        said: Json = answer["usage"]
        hour = (said.get("cache_creation") or {}).get("ephemeral_1h_input_tokens") or 0
        details = found.usage["prompt_tokens_details"] | ({"cache_creation_1h_tokens": hour} if hour else {})
        tools = {"server_tool_use": said["server_tool_use"]} if said.get("server_tool_use") else {}
        return replace(found, usage=found.usage | {"prompt_tokens_details": details} | tools)

    def writes_1h(self, request: Request) -> bool:
        if request.protocol != self.protocol:
            return False
        source = request.source
        lists = [[source], source.get("system"), source.get("tools"), *(one["content"] for one in source["messages"])]
        blocks = [block for one in lists if isinstance(one, list) for block in one if isinstance(block, dict)]
        within = [one for block in blocks if isinstance(block.get("content"), list) for one in block["content"]]
        marks = [block.get("cache_control") for block in (*blocks, *within) if isinstance(block, dict)]
        return any(isinstance(mark, dict) and mark.get("ttl") == "1h" for mark in marks)

    def _prepared(self, request: Request, authors: Mapping[str, str]) -> tuple[Json, tuple[str, ...], Mapping[str, str]]:
        """A beta for prompts that cost more is not passed on to a model whose context is not known to be as long."""
        body, dropped, headers = super()._prepared(request, authors)
        betas = [beta.strip() for beta in headers.get(BETAS, "").split(",")]
        kept = [beta for beta in betas if not beta.startswith("context-1m")]
        if len(kept) == len(betas) or (self.settings.context_tokens or 0) > LONG:
            return body, dropped, headers
        headers = {key: value for key, value in headers.items() if key != BETAS} | ({BETAS: ",".join(kept)} if kept else {})
        return body, (*dropped, "context-1m"), headers
