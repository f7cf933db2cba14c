"""`r2v ablate`: the paper's ablation tables on a finished run, in closed loop and in replay side by side.

All variants share the rollouts and their features; on test tasks all play together, so what they do alike is played once.
Only the consistency sweep and K need new rollouts, on fewer tasks, because there the SLM acts differently.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from r2v import __version__
from r2v.core.features import PAPER, batch, with_pseudo_entropy
from r2v.core.mlp import Calibration, RiskMLP
from r2v.core.types import Episode, Task
from r2v.evaluation.curves import area_B, interval, resample_BT
from r2v.evaluation.outcomes import Outcomes, gather
from r2v.evaluation.replay import escalated_steps, replay
from r2v.learning.labels import Rows, failure_rows
from r2v.learning.settings import RouterSettings
from r2v.maths import Floats
from r2v.maths.calibration import brier, ece, fit_scaling
from r2v.maths.stats import auroc_or_none
from r2v.perturbations import BY_SEED, GroupPart, family_of
from r2v.pipeline.agents import AgentSpec
from r2v.pipeline.play import at, play, routed_at
from r2v.pipeline.preference import train_preferences
from r2v.pipeline.run_folder import ORDER, RunFolder
from r2v.pipeline.runner import StageContext
from r2v.routers import load_router
from r2v.routers.base import FittedWith
from r2v.routers.interventions import HOW, Intervention
from r2v.routers.r2v import R2V
from r2v.runtime.store import whole_file
from r2v.studies.ablation_plan import CANDIDATES, EPOCHS, LAMBDAS, TABLES, Variant, masked, variants

RECALIBRATION = 50
"""Episodes of an unseen perturbation family on which the risk is recalibrated."""
SHARES = (0.06, 0.3)
"""Operating points of the curves: shares of the SLM's own validation steps that are escalated."""
TEST_TASKS = 90
"""Of the run's test tasks, so that the whole sweep takes some ten minutes."""
REMADE_TASKS = 100
REMADE_SEEDS = 2


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of steps with what selects them."""

    rows: Rows
    """All features; labels are failures."""
    pseudo_N: Floats
    """The stand-in for the entropy."""
    differs_N: Floats
    """NaN where it is not known."""
    family_N: np.ndarray[Any, Any]

    def of(self, variant: Variant, keep_N: np.ndarray[Any, Any] | None = None) -> Rows:
        names = masked(variant.names, variant.view)
        rows = self.rows.columns(names)
        if variant.view == "pseudo_entropy":
            rows.x_NF[:, names.index("first_token_entropy")] = self.pseudo_N  # a copy: columns are
        if variant.labels != "failure":
            rows = replace(rows, y_N=self.differs_N)
        return rows if keep_N is None else rows.where(keep_N)


def table(
    episodes: Sequence[Episode], differs: Sequence[Sequence[bool]] | None, groups: Sequence[GroupPart] = BY_SEED
) -> Table:
    rows = failure_rows(episodes, groups=groups)
    choices = [step.choice for episode in episodes for step in episode.steps]
    pseudo, _ = batch([with_pseudo_entropy(c.features, c.scores) for c in choices if c.features is not None])
    unknown = np.full(len(rows), np.nan)
    return Table(
        rows,
        pseudo[:, 0],
        unknown if differs is None else np.array([d for of_episode in differs for d in of_episode], dtype=float),
        np.array([episode.perturbation for episode in episodes for _ in episode.steps]),
    )


def save_table(path: Path, t: Table) -> None:
    r = t.rows
    with whole_file(path) as aside, aside.open("wb") as file:
        np.savez(
            file, x=r.x_NF, present=r.present_NF, y=r.y_N, group=r.group_N, episode=r.episode_N, pseudo=t.pseudo_N,
            differs=t.differs_N, family=t.family_N,
        )  # fmt: skip


@lru_cache(maxsize=4)
def load_table(path: Path) -> Table:
    with np.load(path, allow_pickle=False) as a:
        rows = Rows(a["x"], a["present"], a["y"], a["group"], a["episode"])
        return Table(rows, a["pseudo"], a["differs"], a["family"])


@dataclass(frozen=True)
class FitJob:
    variant: Variant
    train: Path
    held: Path
    out: Path
    seed: int


def fit_variant(job: FitJob) -> str:
    """Fit one variant and write its folder; in a worker process with one thread."""
    import torch

    from r2v.learning.router import fit_mlp

    torch.set_num_threads(1)
    v, train, held = job.variant, load_table(job.train), load_table(job.held)
    without = [None if v.without_family is None else t.family_N != v.without_family for t in (train, held)]
    rows, check = train.of(v, without[0]), held.of(v, without[1])
    risk = fit_mlp(rows, check, masked(v.names, v.view), v.settings, v.objective, seed=job.seed)
    R2V(name=v.key, risk=risk, fitted_with=FittedWith(None, None, None, view=v.view)).save(job.out)
    return str(job.out)


def _risk_in(folder: Path) -> RiskMLP:
    router = load_router(folder)
    assert isinstance(router, R2V)
    return router.risk


def fingerprint(run: RunFolder) -> str:
    """Hash of a finished run: its settings and the outputs of all its stages, up to the fit."""
    outputs = {stage: run.manifest(stage)["outputs"] for stage in ORDER if stage not in ("evaluate", "report")}
    facts = {"settings": msgspec.to_builtins(run.settings), "outputs": outputs, "r2v": __version__}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def ablate(ctx: StageContext, only: Collection[str] = TABLES) -> dict[str, Any]:
    """The tables that are wanted; `ctx.out` is a scratch folder, whose finished jobs are kept if this is killed."""
    settings, run = ctx.settings, ctx.run
    slm, tried = run.slm, run.interventions()
    recorded, held = run.rollouts(), run.validation_episodes()
    paths = {"train": ctx.partial / "train.npz", "held": ctx.partial / "held.npz"}
    scored = _scored(recorded, None if tried is None else tried.differs)
    save_table(paths["train"], table(*scored, settings.perturbations.groups))
    save_table(paths["held"], table(*_scored(held, None if tried is None else tried.differs_validation)))
    tasks, seeds = run.split("test")[:TEST_TASKS], settings.perturbations.test
    named = settings.perturbations.families
    tested = {family_of(task.id, z, named) for task in tasks for z in seeds}
    everywhere = tested & {e.perturbation for e in recorded} & {e.perturbation for e in held}
    families = [family for family in dict.fromkeys(named) if family in everywhere]
    planned = variants(settings.router, with_answers=tried is not None, families=families)
    plan = [v for v in planned if v.table in only]
    fitted = ctx.partial / "routers"
    distinct = {v.key: v for v in plan}.values()
    ctx.map(fit_variant, [FitJob(v, paths["train"], paths["held"], fitted / v.key, settings.seed) for v in distinct], "fits")
    held_table = load_table(paths["held"])
    share, risk = _escalated_share(ctx, held_table), _risk_in(run.router_folder("r2v"))
    positions = {v.key: _positions(v, _risk_in(fitted / v.key), held_table, share) for v in distinct}
    agents = _ends(ctx, slm)
    alarms = _positions(Variant("", "", settings.router, names=risk.names), risk, held_table, share)
    routes = HOW if "routes" in only else ()
    for how in routes:
        Intervention(name=f"route {how}", risk=risk, how=how).save(fitted / f"route {how}")
    agents |= routed_at({f"route {how}": alarms for how in routes}, fitted, slm)
    for v in distinct:
        agents |= {at(v.key, t): AgentSpec("routed", slm, fitted / v.key, t) for t in positions[v.key]}
    rows, episodes = play(ctx, agents, tasks, seeds, "test", keep=["slm_only"], max_calls=settings.evaluate.max_calls)
    test = Test(ctx, tasks, {name: _gather(ctx, tasks, r) for name, r in rows.items()}, episodes["slm_only"])
    tables: dict[str, list[dict[str, Any]]] = {}
    for v in plan:
        tables.setdefault(v.table, []).append(test.measure(v, fitted, positions[v.key], held_table))
    if routes:
        tables["routes"] = [{"name": how, **test.curve(f"route {how}", alarms)} for how in routes]
    if settings.prefer.enabled and "consistency" in only:
        tables["consistency"] = [
            _remade(ctx, f"consistency {weight:g}", f"{weight:g}", _preferred(ctx, weight), settings.slm.k)
            for weight in LAMBDAS
        ]
    if "k" in only:
        tables["k"] = [_remade(ctx, f"k {k}", str(k), slm, k) for k in sorted({*CANDIDATES, settings.slm.k})]
    return {
        "tasks": len(tasks),
        "perturbation_seeds": list(seeds),
        "epochs": EPOCHS,
        "asked_share": share,
        "slm_only": float(test.outcomes["slm_only"].success_TZ.mean()),
        "llm_only": float(test.outcomes["llm_only"].success_TZ.mean()),
        "tables": tables,
        "verifier": _verifier(episodes["slm_only"]),
        "times": {stage: run.manifest(stage)["seconds"] for stage in ("collect", "perturb", "clone", "propose", "prefer",
                  "rollout", "fit", "evaluate")},
    }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Test:
    """What was played on the test tasks, and the numbers of one variant from it."""

    ctx: StageContext
    tasks: Sequence[Task]
    outcomes: Mapping[str, Outcomes]
    alone: Sequence[Episode]

    @cached_property
    def steps(self) -> Table:
        """The steps of the SLM's own episodes, which every variant is calibrated against."""
        return table(*_scored(self.alone, None))

    def measure(self, v: Variant, fitted: Path, positions: Sequence[float], held: Table) -> dict[str, Any]:
        """The first of `positions` is the operating point, the others are the curve's."""
        family = v.without_family
        numbers = self.curve(v.key, positions, family)
        risk = _risk_in(fitted / v.key)
        if v.view == "full":
            s = self.ctx.settings
            router = R2V(risk=risk, threshold=positions[0])
            steps_of = escalated_steps(router, s.environment.horizon, s.evaluate.max_calls)
            numbers["replay"] = _numbers(_gather(self.ctx, self.tasks, replay(self.alone, steps_of)), family)
        return {"name": v.name, **numbers, **self._calibration(v, risk, held)}

    def curve(self, name: str, positions: Sequence[float], family: str | None = None) -> dict[str, Any]:
        """The operating point, and the area of the curve where all families count and there is one."""
        points = [self.outcomes[at(name, t)] for t in positions]
        numbers: dict[str, Any] = _numbers(points[0], family)
        if family is None and len(points) > 1:
            first = self.outcomes.get("llm_first")
            ends = [self.outcomes["slm_only"], first or self.outcomes["llm_only"]]
            weights_BT = resample_BT(len(self.tasks), self.ctx.settings.evaluate.resamples, self.ctx.settings.seed)
            areas = area_B([*points[1:], *ends], weights_BT, first)
            numbers |= {"area": float(areas[0]), "area_ci95": interval(areas)}
        return numbers

    def _calibration(self, v: Variant, model: RiskMLP, held: Table) -> dict[str, Any]:
        if v.labels != "failure":
            return {}
        test = self.steps
        keep_N = np.ones(len(test.rows), dtype=bool) if v.without_family is None else test.family_N == v.without_family
        rows = test.of(v, keep_N)
        p_N = model.risk(rows.x_NF, rows.present_NF)
        numbers = {"ece": ece(p_N, rows.y_N), "brier": brier(p_N, rows.y_N), "auroc": auroc_or_none(p_N, rows.y_N)}
        if v.without_family is not None:
            recalibrated = _recalibrated(v, model, held)
            p_N = recalibrated.risk(rows.x_NF, rows.present_NF)
            numbers |= {"ece_recalibrated": ece(p_N, rows.y_N), "episodes": len(np.unique(rows.episode_N))}
        return numbers


