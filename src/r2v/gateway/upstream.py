"""The models behind the gateway: OpenAI-style servers and Anthropic's API, over real HTTP, with what real servers need.

Retries honour Retry-After; after failures in a row a model is left alone for a while (circuit breaker); requests in flight
are limited. A client that goes away cancels what was asked for it. Keys are read from the environment and sent to their own
upstream alone; nothing of the client's headers is passed on.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec

from r2v.core.errors import SettingsError
from r2v.core.types import Usage
from r2v.gateway.budgets import Amount
from r2v.gateway.settings import ModelSettings
from r2v.messages.anthropic import choice_of, to_messages
from r2v.messages.chat import Json, Request

TOO_LONG = re.compile(r"context.{0,20}(length|window|size)|maximum context|too (long|many tokens)|exceed.{0,40}tokens", re.I)
"""How servers say that a request does not fit: there is no common code for it."""
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
LONGEST_WAIT_S = 20.0
PRIVATE = ("thinking_blocks", "r2v_model", "reasoning_content")
ANTHROPIC_VERSION = "2023-06-01"


class UpstreamError(Exception):
    """A model did not answer. `status` is what a client should see: the model's own for its own mistakes, else 502."""

    def __init__(self, reason: str, *, status: int = 502, clients_fault: bool = False) -> None:
        super().__init__(reason)
        self.status = status
        self.clients_fault = clients_fault
        """The request itself was refused (HTTP 4xx): another model would refuse it, too."""


@dataclass(frozen=True)
class Draw:
    """What one call gave: choices in the neutral form, the tokens used, their price."""

    choices: list[Json]
    raw_usage: Json
    usage: Usage


