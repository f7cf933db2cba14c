"""Problem files: OpenAI's HumanEval and both formats of EvalPlus's HumanEval+, as JSON lines, gzipped or not.

{"task_id": "HumanEval/0", "prompt": "def f(...):\\n ...", "entry_point": "f", "canonical_solution": "    return ...",
 "base_input": [[...], ...], "plus_input": [[...], ...], "atol": 0}                 EvalPlus
{..., "test": "def check(candidate):\\n    assert candidate(...) == ..."}            OpenAI, and EvalPlus on Hugging Face
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from r2v.core.errors import ArtifactError
from r2v.core.untrusted import parsed_json, unpacked_lines

OVERRIDE = "HUMANEVAL_OVERRIDE_PATH"
"""Environment variable that EvalPlus reads too: a problem file to use instead of the default one."""


@dataclass(frozen=True, eq=False)
class Problem:
    id: str
    prompt: str
    """Imports, signature and docstring: what the agent reads."""
    entry_point: str
    canonical: str
    """Body that completes the prompt."""
    test: str | None
    """`check(candidate)` where the file holds no inputs; the calls it makes are the inputs then."""
    base: tuple[Any, ...]
    """Argument lists."""
    plus: tuple[Any, ...]
    atol: float

    @cached_property
    def key(self) -> str:
        """Hash of everything that verdicts depend on."""
        parts = [self.prompt, self.entry_point, self.canonical, self.test, self.base, self.plus, self.atol]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def shipped() -> Path:
    """The small original set that comes with r2v."""
    return Path(str(files("r2v.domains.humaneval").joinpath("problems.jsonl")))


def problem_file(given: str | None) -> Path:
    """`given`, else $HUMANEVAL_OVERRIDE_PATH, else the shipped set."""
    if given is not None:
        return Path(os.path.expandvars(given)).expanduser()
    override = os.environ.get(OVERRIDE)
    return Path(override) if override else shipped()


def load_problems(path: Path) -> tuple[Problem, ...]:
    """All problems of a file, in its order. Raises ArtifactError with the line that is none."""
    problems: dict[str, Problem] = {}
    for number, raw in enumerate(read_lines(path), start=1):
        try:
            problem = _problem(raw)
        except (KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise ArtifactError(f"{path}, line {number}, is no HumanEval problem ({what})") from None
        if problem.id in problems:
            raise ArtifactError(f"{path}, line {number}: {problem.id} occurs twice")
        problems[problem.id] = problem
    if not problems:
        raise ArtifactError(f"{path} holds no problems")
    return tuple(problems.values())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl or .jsonl.gz file. Raises ArtifactError."""
    try:
        rows = [parsed_json(line, exact=False) for line in unpacked_lines(path) if line.strip()]
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist") from None
    except ValueError as error:
        raise ArtifactError(f"{path} is not readable as JSON lines ({error})") from None
    if not all(isinstance(row, dict) for row in rows):
        raise ArtifactError(f"{path} must hold one JSON object a line")
    return rows


def _problem(raw: dict[str, Any]) -> Problem:
    strings = [raw[key] for key in ("task_id", "prompt", "entry_point", "canonical_solution")]
    if not all(isinstance(text, str) for text in strings):
        raise TypeError("task_id, prompt, entry_point and canonical_solution must be text")
    name, prompt, entry_point, canonical = strings
    if "base_input" in raw:
        base, plus, test = tuple(raw["base_input"]), tuple(raw["plus_input"]), None
        if not all(isinstance(arguments, list) for arguments in base + plus):
            raise TypeError("every input must be a list of arguments")
    else:
        base, plus, test = (), (), str(raw["test"])
    return Problem(name, prompt, entry_point, canonical, test, base, plus, float(raw.get("atol", 0)))
