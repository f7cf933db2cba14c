"""What the gateway decides at a step: the configured router's answer, within modes, budgets and the price of a switch.

The codes of `r2v.core.types.Code` that it adds: budget_exhausted, forced, switch_cost, hold, shadow, explore; what happens
around it adds upstream_fallback, verifier_failed and early.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from r2v.core.errors import ArtifactError, SettingsError
from r2v.core.protocols import Router
from r2v.core.seeds import derive_uniform
from r2v.core.types import Code, Context, Decision, Features, Memory, Route
from r2v.evaluation.certificate import Certificate, read_certificate
from r2v.gateway.settings import RouteSettings
from r2v.pipeline.parts import make_router
from r2v.routers import baselines
from r2v.routers.mlp import RiskMLP, load_router
from r2v.routers.threshold import ThresholdRouter
from r2v.runtime.store import read_json, sha256

PAPERS = {
    "entropy": (baselines.entropy, 2.0),
    "heuristic": (baselines.heuristic, 1.0),
    "verifier": (baselines.verifier, 0.5),
}
"""Baselines with the thresholds of the paper's script; they are no calibrated risks."""
THRESHOLDS = "thresholds.json"
"""Beside the routers of a run: what was chosen for each on validation tasks."""


@dataclass(frozen=True)
class GatewayRouter:
    """`r2v.core.protocols.Router` of one request."""

    router: Router
    """The configured one, at the threshold of this request."""
    route: RouteSettings
    active: bool = True
    """False: decide, but let the small model answer (shadow, or a session outside the canary)."""
    forced: str | None = None
    """slm or teacher, when the client or the kill switch says so."""
    cold: bool = False
    """The teacher's prompt cache is lost: asking it costs more."""

    @property
    def name(self) -> str:
        return self.router.name

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        decision = self._wanted(context, features, memory, seed)
        if decision.route in ("continue", "retry"):
            return decision
        if memory.calls_left == 0:
            return _instead(decision, "budget_exhausted")
        return decision if self.active or self.forced else _instead(decision, "shadow")

    def _wanted(self, context: Context, features: Features, memory: Memory, seed: int) -> Decision:
        plain = self.router.decide(context, features, memory, seed=seed)
        if self.forced:
            route: Route = "escalate" if self.forced == "teacher" else "continue"
            return replace(plain, route=route, code="forced", reason="the client or the kill switch says so")
        if self._unclear(plain, memory):
            reason = f"{plain.score:.3f} is not clear, all candidates are drawn"
            return replace(plain, route="retry", code="retry", reason=reason)
        if plain.route == "retry":
            return plain
        if self.route.explore and derive_uniform(seed, "explore?") < self.route.explore:
            ask = derive_uniform(seed, "explore") < 0.5
            decision = replace(plain, route="escalate" if ask else "continue", code="explore", reason="drawn at random")
        else:
            decision = self._kept(plain, memory)
        # Half of the explored steps, and all others where it is what the router wants by itself.
        same = (decision.route == "continue") == (self._kept(plain, memory).route == "continue")
        return replace(decision, propensity=self.route.explore / 2 + (1 - self.route.explore) * same)

    def _unclear(self, plain: Decision, memory: Memory) -> bool:
        """Adaptive K: whether one candidate is not enough to decide on."""
        if self.route.clear is None or self.route.k == 1 or memory.retries or plain.score is None:
            return False
        low, high = self.route.clear
        return low <= plain.score < high

    def _kept(self, plain: Decision, memory: Memory) -> Decision:
        """The router's own decision, with what the teacher's prompt cache has to say."""
        if plain.route == "continue":
            latest = memory.decisions[-self.route.hold_steps + 1 :] if self.route.hold_steps > 1 else ()
            if any(d.route != "continue" and d.code != "hold" for d in latest):
                reason = f"the teacher keeps {self.route.hold_steps} steps"
                return replace(plain, route="escalate", code="hold", reason=reason)
            return plain
        extra = self.route.switch_usd / self.route.failure_usd if self.cold else 0.0
        if extra and plain.score is not None and plain.threshold is not None and plain.score < plain.threshold + extra:
            reason = f"{plain.reason}, a lost cache costs {extra:.3f} more"
            return replace(plain, route="continue", code="switch_cost", reason=reason)
        return plain


