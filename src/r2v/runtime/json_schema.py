"""Whether a value fits a JSON schema (draft 2020-12), in bounded time and memory whatever the schema and the value are.

Clients send the schemas and models the values, and the gateway checks them between the answers to everybody else. No
library that we know bounds that: `jsonschema` compares the items of an array with each other, searches with a backtracking
engine and writes the value into each error; `jsonschema-rs` is quick, but follows references that double at each level as
long as it takes. So a schema is compiled here once, and each check counts what it does; what would take longer than allowed
is not known, as is what a schema says that is none. Values and results are those of `jsonschema` otherwise (there is a
property test), except that patterns are those of RE2, which takes linear time, and that `unevaluated...`, `$dynamicRef` and
references out of the schema are not known.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any
from urllib.parse import unquote

import re2

Check = Callable[[Any, "Work"], bool | None]
"""Whether a value fits; None where that is not known."""
UNITS = 10_000
"""Of work for the checks of one step: a unit is about a microsecond."""
PER_SUBSCHEMA = 8
"""Units that compiling takes for each."""
PER_PATTERN = 100
PATTERN = 1_000
"""Characters of a pattern; longer ones are not searched."""
PATTERN_BYTES = 1 << 17
"""Memory that a pattern may take."""
PER_UNIT = 500
"""Steps of a search that one unit pays for: characters x instructions of the pattern."""


_encode = json.JSONEncoder(sort_keys=True).encode


class Exhausted(Exception):
    """The work that is allowed does not suffice."""


class Malformed(Exception):
    """The schema is none."""


class Work:
    """What may still be done."""

    def __init__(self, units: int = UNITS) -> None:
        self.left = units

    def take(self, units: int) -> None:
        """Raises Exhausted."""
        self.left -= units
        if self.left < 0:
            raise Exhausted


class JsonSchema:
    """A schema, compiled when it is first used."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._check: Check | None = None
        self._known = False

    def fits(self, text: str, work: Work) -> bool | None:
        """Whether a JSON text fits; a text that is no JSON does not.

        Args:
            text: of the value.
            work: is used up.

        Returns:
            None where it is not known: the schema is none, or the check takes too long, or nests too deeply.
        """
        try:
            # No fewer than its values, and a thousand of its characters.
            work.take((text.count(",") + text.count("[") + text.count("{")) // 2 + len(text) // 1_000)
            value = _decode(text)
        except (Exhausted, RecursionError):
            return None
        except ValueError:
            return False
        try:
            if not self._known:
                self._check = self._compiled(work)
                self._known = True
            return None if self._check is None else self._check(value, work)
        except (Exhausted, RecursionError, ArithmeticError):
            return None

    def _compiled(self, work: Work) -> Check | None:
        """None where the schema is none. Raises Exhausted."""
        try:
            return _Compiler(self._schema, work).check_of(self._schema)
        except (Malformed, RecursionError):
            return None


def footprint(schemas: bytes) -> int:
    """Bytes of memory that `JsonSchema` objects take at most, from their JSON."""
    return 40 * len(schemas) + PATTERN_BYTES * schemas.count(b'"pattern')


def _number(text: str) -> int | float:
    """1.0 is the integer 1, as JSON schemas have it."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _as_read(value: Any, work: Work) -> Any:
    """A value of a schema as those are that are checked; see `_number`."""
    work.take(1)
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, list):
        return [_as_read(one, work) for one in value]
    return {name: _as_read(one, work) for name, one in value.items()} if isinstance(value, dict) else value


_decode = json.JSONDecoder(parse_float=_number).decode


def _canonical(value: Any, work: Work) -> str:
    """Equal for equal values alone. Hashes of such texts cannot be made to collide, those of numbers can."""
    found = _encode(value)
    work.take(5 + len(found) // 32)
    return found


class _Compiler:
    """Makes checks of the parts of one schema."""

    def __init__(self, root: Any, work: Work) -> None:
        self._root, self.work = root, work
        self._targets: dict[str, list[Check]] = {}
        self._moved = False
        """Whether a part has an `$id` of its own: references are then not what they seem."""

    def check_of(self, schema: Any) -> Check:
        """Raises Malformed, Exhausted."""
        self.work.take(PER_SUBSCHEMA)
        if schema is True:
            return lambda value, work: True
        if schema is False:
            return lambda value, work: False
        if not isinstance(schema, dict):
            raise Malformed
        self.work.take(len(schema) + sum([len(part) for part in schema.values() if isinstance(part, list | dict)]) // 4)
        if not all(SHAPES[keyword](part) for keyword, part in schema.items() if keyword in SHAPES):
            raise Malformed
        self._moved |= "$id" in schema and schema is not self._root
        parts = {key: self._parts_of(key, value) for key, value in schema.items()}
        found = [
            check for key, make in KEYWORDS.items() if key in schema if (check := make(schema, parts, self)) is not None
        ]
        return found[0] if len(found) == 1 else _all_of(found)

    def _parts_of(self, keyword: str, value: Any) -> Any:
        """The checks of the schemas under a keyword. Raises Malformed, Exhausted."""
        if keyword in ONE:
            return self.check_of(value)
        if keyword in SEVERAL:
            return [self.check_of(part) for part in value]
        if keyword in NAMED:
            return {name: self.check_of(part) for name, part in value.items()}
        if keyword == "dependencies":  # of older drafts: only its form counts
            return [self.check_of(part) for part in value.values() if not _is_names(part)]
        return None

    def target(self, reference: str) -> Check:
        """What a reference refers to, which may be what is being compiled. Raises Malformed, Exhausted."""
        if reference not in self._targets:
            self._targets[reference] = cell = []
            try:
                cell.append(self.check_of(self._part_at(reference)))
            except (LookupError, ValueError, TypeError):
                cell.append(_unknown)
        cell = self._targets[reference]
        return lambda value, work: cell[0](value, work)

    def _part_at(self, reference: str) -> Any:
        """Raises LookupError, ValueError or TypeError where nothing is there."""
        place = unquote(reference.removeprefix("#"))
        if self._moved or not reference.startswith("#") or place[:1] not in ("", "/"):
            raise LookupError
        found = self._root
        for name in place.split("/")[1:]:
            found = found[int(name)] if isinstance(found, list) else found[name.replace("~1", "/").replace("~0", "~")]
        return found

    def searching(self, pattern: str) -> Check:
        """Whether a pattern is found in a text. Raises Exhausted."""
        self.work.take(PER_PATTERN)
        try:
            compiled = re2.compile(pattern, options=_options()) if len(pattern) <= PATTERN else None
        except (re2.error, UnicodeEncodeError):
            compiled = None
        if compiled is None:
            return _unknown
        size = compiled.programsize
        self.work.take(size // 10)

        def search(text: str, work: Work) -> bool | None:
            work.take(1 + len(text) * size // PER_UNIT)
            try:
                return compiled.search(text) is not None
            except UnicodeEncodeError:  # half a character
                return None

        return search


def _options() -> re2.Options:
    options = re2.Options()
    options.max_mem, options.never_capture, options.log_errors = PATTERN_BYTES, True, False
    return options


def _unknown(value: Any, work: Work) -> None:
    work.take(1)


def _all_of(checks: Sequence[Check]) -> Check:
    """One that does not fit decides, whatever is not known of others."""

    def check(value: Any, work: Work) -> bool | None:
        work.take(1 + len(checks))
        found: bool | None = True
        for one in checks:
            fits = one(value, work)
            if fits is False:
                return False
            found = found if fits else None
        return found

    return check


def _each(pairs: Any, work: Work) -> bool | None:
    """As `_all_of`, of pairs (check, value)."""
    found: bool | None = True
    for one, value in pairs:
        work.take(1)
        fits = one(value, work)
        if fits is False:
            return False
        found = found if fits else None
    return found


def _count(checks: Any, work: Work, most: int) -> tuple[int, int]:
    """(how many fit, of how many it is not known), of pairs (check, value), up to more than `most` that fit."""
    known = unknown = 0
    for one, value in checks:
        work.take(1)
        fits = one(value, work)
        known += fits is True
        unknown += fits is None
        if known > most:
            break
    return known, unknown


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


TYPES: Mapping[str, Callable[[Any], bool]] = {
    "array": lambda value: isinstance(value, list),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),  # see `_number`
    "null": lambda value: value is None,
    "number": _is_number,
    "object": lambda value: isinstance(value, dict),
    "string": lambda value: isinstance(value, str),
}


# -- what a schema must look like: what its keywords may hold ---------------------------------------------------------

ONE = (
    "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then", "unevaluatedItems",
    "unevaluatedProperties", "contentSchema",
)  # fmt: skip
SEVERAL = ("allOf", "anyOf", "oneOf", "prefixItems")
NAMED = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == value // 1


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value)) and len(set(value)) == len(value)


def _is_type(value: Any) -> bool:
    return value in TYPES if isinstance(value, str) else _is_names(value) and bool(value) and set(value) <= TYPES.keys()


SHAPES: Mapping[str, Callable[[Any], bool]] = {
    "type": _is_type,
    "multipleOf": lambda value: _is_number(value) and value > 0,
    "required": _is_names,
    "dependentRequired": lambda value: isinstance(value, dict) and all(map(_is_names, value.values())),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum"), _is_number),
    **dict.fromkeys(
        ("maxLength", "minLength", "maxItems", "minItems", "maxContains", "minContains", "maxProperties", "minProperties"),
        _is_size,
    ),
    **dict.fromkeys(("uniqueItems", "deprecated", "readOnly", "writeOnly"), _is_bool),
    **dict.fromkeys(
        ("pattern", "title", "description", "format", "$ref", "$dynamicRef", "$id", "$schema", "$anchor", "$comment",
         "contentEncoding", "contentMediaType"), _is_text,
    ),
    **dict.fromkeys(("enum", "examples"), _is_list),
    **dict.fromkeys(SEVERAL, lambda value: isinstance(value, list) and bool(value)),
    **dict.fromkeys((*NAMED, "dependencies", "$vocabulary"), _is_object),
}  # fmt: skip


# -- the keywords: each makes a check of (schema, its parts as checks, compiler) ---------------------------------------


def _type(schema: Any, parts: Any, compiler: _Compiler) -> Check:
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    return lambda value, work: any(TYPES[kind](value) for kind in kinds)


def _among(values: list[Any], compiler: _Compiler) -> Check:
    known = {_canonical(_as_read(value, compiler.work), compiler.work) for value in values}
    return lambda value, work: _canonical(value, work) in known


def _bound(keyword: str, holds: Callable[[Any, Any], bool]) -> Callable[..., Check]:
    def make(schema: Any, parts: Any, compiler: _Compiler) -> Check:
        limit = schema[keyword]
        return lambda value, work: not _is_number(value) or holds(value, limit)

    return make


def _size(
    keyword: str, kind: type[str | list[Any] | dict[str, Any]], holds: Callable[[int, Any], bool]
) -> Callable[..., Check]:
    def make(schema: Any, parts: Any, compiler: _Compiler) -> Check:
        limit = schema[keyword]
        return lambda value, work: not isinstance(value, kind) or holds(len(value), limit)

    return make


def _is_multiple(value: Any, of: Any) -> bool:
    if not isinstance(of, float):
        return not value % of
    quotient = value / of
    try:
        return bool(int(quotient) == quotient)
    except OverflowError:
        return (Fraction(value) / Fraction(of)).denominator == 1


def _pattern(schema: Any, parts: Any, compiler: _Compiler) -> Check:
    search = compiler.searching(schema["pattern"])
    return lambda value, work: not isinstance(value, str) or search(value, work)


def _unique_items(schema: Any, parts: Any, compiler: _Compiler) -> Check | None:
    if not schema["uniqueItems"]:
        return None
    return lambda value, work: not isinstance(value, list) or len({_canonical(one, work) for one in value}) == len(value)


def _contains(schema: Any, parts: Any, compiler: _Compiler) -> Check:
    one, least, most = parts["contains"], schema.get("minContains", 1), schema.get("maxContains")

    def check(value: Any, work: Work) -> bool | None:
        if not isinstance(value, list):
            return True
        limit = len(value) if most is None else most
        known, unknown = _count(((one, item) for item in value), work, limit)
        if known > limit or known + unknown < least:
            return False
        return None if unknown else True

    return check


def _items(schema: Any, parts: Any, compiler: _Compiler) -> Check:
    one, first = parts["items"], len(schema.get("prefixItems", ()))

    def check(value: Any, work: Work) -> bool | None:
        return not isinstance(value, list) or _each(((one, item) for item in value[first:]), work)

    return check


def _prefix_items(schema: Any, parts: Any, compiler: _Compiler) -> Check:
    checks = parts["prefixItems"]

    def check(value: Any, work: Work) -> bool | None:
        return not isinstance(value, list) or _each(zip(checks, value, strict=False), work)

    return check


def _required(schema: Any, parts: Any, compiler: _Compiler) -> Check:
    names = schema["required"]

    def check(value: Any, work: Work) -> bool:
        work.take(len(names) // 16)
        return not isinstance(value, dict) or all(name in value for name in names)

    return check


def _dependent_required(schema: Any, parts: Any, compiler: _Compiler) -> Check:
    wanted = schema["dependentRequired"]

    def check(value: Any, work: Work) -> bool:
        if not isinstance(value, dict):
            return True
        work.take(sum([1 + len(names) // 16 for names in wanted.values()]))
        return all(name in value for one, names in wanted.items() if one in value for name in names)

    return check


def _properties(schema: Any, parts: Any, compiler: _Compiler) -> Check:
    checks = parts["properties"]

    def check(value: Any, work: Work) -> bool | None:
        if not isinstance(value, dict):
            return True
        work.take(len(checks) // 16)
        return _each(((one, value[name]) for name, one in checks.items() if name in value), work)

    return check


def _dependent_schemas(schema: Any, parts: Any, compiler: _Compiler) -> Check:
    checks = parts["dependentSchemas"]

    def check(value: Any, work: Work) -> bool | None:
        if not isinstance(value, dict):
            return True
        work.take(len(checks) // 16)
        return _each(((one, value) for name, one in checks.items() if name in value), work)

    return check


def _other_properties(schema: Any, parts: Any, compiler: _Compiler) -> Check:
    """`patternProperties` and `additionalProperties`, which rest on the same searches."""
    named, rest = schema.get("properties", {}), parts.get("additionalProperties")
    found = [(compiler.searching(pattern), one) for pattern, one in parts.get("patternProperties", {}).items()]

    def check(value: Any, work: Work) -> bool | None:
        return not isinstance(value, dict) or _each(wanted(value, work), work)

    def wanted(value: dict[str, Any], work: Work) -> Any:
        for name, part in value.items():
            work.take(1)
            matches = [(search(name, work), one) for search, one in found]
            for match, one in matches:
                if match:
                    yield one, part
                elif match is None:
                    yield _unknown, part
            if rest is not None and name not in named and not any(match is not False for match, _ in matches):
                yield rest, part

    return check


def _property_names(schema: Any, parts: Any, compiler: _Compiler) -> Check:
    one = parts["propertyNames"]

    def check(value: Any, work: Work) -> bool | None:
        return not isinstance(value, dict) or _each(((one, name) for name in value), work)

    return check


def _any_of(schema: Any, parts: Any, compiler: _Compiler) -> Check:
    checks = parts["anyOf"]

    def check(value: Any, work: Work) -> bool | None:
        known, unknown = _count(((one, value) for one in checks), work, 0)
        return True if known else None if unknown else False

    return check


def _one_of(schema: Any, parts: Any, compiler: _Compiler) -> Check:
    checks = parts["oneOf"]

    def check(value: Any, work: Work) -> bool | None:
        known, unknown = _count(((one, value) for one in checks), work, 1)
        return False if known > 1 else None if unknown else known == 1

    return check


def _not(schema: Any, parts: Any, compiler: _Compiler) -> Check:
    one = parts["not"]

    def check(value: Any, work: Work) -> bool | None:
        work.take(1)
        fits = one(value, work)
        return None if fits is None else not fits

    return check


def _if(schema: Any, parts: Any, compiler: _Compiler) -> Check:
    condition, then, otherwise = parts["if"], parts.get("then"), parts.get("else")

    def check(value: Any, work: Work) -> bool | None:
        work.take(1)
        fits = condition(value, work)
        wanted = then if fits else otherwise
        return None if fits is None else True if wanted is None else wanted(value, work)

    return check


KEYWORDS: Mapping[str, Callable[[Any, Any, _Compiler], Check | None]] = {
    "type": _type,
    "required": _required,
    "enum": lambda schema, parts, compiler: _among(schema["enum"], compiler),
    "const": lambda schema, parts, compiler: _among([schema["const"]], compiler),
    "maximum": _bound("maximum", lambda value, limit: value <= limit),
    "exclusiveMaximum": _bound("exclusiveMaximum", lambda value, limit: value < limit),
    "minimum": _bound("minimum", lambda value, limit: value >= limit),
    "exclusiveMinimum": _bound("exclusiveMinimum", lambda value, limit: value > limit),
    "multipleOf": _bound("multipleOf", _is_multiple),
    "maxLength": _size("maxLength", str, lambda size, limit: size <= limit),
    "minLength": _size("minLength", str, lambda size, limit: size >= limit),
    "maxItems": _size("maxItems", list, lambda size, limit: size <= limit),
    "minItems": _size("minItems", list, lambda size, limit: size >= limit),
    "maxProperties": _size("maxProperties", dict, lambda size, limit: size <= limit),
    "minProperties": _size("minProperties", dict, lambda size, limit: size >= limit),
    "pattern": _pattern,
    "uniqueItems": _unique_items,
    "contains": _contains,
    "items": _items,
    "prefixItems": _prefix_items,
    "dependentRequired": _dependent_required,
    "dependentSchemas": _dependent_schemas,
    "properties": _properties,
    "patternProperties": _other_properties,
    "additionalProperties": lambda schema, parts, compiler: (
        None if "patternProperties" in schema else _other_properties(schema, parts, compiler)
    ),
    "propertyNames": _property_names,
    "allOf": lambda schema, parts, compiler: _all_of(parts["allOf"]),
    "anyOf": _any_of,
    "oneOf": _one_of,
    "not": _not,
    "if": _if,
    "$ref": lambda schema, parts, compiler: compiler.target(schema["$ref"]),
    "$dynamicRef": lambda schema, parts, compiler: _unknown,
    "unevaluatedItems": lambda schema, parts, compiler: _unknown,
    "unevaluatedProperties": lambda schema, parts, compiler: _unknown,
}
"""The quick ones first: one that does not fit decides."""
