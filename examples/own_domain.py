"""A domain of your own: guess a number. `environment: {kind: "examples.own_domain:DOMAIN"}` plays it."""

import random
import re

from r2v.clients.scripted import ScriptedPolicy
from r2v.core.types import Action, Task
from r2v.domains.base import Domain, made_in
from r2v.domains.text_game import TextGame
from r2v.perturbations.operators import family

GUESS = re.compile(r"guess (\d+)")
static = family("static", (("answer lost", 0.3, lambda text, rng, seen: "crackle" if seen.previous else None),))


class Guess(TextGame):
    def __init__(self, task):
        super().__init__(task.goal, "ready")
        self.number = random.Random(task.id).randint(1, int(task.family))

    def play(self, command):
        if not (guess := GUESS.fullmatch(command)):
            return "say: guess N"
        self.success = int(guess[1]) == self.number or None
        return "right" if self.success else "higher" if int(guess[1]) < self.number else "lower"


def halve(context):  # the expert: half of what is possible; after a lost answer the same again
    low, high = 1, int(context.goal.split()[-1])
    for action, answer in zip(context.actions, context.observations[1:], strict=True):
        if answer in ("higher", "lower") and (guess := GUESS.fullmatch(action.text)):
            low, high = (int(guess[1]) + 1, high) if answer == "higher" else (low, int(guess[1]) - 1)
    return f"guess {(low + high) // 2}"


class GuessDomain(Domain):
    name, verifier, scratch = "guess", "examples.own_verifier:GuessVerifier", True
    perturbations = made_in(__name__, "static")

    def tasks(self, env, count, seed):
        return [Task(f"{self.name}/{seed}-{i}", str(n := 8 << i % 3), self.name, f"guess up to {n}") for i in range(count)]

    fresh_tasks = tasks
    environment = staticmethod(lambda env, task: Guess(task))
    expert = staticmethod(lambda: ScriptedPolicy(halve, "expert"))
    random_action = staticmethod(lambda context, seed: Action(f"guess {random.Random(seed).randint(1, 32)}"))


DOMAIN = GuessDomain()
