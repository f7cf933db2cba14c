"""`RecordedPolicy`: what a real model did, played back. Routing can be studied on real errors, without the model.

A state is all that was known: the goal, the observations, the actions so far. Recordings of single questions are episodes
of one step. Where the recording has no answer for a state, the policy raises `NotRecorded`; it never makes one up.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from r2v.core.errors import NotRecorded
from r2v.core.seeds import derive_seed
from r2v.core.types import Action, Candidate, Context, Episode, Usage


class RecordedPolicy:
    """The actions of `episodes`, by state. Where a state was recorded several times, it draws from what was done there."""

    def __init__(self, name: str, episodes: Iterable[Episode]) -> None:
        """`name`: of the model that was recorded."""
        self.name = name
        self._actions: dict[object, list[Action]] = {}
        for episode in episodes:
            for step, context in zip(episode.steps, episode.contexts(len(episode.steps)), strict=True):
                self._actions.setdefault(context.history(context.t), []).append(step.choice.action)

    async def propose(self, context: Context, k: int, *, seed: int) -> tuple[Candidate, ...]:
        """k draws, the same ones for the same seed; a recording has no log-probabilities. Raises NotRecorded."""
        goal, observations, commands = history = context.history(context.t)
        recorded = self._actions.get(history)
        if recorded is None:
            state = f"{derive_seed(goal, *observations, *commands):016x}"
            raise NotRecorded(f"{self.name} has no recorded action for step {context.t} of {goal[:60]!r} (state {state})")
        drawn = recorded[:1] * k if len(recorded) == 1 else random.Random(seed).choices(recorded, k=k)
        return tuple(Candidate(action, None, None, Usage(calls=1)) for action in drawn)
