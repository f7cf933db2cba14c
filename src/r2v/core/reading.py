"""What a step says, as hashed words and pairs of words: the input of a model that reads (no vocabulary is stored).

All of it is array arithmetic on bytes: a step costs some tens of microseconds however long its context is, because each
text is cut to its beginning and its end first.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2v.core.features import FEATURES
from r2v.core.mlp import REMEMBERED, Calibration
from r2v.core.types import Action, Context, Features
from r2v.maths import Floats

VERDICT = "verdict: "
"""Before the name of a verdict among a reader's names."""
FIELDS = ("goal", "seen", "action", "before")
"""The goal; the newest observation; what the SLM would do now; the steps before that, shortened."""
WRITTEN_BY_OTHERS = frozenset({
    "seen", "before", "context_length", "last_observation_repeats", "repeats_in_last_five", "steps_since_new",
    "last_observation_length", "unseen_words", "goal_seen", "goal_in_last",
})  # fmt: skip
"""Fields and features that tool results move, and so whoever writes what tools return."""
BITS = 15
ROOM = 1 << BITS
"""Numbers of a hashed gram, over all fields."""
_ENDS = {"goal": (1200, 400), "seen": (900, 900), "action": (900, 300)}
"""Characters kept of the beginning and of the end of each text."""
_OTHERS = [i for i, field in enumerate(FIELDS) if field in WRITTEN_BY_OTHERS]
_OWN = [i for i, field in enumerate(FIELDS) if field not in WRITTEN_BY_OTHERS]
_BEFORE, _EACH = 3, 160
"""Steps before this one that are read, and characters of each of their texts."""
_MOST = 8192
"""Bytes of one step that are read; a text of letters beyond ASCII takes more than one for each."""

_ODD, _PAIR = np.uint64(0x9E3779B97F4A7C15), np.uint64(0x2545F4914F6CDD1D)
_HALF, _DOWN, _BITS, _LOW = np.uint64(29), np.uint64(64 - BITS), np.uint64(BITS), np.uint64(ROOM - 1)
with np.errstate(over="ignore"):
    _POWER = np.cumprod(np.full(_MOST + 1, 0x100000001B3, dtype=np.uint64))
    _INVERSE = np.cumprod(np.full(_MOST + 1, pow(0x100000001B3, -1, 1 << 64), dtype=np.uint64))
_FIRST = np.ones(1, dtype=bool)
_SALT = np.array([0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89], dtype=np.uint64)
_LETTER = np.zeros(256, dtype=np.uint64)
"""Each byte of a word in lower case, all digits alike; 0 for what parts words."""
for _byte in range(256):
    _character = chr(_byte)
    if _byte >= 128:
        _LETTER[_byte] = _byte
    elif _character.isdigit():
        _LETTER[_byte] = ord("0")
    elif _character.isalpha() or _character == "_":
        _LETTER[_byte] = ord(_character.lower())


def texts(context: Context, action: Action) -> tuple[str, ...]:
    """The text of each of `FIELDS`, cut to a bounded length."""
    before = []
    for i in range(max(0, context.t - _BEFORE), context.t):
        before += [context.observations[i][:_EACH], context.actions[i].text[:_EACH]]
    return (
        _cut("goal", context.goal), _cut("seen", context.observations[-1]), _cut("action", action.text), "\n".join(before),
    )  # fmt: skip


def _cut(field: str, text: str) -> str:
    first, last = _ENDS[field]
    return text if len(text) <= first + last else f"{text[:first]} \n {text[-last:]}"


@dataclass(frozen=True, eq=False)
class Grams:
    """The hashed words and pairs of neighbouring words of some steps."""

    index_G: NDArray[np.int32]
    """Where each counts, in [0, ROOM)."""
    part_G: NDArray[np.int32]
    """Which text it is of: the number of the step x `len(FIELDS)` + that of the field."""
    steps: int

    @cached_property
    def value_G(self) -> Floats:
        """1 / sqrt(number of different grams of the text): a long text weighs as much as a short one."""
        return np.asarray(1 / np.sqrt(np.bincount(self.part_G, minlength=1)[self.part_G]))

    def parts_NP(self, weight_G: Floats) -> Floats:
        """What each text adds, if each of its grams weighs so much."""
        added = np.bincount(self.part_G, weight_G[self.index_G] * self.value_G, minlength=self.steps * len(FIELDS))
        return np.asarray(added.reshape(self.steps, len(FIELDS)), dtype=float)


