"""Settings: YAML -> frozen typed values. An unknown key or a wrong value is one line that names the key and the mend.

class StoreSettings(Settings):
    path: str = "r2v-ledger.db"
    days: PositiveInt | None = None
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Self,
    TypeVar,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from msgspec import Meta, Struct, StructMeta

from r2v.core.errors import ArtifactError, SettingsError
from r2v.core.untrusted import MB, check_depth, read_bytes

PositiveInt = Annotated[int, Meta(gt=0)]
NonNegativeInt = Annotated[int, Meta(ge=0)]
PositiveFloat = Annotated[float, Meta(gt=0)]
NonNegativeFloat = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]


class _Frozen(StructMeta):
    def __new__(cls, *what: Any, **how: Any) -> Any:
        return super().__new__(cls, *what, **{"frozen": True, "kw_only": True, "dict": True, **how})


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Settings(Struct, frozen=True, metaclass=_Frozen):
    """Base of every settings class. `validated` checks keys and values; a constructor call, in code, checks no values.

    `__post_init__` may raise a ValueError where values do not fit together.
    """

    given: ClassVar[frozenset[str]] = frozenset()
    """The keys that the file had; the others have their defaults."""

    @classmethod
    def upgraded(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """What a file says in the form of today. Raises ValueError."""
        return raw

    def but(self, **changes: Any) -> Self:
        """The same with other values. Raises SettingsError where these do not fit together."""
        try:
            return msgspec.structs.replace(self, **changes)
        except ValueError as error:
            raise SettingsError(str(error)) from None

    def __reduce__(self) -> Any:  # a Struct's own leaves out `given`, by which another process would check other settings
        return _restored, (type(self), {key: getattr(self, key) for key in self.__struct_fields__}, self.given)


VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
LIKE_A_KEY = re.compile(
    r"(?:^|[:/=.])(?:(?:sk|rk|pk|key|gh[opsur]|github_pat|glpat|hf|npm|pypi|xox[a-z]|xapp|gsk|pplx|r8|tgp|dop|ya29|SG)[-_.]"
    r"|AKIA|ASIA|AIza|eyJ|Bearer )[\w.-]{12,}"
)
"""How keys of known services begin."""
RANDOM = re.compile(r"(?=.*\d)[A-Za-z0-9]{20,}")
"""A key of one that has no beginning of its own."""


def check_variable(key: str, name: str | None) -> None:
    """Raises ValueError for what cannot be the name of an environment variable. It is not repeated: it may be a key."""
    if name is not None and not VARIABLE.fullmatch(name):
        raise ValueError(
            f"{key} must be the name of an environment variable, of letters, digits and _, such as MY_KEY; "
            "what that holds does not belong into settings: export MY_KEY=... where r2v runs"
        )


def _may_be_a_key(name: str) -> bool:
    return not name.isupper() and bool(LIKE_A_KEY.search(name) or RANDOM.fullmatch(name))


def variable(key: str, name: str) -> str:
    """An environment variable, which a setting names, as errors do: what looks like a key is not repeated."""
    return f"the variable of {key} (which looks like a key, and must be a name)" if _may_be_a_key(name) else name


def from_environment(key: str, name: str, holds: str, environment: Mapping[str, str] = os.environ) -> str:
    """What the environment variable holds that a setting names.

    Args:
        key: of the setting.
        name: of the variable. It is not repeated where it looks like a key.
        holds: what it must hold, in words.
        environment: all variables.

    Raises:
        SettingsError: it is not set, or empty.
    """
    if value := environment.get(name, "").strip():
        return value
    if _may_be_a_key(name):
        raise SettingsError(f"{key} looks like a key; it must be the name of an environment variable that holds {holds}")
    raise SettingsError(f"environment variable {name} is not set; it must hold {holds} ({key})")


S = TypeVar("S", bound=Settings)


def _restored(kind: type[S], values: dict[str, Any], given: frozenset[str]) -> S:
    """What another process has sent."""
    made = kind(**values)
    made.__dict__["given"] = given
    return made


SETTINGS_BYTES, SETTINGS_VALUES = MB, 100_000
"""Of a settings file; all of r2v's settings with their defaults take 4 kB."""
RUN_HINT = "examples/household.yaml is a file to start from"


def keys(path: Path) -> set[str]:
    """The groups that a settings file has. Raises SettingsError."""
    return set(read(path))


def load(path: Path, kind: type[S], overrides: Sequence[str] = (), *, hint: str = RUN_HINT) -> S:
    """Read `path` as `kind`; each override is `dotted.key=value` with a YAML value.

    Raises:
        SettingsError: the file is not there (then with `hint`, how to get one), or what is in it is wrong.
    """
    raw = read(path, hint)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise SettingsError(f"--set {override}: write it as dotted.key=value")
        _put(raw, key, _yaml(value, f"--set {key}"))
    try:
        return validated(kind, raw)
    except SettingsError as error:
        wrong = re.search("`([^`]+)`", str(error))
        at = "" if wrong is None else f"{wrong[1]}."
        changed = [key for key in (override.partition("=")[0] for override in overrides) if _overlap(at, f"{key}.")]
        raise SettingsError(f"{f'--set {changed[-1]} of ' if at and changed else ''}{path}: {error}") from None


def _overlap(one: str, other: str) -> bool:
    """Whether one of two keys, which end with a dot, lies under the other, or is it."""
    return one.startswith(other) or other.startswith(one)


