"""Recorded terminal work in plain text, a file an episode:

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

Lines of `# key: value` come first (goal and success are wanted, or reward in place of success). A command begins with
"$ ", its further lines with "> "; everything up to the next command is its output. An output line that itself begins with
"$ " or "> " is written with a backslash before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from r2v.logs import openai_jsonl
from r2v.logs.files import files_of, text_of
from r2v.logs.records import Recorded, Records, turns
from r2v.messages.conversation import Json

_HEADER = re.compile(r"# *(\w+): *(.*)")


def text_logs(path: Path) -> Iterator[tuple[str, str]]:
    """(file, its text) of a text log or of all below a folder. Raises ArtifactError."""
    for file in files_of(path, ".log", ".txt"):
        yield str(file), text_of(file)


def convert(text: str, where: str) -> Recorded:
    """One text log. Raises ValueError when it has no goal, no command, or an outcome that cannot be read."""
    lines = text.splitlines()
    about: dict[str, str] = {}
    while lines and (match := _HEADER.fullmatch(lines[0])):
        about[match[1]] = match[2]
        del lines[0]
    if "goal" not in about:
        raise ValueError("no line `# goal: ...`")
    opening, commands = _turns(lines)
    if not commands:
        raise ValueError("no command: no line begins with `$ `")
    record: Json = {"task": about.get("task", Path(where).stem), "model": about.get("model", "recorded")}
    record |= {key: about[key] for key in ("success", "reward") if key in about}
    record["messages"] = turns("\n".join([about["goal"], *opening]).strip(), commands)
    return openai_jsonl.convert(record, where)


def _turns(lines: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """(lines before the first command, [(command, output), ...])."""
    opening: list[str] = []
    found: list[tuple[list[str], list[str]]] = []
    for line in lines:
        if line.startswith("$ "):
            found.append(([line[2:]], []))
        elif not found:
            opening.append(line)
        elif line.startswith("> ") and not found[-1][1]:
            found[-1][0].append(line[2:])
        else:
            found[-1][1].append(line[1:] if line.startswith(("\\$ ", "\\> ")) else line)
    return opening, [("\n".join(command), "\n".join(output)) for command, output in found]


FORMAT = Records(
    "terminal-log", "plain text: commands and their output, a file an episode", convert, text_logs, verifier="terminal"
)
