"""`r2v fit LOGS`: a router from recorded episodes alone, no environment, no training of the SLM.

What it is worth is measured first (`r2v.studies.advise`). A router that does not beat random escalation on tasks left out is
not written, unless one asks for it: then its folder says that it is unproven.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r2v.core.features import FEATURES
from r2v.core.types import Episode
from r2v.routers.base import FittedWith
from r2v.runtime.store import write_json
from r2v.studies.advise import Advice, router_of


def fitted_with(episodes: Sequence[Episode], verifier: str | None) -> FittedWith:
    """How the steps were seen: served otherwise, the risk would be another one. What they do not agree on is None."""
    step_index, fraction = FEATURES.index("step_index"), FEATURES.index("horizon_fraction")
    choices = [step.choice for episode in episodes for step in episode.steps if step.choice.features is not None]
    counts = {len(choice.candidates) for choice in choices}
    rows = [choice.features.values for choice in choices if choice.features is not None]
    horizons = {round(row[step_index] / row[fraction]) for row in rows if row[fraction]}
    k, horizon = (found.pop() if len(found) == 1 else None for found in (counts, horizons))
    return FittedWith(k, horizon, verifier)


def fit_logs(advice: Advice, out: Path, *, verifier: str | None, unproven: bool = False, seed: int = 0) -> dict[str, Any]:
    """Write the router that was measured, if it may be written.

    Args:
        advice: of the logs.
        out: the router's folder; nothing is written where no router is.
        verifier: what scored the steps, where that is known; the gateway then scores with the same.
        unproven: write a router also where nothing shows that it beats random escalation.
        seed: of the fit.

    Returns:
        The facts of the advice, with `ready` and `router` (the folder, or None).
    """
    ready = advice.verdict == "route"
    facts: dict[str, Any] = {**advice.facts, "ready": ready, "router": None}
    if advice.evidence is None or not (ready or unproven):
        return facts
    router = router_of(advice, fitted_with(advice.evidence.episodes, verifier), seed=seed)
    router.save(out)
    facts |= {"router": str(out), "threshold": router.threshold}
    write_json(out / "fit.json", facts)
    return facts
