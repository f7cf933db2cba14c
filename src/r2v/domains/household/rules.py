"""The rules of the ALFWorld household domain: facts -> world, commands -> effects, goal check.

Equal to TextWorld's PDDL engine running ALFWorld's domain and grammar, quirks included (tests compare transcripts):
published prompts depend on them. Entities are numbered in the order of their sorted ids, which is the order of all lists.

A fact is a predicate with entity ids, e.g. ("inReceptacle", "apple_bar_1", "fridge_bar_1"), ids in lower case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal

Dialect = Literal["move", "put"]
"""`move O to R` (ALFWorld data since 0.4.0) or `put O in/on R` (before)."""

Fact = tuple[str, ...]
Effect = tuple[str, int, int]
"""(verb, first entity, second entity), -1 where the verb has none."""

HOT, COOL, CLEAN, SLICED, TOGGLED = "ishot", "iscool", "isclean", "issliced", "istoggled"
NOTHING_HAPPENS = "Nothing happens."


@dataclass(frozen=True)
class Goal:
    """Existential over types: any object of the type counts, in any receptacle of the type."""

    kind: Literal["place", "two", "light"]
    object_type: str
    receptacle_type: str
    """For `light`: the type of the lamp, which must be toggled at the agent's location while the object is held."""
    state: str | None
    """HOT, COOL or CLEAN where the object must be so."""


@dataclass(frozen=True, eq=False)
class World:
    """Everything that never changes during an episode."""

    ids: tuple[str, ...]
    names: tuple[str, ...]
    goal: Goal
    sentence: str
    """The goal as the agent reads it, e.g. "put a clean plate in cabinet."."""
    dialect: Dialect
    receptacles: tuple[int, ...]
    location_of: Mapping[int, int]
    at_location: Mapping[int, tuple[int, ...]]
    type_of: Mapping[int, str]
    accepts: Mapping[int, frozenset[str]]
    """Object types a receptacle can contain."""
    traits: Mapping[str, frozenset[int]]
    """Predicate -> entities: openable, pickupable, cleanable, ...; and by type: cleans, heats, cools, cuts."""
    inner: Mapping[int, tuple[int, ...]]
    """Objects inside receptacle objects (never changes: the domain has no action for it)."""
    go_commands: Mapping[int, dict[str, Effect]]
    """Location -> commands that leave it."""
    start: State


@dataclass(slots=True)
class State:
    """Everything that changes. Containers are replaced, never mutated, so a copy may share them."""

    location: int
    holding: int
    """Entity in hand, -1 when empty."""
    opened: frozenset[int]
    contents: dict[int, tuple[int, ...]]
    objects_at: frozenset[tuple[int, int]]
    """objectAtLocation facts (object, location)."""
    taken_from: frozenset[tuple[int, int]]
    """Explicit "not in" facts: (object, receptacle) it was taken from and not put back into."""
    status: dict[str, frozenset[int]] = field(default_factory=dict)

    def copy(self) -> State:
        return State(
            self.location, self.holding, self.opened, dict(self.contents), self.objects_at, self.taken_from,
            dict(self.status),
        )  # fmt: skip

    def latent(self) -> str:
        """Hash of the state; equal exactly for equal states of one world."""
        parts = (
            self.location, self.holding, sorted(self.opened), sorted(self.contents.items()), sorted(self.objects_at),
            sorted(self.taken_from), [(name, sorted(members)) for name, members in sorted(self.status.items())],
        )  # fmt: skip
        return blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def build_world(facts: Iterable[Fact], goal: Goal, sentence: str, dialect: Dialect, cleaners: frozenset[str]) -> World:
    """`cleaners`: receptacle types (lower case) in which the domain cleans."""
    by_predicate: dict[str, list[tuple[str, ...]]] = {}
    for predicate, *arguments in facts:
        by_predicate.setdefault(predicate.lower(), []).append(tuple(arguments))
    ids = tuple(sorted({entity for rows in by_predicate.values() for row in rows for entity in row}))
    number = {entity: i for i, entity in enumerate(ids)}
    names = _names(ids)

    def pairs(predicate: str) -> list[tuple[int, int]]:
        return [(number[a], number[b]) for a, b in by_predicate.get(predicate, ())]

    def members(predicate: str) -> frozenset[int]:
        return frozenset(number[a] for (a,) in by_predicate.get(predicate, ()))

    location_of = dict(pairs("receptacleatlocation"))
    receptacles = tuple(sorted(location_of))
    at_location: dict[int, tuple[int, ...]] = {}
    for r in receptacles:
        at_location[location_of[r]] = (*at_location.get(location_of[r], ()), r)
    type_of = {
        number[a]: t.removesuffix("type") for key in ("receptacletype", "objecttype") for a, t in by_predicate.get(key, ())
    }
    contains: dict[str, set[str]] = {}
    for kind, held in by_predicate.get("cancontain", ()):
        contains.setdefault(kind.removesuffix("type"), set()).add(held.removesuffix("type"))
    traits = {
        name: members(name)
        for name in (
            "openable", "pickupable", "cleanable", "heatable", "coolable", "toggleable", "sliceable", "isreceptacleobject"
        )
    }  # fmt: skip
    for name, kinds in (
        ("cleans", cleaners),
        ("heats", {"microwave"}),
        ("cools", {"fridge"}),
        ("cuts", {"knife", "butterknife"}),
    ):
        traits[name] = frozenset(e for e, t in type_of.items() if t in kinds)
    contents: dict[int, tuple[int, ...]] = dict.fromkeys(receptacles, ())
    for o, r in sorted(pairs("inreceptacle")):
        contents[r] = (*contents.get(r, ()), o)
    inner: dict[int, tuple[int, ...]] = {}
    for o, outer in sorted(pairs("inreceptacleobject")):
        inner[outer] = (*inner.get(outer, ()), o)
    start = State(
        location=number[by_predicate["atlocation"][0][1]], holding=-1, opened=members("opened"), contents=contents,
        objects_at=frozenset(pairs("objectatlocation")), taken_from=frozenset(),
        status={name: members(name) for name in (HOT, COOL, CLEAN, SLICED, TOGGLED)},
    )  # fmt: skip
    go = {
        here: {f"go to {names[r]}": ("go", r, -1) for r in receptacles if location_of[r] != here}
        for here in {*location_of.values(), start.location}
    }
    return World(
        ids=ids, names=names, goal=goal, sentence=sentence, dialect=dialect, receptacles=receptacles,
        location_of=location_of, at_location=at_location, type_of=type_of,
        accepts={r: frozenset(contains.get(type_of[r], ())) for r in receptacles}, traits=traits, inner=inner,
        go_commands=go, start=start,
    )  # fmt: skip