def _recalibrated(v: Variant, model: RiskMLP, held: Table) -> RiskMLP:
    """Slope and bias refitted on some validation episodes of the family that it has not seen."""
    of_family_N = held.family_N == v.without_family
    few = np.unique(held.rows.episode_N[of_family_N])[:RECALIBRATION]
    rows = held.of(v, of_family_N & np.isin(held.rows.episode_N, few))
    slope, bias = fit_scaling(model.logit(rows.x_NF, rows.present_NF), rows.y_N, with_bias=True)
    return replace(model, calibration=Calibration(slope, bias))


def _numbers(o: Outcomes, family: str | None) -> dict[str, Any]:
    where = slice(None) if family is None else o.family_TZ == family
    return {
        "success_rate": float(o.success_TZ[where].mean()),
        "llm_call_rate": float(o.call_rate_TZ[where].mean()),
        "calls_per_episode": float(o.teacher_calls_TZ[where].mean()),
        "steps_per_episode": float(o.steps_TZ[where].mean()),
    }


def _ends(ctx: StageContext, slm: Path) -> dict[str, AgentSpec]:
    """The agents at the ends of the curves: `llm_first` is one where teacher calls are limited."""
    first = {} if ctx.settings.evaluate.max_calls is None else {"llm_first": AgentSpec("routed", slm, "llm_first")}
    return {"slm_only": AgentSpec("routed", slm), "llm_only": AgentSpec("teacher"), **first}


