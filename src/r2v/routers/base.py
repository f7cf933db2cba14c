"""What a router is: settings, the data it needs, `fit`, `decide`, and a folder that holds all of it.

A router is one file of this package (or of yours): a frozen dataclass whose fields are all that it was fitted with. Its
folder is `router.json` (which class, and its fields), `weights.safetensors` (its arrays) and `README.md` (a card for
people). Copied anywhere the folder decides the same.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import msgspec
import numpy as np
from msgspec import Meta

from r2v.core.arrays import to_bytes
from r2v.core.errors import SettingsError
from r2v.core.features import View
from r2v.core.mlp import RiskMLP
from r2v.core.types import TEACHER, Code, Context, Decision, Episode, Features, Memory, Route, ScoreKind
from r2v.runtime.store import whole_file, write_text

if TYPE_CHECKING:
    from r2v.routers.fit_data import FitData

FORMAT = 2
Need = Literal["answers", "branches", "exploration", "redraws", "pool"]
"""What a fit may need beside the SLM's rollouts: what the teacher would have done at each step; both futures of some
steps; episodes with random escalation; episodes with a second draw of candidates at each step; all that it needs, for each
further model of a pool."""
PLAIN = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
"""Names of routers: each has a folder of that name in a run."""
Outside = Literal["escalate", "abstain", "clip"]
"""What to do where a feature lies far outside of what a router was fitted on: ask the teacher; let the SLM go on; decide as
if the feature were at the edge of its range."""
Play = Callable[[Mapping[str, "RouterBase"]], Mapping[str, Sequence[float]]]
"""Plays routers in closed loop on validation tasks, and on the router tasks under one seed; teacher calls an episode."""


@dataclass(frozen=True)
class FittedWith:
    """The conditions of a fit; a router decides on the features that it knows under the same ones alone. None: not known."""

    k: Annotated[int, Meta(ge=1, le=1_000)] | None
    """Candidates a step; a gateway takes what `route.k` may be."""
    horizon: Annotated[int, Meta(ge=1, le=1_000_000)] | None
    """Steps of an episode."""
    verifier: str | None
    view: View = "full"
    """What it sees of each step."""
    verifier_sha256: str | None = None
    """Of the verifier's source, where it is known."""


def compare(
    name: str,
    kind: ScoreKind,
    score: float,
    threshold: float,
    *,
    above: Route = "escalate",
    state: tuple[float, ...] = (),
    why: str = "",
) -> Decision:
    """`above` where the score is at least the threshold, else `continue`.

    Args:
        name: what the reason calls the score.
        kind: what the score estimates.
        state: what the router wants to read at its next step.
        why: added to the reason.
    """
    reached = score >= threshold
    reason = f"{name} {score:.3f} {'>=' if reached else '<'} {threshold:.3f}{why}"
    if not reached:
        return Decision("continue", "risk_below", score, kind, threshold, 1.0, state, reason)
    code: Code = "retry" if above == "retry" else "risk_above"
    return Decision(above, code, score, kind, threshold, 1.0, state, reason)


