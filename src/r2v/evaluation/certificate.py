"""A certificate: the cheapest threshold whose failure rate is proven below a bound (method, section 7; Learn-then-Test).

The bound is a failure rate, or a share of the teacher's success on the same episodes; on all episodes, or in their worst
groups. Tasks are the exchangeable unit. The proof holds for tasks drawn like those that were played, under these kinds of
perturbations, with exactly these models and settings, and for nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from r2v.core.errors import ArtifactError
from r2v.core.untrusted import read_json
from r2v.evaluation.tail import against_teacher, failures, worst_mean, worst_p
from r2v.maths.testing import fixed_sequence
from r2v.runtime.store import write_json

if TYPE_CHECKING:
    from r2v.evaluation.outcomes import Outcomes

FORMAT = 1
Share = Annotated[float, Meta(ge=0, le=1)]


@dataclass(frozen=True)
class Target:
    max_failure: Share | None
    """None: the bound is relative to the teacher."""
    delta: Share
    """Probability with which the certificate may be wrong."""
    alpha: Share | None
    """None: all episodes; else CVaR, the worst share alpha of their groups (`perturbations.groups`)."""
    relative: Share | None = None
    """The share of the teacher's success that must be exceeded."""

    def __post_init__(self) -> None:
        if (self.max_failure is None) == (self.relative is None):
            raise ValueError("a target bounds the failure rate, or the success relative to the teacher's")

    @property
    def claim(self) -> str:
        """What a certificate of it says, in words."""
        if self.relative is None:
            claim = f"failure rate below {self.max_failure:g}"
        else:
            claim = f"success rate above {self.relative:.4g} of the teacher's"
        return claim if self.alpha is None else f"{claim} in the worst {self.alpha:.4g} of the groups of episodes"


@dataclass(frozen=True)
class Tried:
    """One threshold, in the order of the tests."""

    threshold: float
    failure: Share
    """Observed, in the groups that the target is about."""
    p: float
    calls_per_episode: Annotated[float, Meta(ge=0)]
    shortfall: Annotated[float, Meta(ge=-1, le=1)] | None = None
    """Of a relative target: that share of the teacher's success less the router's, in its worst groups."""


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


def certified(
    points: Sequence[tuple[float, Outcomes]], target: Target, teacher: Outcomes | None = None
) -> tuple[float | None, tuple[Tried, ...]]:
    """(the cheapest proven threshold or None, what was tried).

    Args:
        points: from the safest to the cheapest, an order that must not come from these outcomes.
        teacher: the teacher alone on the same tasks and seeds, for a relative target.
    """
    if target.relative is None:
        assert target.max_failure is not None
        losses = [failures(o, target.max_failure) for _, o in points]
    elif teacher is None:
        raise ValueError("a relative target needs the teacher's episodes")
    else:
        losses = [against_teacher(o, teacher, target.relative) for _, o in points]
    tried = [
        Tried(
            threshold, worst_mean(failures(o, 0), target.alpha), p, float(o.teacher_calls_TZ.mean()),
            None if target.relative is None else worst_mean(of_one, target.alpha),
        )
        for (threshold, o), of_one, p in zip(points, losses, worst_p(losses, target.alpha, target.delta), strict=True)
    ]  # fmt: skip
    proven = fixed_sequence([t.p for t in tried], target.delta)
    cheapest = min(tried[:proven], key=lambda t: t.calls_per_episode, default=None)
    return (None if cheapest is None else cheapest.threshold), tuple(tried)


def read_certificate(path: Path) -> Certificate:
    """Whatever it was made for. Raises ArtifactError when it is damaged."""
    try:
        raw = read_json(path)
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']}, this r2v reads {FORMAT}")
        certificate = msgspec.convert(raw, Certificate)
        if certificate.threshold is not None and certificate.calls_per_episode is None:
            raise ValueError(f"the threshold {certificate.threshold} was not tried")
        return certificate
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist; make a certificate with `r2v certify RUN`") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is not a certificate ({error}); make one with `r2v certify RUN`") from None


def load_certificate(path: Path, identity: Mapping[str, str]) -> Certificate:
    """Raises ArtifactError when it was made for other models, another router or other settings, or is damaged."""
    certificate = read_certificate(path)
    made_for = certificate.identity
    if other := sorted(key for key in {*identity, *made_for} if identity.get(key) != made_for.get(key)):
        raise ArtifactError(f"{path} was made for another {', '.join(other)}; it proves nothing here: run `r2v certify`")
    return certificate
