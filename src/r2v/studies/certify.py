"""`r2v certify`: plays a finished run on new tasks and proves what can be proven about its thresholds."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime

from r2v import __version__
from r2v.core.errors import SettingsError, StageError
from r2v.core.seeds import derive_seed
from r2v.evaluation.certificate import Certificate, Target, certified
from r2v.evaluation.outcomes import gather
from r2v.pipeline.play import at, operating_points_of, play_agents
from r2v.pipeline.runner import StageContext
from r2v.pipeline.settings import CERTIFY_SEEDS_FROM
from r2v.pipeline.splits import read_all
from r2v.pipeline.stages.fit import read_operating_points
from r2v.pipeline.stages.prefer import chosen_slm
from r2v.runtime.store import sha256

SUBJECT = ("environment", "perturbations", "teacher", "slm")
"""Settings groups that the proof is about."""


def certify(ctx: StageContext, router: str, target: Target, *, tasks: int, seed: int) -> Certificate:
    """Fresh tasks and perturbation seeds that no evaluation uses. The thresholds are tested from the one with the most calls
    on validation to the one with the fewest.
    """
    settings = ctx.settings
    operating_points = read_operating_points(ctx.read("fit"))
    if router not in operating_points:
        raise SettingsError(f"no router {router} with a threshold in this run; there are {', '.join(operating_points)}")
    new = derive_seed("fresh tasks", settings.seed, CERTIFY_SEEDS_FROM + seed)
    fresh = settings.domain.fresh_tasks(settings.environment, tasks, new)
    if known := {task.id for task in read_all(ctx.read("collect") / "tasks.json")} & {task.id for task in fresh}:
        raise StageError(f"{len(known)} of the new tasks are tasks of the run; choose another --seed")
    zs = [CERTIFY_SEEDS_FROM + seed * 1000 + i for i in range(len(settings.perturbations.test))]
    operating_point = operating_points[router]
    order = [t for _, t in sorted(zip(operating_point.calls, operating_point.grid, strict=True), reverse=True)]
    agents = operating_points_of({router: order}, chosen_slm(ctx), ctx.read("fit"))
    rows, _ = play_agents(ctx, agents, fresh, zs, "certify")
    ids = [task.id for task in fresh]
    points = [(t, gather(rows[at(router, t)], ids, zs, settings.environment.horizon)) for t in order]
    threshold, tried = certified(points, target)
    return Certificate(
        router, target, threshold, tasks, tuple(zs), tried, identity(ctx), datetime.now(UTC).date().isoformat()
    )


def identity(ctx: StageContext) -> dict[str, str]:
    """Hashes of the models, the routers, and the settings that decide what is played."""
    dump = ctx.settings.model_dump(mode="json")
    subject = json.dumps({group: dump[group] for group in SUBJECT}, sort_keys=True)
    return {
        "small model": sha256(chosen_slm(ctx)),
        "router": sha256(ctx.read("fit")),
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
