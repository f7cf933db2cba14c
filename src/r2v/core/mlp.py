"""The fitted number behind most routers: standardise, a small MLP, calibration; NumPy alone (method, section 7).

Batch norm is folded into the linear layers, so inference is two matrix products and two GELUs (tanh form, as trained).
Features are clipped to the range that they had in the fit: beyond it the fit says nothing, and texts can move them anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from r2v.core.features import FEATURES
from r2v.core.types import Features
from r2v.maths import Bools, Floats

_GELU = math.sqrt(2 / math.pi)
REMEMBERED = 4096
"""Steps whose score is kept: the thresholds of one router decide on the same steps."""
FAR = 0.5
"""Spans beyond its range at which a feature is far outside. Of 24,000 test steps that nine fitted routers decided on (a
smaller quickstart under perturbations) clipping moved the score of 474, and none lay that far."""
STEPS_DONE = frozenset({"step_index", "horizon_fraction"})
"""Features that are only clipped, however far they lie outside: a session longer than all of the fit is no odd text, and
would have each of its later steps escalated."""


@dataclass(frozen=True)
class Calibration:
    """logit -> probability: sigmoid(slope x logit + bias), then a monotone table where `x` is given (isotonic)."""

    slope: float = 1.0
    bias: float = 0.0
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or any(a > b for a, b in pairwise(self.x)):
            raise ValueError("the table of a calibration must have as many y as x, and rising x")

    def __call__(self, logit_N: Floats) -> Floats:
        p_N = 1 / (1 + np.exp(-np.minimum(np.maximum(self.slope * logit_N + self.bias, -40), 40)))
        return np.asarray(np.interp(p_N, self.x, self.y) if self.x else p_N)


@dataclass(frozen=True, eq=False)
class RiskMLP:
    """Missing features enter as 0 after standardising, the training mean."""

    names: tuple[str, ...]
    """Features that it reads, of `r2v.core.features.FEATURES`."""
    mean_F: Floats
    std_F: Floats
    layers: tuple[tuple[Floats, Floats], ...]
    """(weights [in, out], bias [out]) with batch norm folded in; the last has one output."""
    calibration: Calibration = Calibration()
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from: objective, data, what it estimates."""
    range_2F: Floats | None = None
    """Lowest and highest value of each feature in the rows of the fit; None: not known (fitted before r2v kept it)."""

    def __post_init__(self) -> None:
        shapes = [w.shape for w, _ in self.layers]
        if any(len(shape) != 2 for shape in shapes):
            raise ValueError(f"layers of the shapes {shapes} are no matrices")
        inputs = [len(self.names), *(shape[1] for shape in shapes)]
        if unknown := set(self.names) - set(FEATURES):
            raise ValueError(f"unknown features {sorted(unknown)}")
        if self.mean_F.shape != (len(self.names),) or self.std_F.shape != self.mean_F.shape:
            raise ValueError("mean and spread do not fit the features")
        if not (self.std_F > 0).all():
            raise ValueError("a spread is not above 0")
        if self.range_2F is not None and self.range_2F.shape != (2, len(self.names)):
            raise ValueError("the ranges do not fit the features")
        if (
            [shape[0] for shape in shapes] != inputs[:-1]
            or inputs[-1] != 1
            or [b.shape for _, b in self.layers] != [shape[1:] for shape in shapes]
        ):
            raise ValueError(f"layers of the shapes {shapes} do not fit together")
        # A transposed array gives other last bits in a product; from a folder come contiguous ones.
        layers = tuple((np.ascontiguousarray(w), np.ascontiguousarray(b)) for w, b in self.layers)
        object.__setattr__(self, "layers", layers)

    def logit(self, x_NF: Floats, present_NF: Bools) -> Floats:
        low_F, high_F = (-np.inf, np.inf) if self.range_2F is None else self.range_2F
        clipped_NF = np.minimum(np.maximum(x_NF, low_F), high_F)
        return self._propagate(np.where(present_NF, (clipped_NF - self.mean_F) / self.std_F, 0.0))

    def _propagate(self, h: Floats) -> Floats:
        for w, b in self.layers[:-1]:
            h = h @ w
            h += b
            inner = h * h
            inner *= 0.044715 * _GELU
            inner += _GELU
            inner *= h
            np.tanh(inner, out=inner)
            inner += 1.0
            h *= inner
            h *= 0.5
        w, b = self.layers[-1]
        return np.asarray((h @ w + b)[:, 0])

    def risk(self, x_NF: Floats, present_NF: Bools) -> Floats:
        return self.calibration(self.logit(x_NF, present_NF))

    def score(self, features: Features) -> float:
        """Risk of one step, from all `FEATURES`. The same arithmetic as `risk`, without arrays where a list is quicker."""
        return float(self._score(features))

    def value(self, features: Features) -> float:
        """The last layer's number as it is: for regressions, which have no calibration."""
        return float(self._value(features))

    @cached_property
    def _score(self) -> Any:
        return lru_cache(REMEMBERED)(lambda f: float(self.calibration(self._propagate(self.inputs(f)[None]))[0]))

    @cached_property
    def _value(self) -> Any:
        return lru_cache(REMEMBERED)(lambda f: float(self._propagate(self.inputs(f)[None])[0]))

    def standardised(self, features: Features) -> Floats:
        """How many standard deviations of the fit each feature is off its mean, however far: for drift."""
        values, present = features.values, features.present
        return np.array([(values[i] - mean) / std if present[i] else 0.0 for i, mean, std, *_ in self._row])

    def inputs(self, features: Features) -> Floats:
        """What the layers read: standardised, and clipped to the range of the fit."""
        values, present = features.values, features.present
        return np.array([
            ((low if (x := values[i]) < low else high if x > high else x) - mean) / std if present[i] else 0.0
            for i, mean, std, low, high in self._row
        ])  # fmt: skip

    def far(self, features: Features) -> str | None:
        """The first feature that lies far outside of the range of the fit, in words; one that never varied there is only
        clipped, which takes it out of the score, and so are `STEPS_DONE`.
        """
        for name, (i, _, _, low, high) in zip(self.names, self._row, strict=True):
            x, margin = features.values[i], FAR * (high - low)
            if features.present[i] and margin and name not in STEPS_DONE and not low - margin <= x <= high + margin:
                return f"{name} {x:.3g} is far outside of {low:.3g} to {high:.3g}, where it was fitted"
        return None

    @cached_property
    def _row(self) -> tuple[tuple[int, float, float, float, float], ...]:
        """(position in `FEATURES`, mean, std, lowest, highest) of each input."""
        low_F, high_F = ([end] * len(self.names) for end in (-math.inf, math.inf))
        if self.range_2F is not None:
            low_F, high_F = self.range_2F.tolist()
        return tuple(zip(self.columns, self.mean_F.tolist(), self.std_F.tolist(), low_F, high_F, strict=True))

    @cached_property
    def columns(self) -> list[int]:
        """Positions of its inputs in `FEATURES`."""
        return [FEATURES.index(name) for name in self.names]


def linear(
    names: tuple[str, ...], mean_F: Floats, std_F: Floats, w_F: Floats, b: float, calibration: Calibration = Calibration(),
    facts: Mapping[str, Any] | None = None, range_2F: Floats | None = None,
) -> RiskMLP:  # fmt: skip
    """A linear model: one layer. Its numbers are rounded to single precision, as a folder holds them."""
    w = np.asarray(w_F, dtype=np.float32).astype(np.float64)[:, None]
    return RiskMLP(names, mean_F, std_F, ((w, np.array([float(np.float32(b))])),), calibration, facts or {}, range_2F)
