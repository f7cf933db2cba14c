"""JSON objects in files of any usual shape: lines, lists, one object a file, a folder of these, packed or not."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from r2v.core.errors import ArtifactError
from r2v.core.untrusted import LOG_BYTES, MB, RECORD_BYTES, parsed_json, unpacked_lines

DAYS = "day=*"
"""Folders of an archive (`r2v.logs.archive`)."""

_log = logging.getLogger("r2v.logs")


def objects(path: Path, *, warn: bool = True) -> Iterator[tuple[str, Any]]:
    """(where, object) of every JSON object: lines of a file, elements of a list, files of a folder.

    A last line that is cut off, as a killed writer leaves it, is left out; it is warned of. Raises ArtifactError.
    """
    for file in files_of(path, ".json", ".jsonl"):
        if ".jsonl" in file.name:
            yield from _of_lines(file, warn)
            continue
        value = _whole(file)
        listed = value.get("simulations") if isinstance(value, dict) and "simulations" in value else value
        for number, entry in enumerate(listed if isinstance(listed, list) else [listed], start=1):
            yield f"{file}:{number}", entry


def _of_lines(file: Path, warn: bool) -> Iterator[tuple[str, Any]]:
    broken: ArtifactError | None = None
    read = 0
    for number, line in enumerate(lines_of(file), start=1):
        if not line.strip():
            continue
        if broken is not None:
            raise broken
        try:
            value = json_of(line, f"{file}:{number}")
        except ArtifactError as error:
            if not isinstance(error.__context__, json.JSONDecodeError):  # too deep, say: nothing that a cut does
                raise
            broken = error
            continue
        read += 1
        yield f"{file}:{number}", value
    if broken is not None and not read:
        raise broken
    if broken is not None and warn:
        _log.warning("1 record left out: the last line, %s", broken)


def _whole(file: Path) -> Any:
    """The value of a JSON file."""
    text = text_of(file)
    try:
        return json_of(text, str(file))
    except ArtifactError:
        first, _, more = text.partition("\n")
        with suppress(ValueError):
            if more.strip() and isinstance(parsed_json(first, exact=False), dict):
                raise ArtifactError(f"{file} holds JSON lines; give it a name that ends in .jsonl") from None
        raise


def files_of(path: Path, *endings: str) -> list[Path]:
    """The path itself, or the files with such endings (`.gz` and `.xz` may follow) below a folder. Raises ArtifactError."""
    if not path.exists():
        raise ArtifactError(f"{path} does not exist")
    if not path.is_dir():
        return [path]
    files = sorted(p for p in path.rglob("*") if p.is_file() and not set(endings).isdisjoint(p.suffixes))
    if not files:
        raise ArtifactError(f"{path} holds no {' or '.join(endings)} files")
    return files


def text_of(file: Path) -> str:
    """What a file holds, unpacked if it is packed. Raises ArtifactError."""
    lines, read = [], 0
    for line in lines_of(file):
        lines.append(line)
        if (read := read + len(line)) > LOG_BYTES:
            raise ArtifactError(f"{file} holds more than {LOG_BYTES // MB} MB in one value; write JSON lines instead")
    return "".join(lines)


def lines_of(file: Path) -> Iterator[str]:
    """The lines of a file one by one, unpacked if it is packed: it is never held as a whole. Raises ArtifactError."""
    try:
        # One JSON value may be one line.
        yield from unpacked_lines(file, RECORD_BYTES if ".jsonl" in file.name else LOG_BYTES)
    except FileNotFoundError:
        raise ArtifactError(f"{file} does not exist") from None


def json_of(text: str, where: str) -> Any:
    """Raises ArtifactError, which says where."""
    try:
        return parsed_json(text, exact=False)
    except ValueError as error:
        raise ArtifactError(f"{where} is not JSON ({error})") from None
