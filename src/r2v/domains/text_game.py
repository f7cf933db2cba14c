"""`TextGame`: the base of small environments that only compute; a subclass implements commands in `play`."""

from __future__ import annotations

import copy
import hashlib
from typing import Self

from r2v.core.types import Action, Observation


class TextGame:
    """An environment (`r2v.core.protocols.Branching`) whose whole state is in its attributes, plain values."""

    def __init__(self, goal: str, opening: str) -> None:
        """`opening`: the first observation."""
        self.goal = goal
        self.opening = opening
        self.success: bool | None = None
        """Set by `play` when the episode is over."""

    def play(self, command: str) -> str:
        """Change the state; the answer is what the agent sees."""
        raise NotImplementedError

    async def start(self) -> Observation:
        return self._observe(self.opening)

    async def step(self, action: Action) -> Observation:
        if self.success is not None:
            raise RuntimeError("the episode is over; build a new environment")
        return self._observe(self.play(action.text))

    async def close(self) -> None:
        """Nothing to free."""

    def clone(self) -> Self:
        return copy.deepcopy(self)

    def _observe(self, text: str) -> Observation:
        latent = hashlib.sha256(repr(sorted(vars(self).items())).encode()).hexdigest()[:16]
        return Observation(text, self.success is not None, self.success, None, latent, ())