def grams(texts: tuple[str, ...]) -> Grams:
    """The grams of one step, from the texts of its `FIELDS`; each once a text."""
    packed = [text.encode("utf-8", "replace") for text in texts]
    letter_B = _LETTER[np.frombuffer(b"\n%b\n" % b"\n".join(packed)[: _MOST - 1], dtype=np.uint8)]
    inside_B = letter_B != 0
    edge_B = np.flatnonzero(inside_B[1:] != inside_B[:-1])  # the last byte before, and the last byte of, each word
    start_W, end_W = edge_B[0::2], edge_B[1::2]
    total_B = np.cumsum(letter_B * _POWER[: len(letter_B)])
    word_W = (total_B[end_W] - total_B[start_W]) * _INVERSE[start_W + 1]
    parts = np.cumsum([len(part) + 1 for part in packed])
    field_W = np.searchsorted(parts[:-1], start_W, side="right").astype(np.uint64)
    pair_W = word_W[:-1] * _PAIR + word_W[1:]
    together = field_W[1:] == field_W[:-1]
    field_G = np.concatenate([field_W, field_W[1:][together]])
    hashed = (np.concatenate([word_W, pair_W[together]]) ^ _SALT[field_G]) * _ODD
    hashed ^= hashed >> _HALF
    # The text's number stands above the hash, so that one sort finds what is there twice.
    key = ((hashed * _ODD) >> _DOWN) | (field_G << _BITS)
    key.sort()
    if len(key):
        key = key[np.concatenate([_FIRST, key[1:] != key[:-1]])]
    return Grams((key & _LOW).astype(np.int32), (key >> _BITS).astype(np.int32), 1)


def joined(steps: Sequence[Grams]) -> Grams:
    """Steps one after the other."""
    offsets = np.repeat(np.arange(len(steps)) * len(FIELDS), [len(step.index_G) for step in steps])
    none = np.zeros(0, dtype=np.int32)  # of no steps there is nothing to join
    index_G = np.concatenate([none, *(step.index_G for step in steps)])
    part_G = np.concatenate([none, *(step.part_G for step in steps)])
    return Grams(index_G, (part_G + offsets).astype(np.int32), len(steps))


