"""Modes: how much the SLM may do. observe, shadow, canary, active; each is at least as safe as the next.

One moves up a mode at a time, where the evidence of the present one says so; and down at once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import msgspec

from r2v.core.errors import ArtifactError, R2VError
from r2v.core.seeds import derive_seed, derive_uniform
from r2v.core.untrusted import read_json
from r2v.gateway.ledger import ModeChange
from r2v.gateway.reading import LedgerReader
from r2v.gateway.sessions import Sessions
from r2v.gateway.settings import Mode, RouteSettings
from r2v.maths.stats import newcombe, wilson
from r2v.runtime.slices import in_thread

MODES: tuple[Mode, ...] = get_args(Mode)
LABELLED = 200
"""Comparisons that shadow takes: with them the 95 % interval of the share alike is +-.07 or less."""
ENDED = 50
"""Sessions with an outcome that active takes, routed ones and others."""
MARGIN = 0.1
"""By how much more routed sessions may fail, with 97.5 % confidence: about 120 of each kind, where a fifth fails."""


class Unproven(R2VError):
    """Nothing shows yet that the next mode would be right."""


@dataclass(frozen=True)
class Part:
    """What a mode wants of one step."""

    name: Literal["observe", "shadow", "canary", "control", "active"]
    """As the ledger has it: the mode, `control` for a session outside the canary."""
    routed: bool
    """The router's decision is carried out; else the teacher answers."""
    drafted: bool
    """The SLM is drafted, and the router decides."""


def part_of(mode: Mode, route: RouteSettings, session: str, t: int) -> Part:
    """What the mode wants of step t of a session; a session stays in the canary, or outside of it, as long as the share."""
    if mode == "canary" and derive_uniform(derive_seed(session, "canary"), "canary") < route.canary_share:
        return Part("canary", True, True)
    if mode in ("shadow", "active"):
        return Part(mode, mode == "active", True)
    drafted = derive_uniform(derive_seed(session, t), "observe") < route.observe_share
    return Part("control" if mode == "canary" else "observe", False, drafted)


class Modes:
    """The mode of this gateway; it outlasts restarts, and replicas share it (`Sessions.mode`)."""

    def __init__(self, route: RouteSettings, sessions: Sessions, ledger: LedgerReader) -> None:
        self._route, self._sessions, self._ledger = route, sessions, ledger
        self._read = False

    async def current(self) -> ModeChange:
        """The mode and since when; at a first call `route.mode`, if it was edited since the last change. Raises OSError."""
        change = await self._sessions.mode()
        if change is None or (not self._read and change.configured != self._route.mode):
            change = await self._set(self._route.mode, "route.mode of the settings")
        self._read = True
        return change

    async def promote(self, *, force: bool = False) -> ModeChange:
        """The next mode. Raises Unproven, unless forced, where the evidence does not suffice; OSError."""
        change = await self.current()
        enough, reason = await in_thread(self.evidence, change)
        if not enough and (not force or change.mode == MODES[-1]):
            raise Unproven(reason)
        return await self._set(MODES[MODES.index(change.mode) + 1], reason, forced=not enough)

    async def rollback(self, to: Mode = "observe") -> ModeChange:
        """A lower mode, without conditions. Raises Unproven for a higher one; OSError."""
        change = await self.current()
        if MODES.index(to) > MODES.index(change.mode):
            raise Unproven(f"{to} is above {change.mode}: promote to it")
        if to == change.mode:
            raise Unproven(f"the mode is {to} already")
        return await self._set(to, f"rolled back from {change.mode}")

    def evidence(self, change: ModeChange) -> tuple[bool, str]:
        """Whether what was seen since the change allows the next mode, and why or why not, in one line."""
        if left := self._ledger.uncounted():
            return False, f"{left} steps of an older ledger are being counted; ask again in a while"
        if change.mode == "observe":
            return self._compared(change.time)
        if change.mode == "shadow":
            return self._fitted()
        return self._not_worse(change.time) if change.mode == "canary" else (False, "active is the last mode")

    async def _set(self, mode: Mode, reason: str, *, forced: bool = False) -> ModeChange:
        change = ModeChange(mode, self._route.mode, reason, time.time(), forced)
        await self._sessions.set_mode(change)
        return change

    def _compared(self, since: float) -> tuple[bool, str]:
        labelled, alike = self._ledger.labels(since)
        if labelled < LABELLED:
            return False, f"{labelled} of {LABELLED} comparisons with the teacher so far; let it observe on"
        low, high = wilson(alike, labelled)
        return True, f"{alike} of {labelled} answers alike ({low:.0%} to {high:.0%})"

    def _fitted(self) -> tuple[bool, str]:
        """From the report that `r2v fit` puts into the router's folder."""
        router = self._route.router
        try:
            fit = read_json(Path(router) / "fit.json", within=Path(router))
            gain, better = msgspec.convert((fit["gain_over_random"], fit["ready"]), tuple[float | None, bool])
            interval = msgspec.convert(fit["gain_ci95"], tuple[float, float] | None)
        except (OSError, ValueError, KeyError, TypeError, ArtifactError):
            return False, f"router {router} has no fit.json: fit one on your ledger (`r2v fit`), and set route.router to it"
        if gain is None or interval is None:
            return False, f"router {router} was fitted on outcomes of the SLM alone: whether the teacher helps is not known"
        low, high = (100 * end for end in interval)
        found = (
            f"on tasks left out the router gains {100 * gain:+.1f} points over random escalation ({low:+.1f} to {high:+.1f})"
        )
        return (True, found) if better else (False, f"{found}: not proven; fit it again on more sessions")

    def _not_worse(self, since: float) -> tuple[bool, str]:
        (n, failed), (others, others_failed) = (self._ledger.ended(mode, since) for mode in ("canary", "control"))
        found = f"{failed} of {n} routed sessions failed, {others_failed} of {others} others"
        if min(n, others) < ENDED:
            return False, f"{found}; it takes {ENDED} of each with an outcome (POST /v1/outcomes, or `verdicts`)"
        low, high = newcombe(failed, n, others_failed, others)
        found += f": {100 * low:+.0f} to {100 * high:+.0f} points"
        return high <= MARGIN, found if high <= MARGIN else f"{found}; {100 * MARGIN:+.0f} at most: wait, or roll back"
