"""Tool flakiness: the call seems to fail, to hang, or to answer late, out of order or in part. The state is as it is.

The first observation only gets shuffled: it names the places, and what it leaves out is never said again.
"""

from __future__ import annotations

import random

from r2v.perturbations.operators import Materials, Operators, items, weighted, with_items


def failure(text: str, rng: random.Random, materials: Materials) -> str | None:
    return "Nothing happens." if materials.previous else None


def timeout(text: str, rng: random.Random, materials: Materials) -> str | None:
    return "Error: the request timed out." if materials.previous else None


def shuffle(text: str, rng: random.Random, materials: Materials) -> str | None:
    if (found := items(text)) is None:
        return None
    match, names = found
    rng.shuffle(names)
    return with_items(text, match, names)


def partial_response(text: str, rng: random.Random, materials: Materials) -> str | None:
    """The second half of the list never arrives."""
    if (found := items(text)) is None or not materials.previous:
        return None
    match, names = found
    return with_items(text, match, names[: (len(names) + 1) // 2])


def drop(text: str, rng: random.Random, materials: Materials) -> str | None:
    """10-50 % of the list is missing (method, section 3)."""
    if (found := items(text)) is None or not materials.previous:
        return None
    match, names = found
    keep = max(1, round(len(names) * (1 - rng.uniform(0.1, 0.5))))
    kept = sorted(rng.sample(range(len(names)), keep))
    return with_items(text, match, [names[i] for i in kept])


def make(strength: float, topic: str) -> Operators:
    on_observation = weighted(
        shuffle=shuffle, drop=drop, partial_response=partial_response, failure=failure, timeout=timeout
    )
    return Operators("flaky", strength, topic, on_observation)
