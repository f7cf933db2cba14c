"""`regex`: patterns of what a right and a wrong result look like."""

from __future__ import annotations

import re
from sys import getsizeof

from r2v.core.cache import remembered
from r2v.core.types import Context
from r2v.runtime.settings import PositiveInt, Settings
from r2v.verdicts.aside import SECONDS, Aside
from r2v.verdicts.base import REMEMBERED_BYTES, results, warn_once

SEARCHER = Aside("""
import re
def answer(patterns, text):
    return int(any(re.search(pattern, text, re.M) for pattern in patterns))
""")
"""Some patterns take exponential time on some texts."""


class RegexVerdict(Settings):
    """By the newest of the last results in which a pattern is found; where both kinds are, it is wrong."""

    name: str = "regex"
    right: str | tuple[str, ...] = ()
    """Searched in the first 2,000 and the last 16,000 characters of a result; `^` and `$` are the ends of a line."""
    wrong: str | tuple[str, ...] = ()
    last: PositiveInt = 5
    """How many of the latest results are looked at."""

    def __post_init__(self) -> None:
        if not self.right and not self.wrong:
            raise ValueError("give patterns in `right` or in `wrong`")
        for pattern in (*_patterns(self.right), *_patterns(self.wrong)):
            try:
                re.compile(pattern, re.M)
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None

    def read(self, context: Context) -> float | None:
        for i, (_, text) in enumerate(results(context)):
            if i == self.last:
                break
            for value, patterns in ((0.0, _patterns(self.wrong)), (1.0, _patterns(self.right))):
                found = searched(patterns, text) if patterns else 0
                if found is None:
                    warn_once(self.name, f"a search took more than {SECONDS:g} s; nothing is known of such a text")
                    return None
                if found:
                    return value
        return None


def _patterns(given: str | tuple[str, ...]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else given


@remembered(
    REMEMBERED_BYTES, lambda patterns, text: getsizeof(text)
)  # an agent sends all earlier results again at every step
def searched(patterns: tuple[str, ...], text: str) -> int | None:
    """1 where one of the patterns is found in a text, 0 where none is, None where that took too long."""
    found: int | None = SEARCHER.ask(patterns, text.encode("utf-8", "replace").decode())
    return found
