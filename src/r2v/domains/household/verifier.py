"""The household verifier: is this command sensible here? Local evidence, no oracle (method, section 4).

    .25 last observation   does what the command names fit what was last read?
    .25 action type        take/put/clean/heat/cool .75, go .65, look .45, where it can apply
    .25 goal overlap       does it name something of the goal?
    .15 no repetition      .10 no oscillation

The 50/50 blend with a visible reward is left out: this environment shows the agent no reward before the end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from r2v.core.types import Action, Context
from r2v.domains.household.catalogue import ENTITY
from r2v.verifiers.evidence import oscillation, repetition

COMMAND = re.compile(
    r"^(?:(?P<one>go to|open|close|examine|use) (?P<what>[a-z]+ \d+)"
    r"|(?P<two>take|move|put|clean|heat|cool|slice) (?P<thing>[a-z]+ \d+) (?:from|to|in/on|with) (?P<place>[a-z]+ \d+)"
    r"|(?P<bare>look|inventory|help))$"
)
FAILED = ("Nothing happens", "Error:")
STATION = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
TYPE_SCORE = {"go to": 0.65, "open": 0.65, "close": 0.45, "examine": 0.45, "look": 0.45, "inventory": 0.45, "help": 0.2}


class HouseholdVerifier:
    """A `Verifier`. Malformed commands score 0."""

    async def score(self, context: Context, actions: Sequence[Action]) -> tuple[float, ...]:
        reading = _Reading(context)
        known: dict[str, float] = {}
        for action in actions:
            if action.text not in known:
                known[action.text] = reading.score(action.text)
        return tuple(known[action.text] for action in actions)


class _Reading:
    """What follows from the context alone, shared by its candidates."""

    def __init__(self, context: Context) -> None:
        self.commands = [action.text for action in context.actions]
        self.last = context.observations[-1]
        self.first = set(ENTITY.findall(context.observations[0]))
        self.visible = set(ENTITY.findall(self.last))
        self.failed = self.last.startswith(FAILED)
        self.goal = set(re.findall(r"[a-z]+", context.goal.split(".")[0]))

    def score(self, command: str) -> float:
        match = COMMAND.match(command)
        if match is None:
            return 0.0
        verb = match["one"] or match["two"] or match["bare"]
        parts = (
            (0.25, self._fits_observation(verb, match)),
            (0.25, self._type(verb, match)),
            (0.25, self._overlap(verb, match)),
            (0.15, repetition(command, self.commands)),
            (0.10, oscillation(command, self.commands)),
        )
        return sum(weight * value for weight, value in parts)

    def _fits_observation(self, verb: str, match: re.Match[str]) -> float:
        """Things must have been read where they are used; after a failed answer, checking fits best."""
        if verb in ("look", "inventory", "examine"):
            return 0.9 if self.failed else 0.4
        if verb == "go to":
            here = f"go to {match['what']}" in self.commands[-1:]
            known = match["what"] in self.first or match["what"] in self.visible
            return 0.1 if here else 0.7 if known else 0.3
        if verb in ("open", "close"):
            state = "closed" if verb == "open" else "open"
            return 0.9 if f"The {match['what']} is {state}" in self.last else 0.2
        if verb == "use":
            return 0.9 if match["what"] in self.visible else 0.3
        if verb == "take":
            return 0.9 if match["thing"] in self.visible and match["place"] in self.visible else 0.0
        place_here = match["place"] in self.visible
        return 0.9 if place_here else 0.3

    def _type(self, verb: str, match: re.Match[str]) -> float:
        if verb == "take" and match["thing"] not in self.visible:
            return 0.0
        if verb in STATION:
            wanted = verb in self.goal or {"heat": "hot", "clean": "clean", "cool": "cool"}[verb] in self.goal
            right_place = match["place"].startswith(STATION[verb])
            return 0.75 if wanted and right_place else 0.1
        return TYPE_SCORE.get(verb, 0.75)

    def _overlap(self, verb: str, match: re.Match[str]) -> float:
        """Share of the command's things that are of a kind the goal names; searching is neutral."""
        if verb in ("take", "move", "put", "clean", "heat", "cool", "slice"):
            thing = match["thing"].rsplit(" ", 1)[0] in self.goal
            place = match["place"].rsplit(" ", 1)[0] in self.goal
            if verb in ("move", "put"):
                return 0.5 * thing + 0.5 * place
            return 1.0 if thing else 0.0
        if verb == "use":
            return 1.0 if match["what"].rsplit(" ", 1)[0] in self.goal else 0.0
        return 0.5
