"""Episodes and JSON on disk: whole files or none, with a schema version, read back with their types checked.

An episode file is Parquet, one row an episode. The scalar columns can be queried with any Parquet tool; the column
`record` holds the whole episode as JSON, e.g.

    {"task":{"id":"household/pick_two_obj_and_place/000007",...},"seed":3,"perturbation":"flaky","steps":[...],...}
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from r2v.core import untrusted
from r2v.core.errors import ArtifactError
from r2v.core.features import FEATURES
from r2v.core.types import Episode, Step
from r2v.runtime.upgrade import upgraded_episode

SCHEMA_VERSION = "2"

MALFORMED = (msgspec.MsgspecError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What a record that r2v did not write raises where it is decoded."""

ROW_GROUP = 512
VALUES, VALUES_PER_BYTE = 10_000_000, 4
"""Values that a file of episodes may hold: so many, or so many for each of its bytes; those of real sessions differ, so that
a byte holds one at most.
"""

ASIDE = re.compile(r"\..+\.[0-9a-f]{8}")
"""Names of what `whole_file` writes to; a killed process leaves it."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Episode)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write to the yielded path; on success it is flushed to disk and takes `path`'s place, on error it disappears.

    Raises ArtifactError, before anything is written, where no file can be made at `path`.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        if path.is_dir():
            raise ArtifactError(f"{path} is a folder; choose another path")
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.touch()
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise ArtifactError(f"{path} cannot be opened or written ({error.strerror}); choose another path") from None
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, keys in the order given; NaN and infinities are refused (they are not JSON)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises ArtifactError when the file is missing or is not JSON."""
    try:
        return untrusted.read_json(path)
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist; run the stage that writes it") from None
    except ValueError as error:
        raise ArtifactError(f"{path} is not valid JSON ({error}); delete it and run its stage again") from None


def encode(episode: Episode) -> bytes:
    """One episode as JSON bytes."""
    return _encoder.encode(episode)


def decode(record: bytes) -> Episode:
    """The inverse of `encode`; raises msgspec.ValidationError naming the field that is wrong."""
    return _decoder.decode(record)


def write_episodes(path: Path, episodes: Iterable[Episode]) -> int:
    """Write them one row group after the other, so that as many as come are not held.

    Returns:
        How many there were.
    """
    import pyarrow as pa  # here, because serving and deciding do without it
    import pyarrow.parquet as pq

    kinds = {
        "task": pa.string(), "family": pa.string(), "seed": pa.int64(), "perturbation": pa.string(), "agent": pa.string(),
        "steps": pa.int64(), "success": pa.bool_(), "record": pa.string(),
    }  # fmt: skip
    schema, count, left = pa.schema(kinds, {"r2v_schema": SCHEMA_VERSION}), 0, iter(episodes)
    with whole_file(path) as aside, pq.ParquetWriter(aside, schema, compression="zstd") as writer:
        while group := list(islice(left, ROW_GROUP)):
            values = (
                [episode.task.id for episode in group], [episode.task.family for episode in group],
                [episode.seed for episode in group], [episode.perturbation for episode in group],
                [episode.agent for episode in group], [len(episode.steps) for episode in group],
                [episode.success for episode in group], [encode(episode).decode() for episode in group],
            )  # fmt: skip
            writer.write_table(pa.table(dict(zip(kinds, values, strict=True)), schema=schema))
            count += len(group)
    return count


def read_episodes(path: Path) -> list[Episode]:
    """Reads schema 1, too. Raises ArtifactError when the file is missing, corrupt, or of another schema version."""
    from r2v.runtime.parquet import marks_of, rows_of  # here, because serving does without it

    try:
        version = marks_of(path).get(b"r2v_schema", b"?").decode(errors="replace")
        if version not in ("1", SCHEMA_VERSION):
            raise ArtifactError(f"{path} has episode schema {version}, this r2v reads {SCHEMA_VERSION}; run its stage again")
        found, values, most = [], 0, max(VALUES, VALUES_PER_BYTE * path.stat().st_size)
        for row in rows_of(path, ["record"]):
            values += str(row["record"]).count(",")
            if values > most:
                raise ArtifactError(f"{path} holds more than {most} values, the most that r2v takes from a file of its size")
            found.append(_episode(row["record"], version))
        return found
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist; run the stage that writes it") from None
    except MALFORMED as error:
        raise ArtifactError(f"{path} holds a malformed episode ({error}); delete it and run its stage again") from None


def _episode(record: Any, version: str) -> Episode:
    if version == "1":
        episode = msgspec.convert(upgraded_episode(untrusted.parsed_json(record)), Episode)
    else:
        episode = decode(record)
    for step in episode.steps:
        check_step(step)
    return episode


def check_step(step: Step) -> None:
    """Raises ValueError where the parts of a step that was read do not fit together."""
    choice = step.choice
    if choice.features is not None and not len(choice.features.values) == len(choice.features.present) == len(FEATURES):
        raise ValueError(f"{len(choice.features.values)} features of a step where r2v has {len(FEATURES)}")
    if choice.scores and len(choice.scores) != len(choice.candidates):
        raise ValueError(f"{len(choice.scores)} scores of {len(choice.candidates)} candidates")


def sha256(path: Path) -> str:
    """Hash of a file, or of a folder's files with their names."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            if path.is_dir():
                digest.update(str(file.relative_to(path)).encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
