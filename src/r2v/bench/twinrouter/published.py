"""What TwinRouterBench has published: pool, prices, rates, and the rows of its tables (`published.json`, with sources).

The rates are those of tiers on the static track; the prices are those of the four models of the dynamic track.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from r2v.clients.settings import PriceSettings

TIERS = ("low", "mid", "mid_high", "high")
"""From the cheapest to the strongest; a tier's id is its number here."""
HIGH = len(TIERS) - 1


class Pooled(msgspec.Struct, frozen=True):
    """The model of a tier on the dynamic track."""

    model: str
    price: PriceSettings


class StaticRow(msgspec.Struct, frozen=True):
    """A router on the static track, in percent."""

    router: str
    row_pass: float
    row_exact: float
    traj_pass: float
    cost_save: float
    combined: float
    cost_save_by_workload: Mapping[str, float]


class DynamicRow(msgspec.Struct, frozen=True):
    """A router on the held-out cases of the dynamic track."""

    router: str
    cases: int
    resolved: int
    api_usd: float
    steps: int
    calls: Mapping[str, int]
    """Model -> calls; empty where they were not published."""


class Published(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    source: Mapping[str, str]
    pool: Mapping[str, Pooled]
    rates: Mapping[str, PriceSettings]
    cache_s: int
    """How long a provider's cache is taken to live, after a model's latest call."""
    cache_steps: int
    """The same on the static track, in steps of a trajectory."""
    penalty_usd: float
    """What an unsolved case adds to the bill."""
    output_tokens: int
    """Of a call on the static track whose answer is not known."""
    workloads: Mapping[str, int]
    """Rows of each part of the static bank."""
    trajectories: int
    static: list[StaticRow]
    dynamic: list[DynamicRow]


PUBLISHED = msgspec.json.decode((Path(__file__).parent / "published.json").read_bytes(), type=Published)
MODELS: Mapping[str, str] = {tier: PUBLISHED.pool[tier].model for tier in TIERS}
"""Tier -> model of the dynamic track."""
PRICES: Mapping[str, PriceSettings] = {pooled.model: pooled.price for pooled in PUBLISHED.pool.values()}
"""USD per million tokens of each of these models."""
