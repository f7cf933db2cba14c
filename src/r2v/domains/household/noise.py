"""Random commands from names the agent has read: the mistakes that collection injects to see how the teacher recovers."""

from __future__ import annotations

import random

from r2v.core.types import Action, Context
from r2v.domains.household.catalogue import ENTITY


def random_action(context: Context, seed: int) -> Action:
    """A plausible command; it may well be impossible."""
    rng = random.Random(seed)
    places = ENTITY.findall(context.observations[0]) or ["shelf 1"]
    names = ENTITY.findall(" ".join(context.observations[-3:])) or places
    place, name = rng.choice(places), rng.choice(names)
    command = rng.choice(
        ["go to {p}", "go to {p}", "go to {p}", "open {p}", "examine {p}", "take {n} from {p}", "take {n} from {n2}",
         "move {n} to {p}", "close {p}", "inventory", "look"]
    )  # fmt: skip
    return Action(command.format(p=place, n=name, n2=rng.choice(names)))
