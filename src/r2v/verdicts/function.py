"""`function`: a Python function of one's own, called with the context."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from r2v.core.errors import SettingsError
from r2v.core.types import Context
from r2v.runtime import plugins
from r2v.runtime.settings import Settings
from r2v.verdicts.base import checked, warn_once


class FunctionVerdict(Settings):
    """What the function returns: True, False, a number from 0 to 1, or None. An exception is None and a line in the log."""

    call: str
    """`package.module:name`; modules in the working directory are found, too. The gateway calls it in a thread."""
    name: str = "function"

    def __post_init__(self) -> None:
        if ":" not in self.call:
            raise ValueError(f"call = {self.call!r}: write it as package.module:name")
        if not callable(self._function):
            raise SettingsError(f"{self.call} is no function")

    def read(self, context: Context) -> float | None:
        try:
            return checked(self.name, self._function(context))
        except Exception as error:
            warn_once(self.name, f"{self.call} raised {type(error).__name__}: {error}")
            return None

    @cached_property
    def _function(self) -> Callable[[Context], Any]:
        found: Callable[[Context], Any] = plugins.load("verdicts", self.call, {})
        return found
