"""ALFWorld games rebuilt from recordings of them, where the game's own file is not at hand.

The room, its places, rules and kinds of things are those of another game of the same room; the things lie where a recording
first shows them. What no recording looked at is not there, or hidden at random (`hide`) as far as the goal needs it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from r2v.core.seeds import derive_seed
from r2v.core.untrusted import read_json
from r2v.domains.household.belief import CONTENTS, PICKED, PLACED
from r2v.domains.household.games import GAME_FILE, load_game, parse_facts
from r2v.domains.household.rules import CLEAN, COOL, HOT, Fact, Goal, World, build_world
from r2v.domains.household.texts import room

Transcript = Sequence[tuple[str, str]]
"""The commands of one episode, each with its answer."""

_THING = re.compile(r"[a-z]+ \d+")
_TRAITS = ("pickupable", "cleanable", "heatable", "coolable", "toggleable", "sliceable")
_STATES = {"pick_clean_then": CLEAN, "pick_heat_then": HOT, "pick_cool_then": COOL}


def normal(text: str) -> str:
    """An answer as recordings spell it: without "You arrive at ...", and with "put ... in/on"."""
    text = re.sub(r"^You arrive at [^.]*\. ", "", text.strip())
    return re.sub(r"^You move the (.+) to the (.+)\.$", r"You put the \1 in/on the \2.", text)


class Games:
    """The game files below a folder, by room."""

    def __init__(self, root: Path) -> None:
        self.paths = {"/".join(path.parts[-3:-1]): path for path in sorted(root.rglob(GAME_FILE))}
        self._of_room: dict[tuple[str, str], Path] = {}
        self.traits: dict[str, set[str]] = defaultdict(set)
        """Kind of thing -> what can be done with it, in any game."""
        self.lies_in: dict[str, set[str]] = defaultdict(set)
        """Kind of thing -> kinds of places where it lies at the start, in any game."""
        for task, path in self.paths.items():
            world, found = load_game(path), _facts(path)
            self._of_room.setdefault((_scene(task), room(world, world.start)), path)
            for place, things in world.start.contents.items():
                for thing in things:
                    self.lies_in[world.type_of[thing]].add(world.type_of[place])
            kinds = {fact[1]: fact[2].removesuffix("type") for fact in found if fact[0] == "objecttype"}
            for predicate, *arguments in found:
                if predicate in _TRAITS and arguments[0] in kinds:
                    self.traits[kinds[arguments[0]]].add(predicate)

    def of_room(self, task: str, first: str) -> Path | None:
        """A game of the same room, if there is one.

        Args:
            task: the recorded game, e.g. `pick_heat_then_place_in_recep-Apple-None-GarbageCan-2/trial_..`.
            first: how its room was described.
        """
        return self._of_room.get((_scene(task), first))


@dataclass(frozen=True)
class Rebuilt:
    """A recorded game."""

    world: World
    given: list[set[int]]
    """Of each transcript the steps whose answers it was made of: the others are predictions."""
    hidden: int
    """How many things were hidden (see `rebuilt`)."""


def rebuilt(games: Games, task: str, like: Path, transcripts: Sequence[Transcript], *, hide: bool = False) -> Rebuilt:
    """A recorded game, from what its recordings show.

    Args:
        games: files of other games.
        task: as for `Games.of_room`.
        like: the file of a game of the same room.
        transcripts: all recorded episodes of this game.
        hide: what the goal needs and no recording shows is put where none looked, in a kind of place where it lies in other
            games, by a seed of the task's name: every real game can be won. Without, such a game cannot be.
    """
    model, facts, goal = load_game(like), _facts(like), _goal(task)
    contents: dict[str, list[str]] = {}
    given = [_first_looks(steps, contents) for steps in transcripts]
    hidden = _hide(games, model, goal, task, contents) if hide else 0
    old = {fact[1] for fact in facts if fact[0] == "objecttype"}
    kept = [fact for fact in facts if not old & set(fact[1:])]
    id_of = {model.names[r]: model.ids[r] for r in model.receptacles}
    place_of = {fact[1]: fact[2] for fact in facts if fact[0] == "receptacleatlocation"}
    where: dict[str, list[str]] = defaultdict(list)  # some games list one thing at two places, e.g. a pan on two burners
    for place, things in contents.items():
        for thing in things:
            where[thing].append(place)
    highest: dict[str, int] = {}
    for name in where:
        what, last = name.rsplit(" ", 1)
        highest[what] = max(int(last), highest.get(what, 0))
    for what, most in highest.items():
        for number in range(1, most + 1):  # numbers not seen lie nowhere; they are there so that the others keep theirs
            entity = f"{what}_bar_{10_000 - number}"
            kept.append(("objecttype", entity, f"{what}type"))
            kept += [(trait, entity) for trait in sorted(games.traits[what])]
            for place in where.get(f"{what} {number}", ()):
                kept += [("inreceptacle", entity, id_of[place]), ("objectatlocation", entity, place_of[id_of[place]])]
    cleaners = frozenset(model.type_of[r] for r in model.traits["cleans"])
    return Rebuilt(build_world(kept, goal, "", "put", cleaners), given, hidden)


def _first_looks(steps: Transcript, contents: dict[str, list[str]]) -> set[int]:
    """Add the places first seen in these steps, as they were at the start; returns the steps whose answers were used."""
    used: set[int] = set()
    taken: dict[str, str] = {}
    put: set[str] = set()
    for t, (_, answer) in enumerate(steps):
        for found in CONTENTS.finditer(answer):
            place = found.group(1) or found.group(2)
            if place not in contents:
                things = [name for name in _THING.findall(found.group(3) or "") if name not in put]
                contents[place] = things + [name for name, origin in taken.items() if origin == place]
                used.add(t)
        for found in PICKED.finditer(answer):
            thing, origin = found.groups()
            if thing not in put:
                taken[thing] = origin
                if thing not in contents.get(origin, [thing]):
                    contents[origin].append(thing)  # the other episode had not left it there
        put |= {found.group(1) for found in PLACED.finditer(answer)}
    return used


def _hide(games: Games, model: World, goal: Goal, task: str, contents: dict[str, list[str]]) -> int:
    """Add what the goal needs and no place holds to places that are not in `contents` yet; returns how many things."""
    needed = [goal.object_type] * (2 if goal.kind == "two" else 1)
    needed += [goal.receptacle_type] if goal.kind == "light" else []
    shown = {thing for things in contents.values() for thing in things}
    for thing in shown:
        if (kind := thing.rsplit(" ", 1)[0]) in needed:
            needed.remove(kind)
    places = [r for r in model.receptacles if model.names[r] not in contents and model.type_of[r] != goal.receptacle_type]
    hidden = 0
    for kind in needed:
        if possible := [model.names[r] for r in places if model.type_of[r] in games.lies_in[kind]]:
            name = next(name for n in range(1, len(shown) + 2) if (name := f"{kind} {n}") not in shown)
            shown.add(name)
            contents.setdefault(possible[derive_seed("hidden", task, name) % len(possible)], []).append(name)
            hidden += 1
    return hidden


def _scene(task: str) -> str:
    """The floor plan's number, which ends a game's folder name."""
    return task.split("/")[0].rsplit("-", 1)[1]


def _facts(path: Path) -> list[Fact]:
    return parse_facts(read_json(path)["pddl_problem"].lower())


def _goal(task: str) -> Goal:
    """From the folder's name, e.g. `pick_heat_then_place_in_recep-Apple-None-GarbageCan-2/trial_..`."""
    family, thing, _, place, _ = task.split("/")[0].lower().split("-")
    if family == "look_at_obj_in_light":
        return Goal("light", thing, place, None)
    state = next((state for name, state in _STATES.items() if family.startswith(name)), None)
    return Goal("two" if family.startswith("pick_two") else "place", thing, place, state)
