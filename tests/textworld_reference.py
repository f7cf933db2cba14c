"""TextWorld's own engine as the reference for differential tests, and random walks that compare ours with it.

TextWorld parses every text template anew at every step; memoising four of its pure functions makes a step 15 times
faster and leaves its transcripts as they are.
"""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import fast_downward
import textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from textworld.envs.pddl import logic, textgen
from textworld.envs.pddl.pddl import PddlEnv

from r2v.domains.household import catalogue as c
from r2v.domains.household.env import Household
from r2v.domains.household.games import parse_game
from r2v.domains.household.rules import Fact, Goal, World
from r2v.domains.household.scenes import CAN_CONTAIN, Scene

CONSTANTS = ("SinkBasinType", "MicrowaveType", "FridgeType", "KnifeType", "ButterKnifeType")
RARE = ("slice", "heat", "cool", "clean", "use", "put", "move", "take", "open", "close")


def speed_up() -> None:
    parse = textgen._parse_and_convert
    parsed = lru_cache(maxsize=None)(lambda text, rule: pickle.dumps(parse(text, rule_name=rule)))
    textgen._parse_and_convert = lambda text, rule_name="start", **_: pickle.loads(parsed(text, rule_name))
    query = textgen.Rule.parse_conjunctive_query
    textgen.Rule.parse_conjunctive_query = lru_cache(maxsize=None)(query)
    textgen.copy_context = lambda context: {
        **context, "variables": dict(context["variables"]), "mapping": dict(context["mapping"])
    }  # fmt: skip
    translated = lru_cache(maxsize=4)(fast_downward.pddl2sas)
    # `optimize` is for the planner that nobody asks here.
    logic.fast_downward.pddl2sas = lambda domain, problem, optimize=False, **options: translated(domain, problem, **options)


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


def problem_text(scene: Scene) -> str:
    """The scene as a PDDL problem of ALFWorld's domain."""
    kinds: dict[str, set[str]] = {"agent": {"agent1"}, "location": set(), "receptacle": set(), "object": set()}
    kinds["rtype"] = {f"{kind}Type".lower() for kind in c.ACCEPTS}
    kinds["otype"] = {f"{o}Type".lower() for objects in c.ACCEPTS.values() for o in objects}
    for predicate, *arguments in scene.facts:
        if predicate == "receptacleType":
            kinds["receptacle"].add(arguments[0])
        elif predicate == "objectType":
            kinds["object"].add(arguments[0])
            kinds["otype"].add(arguments[1])
        elif predicate in ("receptacleAtLocation", "atLocation"):
            kinds["location"].add(arguments[1])
    constants = {name.lower() for name in CONSTANTS}
    kinds["rtype"] |= {name for name in constants if "knife" not in name}
    kinds["otype"] |= {name for name in constants if "knife" in name}
    declared = "\n".join(f"    {name} - {kind}" for kind, names in kinds.items() for name in sorted(names))
    facts: Iterable[Fact] = (*scene.facts, *CAN_CONTAIN)
    init = "\n".join(f"    ({' '.join(fact)})" for fact in facts)
    parts = ("(:domain alfred)", f"(:objects\n{declared}\n)", f"(:init\n{init}\n)", _goal_text(scene.goal))
    return "(define (problem generated)\n" + "\n".join(parts) + ")\n"


def _goal_text(goal: Goal) -> str:
    o, r = f"{goal.object_type}type", f"{goal.receptacle_type}type"
    if goal.kind == "light":
        return (
            "(:goal (and (exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and "
            f"(objectType ?ot {r}) (toggleable ?ot) (isToggled ?ot) (receptacleAtLocation ?r ?l) (atLocation ?a ?l) "
            f"(inReceptacle ?ot ?r))) (exists (?o - object ?a - agent) (and (objectType ?o {o}) (holds ?a ?o)))))"
        )
    if goal.kind == "two":
        return (
            f"(:goal (and (exists (?r - receptacle) (exists (?o1 - object) (and (objectType ?o1 {o}) "
            f"(receptacleType ?r {r}) "
            "(inReceptacle ?o1 ?r) (exists (?o2 - object) (and (not (= ?o1 ?o2)) "
            f"(objectType ?o2 {o}) (receptacleType ?r {r}) (inReceptacle ?o2 ?r))))))))"
        )
    state = f"({goal.state} ?o) " if goal.state else ""
    return (
        "(:goal (and (exists (?r - receptacle) (exists (?o - object) (and (inReceptacle ?o ?r) "
        f"{state}(objectType ?o {o}) (receptacleType ?r {r}))))))"
    )