@dataclass(frozen=True, eq=False)
class Reader:
    """A probability from what a step says and from its features: logistic, every part of it bounded.

    A feature counts by the bin of the fit that it falls in, and what a text adds is clipped to what texts added in the fit:
    so nothing that anybody writes moves the log-odds further than the texts and numbers of the fit did.
    """

    names: tuple[str, ...]
    """Features that it reads, of `r2v.core.features.FEATURES`, and verdicts, each after `VERDICT`."""
    edges_FB: Floats
    """Between the bins of each feature; the largest number where it has fewer."""
    bins_FB: Floats
    """Log-odds of each bin; a feature that is absent adds none."""
    words: Floats
    """[ROOM]: log-odds of each gram."""
    range_2P: Floats
    """Least and most that each text of `FIELDS` may add."""
    bias: float
    floor: float = 0.0
    """The least that all of `WRITTEN_BY_OTHERS` may add together where that is `floored`."""
    floored: bool = False
    """What tools return can then ask for help, but hardly talk a router out of it; the router knows less."""
    agents: Mapping[str, float] = field(default_factory=dict)
    """Log-odds of each model that was fitted on, against their mean."""
    agent: str | None = None
    """Whose steps are read; None: not known, which adds nothing."""
    calibration: Calibration = field(default_factory=Calibration)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError where the parts do not fit together."""
        if unknown := [name for name in self.names if name not in FEATURES and not name.startswith(VERDICT)]:
            raise ValueError(f"unknown features {unknown}")
        (rows, edges), shapes = self.bins_FB.shape, (self.edges_FB.shape, self.words.shape, self.range_2P.shape)
        if rows != len(self.names) or shapes != ((rows, edges - 1), (ROOM,), (2, len(FIELDS))):
            raise ValueError(f"arrays of the shapes {shapes} do not fit {len(self.names)} features")

    def logit(self, said: Grams, x_NF: Floats, present_NF: NDArray[np.bool_], offset_N: Floats | float = 0.0) -> Floats:
        """Log-odds before calibration of many steps; the features are the columns of `names`."""
        own_N, others_N = self.added(said, x_NF, present_NF)
        if self.floored:
            others_N = np.maximum(others_N, self.floor)
        return np.asarray(others_N + own_N + self.bias + offset_N)

    def added(self, said: Grams, x_NF: Floats, present_NF: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Log-odds that each of many steps adds: by what only the agent moves, and by `WRITTEN_BY_OTHERS`."""
        parts_NP = np.clip(said.parts_NP(self.words), *self.range_2P)
        bin_NF = (x_NF[:, :, None] >= self.edges_FB).sum(axis=2)
        added_NF = np.where(present_NF, self.bins_FB[np.arange(len(self.names)), bin_NF], 0.0)
        others_N = parts_NP[:, _OTHERS].sum(axis=1) + added_NF[:, self._others].sum(axis=1)
        own_N = parts_NP[:, _OWN].sum(axis=1) + added_NF[:, self._own].sum(axis=1)
        return np.asarray(own_N), np.asarray(others_N)

    def score(self, context: Context, action: Action, features: Features) -> float:
        """The probability at one step.

        Args:
            context: what was known before it.
            action: what the SLM would do.
            features: all `FEATURES` of the step.
        """
        return float(self._score(texts(context, action), features, context.verdicts))

    @cached_property
    def _score(self) -> Any:
        return lru_cache(REMEMBERED)(self._of_one)

    def _of_one(self, read: tuple[str, ...], features: Features, verdicts: tuple[tuple[str, float], ...]) -> float:
        return self.score_of(grams(read), features, verdicts)

    def score_of(self, said: Grams, features: Features, verdicts: tuple[tuple[str, float], ...] = ()) -> float:
        """The probability at one step whose grams are known already (arrays of a few numbers would cost more)."""
        added = np.bincount(said.part_G, self.words[said.index_G] * said.value_G, minlength=len(FIELDS)).tolist()
        sums = [self.bias + (self.agents.get(self.agent, 0.0) if self.agent else 0.0), 0.0]  # the agent's own, of others
        for name, part, least, most in zip(FIELDS, added, *self._ends, strict=True):
            sums[name in WRITTEN_BY_OTHERS] += min(max(part, least), most)
        known = dict(verdicts)
        for column, name, edges, bins in self._bins:
            if column < 0:
                found = known.get(name)
            else:
                found = features.values[column] if features.present[column] else None
            if found is not None:
                sums[name in WRITTEN_BY_OTHERS] += bins[bisect_right(edges, found)]
        own, others = sums
        total = own + (max(others, self.floor) if self.floored else others)
        if self.calibration.x:
            return float(self.calibration(np.array([total]))[0])
        return 1 / (1 + math.exp(-min(max(self.calibration.slope * total + self.calibration.bias, -40), 40)))

    @cached_property
    def _others(self) -> list[int]:
        return [i for i, name in enumerate(self.names) if name in WRITTEN_BY_OTHERS]

    @cached_property
    def _own(self) -> list[int]:
        return [i for i, name in enumerate(self.names) if name not in WRITTEN_BY_OTHERS]

    @cached_property
    def _ends(self) -> tuple[list[float], list[float]]:
        least, most = self.range_2P.tolist()
        return least, most

    @cached_property
    def _bins(self) -> list[tuple[int, str, list[float], list[float]]]:
        """(its place in `FEATURES`, or -1 and the verdict's name, edges, log-odds) of each of `names`."""
        return [
            (-1, name.removeprefix(VERDICT), edges, bins)
            if name.startswith(VERDICT)
            else (FEATURES.index(name), name, edges, bins)
            for name, edges, bins in zip(self.names, self.edges_FB.tolist(), self.bins_FB.tolist(), strict=True)
        ]
