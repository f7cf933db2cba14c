"""Checks of JSON schemas: as the library says, and in bounded time where that takes for ever."""

from __future__ import annotations

import asyncio
import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing import Registry
from referencing.exceptions import Unresolvable

from r2v.core.types import Action, Context, ToolCall
from r2v.runtime.json_schema import JsonSchema, Work
from r2v.verifiers.tool_calls import ToolCallVerifier

NAMES = st.sampled_from("abc")
SCALARS = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, -2.0, 1e300]) | st.text("abé", max_size=3)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)
TYPES = st.sampled_from(["array", "boolean", "integer", "null", "number", "object", "string"])
SIZES = st.integers(0, 3)
REFERENCES = st.sampled_from(["#/$defs/a", "#/$defs/b", "#/properties/a", "#/nowhere", "http://elsewhere/x"])


def schemas(inner: st.SearchStrategy) -> st.SearchStrategy:
    named, several = st.dictionaries(NAMES, inner, max_size=3), st.lists(inner, min_size=1, max_size=3)
    keywords = {
        "type": TYPES | st.lists(TYPES, min_size=1, max_size=3, unique=True),
        "enum": st.lists(VALUES, max_size=3), "const": VALUES,
        "required": st.lists(NAMES, max_size=2, unique=True), "properties": named, "additionalProperties": inner,
        "patternProperties": st.dictionaries(st.sampled_from(["^a", "b$", "[bc]"]), inner, max_size=2),
        "propertyNames": inner, "minProperties": SIZES, "maxProperties": SIZES,
        "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, max_size=2, unique=True), max_size=2),
        "dependentSchemas": named,
        "items": inner, "prefixItems": several, "minItems": SIZES, "maxItems": SIZES, "uniqueItems": st.booleans(),
        "contains": inner, "minContains": SIZES, "maxContains": SIZES,
        "minLength": SIZES, "maxLength": SIZES, "pattern": st.sampled_from(["^a", "b$", "(a|b)+", "é", "a{2}"]),
        "minimum": st.integers(-2, 2), "maximum": st.integers(-2, 2), "exclusiveMinimum": st.sampled_from([0.5, 1]),
        "exclusiveMaximum": st.sampled_from([0.5, 1]), "multipleOf": st.sampled_from([0.5, 2, 1.5]),
        "allOf": several, "anyOf": several, "oneOf": several, "not": inner, "if": inner, "then": inner, "else": inner,
        "$ref": REFERENCES, "$defs": named, "title": st.just("words") | st.just(3), "default": VALUES,
    }  # fmt: skip
    some = st.lists(st.sampled_from(sorted(keywords)), max_size=4, unique=True)
    return some.flatmap(lambda names: st.fixed_dictionaries({name: keywords[name] for name in names}))


SCHEMAS = st.recursive(st.booleans() | schemas(st.booleans()), schemas, max_leaves=6)


def of_the_library(schema, value) -> bool | None:
    try:
        Draft202012Validator.check_schema(schema)
        return Draft202012Validator(schema, registry=Registry()).is_valid(value)
    except (SchemaError, Unresolvable, RecursionError):
        return None


@settings(max_examples=300, deadline=None)
@given(SCHEMAS, st.lists(VALUES, min_size=1, max_size=6))
def test_ordinary_checks_are_those_of_the_library(schema, values):
    compiled = JsonSchema(schema)
    for value in values:
        wanted, found = of_the_library(schema, value), compiled.fits(json.dumps(value), Work())
        # What is not known of one part decides nothing where another part does not fit; the library stops at the first.
        assert found is wanted or (wanted is None and found is False and "$ref" in json.dumps(schema))


def test_equal_numbers_are_equal_and_true_is_not_one():
    for values, unique in (
        ("[1, 1.0]", False),
        ("[1, true]", True),
        ("[[0], [false]]", True),
        ('[{"a": 1}, {"a": 1.0}]', False),
    ):
        assert JsonSchema({"uniqueItems": True}).fits(values, Work()) is unique
    assert JsonSchema({"enum": [1.0]}).fits("1", Work()) is True
    assert JsonSchema({"const": 1}).fits("true", Work()) is False


@pytest.mark.parametrize("pattern", ["(?=a)b", r"(a)\1", "a{5000}", "x" * 5000, "["])
def test_a_pattern_that_cannot_be_searched_is_not_held_against_the_call(pattern):
    schema = {"properties": {"a": {"pattern": pattern}}, "required": ["b"]}
    assert JsonSchema(schema).fits('{"a": "b", "b": 1}', Work()) is None
    assert JsonSchema(schema).fits('{"a": "b"}', Work()) is False
    assert JsonSchema({"not": {"pattern": pattern}}).fits('"a"', Work()) is None


