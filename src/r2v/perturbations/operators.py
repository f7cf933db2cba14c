"""What a perturbation is made of: operators over one text, each drawn with its own probability.

An operator is a pure function (text, rng, materials) -> new text, or None where it does not apply.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from r2v.core.protocols import Perturbation
from r2v.core.seeds import derive_seed
from r2v.core.types import Change


@dataclass(frozen=True)
class Materials:
    """What an operator may build its texts from: words the agent has seen anyway."""

    topic: str
    """The goal."""
    previous: str
    """The agent's previous observation; "" at the start."""
    text: str


Operator = Callable[[str, random.Random, Materials], str | None]
Weighted = tuple[tuple[str, float, Operator], ...]
"""(operator's name, default probability, operator), applied in this order."""


@dataclass(frozen=True)
class Operators:
    """A perturbation family over texts (`r2v.core.protocols.Perturbation`)."""

    family: str
    strength: float
    """Factor on every probability (each clipped to 1); 0 is the identity."""
    topic: str
    on_observation: Weighted
    on_goal: Weighted = ()

    def apply(
        self, text: str, *, where: Literal["goal", "observation"], previous: str, seed: int, t: int
    ) -> tuple[str, tuple[Change, ...]]:
        rng = random.Random(derive_seed(seed, self.family, where, t))
        changes = []
        for name, probability, operator in self.on_goal if where == "goal" else self.on_observation:
            if rng.random() >= probability * self.strength:
                continue
            changed = operator(text, rng, Materials(self.topic, previous, text))
            if changed is not None and changed != text:
                changes.append(Change(self.family, name, _difference(text, changed)))
                text = changed
        return text, tuple(changes)


def family(name: str, on_observation: Weighted, on_goal: Weighted = ()) -> Callable[[float, str], Operators]:
    """What makes the family of that name from (strength, topic)."""

    def make(strength: float, topic: str) -> Operators:
        return Operators(name, strength, topic, on_observation, on_goal)

    return make


@dataclass(frozen=True)
class Composite:
    """Several families on one episode, each on what the ones before it left (`r2v.core.protocols.Perturbation`)."""

    family: str
    parts: tuple[Perturbation, ...]

    def apply(
        self, text: str, *, where: Literal["goal", "observation"], previous: str, seed: int, t: int
    ) -> tuple[str, tuple[Change, ...]]:
        changes: tuple[Change, ...] = ()
        for part in self.parts:
            text, more = part.apply(text, where=where, previous=previous, seed=seed, t=t)
            changes += more
        return text, changes


def _difference(before: str, after: str) -> str:
    """What was added, or what became of the text, in words."""
    if after.startswith(before):
        return f"added: {after[len(before) :].strip()}"
    return f"was: {before}"


def stale(text: str, rng: random.Random, materials: Materials) -> str | None:
    return materials.previous or None


def weighted(
    *, shuffle: Operator, drop: Operator, partial_response: Operator, failure: Operator, timeout: Operator
) -> Weighted:
    """The tool-flakiness family with the probabilities of the method, made of one environment's own operators."""
    return (
        ("result shuffle", 0.20, shuffle),
        ("result drop", 0.10, drop),
        ("partial response", 0.10, partial_response),
        ("failure", 0.15, failure),
        ("timeout", 0.05, timeout),
        ("stale cache", 0.10, stale),
    )
