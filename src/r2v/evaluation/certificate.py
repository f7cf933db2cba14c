"""A certificate: the cheapest threshold whose failure rate is proven below a bound (method, section 7; Learn-then-Test).

Tasks are the exchangeable unit: a row is a task, its loss the mean over its episodes. The proof holds for tasks drawn like
those that were played, under these perturbation seeds, with exactly these models and settings, and for nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
from msgspec import Meta

from r2v.core.errors import ArtifactError
from r2v.maths.testing import betting_p, cvar_p, fixed_sequence
from r2v.runtime.store import read_json, write_json

if TYPE_CHECKING:
    from r2v.evaluation.outcomes import Outcomes

FORMAT = 1
Share = Annotated[float, Meta(ge=0, le=1)]


@dataclass(frozen=True)
class Target:
    max_failure: Share
    delta: Share
    """Probability with which the certificate may be wrong."""
    alpha: Share | None
    """None: the failure rate; else CVaR of it over the perturbation seeds, the worst share alpha of them."""


@dataclass(frozen=True)
class Tried:
    """One threshold, in the order of the tests."""

    threshold: float
    failure: Share
    """Observed, of what the target bounds."""
    p: float
    calls_per_episode: Annotated[float, Meta(ge=0)]


@dataclass(frozen=True)
class Certificate:
    router: str
    target: Target
    threshold: float | None
    """None: no threshold qualifies."""
    tasks: Annotated[int, Meta(ge=1)]
    perturbation_seeds: tuple[int, ...]
    tried: Annotated[tuple[Tried, ...], Meta(min_length=1)]
    identity: Mapping[str, str]
    """Hashes of everything the proof is about: see `r2v.studies.certify`."""
    date: str

    @property
    def calls_per_episode(self) -> float | None:
        return next((t.calls_per_episode for t in self.tried if t.threshold == self.threshold), None)

    def save(self, path: Path) -> None:
        write_json(path, {"format": FORMAT, **asdict(self)})


def certified(points: Sequence[tuple[float, Outcomes]], target: Target) -> tuple[float | None, tuple[Tried, ...]]:
    """(the cheapest proven threshold or None, what was tried). `points` from the safest to the cheapest, an order that
    must not come from these outcomes.
    """
    tried = []
    for threshold, outcomes in points:
        failure_TZ = 1 - outcomes.success_TZ
        if target.alpha is None:
            observed, p = float(failure_TZ.mean()), betting_p(failure_TZ.mean(axis=1), target.max_failure, target.delta)
        else:
            worst = math.ceil(target.alpha * failure_TZ.shape[1] - 1e-12)
            observed = float(np.sort(failure_TZ.mean(axis=0))[-worst:].mean())
            p = cvar_p(failure_TZ, worst, target.max_failure, target.delta)
        tried.append(Tried(threshold, observed, p, float(outcomes.teacher_calls_TZ.mean())))
    proven = fixed_sequence([t.p for t in tried], target.delta)
    cheapest = min(tried[:proven], key=lambda t: t.calls_per_episode, default=None)
    return (None if cheapest is None else cheapest.threshold), tuple(tried)


def read_certificate(path: Path) -> Certificate:
    """Whatever it was made for. Raises ArtifactError when it is damaged."""
    raw = read_json(path)
    try:
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']}, this r2v reads {FORMAT}")
        certificate = msgspec.convert(raw, Certificate)
        if certificate.threshold is not None and certificate.calls_per_episode is None:
            raise ValueError(f"the threshold {certificate.threshold} was not tried")
        return certificate
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is not a certificate ({error}); make one with `r2v certify`") from None


def load_certificate(path: Path, identity: Mapping[str, str]) -> Certificate:
    """Raises ArtifactError when it was made for other models, another router or other settings, or is damaged."""
    certificate = read_certificate(path)
    made_for = certificate.identity
    if other := sorted(key for key in {*identity, *made_for} if identity.get(key) != made_for.get(key)):
        raise ArtifactError(f"{path} was made for another {', '.join(other)}; it proves nothing here: run `r2v certify`")
    return certificate