def doubling(levels: int) -> dict:
    parts = {f"l{i}": {"anyOf": [{"$ref": f"#/$defs/l{i + 1}"}] * 2} for i in range(levels)}
    return {"$defs": {**parts, f"l{levels}": {"type": "null"}}, "$ref": "#/$defs/l0"}


def nested(keyword: str, levels: int) -> dict:
    found: dict = {"type": "null"}
    for _ in range(levels):
        found = {keyword: [found, found]}
    return found


COLLIDING = [k * (2**61 - 1) for k in range(1, 3001)]
"""Numbers with one hash."""
HOSTILE = {
    "backtracking": ({"pattern": "^(a+)+$"}, "a" * 40 + "!"),
    "long text": ({"pattern": "(x+x+)+y"}, "x" * 1_000_000),
    "large pattern": ({"pattern": "((a{0,30}){0,30})!"}, "a" * 100_000),
    "many patterns": ({"patternProperties": {f"(a|b{i})*c": {} for i in range(3000)}}, {f"{i}aaaa": 1 for i in range(300)}),
    "unique objects": ({"uniqueItems": True}, [{"a": i, "b": [i]} for i in range(30_000)]),
    "unique numbers": ({"uniqueItems": True}, COLLIDING),
    "enum of numbers": ({"items": {"enum": COLLIDING}}, COLLIDING),
    "enum": ({"items": {"enum": [{"a": i} for i in range(20_000)]}}, [{"a": -i} for i in range(20_000)]),
    "nested anyOf": (nested("anyOf", 16), "x" * 10_000),
    "nested oneOf": (nested("oneOf", 16), "x" * 10_000),
    "doubling references": (doubling(40), 1),
    "reference to itself": ({"$ref": "#"}, 1),
    "reference to all of itself": ({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}, 1),
    "contains": ({"items": {"contains": {"const": 1}}}, [[2] * 300] * 300),
    "required": ({"items": {"required": [f"k{i}" for i in range(20_000)]}}, [{}] * 20_000),
    "wide": ({"properties": {f"k{i}": {"type": "string"} for i in range(50_000)}}, {}),
    "deep": ({"items": {"$ref": "#"}, "uniqueItems": True}, None),
    "large numbers": ({"items": {"multipleOf": 1e-300}}, [10**300 + i for i in range(5000)]),
    "errors that hold the value": ({"anyOf": [False] * 3000}, ["word " * 20] * 3000),
    "unevaluated": ({**doubling(40), "unevaluatedProperties": False}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_and_values_end_by_what_they_do_not_by_the_clock(name):
    schema, value = HOSTILE[name]
    text = json.dumps(value) if name != "deep" else "[" * 900 + "1" + "]" * 900
    work = Work()
    start = time.process_time()
    assert JsonSchema(schema).fits(text, work) in (True, False, None)
    assert time.process_time() - start < 2  # for ever without limits; how long exactly: benchmarks/attacks.py


def test_what_takes_too_long_is_not_known_and_small_work_is_known():
    assert JsonSchema(doubling(40)).fits("1", Work()) is None
    assert JsonSchema(doubling(4)).fits("1", Work()) is False
    assert JsonSchema({"pattern": "^(a+)+$"}).fits(json.dumps("a" * 40 + "!"), Work()) is False
    schema = {"type": "object", "properties": {"rows": {"items": {"type": "object", "required": ["a"]}}}}
    rows = [{"a": random.Random(i).random()} for i in range(1000)]
    assert JsonSchema(schema).fits(json.dumps({"rows": rows}), Work()) is True
    assert JsonSchema(schema).fits(json.dumps({"rows": [*rows, {}]}), Work()) is False


def test_a_call_whose_check_takes_too_long_counts_as_one_that_fits():
    context = Context("look", ("seen",), (), 50)
    calls = {name: Action(name, (ToolCall(name, "1"),)) for name in ("wrong", "plain", "hard")}
    tools = [{"name": "hard", "parameters": doubling(40)}, {"name": "wrong", "parameters": doubling(4)}, {"name": "plain"}]
    scores = asyncio.run(ToolCallVerifier(tools).score(context, list(calls.values())))
    assert scores[0] == 0 < scores[1] == scores[2]
