"""What the gateway decides at a step: the configured router's answer, within modes, budgets and the price of a switch.

The codes of `r2v.core.types.Code` that it adds: budget_exhausted, forced, switch_cost, hold, explore; what happens around it
adds upstream_fallback, verifier_failed, early, observe and shadow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from r2v.core.agent import within_budget
from r2v.core.errors import ArtifactError, SettingsError
from r2v.core.features import View
from r2v.core.mlp import RiskMLP
from r2v.core.protocols import Router
from r2v.core.seeds import derive_uniform
from r2v.core.types import TEACHER, Context, Decision, Features, Memory, Route
from r2v.gateway.settings import RouteSettings
from r2v.routers import BUILT_IN, SHIPPED, load_router, needs_fit, router_class, without_fit
from r2v.routers.base import RouterBase
from r2v.runtime.plugins import names
from r2v.runtime.settings import validated
from r2v.runtime.store import sha256
from r2v.verifiers import BUILT_IN as VERIFIERS

if TYPE_CHECKING:
    from r2v.evaluation.certificate import Certificate

PROBABILITIES = ("risk", "benefit")
"""Kinds of scores that are probabilities of success or failure: only with them a price of failure means something."""


@dataclass(frozen=True)
class GatewayRouter:
    """`r2v.core.protocols.Router` of one request."""

    router: Router
    """The configured one, at the threshold of this request."""
    route: RouteSettings
    stronger: tuple[str, ...] = (TEACHER,)
    """The models between SLM and teacher, the cheapest first, and the teacher."""
    usable: tuple[str, ...] = (TEACHER,)
    """Those of them that are called now and can hold the request; the teacher in any case."""
    explored: tuple[str, ...] = (TEACHER,)
    """Those of these that the router may name."""
    forced: str | None = None
    """The model that the client or the kill switch forces: slm, or one of the stronger ones."""
    cold: bool = False
    """The prompt cache of the stronger model that answered last is lost: a call costs more."""
    killed: bool = False
    """Whether it is the kill switch: then no other model may answer."""

    @property
    def name(self) -> str:
        return self.router.name

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        return within_budget(self._wanted(context, features, memory, seed), memory)

    def _able(self, decision: Decision) -> Decision:
        """The decision, for the next stronger model where its own cannot answer."""
        if decision.model in self.usable:
            return decision
        later = self.stronger[self.stronger.index(decision.model) :]
        able = next(name for name in later if name in self.usable)
        return replace(decision, model=able, reason=f"{decision.reason}; {decision.model} cannot answer now")

    def _wanted(self, context: Context, features: Features, memory: Memory, seed: int) -> Decision:
        plain = self.router.decide(context, features, memory, seed=seed)
        if self.forced:
            reason = "the client or the kill switch forces it"
            if self.forced == "slm":
                return replace(plain, route="continue", code="forced", reason=reason)
            return self._able(replace(plain, route="escalate", code="forced", reason=reason, model=self.forced))
        if self._unclear(plain, memory):
            reason = f"{plain.score:.3f} is not clear, all candidates are drawn"
            return replace(plain, route="retry", code="retry", reason=reason)
        if plain.route == "retry":
            return plain
        kept = self._able(self._kept(plain, memory))  # before the draw, which may take that model, too
        if not self.route.explore:
            return kept
        decision, models = kept, self.explored
        if derive_uniform(seed, "explore?") < self.route.explore:
            route: Route = "escalate" if derive_uniform(seed, "explore") < 0.5 else "continue"
            model = models[int(derive_uniform(seed, "explored model") * len(models))]
            decision = replace(plain, route=route, code="explore", reason="drawn at random", model=model)
        # Half of the explored steps, by each stronger model as many; of all others as many as the router itself, which may
        # draw between the SLM and one model, routes so.
        if decision.route == "continue":
            own, drawn = kept.propensity if kept.route == "continue" else 1 - kept.propensity, 0.5
        else:
            other = 1 - kept.propensity if kept.route == "continue" else kept.propensity
            own, drawn = other if decision.model == kept.model else 0.0, 0.5 / len(models)
        return replace(decision, propensity=self.route.explore * drawn + (1 - self.route.explore) * own)

    def _unclear(self, plain: Decision, memory: Memory) -> bool:
        """Adaptive K: whether one candidate is not enough to decide on."""
        if self.route.clear is None or self.route.k == 1 or memory.retries or plain.score is None:
            return False
        low, high = self.route.clear
        return low <= plain.score < high

    def _kept(self, plain: Decision, memory: Memory) -> Decision:
        """The router's own decision, corrected for the state of the teacher's prompt cache."""
        if plain.route == "continue":
            latest = memory.decisions[-self.route.hold_steps + 1 :] if self.route.hold_steps > 1 else ()
            asked = [d for d in latest if d.route != "continue" and d.code != "hold"]
            if asked:
                model, reason = asked[-1].model, f"the {asked[-1].model} keeps {self.route.hold_steps} steps"
                return replace(plain, route="escalate", code="hold", reason=reason, propensity=1.0, model=model)
            if memory.decisions and _came_too_early(memory.decisions[-1]):
                reason = "the step before was streamed before anything was known of it, and would have been escalated"
                return replace(plain, route="escalate", code="risk_above", reason=reason, propensity=1.0)
            return plain
        extra = self.route.switch_usd / self.route.failure_usd
        if (
            extra and self._is_cold(plain.model, memory) and plain.code == "risk_above"
            and plain.score is not None and plain.threshold is not None and plain.score < plain.threshold + extra
        ):  # fmt: skip
            reason = f"{plain.reason}, a lost cache costs {extra:.3f} more"
            return replace(plain, route="continue", code="switch_cost", reason=reason)
        return plain

    def _is_cold(self, model: str, memory: Memory) -> bool:
        """Whether the prompt cache of a stronger model is lost: it expired, or another one answered last."""
        asked = (d.model for d in reversed(memory.decisions) if d.route in ("escalate", "takeover"))
        return self.cold or next(asked, model) != model


class ShadowRouter:
    """Decides as a router does, but the SLM goes on whatever it wants: that is noted, and somebody else answers."""

    def __init__(self, router: GatewayRouter) -> None:
        self.name = router.name
        self._router = router
        self.wanted: Decision | None = None

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        self.wanted = self._router.decide(context, features, memory, seed=seed)
        return self.wanted if self.wanted.route == "retry" else replace(self.wanted, route="continue")


def _came_too_early(decision: Decision) -> bool:
    """Whether a step was streamed early that would have been escalated."""
    return decision.code == "early" and decision.route != "continue"


@dataclass(frozen=True)
class Configured:
    """The configured router, as far as all requests share it."""

    name: str
    router: RouterBase
    route: RouteSettings
    """With what the router was fitted with, where the settings leave it open."""
    certificate: Certificate | None
    identity: str
    """Its name and the hashes of its files, by which two routers of one name differ."""

    @property
    def threshold(self) -> float:
        return self.router.point

    @property
    def model(self) -> RiskMLP | None:
        """The fitted model, for drift; None: a rule, which was fitted on nothing."""
        return self.router.model

    @property
    def calibrated(self) -> bool:
        """Whether its score is a probability of failure."""
        return self.router.kind == "risk"

    @property
    def view(self) -> View:
        """What the router sees of a step: as where it was fitted."""
        fitted = self.router.fitted_with
        return "full" if fitted is None else fitted.view

    def make(self, threshold: float) -> Router:
        """The router at the threshold of one request."""
        return self.router if threshold == self.router.threshold else self.router.at(threshold)


def load_configured(route: RouteSettings, stronger: Sequence[str] = (TEACHER,)) -> Configured:
    """A rule or the router that comes fitted by its name, or the folder of a fitted one: the object that the evaluation
    played. A router that the settings name as `package.module:Class` is code that runs here; a folder runs none.

    Args:
        route: the settings.
        stronger: the stronger models that there are.

    Raises SettingsError, ArtifactError.
    """
    folder = None if route.router in BUILT_IN or ":" in route.router else Path(route.router)
    if folder is not None and not folder.exists():
        raise SettingsError(
            f"`route.router` = {route.router}: there is no such folder, and no such router; without a fit there are "
            f"{', '.join(without_fit())}"
        )
    router = _rule(route.router) if folder is None else load_router(folder)
    name = route.router if folder is None else folder.resolve().name
    files = () if folder is None else (folder / "router.json", folder / "weights.safetensors")
    identity = " ".join((name, *(sha256(file)[:12] for file in files)))
    if "restart" in router.routes:
        raise SettingsError(f"{route.router} goes back to the start of an episode, which a conversation cannot")
    if missing := [name for name in router.models if name not in stronger]:
        raise SettingsError(f"{route.router} escalates to {missing[0]}, which stands not under models; add it")
    if route.switch_usd and router.kind not in PROBABILITIES:
        raise SettingsError(
            f"route.switch_usd is weighed against the price of a failure, but the score of {name} is no probability "
            f"({router.kind}); set it to 0, or configure a router that was fitted for risk or benefit"
        )
    router = replace(router, outside=route.outside)
    if route.threshold is not None:
        router = router.at(route.threshold)
    if router.threshold is None:
        raise SettingsError(f"the router in {route.router} has no threshold; set route.threshold")
    certificate = None
    if route.certificate is not None:
        if folder is None:
            raise SettingsError(f"{route.certificate} cannot be for {name}: only routers of a run have certificates")
        certificate = _certificate(Path(route.certificate), folder, router.threshold)
    return Configured(name, router, _as_fitted(route, router), certificate, identity)


def _rule(name: str) -> RouterBase:
    """A router that is fitted on nothing, at the threshold of the paper, or the one that comes fitted."""
    if name in SHIPPED:
        return load_router(name)
    if needs_fit(cls := router_class(name)):
        raise SettingsError(f"router {name} has to be fitted: set route.router to its folder (of `r2v run`)")
    return cls()


def _as_fitted(route: RouteSettings, router: RouterBase) -> RouteSettings:
    """The settings with the conditions of the router's fit, within the limits of settings.

    Raises SettingsError where the settings differ (the risk would not be the one that was measured), where a condition is
    beyond what settings may be, and where the folder names a verifier whose code only the settings may name.
    """
    if (fitted := router.fitted_with) is None:
        return route
    known = {"k": fitted.k, "horizon": fitted.horizon, "verifier": fitted.verifier}
    conditions = {key: value for key, value in known.items() if value is not None}
    for key, value in conditions.items():
        if key in route.given and getattr(route, key) != value:
            raise SettingsError(f"{route.router} was fitted with {key} {value}: leave out route.{key}")
    verifier = conditions.get("verifier", route.verifier)
    if "verifier" not in route.given and verifier not in names("verifiers", VERIFIERS):
        raise SettingsError(
            f"{route.router} was fitted with the verifier {verifier}, which does not come with r2v: if you trust that code, "
            f"set route.verifier to {verifier}; else fit the router again"
        )
    try:
        validated(RouteSettings, conditions, "fitted_with")
    except SettingsError as error:
        raise SettingsError(f"{route.router} asks for more than a gateway allows: {error}; fit the router again") from None
    return route.but(**conditions)


def _certificate(path: Path, router: Path, threshold: float) -> Certificate:
    """Raises ArtifactError when it was made for another router or another threshold."""
    from r2v.evaluation.certificate import read_certificate

    certificate = read_certificate(path)
    if certificate.router != router.name or certificate.identity.get("router") != sha256(router):
        raise ArtifactError(f"{path} was made for another router than {router}; run `r2v certify` again")
    if certificate.threshold != threshold:
        proven = "nothing" if certificate.threshold is None else f"the threshold {certificate.threshold:.6g}"
        raise ArtifactError(f"{path} proves {proven}, not {threshold:.6g}; set route.threshold to what it proves")
    return certificate