def _escalated_share(ctx: StageContext, held: Table) -> float:
    """Share of the SLM's own validation steps on which the run's r2v would escalate."""
    model = _risk_in(ctx.run.router_folder("r2v"))
    rows = held.of(Variant("", "", RouterSettings(), names=model.names))
    return float((model.risk(rows.x_NF, rows.present_NF) >= ctx.run.operating_points()["r2v"].threshold).mean())


def _positions(v: Variant, model: RiskMLP, held: Table, share: float) -> list[float]:
    if v.threshold is not None:
        return [v.threshold]
    rows = held.of(v)
    p_N = model.risk(rows.x_NF, rows.present_NF)
    shares = [share, *SHARES]
    return list(dict.fromkeys(np.quantile(p_N, [1 - s for s in shares], method="higher").tolist()))


def _scored(
    episodes: Sequence[Episode], differs: Sequence[Sequence[bool]] | None
) -> tuple[list[Episode], list[Sequence[bool]] | None]:
    kept = [i for i, episode in enumerate(episodes) if episode.success is not None]
    return [episodes[i] for i in kept], None if differs is None else [differs[i] for i in kept]


def _gather(ctx: StageContext, tasks: Sequence[Task], rows: Sequence[Any]) -> Outcomes:
    seeds = sorted({r.seed for r in rows})
    return gather(rows, [task.id for task in tasks], seeds, ctx.settings.environment.horizon)


