"""Step-level routing on a real 13B model's household episodes, with the scripted expert as the teacher.

`python benchmarks/replay_alfworld_slm.py [--data DIR]`

The games are those of `alfworld_replay.py`: rebuilt from the recordings where their files are not at hand. Things that no
recorded episode ever looked at are missing in them, so the expert reaches less than it would in the real game; that is the
same for all arms. The SLM (llama-2-13b, iteration D1) does what it did; its risk was fitted on other games. Where the risk
reaches the threshold, the expert takes

  the rest        from the SLM's state to the end: nothing more is needed of the recording
  one step        after which the SLM was recorded only if the expert did what it had done: `NotRecorded`, counted

The yardstick: handing over games at random before the first step, at the same number of teacher steps. Some games of one
room have the same goal: there the SLM may do what it did in the other one, and is then at a state nobody recorded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import lzma
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from alfworld_replay import Games, Json, cases_of, normal, room_of
from fold_risk import FOLDS, folds, own_steps
from replay_real_slm import SEED, SHARES, Table

from r2v.clients.recorded import RecordedPolicy
from r2v.core.agent import AgentModels, Routed, Solo
from r2v.core.protocols import Agent
from r2v.core.types import Action, Episode, Observation, Task
from r2v.domains.household.env import Household
from r2v.domains.household.expert import HouseholdExpert
from r2v.domains.household.rules import World
from r2v.domains.household.verifier import HouseholdVerifier
from r2v.evaluation.closed_loop import play
from r2v.learning.tabular import fold_models, held_out_risk
from r2v.logs.importing import HORIZON, import_logs
from r2v.routers.interventions import How, Intervention


class AsRecorded:
    """A household whose texts are spelt as in the recording: the goal before the room, no "You arrive at"."""

    def __init__(self, inner: Household) -> None:
        self._inner = inner
        self.goal = inner.goal

    async def start(self) -> Observation:
        seen = await self._inner.start()
        return replace(seen, text=f"{self.goal}\n{seen.text}")

    async def step(self, action: Action) -> Observation:
        seen = await self._inner.step(action)
        return replace(seen, text=normal(seen.text))

    async def close(self) -> None:
        await self._inner.close()

    def clone(self) -> AsRecorded:
        return AsRecorded(self._inner.clone())


def study(worlds: dict[str, World], episodes: Sequence[Episode]) -> dict[str, Any]:
    """`episodes`: of all iterations, for the fit; D1 is played."""
    slm = [e for e in episodes if e.agent.endswith("D1") and e.task.id in worlds]
    rows, tasks = own_steps([e for e in episodes if e.task.id in worlds])
    names, task_N = np.unique(tasks, return_inverse=True)
    fold_N = folds(task_N, SEED)
    fold_of = dict(zip(tasks, fold_N.tolist(), strict=True))
    models, p_N = fold_models(rows, fold_N, SEED), held_out_risk(rows, fold_N, SEED)

    def played(agents: Sequence[Agent]) -> list[Episode]:
        """Every game by the agent of its fold."""
        done: list[Episode] = []
        for fold, agent in enumerate(agents):
            cases = [(e.task, 0) for e in slm if fold_of[e.task.id] == fold]
            done += asyncio.run(play(agent, cases, make, horizon=HORIZON))
        return done

    def make(task: Task, _: int) -> tuple[AsRecorded, str]:
        return AsRecorded(Household(replace(worlds[task.id], sentence=task.goal))), "none"

    table = Table(names.tolist(), slm, played([Solo(HouseholdExpert(), "teacher")] * FOLDS))
    length_of = {e.task.id: len(e.steps) for e in slm}
    found: dict[str, Any] = {"games": len(names), "slm alone": table.alone, "teacher alone": table.of_teacher, "routed": []}
    arms: tuple[tuple[str, How], ...] = (("the rest", "takeover"), ("one step", "escalate"))
    for label, how in arms:
        for threshold in np.quantile(p_N, [1 - share for share in SHARES]).tolist():
            both = AgentModels(RecordedPolicy("llama-2-13b D1", slm), HouseholdExpert(), HouseholdVerifier(), 1)
            agents = [Routed(both, Intervention(risk=model, threshold=threshold, how=how)) for model in models]
            done = [_ended(episode, length_of[episode.task.id]) for episode in played(agents)]
            found["routed"].append({"expert takes": label, "threshold": threshold, **table.against_chance(done)})
    return found


def _ended(episode: Episode, recorded: int) -> Episode:
    """The recording's own end without help is the SLM's failure, not a gap."""
    alone = not any(step.choice.teacher.calls for step in episode.steps)
    if episode.failure is not None and alone and len(episode.steps) == recorded:
        return replace(episode, success=False, stop="horizon", failure=None)
    return episode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with trajectories/ and alfworld/")
    data = parser.parse_args().data
    log = data / "trajectories/knowagent_alfworld/episodes.jsonl.xz"
    by_task: dict[str, list[Json]] = defaultdict(list)
    with lzma.open(log, "rt") as file:
        for raw in map(json.loads, file):
            by_task[raw["task"]].append(raw)
    with tempfile.TemporaryDirectory() as aside:
        with tarfile.open(data / "alfworld/games_train_seen.tar.xz") as archive:
            archive.extractall(aside, filter="data")
        games = Games(Path(aside))
        known = {task: like for task, both in by_task.items() if (like := room_of(games, both[0])) is not None}
        worlds = {task: cases_of(games, like, by_task[task])[0][0] for task, like in known.items()}
    print(json.dumps(study(worlds, import_logs(log, "knowagent-alfworld")[0]), indent=1))


if __name__ == "__main__":
    main()
