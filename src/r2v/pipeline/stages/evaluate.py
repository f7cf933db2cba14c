"""8 evaluate: every router drives real episodes on held-out tasks and seeds; the numbers are in results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from r2v.core.errors import StageError
from r2v.core.protocols import PricedVerifier
from r2v.core.seeds import derive_seed
from r2v.core.types import Episode, Task
from r2v.evaluation.replay import replayable, replayed
from r2v.evaluation.results import Played, Prices, calibration, summarise
from r2v.evaluation.text_attacks import steps_of, text_attacks
from r2v.pipeline.agents import AgentSpec
from r2v.pipeline.oracle_bound import oracle_bound
from r2v.pipeline.play import at, outcomes, play, routed_at
from r2v.pipeline.provenance import provenance
from r2v.pipeline.run_folder import OperatingPoint, RunFolder
from r2v.pipeline.runner import LOCAL, StageContext, study
from r2v.pipeline.settings import FRESH_SEEDS_FROM
from r2v.pipeline.state_oracle import state_oracle
from r2v.routers.base import RouterBase
from r2v.routers.r2v import R2V
from r2v.runtime.executor import ExecutorChoice
from r2v.runtime.store import read_json, write_episodes, write_json
from r2v.verifiers import verifier_named

ENDS = ("slm_only", "llm_only")
"""The ends of every curve, which have no threshold."""
FIRST = "llm_first"
"""The other end where teacher calls are limited: the teacher until they are spent, then the SLM."""
Evaluated = tuple[dict[str, Played], dict[str, list[Episode]]]
"""What came of each router, and its episodes at its operating point, by task and seed."""


def evaluate(ctx: StageContext) -> None:
    evaluate_on(ctx, ctx.run.split("test"), ctx.settings.perturbations.test, "test tasks of the run")


def evaluate_fresh(
    root: Path, out: Path, count: int, seed: int, console: Console, choice: ExecutorChoice = LOCAL
) -> Evaluated:
    """`evaluate_on` of a finished run on new tasks, under perturbation seeds that were never used. Raises StageError.

    Args:
        root: the run.
        out: the folder to write to.
        count: how many tasks.
        seed: of the tasks and their perturbation seeds.
        console: shows progress.
        choice: where it is played.
    """
    run = RunFolder(root)
    settings = run.settings
    run.finished("collect", "clone", "prefer", "rollout", "fit")
    tasks = settings.domain.fresh_tasks(settings.environment, count, derive_seed("fresh tasks", settings.seed, seed))
    known = {task.id for split in run.splits().values() for task in split}
    if overlap := known & {task.id for task in tasks}:
        raise StageError(f"{len(overlap)} of the new tasks are tasks of the run; choose another --seed")
    zs = [FRESH_SEEDS_FROM + seed * 1000 + i for i in range(len(settings.perturbations.test))]
    with study(root, out, "evaluate", console, choice) as ctx:
        return evaluate_on(ctx, tasks, zs, f"fresh tasks, seed {seed}")


def evaluate_on(ctx: StageContext, tasks: Sequence[Task], seeds: Sequence[int], split: str) -> Evaluated:
    """Play every router on every task under every seed; write `results.json` and `episodes.parquet` to `ctx.out`."""
    s, run = ctx.settings, ctx.run
    points, alone = run.operating_points(), (*ENDS, *(f"{name}_only" for name in s.pool))
    routers = {name: run.router(name) for name in points}
    first = () if s.evaluate.max_calls is None else (FIRST,)
    fixed = (*alone, *first)
    label_of = {name: at(name, point.threshold) for name, point in points.items()} | {name: name for name in fixed}
    grid = {name: (*point.grid, point.threshold) for name, point in points.items()}
    singles = {f"{name}_only": AgentSpec("teacher", stronger=name) for name in s.pool}
    agents = {
        "slm_only": AgentSpec("routed", run.slm),
        "llm_only": AgentSpec("teacher"),
        **singles,
        **{name: AgentSpec("routed", run.slm, name) for name in first},
        **routed_at(grid, run.of("fit"), run.slm),
    }
    rows, episodes = play(ctx, agents, tasks, seeds, "routers", keep=list(label_of.values()), max_calls=s.evaluate.max_calls)
    chosen = {name: episodes[label_of[name]] for name in (*fixed, *points)}
    write_episodes(ctx.out / "episodes.parquet", [episode for name in chosen for episode in chosen[name]])

    outcome = {name: outcomes(ctx, found, tasks, seeds) for name, found in rows.items()}
    played = {name: Played(outcome[name], None) for name in fixed}
    for name, point in points.items():
        tried = tuple(outcome[at(name, threshold)] for threshold in point.grid)
        played[name] = Played(outcome[label_of[name]], point.threshold, point.grid, tried)
    common = (seeds, Prices(s.prices.slm, s.prices.teacher), s.router.alpha, s.evaluate.resamples, s.seed)
    summary, differences = summarise(played, *common)
    for name, router in routers.items():
        summary[name] |= {"colour": router.colour, "cites": router.cites}
    again = replayed(
        chosen["slm_only"],
        {
            name: (router, points[name].threshold, points[name].grid)
            for name, router in routers.items()
            if replayable(router.routes) and "pool" not in router.needs
        },
        [task.id for task in tasks],
        seeds,
        s.environment.horizon,
        s.perturbations.groups,
        s.evaluate.max_calls,
    )
    reference = routers["r2v"]
    assert isinstance(reference, R2V)
    counts = {"tasks": len(tasks), "perturbation_seeds": list(seeds)}
    results = {
        "protocol": "closed_loop",
        **counts,
        "max_calls": s.evaluate.max_calls,
        "routers": summary,
        "differences": differences,
        "clairvoyant": oracle_bound(ctx, chosen["slm_only"], summary["llm_only"]["success_rate"]),
        "state_oracle": state_oracle(ctx, tasks, seeds, {name: rows[name] for name in (*ENDS, *first)}),
        "calibration": calibration(reference.risk, chosen["slm_only"], s.environment.horizon),
        "text_attacks": _text_attacks(ctx, routers, points, chosen),
        "replay": {"protocol": "replay", **counts, "routers": summarise(again, *common)[0]},
        "preference": read_json(run.of("prefer") / "choice.json") if s.trains else None,
        "selection": {key: value for key, value in run.selection().items() if key != "routers"},
        "provenance": provenance(ctx, split),
    }
    write_json(ctx.out / "results.json", results)
    return played, chosen


def _text_attacks(
    ctx: StageContext,
    routers: Mapping[str, RouterBase],
    points: Mapping[str, OperatingPoint],
    chosen: Mapping[str, Sequence[Episode]],
) -> dict[str, Any] | None:
    """What changed texts do to each router at its operating point, on steps of its own episodes; None where scoring all of
    them again costs too much, and where the settings want none.
    """
    settings, verifier = ctx.settings, verifier_named(ctx.settings.scored_by)
    runs_code = settings.domain.confinement() is not None
    if not settings.evaluate.attacked_steps or runs_code or isinstance(verifier, PricedVerifier):
        return None
    found = {}
    for done, (name, router) in enumerate(routers.items()):
        ctx.report(done, len(routers), "text attacks")
        steps = steps_of(chosen[name], settings.environment.horizon, settings.evaluate.attacked_steps)
        view = "full" if router.fitted_with is None else router.fitted_with.view
        found[name] = text_attacks(router.at(points[name].threshold), view, verifier, steps)
    return found
