"""`schema`: whether what the agent hands over is JSON that fits a schema."""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path
from sys import getsizeof
from typing import Any, Literal

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from r2v.core.cache import remembered
from r2v.core.errors import ArtifactError
from r2v.core.types import Context
from r2v.core.untrusted import MB, parsed_json, read_bytes
from r2v.runtime.settings import Settings
from r2v.verdicts.aside import SECONDS, Aside
from r2v.verdicts.base import REMEMBERED_BYTES, warn_once

LONGEST = 200_000
"""Characters of a text that is read; of a longer one nothing is known."""
FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL)
VALIDATOR = Aside("""
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.exceptions import Unresolvable
def answer(schema, text):
    try:
        return int(Draft202012Validator(json.loads(schema), registry=Registry()).is_valid(json.loads(text)))
    except (ValueError, RecursionError):
        return 0
    except Unresolvable:  # a reference to elsewhere: nothing is fetched
        return -1
""")
"""Words such as `pattern` and `uniqueItems` take long on some texts."""


class SchemaVerdict(Settings):
    """1.0 where the newest answer is JSON that fits, 0.0 where it is not; None before there is an answer."""

    name: str = "schema"
    schema: dict[str, Any] | None = None
    """The JSON schema itself."""
    file: str | None = None
    """Or the JSON file that holds it."""
    of: Literal["answer", "result"] = "answer"
    """answer: the newest message of the agent without a call of a tool. result: the newest text that came back."""

    reads_answer = True
    """The gateway also reads it once the step's answer is known: often that is what is to be judged."""

    def __post_init__(self) -> None:
        if (self.schema is None) == (self.file is None):
            raise ValueError("give either `schema` or `file`")
        try:
            Draft202012Validator.check_schema(json.loads(self._schema))
        except SchemaError as error:
            raise ValueError(f"the schema is none: {error.message}") from None

    def read(self, context: Context) -> float | None:
        if self.of == "result":
            text = context.observations[-1] if context.actions else None
        else:
            text = next((action.text for action in reversed(context.actions) if not action.tool_calls), None)
        if text is None or len(text) > LONGEST:
            return None
        fenced = FENCED.fullmatch(text.strip())
        fits = fitting(self._schema, fenced[1] if fenced else text)
        if fits is None:
            warn_once(self.name, f"a check took more than {SECONDS:g} s; nothing is known of such a text")
        return None if fits is None or fits < 0 else float(fits)

    @cached_property
    def _schema(self) -> str:
        if self.file is None:
            return json.dumps(self.schema)
        try:
            text = read_bytes(Path(self.file), MB).decode()
            parsed_json(text)
        except (FileNotFoundError, ArtifactError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"the file {self.file} cannot be read ({reason})") from None
        except ValueError:
            raise ValueError(f"the file {self.file} is not JSON") from None
        return text


@remembered(REMEMBERED_BYTES, lambda schema, text: getsizeof(text))
def fitting(schema: str, text: str) -> int | None:
    """1: the text is JSON that fits; 0: it is not; -1: the schema refers to elsewhere; None: it took too long."""
    fits: int | None = VALIDATOR.ask(schema, text.encode("utf-8", "replace").decode())
    return fits
