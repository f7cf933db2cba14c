"""Makes household games offline: a room, receptacles, objects by affordance, and a goal that can be met but is not yet.

Deterministic in the seed. Differential tests write the same facts as ALFWorld's `game.tw-pddl` and play them on TextWorld's
engine too.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from r2v.core.seeds import derive_seed
from r2v.core.types import Task
from r2v.domains.household import catalogue as c
from r2v.domains.household.catalogue import FAMILIES
from r2v.domains.household.rules import CLEAN, COOL, HOT, Dialect, Fact, Goal, World, build_world

ENVIRONMENT = "household"
NEEDS = {
    "pick_clean_then_place_in_recep": (CLEAN, "SinkBasin", c.CLEANABLE),
    "pick_heat_then_place_in_recep": (HOT, "Microwave", c.HEATABLE),
    "pick_cool_then_place_in_recep": (COOL, "Fridge", c.COOLABLE),
}
"""Family -> state to bring about, the receptacle type that does it, the object types it works on."""

CAN_CONTAIN: tuple[Fact, ...] = tuple(
    ("canContain", f"{r}Type".lower(), f"{o}Type".lower()) for r, objects in c.ACCEPTS.items() for o in sorted(objects)
)


@dataclass(frozen=True)
class SceneSettings:
    receptacles: tuple[int, int] = (6, 9)
    """Fewest and most receptacles (lamps are objects)."""
    objects: tuple[int, int] = (8, 14)
    families: tuple[str, ...] = FAMILIES
    dialect: Dialect = "move"
    house: Literal["small", "full"] = "full"
    """Which object types exist."""
    shared: float = 0.0
    """Probability that a receptacle shares the location of the one before it (then `go to` between them fails)."""
    opened: float = 0.0
    """Probability that an openable receptacle starts opened."""


@dataclass(frozen=True)
class Scene:
    """A generated game before it becomes a `World` or a file."""

    family: str
    facts: tuple[Fact, ...]
    """Ids in lower case, as the engine reads them."""
    goal: Goal
    sentence: str
    dialect: Dialect

    def world(self) -> World:
        return build_world((*self.facts, *CAN_CONTAIN), self.goal, self.sentence, self.dialect, frozenset({"sinkbasin"}))


def make_tasks(seed: int, count: int, settings: SceneSettings) -> list[Task]:
    """`count` tasks, families in turn. A task's id is all that is needed to make its game again."""
    tasks = []
    for i in range(count):
        family = settings.families[i % len(settings.families)]
        task_id = f"{ENVIRONMENT}/{family}/{seed}-{i:06d}"
        tasks.append(Task(task_id, family, ENVIRONMENT, generate(task_id, family, settings).sentence))
    return tasks


def generate(name: str, family: str, settings: SceneSettings) -> Scene:
    """The scene called `name`; equal name and settings give equal scenes."""
    for attempt in range(1000):
        scene = _Builder(random.Random(derive_seed("scene", name, attempt)), family, settings).build()
        if scene is not None:
            return scene
    raise ValueError(f"no {family} scene fits {settings}; allow more receptacles")


