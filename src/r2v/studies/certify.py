"""`r2v certify`: plays a finished run on new tasks and proves what can be proven about its thresholds."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime

import msgspec

from r2v import __version__
from r2v.core.errors import SettingsError, StageError
from r2v.core.seeds import derive_seed
from r2v.evaluation.certificate import Certificate, Target, certified
from r2v.pipeline.play import at, outcomes, play, routed_at
from r2v.pipeline.runner import StageContext
from r2v.pipeline.settings import CERTIFY_SEEDS_FROM
from r2v.runtime.store import sha256

SUBJECT = ("environment", "perturbations", "teacher", "slm")
"""Settings groups that the proof is about."""


def certify(ctx: StageContext, router: str, target: Target, *, tasks: int, seed: int) -> Certificate:
    """Fresh tasks and perturbation seeds that no evaluation uses. The thresholds are tested from the one with the most calls
    on validation to the one with the fewest.
    """
    settings, points = ctx.settings, ctx.run.operating_points()
    if router not in points:
        raise SettingsError(f"no router {router} with a threshold in this run; there are {', '.join(points)}")
    fresh = settings.domain.fresh_tasks(
        settings.environment, tasks, derive_seed("fresh tasks", settings.seed, CERTIFY_SEEDS_FROM + seed)
    )
    own = {task.id for split in ctx.run.splits().values() for task in split}
    if known := own & {task.id for task in fresh}:
        raise StageError(f"{len(known)} of the new tasks are tasks of the run; choose another --seed")
    zs = [CERTIFY_SEEDS_FROM + seed * 1000 + i for i in range(len(settings.perturbations.test))]
    order = [t for _, t in sorted(zip(points[router].calls, points[router].grid, strict=True), reverse=True)]
    agents = routed_at({router: order}, ctx.run.of("fit"), ctx.run.slm)
    rows, _ = play(ctx, agents, fresh, zs, "certify", max_calls=settings.evaluate.max_calls)
    tried_points = [(t, outcomes(ctx, rows[at(router, t)], fresh, zs)) for t in order]
    threshold, tried = certified(tried_points, target)
    date = datetime.now(UTC).date().isoformat()
    return Certificate(router, target, threshold, tasks, tuple(zs), tried, identity(ctx, router), date)


def identity(ctx: StageContext, router: str) -> dict[str, str]:
    """Hashes of the SLM, the router's folder, and the settings that decide what is played."""
    dump = msgspec.to_builtins(ctx.settings)
    limit = ctx.settings.evaluate.max_calls
    limited = {} if limit is None else {"max_calls": limit}
    subject = json.dumps({group: dump[group] for group in SUBJECT} | limited, sort_keys=True)
    return {
        "small model": sha256(ctx.run.slm),
        "router": sha256(ctx.run.router_folder(router)),
        "settings": hashlib.sha256(subject.encode()).hexdigest(),
        "r2v version": __version__,
    }


def describe(certificate: Certificate) -> str:
    """What was proven, in one or two sentences."""
    target = certificate.target
    what = "failure rate" if target.alpha is None else f"CVaR {target.alpha:g} of the failure rate over perturbation seeds"
    where = f"{certificate.tasks} fresh tasks x {len(certificate.perturbation_seeds)} perturbation seeds"
    if certificate.threshold is None:
        best = min(certificate.tried, key=lambda tried: tried.failure)
        return (
            f"no threshold of {certificate.router} qualifies: none has a {what} proven below {target.max_failure:g} at "
            f"confidence {1 - target.delta:g} ({where}; the best observed is {best.failure:.3f})"
        )
    return (
        f"{certificate.router} at threshold {certificate.threshold:.4f} has a {what} below {target.max_failure:g}, with "
        f"confidence {1 - target.delta:g} ({where}; {certificate.calls_per_episode:.2f} teacher calls an episode)"
    )
