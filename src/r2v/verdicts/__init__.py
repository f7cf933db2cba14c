"""Verdicts say whether the work so far is right, from what the agent has seen: what a user knows about success.

verdicts:
  - tests
  - reward: {label: score, full: 100}
  - regex: {name: booked, right: "Booking confirmed", wrong: ["Booking failed", "no seats"]}

One file a verdict. A package adds its own by an entry point of the group `r2v.verdicts`, or it is named as
`package.module:Thing`: an object, or a class that takes the options, with `name` and `read` (`r2v.verdicts.base.Verdict`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from r2v.core.errors import SettingsError
from r2v.runtime import plugins
from r2v.runtime.settings import Settings, validated
from r2v.verdicts.base import Verdict

BUILT_IN = {
    "tests": "r2v.verdicts.tests:TestsVerdict",
    "reward": "r2v.verdicts.reward:RewardVerdict",
    "schema": "r2v.verdicts.schema:SchemaVerdict",
    "regex": "r2v.verdicts.regex:RegexVerdict",
    "function": "r2v.verdicts.function:FunctionVerdict",
    "second_draft": "r2v.verdicts.second_draft:AgreementVerdict",
    "judge": "r2v.verdicts.judge:JudgeVerdict",
}


def verdict_named(name: str, options: Mapping[str, Any] | None = None) -> Verdict:
    """The verdict of that name, with its options.

    Args:
        name: a built-in verdict, an entry point, or `package.module:Thing`.
        options: what its settings take; for a class of one's own the arguments of its constructor.

    Raises:
        SettingsError: there is no such verdict, or an option is wrong.
    """
    found: Any = plugins.load("verdicts", name, BUILT_IN)
    given = dict(options or {})
    at = f"verdicts.{name}"
    if isinstance(found, type) and issubclass(found, Settings):
        found = validated(found, given, at)
    elif isinstance(found, type):
        try:
            found = found(**given)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"`{at}`: {error}") from None
    elif given:
        raise SettingsError(f"`{at}` is an object, which takes no options; name its class instead")
    if not callable(getattr(found, "read", None)) or not isinstance(getattr(found, "name", None), str):
        raise SettingsError(
            f"`{at}` is no verdict: it needs `name` and `read(context)`; a function is named as `function: {{call: {name}}}`"
        )
    verdict: Verdict = found
    return verdict


def parse_verdicts(listed: Sequence[Any]) -> tuple[Verdict, ...]:
    """The verdicts of a list in a settings file, in its order: the one that is trusted most stands first.

    Args:
        listed: names, or one-key mappings of a name to its options.

    Raises:
        SettingsError: what is wrong, in one line.
    """
    if isinstance(listed, str | Mapping) or not isinstance(listed, Sequence):
        raise SettingsError("`verdicts` must be a list, e.g. `verdicts: [tests]`")
    found: dict[str, Verdict] = {}
    for item in listed:
        name, options = next(iter(item.items())) if isinstance(item, Mapping) and len(item) == 1 else (item, None)
        if not isinstance(name, str) or not (options is None or isinstance(options, Mapping)):
            raise SettingsError(f"`verdicts` has {item!r}: write a name, or one name with its options, e.g. `tests: {{}}`")
        verdict = verdict_named(name, options)
        if verdict.name in found:
            raise SettingsError(f"`verdicts` has two called {verdict.name}: give one of them another `name`")
        found[verdict.name] = verdict
    return tuple(found.values())
