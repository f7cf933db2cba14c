"""Partial observability: parts of the answer are lost, out of order, cut off or masked."""

from __future__ import annotations

import random

from r2v.perturbations.operators import ENTITY, Materials, Operators, sentences


def line_drop(text: str, rng: random.Random, materials: Materials) -> str | None:
    lines = sentences(text)
    if len(lines) < 2 or not materials.previous:
        return None
    del lines[rng.randrange(len(lines))]
    return " ".join(lines)


def reorder(text: str, rng: random.Random, materials: Materials) -> str | None:
    lines = sentences(text)
    rng.shuffle(lines)
    return " ".join(lines)


def truncation(text: str, rng: random.Random, materials: Materials) -> str | None:
    words = text.split(" ")
    if len(words) < 4 or not materials.previous:
        return None
    return " ".join(words[: max(2, round(len(words) * rng.uniform(0.4, 0.8)))]) + " ..."


def information_mask(text: str, rng: random.Random, materials: Materials) -> str | None:
    names = list(ENTITY.finditer(text))
    if not names:
        return None
    masked = rng.choice(names)
    return f"{text[: masked.start()]}something{text[masked.end() :]}"


def make(strength: float, topic: str) -> Operators:
    on_observation = (
        ("line drop", 0.12, line_drop),
        ("reorder", 0.10, reorder),
        ("information mask", 0.05, information_mask),
        ("truncation", 0.20, truncation),
    )
    return Operators("partial", strength, topic, on_observation)
