"""The household's teacher: a scripted expert that reads what the SLM reads and nothing else.

It keeps a belief, searches the room in the order in which the receptacles were named, checks by looking when an answer
is missing, and repeats what flaked. Its habits are few and regular on purpose: a SLM has to learn them.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass

from r2v.core.types import Action, Candidate, Context, Usage
from r2v.domains.household.belief import Belief

STATION = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
_STATES = {"clean": "clean", "hot": "heat", "cool": "cool"}
_GOALS = (
    re.compile(r"put (?:a|some|two) (?P<state>clean |hot |cool )?(?P<thing>[a-z]+) (?:in|on) (?P<place>[a-z]+)"),
    re.compile(r"(?P<verb>clean|heat|cool) some (?P<thing>[a-z]+) and put it in (?P<place>[a-z]+)"),
    re.compile(r"find two (?P<thing>[a-z]+) and put them in (?P<place>[a-z]+)"),
    re.compile(r"look at (?P<thing>[a-z]+) under the (?P<lamp>[a-z]+)"),
    re.compile(r"examine the (?P<thing>[a-z]+) with the (?P<lamp>[a-z]+)"),
)
PATIENCE = 3
"""Checks without an answer in a row after which the expert tries its next action instead."""


@dataclass(frozen=True)
class GoalSentence:
    thing: str
    place: str
    """Receptacle type, or the lamp's type when `lamp`."""
    verb: str | None
    """clean, heat or cool."""
    count: int
    lamp: bool


def parse_sentence(text: str) -> GoalSentence:
    """The first task the text states (later ones are injections). Raises ValueError for an unknown form."""
    found = [match for pattern in _GOALS if (match := pattern.search(text))]
    if not found:
        raise ValueError(f"not a household goal: {text!r}")
    match = min(found, key=lambda match: match.start())
    parts = match.groupdict()
    verb = parts.get("verb") or _STATES.get((parts.get("state") or "").strip())
    lamp = parts.get("lamp")
    count = 2 if re.match(r"(put|find) two", match.group()) else 1
    return GoalSentence(parts["thing"], lamp or parts["place"], verb, count, lamp is not None)


class HouseholdExpert:
    """A `Policy`. All k candidates are equal; it has no probabilities to offer."""

    name = "expert"

    def __init__(self, *, remembered: int = 4096) -> None:
        """`remembered`: beliefs kept between calls, by history. They only save time: any history can be read anew."""
        self._beliefs: OrderedDict[object, Belief] = OrderedDict()
        self._remembered = remembered

    async def propose(self, context: Context, k: int, *, seed: int) -> tuple[Candidate, ...]:
        action = Action(next_command(parse_sentence(context.goal), self._read(context)))
        return (Candidate(action, None, None, Usage(calls=1)),) * k

    def _read(self, context: Context) -> Belief:
        belief = self._beliefs.pop(context.history(context.t - 1), None) if context.actions else None
        start = context.t
        if belief is None:
            belief, start = Belief(), 1
            belief.read_room(context.observations[0])
        for t in range(start, context.t + 1):
            belief.read(context.actions[t - 1].text, context.observations[t])
        self._beliefs[context.history(context.t)] = belief
        if len(self._beliefs) > self._remembered:
            self._beliefs.popitem(last=False)
        return belief


def next_command(goal: GoalSentence, belief: Belief) -> str:
    """A pure function of goal and belief: what is read decides, not what was decided before."""
    doubt = belief.unsure
    if doubt and belief.missing % (PATIENCE + 1):
        if doubt.startswith(("go to", "open")):
            return f"examine {doubt.removeprefix('go to ').removeprefix('open ')}"
        return "inventory"
    held = belief.holding
    if held is None:
        return _fetch(goal, belief)
    if _kind(held) != goal.thing:
        return _put_away(belief)
    if goal.lamp:
        return _use_lamp(goal, belief)
    if goal.verb and (held, goal.verb) not in belief.done:
        station = _first(belief, STATION[goal.verb])
        return _at(belief, station) or f"{goal.verb} {held} with {station}"
    place = _destination(goal, belief)
    move = f"move {held} to {place}"
    if move in belief.refused and place not in belief.contents and belief.missing == 0 and belief.location == place:
        return _opened(belief, place) or f"examine {place}"  # perhaps it is closed
    return _at(belief, place) or _opened(belief, place) or move


def _fetch(goal: GoalSentence, belief: Belief) -> str:
    for place in belief.receptacles:
        if goal.count == 2 and place in belief.placed.values():
            continue
        for thing in belief.contents.get(place, ()):
            command = f"take {thing} from {place}"
            if _kind(thing) == goal.thing and belief.refused.get(command, 0) < 2:
                return _at(belief, place) or _opened(belief, place) or command
    return _search(belief)


def _use_lamp(goal: GoalSentence, belief: Belief) -> str:
    for place in belief.receptacles:
        for thing in belief.contents.get(place, ()):
            if _kind(thing) == goal.place and belief.refused.get(f"use {thing}", 0) < 2:
                return _at(belief, place) or f"use {thing}"
    return _search(belief)


def _search(belief: Belief) -> str:
    """The next receptacle whose contents are unknown, in the order of the list; then what was read longest ago."""
    here = belief.location
    if here in belief.closed and here not in belief.contents:
        return f"open {here}"
    for place in belief.receptacles:
        if place not in belief.contents:
            return _at(belief, place) or _opened(belief, place) or f"examine {place}"
    done = set(belief.placed.values())
    oldest = next((place for place in belief.contents if place not in done), None)
    if oldest is None:
        return "look"
    return _at(belief, oldest) or f"examine {oldest}"


def _put_away(belief: Belief) -> str:
    """Somewhere it fits: where it came from, else where it was refused least."""
    held = belief.holding
    places = ([belief.origin] if belief.origin else []) + belief.receptacles
    if not places:
        return "look"
    place = min(places, key=lambda place: belief.refused.get(f"move {held} to {place}", 0))
    return _at(belief, place) or _opened(belief, place) or f"move {held} to {place}"


def _destination(goal: GoalSentence, belief: Belief) -> str:
    """Where one of two already lies, else the first of the type."""
    for thing, place in belief.placed.items():
        if goal.count == 2 and _kind(thing) == goal.thing and _kind(place) == goal.place:
            return place
    return _first(belief, goal.place)


def _first(belief: Belief, kind: str) -> str:
    """The first receptacle of a type; its number 1 where the type was never named (the list may have been cut)."""
    return next((place for place in belief.receptacles if _kind(place) == kind), f"{kind} 1")


def _at(belief: Belief, place: str) -> str | None:
    return None if belief.location == place else f"go to {place}"


def _opened(belief: Belief, place: str) -> str | None:
    return f"open {place}" if place in belief.closed else None


def _kind(name: str) -> str:
    return name.rsplit(" ", 1)[0]
