"""`ChatPolicy`: a policy behind any OpenAI-style `/chat/completions` server (vLLM, llama.cpp, Ollama, hosted models).

teacher: {kind: chat, base_url: http://localhost:8000/v1, model: my-model, api_key_env: MY_KEY}
"""

from __future__ import annotations

import asyncio
import math
import os
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import httpx
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from r2v.core.errors import SettingsError
from r2v.core.types import Action, Candidate, Context, Usage
from r2v.messages.chat_format import ChatFormat, messages
from r2v.runtime.settings import Settings

_tls = cache(httpx.create_ssl_context)
"""Takes longer than all else about a client."""
RETRIED = (408, 409, 429, 500, 502, 503, 504)


class ChatSettings(Settings):
    kind: Literal["chat"]
    base_url: str
    """Up to and without /chat/completions, e.g. http://localhost:8000/v1."""
    model: str
    api_key_env: str | None = None
    """Environment variable that holds the key; the key itself never stands in a file."""
    temperature: NonNegativeFloat = 0.0
    max_tokens: PositiveInt = 64
    timeout_s: PositiveFloat = 60.0
    retries: NonNegativeInt = 4
    usd_per_million_prompt_tokens: NonNegativeFloat | None = None
    usd_per_million_completion_tokens: NonNegativeFloat | None = None
    concurrency: PositiveInt = Field(default=16)
    """Requests in flight at once."""


class ChatPolicy:
    """k candidates are k requests: not every server honours `n`, and a silent 1 would look like agreement."""

    def __init__(self, settings: ChatSettings, *, name: str, chat_format: ChatFormat) -> None:
        """Raises SettingsError when the key's environment variable is not set."""
        self.name = name
        self._manner = chat_format
        self._settings = settings
        self._headers = {}
        if settings.api_key_env is not None:
            key = os.environ.get(settings.api_key_env)
            if not key:
                raise SettingsError(f"environment variable {settings.api_key_env} is not set; it must hold the API key")
            self._headers["Authorization"] = f"Bearer {key}"

    async def propose(self, context: Context, k: int, *, seed: int) -> tuple[Candidate, ...]:
        """Raises RuntimeError when the server keeps failing or answers something else than a chat completion."""
        s = self._settings
        limits = httpx.Limits(max_connections=s.concurrency)
        async with httpx.AsyncClient(timeout=s.timeout_s, headers=self._headers, limits=limits, verify=_tls()) as client:
            drawn = await asyncio.gather(*(self._one(client, context, seed + i) for i in range(k)))
        first, *others = drawn
        usage = sum((candidate.usage for candidate in others), first.usage)
        return replace(first, usage=usage), *(replace(candidate, usage=Usage()) for candidate in others)

    async def _one(self, client: httpx.AsyncClient, context: Context, seed: int) -> Candidate:
        body = {
            "model": self._settings.model,
            "messages": messages(context, self._manner.system),
            "temperature": self._settings.temperature,
            "max_tokens": self._settings.max_tokens,
            "seed": seed % 2**31,
        }
        answer = await self._post(client, body)
        try:
            text, usage = answer["choices"][0]["message"]["content"], answer.get("usage") or {}
        except (KeyError, IndexError, TypeError):
            text, usage = None, None
        # A refusal has the content null: an empty command. Everything else that is not text is not a completion.
        if not isinstance(text, str | None) or not isinstance(usage, dict):
            raise RuntimeError(f"{self._settings.base_url} did not answer with a chat completion")
        return Candidate(Action(self._manner.read(text or "")), None, None, self._usage(usage))

    async def _post(self, client: httpx.AsyncClient, body: dict[str, Any]) -> Any:
        url = f"{self._settings.base_url.rstrip('/')}/chat/completions"
        problem = ""
        for attempt in range(self._settings.retries + 1):
            wait = min(8.0, 0.5 * 2**attempt)
            try:
                response = await client.post(url, json=body)
                if response.status_code == 200:
                    return response.json()
                problem = f"HTTP {response.status_code}"
                if response.status_code not in RETRIED:
                    break
                wait = retry_after(response.headers.get("Retry-After"), wait)
            except httpx.TransportError as error:
                problem = type(error).__name__
            except ValueError:
                problem = "an answer that is not JSON"
            if attempt < self._settings.retries:
                await asyncio.sleep(wait)
        raise RuntimeError(f"{url}: {problem} (after {attempt + 1} tries)")

    def _usage(self, raw: dict[str, Any]) -> Usage:
        s, prompt, completion = self._settings, raw.get("prompt_tokens"), raw.get("completion_tokens")
        usd = None
        per_prompt, per_completion = s.usd_per_million_prompt_tokens, s.usd_per_million_completion_tokens
        if per_prompt is not None and per_completion is not None and prompt is not None and completion is not None:
            usd = (prompt * per_prompt + completion * per_completion) / 1e6
        return Usage(1, prompt, completion, usd)


def retry_after(value: str | None, otherwise: float, longest: float = 30.0) -> float:
    """Seconds to wait as a server's Retry-After header says, up to `longest`; `otherwise` where it says nothing."""
    try:
        seconds = float(value) if value else otherwise
    except ValueError:
        return otherwise  # an HTTP date: not worth a parser
    return min(longest, max(0.0, seconds)) if math.isfinite(seconds) else otherwise
