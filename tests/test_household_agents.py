"""The household's teacher and verifier: text only, and good enough."""

from __future__ import annotations

import asyncio

import pytest

from r2v.core.agent import Noisy, Solo
from r2v.core.types import Action, Context
from r2v.domains.household import DOMAIN
from r2v.domains.household.env import Household
from r2v.domains.household.expert import HouseholdExpert, parse_sentence
from r2v.domains.household.noise import random_action
from r2v.domains.household.scenes import generate
from r2v.domains.household.verifier import HouseholdVerifier
from r2v.evaluation.closed_loop import cases, play
from r2v.perturbations import family_of
from r2v.perturbations.wrap import Perturbed

ROOM = "You are in the middle of a room. Looking quickly around you, you see a drawer 2, a drawer 1, and a shelf 1."


def success(agent, tasks, scenes, zs, strength):
    def make(task, z):
        environment = Household(generate(task.id, task.family, scenes).world())
        family = family_of(task.id, z)
        if z == 0:
            return environment, family
        return Perturbed(environment, DOMAIN.perturbation(family, strength, environment.goal), seed=z, salt=task.id), family

    episodes = asyncio.run(play(agent, cases(tasks, zs), make, horizon=40))
    return sum(bool(episode.success) for episode in episodes) / len(episodes)


def test_the_expert_solves_what_it_can_read(small_tasks, small_scenes):
    expert = Solo(HouseholdExpert(), "teacher")
    assert success(expert, small_tasks, small_scenes, [0], 0.0) == 1.0
    assert success(expert, small_tasks, small_scenes, [1, 2, 3, 4], 1.0) >= 0.95


def test_the_expert_recovers_from_a_wandering_history(small_tasks, small_scenes):
    noisy = Noisy(Solo(HouseholdExpert(), "teacher"), 0.2, random_action)
    assert success(noisy, small_tasks, small_scenes, [0], 0.0) >= 0.9


def test_the_expert_needs_the_context_alone(small_tasks, small_scenes):
    """A fresh expert given the whole history at once acts as one that followed the episode."""
    episodes = asyncio.run(
        play(
            Noisy(Solo(HouseholdExpert(), "teacher"), 0.3, random_action),
            [(task, 0) for task in small_tasks[:12]],
            lambda task, z: (Household(generate(task.id, task.family, small_scenes).world()), "none"),
            horizon=25,
        )
    )
    compared = 0
    for episode in episodes:
        texts = tuple(step.observation.text for step in episode.steps)
        actions = tuple(step.choice.action for step in episode.steps)
        for step in episode.steps:
            context = Context(episode.goal, texts[: step.t + 1], actions[: step.t], 25)
            (fresh,) = asyncio.run(HouseholdExpert().propose(context, 1, seed=0))
            assert fresh.action == step.choice.candidates[0].action
            compared += 1
    assert compared > 100


@pytest.mark.parametrize(
    ("text", "thing", "place", "verb", "count", "lamp"),
    [
        ("put a mug in shelf.", "mug", "shelf", None, 1, False),
        ("put some mug on shelf. Actually, put some pen on bed 1 instead.", "mug", "shelf", None, 1, False),
        ("put a hot egg in fridge.", "egg", "fridge", "heat", 1, False),
        ("clean some plate and put it in cabinet.", "plate", "cabinet", "clean", 1, False),
        ("find two pen and put them in drawer.", "pen", "drawer", None, 2, False),
        ("look at book under the desklamp.", "book", "desklamp", None, 1, True),
    ],
)
def test_goals_are_read_from_the_first_task_stated(text, thing, place, verb, count, lamp):
    goal = parse_sentence(text)
    assert (goal.thing, goal.place, goal.verb, goal.count, goal.lamp) == (thing, place, verb, count, lamp)


def test_an_unknown_goal_is_an_error():
    with pytest.raises(ValueError, match="not a household goal"):
        parse_sentence("water the plants.")


def score(command, *, goal="put some pen on drawer.", last=ROOM, commands=()):
    observations = (ROOM,) + ("Nothing happens.",) * (len(commands) - 1) + ((last,) if commands else ())
    context = Context(goal, observations, tuple(map(Action, commands)), 40)
    return asyncio.run(HouseholdVerifier().score(context, [Action(command)]))[0]


def test_the_verifier_prefers_what_the_text_supports():
    shelf = "You arrive at shelf 1. On the shelf 1, you see a pen 1."
    seen = score("take pen 1 from shelf 1", last=shelf, commands=("go to shelf 1",))
    assert seen > score("take pen 2 from shelf 1", last=shelf, commands=("go to shelf 1",))
    assert seen > score("go to drawer 1", last=shelf, commands=("go to shelf 1",))
    assert score("go to drawer 1") > score("take pen 1 from drawer 1")
    assert score("dance") == 0.0
    assert score("go to shelf 1", commands=("go to shelf 1",) * 3) < score("go to drawer 1", commands=("go to shelf 1",) * 3)
    assert score("examine shelf 1", last="Nothing happens.", commands=("go to shelf 1",)) > score(
        "examine shelf 1", last=shelf, commands=("go to shelf 1",)
    )
    assert score("heat pen 1 with microwave 1") < score("heat pen 1 with microwave 1", goal="put a hot pen in drawer.")


SHELF = "You arrive at shelf 1. On the shelf 1, you see a pen 1."


@pytest.mark.parametrize(
    ("command", "more", "expected"),
    [
        ("go to drawer 1", {}, 0.25 * (0.7 + 0.65 + 0.5) + 0.25),
        ("take pen 1 from shelf 1", {"last": SHELF, "commands": ("go to shelf 1",)}, 0.25 * (0.9 + 0.75 + 1.0) + 0.25),
        ("take pen 2 from shelf 1", {"last": SHELF, "commands": ("go to shelf 1",)}, 0.25 * (0.0 + 0.0 + 1.0) + 0.25),
        ("move pen 1 to shelf 1", {}, 0.25 * (0.9 + 0.75 + 0.5) + 0.25),
        ("look", {"last": "Nothing happens.", "commands": ("open shelf 1",)}, 0.25 * (0.9 + 0.45 + 0.5) + 0.25),
        ("go to shelf 1", {"commands": ("go to shelf 1",) * 3}, 0.25 * (0.1 + 0.65 + 0.5) + 0.1),
        ("go to shelf 1", {"commands": ("look", "go to shelf 1", "look")}, 0.25 * (0.7 + 0.65 + 0.5) + 0.15 * 2 / 3),
    ],
)
def test_the_weights_of_the_verifier_by_hand(command, more, expected):
    assert score(command, **more) == pytest.approx(expected)
