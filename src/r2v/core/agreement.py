"""Would the teacher have acted alike? A comparison of two actions, softer than equality of strings.

Each action is brought into a canonical form, and the forms are compared: so it is reflexive, symmetric and transitive.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from typing import Any

from r2v.core.types import Action, ToolCall

FREE_TEXT = frozenset({"description", "explanation", "thought", "thoughts", "reason", "reasoning", "rationale"})
"""Arguments in which a model says why; they do nothing, unless a call has no others."""
SHELL = frozenset({"command", "cmd", "commands", "script", "bash_command"})
PATH = re.compile(r"(path|file|filename|dir|directory|folder|cwd|workdir)s?$", re.IGNORECASE)
PLAIN = re.compile(r"[\w@%+=:,./-]+")
"""What a shell reads the same with quotes around it as without."""
OPERATORS = "();|&{!"
LONGEST, LINE = 20_000, 4_000
"""Characters of an action, and of a shell command, up to which they are read, in 20 ms; others are compared as they are."""


def alike(slm: Action, teacher: Action) -> bool | None:
    """Whether both do the same; None where neither calls a tool and their words differ: only a judge could tell.

    Calls are alike if they are the same tools, in any order, with the same arguments but for spelling: the order of keys,
    space at the ends of lines, `./a` for `a`, 1.0 for 1, quotes that a shell does not need, an argument that is missing for
    one that is null, false or empty, and words about the call beside its other arguments (`FREE_TEXT`).
    """
    if slm.tool_calls or teacher.tool_calls:
        return _calls(slm) == _calls(teacher)
    return True if _words(slm.text) == _words(teacher.text) else None


def _words(text: str) -> list[str]:
    return text.split() if len(text) <= LONGEST else [text]


def _calls(action: Action) -> list[str]:
    read = sum(len(call.arguments) for call in action.tool_calls) <= LONGEST
    return sorted(_call(call) if read else f"{call.name} {call.arguments.strip()}" for call in action.tool_calls)


def _call(call: ToolCall) -> str:
    try:
        arguments = json.loads(call.arguments or "{}")
        if isinstance(arguments, dict):
            others = {key: value for key, value in arguments.items() if key.lower() not in FREE_TEXT}
            arguments = others or arguments
        return f"{call.name} {json.dumps(_canonical('', arguments), sort_keys=True)}"
    except (ValueError, RecursionError):
        return f"{call.name} {call.arguments.strip()}"


def _canonical(name: str, value: Any) -> Any:
    """`name`: of the argument that it is, or is in."""
    if isinstance(value, dict):
        known = {key: _canonical(key, part) for key, part in value.items()}
        return {key: part for key, part in known.items() if part or type(part) is int}
    if isinstance(value, list):
        wrapped = name.lower() in SHELL and len(value) == 3 and str(value[1]).startswith("-")  # ["bash", "-lc", "make test"]
        return [_canonical(name if i == 2 or not wrapped else "", part) for i, part in enumerate(value)]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        return value
    text = "\n".join(line.rstrip() for line in value.strip("\r\n").splitlines())
    if name.lower() in SHELL:
        return _command(text.strip())
    return posixpath.normpath(text) if PATH.search(name) and text and not re.search(r"\s|://", text) else text


def _command(text: str) -> str:
    """A short shell command of one line by its words; others may hold documents, in which every space counts."""
    if "\n" in text or len(text) > LINE:
        return text
    lexer = shlex.shlex(text, posix=False)
    lexer.commenters, lexer.whitespace_split = "", True
    try:
        words = list(lexer)
    except ValueError:  # an open quote
        return text
    found: list[str] = []
    for word in words:
        if len(word) > 2 and word[0] == word[-1] and word[0] in "'\"" and PLAIN.fullmatch(word[1:-1]):
            word = word[1:-1]
        if found and found[-1][-1] not in OPERATORS:  # the first word is searched in PATH: there ./a is not a
            word = re.sub(r"^(\./+)+(?=.)", "", word)
        found.append(word)
    return " ".join(found)
