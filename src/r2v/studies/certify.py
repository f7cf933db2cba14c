"""`r2v certify`: plays a finished run on new tasks and proves what can be proven about its thresholds."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from random import Random
from typing import Any

import msgspec

from r2v import __version__
from r2v.core.errors import SettingsError, StageError
from r2v.core.seeds import derive_seed
from r2v.core.types import Task
from r2v.evaluation.certificate import Certificate, Target, certified
from r2v.pipeline.agents import AgentSpec
from r2v.pipeline.play import at, outcomes, play, routed_at
from r2v.pipeline.run_folder import OperatingPoint
from r2v.pipeline.runner import StageContext
from r2v.pipeline.settings import CERTIFY_SEEDS_FROM, PerturbationSettings, RunSettings
from r2v.runtime.store import sha256
from r2v.verifiers import source_sha256

SUBJECT = ("environment", "perturbations", "teacher", "slm")
"""Settings groups that the proof is about."""
SHARES = tuple(0.01 * 1.2**i for i in range(25))
"""Of the SLM's own validation steps: thresholds that escalate these are tried, beside those of the settings; .01 to .79."""


def certify(ctx: StageContext, router: str, target: Target, *, tasks: int, seed: int) -> Certificate:
    """Fresh tasks and perturbation seeds that no evaluation uses. The thresholds are tested from the one with the best
    success on validation to the one with the fewest calls; those with more calls than the first are left out.
    """
    settings, points = ctx.settings, ctx.run.operating_points()
    if router not in points:
        raise SettingsError(f"no router {router} with a threshold in this run; there are {', '.join(points)}")
    if not points[router].validation:
        raise StageError(
            f"the thresholds of {router} were never played on validation tasks (evaluate.rule: share), so there is no order "
            "to test them in; run `r2v run` again with another rule"
        )
    fresh = drawn(settings, tasks, seed)
    own = {task.id for split in ctx.run.splits().values() for task in split}
    if known := own & {task.id for task in fresh}:
        raise StageError(f"{len(known)} of the new tasks are tasks of the run; choose another --seed")
    zs = [CERTIFY_SEEDS_FROM + seed * 1000 + i for i in range(_episodes_of_a_task(settings.perturbations))]
    order = _order(ctx, router, points[router])
    agents = routed_at({router: order}, ctx.run.of("fit"), ctx.run.slm)
    if target.relative is not None:
        agents = {"llm_only": AgentSpec("teacher"), **agents}
    rows, _ = play(ctx, agents, fresh, zs, "certify", max_calls=settings.evaluate.max_calls)
    played = {name: outcomes(ctx, found, fresh, zs, settings.perturbations.kinds) for name, found in rows.items()}
    threshold, tried = certified([(t, played[at(router, t)]) for t in order], target, played.get("llm_only"))
    date = datetime.now(UTC).date().isoformat()
    return Certificate(router, target, threshold, tasks, tuple(zs), tried, identity(ctx, router), date)


def drawn(settings: RunSettings, tasks: int, seed: int) -> Sequence[Task]:
    """Fresh tasks in an order that is drawn: a bet on one depends on those before it, and a domain may hand out tasks in an
    order of its own (by kind, say), in which they are not exchangeable.
    """
    own = derive_seed("fresh tasks", settings.seed, CERTIFY_SEEDS_FROM + seed)
    fresh = settings.domain.fresh_tasks(settings.environment, tasks, own)
    return Random(derive_seed("order of a certificate", own)).sample(fresh, len(fresh))


def _episodes_of_a_task(perturbations: PerturbationSettings) -> int:
    """As many as the run's test has, and enough for each task to meet each kind of disturbance: what a task shows of a kind
    is then worth most."""
    counts = {
        "family": len(perturbations.families),
        "severity": len(perturbations.test_severities or perturbations.severities),
    }
    return max(len(perturbations.test), math.prod(counts.get(part, 1) for part in perturbations.kinds))


def _order(ctx: StageContext, router: str, points: OperatingPoint) -> list[float]:
    """Thresholds from the safest to the cheapest. There are more of them than validation played: a test costs nothing while
    all before it succeed, and the step from one to the next is what a proof wastes.
    """
    held = [episode for episode in ctx.run.validation_episodes() if episode.success is not None]
    shares = sorted({*ctx.settings.evaluate.asked_shares, *SHARES})
    loosest_first = ctx.run.router(router).thresholds(held, shares)[::-1]
    best = max(zip(points.validation, points.grid, strict=True), key=lambda tried: (tried[0][1], tried[0][2]))[1]
    return loosest_first[loosest_first.index(best) :] if best in loosest_first else loosest_first


def identity(ctx: StageContext, router: str) -> dict[str, str]:
    """Hashes of the SLM, the router's folder, and the settings that decide what is played."""
    return {
        "small model": sha256(ctx.run.slm),
        "router": sha256(ctx.run.router_folder(router)),
        "settings": subject(ctx.settings),
        "r2v version": __version__,
    }


def subject(settings: RunSettings) -> str:
    """Hash of the settings that the proof is about."""
    dump = msgspec.to_builtins(settings)
    facts: dict[str, Any] = {group: dump[group] for group in SUBJECT}  # what follows is there only where it was set
    if settings.evaluate.max_calls is not None:
        facts["max_calls"] = settings.evaluate.max_calls
    if settings.verifier is not None:
        facts["verifier"] = [settings.verifier, source_sha256(settings.verifier)]
    if settings.pool:
        facts["pool"] = [dump["pool"], dump["prices"]["pool"], settings.prices.teacher]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def describe(certificate: Certificate) -> str:
    """What was proven, in one or two sentences."""
    target = certificate.target
    found = "failure" if target.relative is None else "shortfall"
    where = f"{certificate.tasks} fresh tasks x {len(certificate.perturbation_seeds)} perturbation seeds"
    if certificate.threshold is None:
        best = min(getattr(tried, found) or 0.0 for tried in certificate.tried)
        return (
            f"no threshold of {certificate.router} qualifies: none has a {target.claim} at confidence {1 - target.delta:g} "
            f"({where}; the least observed {found} is {best:.3f})"
        )
    return (
        f"{certificate.router} at threshold {certificate.threshold:.4f} has a {target.claim}, with confidence "
        f"{1 - target.delta:g} ({where}; {certificate.calls_per_episode:.2f} teacher calls an episode)"
    )