def _instead(decision: Decision, code: Code) -> Decision:
    return replace(
        decision, route="continue", code=code, reason=f"would escalate ({decision.code}: {decision.reason})", propensity=1.0
    )


@dataclass(frozen=True)
class Configured:
    """The configured router, as far as all requests share it."""

    name: str
    make: Callable[[float], Router]
    """At a threshold."""
    threshold: float
    model: RiskMLP | None
    """What tells where it was fitted; None: a baseline, which was fitted on nothing."""
    calibrated: bool
    """Whether its score is a probability of failure."""
    route: RouteSettings
    """With what the router was fitted with, where the settings leave it open."""
    certificate: Certificate | None


def load_configured(route: RouteSettings) -> Configured:
    """A baseline, a router of a run (the same object that the evaluation played), or one of `r2v fit`. Raises SettingsError,
    ArtifactError.
    """
    if route.router in PAPERS:
        score, threshold = PAPERS[route.router]
        if route.certificate is not None:
            raise SettingsError(f"{route.certificate} cannot be for {route.router}: baselines have no certificates")
        threshold = threshold if route.threshold is None else route.threshold
        return Configured(
            route.router, lambda t: ThresholdRouter(route.router, score, t), threshold, None, False, route, None
        )
    folder = Path(route.router)
    name, beside = folder.name, folder.parent / THRESHOLDS
    run = read_json(beside) if beside.exists() else {}
    chosen_in_run = run.get("routers", {}).get(name)
    if chosen_in_run is None:
        model = load_router(folder)
        chosen, calibrated = model.threshold, True
        fitted_with = model.facts.get("fitted_with") or {k: v for k, v in model.facts.items() if k == "verifier"}
        make: Callable[[float], Router] = lambda t: model.router(name, t)  # noqa: E731
    else:
        if name == "restart":
            raise SettingsError(f"{folder} goes back to the start of an episode, which a conversation cannot")
        model = load_router(folder if (folder / "router.json").exists() else folder.parent / "r2v")
        chosen, fitted_with = float(chosen_in_run["threshold"]), run.get("fitted_with", {})
        calibrated = name in ("r2v", "r2v_paper")
        make = lambda t: make_router(name, t, folder.parent)  # noqa: E731
    if (at := chosen if route.threshold is None else route.threshold) is None:
        raise SettingsError(f"the router in {route.router} has no threshold; set route.threshold")
    certificate = None if route.certificate is None else _certificate(Path(route.certificate), folder, at)
    make(at)  # what is missing is said now, not at the first request
    return Configured(name, make, at, model, calibrated, _as_fitted(route, fitted_with), certificate)


def _as_fitted(route: RouteSettings, fitted_with: Mapping[str, Any]) -> RouteSettings:
    """Raises SettingsError where the settings ask for something else: the risk would not be the one that was measured."""
    for key, value in fitted_with.items():
        if key in route.model_fields_set and getattr(route, key) != value:
            raise SettingsError(f"{route.router} was fitted with {key} {value}: leave out route.{key}")
    return route.model_copy(update=dict(fitted_with))


def _certificate(path: Path, router: Path, threshold: float) -> Certificate:
    """Raises ArtifactError when it was made for another router or another threshold."""
    certificate = read_certificate(path)
    if certificate.router != router.name or certificate.identity.get("router") != sha256(router.parent):
        raise ArtifactError(f"{path} was made for another router than {router}; run `r2v certify` again")
    if certificate.threshold != threshold:
        proven = "nothing" if certificate.threshold is None else f"the threshold {certificate.threshold:.6g}"
        raise ArtifactError(f"{path} proves {proven}, not {threshold:.6g}; set route.threshold to what it proves")
    return certificate
