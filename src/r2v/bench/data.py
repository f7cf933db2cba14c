"""Where suites find their records."""

from __future__ import annotations

from pathlib import Path

from r2v.core.errors import SettingsError


def records(data: Path, name: str, source: str) -> Path:
    """The file `name` below `data`. Raises SettingsError with where it comes from, if it is not there."""
    path = data / name
    if not path.exists():
        raise SettingsError(f"{path} is not there; it is made of {source} (--data names the folder that holds {name})")
    return path
