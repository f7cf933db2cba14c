"""Rows of the data set `yoonholee/terminalbench-trajectories`: 52,104 trials of 89 tasks of Terminal-Bench 2.0, which the
R2V paper's authors converted.

By that name, with `@SPLIT` if wanted (`...@train[:500]`), or Parquet or JSON lines with the columns task_name, agent, model,
reward, steps. `steps` is JSON: null, or a list of {"src": "user" | "agent" | "system", "msg": ..., "tools": [{"fn": ...,
"cmd": ...}] | null, "obs": ... | null}. A text like `$1a` stands for one that the data set does not hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from r2v.core.errors import ArtifactError, SettingsError
from r2v.core.untrusted import parsed_json
from r2v.logs import openai_jsonl
from r2v.logs.files import files_of, objects
from r2v.logs.records import Recorded, Records, has, turns
from r2v.messages.conversation import Json
from r2v.runtime.parquet import rows_of

TRIALS = "yoonholee/terminalbench-trajectories"
COLUMNS = ["task_name", "agent", "model", "reward", "steps"]
SHELLS = ("bash", "bash_command", "shell", "terminal", "execute", "run", "command", "cmd")
"""Names of tools whose argument is a command line."""
NOT_RECORDED = "(output not recorded)"
_POINTER = re.compile(r"\$[0-9a-f]+")
_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@(.+))?")


def trials(path: Path) -> Iterator[tuple[str, Json]]:
    """(where, row) of the trials in a file or folder, or in a data set of the Hugging Face hub, named OWNER/NAME[@SPLIT].

    Raises ArtifactError for files that cannot be read, SettingsError when the extra `datasets` is missing.
    """
    if path.exists():
        yield from _local_trials(path)
        return
    match = _NAME.fullmatch(str(path))
    if match is None:
        raise ArtifactError(f"{path} does not exist, and is not the name of a data set such as {TRIALS}")
    yield from hub_trials(match[1], match[2] or "train")


def hub_trials(name: str, split: str) -> Iterator[tuple[str, Json]]:
    """Rows of a data set by its name, through `datasets`. Raises SettingsError, ArtifactError."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise SettingsError(f"reading {name} by its name needs the extra `datasets`: pip install 'r2v[datasets]'") from None
    try:
        rows = load_dataset(name, split=split)
    except Exception as error:  # network, access, names, checksums: the library has no common base
        raise ArtifactError(f"data set {name}, split {split}, cannot be had ({' '.join(str(error).split())})") from None
    for number, row in enumerate(rows):
        yield f"{name}:{number}", row


def _local_trials(path: Path) -> Iterator[tuple[str, Json]]:
    for file in files_of(path, ".parquet", ".jsonl"):
        if file.suffix != ".parquet":
            yield from objects(file)
            continue
        for number, row in enumerate(rows_of(file, COLUMNS), start=1):
            yield f"{file}:{number}", row


def convert(row: Mapping[str, Any], where: str) -> Recorded:
    """One trial; without an outcome where its steps, or a command among them, were not recorded."""
    steps = parsed_json(row["steps"], exact=False) if isinstance(row["steps"], str) else row["steps"]
    goals = [step["msg"] for step in steps or [] if step["src"] == "user" and not _is_pointer(step["msg"])]
    goal = goals[0] if goals and goals[0] else row["task_name"]
    commands = [
        (_command(step["tools"]), _seen(step["obs"])) for step in steps or [] if step["src"] == "agent" and step["tools"]
    ]
    known = bool(commands) and all(command is not None for command, _ in commands)
    record: Json = {
        "task": row["task_name"],
        "model": f"{row['agent']}/{row['model']}",
        "messages": turns(goal, [(command or "", seen) for command, seen in commands]),
    }
    return openai_jsonl.convert(record | ({"reward": row["reward"]} if known else {}), where)


def _command(tools: Sequence[Mapping[str, Any]]) -> str | None:
    """All that was called in one step, a line each; None where it was not recorded."""
    lines = []
    for tool in tools:
        text = str(tool.get("cmd") or "")
        if _is_pointer(text):
            return None
        lines.append(text if tool["fn"].lower() in SHELLS else f"{tool['fn']} {text}".strip())
    return "\n".join(lines)


def _seen(text: str | None) -> str:
    return NOT_RECORDED if _is_pointer(text) else text or ""


def _is_pointer(text: str | None) -> bool:
    return text is not None and _POINTER.fullmatch(text) is not None


FORMAT = Records(
    "terminalbench", f"trials of Terminal-Bench: the data set {TRIALS} or its files", convert, trials, verifier="terminal",
    recognises=has(*COLUMNS),
)  # fmt: skip
