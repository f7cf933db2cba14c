"""The static bank of TwinRouterBench: what a router would see before a call, and the lowest tier that suffices there.

One JSON object a row (`question_bank.jsonl`): `id`, `benchmark`, `instance_id`, `step_index` from 1, `total_steps`,
`messages`, `target_tier`, `target_tier_id`, and `functions` where tools were offered; other fields are not read. As Parquet
the same columns, `messages` and `functions` as lists or as JSON text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2v.bench.twinrouter.published import TIERS
from r2v.core.errors import ArtifactError, SettingsError
from r2v.core.untrusted import parsed_json, unpacked_lines
from r2v.runtime.parquet import columns_of, rows_of

HUB = "Amorph/TwinRouterBench"
NEEDED = ("id", "benchmark", "step_index", "messages", "target_tier", "target_tier_id")
READ = (*NEEDED, "instance_id", "functions")
LINES = (".jsonl", ".jsonl.gz", ".jsonl.xz")
IN_FOLDER = ("question_bank.jsonl", "data/static/question_bank.jsonl", "data/train.parquet", "*.jsonl", "*.parquet")
"""Where a folder has it: the checkout of the repository or of the hub's dataset, or a single file."""


@dataclass(frozen=True, slots=True)
class Row:
    """One step of one instance."""

    id: str
    benchmark: str
    instance: str
    step: int
    messages: tuple[Mapping[str, Any], ...]
    functions: tuple[Mapping[str, Any], ...]
    gold: int
    """Id of the lowest tier that suffices."""


def read_bank(path: Path) -> list[Row]:
    """The rows of a file, of a folder that has one, or of the hub's dataset where `path` is its name and no such folder.

    Raises:
        SettingsError: there is nothing there, or the hub's dataset needs a package that is not installed.
        ArtifactError: a row is wrong, with its number.
    """
    rows: list[Row] = []
    seen: set[str] = set()
    where = _file(path)
    for number, raw in enumerate(_from_hub() if where is None else _from_file(where), 1):
        try:
            row = _row(raw)
            if row.id in seen:
                raise ValueError(f"the id {row.id} occurs twice")
        except (ValueError, TypeError) as error:
            raise ArtifactError(f"{where or HUB}, row {number}: {error}; get the bank again from {HUB}") from None
        seen.add(row.id)
        rows.append(row)
    if not rows:
        raise ArtifactError(f"{where or HUB} has no rows; get the bank again from {HUB}")
    return rows


def _file(path: Path) -> Path | None:
    """The file to read; None: the hub's dataset."""
    if path.is_file():
        return path
    found = [file for pattern in IN_FOLDER for file in sorted(path.glob(pattern))] if path.is_dir() else []
    if found:
        return found[0]
    if path.as_posix() == HUB and not path.exists():
        return None
    raise SettingsError(
        f"{path} has no question_bank.jsonl or Parquet file; give one, or write {HUB} to load it from the hub"
    )


def _from_file(path: Path) -> Iterator[Any]:
    if path.suffix == ".parquet":
        columns = columns_of(path)
        if missing := [name for name in NEEDED if name not in columns]:
            raise ArtifactError(f"{path} has no column {missing[0]} (it has {', '.join(columns)}); give the static bank")
        yield from rows_of(path, [name for name in READ if name in columns])
        return
    if not path.name.endswith(LINES):
        raise ArtifactError(f"{path} is neither Parquet nor JSON lines; give a file named {', '.join(LINES)} or .parquet")
    for number, line in enumerate(unpacked_lines(path), 1):
        if line.strip():
            try:
                yield parsed_json(line, exact=False)
            except ValueError as error:
                raise ArtifactError(
                    f"{path}, line {number}: it is no JSON ({error}); get the bank again from {HUB}"
                ) from None


def _from_hub() -> Iterable[Any]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise SettingsError(f"{HUB} is loaded with the package datasets; pip install 'r2v[datasets]'") from None
    try:
        rows: Iterable[Any] = load_dataset(HUB, split="train")
    except Exception as error:  # of any of the libraries below it
        text = " ".join(str(error).split())[:200]
        raise SettingsError(f"{HUB} cannot be loaded ({type(error).__name__}: {text}); give a downloaded copy") from None
    return rows


def _row(raw: Any) -> Row:
    """Raises ValueError, TypeError."""
    if not isinstance(raw, Mapping):
        raise ValueError("it is no JSON object")
    if missing := [name for name in NEEDED if raw.get(name) is None]:
        raise ValueError(f"it has no {missing[0]}")
    tier, gold, step = raw["target_tier"], raw["target_tier_id"], raw["step_index"]
    if tier not in TIERS or TIERS.index(tier) != gold:
        raise ValueError(
            f"target_tier {tier!r} and target_tier_id {gold!r} are not one of {', '.join(TIERS)} and its number"
        )
    if not isinstance(step, int) or isinstance(step, bool) or step < 1:
        raise ValueError(f"step_index {step!r} is no number from 1")
    messages = _objects(raw["messages"], "messages")
    if not messages:
        raise ValueError("it has no messages")
    instance = raw.get("instance_id")
    functions = _objects(raw.get("functions") or [], "functions")
    return Row(
        str(raw["id"]),
        str(raw["benchmark"]),
        str(raw["id"] if instance is None else instance),
        step,
        messages,
        functions,
        gold,
    )


def _objects(value: Any, name: str) -> tuple[Mapping[str, Any], ...]:
    """A list of objects, or one as JSON text. What a Parquet file fills in for absent keys is left out."""
    if isinstance(value, str):
        value = parsed_json(value, exact=False)
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise ValueError(f"{name} is no list of objects")
    return tuple({key: inner for key, inner in one.items() if inner is not None} for one in value)