def validated(kind: type[S], raw: object, at: str = "") -> S:
    """`raw` as `kind`. Raises SettingsError with the first problem in one line; `at` is the key that `raw` stands under."""
    if isinstance(raw, kind):
        return raw
    if not isinstance(raw, dict):
        raise SettingsError(f"`{at}` = {raw!r}: it must hold keys and values" if at else "it must hold keys and values")
    under = f"{at}." if at else ""
    try:
        raw = kind.upgraded(raw)
        types = _types(kind)
        for key in raw:
            if key not in types:
                near = difflib.get_close_matches(str(key), types, n=1)
                mend = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(types)}"
                raise SettingsError(f"unknown key `{under}{key}`; {mend}")
        values = {key: _value(types[key], value, under + key) for key, value in raw.items()}
        if missing := [f.name for f in msgspec.structs.fields(kind) if f.required and f.name not in values]:
            raise SettingsError(f"key `{under}{missing[0]}` is missing")
        made = kind(**values)
    except ValueError as error:
        raise SettingsError(f"`{at}`: {error}" if at else str(error)) from None
    made.__dict__["given"] = frozenset(values)
    return made


def dump(settings: Settings) -> str:
    """The effective settings as YAML, defaults included."""
    import yaml

    return yaml.safe_dump(msgspec.to_builtins(settings), sort_keys=False, allow_unicode=True)


def read(path: Path, hint: str = RUN_HINT) -> dict[str, Any]:
    """What a YAML file holds. Raises SettingsError: it is not there (then with `hint`), too large, or not valid."""
    try:
        raw = _yaml(read_bytes(path, SETTINGS_BYTES).decode("utf-8"), str(path))
    except FileNotFoundError:
        raise SettingsError(f"{path} does not exist; {hint}") from None
    except ArtifactError as error:
        raise SettingsError(str(error)) from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise SettingsError(f"{path} must hold keys and values, e.g. `version: 1`")
    return raw


def _yaml(text: str, where: str) -> Any:
    """The value of a YAML text; one part may be used in several places, as long as all of it stays small."""
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        check_depth(node, _children, SETTINGS_VALUES)  # before parts that are used again and again are put together
        _check_keys(node)
        value = loader.construct_document(node)
        _check_finite(value)
        return value
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        for mark in (getattr(error, "problem_mark", None), getattr(error, "context_mark", None)):
            if mark is not None:
                mark.buffer = None  # the text there may hold a key
        raise SettingsError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise SettingsError(f"{where} is not valid YAML: nested too deeply") from None


def _check_keys(node: Any) -> None:
    """Raises ValueError where a key stands twice in a part: of two budgets one would be lost."""
    if isinstance(node.value, str):
        return
    seen = set()
    for key in (item[0] for item in node.value if isinstance(item, tuple)):
        if isinstance(key.value, str) and key.value in seen and key.value != "<<":
            raise ValueError(f"`{key.value}` stands twice in the same part (line {key.start_mark.line + 1}); leave one")
        seen.add(key.value if isinstance(key.value, str) else id(key))
    for child in _children(node):
        _check_keys(child)


def _check_finite(value: Any) -> None:
    """Raises ValueError where a number is infinite or none: settings have `null` for what has no limit."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no finite number")
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_finite(one)


def _children(node: Any) -> Iterable[Any]:
    """The nodes inside of a YAML node."""
    if isinstance(node.value, str):
        return ()
    return [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]


def _put(raw: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        raw = raw.setdefault(parent, {})
        if not isinstance(raw, dict):
            raise SettingsError(f"--set {key}: {parent} is a value, not a group of keys")
    raw[last] = value


@cache
def _types(kind: type[Settings]) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {key: hints[key] for key in kind.__struct_fields__}


def _value(of: Any, raw: Any, key: str) -> Any:
    """The value of one key. Where settings of several kinds are possible, `kind` chooses; the first is the default."""
    if get_origin(of) is dict and isinstance(raw, dict):
        of_keys, of_values = get_args(of)
        return {_value(of_keys, name, key): _value(of_values, value, f"{key}.{name}") for name, value in raw.items()}
    groups = [kind for kind in (of, *get_args(of)) if isinstance(kind, type) and issubclass(kind, Settings)]
    if groups and not (raw is None and type(None) in get_args(of)):
        if isinstance(raw, Settings):
            return raw
        kinds = {name: group for group in groups for name in get_args(_types(group).get("kind"))}
        named = raw.get("kind") if isinstance(raw, dict) else None
        if kinds and named is not None and str(named) not in kinds:
            raise SettingsError(f"`{key}.kind` = {named!r}: choose from {', '.join(kinds)}")
        return validated(kinds.get(str(named), groups[0]), raw, key)
    try:
        return msgspec.convert(raw, of, strict=False)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        if message.startswith("Invalid enum value"):
            message = f"choose from {', '.join(map(str, _choices(of)))}"
        key += place.rstrip("]`").replace("[", ".")
        shown = "" if key.endswith("_env") else f" = {raw!r}"  # it may be a key
        raise SettingsError(f"`{key}`{shown}: {message}") from None


def _choices(of: Any) -> tuple[Any, ...]:
    return get_args(of) if get_origin(of) is Literal else tuple(c for part in get_args(of) for c in _choices(part))