def _names(ids: tuple[str, ...]) -> tuple[str, ...]:
    """`cabinet_bar_..` -> `cabinet 4`: per kind, numbers count down in the order of the sorted ids."""
    kinds = [
        entity.split("_bar_", 1)[0] + ("basin" if "basin" in entity else "") if "_bar_" in entity else "" for entity in ids
    ]
    left = Counter(kinds)
    names = []
    for entity, kind in zip(ids, kinds, strict=True):
        names.append(f"{kind} {left[kind]}" if kind else entity)
        left[kind] -= 1
    return tuple(names)


def commands(world: World, state: State) -> dict[str, Effect]:
    """Every admissible command with its effect."""
    names, traits, held = world.names, world.traits, state.holding
    result: dict[str, Effect] = {"look": ("look", -1, -1), "inventory": ("inventory", -1, -1)}
    if world.dialect == "move":
        result["help"] = ("help", -1, -1)
    result.update(world.go_commands[state.location])
    if held >= 0:
        result[f"examine {names[held]}"] = ("examine object", held, -1)
    for r in world.at_location.get(state.location, ()):
        name = names[r]
        result[f"examine {name}"] = ("examine", r, -1)
        accessible = True
        if r in traits["openable"]:
            accessible = r in state.opened
            result[f"close {name}" if accessible else f"open {name}"] = ("close" if accessible else "open", r, -1)
        for o in state.contents[r]:
            if accessible and held < 0 and o in traits["pickupable"]:
                result[f"take {names[o]} from {name}"] = ("take", o, r)
            if o in traits["toggleable"]:  # even in a closed receptacle
                result[f"use {names[o]}"] = ("use", o, r)
        if held >= 0:
            if accessible and world.type_of.get(held) in world.accepts[r]:
                put = f"move {names[held]} to {name}" if world.dialect == "move" else f"put {names[held]} in/on {name}"
                result[put] = ("put", held, r)
            for verb, able in (("clean", "cleanable"), ("heat", "heatable"), ("cool", "coolable")):
                if held in traits[able] and r in traits[verb + "s"]:  # no opening needed
                    result[f"{verb} {names[held]} with {name}"] = (verb, held, r)
    if held >= 0 and held in traits["cuts"]:
        for o in traits["sliceable"]:
            if (o, state.location) in state.objects_at:
                result[f"slice {names[o]} with {names[held]}"] = ("slice", o, held)
    return result


def apply(world: World, state: State, effect: Effect) -> None:
    """Change `state` by an admissible effect."""
    verb, a, b = effect
    if verb == "go":
        state.location = world.location_of[a]
    elif verb == "open":
        state.opened |= {a}
    elif verb == "close":
        state.opened -= {a}
    elif verb == "take":
        state.contents[b] = tuple(o for o in state.contents[b] if o != a)
        state.holding = a
        state.objects_at -= {(a, state.location)}
        state.taken_from |= {(a, b)}
    elif verb == "put":
        state.contents[b] = tuple(sorted((*state.contents[b], a)))
        state.holding = -1
        state.objects_at |= {(a, state.location)}
        state.taken_from -= {(a, b)}
    elif verb in ("heat", "cool"):
        on, off = (HOT, COOL) if verb == "heat" else (COOL, HOT)
        state.status[on] |= {a}
        state.status[off] -= {a}
    elif verb in ("clean", "use", "slice"):
        state.status[{"clean": CLEAN, "use": TOGGLED, "slice": SLICED}[verb]] |= {a}


def is_won(world: World, state: State) -> bool:
    goal, kinds = world.goal, world.type_of
    if goal.kind == "light":
        if state.holding < 0 or kinds.get(state.holding) != goal.object_type:
            return False
        return any(
            kinds[o] == goal.receptacle_type and o in world.traits["toggleable"]
            for r in world.at_location.get(state.location, ())
            for o in state.contents[r]
            if o in state.status[TOGGLED]
        )
    needed = 2 if goal.kind == "two" else 1
    for r in world.receptacles:
        if kinds[r] == goal.receptacle_type and state.contents[r]:
            good = sum(
                kinds.get(o) == goal.object_type and (goal.state is None or o in state.status[goal.state])
                for o in state.contents[r]
            )
            if good >= needed:
                return True
    return False
