"""`r2v serve-model`: a local policy behind an OpenAI-style endpoint with `n`, `seed` and log-probabilities, as vLLM's.

The conversation must be the one that `r2v.messages.chat_format.messages` makes: the goal and the first observation, then
commands and observations in turns. Candidates depend on (conversation, seed) alone, over HTTP as in the process.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta, Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from r2v.core.types import Candidate, Context
from r2v.messages.chat_format import context_of_chat
from r2v.messages.conversation import BadRequest, Json, Message
from r2v.messages.openai_chat import chunks, openai_error
from r2v.messages.protocol import DONE, data

TOP = 20
"""Most alternatives of the first token in an answer."""


class Drawn(Protocol):
    """See `r2v.clients.local.policy.Drawn`."""

    @property
    def candidate(self) -> Candidate: ...

    @property
    def tokens(self) -> Sequence[tuple[str, float]]: ...

    @property
    def top(self) -> Sequence[tuple[str, float]]: ...


class Model(Protocol):
    """`LocalPolicy`, which needs torch; this module does not."""

    async def draw(self, context: Context, k: int, *, seed: int) -> Sequence[Drawn]: ...


class _ChatRequest(Struct):
    messages: Annotated[list[Message], Meta(min_length=1)]
    n: Annotated[int, Meta(ge=1, le=64)] | None = None
    seed: Annotated[int, Meta(ge=0, lt=2**62)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=TOP)] | None = None
    stream: bool | None = None
    tools: list[Any] | None = None


_decoder = msgspec.json.Decoder(_ChatRequest)


def model_app(model: Model, name: str) -> Starlette:
    async def completions(request: Request) -> Response:
        try:
            query = _decoder.decode(await request.body())
            if query.tools:
                raise BadRequest("this model calls no tools")
            context = context_of_chat([(message.role, message.text) for message in query.messages])
        except (msgspec.DecodeError, BadRequest, ValueError) as error:
            return JSONResponse(openai_error(str(error), 400, None), 400)
        drawn = await model.draw(context, query.n or 1, seed=query.seed or 0)
        answer = _completion(drawn, query, name)
        if not query.stream:
            return JSONResponse(answer)
        stream = b"".join(data(chunk) for chunk in chunks(answer, True, {})) + DONE
        return StreamingResponse(iter([stream]), media_type="text/event-stream")

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"}]})

    return Starlette(
        routes=[Route("/v1/chat/completions", completions, methods=["POST"]), Route("/v1/models", models, methods=["GET"])]
    )


def _completion(drawn: Sequence[Drawn], query: _ChatRequest, name: str) -> Json:
    choices = []
    for i, one in enumerate(drawn):
        message = {"role": "assistant", "content": one.candidate.action.text}
        choice: Json = {"index": i, "message": message, "finish_reason": "stop"}
        if query.logprobs:
            content: list[Json] = [
                {"token": token, "logprob": logp, "bytes": None, "top_logprobs": []} for token, logp in one.tokens
            ]
            top = one.top[: query.top_logprobs or 0]
            content[0]["top_logprobs"] = [{"token": token, "logprob": logp, "bytes": None} for token, logp in top]
            choice["logprobs"] = {"content": content}
        choices.append(choice)
    prompt = drawn[0].candidate.usage.prompt_tokens or 0
    output = sum(len(one.tokens) for one in drawn)
    usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    return {
        "id": "chatcmpl-local", "object": "chat.completion", "created": int(time.time()), "model": name, "choices": choices,
        "usage": usage,
    }  # fmt: skip
