"""A cassette: the answers of chat models under what was asked, so that a slow model is asked each thing once.

slm: {model: {kind: chat, base_url: http://localhost:8000/v1, model: NAME, cassette: recorded/humaneval}}

Answers are read from `recorded/humaneval.jsonl.xz`, if there is one, and new ones written to `recorded/humaneval.sqlite` as
they come: a killed run loses those that were on their way. Routers, reruns, branches and processes share them; of two
answers to one question the first stays, and both askers get it. `pack` writes the first file from the second: with it
anyone plays the run again, bit for bit, without the models.
"""

from __future__ import annotations

import asyncio
import hashlib
import lzma
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from functools import lru_cache
from pathlib import Path

import msgspec

from r2v.clients.tokens import Tokens
from r2v.core.errors import ArtifactError, ModelError
from r2v.core.types import Usage
from r2v.core.untrusted import unpacked_lines
from r2v.messages.conversation import Json
from r2v.runtime.store import whole_file

WAIT_S = 60.0
"""For another process that writes."""
TABLE = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, question BLOB NOT NULL, recording BLOB NOT NULL)"
_encoder = msgspec.json.Encoder(order="sorted")


class Answer(msgspec.Struct, frozen=True):
    """One reply of a model."""

    message: Json
    logp: float | None
    """Sum over its tokens, in nats; None where the server returns no log-probabilities."""
    entropy: float | None
    """Of its first token, in nats."""


class Recording(msgspec.Struct, frozen=True):
    """What one question was answered with."""

    answers: list[Answer]
    usage: Usage
    """Of all answers together, priced as when they were recorded."""
    tokens: Tokens | None
    """The same with what came from a cache; None where the server does not count, or not in earnest."""


class Row(msgspec.Struct, frozen=True):
    """A line of a packed cassette."""

    question: Json
    recording: Recording


class Cassette:
    def __init__(self, path: Path) -> None:
        """`path`: of both files, without their suffixes. Raises ArtifactError where one of them is no cassette."""
        self._packed, self._file = packed(path), path.with_name(f"{path.name}.sqlite")
        self._known = _known(self._packed) if self._packed.exists() else {}
        self._opened: sqlite3.Connection | None = None
        self._asked: dict[str, asyncio.Task[Recording]] = {}

    async def recall(self, question: Json, ask: Callable[[], Awaitable[Recording]]) -> Recording:
        """What a question was answered with; a new one is put to the model.

        Args:
            question: all that the answer depends on: model, messages, sampling, number of answers, seed.
            ask: puts it to the model.

        Raises:
            ModelError: of `ask`.
            ArtifactError: the recorded answers cannot be read or written.
        """
        key = key_of(question)
        if (found := self._read(key)) is not None:
            return found
        if key not in self._asked:
            self._asked[key] = asyncio.create_task(self._record(key, question, ask))
        return await asyncio.shield(self._asked[key])

    async def _record(self, key: str, question: Json, ask: Callable[[], Awaitable[Recording]]) -> Recording:
        try:
            self._write([Row(question, await ask())])
        except ModelError as error:  # who plays a finished recording has no model, and wants to know which of the two it is
            error.args = (f"{error}; the cassette {self._file.with_suffix('')} holds no answer to this question",)
            raise
        finally:
            del self._asked[key]
        found = self._read(key)
        assert found is not None
        return found

    def _read(self, key: str) -> Recording | None:
        if key in self._known or (self._opened is None and not self._file.exists()):
            return self._known.get(key)
        row = self._db.execute("SELECT recording FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else msgspec.json.decode(row[0], type=Recording)

    def _write(self, rows: list[Row]) -> None:
        encoded = [(key_of(row.question), _encoder.encode(row.question), _encoder.encode(row.recording)) for row in rows]
        self._db.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", encoded)
        self._db.commit()

    @property
    def _db(self) -> sqlite3.Connection:
        if self._opened is None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._opened = sqlite3.connect(self._file, timeout=WAIT_S, check_same_thread=False)
                self._opened.execute("PRAGMA journal_mode = WAL")
                self._opened.execute(TABLE)
            except sqlite3.Error as error:
                raise ArtifactError(f"{self._file} is no cassette ({error}); move it away") from None
        return self._opened

    def pack(self) -> int:
        """Write all answers to the packed file; returns their number. Raises ArtifactError where there are none."""
        if not self._file.exists() and not self._packed.exists():
            raise ArtifactError(
                f"there is neither {self._file} nor {self._packed.name}; give the `cassette` of the settings"
            )
        rows = {key_of(row.question): row for row in rows_of(self._packed)} if self._packed.exists() else {}
        for question, recording in self._db.execute("SELECT question, recording FROM answers"):
            row = Row(msgspec.json.decode(question), msgspec.json.decode(recording, type=Recording))
            rows.setdefault(key_of(row.question), row)
        lines = sorted(_encoder.encode(row) for row in rows.values())  # alike questions beside each other pack well
        with whole_file(self._packed) as aside, lzma.open(aside, "wb", preset=9) as file:
            file.writelines(line + b"\n" for line in lines)
        return len(lines)


def key_of(question: Json) -> str:
    """Content address of a question."""
    return hashlib.sha256(_encoder.encode(question)).hexdigest()


def packed(path: Path) -> Path:
    """The packed file of a cassette."""
    return path.with_name(f"{path.name}.jsonl.xz")


@lru_cache(maxsize=2)
def _known(path: Path) -> dict[str, Recording]:
    return {key_of(row.question): row.recording for row in rows_of(path)}


def rows_of(path: Path) -> Iterator[Row]:
    """The rows of a packed cassette. Raises ArtifactError."""
    for number, line in enumerate(unpacked_lines(path), start=1):
        try:
            yield msgspec.json.decode(line, type=Row)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ArtifactError(f"{path}, line {number}, is no answer of a model ({error}); pack it again") from None
