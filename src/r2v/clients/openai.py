"""Any server with OpenAI's `/chat/completions`: vLLM, llama.cpp, Ollama, OpenAI and other hosted models."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from time import monotonic
from typing import Any

import msgspec

from r2v.clients.authors import mark_of
from r2v.clients.base import Client, ServerAnswer, all_of
from r2v.clients.server_errors import Refusal
from r2v.clients.settings import ClientSettings
from r2v.core.errors import ModelError
from r2v.messages.conversation import NULL, Json, Likelihood, Request, sent_id
from r2v.messages.openai_chat import StreamAccumulator
from r2v.messages.protocol import Piece, Reply
from r2v.runtime.slices import in_slices

PRIVATE = ("thinking_blocks", "reasoning_content")
"""Keys of messages that are for one model alone."""
ITS_OWN = re.compile(
    r"https://(([\w-]+\.)?api\.openai\.com|[^/]+\.(openai|services\.ai)\.azure\.com)(:443)?(/|$)", re.IGNORECASE
)
NEWER = re.compile(r"(.*[/.])?(o[1-9]|gpt-[5-9])(?![a-z0-9]).*", re.IGNORECASE)
"""Newer models, and those of these hosts, refuse `max_tokens`, the only name that many other servers do not overlook."""
OLD_LIMIT = re.compile(rb"max_tokens\W{1,3}is not supported")
"""How servers refuse that name."""
CHOICES = 128
"""Of one answer; r2v asks for at most 32."""
SEEDS = 2**31
"""Servers take seeds below this."""
AGAIN_S = 600.0
"""How long a field that was refused is left out: the refusal may have been for the sake of another field."""


class _Answer(msgspec.Struct):
    """What is read of an answer."""

    choices: list[dict[str, msgspec.Raw]]
    usage: dict[str, Any] | None = None


_answers = msgspec.json.Decoder(_Answer)
_log = logging.getLogger("r2v.clients")


@dataclass(frozen=True)
class _Extra:
    """What r2v adds to a request, and some servers refuse."""

    fields: tuple[str, ...]
    named: re.Pattern[bytes]
    """How they name it."""
    without: str
    """What comes of leaving it out."""
    setting: str
    """That leaves it out from the beginning."""


N = _Extra(
    ("n",),
    re.compile(rb"(?<![\w$])n(?![\w/-])|one completion choice|multiple (candidates|choices)", re.IGNORECASE),
    "each candidate is a request of its own",
    "offers_n: false",
)
LOGPROBS = _Extra(
    ("logprobs", "top_logprobs"),
    re.compile(rb"logprobs", re.IGNORECASE),
    "its answers have no log-probabilities",
    "offers_logprobs: false",
)


class OpenAIClient(Client):
    path = "/chat/completions"
    protocol = "chat"
    streams = True

    def __init__(self, settings: ClientSettings, name: str) -> None:
        super().__init__(settings, name)
        newer = ITS_OWN.match(settings.base_url) or NEWER.fullmatch(settings.model)
        found = settings.max_tokens_name
        self._limit: str = found if found != "auto" else "max_completion_tokens" if newer else "max_tokens"
        self._refused: dict[tuple[_Extra, tuple[bool, ...]], float] = {}
        """What the server has refused, and in which kind of request: until when (monotonic clock) it is left out."""
        self._warned: set[_Extra] = set()

    async def answers(
        self, request: Request, k: int, *, seed: int | None, logprobs: bool, authors: Mapping[str, str]
    ) -> list[ServerAnswer]:
        body, dropped = await in_slices(request.size, lambda: self._body(request, logprobs, authors))

        def single(i: int) -> Json:
            return body if seed is None else {**body, "seed": (seed + i) % SEEDS}

        drawn, answers = 0, []
        if k > 1 and self.settings.offers_n and monotonic() >= self._refused.get((N, _kind(body)), 0.0):
            answers = await self._all([{**single(0), "n": k}], request, dropped)
            drawn = len(answers[0].replies)  # a server that does not know `n`, or refuses it, answers with fewer
        first = int(bool(answers))
        try:
            others = await self._all([single(i) for i in range(first, first + k - drawn)], request, dropped)
        except ModelError as error:
            error.paid |= bool(answers)
            raise
        return answers + [ServerAnswer(other.replies[:1], other.usage) for other in others]

    async def stream(
        self, request: Request, *, logprobs: bool, authors: Mapping[str, str]
    ) -> AsyncGenerator[Piece | Reply, None]:
        body, dropped = await in_slices(request.size, lambda: self._body(request, logprobs, authors))
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        endpoint, answer, length = self.endpoint, StreamAccumulator(), 0
        async for chunk in self._chunks(body, request):
            endpoint.read(lambda chunk=chunk: answer.add(chunk))  # type: ignore[misc]
            piece = Piece(chunk, chunk)
            length += piece.length
            endpoint.check_text(length)
            yield piece
        if not answer.ended:
            raise endpoint.broken("the stream ended too soon")
        endpoint.succeeded()
        yield Reply(endpoint.read(lambda: answer.choice), answer.usage, self.protocol, None, dropped)

    async def _all(self, bodies: list[Json], request: Request, dropped: tuple[str, ...]) -> list[ServerAnswer]:
        def convert(read: tuple[Json, list[Likelihood]]) -> ServerAnswer:
            return _server_answer(read, dropped)

        return await all_of([self._posted(body, convert, request) for body in bodies])

    async def _posted(self, body: Json, convert: Callable[[Any], ServerAnswer], request: Request) -> ServerAnswer:
        sent = self._offered(body, request)
        while True:
            try:
                found = await self.endpoint.answer(sent, convert, decode=self.decoded, size=request.size)
            except Refusal as error:
                sent = self._mended(sent, request, error)
            else:
                self._remember(body, sent, request)
                return found

    async def _chunks(self, body: Json, request: Request) -> AsyncGenerator[Json, None]:
        sent = self._offered(body, request)
        while True:
            try:
                async for chunk in self.endpoint.events(sent, size=request.size):
                    yield chunk
            except Refusal as error:
                sent = self._mended(sent, request, error)
            else:
                self._remember(body, sent, request)
                return

    def _offered(self, body: Json, request: Request) -> Json:
        """A request without what its server has refused a while ago. After that while one request tries it again, and the
        others do without until it has been answered: a server that always refuses is asked in vain once in a while.
        """
        now = monotonic()
        for extra in _added(body, request):
            key = extra, _kind(body)
            if key not in self._refused:
                continue
            if now < self._refused[key]:
                body = _without(body, extra)
            else:
                self._refused[key] = now + AGAIN_S
        return body

    def _mended(self, body: Json, request: Request, error: Refusal) -> Json:
        """A request that was refused, without one thing that its server's words name, or with the name of its limit that the
        server asks for; raises the error where there is none. Each can be mended three times at most.
        """
        named = [(words.start(), extra) for extra in _added(body, request) if (words := error.says(extra.named))]
        if named:  # some servers repeat the request after their words: what comes first is meant
            return _without(body, min(named, key=itemgetter(0))[1])
        if self.settings.max_tokens_name == "auto" and "max_tokens" in body and error.says(OLD_LIMIT):
            self._limit = "max_completion_tokens"
        if not error.clients_fault or self._limit in body or "max_tokens" not in body:
            raise error
        return {key: value for key, value in body.items() if key != "max_tokens"} | {self._limit: body["max_tokens"]}

    def _remember(self, body: Json, sent: Json, request: Request) -> None:
        """What an answered request lacks of what was to be sent is left out of requests of its kind for a while; what it
        has is not.
        """
        for extra in _added(body, request):
            key, field = (extra, _kind(body)), extra.fields[0]
            if field in sent:
                self._refused.pop(key, None)
            elif (now := monotonic()) >= self._refused.get(key, 0.0):
                self._refused[key] = now + AGAIN_S
                if extra not in self._warned:
                    self._warned.add(extra)
                    _log.warning(
                        "%s: the server refuses `%s`, so that %s; put `%s` into the settings of the model",
                        self.name, field, extra.without, extra.setting,
                    )  # fmt: skip

    def decoded(self, content: bytes) -> tuple[Any, list[Likelihood]]:
        """(an answer, what the log-probabilities of each choice say): they are most of it, and stay unread otherwise."""
        endpoint = self.endpoint
        try:
            found = _answers.decode(content)
        except (ValueError, RecursionError):
            return endpoint.json(content), []
        if len(choices := found.choices) > CHOICES:
            raise endpoint.too_large(f"{CHOICES} choices")
        endpoint.check_text(sum(len(bytes(one)) for choice in choices for key, one in choice.items() if key != "logprobs"))
        read = [
            {key: one if key == "logprobs" else endpoint.parsed(one) for key, one in choice.items()} for choice in choices
        ]
        for choice in read:
            if choice.get("logprobs") == NULL:
                choice["logprobs"] = None
        answer = {"choices": read, "usage": found.usage}
        return answer, [Likelihood.of(choice, self.settings.vocabulary) for choice in read]

    def _body(self, request: Request, logprobs: bool, authors: Mapping[str, str]) -> tuple[Json, tuple[str, ...]]:
        """(the request as such a server takes it, what it lacks of the client's)."""
        s, body, dropped = self.settings, Json(request.fields, model=self.settings.model), request.dropped
        if not request.plain or s.keeps_reasoning:
            messages = request.body()["messages"]
            body["messages"] = [self._with_reasoning(message, _sendable(message), authors) for message in messages]
            if any(map(_lost, messages, body["messages"])):
                dropped = (*dropped, "reasoning_content")
        if "max_tokens" in body:
            body[self._limit] = body.pop("max_tokens")
        if logprobs and s.offers_logprobs and not request.logprobs:
            body |= {"logprobs": True, "top_logprobs": s.top_logprobs}
        return body, dropped

    def _with_reasoning(self, message: Json, sent: Json, authors: Mapping[str, str]) -> Json:
        """A message as it is sent, with its reasoning where this model is to have it."""
        if not self.settings.keeps_reasoning:
            return sent
        mark = mark_of({"reasoning_content": message.get("reasoning_content")})
        if mark is not None and authors.get(mark, self.settings.model) == self.settings.model:
            return {**sent, "reasoning_content": message["reasoning_content"]}
        return {**sent, "reasoning_content": ""} if message.get("tool_calls") else sent


def _kind(body: Json) -> tuple[bool, ...]:
    """Of requests: vLLM refuses `n` where the temperature is 0, llama.cpp log-probabilities in a stream with tools."""
    return bytes(body.get("temperature", b"")) in (b"0", b"0.0"), "stream" in body, "tools" in body


def _added(body: Json, request: Request) -> list[_Extra]:
    """What of a request its client has not asked for."""
    extras = (N,) if request.logprobs else (N, LOGPROBS)
    return [extra for extra in extras if extra.fields[0] in body]


def _without(body: Json, extra: _Extra) -> Json:
    return {key: value for key, value in body.items() if key not in extra.fields}


def _lost(message: Json, sent: Json) -> bool:
    """Whether the reasoning of a message is not sent."""
    return bool(message.get("reasoning_content")) and not sent.get("reasoning_content")


def _sendable(message: Json) -> Json:
    """A message without what is for one model alone, and with ids that are not too long."""
    found = {key: value for key, value in message.items() if key not in PRIVATE}
    if found.get("tool_call_id"):
        found["tool_call_id"] = sent_id(found["tool_call_id"])
    if found.get("tool_calls"):
        found["tool_calls"] = [{**call, "id": sent_id(call.get("id"))} for call in found["tool_calls"]]
    return found


def _server_answer(read: tuple[Json, list[Likelihood]], dropped: tuple[str, ...]) -> ServerAnswer:
    """Raises KeyError, TypeError or ValueError for what is not a completion."""
    answer, likelihoods = read
    choices, usage = answer["choices"], answer.get("usage") or {}
    listed = sum(likely.tokens for likely in likelihoods)
    if isinstance(usage, dict) and isinstance(said := usage.get("completion_tokens"), int) and 0 <= said < listed:
        usage = {**usage, "completion_tokens": listed}  # llama.cpp counts one of several choices
    if not isinstance(choices, list) or not choices or not isinstance(usage, dict):
        raise ValueError
    for choice in choices:
        message = choice["message"]
        if not isinstance(message, dict) or not isinstance(message.get("content"), str | list | None):
            raise ValueError
        for key in ("tool_calls", "thinking_blocks"):
            if not isinstance(message.get(key), list | None) or not all(isinstance(o, dict) for o in message.get(key) or ()):
                raise ValueError
    if len(choices) == 1:
        (likely,) = likelihoods
        return ServerAnswer([Reply(choices[0], usage, "chat", None, dropped, likely)], usage)
    shares = _shares(choices, likelihoods, usage)
    replies = [
        Reply(choice, share, "chat", None, dropped, likely)
        for choice, share, likely in zip(choices, shares, likelihoods, strict=True)
    ]
    return ServerAnswer(replies, usage)


def _shares(choices: list[Json], likelihoods: list[Likelihood], usage: Json) -> list[Json]:
    """The usage of each of several answers to one request: the server counts the prompt once and the answers together. The
    tokens of one are those that it lists with their log-probabilities; without them its part of what all answers wrote.
    """
    prompt, output = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    own = [likely.tokens for likely in likelihoods]
    if not all(own):
        lengths = [
            1 + len(str(one["message"].get("content"))) + len(str(one["message"].get("tool_calls"))) for one in choices
        ]
        own = [tokens or round(output * length / sum(lengths)) for tokens, length in zip(own, lengths, strict=True)]
    return [{**usage, "completion_tokens": one, "total_tokens": prompt + one} for one in own]
