"""Distractors: plausible text beside the point."""

from __future__ import annotations

import random

from r2v.perturbations.operators import Materials, Operators, append, items, with_items


def decoy(text: str, rng: random.Random, materials: Materials) -> str | None:
    """A thing of the goal's kind that is not there joins the list."""
    if (found := items(text)) is None or not materials.previous:
        return None
    match, names = found
    names.insert(rng.randrange(len(names) + 1), f"{materials.noun(rng)} {rng.randint(1, 4)}")
    return with_items(text, match, names)


def make(strength: float, topic: str) -> Operators:
    on_observation = (
        ("decoy", 0.10, decoy),
        ("semantic distractor", 0.20, append("Somebody used a {noun} near the {entity} yesterday.")),
        ("red herring", 0.15, append("The {entity} looks strange, maybe check the {other}.")),
        ("plausible wrong answer", 0.10, append("Hint: the {noun} is in the {entity}.")),
    )
    return Operators("distract", strength, topic, on_observation)
