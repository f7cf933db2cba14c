"""What is the value of help made of, and how much of it can be known? `python benchmarks/value_of_help.py RUN --out FILE`

At steps of the SLM's own episodes where the teacher would act otherwise, futures are played with the teacher's action and
with the SLM's, the SLM alone afterwards, with draws of their own; three times, with less and less that only the future or
the house knows:

    noise kept     the perturbation of the recorded episode goes on: what `help.draws` of a run branches
    noise drawn    each future has a perturbation of its own
    house drawn    and what no place has shown yet is hidden anew, as the scenes' generator does: what a router may know

The rows are kept in FILE (NumPy): episode, t, and the successes of each future; another call with the same FILE adds to it.

With --play N instead, the state oracle plays N test tasks under the first test seed: once as in results.json, knowing what
is hidden where ("noise drawn"), and once with "house drawn". `--draws` futures a step with each action.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from r2v.core.agent import AgentModels, Routed
from r2v.core.features import best
from r2v.core.fixed import Never
from r2v.core.seeds import derive_seed
from r2v.core.types import Action, Episode, Observation, Task
from r2v.domains.household.belief import CONTENTS
from r2v.domains.household.env import Household
from r2v.domains.household.rules import commands
from r2v.evaluation.branches import differs
from r2v.evaluation.closed_loop import play_all
from r2v.evaluation.outcomes import Row, gather, row
from r2v.evaluation.results import state_oracle_entry
from r2v.evaluation.state_oracle import PRICES, Repeating, StateOracle
from r2v.perturbations import family_of
from r2v.perturbations.wrap import perturbed
from r2v.pipeline.agents import make_models, make_teacher
from r2v.pipeline.run_folder import RunFolder
from r2v.pipeline.settings import RunSettings

KINDS = ("noise kept", "noise drawn", "house drawn")
GROUP, PLAYED = 40, 20
"""Episodes that are branched together, and that are played together by the state oracle."""


class Rehidden:
    """A household in which, before the action of step t, what no place has shown is hidden anew."""

    def __init__(self, inner: Household, t: int, seed: int) -> None:
        self._inner, self._left, self._seed = inner, t, seed
        self._shown: frozenset[str] = frozenset()
        self.goal = inner.goal

    async def start(self) -> Observation:
        return await self._inner.start()

    async def step(self, action: Action) -> Observation:
        if self._left == 0:
            rehide(self._inner, self._shown, Random(self._seed))
        self._left -= 1
        seen = await self._inner.step(action)
        self._shown |= {found.group(1) or found.group(2) for found in CONTENTS.finditer(seen.text)}
        return seen

    def clone(self) -> Rehidden:
        copy = Rehidden.__new__(Rehidden)
        copy.__dict__.update(self.__dict__)
        copy._inner = self._inner.clone()
        return copy

    async def close(self) -> None:
        await self._inner.close()


def rehide(house: Household, shown: frozenset[str], draw: Random) -> None:
    """Move everything that lies in a place that was not shown to any such place that takes it, each as likely.

    That is how `scenes` hides things; the target does not lie where the goal wants it, unless it must be changed first.
    """
    world, state = house.world, house._state
    dark = [r for r in world.receptacles if world.names[r] not in shown]
    hidden = [(o, r) for r in dark for o in state.contents[r] if o in world.traits["pickupable"]]
    contents, at = dict(state.contents), set(state.objects_at)
    for o, r in hidden:
        kind = world.type_of[o]
        hosts = [place for place in dark if kind in world.accepts[place]]
        if kind == world.goal.object_type and world.goal.state is None:
            hosts = [place for place in hosts if world.type_of[place] != world.goal.receptacle_type] or [r]
        new = draw.choice(hosts) if hosts else r
        contents[r] = tuple(other for other in contents[r] if other != o)
        contents[new] = tuple(sorted((*contents[new], o)))
        if (o, world.location_of[r]) in at:
            at = (at - {(o, world.location_of[r])}) | {(o, world.location_of[new])}
    state.contents, state.objects_at = contents, frozenset(at)
    house._commands, house._latent = commands(world, state), state.latent()


def environment(settings: RunSettings, kind: str, task: Task, z: int, redrawn: tuple[int, int] | None) -> Any:
    """The task as the futures of this kind see it (`r2v.evaluation.state_oracle.MakeRedrawn`)."""
    inner: Any = settings.domain.environment(settings.environment, task)
    if kind == "house drawn" and redrawn is not None:
        inner = Rehidden(inner, redrawn[0], derive_seed("house", task.id, z, *redrawn))
    family = family_of(task.id, z, settings.perturbations.families)
    made = settings.domain.perturbation(family, settings.perturbations.strength, inner.goal)
    disturbed = perturbed(inner, made, seed=z, salt=task.id)
    if kind != "noise kept" and redrawn is not None:
        disturbed.redraw(*redrawn)
    return disturbed, family


async def futures(
    settings: RunSettings, models: AgentModels, episode: Episode, t: int, kind: str, draws: int
) -> list[tuple[bool, bool]]:
    """(solved with the teacher's action at step t, solved with the SLM's), a future each."""
    horizon, choice = settings.environment.horizon, episode.steps[t].choice
    seed = episode.call_seed(t, "teacher")
    (answer,) = await models.teacher.propose(episode.contexts(horizon)[t], 1, seed=seed)
    own = choice.candidates[best(choice.candidates, choice.scores)].action
    before = tuple(step.choice.action for step in episode.steps[:t])

    async def one(draw: int) -> tuple[bool, bool]:
        alone, cases = Routed(replace(models, draw=draw), Never()), [(episode.task, episode.seed)]
        agents = [Repeating((*before, action), alone) for action in (answer.action, own)]
        (helped,), (left,) = await play_all(
            agents, cases, lambda task, z: environment(settings, kind, task, z, (t, draw)), horizon=horizon
        )
        return bool(helped.success), bool(left.success)

    return await asyncio.gather(*(one(draw) for draw in range(1, draws + 1)))


def collect(run: RunFolder, split: str, count: int, steps: int, draws: int, kind: str, seed: int) -> dict[str, np.ndarray]:
    """Rows of `steps` drawn steps of each of `count` drawn episodes: episode, t, helped_ND, alone_ND."""
    settings = run.settings
    episodes = run.rollouts() if split == "router" else run.validation_episodes()
    order = Random(seed).sample(range(len(episodes)), min(count, len(episodes)))
    horizon, teacher = settings.environment.horizon, make_teacher(settings)
    rows: list[tuple[int, int, list[tuple[bool, bool]]]] = []
    begun = time.monotonic()
    for first in range(0, len(order), GROUP):
        models = make_models(settings, run.slm)

        async def one(i: int, models: AgentModels = models) -> list[tuple[int, int, list[tuple[bool, bool]]]]:
            other = await differs(episodes[i], teacher, horizon)
            where = [t for t, differ in enumerate(other) if differ]
            drawn = sorted(Random(derive_seed("value", seed, i)).sample(where, min(steps, len(where))))
            found = await asyncio.gather(*(futures(settings, models, episodes[i], t, kind, draws) for t in drawn))
            return [(i, t, won) for t, won in zip(drawn, found, strict=True)]

        async def group(numbers: list[int], one: Any = one) -> list[Any]:
            return await asyncio.gather(*map(one, numbers))

        rows += [row for found in asyncio.run(group(order[first : first + GROUP])) for row in found]
        print(
            f"{kind}, {split}: {first + GROUP} of {len(order)}, {len(rows)} rows, {time.monotonic() - begun:.0f} s",
            flush=True,
        )
    won_ND2 = np.array([won for *_, won in rows], dtype=float)
    return {
        "episode": np.array([i for i, *_ in rows]), "t": np.array([t for _, t, _ in rows]),
        "helped": won_ND2[..., 0], "alone": won_ND2[..., 1],
    }  # fmt: skip


def played(run: RunFolder, count: int, draws: int, kind: str) -> dict[str, Any]:
    """The `state_oracle` entry of results.json, on so many test tasks, with futures of this kind."""
    settings, z = run.settings, run.settings.perturbations.test[0]
    tasks = run.split("test")[:count]
    horizon, prices = settings.environment.horizon, sorted(PRICES, reverse=True)

    async def one(models: AgentModels, task: Task) -> list[Row]:
        def make(task: Task, z: int, redrawn: tuple[int, int] | None) -> Any:
            return environment(settings, kind, task, z, redrawn)

        oracle = StateOracle(models, make, task, z, draws, horizon)
        return [row(await oracle.at(price)) for price in prices]

    async def group(some: list[Task]) -> list[list[Row]]:
        models = make_models(settings, run.slm)
        return await asyncio.gather(*(one(models, task) for task in some))

    ends = {"slm_only": "slm_only", "llm_only": make_teacher(settings).name}
    evaluated = {name: [e for e in run.evaluated() if e.agent == agent and e.seed == z] for name, agent in ends.items()}
    found: list[list[Row]] = []
    begun, entry = time.monotonic(), {}
    for first in range(0, len(tasks), PLAYED):
        found += asyncio.run(group(tasks[first : first + PLAYED]))
        ids = [task.id for task in tasks[: len(found)]]
        points = [gather(rows, ids, [z], horizon) for rows in zip(*found, strict=True)]
        others = {
            name: gather([row(e) for e in episodes if e.task.id in ids], ids, [z], horizon)
            for name, episodes in evaluated.items()
        }
        entry = state_oracle_entry(prices, points, others, settings.evaluate.resamples, settings.seed)
        print(f"{kind}: {len(found)} of {len(tasks)}, {time.monotonic() - begun:.0f} s\n{entry}", flush=True)
    return entry


def spread(helped_ND: np.ndarray, alone_ND: np.ndarray) -> str:
    """How much the value of help differs from row to row, apart from the chance of so few futures."""
    gain_ND = helped_ND - alone_ND
    draws = gain_ND.shape[1]
    measured, chance = gain_ND.mean(axis=1).var(), gain_ND.var(axis=1, ddof=1).mean() / draws
    return (
        f"{len(gain_ND)} rows x {draws}: mean {gain_ND.mean():+.3f}, measured variance {measured:.4f}, of which chance "
        f"{chance:.4f}: standard deviation of the value {max(0.0, measured - chance) ** 0.5:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of the household, finished up to the rollouts")
    parser.add_argument("--out", type=Path, default=Path("value_of_help.npz"), help="file of the rows")
    parser.add_argument("--play", type=int, default=0, help="play so many test tasks instead (of a finished run)")
    parser.add_argument("--split", choices=("router", "validation"), default="validation")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--steps", type=int, default=2, help="branched steps of an episode")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.play:
        for kind in KINDS[1:]:
            played(RunFolder(a.run), a.play, a.draws, kind)
        return
    kept = dict(np.load(a.out)) if a.out.exists() else {}
    for kind in a.kinds:
        found = collect(RunFolder(a.run), a.split, a.episodes, a.steps, a.draws, kind, a.seed)
        kept |= {f"{a.split}/{kind}/{name}": values for name, values in found.items()}
        np.savez(a.out, **kept)
        print(f"{kind}: {spread(found['helped'], found['alone'])}", flush=True)


if __name__ == "__main__":
    main()
