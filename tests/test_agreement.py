"""Would the teacher have acted alike: what counts as the same action."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2v.core.agreement import alike
from r2v.core.types import Action, ToolCall


def does(*calls: tuple[str, object]) -> Action:
    made = tuple(
        ToolCall(name, arguments if isinstance(arguments, str) else json.dumps(arguments)) for name, arguments in calls
    )
    return Action("\n".join(call.name for call in made), made)


SAME = [
    ({"b": 1, "a": [2]}, '{ "a" : [2.0], "b":1.0}'),
    ({"path": "./src//a.py"}, {"path": "src/a.py"}),
    ({"filePath": "src/./a.py"}, {"filePath": "src/a.py"}),
    ({"path": "a", "limit": None, "force": False, "only": []}, {"path": "a"}),
    ({"command": "ls  -l './a'", "description": "list it"}, {"command": "ls -l a", "description": "look"}),
    ({"command": ["bash", "-lc", "ls   a"]}, {"command": ["bash", "-lc", "ls a"]}),
    ({"content": "x = 1  \r\n"}, {"content": "x = 1\n"}),
    ("", {}),
    ("[broken ", "[broken"),
]
OTHER = [
    ({"a": 1}, {"a": 2}),
    ({"a": 1}, {"a": True}),
    ({"a": 1}, {"a": "1"}),
    ({"a": 0}, {}),
    ({"description": "one issue"}, {"description": "another"}),
    ({"command": "./run.sh"}, {"command": "run.sh"}),
    ({"command": "cd d; ./run.sh"}, {"command": "cd d; run.sh"}),
    ({"command": 'echo "$HOME"'}, {"command": "echo '$HOME'"}),
    ({"command": "echo 2 > a"}, {"command": "echo 2> a"}),
    ({"command": "cat <<E\n  a\nE"}, {"command": "cat <<E\na\nE"}),
    ({"old": "    return x"}, {"old": "return x"}),
    ({"url": "http://a//b"}, {"url": "http://a/b"}),
    ("[broken", "[other"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_spelling_does_not_matter(one, other):
    assert alike(does(("t", one)), does(("t", other))) is True


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_what_is_done_does(one, other):
    assert alike(does(("t", one)), does(("t", other))) is False


def test_calls_are_compared_as_a_multiset_and_words_only_where_nobody_calls():
    a, b = ("look", {"where": "x"}), ("read", {"path": "y"})
    assert alike(does(a, b), does(b, a)) is True
    assert alike(does(a, a), does(a)) is False
    assert alike(does(a), does(("see", a[1]))) is False
    assert alike(does(a), Action("look x")) is False
    assert alike(Action("I am  done.\n"), Action("I am done.")) is True
    assert alike(Action("Done."), Action("All tests pass.")) is None


NAMES = st.sampled_from(["command", "path", "reason", "n", "content"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("a./ '\"\n\\$;|{}", max_size=12) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.builds(ToolCall, st.sampled_from(["a", "b"]), VALUES.map(json.dumps) | st.text(max_size=8))
ACTIONS = st.builds(Action, st.text(max_size=8), st.lists(CALLS, max_size=3).map(tuple))


@given(ACTIONS, ACTIONS)
def test_it_is_symmetric_and_reflexive(one, other):
    assert alike(one, one) is True
    assert alike(one, other) == alike(other, one)


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_the_form_of_the_json_never_matters(arguments):
    one, other = json.dumps(arguments, indent=1), json.dumps(dict(reversed(arguments.items())), separators=(",", ":"))
    assert alike(does(("t", one)), does(("t", other))) is True
