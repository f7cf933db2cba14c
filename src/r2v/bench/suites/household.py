"""The household with fresh tasks: the routers of a finished run drive real episodes that nobody trained or tuned on.

It is no `Suite` of records: the SLM acts anew after every decision, so it needs one that a run has trained.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from r2v.bench.prices import LIST, Bill
from r2v.core.errors import SettingsError
from r2v.core.types import Episode
from r2v.evaluation.curves import interval, resample_BT, success_at_B
from r2v.evaluation.outcomes import Outcomes
from r2v.evaluation.results import Played
from r2v.maths import Floats
from r2v.pipeline.run_folder import RunFolder
from r2v.pipeline.stages.evaluate import ENDS, evaluate_fresh
from r2v.routers.r2v import R2V
from r2v.runtime.executor import ExecutorChoice

NAME = "household"
RANDOM = "random"
MAKE = "`r2v run examples/household.yaml --out RUN`"
SLM, EXPERT = "llama-2-13b", "gpt-4"
"""What both cost: a model trained from scratch and a program, priced as models that would be asked in their places."""


def bench(
    run: Path | None, tasks: int = 60, *, seed: int = 1, out: Path | None = None, choice: ExecutorChoice | None = None
) -> dict[str, Any]:
    """Every router of a run on fresh tasks, with random escalation and handing over at step 0 beside it.

    Args:
        run: folder of a finished run of the household.
        tasks: how many, each under as many perturbation seeds as the run's test tasks.
        seed: of the tasks.
        out: keeps `results.json` and `episodes.parquet`.
        choice: where it is played.

    Returns:
        `rows` and `nulls` (see `table`), with what else a suite of the bench says.

    Raises:
        SettingsError: there is no such run.
        StageError, ArtifactError: it is not finished, or damaged.
    """
    if run is None:
        raise SettingsError(
            f"{NAME} plays an SLM that a run has trained: make one with {MAKE}, and name its folder with --run"
        )
    folder = RunFolder(run)
    if (kind := folder.settings.environment.kind) != NAME:
        raise SettingsError(f"{run} is a run of the domain {kind}; make one of the household with {MAKE}")
    folder.finished("fit")
    if RANDOM not in folder.operating_points():
        raise SettingsError(f"{run} has no router {RANDOM} to compare with; add it to `routers` and make the run again")
    with tempfile.TemporaryDirectory() as aside:
        played, episodes = evaluate_fresh(
            run, out or Path(aside), tasks, seed, Console(stderr=True), choice or ExecutorChoice()
        )
    router = folder.router("r2v")
    assert isinstance(router, R2V)  # every run has it
    risk_N = np.array([_first_risk(router, episode) for episode in episodes["slm_only"]])
    usd = {name: float(np.mean([cost(episode) for episode in found])) for name, found in episodes.items()}
    weights_BT = resample_BT(len(played["slm_only"].chosen.success_T), folder.settings.evaluate.resamples, seed)
    facts = {
        "tasks": weights_BT.shape[1], "episodes": len(risk_N), "seed": seed, "strong": "the household's expert",
        "prices": f"list prices of {SLM} for the SLM, which the run trained, and of {EXPERT} for the expert, a program",
    }  # fmt: skip
    return {"suite": NAME, **table(played, usd, risk_N, weights_BT), "fidelity": {}, "facts": facts}


def table(played: Mapping[str, Played], usd: Mapping[str, float], risk_N: Floats, weights_BT: Floats) -> dict[str, Any]:
    """Rows and nulls.

    Args:
        played: every router, both ends and `random` among them.
        usd: what an episode of each cost.
        risk_N: risk of each episode of the SLM at its first step, by task and seed.
        weights_BT: see `resample_BT`.

    Returns:
        `rows`, and in `nulls` by router: what `random` (each step escalated at random) and `step_0` (the teacher from the
        start where the risk at the first step is highest) solve at the router's share of strong calls, averaged over
        episodes; how much more the router solves, and the 95 % interval of that over tasks.
    """
    alone, teacher = (played[name].chosen for name in ENDS)
    at_random = [*played[RANDOM].points, alone, teacher]
    rows, nulls = [], {}
    for name, router in played.items():
        o = router.chosen
        share, success, success_B = float(o.call_rate_TZ.mean()), float(o.success_TZ.mean()), weights_BT @ o.success_T
        per_solved = usd[name] / success if success else None
        rows.append(
            {"router": name, "share_strong": share, "success": success, "ci95": interval(success_B),
             "usd_per_solved": per_solved}
        )  # fmt: skip
        if name not in (*ENDS, RANDOM):
            others = {
                "random": success_at_B(at_random, share, weights_BT, rate=True),
                "step_0": weights_BT @ handed_over(alone, teacher, risk_N, share),
            }
            nulls[name] = {
                null: {"success": float(null_B[0]), "gain": success - float(null_B[0]), "ci95": interval(success_B - null_B)}
                for null, null_B in others.items()
            }
    return {"rows": rows, "nulls": nulls}


def handed_over(alone: Outcomes, teacher: Outcomes, risk_N: Floats, share: float) -> Floats:
    """Success of each task if this share of all episodes, those with the highest risk, are the teacher's from the start."""
    rank_N = np.empty(len(risk_N))
    rank_N[np.argsort(-risk_N, kind="stable")] = np.arange(len(risk_N))
    given_TZ = np.clip(share * len(risk_N) - rank_N, 0, 1).reshape(alone.success_TZ.shape)
    return np.asarray((given_TZ * teacher.success_TZ + (1 - given_TZ) * alone.success_TZ).mean(axis=1))


def _first_risk(router: R2V, episode: Episode) -> float:
    """Risk at the first step; of an episode that broke before it, none."""
    features = episode.steps[0].choice.features if episode.steps else None
    return 0.0 if features is None else router.score(features)


def cost(episode: Episode) -> float:
    """USD of all calls of an episode, drafts included."""
    bill, read = Bill({SLM: LIST[SLM], EXPERT: LIST[EXPERT]}), len(episode.goal)
    for step in episode.steps:
        choice = step.choice
        read += len(step.observation.text)
        drafts = sum(len(candidate.action.text) for candidate in choice.candidates)
        for _ in range(choice.slm.calls):
            bill.call(SLM, read, drafts / choice.slm.calls)
        if choice.teacher.calls:
            bill.call(EXPERT, read, len(choice.action.text))
        read += len(choice.action.text)
    return bill.usd
