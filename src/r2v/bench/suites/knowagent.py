"""KnowAgent's llama-2-13b in ALFWorld games, played again in the household engine, whose expert takes over at any step.

The games' own files are not at hand: each is rebuilt from its two recordings and a game of the same room. What a goal needs
and neither recording shows (every game can be won, so it is where nobody looked) is put in a place that neither looked at.

There is no suite of single steps: what follows is recorded, and after another step 44 % of it has no effect (3,188 steps
replaced in 250 episodes: 33 turn a failure into a success, 147 a success into a failure).

The episodes are those of KnowAgent (arXiv 2403.03101), the games ALFWorld's (arXiv 2010.03768).
"""

from __future__ import annotations

import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2v.bench.data import records
from r2v.bench.prices import LIST, Bill
from r2v.bench.suite import Escalated, Loaded, Mode, Outcome
from r2v.core.groups import groups
from r2v.core.types import Episode
from r2v.domains.household.belief import Belief
from r2v.domains.household.env import Household
from r2v.domains.household.expert import next_command, parse_sentence
from r2v.domains.household.rebuilt import Games, Rebuilt, Transcript, normal, rebuilt
from r2v.domains.household.rules import World
from r2v.logs.importing import import_logs
from r2v.runtime.progress import Report

LOG = "trajectories/knowagent_alfworld/episodes.jsonl.xz"
GAMES = "alfworld/games_train_seen.tar.xz"
WEAK = "llama-2-13b"
EXPERT = "gpt-4"
"""What the expert costs: it is a program, so it is priced as the model that would be asked in its place."""
PRICES = {model: LIST[model] for model in (WEAK, EXPERT)}
SESSIONS = 600
"""Of those that replay, so many are played: all 981 take four minutes of one core."""
LIMIT = 50
"""ALFWorld's own limit of steps."""


@dataclass
class Session:
    """A game that is being played: the engine, what an expert knows who has read along, and what was paid."""

    engine: Household
    belief: Belief
    read: int
    """Characters so far, of which each call reads all."""
    bill: Bill

    @classmethod
    def begin(cls, world: World, episode: Episode) -> Session:
        room = episode.steps[0].observation.text
        belief = Belief()
        belief.read_room(room)
        return cls(Household(world), belief, len(room), Bill(PRICES))

    def act(self, model: str, command: str) -> tuple[str, bool]:
        """(the answer, whether the game is won)."""
        self.bill.call(model, self.read, len(command))
        said, _, won = self.engine.play(command)
        answer = normal(said)
        self.belief.read(command, answer)
        self.read += len(command) + len(answer)
        return answer, won

    def fork(self) -> Session:
        return Session(self.engine.clone(), deepcopy(self.belief), self.read, deepcopy(self.bill))


@dataclass(frozen=True)
class Takeover:
    """What comes of each episode without help, and with the expert from some step on."""

    episodes: Sequence[Episode]
    worlds: Sequence[World]
    """Of each episode."""

    def __call__(self, asked: Sequence[tuple[int, Escalated]], progress: Report) -> list[Outcome]:
        wanted: dict[int, set[Escalated]] = defaultdict(set)
        for e, escalated in asked:
            wanted[e].add(escalated)
        found: dict[tuple[int, Escalated], Outcome] = {}
        for done, e in enumerate(wanted, start=1):
            found |= self._play(e, wanted[e])
            progress(done, len(wanted), "games played")
        return [found[key] for key in asked]

    def _play(self, e: int, wanted: set[Escalated]) -> dict[tuple[int, Escalated], Outcome]:
        """Walk once through the recording, and let the expert take over from a copy wherever that is wanted."""
        session, won, found = Session.begin(self.worlds[e], self.episodes[e]), False, {}
        for t, (command, _) in enumerate(transcript(self.episodes[e])):
            if (t,) in wanted:
                found[e, (t,)] = taken_over(session.fork(), self.episodes[e].goal, t, command)
            _, won = session.act(WEAK, command)
        return found | {(e, ()): Outcome(float(won), session.bill.usd, 0, len(self.episodes[e].steps))}


def taken_over(session: Session, goal: str, t: int, draft: str) -> Outcome:
    """The expert goes on from step `t` to the end; the weak model's own command there was paid and is thrown away."""
    session.bill.call(WEAK, session.read, len(draft))
    sentence, calls, won = parse_sentence(goal), 0, False
    while not won and t + calls < LIMIT:
        _, won = session.act(EXPERT, next_command(sentence, session.belief))
        calls += 1
    return Outcome(float(won), session.bill.usd, calls, t + 1)


def transcript(episode: Episode) -> Transcript:
    """The weak model's commands with the recorded answers."""
    assert episode.final is not None  # a recording ends with an answer
    answers = [*(step.observation.text for step in episode.steps[1:]), episode.final.text]
    return [(step.choice.action.text, answer) for step, answer in zip(episode.steps, answers, strict=True)]


