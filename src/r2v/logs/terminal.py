"""Recorded terminal work of other programs, brought into the form of `openai-jsonl` records (see `importing`).

terminal-log    text files, one an episode:

    # task: broken-build
    # model: some-model
    # success: no
    # goal: `make` fails in this project. Mend it.
    $ make
    gcc -c main.c
    $ cat > note.txt <<E
    > first line
    > E
    $ submit

    Lines of `# key: value` come first (goal and success are wanted, or reward in place of success). A command begins
    with "$ ", its further lines with "> "; everything up to the next command is its output. An output line that itself
    begins with "$ " or "> " is written with a backslash before it.

terminalbench   rows of the data set `yoonholee/terminalbench-trajectories` (52,104 trials of 89 tasks of Terminal-Bench 2.0,
                which the R2V paper's authors converted): by that name, with `@SPLIT` if wanted (`...@train[:500]`), or

    Parquet or JSON lines with the columns task_name, agent, model, reward, steps. `steps` is JSON: null, or a list of
    {"src": "user" | "agent" | "system", "msg": ..., "tools": [{"fn": ..., "cmd": ...}] | null, "obs": ... | null}.
    A text like `$1a` stands for one that the data set does not hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from r2v.core.errors import ArtifactError, SettingsError
from r2v.logs.files import objects, text_of
from r2v.messages.conversation import Json

TRIALS = "yoonholee/terminalbench-trajectories"
COLUMNS = ["task_name", "agent", "model", "reward", "steps"]
SHELLS = ("bash", "bash_command", "shell", "terminal", "execute", "run", "command", "cmd")
"""Names of tools whose argument is a command line."""
NOT_RECORDED = "(output not recorded)"
_HEADER = re.compile(r"# *(\w+): *(.*)")
_POINTER = re.compile(r"\$[0-9a-f]+")
_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@(.+))?")
_YES_NO = {"yes": True, "true": True, "no": False, "false": False}


def text_logs(path: Path) -> Iterator[tuple[str, str]]:
    """(file, its text) of a text log or of all below a folder. Raises ArtifactError."""
    files = sorted(p for p in path.rglob("*") if p.suffix in (".log", ".txt")) if path.is_dir() else [path]
    if not files:
        raise ArtifactError(f"{path} holds no .log or .txt files")
    for file in files:
        yield str(file), text_of(file)


def from_text(text: str, where: str) -> Json:
    """One text log as a record. Raises ValueError when it has no goal, no command, or an outcome that cannot be read."""
    lines = text.splitlines()
    about: dict[str, str] = {}
    while lines and (match := _HEADER.fullmatch(lines[0])):
        about[match[1]] = match[2]
        del lines[0]
    if "goal" not in about:
        raise ValueError("no line `# goal: ...`")
    opening, turns = _turns(lines)
    if not turns:
        raise ValueError("no command: no line begins with `$ `")
    record: Json = {"task": about.get("task", Path(where).stem), "model": about.get("model", "recorded")}
    if "success" in about:
        if about["success"].lower() not in _YES_NO:
            raise ValueError(f"success is {about['success']!r}; write yes or no")
        record["success"] = _YES_NO[about["success"].lower()]
    elif "reward" in about:
        record["reward"] = float(about["reward"])
    return record | {"messages": _messages("\n".join([about["goal"], *opening]).strip(), turns)}


def _turns(lines: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """(lines before the first command, [(command, output), ...])."""
    opening: list[str] = []
    turns: list[tuple[list[str], list[str]]] = []
    for line in lines:
        if line.startswith("$ "):
            turns.append(([line[2:]], []))
        elif not turns:
            opening.append(line)
        elif line.startswith("> ") and not turns[-1][1]:
            turns[-1][0].append(line[2:])
        else:
            turns[-1][1].append(line[1:] if line.startswith(("\\$ ", "\\> ")) else line)
    return opening, [("\n".join(command), "\n".join(output)) for command, output in turns]


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
    files = sorted(p for p in path.rglob("*") if p.suffix in (".parquet", ".jsonl")) if path.is_dir() else [path]
    if not files:
        raise ArtifactError(f"{path} holds no .parquet or .jsonl files")
    for file in files:
        if file.suffix != ".parquet":
            yield from objects(file)
            continue
        try:
            batches = pq.ParquetFile(file).iter_batches(batch_size=64, columns=COLUMNS)
            for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), start=1):
                yield f"{file}:{number}", row
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ArtifactError(f"{file} cannot be read ({str(error).splitlines()[0]})") from None


def from_trial(row: Mapping[str, Any], where: str) -> Json:
    """One trial as a record; without an outcome where its steps, or a command among them, were not recorded."""
    steps = json.loads(row["steps"]) if isinstance(row["steps"], str) else row["steps"]
    said = [step["msg"] for step in steps or [] if step["src"] == "user" and not _is_pointer(step["msg"])]
    goal = said[0] if said and said[0] else row["task_name"]
    turns = [
        (_command(step["tools"]), _seen(step["obs"])) for step in steps or [] if step["src"] == "agent" and step["tools"]
    ]
    known = bool(turns) and all(command is not None for command, _ in turns)
    record: Json = {
        "task": row["task_name"],
        "model": f"{row['agent']}/{row['model']}",
        "messages": _messages(goal, [(command or "", seen) for command, seen in turns]),
    }
    return record | ({"reward": row["reward"]} if known else {})


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


def _messages(goal: str, turns: Sequence[tuple[str, str]]) -> list[Json]:
    messages: list[Json] = [{"role": "user", "content": goal}]
    for command, output in turns:
        messages += [{"role": "assistant", "content": command}, {"role": "user", "content": output}]
    return messages
