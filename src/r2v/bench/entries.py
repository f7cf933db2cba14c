"""What takes part in the bench: r2v's routers, rules of other systems, routers of one's own, and what stands beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from r2v.core.types import Context, Decision, Episode, Features, Memory
from r2v.evaluation.replay import replayable
from r2v.logs.importing import HORIZON
from r2v.routers import BUILT_IN, RIVALS, SHIPPED, load_router, router_class
from r2v.routers.base import FittedWith, Need, RouterBase
from r2v.routers.fit_data import FitData

STEP_0 = "step 0"
"""Ends the name of a router that decides at the first step alone."""
SHUFFLED = "shuffled outcomes"
FITTED = "fitted elsewhere"
"""Begins the source of a router whose fit may have seen the sessions that it is scored on."""
RANDOM = "random"
BEST = "reading_benefit"
NULL = f"{BEST}, {STEP_0}"
"""What gains are measured against beside random escalation: the same reader as the best router's, asked once."""
RECORDED = FittedWith(1, HORIZON, "tool_calls")
"""How the steps of recorded sessions are seen."""
HAVE: frozenset[Need] = frozenset({"branches", "exploration"})
"""What recorded sessions of two models give a fit."""


@dataclass(frozen=True)
class Entry:
    """One row of the bench."""

    name: str
    router: type[RouterBase]
    """Its class, which is fitted for each fold, and which says what its fit needs."""
    source: str
    """Where the rule is from."""
    fitted: RouterBase | None = None
    """A router that was fitted elsewhere; None: it is fitted here."""
    at_start: bool = False
    """It decides at the first step alone."""
    shuffled: bool = False
    """It is fitted on outcomes that were dealt out anew: a control, which knows nothing."""

    def why_not(self, have: frozenset[Need] = HAVE) -> str | None:
        """Why it cannot take part; None: it can.

        Args:
            have: what fits can have on these records.
        """
        if lacking := self.router.needs - have:
            return f"its fit needs {' and '.join(sorted(lacking))}, which these records do not hold"
        if self.router.tuned is not RouterBase.tuned:
            return "its budgets are tuned in closed loop, which records cannot play"
        if self.fitted is not None and (other := _fitted_otherwise(self.fitted)):
            return other
        if not replayable(self.router.routes):
            return "it draws again or starts anew, and a recorded session has no more than was recorded"
        return None


@dataclass(frozen=True, kw_only=True, eq=False)
class AtStart(RouterBase):
    """Another router's decision at the first step, and none after it."""

    inner: RouterBase
    kind: ClassVar[None] = None

    def at(self, threshold: float) -> AtStart:
        return replace(self, threshold=threshold, inner=self.inner.at(threshold))

    def thresholds(self, validation: Sequence[Episode], shares: Sequence[float]) -> list[float]:
        return self.inner.thresholds([replace(episode, steps=episode.steps[:1]) for episode in validation], shares)

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        if context.t:
            return Decision("continue", "scheduled", None, None, None, 1.0, (), "it decides at the first step alone")
        return self.inner.decide(context, features, memory, seed=seed)


def entries(own: Sequence[str] = ()) -> list[Entry]:
    """All rows, in the order of tables.

    Args:
        own: further routers: a name, `package.module:Router`, or the folder of a fitted one.
    """
    left_out = {"rules", "recorded"}  # defaults of a gateway; a folder of them can be named
    found = [_of_class(name) for name in (*BUILT_IN, *RIVALS) if name not in left_out]
    for name in ("reading", BEST):
        found.append(Entry(f"{name}, {STEP_0}", router_class(name), f"{name}, asked once", at_start=True))
    found.append(Entry(SHUFFLED, router_class(BEST), f"a control: {BEST}, fitted on outcomes dealt out anew", shuffled=True))
    names = {entry.name for entry in found}
    return [*found, *(_own(name) for name in dict.fromkeys(own) if name not in names)]


def _of_class(name: str) -> Entry:
    cls = router_class(name)
    return Entry(name, cls, cls.cites or (cls.__doc__ or "").strip().splitlines()[0])


def _own(name: str) -> Entry:
    if name not in SHIPPED and not (Path(name) / "router.json").exists():
        return _of_class(name)
    router = load_router(name)
    known = router.fitted_with or RECORDED
    router = replace(router, fitted_with=replace(known, horizon=known.horizon or RECORDED.horizon))
    if kinds := router.facts.get("kinds"):
        return Entry(name, type(router), f"{FITTED} on {kinds}: on these its row shows what it has seen", fitted=router)
    return Entry(name, type(router), f"{FITTED}: on sessions of its fit its row shows what it has seen", fitted=router)


def _fitted_otherwise(router: RouterBase) -> str | None:
    """Why a fitted router does not know these features: they are of one candidate, scored by one verifier."""
    known = router.fitted_with
    if known is None or (known.k in (None, RECORDED.k) and known.verifier in (None, RECORDED.verifier)):
        return None
    return (
        f"it was fitted with {known.k} candidates a step and the verifier {known.verifier}; records have {RECORDED.k}, "
        f"and {RECORDED.verifier} scores it"
    )


def shuffled(data: FitData, seed: int) -> FitData:
    """The same steps with outcomes dealt out anew: the SLM's among its sessions, the stronger model's among the tasks.

    Args:
        data: what a fit would get.
        seed: of the deal.
    """
    rng = np.random.default_rng(seed)

    def dealt(episodes: Sequence[Episode]) -> list[Episode]:
        success = [episodes[i].success for i in rng.permutation(len(episodes))]
        return [replace(episode, success=won) for episode, won in zip(episodes, success, strict=True)]

    recorded, validation = dealt(data.recorded), dealt(data.validation)
    helped = {data.recorded[b.episode].task.id: b.helped for b in reversed(data.branches)}
    tasks = list(helped)
    other = dict(zip(tasks, (helped[tasks[i]] for i in rng.permutation(len(tasks))), strict=True))
    branches = [
        replace(b, alone=bool(recorded[b.episode].success), helped=other[recorded[b.episode].task.id]) for b in data.branches
    ]
    return replace(data, recorded=recorded, validation=validation, branches=branches, quality={})
