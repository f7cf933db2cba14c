"""`Perturbed`: an environment whose texts pass through a perturbation. It is itself an environment."""

from __future__ import annotations

import math
from dataclasses import replace

from r2v.core.protocols import Branching, Environment, Perturbation, Scoring
from r2v.core.seeds import derive_seed
from r2v.core.types import Action, Change, Observation


class Perturbed:
    def __init__(self, environment: Environment, perturbation: Perturbation, *, seed: int, salt: str) -> None:
        """`salt` (the task's id) keeps two tasks under one seed from being disturbed at the same steps."""
        self._inner = environment
        self._perturbation = perturbation
        self._seed = derive_seed(seed, salt)
        self._previous = ""
        self._t = 0
        self._redrawn = (math.inf, self._seed)
        self.goal, self._goal_changes = perturbation.apply(environment.goal, where="goal", previous="", seed=self._seed, t=0)

    def redraw(self, t: int, draw: int) -> None:
        """Disturb what is seen after step t by other random numbers: another future of the same state."""
        self._redrawn = (t, derive_seed(self._seed, "redrawn", draw))

    async def start(self) -> Observation:
        return self._disturb(await self._inner.start(), self._goal_changes)

    async def step(self, action: Action) -> Observation:
        return self._disturb(await self._inner.step(action), ())

    async def out_of_steps(self) -> Observation | None:
        return await self._inner.out_of_steps() if isinstance(self._inner, Scoring) else None

    async def close(self) -> None:
        await self._inner.close()

    def _disturb(self, observation: Observation, earlier: tuple[Change, ...]) -> Observation:
        if observation.done:
            return observation
        t, other = self._redrawn
        text, changes = self._perturbation.apply(
            observation.text, where="observation", previous=self._previous, seed=other if self._t > t else self._seed,
            t=self._t,
        )  # fmt: skip
        self._previous, self._t = text, self._t + 1
        return replace(observation, text=text, changes=earlier + changes)


class PerturbedBranching(Perturbed):
    """The same around an environment that can be cloned, and so is the whole (`r2v.core.protocols.Branching`)."""

    _inner: Branching

    def __init__(self, environment: Branching, perturbation: Perturbation, *, seed: int, salt: str) -> None:
        super().__init__(environment, perturbation, seed=seed, salt=salt)

    def clone(self) -> PerturbedBranching:
        copy = PerturbedBranching.__new__(PerturbedBranching)
        copy.__dict__.update(self.__dict__)
        copy._inner = self._inner.clone()
        return copy


def perturbed(environment: Environment, perturbation: Perturbation, *, seed: int, salt: str) -> Perturbed:
    """The environment as the perturbation shows it; it can be cloned if `environment` can."""
    if isinstance(environment, Branching):
        return PerturbedBranching(environment, perturbation, seed=seed, salt=salt)
    return Perturbed(environment, perturbation, seed=seed, salt=salt)
