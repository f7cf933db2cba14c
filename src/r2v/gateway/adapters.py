"""The protocols that clients speak, each as what it takes to serve a step in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.responses import Response

from r2v.gateway.service import Answer, Refused
from r2v.messages import anthropic, chat, responses
from r2v.messages.chat import BadRequest, Json, Request

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class ProtocolAdapter:
    path: str
    body: Callable[[Json], Json] | None
    """Its request as a chat-completion body; None: it is one."""
    whole: Callable[[Answer, Request], Json]
    """Its answer, to this request."""
    stream: Callable[[Answer, Request], Iterator[bytes]]
    """The same as server-sent events."""
    broken: Callable[[Refused], bytes]
    """The last event of a stream that cannot go on."""
    telling: Callable[[], Callable[[Json], Iterator[bytes]]] | None
    """Makes what turns the chunks of one early stream into events; None: this protocol's streams are held."""
    error: Callable[[str, int], Json]

    def parse(self, body: bytes) -> Request:
        """Raises BadRequest, also where a part has a type that the conversion cannot use."""
        if self.body is None:
            return chat.parse(body)
        source = json_object(body)
        try:
            return chat.parse(_encode(self.body(source)), source, len(body))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise BadRequest(f"the request holds a part of the wrong type ({type(error).__name__}: {error})"[:200]) from None


def json_object(body: bytes) -> Json:
    """Raises BadRequest for a body that is something else."""
    try:
        raw = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON") from None
    if not isinstance(raw, dict):
        raise BadRequest("the body must be a JSON object")
    return raw


def json_response(content: Json, status: int = 200, facts: Json | None = None) -> Response:
    return Response(_encode(content), status, headers_of(facts or {}), "application/json")


def headers_of(facts: Json) -> dict[str, str]:
    return {f"x-r2v-{key}": _header(value) for key, value in facts.items() if value is not None}


def _header(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    if text.isascii() and text.isprintable():
        return text[:300]
    return "".join(c if 32 <= ord(c) < 127 else "?" for c in text)[:300]


def data(content: Json) -> bytes:
    """One server-sent event without a name."""
    return b"data: " + _encode(content) + b"\n\n"


def _named(name: str, content: Json) -> bytes:
    return f"event: {name}\n".encode() + data(content)


DONE = b"data: [DONE]\n\n"


# -- OpenAI Chat Completions --------------------------------------------------------------------------------------


def _told_chat(answer: Answer, request: Request) -> Iterator[bytes]:
    for chunk in chat.chunks(answer.completion, request.include_usage, answer.facts):
        yield data(chunk)
    yield DONE


def _tell_chat() -> Callable[[Json], Iterator[bytes]]:
    def told(chunk: Json) -> Iterator[bytes]:
        yield data(chunk)
        if chunk["choices"][0].get("finish_reason"):
            yield DONE

    return told


def openai_error(message: str, status: int, code: str = "") -> Json:
    kind = {401: "authentication_error", 400: "invalid_request_error", 402: "budget_error"}.get(status, "r2v_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _broken_chat(error: Refused) -> bytes:
    return data(openai_error(str(error), error.status, str(error.facts.get("reason")))) + DONE


CHAT = ProtocolAdapter(
    "/chat/completions", None, lambda answer, request: answer.completion, _told_chat, _broken_chat, _tell_chat, openai_error
)

# -- Anthropic Messages -------------------------------------------------------------------------------------------


def _told_messages(answer: Answer, request: Request) -> Iterator[bytes]:
    for name, event in anthropic.events(anthropic.message_of(answer.completion), answer.facts):
        yield _named(name, event)


def _tell_messages() -> Callable[[Json], Iterator[bytes]]:
    telling = anthropic.StreamEncoder()
    return lambda chunk: (_named(name, event) for name, event in telling.add(chunk))


def _anthropic_error(message: str, status: int) -> Json:
    kind = {401: "authentication_error", 400: "invalid_request_error", 413: "request_too_large"}.get(status, "api_error")
    return anthropic.error_of(kind, message)


MESSAGES = ProtocolAdapter(
    "/messages", anthropic.from_messages, lambda answer, request: anthropic.message_of(answer.completion), _told_messages,
    lambda error: _named("error", anthropic.error_of("api_error", str(error))), _tell_messages, _anthropic_error,
)  # fmt: skip

# -- OpenAI Responses ---------------------------------------------------------------------------------------------


def _told_responses(answer: Answer, request: Request) -> Iterator[bytes]:
    for event in responses.events(responses.response_of(answer.completion, request.source), answer.facts):
        yield _named(event["type"], event)


def _broken_responses(error: Refused) -> bytes:
    event = {"type": "error", "message": str(error), "code": error.facts.get("reason"), "sequence_number": 0}
    return _named("error", event)


RESPONSES = ProtocolAdapter(
    "/responses",
    responses.from_responses,
    lambda answer, request: responses.response_of(answer.completion, request.source),
    _told_responses,
    _broken_responses,
    None,
    openai_error,
)
ADAPTERS = (CHAT, MESSAGES, RESPONSES)
