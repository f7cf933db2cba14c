"""Any server with OpenAI's `/chat/completions`: vLLM, llama.cpp, Ollama, OpenAI and other hosted models."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

import aiohttp
import msgspec

from r2v.clients.base import Client, ModelError, Part, all_of
from r2v.messages.conversation import Json, Request

PRIVATE = ("thinking_blocks", "r2v_model", "reasoning_content")
"""Keys of messages that are for one model alone."""
SEEDS = 2**31
"""Servers take seeds below this."""


class OpenAIClient(Client):
    path = "/chat/completions"
    streams = True

    def headers(self, key: str | None) -> dict[str, str]:
        return {} if key is None else {"authorization": f"Bearer {key}"}

    async def answers(
        self, request: Request, k: int, *, seed: int | None, logprobs: bool, authors: Mapping[str, str]
    ) -> list[Part]:
        s, body = self.settings, self._body(request)
        if logprobs and s.offers_logprobs:
            body |= {"logprobs": True, "top_logprobs": s.top_logprobs}

        def single(i: int) -> Json:
            return body if seed is None else {**body, "seed": (seed + i) % SEEDS}

        drawn, parts = 0, []
        if k > 1 and s.offers_n:
            parts = await self._all([{**single(0), "n": k}])
            drawn = len(parts[0][0])  # a server that does not know `n` answers with fewer
        first = int(bool(parts))
        others = await self._all([single(i) for i in range(first, first + k - drawn)])
        return parts + [(choices[:1], usage) for choices, usage in others]

    async def _all(self, bodies: list[Json]) -> list[Part]:
        found = await all_of([self.post(body) for body in bodies])
        return [self.read(lambda answer=answer: _part(answer)) for answer in found]  # type: ignore[misc]

    def _body(self, request: Request) -> Json:
        """The request as such a server takes it."""
        body: Json = {**request.fields, "model": self.settings.model}
        if not request.plain:
            messages = request.body()["messages"]
            body["messages"] = [{key: m[key] for key in m if key not in PRIVATE} for m in messages]
        return body

    async def stream(self, request: Request) -> AsyncGenerator[Json, None]:
        self.check_available()
        self.check_length(request)
        body = self._body(request) | {"stream": True, "stream_options": {"include_usage": True}}
        ended, rest = False, b""
        try:
            async with self.sent(body) as response:
                self.count(str(response.status))
                if response.status != 200:
                    raise self.refusal(response.status, await response.read())
                async for piece in response.content.iter_any():
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in lines:
                        if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
                            chunk = msgspec.json.decode(data)
                            ended = ended or any(choice.get("finish_reason") for choice in chunk.get("choices") or [])
                            yield chunk
        except (aiohttp.ClientError, TimeoutError, ValueError, AttributeError) as error:
            raise self._broken(f"the stream broke ({type(error).__name__})") from None
        if not ended:
            raise self._broken("the stream ended too soon")
        self.succeeded()

    def _broken(self, problem: str) -> ModelError:
        self.count("stream")
        self.failed()
        return ModelError(f"{self.name}: {problem}")


def _part(answer: Json) -> Part:
    """Raises KeyError, TypeError or ValueError for what is not a completion."""
    choices, usage = answer["choices"], answer.get("usage") or {}
    if not isinstance(choices, list) or not choices or not isinstance(usage, dict):
        raise ValueError
    for choice in choices:
        if not isinstance(choice["message"], dict) or not isinstance(choice["message"].get("content"), str | list | None):
            raise ValueError
    return choices, usage
