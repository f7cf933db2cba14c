"""The conformance suite passes our own implementations and catches each broken promise."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from r2v.core.checks import (
    CheckFailed,
    check_environment,
    check_log_format,
    check_perturbation,
    check_policy,
    check_router,
    check_verifier,
)
from r2v.core.errors import ArtifactError
from r2v.core.features import FEATURES
from r2v.core.fixed import Always, Never
from r2v.core.types import Action, Candidate, Context, Features, Memory, Usage
from r2v.domains.household import DOMAIN
from r2v.domains.household.env import Household
from r2v.domains.household.expert import HouseholdExpert
from r2v.domains.household.scenes import generate
from r2v.domains.household.verifier import HouseholdVerifier
from r2v.perturbations import FAMILIES
from r2v.perturbations.wrap import Perturbed
from r2v.routers import router_class
from test_help import Copyable
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


class Clone(Copyable):
    """Its clones shout, or share its state."""

    shout = shared = False

    async def step(self, action):
        seen = await super().step(action)
        return replace(seen, text=seen.text.upper()) if self.shout == "loud" else seen

    def clone(self):
        copy = self if self.shared else super().clone()
        copy.shout = self.shout and "loud"
        return copy


class Shouting(Clone):
    shout = "quiet"


class Sharing(Clone):
    shared = True


class Renamed(Toy):
    count = 0

    def __init__(self):
        Renamed.count += 1
        super().__init__(f"goal {Renamed.count}")


class Hidden(Toy):
    async def start(self):
        return replace(await super().start(), latent="")


@pytest.mark.parametrize(
    ("make", "message"),
    [(Shouting, "clone answers differently"), (Sharing, "different observations"), (Renamed, "different goals"),
     (Hidden, "step 0 has no latent hash")],
)  # fmt: skip
def test_broken_clones_goals_and_hashes_are_caught(make, message):
    with pytest.raises(CheckFailed, match=message):
        asyncio.run(check_environment(make, ["press blue", "press red"]))


def test_an_environment_is_closed_twice_and_played_no_further_than_its_end():
    closed, acted = [], []

    class Counted(Copyable):
        async def step(self, action):
            acted.append(action.text)
            return await super().step(action)

        async def close(self):
            closed.append(self)

    asyncio.run(check_environment(Counted, ["press red"] * 3 + ["press blue"]))
    assert len(closed) == 4 + 3 and acted.count("press blue") == 1  # a clone a step; once to see that it is over
    asyncio.run(check_environment(Toy, ["press red"]))


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


class Told:
    """A policy or a router that says what it is told."""

    name = "told"

    def __init__(self, said, **more):
        self.said = said
        self.__dict__.update(more)

    async def propose(self, context, k, *, seed):
        return (self.said,) * k

    def decide(self, context, features, memory, *, seed):
        return next(self.said) if hasattr(self.said, "__next__") else self.said


@pytest.mark.parametrize(
    ("logp", "entropy", "message"),
    [(0.1, 0.0, "positive log"), (-1.0, -0.1, "negative entropy"), (2e-6, None, "positive log"), (0.0, 0.0, None),
     (1e-6, 0.5, None), (None, None, None)],
)  # fmt: skip
def test_log_probabilities_and_entropies_have_a_sign(logp, entropy, message):
    policy = Told(Candidate(Action("a"), logp, entropy, Usage()))
    if message is None:
        asyncio.run(check_policy(policy, CONTEXT))
        return
    with pytest.raises(CheckFailed, match=message):
        asyncio.run(check_policy(policy, CONTEXT))


@pytest.mark.parametrize(
    ("scores", "message"), [((-0.1,), "outside"), ((0.5, 0.5), "got 2 scores"), ((0,), None), ((1,), None)]
)
def test_scores_are_one_an_action_and_in_the_unit_interval(scores, message):
    class Fixed:
        async def score(self, context, actions):
            return scores

    if message is None:
        asyncio.run(check_verifier(Fixed(), CONTEXT, COMMANDS[:1]))
        return
    with pytest.raises(CheckFailed, match=message):
        asyncio.run(check_verifier(Fixed(), CONTEXT, COMMANDS[:1]))


FINE = Always().decide(CONTEXT, ROWS[0], Memory(), seed=0)
WRONG = [
    ({"propensity": 1.01}, "propensity"), ({"reason": ""}, "no reason"), ({"route": "retry"}, "took the route retry"),
    ({"code": "mood"}, "none of the list"), ({"score": 0.5}, "without its kind"),
    ({"score_kind": "risk"}, "without its kind"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_broken_decisions_are_caught(changes, message):
    check_router(Told(FINE, routes={"escalate"}), ROWS, CONTEXT)
    check_router(Told(replace(FINE, score=0.5, score_kind="risk", propensity=0.01)), ROWS, CONTEXT)
    with pytest.raises(CheckFailed, match=message):
        check_router(Told(replace(FINE, **changes), routes={"escalate"}), ROWS, CONTEXT)


def test_a_router_of_two_minds_is_caught():
    with pytest.raises(CheckFailed, match="one case in two ways"):
        check_router(Told(iter([FINE, replace(FINE, reason="other")])), ROWS, CONTEXT)


def test_perturbations_are_repeatable_and_asked_about_each_text_after_the_one_before():
    asked = []

    class Counting:
        def apply(self, text, **where):
            asked.append((text, where))
            return text, ()

    check_perturbation(lambda strength: Counting(), ["a", "b"], seeds=2)
    assert asked[::3] == [
        (text, {"where": "observation", "previous": previous, "seed": seed, "t": t})
        for seed in (0, 1) for t, (previous, text) in enumerate((("", "a"), ("a", "b")))
    ]  # fmt: skip
    counter = iter(range(99))

    class Moody(Sly):
        def apply(self, text, **where):
            return f"{text}{next(counter)}", ("changed",)

    with pytest.raises(CheckFailed, match="different texts"):
        check_perturbation(lambda s: Moody() if s else DOMAIN.perturbation("flaky", 0.0, ""), [ROOM])


@pytest.mark.parametrize(("changes", "message"), [
    ({"description": "a\nb"}, "no description"), ({"name": ""}, "no name"), ({"name": None}, "no name"), ({}, None),
])  # fmt: skip
def test_a_log_format_has_a_name_and_a_description_of_one_line(changes, message):
    class Format:
        name, description = "mine", "Logs of mine."

        def read(self, path):
            raise ArtifactError(f"{path} does not exist")

    for name, value in changes.items():
        setattr(Format, name, value)
    if message is None:
        check_log_format(Format())
        return
    with pytest.raises(CheckFailed, match=message):
        check_log_format(Format())
