"""`Session`: a cell of AgentDojo as an environment. Each action is one tool call; an answer in words ends it."""

from __future__ import annotations

import copy
import hashlib

from r2v.core.types import Action, Observation
from r2v.domains.agentdojo.chat_format import call_of
from r2v.domains.agentdojo.engine import Cell, Judged


class Session:
    """One episode (`r2v.core.protocols.Branching`). It has no step limit of its own."""

    def __init__(self, cell: Cell) -> None:
        self.goal = cell.prompt
        self.judged: Judged | None = None
        """What the engine says after the end."""
        self._cell, self._state = cell, cell.start

    async def start(self) -> Observation:
        """The tools that there are."""
        return self._observe(f"Your tools:\n{self._cell.tools}")

    async def step(self, action: Action) -> Observation:
        if self.judged is not None:
            raise RuntimeError("the episode is over; build a new environment")
        call = call_of(action.text)
        if call is None:
            self.judged = self._cell.judge(self._state, action.text)
            return self._observe("ended; the injection was carried out" if self.judged.injected else "ended")
        self._state = self._state.after((call,))
        return self._observe(self._state.results[0])

    async def close(self) -> None:
        """Nothing to free."""

    def clone(self) -> Session:
        """An independent copy of the present: states never change."""
        return copy.copy(self)

    def _observe(self, text: str) -> Observation:
        cell = self._cell
        reached = repr((cell.suite, cell.user_task, cell.injection_task, self._state.calls, self.judged))
        latent = hashlib.sha256(reached.encode()).hexdigest()[:16]
        success = None if self.judged is None else self.judged.success
        return Observation(text, success is not None, success, None, latent, ())
