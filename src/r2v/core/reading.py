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
from itertools import accumulate
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
_BY_OTHERS = [field in WRITTEN_BY_OTHERS for field in FIELDS]
_OTHERS = [i for i, others in enumerate(_BY_OTHERS) if others]
_OWN = [i for i, others in enumerate(_BY_OTHERS) if not others]
_BEFORE, _EACH = 3, 160
"""Steps before this one that are read, and characters of each of their texts."""
_MOST = 8192
"""Bytes of one step that are read; a text of letters beyond ASCII takes more than one for each."""

# 0-dimensional arrays: NumPy would make one of a number at each call.
_ODD, _PAIR = np.array(0x9E3779B97F4A7C15, dtype=np.uint64), np.array(0x2545F4914F6CDD1D, dtype=np.uint64)
_HALF, _DOWN = np.array(29, dtype=np.uint64), np.array(64 - BITS, dtype=np.uint64)
_BITS, _LOW = np.array(BITS, dtype=np.uint32), np.array(ROOM - 1, dtype=np.uint32)
with np.errstate(over="ignore"):
    _POWER = np.cumprod(np.full(_MOST + 1, 0x100000001B3, dtype=np.uint64))
    _INVERSE = np.cumprod(np.full(_MOST + 1, pow(0x100000001B3, -1, 1 << 64), dtype=np.uint64))
_SALT = np.array([0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89] * 2, dtype=np.uint64)
"""Of each of `FIELDS`, for its words and once more for its pairs."""
_PLACE = np.array([*range(len(FIELDS))] * 2, dtype=np.uint32) << _BITS
"""The same: the number of the text, above the hash."""
_LETTER = bytearray(256)
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


def grams(texts: tuple[str, ...]) -> Grams:
    """The grams of one step, from the texts of its `FIELDS`; each once a text."""
    # At some hundred words a call of NumPy costs more than its arithmetic, so there are few, and they work in place.
    packed = [text.encode("utf-8", "replace") for text in texts]
    letter_B = np.frombuffer((b"\n%b\n" % b"\n".join(packed)[: _MOST - 1]).translate(_LETTER), dtype=np.uint8)
    inside_B = letter_B != 0
    start_W = (inside_B[1:] > inside_B[:-1]).nonzero()[0]  # the last byte before each word
    n = len(start_W)
    if not n:
        return Grams(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32), 1)
    parts = list(accumulate([len(part) + 1 for part in packed]))
    ends = [*start_W.searchsorted(parts[:-1]).tolist(), n]  # how many words there are up to the end of each text
    start_W += 1
    hash_G = np.empty(2 * n, dtype=np.uint64)
    word_W, pair_W = hash_G[:n], hash_G[n:]
    # What parts words counts 0, so a word may be summed up to the start of the next.
    np.add.reduceat(letter_B * _POWER[: len(letter_B)], start_W, out=word_W)
    word_W *= _INVERSE[start_W]
    np.multiply(word_W, _PAIR, out=pair_W)
    pair_W[:-1] += word_W[1:]
    for end in ends:
        if end:  # the last word of a text has no neighbour: it stands there twice, and twice counts once
            pair_W[end - 1] = word_W[end - 1]
    counts = np.array([end - start for start, end in zip((0, *ends), ends, strict=False)] * 2)
    hash_G ^= _SALT.repeat(counts)
    hash_G *= _ODD
    hash_G ^= hash_G >> _HALF
    hash_G *= _ODD
    hash_G >>= _DOWN
    # The text's number stands above the hash, so that one sort finds what is there twice.
    key_G = hash_G.astype(np.uint32)
    key_G |= _PLACE.repeat(counts)
    key_G.sort()
    last_G = np.empty(2 * n, dtype=bool)
    last_G[-1] = True
    np.not_equal(key_G[1:], key_G[:-1], out=last_G[:-1])
    key_G = key_G[last_G]
    return Grams((key_G & _LOW).view(np.int32), (key_G >> _BITS).view(np.int32), 1)


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

    def logit(self, parts_NP: Floats, x_NF: Floats, present_NF: NDArray[np.bool_], offset_N: Floats | float = 0.0) -> Floats:
        """Log-odds before calibration of many steps, from the sums of `words` over each text; the features are the columns
        of `names`.
        """
        own_N, others_N = self.added(parts_NP, x_NF, present_NF)
        if self.floored:
            others_N = np.maximum(others_N, self.floor)
        return np.asarray(others_N + own_N + self.bias + offset_N)

    def added(self, parts_NP: Floats, x_NF: Floats, present_NF: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Log-odds that each of many steps adds: by what only the agent moves, and by `WRITTEN_BY_OTHERS`."""
        parts_NP = np.clip(parts_NP, *self.range_2P)
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
        for of_others, part, least, most in zip(_BY_OTHERS, added, *self._ends, strict=True):
            sums[of_others] += min(max(part, least), most)
        values, present = features.values, features.present
        for of_others, column, edges, bins in self._bins:
            if present[column]:
                sums[of_others] += bins[bisect_right(edges, values[column])]
        known = dict(verdicts)
        for name, edges, bins in self._verdicts:
            if (found := known.get(name)) is not None:
                sums[0] += bins[bisect_right(edges, found)]
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
    def _bins(self) -> list[tuple[bool, int, list[float], list[float]]]:
        """(whether others move it, its place in `FEATURES`, edges, log-odds) of each feature."""
        rows = zip(self.names, self.edges_FB.tolist(), self.bins_FB.tolist(), strict=True)
        return [(n in WRITTEN_BY_OTHERS, FEATURES.index(n), *of_bins) for n, *of_bins in rows if not n.startswith(VERDICT)]

    @cached_property
    def _verdicts(self) -> list[tuple[str, list[float], list[float]]]:
        """(name, edges, log-odds) of each verdict."""
        rows = zip(self.names, self.edges_FB.tolist(), self.bins_FB.tolist(), strict=True)
        return [(n.removeprefix(VERDICT), *of_bins) for n, *of_bins in rows if n.startswith(VERDICT)]
