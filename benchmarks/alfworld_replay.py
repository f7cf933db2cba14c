"""Does our household engine answer as ALFWorld answered a real 13B model?

`python benchmarks/alfworld_replay.py [--data DIR] [--games $ALFWORLD_DATA/json_2.1.1]`

Every recorded command is played on our engine, and the answers are compared step by step.

  exact     episodes whose own game file is below --games (default: the archive in --data, unpacked aside)
  rebuilt   the others, where a game of the same room is there: the room, its places, rules and kinds of things are that
            game's, the things lie where the recording first shows them. A step that told where things lie was used for
            building ("given"); only the other steps are predictions, among them every later look at the same place, and all
            looks of the game's second episode at places that the first had seen

Texts are compared without "You arrive at ..." (the recording has it stripped), and with "You move O to R" spelt as the
recording's "You put O in/on R".
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from r2v.domains.household.belief import CONTENTS, PICKED, PLACED
from r2v.domains.household.env import Household
from r2v.domains.household.games import GAME_FILE, load_game, parse_facts
from r2v.domains.household.rules import CLEAN, COOL, HOT, NOTHING_HAPPENS, Fact, Goal, World, build_world
from r2v.domains.household.texts import room

Json = dict[str, Any]
_THING = re.compile(r"[a-z]+ \d+")
_TRAITS = ("pickupable", "cleanable", "heatable", "coolable", "toggleable", "sliceable")
_STATES = {"pick_clean_then": CLEAN, "pick_heat_then": HOT, "pick_cool_then": COOL}


def compared(world: World, episode: Json, given: set[int]) -> tuple[Counter[str], Counter[str], list[Json], bool]:
    """(counts, kinds of disagreement, examples, our verdict on the whole episode)."""
    game, counts, kinds, examples, won = Household(world), Counter[str](), Counter[str](), [], False
    for t, step in enumerate(episode["steps"]):
        if won:
            counts["after our end"] += 1
            continue
        said, _, won = game.play(step["action"])
        ours, theirs = normal(said), normal(step["observation"])
        group = "given" if t in given else "predicted"
        counts[group] += 1
        counts[f"{group}, equal"] += ours == theirs
        if theirs != NOTHING_HAPPENS:
            counts[f"{group}, something happened"] += 1
            counts[f"{group}, something happened, equal"] += ours == theirs
        if ours != theirs:
            kinds[f"{group}: {kind(step['action'])} | theirs: {kind(theirs)} | ours: {kind(ours)}"] += 1
            examples.append({"task": episode["task"], "t": t, "action": step["action"], "theirs": theirs, "ours": ours})
    return counts, kinds, examples, won


def normal(text: str) -> str:
    text = re.sub(r"^You arrive at [^.]*\. ", "", text.strip())
    return re.sub(r"^You move the (.+) to the (.+)\.$", r"You put the \1 in/on the \2.", text)


def kind(text: str) -> str:
    """A text without its names: `On the X, you see X..`"""
    return re.sub(r"(a X(, and |, )?)+", "X..", re.sub(r"[a-z]+ \d+", "X", text))[:60]


def replayed(cases: Iterable[tuple[World, Json, set[int]]]) -> Json:
    counts, kinds, examples, verdicts = Counter[str](), Counter[str](), [], Counter[str]()
    for world, episode, given in cases:
        c, k, e, won = compared(world, episode, given)
        counts += c
        kinds += k
        examples += e
        verdict = "equal" if won == episode["success"] else f"theirs {episode['success']}, ours {won}"
        verdicts[verdict] += 1
        if verdict != "equal":
            examples.append({"task": episode["task"], "verdict": verdict, "last": episode["steps"][-1]})
    share = counts["predicted, equal"] / counts["predicted"] if counts["predicted"] else None
    return {
        "episodes": verdicts.total(), "steps": dict(counts), "agreement on predicted steps": share,
        "success": dict(verdicts), "disagreements": dict(kinds.most_common()), "examples": examples[:12],
    }  # fmt: skip


class Games:
    """The game files at hand."""

    def __init__(self, root: Path) -> None:
        self.paths = {"/".join(path.parts[-3:-1]): path for path in sorted(root.rglob(GAME_FILE))}
        self.of_room: dict[tuple[str, str], Path] = {}
        self.traits: dict[str, set[str]] = defaultdict(set)
        """Kind of thing -> what can be done with it, in any game."""
        for path in self.paths.values():
            world, found = load_game(path), facts_of(path)
            self.of_room.setdefault((scene(path.parts[-3]), room(world, world.start)), path)
            kinds = {fact[1]: fact[2].removesuffix("type") for fact in found if fact[0] == "objecttype"}
            for predicate, *arguments in found:
                if predicate in _TRAITS and arguments[0] in kinds:
                    self.traits[kinds[arguments[0]]].add(predicate)


def scene(folder: str) -> str:
    """The floor plan's number, which ends a game's folder name."""
    return folder.rsplit("-", 1)[1]


def room_of(episode: Json) -> tuple[str, str]:
    return scene(episode["task"].split("/")[0]), episode["intro"].split("\n", 1)[0]


def facts_of(path: Path) -> list[Fact]:
    return parse_facts(json.loads(path.read_text(encoding="utf-8"))["pddl_problem"].lower())


def rebuilt(games: Games, episodes: Sequence[Json]) -> list[tuple[World, Json, set[int]]]:
    """The recorded episodes of one game, in a world made of what they show."""
    path = games.of_room[room_of(episodes[0])]
    model = load_game(path)
    contents: dict[str, list[str]] = {}
    given = [_first_looks(episode["steps"], contents) for episode in episodes]
    facts = facts_of(path)
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
        what, number = name.rsplit(" ", 1)
        highest[what] = max(int(number), highest.get(what, 0))
    for what, most in highest.items():
        for number in range(1, most + 1):  # numbers not seen lie nowhere; they are there so that the others keep theirs
            entity = f"{what}_bar_{10_000 - number}"
            kept.append(("objecttype", entity, f"{what}type"))
            kept += [(trait, entity) for trait in sorted(games.traits[what])]
            for place in where.get(f"{what} {number}", ()):
                kept += [("inreceptacle", entity, id_of[place]), ("objectatlocation", entity, place_of[id_of[place]])]
    cleaners = frozenset(model.type_of[r] for r in model.traits["cleans"])
    world = build_world(kept, _goal(episodes[0]["task"]), "", "put", cleaners)
    return [(world, episode, seen) for episode, seen in zip(episodes, given, strict=True)]


def _first_looks(steps: Sequence[Json], contents: dict[str, list[str]]) -> set[int]:
    """Add the places first seen in these steps, as they were at the start; returns the steps that told."""
    used: set[int] = set()
    taken: dict[str, str] = {}
    put: set[str] = set()
    for t, step in enumerate(steps):
        for found in CONTENTS.finditer(step["observation"]):
            place = found.group(1) or found.group(2)
            if place not in contents:
                things = [name for name in _THING.findall(found.group(3) or "") if name not in put]
                contents[place] = things + [name for name, origin in taken.items() if origin == place]
                used.add(t)
        for found in PICKED.finditer(step["observation"]):
            thing, origin = found.groups()
            if thing not in put:
                taken[thing] = origin
                if thing not in contents.get(origin, [thing]):
                    contents[origin].append(thing)  # the other episode had not left it there
        put |= {found.group(1) for found in PLACED.finditer(step["observation"])}
    return used


def _goal(task: str) -> Goal:
    """From the folder's name, e.g. `pick_heat_then_place_in_recep-Apple-None-GarbageCan-2/trial_..`."""
    family, thing, _, place, _ = task.split("/")[0].lower().split("-")
    if family == "look_at_obj_in_light":
        return Goal("light", thing, place, None)
    state = next((state for name, state in _STATES.items() if family.startswith(name)), None)
    return Goal("two" if family.startswith("pick_two") else "place", thing, place, state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with trajectories/ and alfworld/")
    parser.add_argument("--games", type=Path, default=None, help="folder of game files")
    wanted = parser.parse_args()
    with lzma.open(wanted.data / "trajectories/knowagent_alfworld/episodes.jsonl.xz", "rt") as file:
        episodes = [json.loads(line) for line in file]
    with tempfile.TemporaryDirectory() as aside:
        if wanted.games is None:
            with tarfile.open(wanted.data / "alfworld/games_train_seen.tar.xz") as archive:
                archive.extractall(aside, filter="data")
        print(json.dumps(report(Games(wanted.games or Path(aside)), episodes), indent=1))


def report(games: Games, episodes: Sequence[Json]) -> Json:
    by_task: dict[str, list[Json]] = defaultdict(list)
    for episode in episodes:
        by_task[episode["task"]].append(episode)
    at_hand = [task for task in by_task if task in games.paths]
    others = [task for task in by_task if task not in games.paths]
    same_room = [task for task in others if room_of(by_task[task][0]) in games.of_room]
    return {
        "games at hand": len(games.paths),
        "recorded games": len(by_task),
        "of them at hand": len(at_hand),
        "exact": replayed((load_game(games.paths[task]), e, set()) for task in at_hand for e in by_task[task]),
        "another game of the same room at hand": len(same_room),
        "rebuilt": replayed(case for task in same_room for case in rebuilt(games, by_task[task])),
    }


if __name__ == "__main__":
    main()
