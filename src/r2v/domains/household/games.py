"""Game files: ALFWorld's `game.tw-pddl` <-> `World`, and where to find real ones.

A game file is JSON with the keys `pddl_domain`, `grammar`, `pddl_problem`, `walkthrough`, `solvable`. The problem holds

    (:init (receptacleType Drawer_bar__plus_02_dot_99 DrawerType) ... (inReceptacle Book_bar_.. Dresser_bar_..) ...)
    (:goal (and (exists (?r - receptacle) (exists (?o - object) (and (inReceptacle ?o ?r) (objectType ?o BookType) ...

and the grammar the goal sentence ("Your task is to: put two newspaper in drawer.").
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from r2v.core.errors import ArtifactError
from r2v.core.types import Task
from r2v.core.untrusted import read_json
from r2v.domains.household.catalogue import FAMILIES
from r2v.domains.household.rules import CLEAN, COOL, HOT, Dialect, Fact, Goal, World, build_world

GAME_FILE = "game.tw-pddl"

_FACT = re.compile(r"\((\w+) ([^()]*?)\s*\)")
_SENTENCE = re.compile(r"Your task is to: (.*?)\"")


def load_game(path: Path) -> World:
    """Raises ArtifactError when the file is missing or is no game of this domain."""
    try:
        return parse_game(read_json(path))
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ArtifactError(f"{path} is not a readable ALFWorld game ({type(error).__name__}: {error})") from None


def parse_game(data: dict[str, str]) -> World:
    problem = data["pddl_problem"].lower()
    goal = problem.split("(:goal", 1)[1]
    grammar = data["grammar"]
    sentence = _SENTENCE.search(grammar)
    if sentence is None:
        raise ValueError("the grammar has no goal sentence")
    dialect: Dialect = "put" if "put {o} in/on {r}" in grammar else "move"
    return build_world(parse_facts(problem), parse_goal(goal), sentence.group(1), dialect, _cleaners(data["pddl_domain"]))


def parse_facts(problem: str) -> list[Fact]:
    """The initial facts of a PDDL problem in lower case."""
    init = problem.split("(:init", 1)[1].split("(:goal", 1)[0]
    return [(predicate, *arguments.split()) for predicate, arguments in _FACT.findall(init) if arguments]


def parse_goal(text: str) -> Goal:
    """`text`: the PDDL goal in lower case. Raises ValueError for goals of another form (e.g. sliced objects)."""
    objects = {name: kind.removesuffix("type") for name, kind in re.findall(r"\(objecttype \?(\w+) (\w+)\)", text)}
    receptacles = {kind.removesuffix("type") for kind in re.findall(r"\(receptacletype \?\w+ (\w+)\)", text)}
    if "issliced" in text:
        raise ValueError("goals with sliced objects are not supported (ALFWorld skips them too)")
    if "(istoggled ?ot)" in text:
        return Goal("light", objects["o"], objects["ot"], None)
    (kind,), (receptacle,) = set(objects.values()), receptacles
    if "(not (= ?o1 ?o2))" in text:
        return Goal("two", kind, receptacle, None)
    state = next((status for status in (HOT, COOL, CLEAN) if f"({status} ?o)" in text), None)
    return Goal("place", kind, receptacle, state)


def _cleaners(domain: str) -> frozenset[str]:
    """Receptacle types in which the domain's action CleanObject works, comments left out."""
    code = "\n".join(line.split(";", 1)[0] for line in domain.lower().splitlines())
    action = code.split(":action cleanobject", 1)[1].split("(:action", 1)[0]
    return frozenset(kind.removesuffix("type") for kind in re.findall(r"\(receptacletype \?r (\w+)\)", action))


def family_of_path(path: Path) -> str | None:
    """The task family in a game's folder name, e.g. `pick_two_obj_and_place-Newspaper-None-Drawer-224/trial_..`."""
    return next((family for family in FAMILIES for part in path.parts if part.startswith(f"{family}-")), None)


def find_games(root: Path, families: Iterable[str] = FAMILIES) -> list[Path]:
    """Paths of playable games below `root`, sorted; ALFWorld's own rules, plus folders that hold only the game file.

    Left out: paths with `movable` or `Sliced`, other task families, games without `solvable`: true. Raises ArtifactError
    when nothing is left.
    """
    root = Path(os.path.expandvars(root)).expanduser()
    if not root.is_dir():
        raise ArtifactError(f"{root} is not a folder; set $ALFWORLD_DATA to downloaded ALFWorld data")
    wanted, found = set(families), []
    for path in sorted(root.rglob(GAME_FILE)):
        if "movable" in str(path) or "Sliced" in str(path):
            continue
        description = path.parent / "traj_data.json"
        family = _family_in(description) if description.exists() else family_of_path(path)
        if family in wanted and _is_solvable(path):
            found.append(path)
    if not found:
        raise ArtifactError(f"{root} holds no playable {GAME_FILE} of the families {', '.join(sorted(wanted))}")
    return found


def real_tasks(root: Path, families: Iterable[str] = FAMILIES) -> list[Task]:
    """One task a game; its id is the path below `root`, so it does not depend on where the data lies."""
    base = Path(os.path.expandvars(root)).expanduser()
    result = []
    for path in find_games(base, families):
        family = family_of_path(path) or _family_in(path.parent / "traj_data.json")
        result.append(Task(str(path.parent.relative_to(base)), family, "household", load_game(path).sentence))
    return result


def _family_in(description: Path) -> str:
    try:
        return str(read_json(description)["task_type"])
    except (ValueError, KeyError, TypeError):
        raise ArtifactError(f"{description} has no task_type; download the data again") from None


def _is_solvable(path: Path) -> bool:
    try:
        return read_json(path).get("solvable") is True
    except (ValueError, AttributeError):
        raise ArtifactError(f"{path} is not valid JSON; download the data again") from None
