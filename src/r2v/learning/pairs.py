"""Preference pairs on disk: [{"episode": 12, "t": 3, "chosen": "open drawer 1", "rejected": "look"}, ...]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from r2v.core.errors import ArtifactError
from r2v.runtime.store import read_json, write_json


@dataclass(frozen=True)
class PreferencePair:
    episode: int
    """Index into the episodes that the pairs belong to."""
    t: int
    chosen: str
    rejected: str


def write_pairs(path: Path, pairs: Sequence[PreferencePair]) -> None:
    write_json(path, [asdict(pair) for pair in pairs])


def read_pairs(path: Path) -> list[PreferencePair]:
    """Raises ArtifactError when the file is missing or malformed."""
    try:
        return [PreferencePair(**raw) for raw in read_json(path)]
    except TypeError as error:
        raise ArtifactError(f"{path} holds a malformed pair ({error}); run the stage propose again") from None
