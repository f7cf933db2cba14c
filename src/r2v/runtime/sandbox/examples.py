"""The examples in a docstring: calls and what they should return. All that an agent or a verifier may test on.

>>> f([1, 2], 3)        f([1, 2], 3) == 4        f(1) => 2        f(1) returns 2        For f(1), the output should be 2
4
"""

from __future__ import annotations

import ast
import doctest
import re
from dataclasses import dataclass
from typing import Any

_ARROW = r"(?:==>|==|=>|->|➞|=|returns|should return|# => |the output should be|the result should be)"


@dataclass(frozen=True)
class Example:
    call: str
    """As written, e.g. `f([1, 2], 3)`."""
    arguments: tuple[Any, ...]
    expected: Any


def examples(prompt: str, entry_point: str) -> tuple[Example, ...]:
    """In the order of the text, without repetition. Those whose arguments or value are no literals are left out."""
    found: list[Example] = []
    try:
        for example in doctest.DocTestParser().get_examples(prompt):
            _add(found, entry_point, example.source.strip(), example.want.strip())
    except ValueError:  # text that only looks like a session
        pass
    for match in re.finditer(rf"(?<![\w.>])({re.escape(entry_point)}\(.*\)),?\s*{_ARROW}\s*(.+)", prompt):
        _add(found, entry_point, match[1], match[2].strip())
    return tuple(found)


def _add(found: list[Example], entry_point: str, call: str, value: str) -> None:
    try:
        tree = ast.parse(call, mode="eval").body
        if not isinstance(tree, ast.Call) or ast.unparse(tree.func) != entry_point or tree.keywords:
            return
        arguments = tuple(ast.literal_eval(argument) for argument in tree.args)
        example = Example(call, arguments, _literal(value))
    except (SyntaxError, ValueError):
        return
    if all(example.call != other.call for other in found):
        found.append(example)


def _literal(text: str) -> Any:
    """The longest beginning of the text that is a literal: remarks may follow, but no `+ 9 = 10`. Raises ValueError."""
    lowered = {"true": "True", "false": "False", "none": "None"}.get(text.rstrip(".").lower(), text)
    for end in [len(lowered), *(m.start() for m in reversed(list(re.finditer(r"[\s.,;#]", lowered))))]:
        if re.match(r"\s*[-+*/=]", lowered[end:]):
            continue
        try:
            return ast.literal_eval(lowered[:end].strip())
        except (SyntaxError, ValueError):
            continue
    raise ValueError(text)
