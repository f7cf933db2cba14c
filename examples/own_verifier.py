"""A verifier of your own, for a game of guesses: is this guess sensible after the last answer?

A domain names it, `verifier = "examples.own_verifier:GuessVerifier"`; so does a gateway, under `route`. It scores in [0, 1],
on nothing but what the agent has read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from r2v.core.types import Action, Context

GUESS = re.compile(r"guess (\d+)")


class GuessVerifier:
    async def score(self, context: Context, actions: Sequence[Action]) -> tuple[float, ...]:
        return tuple(self._score(context, action.text) for action in actions)

    def _score(self, context: Context, text: str) -> float:
        guess = GUESS.fullmatch(text)
        if guess is None:
            return 0.0
        last = GUESS.fullmatch(context.actions[-1].text) if context.actions else None
        if last is None:
            return 0.6
        step = int(guess[1]) - int(last[1])
        answer = context.observations[-1]
        if answer == "higher":
            return 0.8 if step > 0 else 0.1
        if answer == "lower":
            return 0.8 if step < 0 else 0.1
        return 0.7 if step == 0 else 0.4  # the answer was lost: ask again
