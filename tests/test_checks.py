"""The conformance suite passes our own implementations and catches each broken promise."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from r2v.core.checks import (
    CheckFailed,
    check_environment,
    check_perturbation,
    check_policy,
    check_router,
    check_verifier,
)
from r2v.core.features import FEATURES
from r2v.core.fixed import Always, Never
from r2v.core.types import Action, Candidate, Context, Features, Usage
from r2v.domains.household import DOMAIN
from r2v.domains.household.env import Household
from r2v.domains.household.expert import HouseholdExpert
from r2v.domains.household.scenes import generate
from r2v.domains.household.verifier import HouseholdVerifier
from r2v.perturbations import FAMILIES
from r2v.perturbations.wrap import Perturbed
from r2v.routers import router_class
from toy import Flat, Toy

ROOM = "You are in the middle of a room. Looking quickly around you, you see a drawer 2, a drawer 1, and a shelf 1."
SHELF = "You arrive at shelf 1. On the shelf 1, you see a book 1, a pen 2, and a pen 1."
CONTEXT = Context("put some pen on drawer.", (ROOM, SHELF), (Action("go to shelf 1"),), 40)
COMMANDS = ["take pen 1 from shelf 1", "go to drawer 1", "look", "open shelf 1", "sing", "go to shelf 1", "look"]
ROWS = [Features((float(i),) * len(FEATURES), (True,) * len(FEATURES)) for i in range(5)]


def test_our_own_implementations_conform(small_tasks, small_scenes):
    for task in small_tasks[:6]:
        world = generate(task.id, task.family, small_scenes).world()
        commands = ["look", "nonsense", *list(Household(world).admissible_commands())[:5]]
        asyncio.run(check_environment(lambda world=world: Household(world), commands))
        for family in FAMILIES:
            asyncio.run(
                check_environment(
                    lambda world=world, family=family: Perturbed(
                        Household(world), DOMAIN.perturbation(family, 2.0, world.sentence), seed=1, salt="x"
                    ),
                    commands,
                )
            )
    asyncio.run(check_policy(HouseholdExpert(), CONTEXT))
    asyncio.run(check_verifier(HouseholdVerifier(), CONTEXT, COMMANDS))
    for family in FAMILIES:
        check_perturbation(
            lambda s, family=family: DOMAIN.perturbation(family, s, CONTEXT.goal), [ROOM, SHELF, "Nothing happens."]
        )
    rules = [router_class(name)().at(0.5) for name in ("random", "entropy", "heuristic", "verifier", "rules", "judge_latch")]
    for router in (Never(), Always(), *rules):
        check_router(router, ROWS, CONTEXT)


class Forgetful(Toy):
    count = 0

    def __init__(self):
        super().__init__()
        Forgetful.count += 1
        self.mine = Forgetful.count

    async def step(self, action):
        return replace(await super().step(action), text=f"world {self.mine}")


class Endless(Toy):
    async def step(self, action):
        self.done = False
        return await super().step(action)


class Early(Toy):
    async def step(self, action):
        return replace(await super().step(action), done=False, success=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [(Forgetful, "different observations"), (Endless, "after the end"), (Early, "before the end")],
)
def test_broken_environments_are_caught(make, message):
    with pytest.raises(CheckFailed, match=message):
        asyncio.run(check_environment(make, ["press red"] * 3))


class Few:
    name = "few"

    async def propose(self, context, k, *, seed):
        return (Candidate(Action("a"), None, None, Usage()),)


class Moody:
    name = "moody"
    calls = 0

    async def propose(self, context, k, *, seed):
        Moody.calls += 1
        return (Candidate(Action(str(Moody.calls)), None, None, Usage()),) * k


class Loud(Flat):
    async def score(self, context, actions):
        return (1.5,) * len(actions)


class Relative(Flat):
    async def score(self, context, actions):
        return tuple(i / len(actions) for i in range(len(actions)))


def test_broken_policies_and_verifiers_are_caught():
    with pytest.raises(CheckFailed, match="1 candidates when asked for 3"):
        asyncio.run(check_policy(Few(), CONTEXT))
    with pytest.raises(CheckFailed, match="in two ways"):
        asyncio.run(check_policy(Moody(), CONTEXT))
    with pytest.raises(CheckFailed, match="outside"):
        asyncio.run(check_verifier(Loud(), CONTEXT, COMMANDS))
    with pytest.raises(CheckFailed, match="alone"):
        asyncio.run(check_verifier(Relative(), CONTEXT, COMMANDS))


class Sly:
    family = "sly"

    def apply(self, text, *, where, previous, seed, t):
        return text + "!", ()


def test_broken_perturbations_and_routers_are_caught():
    with pytest.raises(CheckFailed, match="strength 0"):
        check_perturbation(lambda strength: Sly(), [ROOM])
    with pytest.raises(CheckFailed, match="not logged"):
        check_perturbation(lambda s: Sly() if s else DOMAIN.perturbation("flaky", 0.0, ""), [ROOM])

    class Unsure(Never):
        def decide(self, context, features, memory, *, seed):
            return replace(super().decide(context, features, memory, seed=seed), propensity=0.0)

    with pytest.raises(CheckFailed, match="propensity"):
        check_router(Unsure(), ROWS, CONTEXT)
