"""Episodes and JSON on disk: whole files or none, with a schema version, read back with their types checked.

An episode file is Parquet, one row an episode. The scalar columns can be queried with any Parquet tool; the column
`record` holds the whole episode as JSON, e.g.

    {"task":{"id":"household/pick_two_obj_and_place/000007",...},"seed":3,"perturbation":"flaky","steps":[...],...}
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from r2v.core.errors import ArtifactError
from r2v.core.types import Episode
from r2v.runtime.upgrade import upgraded_episode

SCHEMA_VERSION = "2"

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Episode)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write to the yielded path; on success it is flushed to disk and takes `path`'s place, on error it disappears."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
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
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist; run the stage that writes it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not valid JSON ({error}); delete it and run its stage again") from None


def encode(episode: Episode) -> bytes:
    """One episode as JSON bytes."""
    return _encoder.encode(episode)


def decode(record: bytes) -> Episode:
    """The inverse of `encode`; raises msgspec.ValidationError naming the field that is wrong."""
    return _decoder.decode(record)


def write_episodes(path: Path, episodes: Sequence[Episode]) -> None:
    import pyarrow as pa  # here, because serving and deciding do without it
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "task": [episode.task.id for episode in episodes],
            "family": [episode.task.family for episode in episodes],
            "seed": pa.array([episode.seed for episode in episodes], pa.int64()),
            "perturbation": [episode.perturbation for episode in episodes],
            "agent": [episode.agent for episode in episodes],
            "steps": pa.array([len(episode.steps) for episode in episodes], pa.int64()),
            "success": pa.array([episode.success for episode in episodes], pa.bool_()),
            "record": pa.array([encode(episode).decode() for episode in episodes], pa.string()),
        }
    ).replace_schema_metadata({"r2v_schema": SCHEMA_VERSION})
    with whole_file(path) as aside:
        pq.write_table(table, aside, compression="zstd", row_group_size=512)


def read_episodes(path: Path) -> list[Episode]:
    """Reads schema 1, too. Raises ArtifactError when the file is missing, corrupt, or of another schema version."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist; run the stage that writes it") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(f"{path} is corrupt ({str(error).splitlines()[0]}); delete it and run its stage again") from None
    version = (table.schema.metadata or {}).get(b"r2v_schema", b"?").decode()
    if version not in ("1", SCHEMA_VERSION):
        raise ArtifactError(f"{path} has episode schema {version}, this r2v reads {SCHEMA_VERSION}; run its stage again")
    try:
        records = table.column("record").to_pylist()
        if version == "1":
            return [msgspec.convert(upgraded_episode(json.loads(record)), Episode) for record in records]
        return [decode(record) for record in records]
    except msgspec.DecodeError as error:
        raise ArtifactError(f"{path} holds a malformed episode ({error}); delete it and run its stage again") from None


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
