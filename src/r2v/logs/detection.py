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
from r2v.logs.atif import WHOLE
from r2v.logs.files import files_of, lines_of, objects
from r2v.logs.importing import log_formats
from r2v.logs.ledger import is_archive
from r2v.logs.records import kind_of
from r2v.logs.terminalbench import COLUMNS, TRIALS
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
    files = files_of(path, ".json", ".jsonl", ".parquet", ".log", ".txt", ".db")
    if len(files) > 1:  # formats of JSON read no other text beside it, as a README.txt
        files = [file for file in files if not _is_text(file) or _is_text_log(file)] or files
    found: dict[str, Path] = {}
    strange: ArtifactError | None = None
    for file in files:
        try:
            names = _of_file(file)
        except ArtifactError as error:
            strange = strange or error
            continue
        for name in names:
            found.setdefault(name, file)
    if strange is not None and found.keys() != {"terminal-log"}:  # text logs are read without the JSON beside them
        raise ArtifactError(f"{strange}{'; if it is no log, take it out of the folder' if path.is_dir() else ''}")
    if found.keys() == {"openai-jsonl", "anthropic-jsonl"}:
        return "anthropic-jsonl"  # a chat of plain words alone looks the same in both
    if len(found) > 1:
        listed = ", ".join(name if len(files) == 1 else f"{found[name]}: {name}" for name in sorted(found))
        raise ArtifactError(f"{path} holds records of several formats ({listed}); name one (--format)")
    if not found:
        raise ArtifactError(f"{path} holds no records")
    return next(iter(found))


def _of_file(file: Path) -> set[str]:
    """The formats of the first records of a file; of a folder, what follows in each is checked where it is read."""
    with opened(file) as stream:
        start = stream.read(len(SQLITE))
    if start == SQLITE:
        return {"ledger"}
    if start.startswith(PARQUET):
        return {_of_parquet(file)}
    if file.suffix == ".parquet":
        raise ArtifactError(f"{file} is no Parquet file; write it again")
    if _is_text(file) and _is_text_log(file):
        return {"terminal-log"}
    return _of_records(file)


def _of_records(file: Path) -> set[str]:
    found = set()
    for where, raw in islice(objects(file, warn=False), LOOKED_AT):
        name = next((name for name, recognises in _recognisers() if _tried(recognises, raw)), None)
        if name is None:
            raise ArtifactError(f"{where} is in no format that is known; a record {_shape(raw)}; {_MEND}")
        found.add(name)
    return found


@cache
def _recognisers() -> list[tuple[str, Callable[[Any], bool]]]:
    """Those of other packages first: they know their own records, which may look like those of a built-in format."""
    having = [(name, getattr(found, "recognises", None)) for name, found in log_formats()]
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
        return f"is {kind_of(raw)}, no object"
    keys = [str(key) for key in raw]
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    wrong = f"; {problem}" if "messages" in raw and (problem := _wrong_in(raw["messages"])) else ""
    return f"has the keys {', '.join(keys[:SHOWN])}{more}{wrong}" if keys else "has no keys"


def _wrong_in(messages: Any) -> str | None:
    """Why `messages` are no chat."""
    if not isinstance(messages, list):
        return f"`messages` is {kind_of(messages)}, no array"
    if not messages:
        return "`messages` is empty"
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping):
            return f"its message {number} is {kind_of(message)}, no object"
        if "role" not in message:
            return f"its message {number} has no `role`"
    return None


def _of_parquet(file: Path) -> str:
    columns = columns_of(file)
    if "record" in columns:
        return "episodes"
    if set(columns) >= set(COLUMNS):
        return "terminalbench"
    seen = ", ".join(columns[:SHOWN])
    raise ArtifactError(f"{file} is in no format that is known; it has the columns {seen}; name it (--format)")


def _is_text(file: Path) -> bool:
    return not {".log", ".txt"}.isdisjoint(file.suffixes)


def _is_text_log(file: Path) -> bool:
    """Whether it begins with lines of `# key: value`, the goal among them."""
    for line in lines_of(file):
        if line.startswith("# goal:"):
            return True
        if not line.startswith("#"):
            break
    return False
