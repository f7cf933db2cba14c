"""A toy world and honest fakes for tests: press the right button; a lamp says which."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from r2v.clients.scripted import ScriptedPolicy
from r2v.core.agent import AgentModels, Routed, Solo
from r2v.core.fixed import Never
from r2v.core.loop import run_episode
from r2v.core.types import Action, Context, Decision, Episode, Features, Memory, Observation, ScoreKind, Task
from r2v.routers.base import compare

TASK = Task("toy/press/1", "press", "toy", "press red.")


class Toy:
    """Solved by `press red` three times in a row."""

    def __init__(self, goal: str = "press red.") -> None:
        self.goal = goal
        self.pressed = 0
        self.done = False

    async def start(self) -> Observation:
        return Observation("a red 1, and a blue 1", False, None, None, "0", ())

    async def step(self, action: Action) -> Observation:
        if self.done:
            raise RuntimeError("over")
        self.pressed = self.pressed + 1 if action.text == "press red" else 0
        self.done = self.pressed == 3
        return Observation(f"pressed {self.pressed}", self.done, True if self.done else None, None, str(self.pressed), ())

    async def close(self) -> None:
        pass


class Flat:
    """A verifier that finds everything equal."""

    async def score(self, context: Context, actions) -> tuple[float, ...]:
        return (0.5,) * len(actions)


def run(agent, *, horizon: int = 10, seed: int = 1, memory: Memory | None = None, environment=None) -> Episode:
    return asyncio.run(
        run_episode(
            environment or Toy(),
            agent,
            TASK,
            seed=seed,
            perturbation="none",
            horizon=horizon,
            memory=memory or Memory(),
        )
    )


def routed(slm="press blue", teacher="press red", router=None, verifier=None) -> Routed:
    models = AgentModels(ScriptedPolicy(lambda c: slm), ScriptedPolicy(lambda c: teacher), verifier or Flat(), 3)
    return Routed(models, router or Never())


def played_episode() -> Episode:
    return run(routed(slm="press red"))


__all__ = ["TASK", "Flat", "Solo", "Toy", "played_episode", "routed", "run"]


class Scored:
    """A model (see `r2v.core.mlp.RiskMLP`) whose score and value are a function of the features."""

    def __init__(self, score):
        self.score = self.value = score


@dataclass(frozen=True)
class ThresholdRouter:
    """Escalates iff score >= threshold (`r2v.core.protocols.Router`)."""

    name: str
    score: Callable[[Features], float]
    threshold: float
    kind: ScoreKind = "risk"

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        return compare(self.name, self.kind, self.score(features), self.threshold)
