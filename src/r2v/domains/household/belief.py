"""Belief state of a careful reader after each observation: only sentences that the household itself writes count.

Injected sentences, hints and missing answers change nothing here, except that an action without its answer leaves a
doubt (`unsure`) that has to be cleared by looking.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from r2v.domains.household.catalogue import ENTITY

_LIST = r"((?:an? [a-z]+ \d+(?:, and |, )?)+)"
_NAME = r"([a-z]+ \d+)"
ROOM = re.compile(rf"Looking quickly around you, you see {_LIST}")
ARRIVE = re.compile(rf"You arrive at {_NAME}")
CONTENTS = re.compile(rf"(?:On the {_NAME}, you see|The {_NAME} is open\. In it, you see) (?:nothing\.|{_LIST}(\.)?)")
CLOSED = re.compile(rf"The {_NAME} is closed\.")
PICKED = re.compile(rf"You pick up the {_NAME} from the {_NAME}\.")
PLACED = re.compile(rf"You (?:move|put) the {_NAME} (?:to|in/on) the {_NAME}\.")
CHANGED = re.compile(rf"You (clean|heat|cool) the {_NAME} using the {_NAME}\.")
SWITCHED = re.compile(rf"You turn on the {_NAME}\.")
CARRYING = re.compile(rf"You are carrying: a {_NAME}\.")
EMPTY_HANDED = "You are not carrying anything."

ACTION = re.compile(
    rf"^(go to|open|close|examine|use) {_NAME}$|^(take|move|put|clean|heat|cool) {_NAME} (?:from|to|in/on|with) {_NAME}$"
)


@dataclass(slots=True)
class Belief:
    receptacles: list[str] = field(default_factory=list)
    """In the order first read; numbers below a seen one are implied and come last."""
    contents: dict[str, list[str]] = field(default_factory=dict)
    """Receptacle -> what was last read there, longest ago first. A receptacle is known once it is a key."""
    closed: set[str] = field(default_factory=set)
    location: str | None = None
    holding: str | None = None
    origin: str | None = None
    """Where the held thing was taken from: it fits there again."""
    done: set[tuple[str, str]] = field(default_factory=set)
    """(thing, "clean" | "heat" | "cool")."""
    placed: dict[str, str] = field(default_factory=dict)
    """Thing -> receptacle we put it in."""
    unsure: str | None = None
    """The action whose answer is missing."""
    missing: int = 0
    """Answers missing in a row."""
    refused: dict[str, int] = field(default_factory=dict)
    """Commands that were seen to have no effect, and how often."""

    def read_room(self, text: str) -> None:
        for found in ROOM.finditer(text):
            self._note_receptacles(ENTITY.findall(found.group(1)))

    def read(self, action: str, text: str) -> None:
        """Fold one action and its answer."""
        self.read_room(text)
        parsed = ACTION.match(action)
        verb, a = action, ""
        if parsed:
            verb = parsed.group(1) or parsed.group(3)
            a = parsed.group(2) or parsed.group(4)
        clear = self._read_answers(text)
        answered = (
            (verb in ("go to", "open", "examine") and ("at", a) in clear)
            or (verb == "close" and f"You close the {a}." in text)
            or (verb == "inventory" and "hands" in clear)
            or (verb == "take" and ("took", a) in clear)
            or (verb in ("move", "put") and ("placed", a) in clear)
            or (verb in ("clean", "heat", "cool") and (a, verb) in clear)
            or (verb == "use" and ("on", a) in clear)
            or verb in ("look", "help")
        )
        if verb == "close" and answered:
            self.closed.add(a)
        doubt = self.unsure
        if answered:
            self.missing = 0
            if verb == "inventory" and doubt:
                self._settle(doubt)
            self.unsure = None
            return
        self.missing += 1
        if verb == "go to" and a in self.receptacles:
            self.location = a  # going to a place that exists works, whatever the answer is
        if verb in ("go to", "open", "take", "move", "put"):
            self.unsure = action

    def _read_answers(self, text: str) -> set[object]:
        """Believe every sentence of the household; returns what is now certain."""
        clear: set[object] = set()
        for found in ARRIVE.finditer(text):
            self.location = found.group(1)
            self._note_receptacles([self.location])
        for found in CONTENTS.finditer(text):
            place = found.group(1) or found.group(2)
            self._note_receptacles([place])
            things = ENTITY.findall(found.group(3) or "")
            self.contents.pop(place, None)
            self.contents[place] = things
            self.refused = {c: n for c, n in self.refused.items() if not c.endswith(f"from {place}")}
            self.closed.discard(place)
            self.location = place
            if found.group(4) or not things:  # a list without its full stop was cut off
                clear.add(("at", place))
        for found in CLOSED.finditer(text):
            self.closed.add(found.group(1))
            self.location = found.group(1)
            clear.add(("at", found.group(1)))
        for found in PICKED.finditer(text):
            self._take(found.group(1), found.group(2))
            clear.add(("took", found.group(1)))
        for found in PLACED.finditer(text):
            self._place(found.group(1), found.group(2))
            clear.add(("placed", found.group(1)))
        for found in CHANGED.finditer(text):
            self._change(found.group(1), found.group(2))
            clear.add((found.group(2), found.group(1)))
        for found in SWITCHED.finditer(text):
            clear.add(("on", found.group(1)))
        if found_held := CARRYING.search(text):
            self.holding = found_held.group(1)
            clear.add("hands")
        elif EMPTY_HANDED in text:
            clear.add("hands")
            self.holding = None
        return clear

    def _settle(self, doubt: str) -> None:
        """The hands are known: did the take or put in doubt work?"""
        parsed = ACTION.match(doubt)
        if not parsed or not parsed.group(3):
            return
        verb, thing, place = parsed.group(3), parsed.group(4), parsed.group(5)
        if verb == "take" and self.holding == thing:
            self._take(thing, place)
        elif verb in ("move", "put") and self.holding is None:
            self._place(thing, place)
        else:
            self.refused[doubt] = self.refused.get(doubt, 0) + 1

    def _take(self, thing: str, place: str) -> None:
        self.holding, self.origin, self.location = thing, place, place
        self.placed.pop(thing, None)
        if thing in self.contents.get(place, ()):
            self.contents[place] = [other for other in self.contents[place] if other != thing]

    def _place(self, thing: str, place: str) -> None:
        self.holding, self.location = None, place
        self.placed[thing] = place
        self.contents.setdefault(place, [])
        if thing not in self.contents[place]:
            self.contents[place] = [*self.contents[place], thing]

    def _change(self, verb: str, thing: str) -> None:
        self.done.add((thing, verb))
        if verb in ("heat", "cool"):
            self.done.discard((thing, "cool" if verb == "heat" else "heat"))

    def _note_receptacles(self, names: list[str]) -> None:
        for name in names:
            if name not in self.receptacles:
                self.receptacles.append(name)
        for name in names:  # they are numbered from 1, so a higher number implies the lower ones
            kind, number = name.rsplit(" ", 1)
            for lower in range(int(number) - 1, 0, -1):
                if f"{kind} {lower}" not in self.receptacles:
                    self.receptacles.append(f"{kind} {lower}")
