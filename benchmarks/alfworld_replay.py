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

from r2v.domains.household.env import Household
from r2v.domains.household.games import load_game
from r2v.domains.household.rebuilt import Games, normal, rebuilt
from r2v.domains.household.rules import NOTHING_HAPPENS, World

Json = dict[str, Any]


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


def room_of(games: Games, episode: Json) -> Path | None:
    """A game of the recorded one's room."""
    return games.of_room(episode["task"], episode["intro"].split("\n", 1)[0])


def cases_of(games: Games, like: Path, episodes: Sequence[Json]) -> list[tuple[World, Json, set[int]]]:
    """The recorded episodes of one game, in the world made of what they show."""
    transcripts = [[(step["action"], step["observation"]) for step in episode["steps"]] for episode in episodes]
    made = rebuilt(games, episodes[0]["task"], like, transcripts)
    return [(made.world, episode, given) for episode, given in zip(episodes, made.given, strict=True)]


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
    same_room = {task: like for task in others if (like := room_of(games, by_task[task][0])) is not None}
    return {
        "games at hand": len(games.paths),
        "recorded games": len(by_task),
        "of them at hand": len(at_hand),
        "exact": replayed((load_game(games.paths[task]), e, set()) for task in at_hand for e in by_task[task]),
        "another game of the same room at hand": len(same_room),
        "rebuilt": replayed(case for task, like in same_room.items() for case in cases_of(games, like, by_task[task])),
    }


if __name__ == "__main__":
    main()
