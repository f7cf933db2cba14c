"""What a perturbation is made of: operators over one text, each drawn with its own probability.

An operator is a pure function (text, rng, materials) -> new text, or None where it does not apply. Texts are made of
sentences, and of lists such as "you see a apple 1, a mug 2, and a cup 1.".
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from r2v.core.seeds import derive_seed
from r2v.core.types import Change

ENTITY = re.compile(r"\b[a-z]+ \d+\b")
LIST = re.compile(r"(?<=you see )(?:an? [a-z]+ \d+(?:, and |, )?)+")
_FUNCTION_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "clean",
        "cool",
        "examine",
        "find",
        "heat",
        "hot",
        "in",
        "it",
        "look",
        "at",
        "on",
        "put",
        "some",
        "the",
        "them",
        "two",
        "under",
        "with",
    ]
)


@dataclass(frozen=True)
class Materials:
    """What an operator may build its texts from: words the agent has seen anyway."""

    topic: str
    """The goal."""
    previous: str
    """The agent's previous observation; "" at the start."""
    text: str

    def entity(self, rng: random.Random) -> str:
        """A name seen in this or the previous observation, e.g. "shelf 2"."""
        names: list[str] = ENTITY.findall(f"{self.text} {self.previous}") or ["shelf 1"]
        return rng.choice(names)

    def noun(self, rng: random.Random) -> str:
        """A word of the goal, e.g. "apple"."""
        words: list[str] = [word for word in re.findall(r"[a-z]+", self.topic) if word not in _FUNCTION_WORDS]
        return rng.choice(words or ["key"])


Operator = Callable[[str, random.Random, Materials], str | None]


@dataclass(frozen=True)
class Operators:
    """A perturbation family over texts (`r2v.core.protocols.Perturbation`)."""

    family: str
    strength: float
    """Factor on every probability (each clipped to 1); 0 is the identity."""
    topic: str
    on_observation: tuple[tuple[str, float, Operator], ...]
    """(operator's name, default probability, operator), applied in this order."""
    on_goal: tuple[tuple[str, float, Operator], ...] = ()

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


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.) ", text)


def append(sentence: str) -> Operator:
    """An operator that adds a sentence; {entity} and {noun} are filled from the materials."""

    def operator(text: str, rng: random.Random, materials: Materials) -> str:
        return (
            f"{text} {sentence.format(entity=materials.entity(rng), other=materials.entity(rng), noun=materials.noun(rng))}"
        )

    return operator


def items(text: str) -> tuple[re.Match[str], list[str]] | None:
    """The text's last list and its items; None where there is no list of two or more."""
    matches = [match for match in LIST.finditer(text) if len(ENTITY.findall(match.group())) > 1]
    return (matches[-1], ENTITY.findall(matches[-1].group())) if matches else None


def with_items(text: str, match: re.Match[str], names: list[str]) -> str:
    """The text with other items in that list."""
    listed = [f"a {name}" for name in names]
    joined = listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])}, and {listed[-1]}"
    return text[: match.start()] + joined + text[match.end() :]


def _difference(before: str, after: str) -> str:
    """What was added, or what became of the text, in words."""
    if after.startswith(before):
        return f"added: {after[len(before) :].strip()}"
    return f"was: {before}"


def stale(text: str, rng: random.Random, materials: Materials) -> str | None:
    return materials.previous or None


def weighted(
    *, shuffle: Operator, drop: Operator, partial_response: Operator, failure: Operator, timeout: Operator
) -> tuple[tuple[str, float, Operator], ...]:
    """The family with the default probabilities of the method, made of one environment's own operators."""
    return (
        ("result shuffle", 0.20, shuffle),
        ("result drop", 0.10, drop),
        ("partial response", 0.10, partial_response),
        ("failure", 0.15, failure),
        ("timeout", 0.05, timeout),
        ("stale cache", 0.10, stale),
    )
