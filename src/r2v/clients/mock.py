"""Mock models that speak the real protocol over real HTTP: `r2v serve --mock`, tests, benchmarks.

The right call is the one that the newest message names (`next: TOOL ARGUMENTS`), else one of the tools in turn. The SLM errs
now and then: unsure; sure of a call that cannot be executed; with the call that just failed; with one that is wrong
although nothing shows it. The teacher does not err. The same request gets the same answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from random import Random
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from r2v.messages.conversation import Json
from r2v.messages.openai_chat import chunks


@dataclass(frozen=True)
class MockModel:
    """How a mock model behaves."""

    name: str
    error_rate: float = 0.0
    """Share of steps on which its entropy is high and it may err."""
    invalid_rate: float = 0.0
    """Share of steps on which it is sure of a call that cannot be executed."""
    repeat_rate: float = 0.0
    """Share of the steps after an error on which it does the same again."""
    hidden_rate: float = 0.0
    """Share of steps with a call that fits and is wrong."""
    first_s: float = 0.0
    per_token_s: float = 0.0
    fault_rate: float = 0.0
    """Share of requests answered with HTTP 500 or 429."""


SLM = MockModel(
    "mock-small", error_rate=0.08, invalid_rate=0.04, repeat_rate=0.5, hidden_rate=0.03, first_s=0.08, per_token_s=0.002
)
TEACHER = MockModel("mock-teacher", first_s=0.4, per_token_s=0.008)
NEXT = re.compile(r"next: (\w+) (\{.*\})")


def mock_app(mock_model: MockModel) -> Starlette:
    faults = Random(7)

    async def completions(request: Request) -> Response:
        body = await request.json()
        if faults.random() < mock_model.fault_rate:
            if faults.random() < 0.5:
                return JSONResponse({"error": {"message": "mock overload"}}, 429, {"retry-after": "0.05"})
            return JSONResponse({"error": {"message": "mock failure"}}, 500)
        answer = complete(mock_model, body)
        if body.get("stream"):
            return StreamingResponse(_streamed(mock_model, answer), media_type="text/event-stream")
        await asyncio.sleep(mock_model.first_s + mock_model.per_token_s * answer["usage"]["completion_tokens"])
        return JSONResponse(answer)

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": mock_model.name, "object": "model"}]})

    return Starlette(
        routes=[Route("/v1/chat/completions", completions, methods=["POST"]), Route("/v1/models", models, methods=["GET"])]
    )


async def _streamed(mock_model: MockModel, answer: Json, size: int = 8) -> AsyncIterator[str]:
    """The answer in small pieces, at the model's pace."""
    await asyncio.sleep(mock_model.first_s)
    for chunk in chunks(answer, True, {}, size):
        yield f"data: {json.dumps({key: value for key, value in chunk.items() if key != 'r2v'})}\n\n"
        await asyncio.sleep(mock_model.per_token_s * size / 4)
    yield "data: [DONE]\n\n"


def complete(mock_model: MockModel, body: Json) -> Json:
    """The answer to a chat-completion request."""
    text = json.dumps([body["messages"], body.get("tools")], sort_keys=True, default=str)
    seed = int(hashlib.sha256(f"{mock_model.name} {text}".encode("utf-8", "replace")).hexdigest()[:12], 16)
    mood = Random(seed)
    unsure = mood.random() < mock_model.error_rate
    slip = _slip(mock_model, body["messages"], mood.random())
    k = int(body.get("n") or 1)
    choices = [_choice(body, Random(seed * 31 + int(body.get("seed") or 0) + i), i, unsure, slip) for i in range(k)]
    prompt = max(1, len(text) // 4)
    output = sum(max(4, len(json.dumps(choice["message"])) // 4) for choice in choices)
    return {
        "id": f"chatcmpl-mock{seed:x}", "object": "chat.completion", "created": 0, "model": mock_model.name,
        "choices": choices,
        "usage": {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output},
    }  # fmt: skip


def _slip(mock_model: MockModel, messages: list[Json], drawn: float) -> str | None:
    """What all answers to a request have wrong, by a number that was drawn from [0, 1)."""
    rates = {"invalid": mock_model.invalid_rate, "hidden": mock_model.hidden_rate, "repeat": 0.0}
    if len(messages) > 1 and "error" in str(messages[-1].get("content")) and messages[-2].get("tool_calls"):
        rates["repeat"] = mock_model.repeat_rate
    return next((slip for slip, rate in rates.items() if (drawn := drawn - rate) < 0), None)


def _choice(body: Json, draw: Random, index: int, unsure: bool, slip: str | None) -> Json:
    tools = [tool["function"] for tool in body.get("tools") or []]
    steps = sum(message["role"] == "assistant" for message in body["messages"])
    wrong = (unsure and draw.random() < 0.6) or slip == "invalid"
    named = NEXT.search(str(body["messages"][-1].get("content")))
    message: Json = {"role": "assistant", "content": None}
    finish = "tool_calls"
    if tools and body.get("tool_choice") != "none" and (named or steps < 3 or body.get("tool_choice") == "required"):
        tool = tools[steps % len(tools)]
        name, arguments = tool["name"], json.dumps(_sample(tool.get("parameters") or {}, draw))
        if named:
            name, arguments = named.groups()
        if slip == "hidden":
            arguments = re.sub(r"\d", lambda digit: str(9 - int(digit[0])), arguments)
        if slip == "repeat":
            function = body["messages"][-2]["tool_calls"][0]["function"]
            name, arguments = function["name"], function["arguments"]
        if wrong:
            name, arguments = draw.choice([("no_such_tool", arguments), (name, '{"unexpected": 1'), (name, "[]")])
        call = {
            "id": f"call_{draw.getrandbits(40):x}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        message["tool_calls"] = [call]
    elif (body.get("response_format") or {}).get("type") == "json_schema":
        schema = body["response_format"]["json_schema"].get("schema") or {}
        message["content"], finish = json.dumps(_sample(schema, draw)), "stop"
    else:
        message["content"] = "I am not sure what to do." if wrong else f"Done after {steps} steps."
        finish = "stop"
    choice: Json = {"index": index, "message": message, "finish_reason": finish}
    if body.get("logprobs"):
        p = draw.uniform(0.25, 0.5) if unsure else draw.uniform(0.9, 0.99)
        others = [(1 - p) * share for share in (0.5, 0.3, 0.15)]
        top = [{"token": str(i), "logprob": math.log(q), "bytes": None} for i, q in enumerate([p, *others])]
        first = {"token": "0", "logprob": math.log(p), "bytes": None, "top_logprobs": top}
        choice["logprobs"] = {"content": [first] + [{**first, "logprob": -0.02, "top_logprobs": []}] * 5}
    return choice


def _sample(schema: Json, draw: Random) -> Any:
    """A value that fits a simple schema."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: _sample(part, draw) for name, part in (schema.get("properties") or {}).items()}
    if kind == "array":
        return [_sample(schema.get("items") or {"type": "string"}, draw)]
    return {"string": f"value {draw.randrange(10)}", "integer": 1, "number": 1.5, "boolean": True}.get(str(kind))