@dataclass(frozen=True, kw_only=True, eq=False)
class RouterBase:
    """Base of fitted routers; `rule` escalates where `score` reaches the threshold unless a router overrides it."""

    name: str = "router"
    threshold: float | None = None
    """The operating point: chosen on validation, or given."""
    fitted_with: FittedWith | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from: data, seed, versions."""
    outside: Outside = "escalate"

    kind: ClassVar[ScoreKind | None] = "risk"
    """What its score estimates; None: it has none."""
    needs: ClassVar[frozenset[Need]] = frozenset()
    routes: ClassVar[frozenset[Route]] = frozenset({"continue", "escalate"})
    """The routes that it may take."""
    cites: ClassVar[str] = ""
    colour: ClassVar[str] = "#666666"
    """In figures (Okabe-Ito and Tol: safe for colour-blind readers)."""
    Settings: ClassVar[type[msgspec.Struct] | None] = None
    """A `msgspec.Struct` of the settings that its entry under `routers` may have; None: it has none."""

    @classmethod
    def fit(cls, data: FitData) -> Self:
        """Fit on the router tasks; `data` holds the parts that `cls.needs` names."""
        return cls(fitted_with=data.fitted_with)

    def at(self, threshold: float) -> Self:
        """The same router at another operating point."""
        return replace(self, threshold=threshold)

    def tuned(self, play: Play, data: FitData) -> Self:
        """What is left to do once the router can be played; for most nothing."""
        return self

    @classmethod
    def tuning(cls, budgets: int) -> int:
        """How many routers `tuned` plays at most, with so many budgets."""
        return 0

    def thresholds(self, validation: Sequence[Episode], shares: Sequence[float]) -> list[float]:
        """Operating points to try, the strictest first: thresholds that escalate these shares of the SLM's own steps."""
        return quantiles([self.score(f) for episode in validation for f in features_of(episode)], shares)

    def score(self, features: Features) -> float:
        """What `decide` compares with the threshold."""
        raise NotImplementedError(f"router {self.name} has no score of a step")

    def estimate(self, context: Context, features: Features) -> float:
        """The same for a step of which more is known: its context, with what the SLM proposes."""
        return self.score(features)

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        """What `rule` says, unless the step is unlike all that the router was fitted on."""
        decision = self.rule(context, features, memory, seed=seed)
        if self.model is None or (far := self.model.far(features)) is None:
            return decision
        reason = f"{far} ({decision.reason})"
        if self.outside == "clip":
            return replace(decision, reason=reason)
        route: Route = "continue"
        if self.outside == "escalate":
            route = "escalate" if "escalate" in self.routes else "takeover"
        return replace(decision, route=route, code="out_of_range", propensity=1.0, reason=reason)

    def rule(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        """The decision on features that may be clipped to the range of the fit."""
        assert self.kind is not None
        return compare(self.name, self.kind, self.score(features), self.point)

    @property
    def models(self) -> tuple[str, ...]:
        """The stronger models that its decisions may name."""
        return (TEACHER,)

    @property
    def point(self) -> float:
        """The threshold. Raises ValueError where none was chosen."""
        if self.threshold is None:
            raise ValueError(f"router {self.name} has no threshold yet; choose one with `.at(threshold)`")
        return self.threshold

    @cached_property
    def model(self) -> RiskMLP | None:
        """The fitted model (of several the first), which records the features of its fit; None for a rule."""
        fields = [getattr(self, f.name) for f in dataclasses.fields(self)]
        parts = [part for value in fields for part in (value if isinstance(value, tuple) else (value,))]
        return next((part for part in parts if isinstance(part, RiskMLP)), None)

    def save(self, folder: Path) -> None:
        """Write the folder; each file appears whole."""
        arrays: dict[str, np.ndarray] = {}

        def array(value: Any) -> Any:
            if isinstance(value, InnerRouter):
                return {"kind": kind_of(type(value.router)), **msgspec.to_builtins(value.router, enc_hook=array)}
            if not isinstance(value, np.ndarray):
                raise TypeError(f"a router cannot hold a {type(value).__name__}")
            arrays[str(len(arrays))] = value
            return str(len(arrays) - 1)

        state = msgspec.to_builtins(self, enc_hook=array)
        description = {"format": FORMAT, "kind": kind_of(type(self)), **state}
        with whole_file(folder / "weights.safetensors") as aside:
            aside.write_bytes(to_bytes(arrays))
        write_text(folder / "README.md", _card(self))
        write_text(folder / "router.json", json.dumps(description, indent=2, allow_nan=False) + "\n")


class InnerRouter:
    """A router within another one, whose folder holds it, too."""

    def __init__(self, router: RouterBase) -> None:
        self.router = router


def kind_of(router: type[RouterBase]) -> str:
    """The import path of a router's class."""
    return f"{router.__module__}:{router.__qualname__}"


def own_settings(router: type[RouterBase], options: Mapping[str, Any]) -> Any:
    """A router's own settings as its `Settings`. Raises SettingsError for an unknown key or a wrong value."""
    known: tuple[str, ...] = getattr(router.Settings, "__struct_fields__", ())
    if unknown := sorted(set(options) - set(known)):
        raise SettingsError(f"router {router.name} has no setting {unknown[0]}; known: {', '.join(known) or 'none'}")
    if router.Settings is None:
        return None
    try:
        return msgspec.convert(dict(options), router.Settings)
    except msgspec.ValidationError as error:
        raise SettingsError(f"router {router.name}: {error}") from None


def features_of(episode: Episode) -> list[Features]:
    """The features of each step that has some."""
    return [step.choice.features for step in episode.steps if step.choice.features is not None]


def quantiles(scores: Sequence[float], shares: Sequence[float]) -> list[float]:
    """Thresholds that these shares of the scores reach, each once."""
    found = np.quantile(scores, [1 - share for share in shares], method="higher")
    return [float(q) for q in dict.fromkeys(found.tolist())]


def _card(router: RouterBase) -> str:
    facts = {**router.facts, **(router.model.facts if router.model else {})}
    lines = "\n".join(f"- {key.replace('_', ' ')}: {value}" for key, value in facts.items())
    point = "not chosen yet" if router.threshold is None else f"{router.threshold:.4f}"
    valid = "It was fitted on nothing."
    if (c := router.fitted_with) is not None:
        valid = (
            f"It was fitted with {c.k or 'varying'} candidates a step, a horizon of {c.horizon or 'varying'} steps and the "
            f"verifier {c.verifier or 'of its gateway'}: it is valid for these, for its SLM and for such tasks."
        )
    return f"""# Router {router.name}

{(type(router).__doc__ or "").strip().splitlines()[0]}
{router.cites}

Operating point: {point}. {valid}

{lines}

`r2v.load_router(folder).decide(context, features, memory, seed=0)` needs NumPy alone.
"""
