"""Settings: YAML -> frozen typed values. An unknown key or a wrong value is one line that names the key and the mend."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from r2v.core.errors import SettingsError

Fraction = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Base of every settings class: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=BaseModel)
RUN_HINT = "examples/household.yaml is a file to start from"


def keys(path: Path) -> set[str]:
    """The groups that a settings file has. Raises SettingsError."""
    return set(_read(path))


def load(path: Path, kind: type[S], overrides: Sequence[str] = (), *, hint: str = RUN_HINT) -> S:
    """Read `path` as `kind`; each override is `dotted.key=value` with a YAML value.

    Raises:
        SettingsError: the file is not there (then with `hint`, how to get one), or what is in it is wrong.
    """
    raw = _read(path, hint)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise SettingsError(f"--set {override}: write it as dotted.key=value")
        _put(raw, key, yaml.safe_load(value))
    try:
        return validated(kind, raw)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def validated(kind: type[S], raw: object, at: str = "") -> S:
    """`raw` as `kind`. Raises SettingsError with the first problem in one line; `at` is the key that `raw` stands under."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise SettingsError(_explain(error, kind, at)) from None


def _read(path: Path, hint: str = RUN_HINT) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path} does not exist; {hint}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise SettingsError(f"{path} must hold keys and values, e.g. `version: 1`")
    return raw


def dump(settings: BaseModel) -> str:
    """The effective settings as YAML, defaults included."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _put(raw: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        raw = raw.setdefault(parent, {})
        if not isinstance(raw, dict):
            raise SettingsError(f"--set {key}: {parent} is a value, not a group of keys")
    raw[last] = value


def _explain(error: ValidationError, kind: type[BaseModel], at: str) -> str:
    """The first problem in one line, with the nearest known key where a key is unknown."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in ((at,) if at else ()) + problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _keys_at(kind, problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        mend = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key `{key}`; {mend}"
    if problem["type"] == "missing":
        return f"key `{key}` is missing"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    message = problem["msg"].removeprefix("Value error, ") + more
    if isinstance(problem["input"], dict | BaseModel):  # of a group of keys, whose content would hide the message
        return f"`{key}`: {message}" if key else message
    return f"`{key}` = {problem['input']!r}: {message}"


def _keys_at(kind: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    models: list[type[BaseModel]] = []
    for part in path:
        field = kind.model_fields.get(part)
        if field is None:  # the tag of a union of settings classes, or a list index
            tagged = [m for m in models if "kind" in m.model_fields and part in get_args(m.model_fields["kind"].annotation)]
            kind = tagged[0] if tagged else kind
            continue
        options = [field.annotation, *get_args(field.annotation)]
        options += [inner for option in options for inner in get_args(option)]
        models = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if not models:
            return []
        kind = models[0]
    return list(kind.model_fields)
