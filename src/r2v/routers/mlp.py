"""The fitted router: standardise, a small MLP, calibration; NumPy alone (method, section 7).

A router is a folder: `router.json` (what it is), `weights.safetensors` (its numbers), `README.md` (a card for people).
Batch norm is folded into the linear layers, so inference is two matrix products and two GELUs (tanh form, as trained).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from r2v.core.errors import ArtifactError
from r2v.core.features import FEATURES
from r2v.core.protocols import Bools, Floats
from r2v.core.types import Features
from r2v.routers import weights
from r2v.routers.threshold import ThresholdRouter

FORMAT = 1
_GELU = math.sqrt(2 / math.pi)


@dataclass(frozen=True)
class Calibration:
    """logit -> probability: sigmoid(slope x logit + bias), then a monotone table where `x` is given (isotonic)."""

    slope: float = 1.0
    bias: float = 0.0
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()

    def __call__(self, logit_N: Floats) -> Floats:
        p_N = 1 / (1 + np.exp(-np.minimum(np.maximum(self.slope * logit_N + self.bias, -40), 40)))
        return np.asarray(np.interp(p_N, self.x, self.y) if self.x else p_N)


@dataclass(frozen=True, eq=False)
class RiskMLP:
    """`r2v.core.protocols.RiskModel`. Missing features enter as 0 after standardising, the training mean."""

    names: tuple[str, ...]
    mean_F: Floats
    std_F: Floats
    layers: tuple[tuple[Floats, Floats], ...]
    """(weights [in, out], bias [out]) with batch norm folded in; the last has one output."""
    calibration: Calibration
    threshold: float | None
    facts: Mapping[str, Any]
    """Where it comes from: objective, data, versions."""

    def logit(self, x_NF: Floats, present_NF: Bools) -> Floats:
        return self._propagate(np.where(present_NF, (x_NF - self.mean_F) / self.std_F, 0.0))

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
        return float(self.calibration(self._propagate(self.standardised(features)[None]))[0])

    def value(self, features: Features) -> float:
        """The last layer's number as it is: for regressions, which have no calibration."""
        return float(self._propagate(self.standardised(features)[None])[0])

    def standardised(self, features: Features) -> Floats:
        values, present = features.values, features.present
        return np.array([(values[i] - mean) / std if present[i] else 0.0 for i, mean, std in self._row])

    @cached_property
    def _row(self) -> tuple[tuple[int, float, float], ...]:
        """(position in `FEATURES`, mean, std) of each input."""
        columns = [FEATURES.index(name) for name in self.names]
        return tuple(zip(columns, self.mean_F.tolist(), self.std_F.tolist(), strict=True))

    def router(self, name: str, threshold: float) -> ThresholdRouter:
        return ThresholdRouter(name, self.score, threshold)

    def with_threshold(self, threshold: float) -> RiskMLP:
        return replace(self, threshold=threshold)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {"mean": self.mean_F, "std": self.std_F}
        for i, (w, b) in enumerate(self.layers):
            arrays |= {f"w{i}": w, f"b{i}": b}
        (folder / "weights.safetensors").write_bytes(weights.to_bytes(arrays))
        description = {
            "format": FORMAT,
            "features": list(self.names),
            "layers": [list(w.shape) for w, _ in self.layers],
            "calibration": {
                "slope": self.calibration.slope,
                "bias": self.calibration.bias,
                "x": list(self.calibration.x),
                "y": list(self.calibration.y),
            },
            "threshold": self.threshold,
            "facts": dict(self.facts),
        }
        (folder / "README.md").write_text(_card(self), encoding="utf-8")
        (folder / "router.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load_router(folder: Path) -> RiskMLP:
    """Raises ArtifactError with one line when the folder is incomplete, damaged or of another version."""
    path = folder / "router.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != FORMAT:
            raise ArtifactError(f"{path} has format {raw['format']}, this r2v reads {FORMAT}; fit the router again")
        names = tuple(raw["features"])
        if unknown := set(names) - set(FEATURES):
            raise ValueError(f"unknown features {sorted(unknown)}")
        arrays = weights.from_file(folder / "weights.safetensors")
        layers = tuple((arrays[f"w{i}"], arrays[f"b{i}"]) for i in range(len(raw["layers"])))
        if [list(w.shape) for w, _ in layers] != raw["layers"] or arrays["mean"].shape != (len(names),):
            raise ValueError("the weights do not have the shapes that it names")
        c = raw["calibration"]
        calibration = Calibration(float(c["slope"]), float(c["bias"]), tuple(c["x"]), tuple(c["y"]))
        return RiskMLP(names, arrays["mean"], arrays["std"], layers, calibration, raw["threshold"], raw["facts"])
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist; is {folder} a router folder?") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is corrupt ({error}); fit the router again") from None


def _card(router: RiskMLP) -> str:
    facts = "\n".join(f"- {key.replace('_', ' ')}: {value}" for key, value in router.facts.items())
    asks = "not chosen yet" if router.threshold is None else f"{router.threshold:.4f}"
    estimates = router.facts.get("estimates", "the risk that going on with the small model will fail the episode")
    return f"""# An r2v router

At every step of an agent's episode it estimates {estimates}, from
{len(router.names)} numbers about the step ({", ".join(router.names)}).
Alone it asks the teacher when the estimate is at least the threshold: {asks}.

{facts}

Valid for the small model, the verifier and the kind of tasks and disturbances it was fitted on; fit it again for others.
`r2v.routers.mlp.load_router(folder)` reads it with NumPy alone.
"""
