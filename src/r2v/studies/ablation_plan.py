"""Which variants `r2v ablate` compares, table by table; `r2v.studies.ablate` fits and plays them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from r2v.core.features import EXTENDED, NEEDS_LOGPROBS, PAPER, View
from r2v.learning.settings import RouterSettings
from r2v.perturbations import FAMILIES

EPOCHS = 15
"""Of every fit here; the run's own router has more. All rows of a table have the same."""

VERIFIER = ("verifier_spread", "verifier_mean", "verifier_std", "verifier_best", "verifier_worst")
ENTROPY = ("first_token_entropy", "semantic_entropy")
LOGPROB = ("logp_best", "logp_mean", "logp_std")
CONTEXT = ("horizon_fraction", "step_index", "context_length", "goal_length")
GROUPS: dict[str, tuple[str, ...]] = {
    "all": PAPER,
    "verifier+entropy": (*VERIFIER, *ENTROPY),
    "verifier_only": VERIFIER,
    "entropy_only": ENTROPY,
    "logprob_only": LOGPROB,
    "step_context_only": CONTEXT,
    "without_verifier": tuple(name for name in PAPER if name not in VERIFIER),
    "without_entropy": tuple(name for name in PAPER if name not in ENTROPY),
    "all 29": EXTENDED,
}
"""The paper's eight groups of its 15 features, and all of ours."""
ALPHAS = (0.05, 0.1, 0.2, 0.3, 0.5)
EPSILONS = (0.02, 0.05, 0.08, 0.1, 0.13, 0.15)
CANDIDATES = (2, 3, 8)
LAMBDAS = (0.0, 0.05, 0.2, 0.5, 1.0)
TABLES = ("features", "closed", "objective", "labels", "unseen", "cvar", "routes", "consistency", "k")


@dataclass(frozen=True)
class Variant:
    """One router, fitted on the run's own rollouts."""

    table: str
    name: str
    settings: RouterSettings
    names: tuple[str, ...] = PAPER
    objective: Literal["decoupled", "paper"] = "decoupled"
    labels: Literal["failure", "differs"] = "failure"
    view: View = "full"
    without_family: str | None = None
    """Perturbation family whose episodes it is not trained or calibrated on."""
    threshold: float | None = None
    """A fixed one; None: thresholds, and the one that escalates as often as the run's r2v."""
    same_as: str | None = None
    """Key of the variant in another table that is the same router: it is fitted and played once."""

    @property
    def key(self) -> str:
        return self.same_as or f"{self.table} {self.name}"


def variants(settings: RouterSettings, *, with_answers: bool, families: Sequence[str] = FAMILIES) -> list[Variant]:
    """`with_answers`: the run knows where the teacher would have acted differently. `families`: those of its perturbations,
    of which each is left out once; a single one cannot be.
    """
    s = settings.but(epochs=EPOCHS)
    base = Variant("", "", s)
    found = [replace(base, table="features", name=name, names=names) for name, names in GROUPS.items()]
    views: tuple[View, ...] = ("full", "no_entropy", "pseudo_entropy")
    found += [replace(base, table="closed", name=view, view=view) for view in views]
    found += [
        replace(base, table="objective", name=f"{objective}, {len(names)} features", objective=objective, names=names)
        for objective in ("decoupled", "paper")
        for names in (PAPER, EXTENDED)
    ]
    episode = s.but(weighting="episode")
    found += [
        replace(base, table="labels", name="failure, steps alike", names=EXTENDED),
        replace(base, table="labels", name="failure, episodes alike", names=EXTENDED, settings=episode),
    ]
    if with_answers:
        found.append(replace(base, table="labels", name="teacher differs", names=EXTENDED, labels="differs"))
    left_out = families if len(families) > 1 else ()
    found += [replace(base, table="unseen", name=family, names=EXTENDED, without_family=family) for family in left_out]
    found += [
        replace(
            base, table="cvar", name=f"{alpha:g}, {epsilon:g}", objective="paper",
            settings=s.but(alpha=alpha, epsilon=epsilon), threshold=0.5,
        )
        for alpha in ALPHAS
        for epsilon in EPSILONS
    ]  # fmt: skip
    first: dict[Variant, str] = {}
    return [replace(v, same_as=first.setdefault(replace(v, table="", name=""), v.key)) for v in found]


def masked(names: tuple[str, ...], view: View) -> tuple[str, ...]:
    """The features that a view leaves; the stand-in takes the place of the entropy."""
    hidden: set[Any] = set() if view == "full" else set(NEEDS_LOGPROBS)
    return tuple(n for n in names if n not in hidden or (view == "pseudo_entropy" and n == "first_token_entropy"))
