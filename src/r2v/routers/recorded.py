"""The router that comes fitted: it reads steps that are like the recorded sessions of its fit, and is `rules` elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from sys import getsizeof
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from r2v.core.cache import remembered
from r2v.core.reading import BITS, FIELDS, Grams, grams, texts
from r2v.core.types import Action, Context, Decision, Features, Memory
from r2v.maths import Floats
from r2v.routers.fit_data import FitData
from r2v.routers.reading import Estimate, Reading
from r2v.routers.rules import Rules

CELL_BITS = 12
CELLS = 1 << CELL_BITS
"""Grams are counted in so many cells where steps are compared with kinds: that keeps the folder small."""
REMEMBERED_BYTES = 16_000_000
"""Memory for steps that have been read."""
UNREAD = 2.0
"""A price that no difference of two probabilities reaches."""


@dataclass(frozen=True, eq=False)
class Kinds:
    """Kinds of traffic, each by the mean direction of its steps' words, and how like it a step must be."""

    names: tuple[str, ...]
    weight_C: Floats
    """What a cell counts: the more, the fewer steps hold a gram of it."""
    middle_C: Floats
    """Mean direction over all kinds; it is taken off first, so that what all texts share makes nothing alike."""
    centre_KC: Floats
    """Mean direction of each kind from there; each has length 1."""
    least_K: Floats
    """Cosines that a step must reach: a low quantile of the kind's own steps, of tasks left out."""
    price_K: Floats
    """What an escalation must add on such traffic; `UNREAD` where reading was not shown to gain more than `rules`."""

    def __post_init__(self) -> None:
        """Raises ValueError where the parts do not fit together."""
        kinds = len(self.names)
        arrays = (self.weight_C, self.middle_C, self.centre_KC, self.least_K, self.price_K)
        shapes = [array.shape for array in arrays]
        if not kinds or shapes != [(CELLS,), (CELLS,), (kinds, CELLS), (kinds,), (kinds,)]:
            raise ValueError(f"arrays of the shapes {shapes} do not fit {kinds} kinds")

    def cosines_NK(self, said: Grams) -> Floats:
        """How like each kind each step is."""
        off_NC = directions_NC(said, self.weight_C) - self.middle_C
        return np.asarray(off_NC @ self.centre_KC.T / np.maximum(np.linalg.norm(off_NC, axis=1, keepdims=True), 1e-12))

    @cached_property
    def _known_KC(self) -> Floats:
        """The centres, and last the middle."""
        return np.vstack([self.centre_KC, self.middle_C])

    @cached_property
    def _taken(self) -> list[float]:
        """How far the middle lies along each of these."""
        along: list[float] = (self._known_KC @ self.middle_C).tolist()
        return along

    @cached_property
    def _least(self) -> list[float]:
        least: list[float] = self.least_K.tolist()
        return least

    def nearest_N(self, said: Grams) -> tuple[NDArray[np.int64], Floats]:
        """Of each step: the kind whose bound it exceeds most, and by how much; below 0 it is like none."""
        beyond_NK = self.cosines_NK(said) - self.least_K
        best_N = beyond_NK.argmax(axis=1)
        return best_N, np.asarray(beyond_NK[np.arange(said.steps), best_N])

    def nearest(self, said: Grams) -> tuple[int, float]:
        """The same of one step, in less time."""
        held_C = np.bincount(said.index_G >> (BITS - CELL_BITS), said.value_G, minlength=CELLS) * self.weight_C
        size = math.sqrt(held_C @ held_C) + 1e-12
        *along, middle = (self._known_KC @ held_C).tolist()
        *taken, length = self._taken
        off = math.sqrt(max(1 - 2 * middle / size + length, 1e-12))
        beyond = [(a / size - t) / off - least for a, t, least in zip(along, taken, self._least, strict=True)]
        best = max(range(len(beyond)), key=beyond.__getitem__)
        return best, beyond[best]


def cells_NC(said: Grams) -> Floats:
    """How much of the words of each step falls into each cell."""
    at_G = (said.part_G // len(FIELDS)).astype(np.int64) * CELLS + (said.index_G >> (BITS - CELL_BITS))
    held = np.bincount(at_G, said.value_G, minlength=said.steps * CELLS)
    return np.asarray(held.reshape(said.steps, CELLS), dtype=float)


def directions_NC(said: Grams, weight_C: Floats) -> Floats:
    """The same weighed, of length 1 a step."""
    held_NC = cells_NC(said) * weight_C
    return np.asarray(held_NC / np.maximum(np.linalg.norm(held_NC, axis=1, keepdims=True), 1e-12))


@dataclass(frozen=True, kw_only=True, eq=False)
class Recorded(Reading):
    """Hands over where a reader of recorded sessions sees a benefit, on traffic like theirs; else decides as `rules`.

    The score is what an escalation adds, less its price on such traffic; the threshold is 0 unless one is given. What
    `rules` escalates stays escalated whatever the reader says, so no text turns that into a continue.
    """

    name: str = "recorded"
    estimates: Estimate = "benefit"
    hands_over: bool = True
    threshold: float | None = 0.0
    kinds: Kinds
    rules: Rules = field(default_factory=Rules)
    kind = "benefit"
    colour = "#117733"
    cites = "Ours."

    @classmethod
    def fit(cls, data: FitData) -> Self:
        """The one that comes with r2v: it is fitted on recorded sessions, not on the tasks of a run."""
        from r2v.routers import load_router

        shipped = load_router("recorded")
        assert isinstance(shipped, cls)
        return replace(shipped, fitted_with=data.fitted_with)

    def rule(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        """As `rules`, and on like traffic also where the reader reaches the operating point."""
        plain = self.rules.rule(context, features, memory, seed=seed)
        if context.proposed is None:
            return replace(plain, reason=f"nobody said what the SLM proposes, so as rules: {plain.reason}")
        kind, beyond, score = self._read(texts(context, context.proposed), features)
        if beyond < 0:
            reason = f"unlike all that it was fitted on (nearest {kind}, {-beyond:.2f} short), so as rules: {plain.reason}"
            return replace(plain, reason=reason)
        if score is None:
            return replace(plain, reason=f"like {kind}, where reading is not shown to help, so as rules: {plain.reason}")
        if plain.route != "continue":
            return replace(plain, reason=f"as rules: {plain.reason}")
        return self.compared(score, f" (like {kind})")

    def score_of(self, context: Context, action: Action, features: Features) -> float:
        """What is compared with the threshold; where the router abstains, below all that is."""
        score: float | None = self._read(texts(context, action), features)[2]
        return -UNREAD if score is None else score

    @cached_property
    def _read(self) -> Any:
        return remembered(REMEMBERED_BYTES, lambda read, features: 2_000 + sum(map(getsizeof, read)))(self._of_texts)

    def _of_texts(self, read: tuple[str, ...], features: Features) -> tuple[str, float, float | None]:
        """(nearest kind, how far within its bound, score or None to abstain), with one look at the words."""
        said = grams(read)
        nearest, beyond = self.kinds.nearest(said)
        price = float(self.kinds.price_K[nearest])
        if beyond < 0 or price >= UNREAD:
            return self.kinds.names[nearest], beyond, None
        score = self.reader.score_of(said, features) - price
        if self.teacher is not None:
            score -= self.teacher.score_of(said, features)
        return self.kinds.names[nearest], beyond, score
