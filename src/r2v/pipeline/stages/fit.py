"""7 fit: routers on the SLM's own rollouts; calibration and thresholds on validation tasks, never on test tasks.

Every router gets the same treatment: its thresholds are quantiles of its own score on the SLM's validation steps (or
what its class says), each is played in closed loop on the validation tasks, and the rule of the settings picks one. The
rule `share` plays none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from r2v.core.types import TEACHER
from r2v.evaluation.operating_point import Point, choose, in_words
from r2v.pipeline.agents import AgentSpec
from r2v.pipeline.play import at, outcomes, play, routed_at
from r2v.pipeline.runner import StageContext
from r2v.routers.base import FittedWith, Play, RouterBase
from r2v.routers.fit_data import FitData
from r2v.runtime.store import write_json
from r2v.verifiers import source_sha256


def fit(ctx: StageContext) -> None:
    import torch

    settings, run = ctx.settings, ctx.run
    torch.set_num_threads(settings.threads)
    data = _data(ctx)
    routers = {name: router.fit(data) for name, (router, _) in settings.chosen_routers.items()}
    of_pool = {f"{key} of {member.name}": q for member, own in data.pool for key, q in own.quality.items()}
    write_json(ctx.out / "validation.json", data.quality | of_pool)
    tuning: list[float] = []
    routers = {name: router.tuned(_player(ctx, name, tuning), data) for name, router in routers.items()}
    for name, router in routers.items():
        router.save(ctx.out / name)
    chosen = _by_share(ctx, routers, data) if settings.evaluate.rule == "share" else _by_playing(ctx, routers, data)
    for name, found in chosen["routers"].items():
        routers[name].at(found["threshold"]).save(ctx.out / name)
    alone, conditions = [bool(episode.success) for episode in data.validation], data.fitted_with
    selection = {
        "fitted_with": {"verifier": conditions.verifier, "k": conditions.k, "horizon": conditions.horizon},
        "rule": in_words(settings.evaluate, settings.router.alpha),
        "target": settings.evaluate.target,
        "slm_success": sum(alone) / len(alone),
        "tasks": len(run.split("validation")),
        "teacher_calls_tuning": sum(tuning),
    }
    write_json(ctx.out / "thresholds.json", selection | chosen)


def _by_playing(ctx: StageContext, routers: Mapping[str, RouterBase], data: FitData) -> dict[str, Any]:
    """The threshold of each router that the rule picks of those that were played on the validation tasks."""
    settings, run = ctx.settings, ctx.run
    shares = sorted(settings.evaluate.asked_shares)
    grid = {name: router.thresholds(data.held, shares) for name, router in routers.items()}
    tasks, seeds = run.split("validation"), settings.perturbations.validation
    agents = {"llm_only": AgentSpec("teacher"), **routed_at(grid, ctx.out, run.slm)}
    rows, _ = play(ctx, agents, tasks, seeds, "validation", max_calls=settings.evaluate.max_calls)
    played = {name: outcomes(ctx, rows[name], tasks, seeds, settings.perturbations.kinds) for name in agents}
    teacher_success = float(played["llm_only"].success_TZ.mean())
    chosen, unmet = {}, []
    for name, thresholds in grid.items():
        points = [Point(threshold, played[at(name, threshold)]) for threshold in thresholds]
        point = choose(points, settings.evaluate, teacher_success, settings.router.alpha)
        tried = [[float(p.outcomes.call_rate_TZ.mean()), p.success, p.calls] for p in points]
        if not point.met:
            unmet.append(name)
        chosen[name] = {"threshold": point.threshold, "grid": list(thresholds), "validation": tried}
    return {
        "unmet": unmet,
        "teacher_success": teacher_success,
        "teacher_calls": sum(row.teacher_calls for found in rows.values() for row in found),
        "routers": chosen,
    }


def _by_share(ctx: StageContext, routers: Mapping[str, RouterBase], data: FitData) -> dict[str, Any]:
    """The threshold of each router that would escalate the wanted share of the SLM's own validation steps. Nothing is
    played: no call is paid, and what the threshold is worth is not known.
    """
    evaluate, chosen = ctx.settings.evaluate, {}
    for name, router in routers.items():
        threshold = router.thresholds(data.held, [evaluate.share])[0]  # the strictest of a router that has its own
        grid = router.thresholds(data.held, sorted(evaluate.asked_shares))
        chosen[name] = {"threshold": threshold, "grid": list(grid), "validation": []}
    return {"unmet": [], "teacher_success": None, "teacher_calls": 0, "routers": chosen}


def _data(ctx: StageContext) -> FitData:
    """What the rollout stage left for the fits."""
    settings, run, verifier = ctx.settings, ctx.run, ctx.settings.scored_by
    needs = {need for router, _ in settings.chosen_routers.values() for need in router.needs}
    data = FitData(
        recorded=run.rollouts(),
        validation=run.validation_episodes(),
        fitted_with=FittedWith(
            settings.slm.k, settings.environment.horizon, verifier, verifier_sha256=source_sha256(verifier)
        ),
        settings=settings.router,
        seed=settings.seed,
        groups=settings.perturbations.groups,
        budgets=settings.help.budgets,
        max_calls=settings.evaluate.max_calls,
        explored=run.explored() if "exploration" in needs else (),
        redrawn=run.redrawn() if "redraws" in needs else (),
        options={name: options for name, (_, options) in settings.chosen_routers.items()},
        facts={"slm": run.slm.parent.name},
        progress=ctx.report,
    )
    pool = [(m, _with_interventions(ctx, replace(data, quality={}), m.name)) for m in settings.members if "pool" in needs]
    return replace(_with_interventions(ctx, data, TEACHER), pool=pool)


def _with_interventions(ctx: StageContext, data: FitData, model: str) -> FitData:
    """The data, with what the teacher or another model of the pool did in its place."""
    if data.explored:
        data = replace(data, explored=ctx.run.explored(model))
    if (tried := ctx.run.interventions(model)) is None:
        return data
    unlike, unlike_validation = tried.unlike_teacher or ((), ())
    return replace(
        data, differs=tried.differs, differs_validation=tried.differs_validation, branches=tried.branches,
        differs_redrawn=tried.differs_redrawn or (), unlike_teacher=unlike, unlike_teacher_validation=unlike_validation,
    )  # fmt: skip


def _player(ctx: StageContext, name: str, spent: list[float]) -> Play:
    """What a router's `tuned` plays with: validation tasks, and the router tasks under one seed. The sum of the
    teacher calls is added to `spent`.
    """

    def calls(routers: Mapping[str, RouterBase]) -> Mapping[str, Sequence[float]]:
        folder: Path = ctx.partial / f"tuning-{name}"
        for key, router in routers.items():
            router.save(folder / key)
        agents = {key: AgentSpec("routed", ctx.run.slm, folder / key) for key in routers}
        perturbed, found = ctx.settings.perturbations, {key: list[float]() for key in routers}
        for split, seeds in (("validation", perturbed.validation), ("router", perturbed.rollout[:1])):
            most = ctx.settings.evaluate.max_calls
            rows, _ = play(ctx, agents, ctx.run.split(split), seeds, f"{name} {split}", max_calls=most)
            for key in routers:
                found[key] += [row.teacher_calls for row in rows[key]]
        spent.append(sum(map(sum, found.values())))
        return found

    return calls
