"""A wire tap between an agent and the gateway: passes everything on, and keeps what the client was told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

Json = dict[str, Any]
METHODS = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH"]
NOT_PASSED = {"host", "content-length", "transfer-encoding", "connection", "keep-alive", "accept-encoding"}


@dataclass
class Exchange:
    path: str
    request: Any
    status: int
    answer: bytes = b""

    @property
    def tells_usage(self) -> bool:
        """Whether the answer has to say what it used."""
        if self.path.endswith("/chat/completions"):
            return not self.request.get("stream") or bool((self.request.get("stream_options") or {}).get("include_usage"))
        return self.path.endswith(("/messages", "/responses"))

    def usage(self) -> Json | None:
        """Prompt, cached and answered tokens as the client was told them, in one form for all protocols."""
        found: Json = {}
        for event in self.events():
            for at in (event, event.get("message"), event.get("response")):
                if isinstance(at, dict) and at.get("usage"):
                    found |= at["usage"]
        if not found:
            return None
        if "cache_read_input_tokens" in found:  # Anthropic's prompt does not include what the cache held
            cached, written = found["cache_read_input_tokens"], found["cache_creation_input_tokens"]
            prompt = found["input_tokens"] + cached + written
        else:
            prompt = found.get("prompt_tokens", found.get("input_tokens"))
            details = found.get("prompt_tokens_details") or found.get("input_tokens_details") or {}
            cached = details.get("cached_tokens", 0)
        return {"prompt": prompt, "cached": cached, "completion": found.get("completion_tokens", found.get("output_tokens"))}

    def events(self) -> list[Json]:
        """The answer, or the events of its stream."""
        text = self.answer.decode()
        if not text.startswith(("data:", "event:", ":")):
            return [json.loads(text)]
        data = [line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")]
        return [json.loads(each) for each in data if each != "[DONE]"]


@dataclass
class Tap:
    to: str
    exchanges: list[Exchange] = field(default_factory=list)

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self.passed, methods=METHODS)])

    async def passed(self, http: Request) -> Response:
        body = await http.body()
        path = http.url.path + (f"?{http.url.query}" if http.url.query else "")
        headers = [(key, value) for key, value in http.headers.items() if key not in NOT_PASSED]
        client = httpx.AsyncClient(trust_env=False, timeout=60)
        request = client.build_request(http.method, self.to + path, headers=headers, content=body)
        answer = await client.send(request, stream=True)
        exchange = Exchange(http.url.path, json.loads(body) if body else None, answer.status_code)
        self.exchanges.append(exchange)

        async def bytes_of() -> AsyncIterator[bytes]:
            try:
                async for piece in answer.aiter_raw():
                    exchange.answer += piece
                    yield piece
            finally:
                await answer.aclose()
                await client.aclose()

        kept = {key: value for key, value in answer.headers.items() if key not in NOT_PASSED}
        return StreamingResponse(bytes_of(), answer.status_code, kept)
