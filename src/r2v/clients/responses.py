"""OpenAI's Responses API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import msgspec

from r2v.clients.authors import mark_of
from r2v.clients.base import SingleAnswerClient
from r2v.messages.conversation import Json, Request
from r2v.messages.json_size import SMALL, TooMuch
from r2v.messages.protocol import Reply
from r2v.messages.responses_upstream import ResponseReader, own_response_request, reply_of_response, to_responses

SEARCHES = ("web_search_call", "file_search_call")
WITHIN = ("response", "output", "item", "part", "content")
"""Keys under which log-probabilities lie, in an answer and in the events of a stream."""
ITEMS = 10_000
"""Parts of an answer that are looked into for them."""
_fields, _items = msgspec.json.Decoder(dict[str, msgspec.Raw]), msgspec.json.Decoder(list[msgspec.Raw])


class ResponsesClient(SingleAnswerClient):
    path = "/responses"
    protocol = "responses"
    reader = ResponseReader
    ends = frozenset(("response.completed", "response.incomplete", "response.failed", "error"))
    long_lines = True  # the last events of a stream repeat all log-probabilities

    def body(self, request: Request, authors: Mapping[str, str]) -> tuple[Json, Sequence[str]]:
        model = self.settings.model
        if request.protocol == self.protocol:
            return own_response_request(
                request.source, model=model, foreign=lambda item: authors.get(mark_of(item) or "") != model
            )
        return to_responses(request.body(), model=model)

    def reply(self, answer: Json, dropped: tuple[str, ...]) -> Reply:
        found = reply_of_response(answer, dropped)
        searches = sum(item.get("type") in SEARCHES for item in answer["output"])
        if not searches or not found.usage:
            return found
        return replace(found, usage=found.usage | {"server_tool_use": {"web_search_requests": searches}})

    def decoded(self, content: bytes) -> Any:
        """An answer or an event: the log-probabilities are most of it, and stay unread."""
        if len(content) <= SMALL or b'"logprobs"' not in content:
            return super().decoded(content)
        rest: list[tuple[Any, Any, msgspec.Raw]] = []
        try:
            found = _opened(content, rest, count())
        except RecursionError:
            raise ValueError("it nests too deeply") from None
        except TooMuch as error:
            raise self.endpoint.too_large(str(error)) from None
        read = super().decoded(b"[" + b",".join(one for *_, one in rest) + b"]")
        for (where, key, _), value in zip(rest, read, strict=True):
            where[key] = value
        return found


def _opened(content: bytes | msgspec.Raw, rest: list[tuple[Any, Any, msgspec.Raw]], parts: Iterator[int]) -> Any:
    """The object or the list that a text holds, with its parts unread. Those that are to be read are added to `rest`, as
    (what holds it, under which key, the part). Raises ValueError, and TooMuch where there are too many; `parts` counts them.
    """
    found: Any = _items.decode(content) if _begin(content) == b"[" else _fields.decode(content)
    for key, one in enumerate(found) if isinstance(found, list) else found.items():
        if next(parts) > ITEMS:
            raise TooMuch(f"{ITEMS} parts")
        if _begin(one) in (b"{", b"[") and (isinstance(found, list) or key in WITHIN):
            found[key] = _opened(one, rest, parts)
        elif key != "logprobs":
            rest.append((found, key, one))
    return found


def _begin(content: bytes | msgspec.Raw) -> bytes:
    return bytes(memoryview(content)[:1])
