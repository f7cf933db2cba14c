"""TextWorld's own engine as the reference for differential tests, and random walks that compare ours with it.

TextWorld parses every text template anew at every step; memoising three of its pure functions makes a step 15 times
faster and leaves its transcripts as they are.
"""

from __future__ import annotations

import json
import random
from functools import lru_cache
from pathlib import Path

import fast_downward
import textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from textworld.envs.pddl import logic, textgen
from textworld.envs.pddl.pddl import PddlEnv

from r2v.domains.household.env import Household
from r2v.domains.household.games import parse_game
from r2v.domains.household.rules import World

RARE = ("slice", "heat", "cool", "clean", "use", "put", "move", "take", "open", "close")


def speed_up() -> None:
    parse = textgen._parse_and_convert
    cached = lru_cache(maxsize=None)(lambda text, rule: parse(text, rule_name=rule))
    textgen._parse_and_convert = lambda text, rule_name="start", **_: textgen.deepcopy(cached(text, rule_name))
    query = textgen.Rule.parse_conjunctive_query
    textgen.Rule.parse_conjunctive_query = lru_cache(maxsize=None)(query)
    textgen.copy_context = lambda context: {
        **context, "variables": dict(context["variables"]), "mapping": dict(context["mapping"])
    }  # fmt: skip
    logic.fast_downward.pddl2sas = lru_cache(maxsize=4)(fast_downward.pddl2sas)


def start(game: dict):
    """TextWorld's environment of a game, by data: its own file reading leaves the file open."""
    env = AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)), shuffle=False)
    env.load(game)
    return env, env.reset()


def compare_walk(file: Path, steps: int, seed: int) -> int:
    """Walk both engines with the same commands. Returns the transitions compared; raises AssertionError at a mismatch."""
    rng = random.Random(seed)
    data = json.loads(file.read_text())
    world = parse_game(data)
    ours = Household(world, any_dialect=False)
    env, state = start(data)
    assert ours.introduction() == state.feedback, f"{file}: first screen"
    plan = list(data.get("walkthrough") or [])
    # Plans of real games were recorded without the engine's numbering in mind; every command is checked as it comes.
    follow = rng.random() < 0.5
    for i in range(steps):
        admissible = ours.admissible_commands()
        assert admissible == state.admissible_commands, (
            f"{file} step {i}: {set(admissible) ^ set(state.admissible_commands)}"
        )
        command = _next_command(rng, world, admissible, plan if follow else [], i)
        text, reward, done = ours.play(command)
        state, tw_reward, tw_done = env.step(command)
        assert (text, reward, done) == (state.feedback, tw_reward, tw_done), (
            f"{file} step {i}: {command!r}: {text!r} != {state.feedback!r}"
        )
        assert done == state.won
        if done:
            return i + 1
    return steps


def _next_command(rng: random.Random, world: World, admissible: list[str], plan: list[str], i: int) -> str:
    if i == 0:
        return "look"
    draw = rng.random()
    if draw < 0.06:
        return rng.choice(
            ["dance", "", "go to nowhere 1", f"take {rng.choice(world.names)} from {rng.choice(world.names)}", "look "]
        )
    if plan and draw < 0.5:
        return plan.pop(0)
    rare = [command for command in admissible if command.startswith(RARE)]
    by_verb: dict[str, list[str]] = {}
    for command in rare:
        by_verb.setdefault(command.split()[0], []).append(command)
    if by_verb and draw < 0.8:
        # Rarest verbs first: they need a hand that holds the right thing, so grab the chance when it is there.
        verbs = sorted(by_verb, key=RARE.index)
        verb = verbs[0] if draw < 0.55 or i < 20 else rng.choice(verbs)
        return rng.choice(by_verb[verb])
    return rng.choice(admissible)
