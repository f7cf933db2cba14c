"""Many agents at once: the episodes that each would have played alone, with shared beginnings played once."""

from __future__ import annotations

import asyncio

import pytest

from r2v.clients.scripted import ScriptedPolicy
from r2v.core.agent import AgentModels, Routed, Solo
from r2v.core.features import FEATURES
from r2v.core.fixed import Always, Never
from r2v.core.types import Candidate, Memory, Usage
from r2v.domains.household import DOMAIN
from r2v.domains.household.env import Household
from r2v.domains.household.expert import HouseholdExpert
from r2v.domains.household.noise import random_action
from r2v.domains.household.scenes import generate
from r2v.domains.household.verifier import HouseholdVerifier
from r2v.evaluation.closed_loop import cases, play, play_all
from r2v.perturbations import family_of
from r2v.perturbations.wrap import PerturbedBranching
from r2v.routers.random import Random
from toy import TASK, Flat, ThresholdRouter, Toy, routed

STUCK = FEATURES.index("repeats_in_last_five")


class Clumsy:
    """A small model: a mixture of the expert and chance, by seed."""

    name = "clumsy"

    def __init__(self) -> None:
        self._expert = HouseholdExpert()
        self.asked = 0

    async def propose(self, context, k, *, seed):
        self.asked += 1
        (good,) = await self._expert.propose(context, 1, seed=seed)
        wild = [Candidate(random_action(context, seed + i), -2.0 - i, 0.5, Usage(1)) for i in range(k - 1)]
        return (good, *wild) if seed % 3 else (*wild, wild[0])


def household(small_scenes):
    def make(task, z):
        environment = Household(generate(task.id, task.family, small_scenes).world())
        family = family_of(task.id, z)
        perturbation = DOMAIN.perturbation(family, 1.5, environment.goal)
        return PerturbedBranching(environment, perturbation, seed=z, salt=task.id), family

    return make


def agents(slm):
    models = AgentModels(slm, HouseholdExpert(), HouseholdVerifier(), 4)
    stuck = [ThresholdRouter("stuck", lambda features: features.values[STUCK], at) for at in (0.2, 0.6)]
    routers = [Never(), Always(), Random(threshold=0.1), Random(threshold=0.5), *stuck]
    return [*(Routed(models, router) for router in routers), Solo(HouseholdExpert(), "teacher")]


def test_together_is_the_same_as_alone(small_tasks, small_scenes):
    slm = Clumsy()
    some, make, how = cases(small_tasks[:6], [5, 6, 7]), household(small_scenes), {"horizon": 30, "memory": Memory(3)}
    together = asyncio.run(play_all(agents(slm), some, make, **how))
    asked, slm.asked = slm.asked, 0
    alone = [asyncio.run(play(agent, some, make, **how)) for agent in agents(slm)]
    assert together == alone
    assert len({episode.success for episodes in together for episode in episodes}) == 2
    assert asked < 0.7 * slm.asked


def test_without_clone_each_agent_has_an_environment_of_its_own():
    made = []

    def make(task, z):
        made.append(Toy())
        return made[-1], "none"

    agents = [routed(router=Always()), routed(router=Never()), routed(router=Always())]
    episodes = asyncio.run(play_all(agents, [(TASK, 1)], make, horizon=5))
    assert len(made) == 3
    assert [e[0].success for e in episodes] == [True, False, True]


class Branchable(Toy):
    closed = 0

    def clone(self):
        copy = type(self)(self.goal)
        copy.__dict__.update(self.__dict__)
        return copy

    async def close(self):
        Branchable.closed += 1


class Fails:
    name = "fails"

    def __init__(self, at):
        self._at = at

    def decide(self, context, features, memory, *, seed):
        if features.values[FEATURES.index("step_index")] >= self._at:
            raise ZeroDivisionError
        return Always().decide(context, features, memory, seed=seed)


class Trap(Branchable):
    async def step(self, action):
        if action.text == "press blue":
            raise OSError("the button broke")
        return await super().step(action)


@pytest.mark.parametrize("kind", [Branchable, Trap])
def test_what_breaks_ends_only_those_whom_it_concerns(kind):
    models = AgentModels(ScriptedPolicy(lambda c: "press blue"), ScriptedPolicy(lambda c: "press red"), Flat(), 3)
    agents = [Routed(models, router) for router in (Always(), Fails(1), Never(), Fails(0))]
    solved, broke, never, at_once = (
        episodes[0] for episodes in asyncio.run(play_all(agents, [(TASK, 1)], lambda t, z: (kind(), "none"), horizon=4))
    )
    assert (solved.success, solved.stop, len(solved.steps)) == (True, "done", 3)
    assert (broke.stop, broke.failure.boundary, len(broke.steps)) == ("error", "router", 1)
    assert (at_once.stop, len(at_once.steps)) == ("error", 0)
    if kind is Trap:
        assert (never.stop, never.failure.boundary, never.failure.kind) == ("error", "environment", "OSError")
    else:
        assert (never.stop, never.success, len(never.steps)) == ("horizon", False, 4)
    assert Branchable.closed > 0
