"""A policy that needs no model, for tests and examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from r2v.core.types import Action, Candidate, Context, Usage


class ScriptedPolicy:
    """Proposes commands from a list (by step) or from a function of the context; k equal candidates."""

    def __init__(self, script: Sequence[str] | Callable[[Context], str], name: str = "scripted") -> None:
        self.name = name
        self._script = script

    async def propose(self, context: Context, k: int, *, seed: int) -> tuple[Candidate, ...]:
        """Raises IndexError when the list is too short."""
        text = self._script(context) if callable(self._script) else self._script[context.t]
        return (Candidate(Action(text), None, None, Usage(calls=1)),) * k
