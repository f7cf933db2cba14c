"""Which format the logs at a path are in, by looking at them: so that a command needs no `--format`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from r2v.core.errors import ArtifactError
from r2v.core.untrusted import opened
from r2v.gateway.postgres_url import is_postgres
from r2v.logs import BUILT_IN
from r2v.logs.atif import WHOLE
from r2v.logs.files import files_of, lines_of, objects
from r2v.logs.importing import log_format
from r2v.logs.ledger import is_archive
from r2v.logs.terminalbench import COLUMNS, TRIALS
from r2v.runtime import plugins
from r2v.runtime.parquet import columns_of

LOOKED_AT = 5
"""Records of a file that must all be of the format."""
SHOWN = 12
"""Keys that an error names."""
SQLITE, PARQUET = b"SQLite format 3\0", b"PAR1"


def detect(path: Path) -> str:
    """The name of the format of the logs at a path.

    Args:
        path: a ledger, Parquet, JSON, JSON lines, text logs, a folder of these, or the name of Terminal-Bench's data set.

    Raises:
        ArtifactError: it does not exist, or is in none of the formats; the line says what was seen instead.
    """
    if is_postgres(path.as_posix()):
        return "ledger"
    if not path.exists():
        if str(path).split("@")[0] == TRIALS:
            return "terminalbench"
        raise ArtifactError(f"{path} does not exist")
    if is_archive(path):
        return "ledger"
    if (path / "settings.yaml").is_file() and (path / "1-collect").is_dir():
        raise ArtifactError(f"{path} is a run; give {path / '6-rollout' / 'router.parquet'}, what its SLM played")
    if path.is_dir() and next(path.rglob(WHOLE), None) is not None:
        return "atif"
    first = files_of(path, ".json", ".jsonl", ".parquet", ".log", ".txt", ".db")[0]
    with opened(first) as stream:
        start = stream.read(len(SQLITE))
    if start == SQLITE:
        return "ledger"
    if start.startswith(PARQUET):
        return _of_parquet(first)
    if first.suffix == ".parquet":
        raise ArtifactError(f"{first} is no Parquet file; write it again")
    if {".log", ".txt"} & set(first.suffixes) and _is_text_log(first):
        return "terminal-log"
    return _of_records(path if path.is_file() else first)


def _of_records(path: Path) -> str:
    records = [raw for _, raw in islice(objects(path), LOOKED_AT)]
    if not records:
        raise ArtifactError(f"{path} holds no records")
    found = set()
    for raw in records:
        name = next((name for name, recognises in _recognisers() if _tried(recognises, raw)), None)
        if name is None:
            raise ArtifactError(f"{path} is in no format that is known; a record {_shape(raw)}; {_MEND}")
        found.add(name)
    if found == {"openai-jsonl", "anthropic-jsonl"}:
        return "anthropic-jsonl"  # a chat of plain words alone looks the same in both
    if len(found) > 1:
        raise ArtifactError(f"{path} holds records of several formats ({', '.join(sorted(found))}); name one (--format)")
    return found.pop()


@cache
def _recognisers() -> list[tuple[str, Callable[[Any], bool]]]:
    """Those of other packages first: they know their own records, which may look like those of a built-in format."""
    every = plugins.names("log_formats", BUILT_IN)
    ordered = [*(name for name in every if name not in BUILT_IN), *BUILT_IN]
    having = [(name, getattr(log_format(name), "recognises", None)) for name in ordered]
    return [(name, recognises) for name, recognises in having if recognises is not None]


def _tried(recognises: Callable[[Any], bool], raw: Any) -> bool:
    """Records may have any shape: what breaks on one does not recognise it."""
    try:
        return recognises(raw)
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


_MEND = (
    "name it (--format), or say where its parts lie "
    "(--map task=..., --map success=..., --map messages=..., and --map model=... of several)"
)


def _shape(raw: Any) -> str:
    if not isinstance(raw, Mapping):
        return f"is no object but {type(raw).__name__}"
    keys = [str(key) for key in raw]
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"has the keys {', '.join(keys[:SHOWN])}{more}" if keys else "has no keys"


def _of_parquet(file: Path) -> str:
    columns = columns_of(file)
    if "record" in columns:
        return "episodes"
    if set(columns) >= set(COLUMNS):
        return "terminalbench"
    seen = ", ".join(columns[:SHOWN])
    raise ArtifactError(f"{file} is in no format that is known; it has the columns {seen}; name it (--format)")


def _is_text_log(file: Path) -> bool:
    """Whether it begins with lines of `# key: value`, the goal among them."""
    for line in lines_of(file):
        if line.startswith("# goal:"):
            return True
        if not line.startswith("#"):
            break
    return False