def replay(world: World, episode: Episode, given: set[int]) -> tuple[bool, int, int]:
    """(whether all answers and the end are those recorded, answers that the world was not made of, those of them that are
    the same).
    """
    session, same, won, early = Session.begin(world, episode), [], False, False
    for command, recorded in transcript(episode):
        early |= won
        answer, won = session.act(WEAK, command)
        same.append(answer == normal(recorded))
    predicted = [equal for t, equal in enumerate(same) if t not in given]
    return all(same) and won == episode.success and not early, len(predicted), sum(predicted)


def rebuild(games: Games, episodes: Sequence[Episode]) -> dict[str, tuple[Rebuilt, list[Episode]]]:
    """Each recorded game of whose room there is another one, with its episodes."""
    by_task: dict[str, list[Episode]] = defaultdict(list)
    for episode in episodes:
        by_task[episode.task.id].append(episode)
    made = {}
    for task, played in by_task.items():
        room = played[0].steps[0].observation.text.removeprefix(f"{played[0].goal}\n")
        if (like := games.of_room(task, room)) is not None:
            made[task] = rebuilt(games, task, like, [transcript(episode) for episode in played], hide=True), played
    return made


@dataclass(frozen=True)
class KnowAgent:
    """A `Suite`."""

    name: str = "knowagent"
    description: str = (
        "ALFWorld, llama-2-13b in two tunings on 510 games, 492 of them rebuilt in the household engine, which says what is "
        "solved; its scripted expert takes over"
    )
    path: str = LOG
    mode: Mode = "takeover"

    def load(self, data: Path, progress: Report) -> Loaded:
        """See `Suite.load`."""
        log = records(data, LOG, "the ALFWorld logs of github.com/zjunlp/KnowAgent")
        archive = records(data, GAMES, "ALFWorld's games of train and valid_seen (alfworld-download)")
        episodes, _ = import_logs(log, "knowagent-alfworld")
        with tempfile.TemporaryDirectory() as aside:
            with tarfile.open(archive) as packed:
                packed.extractall(aside, filter="data")
            made = rebuild(Games(Path(aside)), episodes)
        return loaded(episodes, made, progress)


def loaded(episodes: Sequence[Episode], made: Mapping[str, tuple[Rebuilt, list[Episode]]], progress: Report) -> Loaded:
    """Of the episodes those that the engine repeats."""
    kept: list[Episode] = []
    worlds: list[World] = []
    answers = equal = 0
    for done, (game, played) in enumerate(made.values(), start=1):
        for episode, given in zip(played, game.given, strict=True):
            same, predicted, right = replay(game.world, episode, given)
            answers, equal = answers + predicted, equal + right
            if same:
                kept.append(episode)
                worlds.append(game.world)
        progress(done, len(made), "games replayed")
    names = {_name(episode) for episode in kept}
    fidelity = {
        "replayed": len(kept),
        "of": len(episodes),
        "share": len(kept) / len(episodes),
        "left_out": [_name(episode) for episode in episodes if _name(episode) not in names],
    }
    drawn = some(groups(kept).group_E)
    kept, worlds = [kept[i] for i in drawn], [worlds[i] for i in drawn]
    return Loaded(
        kept, groups(kept).group_E, f"the household's expert (priced as {EXPERT})", Takeover(kept, worlds),
        fidelity=fidelity, facts=_facts(episodes, made, answers, equal),
    )  # fmt: skip


def some(group_E: NDArray[np.int64], most: int = SESSIONS) -> list[int]:
    """Numbers of `most` episodes or a few more: whole groups, drawn with a fixed seed; all where there are no more."""
    order = np.random.default_rng(0).permutation(int(group_E.max(initial=-1)) + 1)
    before_O = np.r_[0, np.cumsum(np.bincount(group_E)[order])[:-1]] if len(order) else order
    return np.flatnonzero(np.isin(group_E, order[before_O < most])).tolist()


def _facts(
    episodes: Sequence[Episode], made: Mapping[str, tuple[Rebuilt, list[Episode]]], answers: int, equal: int
) -> dict[str, Any]:
    return {
        "recorded_games": len({episode.task.id for episode in episodes}),
        "games_rebuilt": len(made),
        "episodes_without_a_game_of_their_room": sum(episode.task.id not in made for episode in episodes),
        "games_with_hidden_things": sum(game.hidden > 0 for game, _ in made.values()),
        "answers_predicted": answers,
        "answers_predicted_right": equal,
        "step_limit": LIMIT,
        "prices": f"list prices of {WEAK}, and of {EXPERT} for the expert, which is a program; the weak model's prompt and "
        "thoughts are not in the log and cost nothing here",
        "alone_again": "no model was recorded twice: D0 and D1 are two tunings",
    }


def _name(episode: Episode) -> str:
    return f"{episode.task.id} ({episode.agent})"


KNOWAGENT = KnowAgent()
