"""A functional conformal monitor of the risk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from r2v.core.mlp import RiskMLP
from r2v.core.types import Context, Decision, Episode, Features, Memory
from r2v.maths import Floats
from r2v.routers.base import RouterBase, features_of
from r2v.routers.fit_data import FitData


@dataclass(frozen=True, eq=False)
class Band:
    """What the running mean of the risk does on solved episodes: mean and spread by step, and how far one may stray.

    From split conformal prediction on the largest standardised excess over an episode: a solved episode exchangeable with
    those it was calibrated on leaves the band with level q with probability at most 1 - (share of excesses <= q).
    """

    mean_H: Floats
    std_H: Floats
    excess_N: Floats
    """Sorted largest excess of each calibration episode."""

    def __post_init__(self) -> None:
        if not self.mean_H.shape == self.std_H.shape == (len(self.mean_H),) or self.excess_N.ndim != 1:
            raise ValueError("mean and spread of the band do not fit together")

    def limit(self, alpha: float) -> float:
        """Excess exceeded by a solved episode with probability at most alpha; infinite with too few episodes for it."""
        n = len(self.excess_N)
        rank = int(np.ceil((n + 1) * (1 - alpha)))
        return float("inf") if rank > n else float(self.excess_N[max(rank, 1) - 1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Conformal(RouterBase):
    """Hands over once the running mean of the risk leaves the band that solved episodes keep.

    The threshold bounds the share of false alarms.
    """

    name: str = "conformal"
    risk: RiskMLP
    band: Band
    kind = "mean_risk"
    routes = frozenset({"continue", "takeover"})
    colour = "#bb8866"
    cites = "SAFE (arXiv 2506.09937)."

    @classmethod
    def fit(cls, data: FitData) -> Conformal:
        shape, width = (
            running_means([e for e in episodes if e.success], data.risk.score) for episodes in (data.rollouts, data.held)
        )
        band = fit_band(shape, width, data.horizon)
        return cls(risk=data.risk, band=band, fitted_with=data.fitted_with)

    def score(self, features: Features) -> float:
        return self.risk.score(features)

    def thresholds(self, validation: Sequence[Episode], shares: Sequence[float]) -> list[float]:
        return sorted(shares)

    def rule(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        t = len(memory.decisions)
        before = memory.decisions[-1].state if t else ()
        mean = ((before[0] if before else 0.0) * t + self.score(features)) / (t + 1)
        at = min(t, len(self.band.mean_H) - 1)
        edge = float(self.band.mean_H[at] + self.band.limit(self.point) * self.band.std_H[at])
        if mean > edge:
            reason = f"mean risk {mean:.3f} left the band at {edge:.3f}"
            return Decision("takeover", "risk_above", mean, self.kind, edge, 1.0, (mean,), reason)
        reason = f"mean risk {mean:.3f} within the band up to {edge:.3f}"
        return Decision("continue", "risk_below", mean, self.kind, edge, 1.0, (mean,), reason)


def running_means(episodes: Sequence[Episode], score: Callable[[Features], float]) -> list[Floats]:
    """For each episode, the mean of its scores up to each step."""
    means = []
    for episode in episodes:
        scores = [score(features) for features in features_of(episode)]
        means.append(np.cumsum(scores) / np.arange(1, len(scores) + 1))
    return means


def fit_band(shape: Sequence[Floats], held_out: Sequence[Floats], horizon: int) -> Band:
    """The band of solved episodes: its shape from one set of curves, its width from another (split conformal)."""
    table_NH = np.full((len(shape), horizon), np.nan)
    for row, values in zip(table_NH, shape, strict=True):
        row[: len(values)] = values
    live = (~np.isnan(table_NH)).sum(axis=0) >= 5
    last = max(int(live.sum()), 1)  # steps that too few solved episodes reach keep the shape of the last that enough do
    mean_H, std_H = np.nanmean(table_NH[:, :last], axis=0), np.nanstd(table_NH[:, :last], axis=0)
    mean_H = np.concatenate([mean_H, np.full(horizon - last, mean_H[-1])])
    std_H = np.maximum(np.concatenate([std_H, np.full(horizon - last, std_H[-1])]), 1e-3)
    excess = [float(((v - mean_H[: len(v)]) / std_H[: len(v)]).max()) for v in held_out if len(v)]
    return Band(mean_H, std_H, np.sort(excess))