class Upstream:
    def __init__(self, settings: ModelSettings, name: str) -> None:
        """Raises SettingsError when the environment variable of the key is not set."""
        self.settings, self.name = settings, name
        headers = {"content-type": "application/json"}
        if settings.api_key_env is not None:
            key = (os.environ.get(settings.api_key_env) or "").strip()
            if not key:
                raise SettingsError(f"environment variable {settings.api_key_env} of model {name} is not set")
            if settings.provider == "anthropic":
                headers |= {"x-api-key": key}
            else:
                headers |= {"authorization": f"Bearer {key}"}
        if settings.provider == "anthropic":
            headers |= {"anthropic-version": ANTHROPIC_VERSION}
            self._url = settings.base_url.rstrip("/") + "/v1/messages"
        else:
            self._url = settings.base_url.rstrip("/") + "/chat/completions"
        self._headers, self._proxy = headers, _proxy_of(self._url)
        self._client: aiohttp.ClientSession | None = None
        self._gate = asyncio.Semaphore(settings.concurrency)
        self._failures, self._closed_until = 0, 0.0
        self.attempts: dict[str, int] = {}
        """Calls by outcome, for the metrics."""

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            await asyncio.sleep(0.01)  # the transports close in the next rounds of the loop

    def _post_to(self, body: Json) -> aiohttp.client._RequestContextManager:
        if self._client is None:  # made here because it belongs to the event loop that runs
            self._client = aiohttp.ClientSession(
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(
                    sock_connect=self.settings.connect_timeout_s, sock_read=self.settings.timeout_s
                ),
            )
        told = msgspec.json.encode(body)
        # Of large bodies aiohttp wants a file, which it sends in pieces: the loop goes on in between.
        data = told if len(told) < 2**20 else io.BytesIO(told)
        return self._client.post(self._url, data=data, proxy=self._proxy, allow_redirects=False)

    @property
    def available(self) -> bool:
        return time.monotonic() >= self._closed_until

    def most(self, request: Request, answers: int) -> Amount:
        """An upper bound of what so many answers can cost: every byte of the request a token, each answer the longest."""
        output, price = request.max_tokens or self.settings.max_output_tokens, self.settings.price
        usd = (request.size * max(price.input, price.cache_write or 0.0) + output * price.output) / 1e6
        # Servers without `n` read the request for each answer.
        return Amount(0, answers * (request.size + output), answers * usd)

    def usd(self, prompt: int, cached: int, output: int) -> float:
        """Price of so many tokens, `cached` of the prompt's among them."""
        price = self.settings.price
        rate = price.input if price.cached is None else price.cached
        return ((prompt - cached) * price.input + cached * rate + output * price.output) / 1e6

    async def draw(self, request: Request, k: int, *, seed: int, logprobs: bool, authors: Mapping[str, str]) -> Draw:
        """k answers to one request; `authors`: who wrote which thinking block. Raises UpstreamError."""
        self._check_length(request)
        if self.settings.provider == "anthropic":
            body = {**request.body(), "messages": _signed(request, authors)}
            raw = to_messages(body, model=self.settings.model, max_tokens=self.settings.max_output_tokens)
            answers = await _all([self._post(raw) for _ in range(k)])
            pairs = [self._read(lambda a=answer: choice_of(a, self.settings.model)) for answer in answers]
            return self._priced([choice for choice, _ in pairs], [usage for _, usage in pairs])
        wanted = self._wanted(request)
        if logprobs and self.settings.offers_logprobs:
            wanted |= {"logprobs": True, "top_logprobs": self.settings.top_logprobs}
        if logprobs:
            wanted["seed"] = seed % 2**31
        first = await self._post({**wanted, "n": k} if k > 1 and self.settings.offers_n else wanted)
        choices, usages = self._read(lambda: _choices(first))
        if len(choices) < k:  # the server does not know `n`, or answered with fewer
            more = [
                {**wanted, **({"seed": (wanted["seed"] + i) % 2**31} if "seed" in wanted else {})}
                for i in range(1, k - len(choices) + 1)
            ]
            for answer in await _all([self._post(one) for one in more]):
                others, used = self._read(lambda a=answer: _choices(a))
                choices, usages = choices + others[:1], usages + used
        return self._priced(choices[:k], usages)

    def _check_length(self, request: Request) -> None:
        if (tokens := request.tokens) > self.settings.context_tokens:
            raise UpstreamError(
                f"{self.name}: about {tokens} tokens do not fit its context of {self.settings.context_tokens}"
            )

    def _wanted(self, request: Request) -> Json:
        """The request as an OpenAI-style server takes it."""
        wanted = {**request.fields, "model": self.settings.model}
        if not request.plain:
            wanted["messages"] = [_public(message) for message in request.body()["messages"]]
        return wanted

    async def stream(self, request: Request) -> AsyncGenerator[Json, None]:
        """Chunks of one answer as they come; the last has the usage. Raises UpstreamError, also in the middle."""
        if not self.available:
            raise UpstreamError(f"{self.name} is not called for a while after {self._failures} failures in a row")
        self._check_length(request)
        wanted = self._wanted(request) | {"stream": True, "stream_options": {"include_usage": True}}
        ended, rest = False, b""
        try:
            async with self._gate, self._post_to(wanted) as response:
                self._count(str(response.status))
                if response.status != 200:
                    raise self._refusal(response.status, await response.read())
                async for piece in response.content.iter_any():
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in lines:
                        if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
                            chunk = msgspec.json.decode(data)
                            ended = ended or any(choice.get("finish_reason") for choice in chunk.get("choices") or [])
                            yield chunk
        except (aiohttp.ClientError, TimeoutError, ValueError, AttributeError) as error:
            self._failed("stream")
            raise UpstreamError(f"{self.name}: the stream broke ({type(error).__name__})") from None
        if not ended:
            self._failed("stream")
            raise UpstreamError(f"{self.name}: the stream ended too soon")
        self._failures = 0

    def priced(self, choice: Json, usage: Json) -> Draw:
        """One answer that was streamed."""
        return self._priced([choice], [usage])

    def _read(self, convert: Any) -> Any:
        try:
            return convert()
        except (KeyError, TypeError, ValueError, AttributeError):
            self._failed("garbage")
            raise UpstreamError(f"{self.name} answered with something that is not a completion") from None

    def _priced(self, choices: list[Json], usages: list[Json]) -> Draw:
        def total(key: str) -> int:
            return sum(int(usage.get(key) or 0) for usage in usages)

        cached = sum(int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0) for usage in usages)
        prompt, output = total("prompt_tokens"), total("completion_tokens")
        raw = {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        return Draw(choices, raw, Usage(1, prompt, output, self.usd(prompt, cached, output)))

    async def _post(self, body: Json) -> Json:
        problem, status = "", 502
        for attempt in range(self.settings.retries + 1):
            if not self.available:
                raise UpstreamError(f"{self.name} is not called for a while after {self._failures} failures in a row")
            wait = min(4.0, 0.25 * 2**attempt)
            try:
                async with self._gate, self._post_to(body) as response:
                    status, told = response.status, await response.read()
                self._count(str(status))
                if status == 200:
                    answer = msgspec.json.decode(told)
                    if isinstance(answer, dict):
                        self._failures = 0
                        return answer
                    raise ValueError
                problem = f"HTTP {status}"
                if status not in RETRIED:
                    raise self._refusal(status, told)
                from r2v.clients.chat import retry_after  # it imports httpx

                wait = retry_after(response.headers.get("retry-after"), wait, LONGEST_WAIT_S)
            except TimeoutError as error:
                problem, status = f"no answer in time ({type(error).__name__})", 504
                self._count("timeout")
            except aiohttp.ClientError as error:
                problem, status = f"connection failed ({type(error).__name__})", 502
                self._count("connection")
            except ValueError:
                problem, status = "an answer that is not JSON", 502
                self._count("garbage")
            self._failed(None)
            if attempt < self.settings.retries:
                await asyncio.sleep(wait)
        raise UpstreamError(f"{self.name}: {problem} after {attempt + 1} tries", status=429 if status == 429 else 502)

    def _refusal(self, status: int, body: bytes) -> UpstreamError:
        """What an answer means that no further try will change. A request that is too long for this model may do for the
        other one.
        """
        said = _error_of(body)
        fault = status in (400, 404, 413, 422) and not TOO_LONG.search(said)
        told = f"{self.name}: HTTP {status} {said}"
        return UpstreamError(told, status=status if fault else 502, clients_fault=fault)

    def _failed(self, code: str | None) -> None:
        if code is not None:
            self._count(code)
        self._failures += 1
        if self._failures >= self.settings.breaker_failures:
            self._closed_until = time.monotonic() + self.settings.breaker_s

    def _count(self, code: str) -> None:
        self.attempts[code] = self.attempts.get(code, 0) + 1


async def _all(calls: list[Any]) -> list[Any]:
    """All of them; one failure cancels the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _signed(request: Request, authors: Mapping[str, str]) -> list[Json]:
    """Messages with their thinking blocks marked with the model that wrote them: no other model is given them."""
    messages: list[Json] = request.body()["messages"]
    for message in messages:
        if blocks := message.get("thinking_blocks"):
            message["r2v_model"] = authors.get(str(blocks[0].get("signature")))
    return messages


def _public(message: Json) -> Json:
    return {key: value for key, value in message.items() if key not in PRIVATE}


def _choices(answer: Json) -> tuple[list[Json], list[Json]]:
    choices = answer["choices"]
    if not isinstance(choices, list) or not choices or not all(isinstance(c["message"], dict) for c in choices):
        raise ValueError
    return choices, [answer.get("usage") or {}]


def _error_of(body: bytes) -> str:
    """What the upstream said, short; it may be shown to the client who asked."""
    try:
        error = msgspec.json.decode(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:300]
    except (ValueError, KeyError, TypeError):
        return ""


def _proxy_of(url: str) -> str | None:
    """The proxy that the environment names for this address (HTTPS_PROXY, NO_PROXY)."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