def _preferred(ctx: StageContext, weight: float) -> Path:
    """The SLM after preference training with this weight of the consistency loss."""
    if weight == ctx.settings.prefer.lambda_cons:
        return ctx.run.preferred
    out = ctx.partial / f"prefer {weight:g}"
    if not (out / "config.json").exists():
        train_preferences(ctx, ctx.settings.prefer.but(lambda_cons=weight), out)
    return out


def _remade(ctx: StageContext, label: str, name: str, slm: Path, k: int) -> dict[str, Any]:
    """Another SLM, or another number of candidates: new rollouts, a router fitted on them, played on test tasks."""
    settings = ctx.settings.but(slm=ctx.settings.slm.but(k=k))
    there = replace(ctx, settings=settings)
    tasks, seeds = ctx.run.split("router")[:REMADE_TASKS], settings.perturbations.rollout[:REMADE_SEEDS]
    if slm == ctx.run.slm and k == ctx.settings.slm.k:  # the run itself played these
        ids = {task.id for task in tasks}
        played = [e for e in ctx.run.rollouts() if e.task.id in ids and e.seed in seeds]
    else:
        _, by_name = play(there, {"slm_only": AgentSpec("routed", slm)}, tasks, seeds, f"rollout {label}", keep=["slm_only"])
        played = by_name["slm_only"]
    episodes = [e for e in played if e.success is not None]
    train, held, out = ctx.partial / f"{label} train.npz", ctx.partial / f"{label} held.npz", ctx.partial / "routers"
    validation = {task.id for task in tasks[::5]}  # a fifth of the tasks calibrates
    save_table(train, table([e for e in episodes if e.task.id not in validation], None))
    save_table(held, table([e for e in episodes if e.task.id in validation], None))
    v = Variant(label, name, settings.router.but(epochs=EPOCHS), names=PAPER)
    ctx.map(fit_variant, [FitJob(v, train, held, out / v.key, settings.seed)], f"fit {label}")
    held_table = load_table(held)
    positions = _positions(v, _risk_in(out / v.key), held_table, _escalated_share(ctx, held_table))
    agents = _ends(ctx, slm) | {at(v.key, t): AgentSpec("routed", slm, out / v.key, t) for t in positions}
    test, most = ctx.run.split("test")[:TEST_TASKS], settings.evaluate.max_calls
    rows, alone = play(there, agents, test, settings.perturbations.test, f"test {label}", keep=["slm_only"], max_calls=most)
    measured = Test(there, test, {n: _gather(there, test, r) for n, r in rows.items()}, alone["slm_only"])
    slm_only = float(measured.outcomes["slm_only"].success_TZ.mean())
    return {"slm_only": slm_only, **measured.measure(v, out, positions, held_table)}


def _verifier(alone: Sequence[Episode]) -> dict[str, Any]:
    """How well the mean verifier score of an episode's executed actions separates solved from failed episodes."""
    scored = [e for e in alone if e.success is not None and e.steps]
    mean_N = np.array([np.mean([max(step.choice.scores) for step in e.steps]) for e in scored])
    failed_N = np.array([not e.success for e in scored], dtype=float)
    length_N = np.array([len(e.steps) for e in scored])
    return {
        "failed_steps": float((failed_N * length_N).sum() / length_N.sum()),
        "mean_success": float(mean_N[failed_N == 0].mean()) if (failed_N == 0).any() else None,
        "mean_failure": float(mean_N[failed_N == 1].mean()) if failed_N.any() else None,
        "episode_auroc": auroc_or_none(-mean_N, failed_N),
    }