class _Builder:
    """Draws one scene; `build` gives None where the drawn receptacles cannot host the goal."""

    def __init__(self, rng: random.Random, family: str, settings: SceneSettings) -> None:
        self.rng, self.family, self.settings = rng, family, settings
        self.accepts = {
            r: sorted(objects if settings.house == "full" else objects & c.SMALL_HOUSE) for r, objects in c.ACCEPTS.items()
        }
        self.facts: list[Fact] = []
        self.ids: set[str] = set()

    def build(self) -> Scene | None:
        rng, settings = self.rng, self.settings
        state, station, able = NEEDS.get(self.family, (None, None, None))
        room = rng.choice([name for name, has in c.ROOMS.items() if self._fits(name, has, station)])
        receptacles = self._receptacles(room, station)
        stands = [r for r, kind in receptacles if kind in c.LAMP_STANDS]
        kinds = sorted({kind for _, kind in receptacles})
        if self.family == "look_at_obj_in_light":
            if not stands:
                return None
            lamp = rng.choice(c.LAMPS)
            options = sorted({o for kind in kinds for o in self.accepts[kind]})
            target, goal_kind = rng.choice(options), lamp
            goal = Goal("light", target.lower(), lamp.lower(), None)
        else:
            pairs = [
                (o, kind) for kind in kinds for o in self.accepts[kind] if kind != station and (able is None or o in able)
            ]
            if not pairs:
                return None
            # Draw the receptacle type first, else the types that accept most would be nearly every goal.
            goal_kind = rng.choice(sorted({kind for _, kind in pairs}))
            target = rng.choice([o for o, kind in pairs if kind == goal_kind])
            goal = Goal("two" if self.family.startswith("pick_two") else "place", target.lower(), goal_kind.lower(), state)
        hosts = [r for r, kind in receptacles if target in self.accepts[kind] and (kind != goal_kind or state)]
        copies = 2 if goal.kind == "two" else 1
        if not hosts:
            return None
        for _ in range(copies + (rng.random() < 0.25)):
            self._object(target, rng.choice(hosts))
        if goal.kind == "light":
            self._object(goal_kind, rng.choice(stands), lamp=True)
        self._others(receptacles, target)
        sentence = rng.choice(c.TEMPLATES[self.family]).format(o=target.lower(), r=goal_kind.lower())
        return Scene(self.family, tuple(self.facts), goal, sentence, settings.dialect)

    def _fits(self, room: str, has: dict[str, int], station: str | None) -> bool:
        if self.family == "look_at_obj_in_light":
            return room in ("living", "bedroom")
        return station is None or station in has

    def _receptacles(self, room: str, station: str | None) -> list[tuple[str, str]]:
        """[(id, type)] with their locations, and the agent's start."""
        rng = self.rng
        count = rng.randint(*self.settings.receptacles)
        stock = [kind for kind, most in c.ROOMS[room].items() for _ in range(most)]
        rng.shuffle(stock)
        chosen = [station] if station else []
        if self.family == "look_at_obj_in_light":
            chosen.append(rng.choice([kind for kind in c.LAMP_STANDS if kind in c.ROOMS[room]]))
        for kind in chosen:
            stock.remove(kind)
        chosen += stock[: count - len(chosen)]
        while len(chosen) < count:
            chosen.append(rng.choice([kind for kind in ("Cabinet", "Drawer", "Shelf") if kind in c.ROOMS[room]]))
        result, place = [], 0
        for kind in chosen:
            name = self._id(kind)
            place += not (place and rng.random() < self.settings.shared)
            self.facts += [
                ("receptacleType", name, f"{kind}Type".lower()),
                ("receptacleAtLocation", name, _location(place)),
            ]
            if kind in c.OPENABLE:
                self.facts.append(("openable", name))
                if rng.random() < self.settings.opened:
                    self.facts.append(("opened", name))
            result.append((name, kind))
        self.facts.append(("atLocation", "agent1", _location(0)))
        return result

    def _others(self, receptacles: list[tuple[str, str]], target: str) -> None:
        kinds = sorted({o for _, kind in receptacles for o in self.accepts[kind]} - {target})
        for _ in range(self.rng.randint(*self.settings.objects) - 2):
            kind = self.rng.choice(kinds)
            self._object(kind, self.rng.choice([r for r, host in receptacles if kind in self.accepts[host]]))

    def _object(self, kind: str, receptacle: str, *, lamp: bool = False) -> None:
        name = self._id(kind)
        self.facts += [("objectType", name, f"{kind}Type".lower()), ("inReceptacle", name, receptacle)]
        traits = (
            ("toggleable", lamp), ("pickupable", not lamp), ("heatable", kind in c.HEATABLE),
            ("coolable", kind in c.COOLABLE), ("cleanable", kind in c.CLEANABLE), ("sliceable", kind in c.SLICEABLE),
        )  # fmt: skip
        self.facts += [(trait, name) for trait, holds in traits if holds]

    def _id(self, kind: str) -> str:
        """ALFWorld's id form, e.g. `cabinet_bar__plus_01_dot_20_bar__minus_00_dot_35`; basins end in `sinkbasin`."""
        stem, tail = (kind.removesuffix("Basin"), f"_bar_{kind}") if kind.endswith("Basin") else (kind, "")
        while True:
            sign = [self.rng.choice(("_plus_", "_minus_")) for _ in range(2)]
            at = [f"{self.rng.randrange(4):02d}_dot_{self.rng.randrange(100):02d}" for _ in range(2)]
            name = f"{stem}_bar_{sign[0]}{at[0]}_bar_{sign[1]}{at[1]}{tail}".lower()
            if name not in self.ids:
                self.ids.add(name)
                return name


def _location(place: int) -> str:
    return f"loc_bar_{place}_bar_0_bar_1_bar_30"
