"""The task splits of a run, in `1-collect/tasks.json`: {"policy": [task, ...], "router": [...], ...}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from r2v.core.errors import ArtifactError
from r2v.core.types import Task
from r2v.runtime.store import read_json, write_json


def write_splits(path: Path, splits: Mapping[str, Sequence[Task]]) -> None:
    write_json(path, {name: [asdict(task) for task in tasks] for name, tasks in splits.items()})


def read_all(path: Path) -> tuple[Task, ...]:
    """The tasks of all splits."""
    return tuple(task for name in read_json(path) for task in read_split(path, name))


def read_split(path: Path, name: str) -> tuple[Task, ...]:
    """Raises ArtifactError when the file is damaged."""
    raw = read_json(path)
    try:
        return tuple(Task(**task) for task in raw[name])
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{path} has no readable split `{name}` ({error}); run the stage collect again") from None
