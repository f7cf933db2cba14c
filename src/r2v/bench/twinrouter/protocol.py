"""The router protocol of TwinRouterBench, field by field (`swerouter/router.py` of its repository).

These are for the static track and for tests; in its own harness the adapter gets the harness's objects, which have the same
fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelCacheView:
    """What is known of one model's prompt cache at the top of a step."""

    model_id: str
    last_call_ts: float | None = None
    prefix_token_count: int = 0
    prefix_hash: str | None = None


@dataclass(frozen=True, slots=True)
class CacheStateSnapshot:
    wallclock_ttl_sec: int
    now_ts: float
    by_model: Mapping[str, ModelCacheView]


@dataclass(frozen=True, slots=True)
class RunConfig:
    max_steps: int
    budget_usd: float
    wallclock_ttl_sec: int
    select_timeout_sec: float


@dataclass(frozen=True, slots=True)
class RouterContext:
    """One step of one instance, before any model is called."""

    instance_id: str
    step_index: int
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...]
    available_models: tuple[str, ...]
    cache_state: CacheStateSnapshot
    budget_so_far_usd: float
    run_config: RunConfig


@dataclass(frozen=True, slots=True)
class RouterDecision:
    model_id: str
    rationale: str | None = None
