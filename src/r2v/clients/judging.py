"""A model that is asked to judge what an agent did: each question once, its answers kept on disk, and what they cost.

What it says becomes a probability by calibration on outcomes that are known (`fit_calibration`).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from r2v.clients import make_client
from r2v.clients.settings import JudgeModelSettings
from r2v.core.mlp import Calibration
from r2v.core.types import Usage
from r2v.core.untrusted import MB, read_bytes
from r2v.maths import Floats
from r2v.maths.calibration import fit_isotonic, fit_scaling
from r2v.maths.calibration import log_odds as probability_log_odds
from r2v.messages.conversation import Json, parse, text_of

CALIBRATIONS = Literal["platt", "isotonic"]
CLOSING = re.compile(r"<(?=\s*/?\s*record)", re.IGNORECASE)
_log = logging.getLogger("r2v.judge")


class Answer(msgspec.Struct, frozen=True):
    """What a judge said, and what that cost."""

    answer: str
    usd: float
    model: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    @property
    def usage(self) -> Usage:
        return Usage(1, self.prompt_tokens, self.completion_tokens, self.usd)


class Judge:
    """A model, and the folder of its answers by the hash of what was asked: no question is paid for twice."""

    def __init__(self, settings: JudgeModelSettings, cache: Path, name: str) -> None:
        """Raises SettingsError where the provider is unknown, or the environment variable of the key is not set."""
        self.settings, self.cache, self.name = settings, cache, name
        self.client = make_client(settings, name)
        self.usd = 0.0
        """What was paid by this object; answers of the cache cost nothing."""
        self._asking: dict[Path, asyncio.Task[Answer]] = {}

    async def ask(self, system: str, record: str, max_tokens: int = 1024, schema: Json | None = None) -> Answer:
        """Its answer at temperature 0, from the cache where it was asked before.

        Args:
            system: what is asked of it.
            record: what it is to judge, which others wrote: it stands between <record> and </record>, which it cannot close.
            max_tokens: of the answer.
            schema: JSON schema that the server is asked to hold the answer to.

        Raises:
            ModelError: the model does not answer.
        """
        asked = self.request(system, record, max_tokens, schema)
        kept = self.cache / f"{self.hash_of(asked['messages'] if schema is None else [asked['messages'], schema])}.json"
        try:
            return msgspec.json.decode(read_bytes(kept, MB), type=Answer)
        except (OSError, ValueError):
            pass
        if kept not in self._asking:  # of equal questions at the same time, one is asked
            self._asking[kept] = asyncio.ensure_future(self._answer(asked, kept))
            self._asking[kept].add_done_callback(lambda _: self._asking.pop(kept))
        return await asyncio.shield(self._asking[kept])

    def request(self, system: str, record: str, max_tokens: int, schema: Json | None = None) -> Json:
        """What is sent for a question; see `ask`."""
        record = CLOSING.sub("&lt;", record)
        words = [{"role": "system", "content": system}, {"role": "user", "content": f"<record>\n{record}\n</record>"}]
        asked: Json = {"messages": words, "max_tokens": min(max_tokens, self.settings.max_output_tokens), "temperature": 0}
        if schema is not None:
            form = {"name": "answer", "strict": True, "schema": schema}
            asked["response_format"] = {"type": "json_schema", "json_schema": form}
        return asked

    def most(self, asked: Json) -> Usage:
        """What the answer to a `request` costs at most, for one try."""
        tokens, usd = self.client.bound(parse(msgspec.json.encode(asked)), 1)
        return Usage(1, tokens - asked["max_tokens"], asked["max_tokens"], usd)

    async def _answer(self, asked: Json, kept: Path) -> Answer:
        request = parse(msgspec.json.encode(asked))
        draw = await self.client.draw(request, 1)
        usd = self.client.usd(draw.tokens) + self.client.bound(request, draw.unknown)[1]  # unknown: what it may have cost
        self.usd += usd
        said = text_of(draw.replies[0].choice["message"].get("content"))
        used = draw.usage
        answer = Answer(said, usd, self.settings.model, used.prompt_tokens, used.completion_tokens)
        self.keep(kept, answer)
        return answer

    def hash_of(self, value: Any) -> str:
        """Of a question to this model."""
        asked = msgspec.json.encode([self.settings.provider, self.settings.base_url, self.settings.model, value])
        return hashlib.sha256(asked).hexdigest()[:40]

    def keep(self, path: Path, value: Any) -> None:
        """Write a file of the cache, whole or not at all; what cannot be kept is asked again another time."""
        aside = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(msgspec.json.encode(value))
            os.replace(aside, path)
        except OSError as error:
            _log.warning("%s: %s cannot be written (%s)", self.name, path.parent, error.strerror)

    async def close(self) -> None:
        """Close the connections to the model."""
        await self.client.close()


def fit_calibration(said: Sequence[float], success: Sequence[bool], how: CALIBRATIONS) -> Calibration:
    """What turns the number that a judge says (`log_odds`) into P(success), from numbers whose outcome is known."""
    said_N, y_N = np.array(said), np.array(success, dtype=float)
    if how == "platt":
        return Calibration(*fit_scaling(log_odds(said_N), y_N, with_bias=True))
    x, y = fit_isotonic(said_N, y_N)
    return Calibration(x=tuple(x.tolist()), y=tuple(y.tolist()))


def log_odds(said: Sequence[float] | Floats) -> Floats:
    """Of the numbers that a judge says, which may be 0 and 1."""
    return probability_log_odds(np.asarray(said), 1e-3)
