"""The state oracle: what a router could do that knows the value of help at each step, but not the future.

At each step where the teacher would act otherwise, futures are played with the teacher's action and with the SLM's, the
SLM alone afterwards; it escalates where their successes differ by more than a price. Each future has random numbers of its
own, of the SLM's draws and of the perturbation, and none has those of the episode itself, on which the choice is measured.
A few futures are a noisy estimate: this policy can be had, and one that knows the values exactly is better.

It values one step of help as if none came later, as `benefit` does; a policy that plans its later calls may need fewer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from r2v.core.agent import AgentModels, Routed
from r2v.core.agreement import alike
from r2v.core.features import best
from r2v.core.fixed import AtSteps, Never
from r2v.core.protocols import Environment
from r2v.core.types import NO_USAGE, TEACHER, Action, Choice, Context, Episode, Memory, Task
from r2v.evaluation.closed_loop import play, play_all

PRICES = (0.05, 0.1, 0.2, 0.3, 0.45)
"""What a call must add to the chance of success, at the points of the curve."""
Redrawn = tuple[int, int]
"""(t, draw): what is seen after step t is disturbed by other random numbers, a draw each."""
MakeRedrawn = Callable[[Task, int, Redrawn | None], tuple[Environment, str]]
"""(task, perturbation seed, redrawn) -> a fresh environment and the name of its perturbation family."""


@dataclass(frozen=True)
class Repeating:
    """Repeats actions, and then plays as another agent: no model is asked about what has been decided."""

    actions: tuple[Action, ...]
    then: Routed

    @property
    def name(self) -> str:
        return self.then.name

    async def act(self, context: Context, memory: Memory, *, seed: int) -> tuple[Choice, Memory]:
        if context.t < len(self.actions):
            return Choice(self.actions[context.t], "slm", (), (), None, None, NO_USAGE, NO_USAGE), memory
        return await self.then.act(context, memory, seed=seed)


@dataclass(eq=False)
class StateOracle:
    """One episode at some prices; what two prices have in common is played once."""

    models: AgentModels
    make_environment: MakeRedrawn
    task: Task
    seed: int
    futures: int
    """Played with each of the two actions, at each step where they differ."""
    horizon: int
    max_calls: int | None = None
    _played: dict[frozenset[int], Episode] = field(default_factory=dict)
    _gains: dict[tuple[frozenset[int], int], float] = field(default_factory=dict)

    async def at(self, price: float) -> Episode:
        """The episode in which the teacher is asked wherever that is worth more than the price."""
        asked: frozenset[int] = frozenset()
        while self.max_calls is None or len(asked) < self.max_calls:
            worth = await self._first(asked, price)
            if worth is None:
                break
            asked |= {worth}
        return await self._episode(asked)

    async def _first(self, asked: frozenset[int], price: float) -> int | None:
        """The next step at which help is worth more than the price, where it was asked for at these."""
        episode = await self._episode(asked)
        for t in range(max(asked, default=-1) + 1, len(episode.steps)):
            if await self._gain(episode, asked, t) > price:
                return t
        return None

    async def _episode(self, asked: frozenset[int]) -> Episode:
        if asked not in self._played:
            (self._played[asked],) = await play(
                Routed(self.models, AtSteps(asked)), [(self.task, self.seed)],
                lambda task, z: self.make_environment(task, z, None), horizon=self.horizon,
            )  # fmt: skip
        return self._played[asked]

    async def _gain(self, episode: Episode, asked: frozenset[int], t: int) -> float:
        if (asked, t) not in self._gains:
            self._gains[asked, t] = await gain(
                self.models, self.make_environment, episode, t, range(1, self.futures + 1), horizon=self.horizon
            )
        return self._gains[asked, t]


async def gain(
    models: AgentModels, make_environment: MakeRedrawn, episode: Episode, t: int, draws: Sequence[int], *, horizon: int
) -> float:
    """What the teacher's action at step t of a routed episode adds to the chance of success, the SLM alone afterwards.

    Exactly 0 where both would do the same. A future that breaks counts as failed.

    Args:
        draws: a future with each action for each; 0 is what the episode itself was played with.
    """
    choice, context = episode.steps[t].choice, episode.contexts(horizon)[t]
    own = choice.candidates[best(choice.candidates, choice.scores)].action
    seed = episode.call_seed(t, TEACHER)
    (answer,) = await models.teacher.propose(context, 1, seed=seed)
    if alike(own, answer.action):
        return 0.0
    before = tuple(step.choice.action for step in episode.steps[:t])

    async def one(draw: int) -> int:
        alone = Routed(replace(models, draw=draw), Never())
        agents = [Repeating((*before, action), alone) for action in (answer.action, own)]
        cases = [(episode.task, episode.seed)]
        (helped,), (left,) = await play_all(
            agents, cases, lambda task, z: make_environment(task, z, (t, draw)), horizon=horizon
        )
        return bool(helped.success) - bool(left.success)

    return sum(await asyncio.gather(*map(one, draws))) / len(draws)
