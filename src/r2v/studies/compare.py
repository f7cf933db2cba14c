"""Finished runs side by side, a row a backbone: the paper's Table 5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from r2v.clients.chat import ChatSettings
from r2v.core.errors import SettingsError
from r2v.core.types import Episode
from r2v.evaluation.curves import interval, resample_BT
from r2v.pipeline.run_folder import RunFolder
from r2v.pipeline.settings import ExpertSettings, RunSettings

RESAMPLES = 2000
Comparison = dict[str, Any]


def compare(runs: Sequence[RunFolder], router: str) -> Comparison:
    """One router in several finished runs.

    Args:
        runs: the first is the one that the others are compared with.
        router: its name; each run must have evaluated it.

    Returns:
        {"router", "rows": one a run, "same_tasks": whether all played the same episodes, "differs": what made them others,
        in one line, or None}. Only where they were the same, a row holds "differences" to the first run: success of the SLM
        alone and of the router, paired over tasks.

    Raises:
        SettingsError: a run did not evaluate the router.
        StageError, ArtifactError: a run is not finished, or damaged.
    """
    for run in runs:
        run.finished("evaluate")
        if router not in (known := run.results()["routers"]):
            raise SettingsError(f"{run.root} did not evaluate {router}; it has {', '.join(known)}")
    played = [_successes(run.evaluated(), ("slm_only", router)) for run in runs]
    differs = _differs(runs)
    if any(one["slm_only"].keys() != played[0]["slm_only"].keys() for one in played):
        differs.append("tasks or perturbation seeds")
    rows = [_row(run, router) for run in runs]
    if not differs:
        for row, mine in zip(rows[1:], played[1:], strict=True):
            row["differences"] = {name: difference(mine[name], played[0][name]) for name in mine}
    return {"router": router, "same_tasks": not differs, "differs": "; ".join(differs) or None, "rows": rows}


def _differs(runs: Sequence[RunFolder]) -> list[str]:
    """What makes an episode of one run another than that of the same task and seed in the next: `setting: value, value`."""
    played = [_conditions(run.settings) for run in runs]
    names = dict.fromkeys(name for one in played for name in one)
    values = {name: [msgspec.json.encode(one.get(name)).decode() for one in played] for name in names}
    return [f"{name}: {', '.join(dict.fromkeys(found))}" for name, found in values.items() if len({*found}) > 1]


def _conditions(settings: RunSettings) -> dict[str, Any]:
    """The environment, and what disturbs the test episodes; a strength of 0 disturbs none, whatever else is set."""
    found = {f"environment.{key}": value for key, value in msgspec.to_builtins(settings.environment).items()}
    disturbs = settings.perturbations
    severities = disturbs.test_severities or disturbs.severities
    return found | {
        "perturbations.strength": disturbs.strength,
        "perturbations.families": sorted(disturbs.families) if disturbs.strength else [],
        "severities of the test": list(severities) if disturbs.strength else [],
    }


def _row(run: RunFolder, router: str) -> Comparison:
    results, settings = run.results(), run.settings
    routers = results["routers"]
    kept = ("success_rate", "ci95", "llm_call_rate", "calls_per_episode", "area", "curve")
    found = {name: {key: routers[name][key] for key in kept} for name in ("slm_only", router, "llm_only")}
    for name, entry in found.items():  # which runs of r2v 0.2 do not have
        entry |= {key: routers[name].get(key) for key in ("tokens_per_episode", "usd_per_episode")}
    random = results["differences"].get("random") if router == "r2v" else None
    return {
        "run": str(run.root),
        "domain": settings.environment.kind,
        "slm": backbone(settings),
        "teacher": "expert" if isinstance(settings.teacher, ExpertSettings) else settings.teacher.model,
        "tasks": results["tasks"],
        "perturbation_seeds": results["perturbation_seeds"],
        "routers": found,
        "less_random": random and {"area": random["area"], "ci95": random["ci95"]},
        "calibration": {key: results["calibration"][key] for key in ("ece", "brier", "auroc")},
    }


def backbone(settings: RunSettings) -> str:
    """What the SLM of a run is, in a few words."""
    model = settings.slm.model
    if isinstance(model, ChatSettings):
        return model.model
    if model.path is not None:
        return f"{Path(model.path).name}, trained" + (" with LoRA" if model.lora else "")
    return f"from scratch, {model.layers} x {model.hidden_size}"


def _successes(episodes: Sequence[Episode], names: Sequence[str]) -> dict[str, dict[tuple[str, int, str], bool]]:
    """Name -> (task, perturbation seed, family) -> success."""
    found: dict[str, dict[tuple[str, int, str], bool]] = {name: {} for name in names}
    for e in episodes:
        if e.agent in found:
            found[e.agent][e.task.id, e.seed, e.perturbation] = bool(e.success)
    return found


def difference(mine: dict[tuple[str, int, str], bool], other: dict[tuple[str, int, str], bool]) -> Comparison:
    by_task: dict[str, list[int]] = {}
    for key, success in mine.items():
        by_task.setdefault(key[0], []).append(success - other[key])
    gains_T = np.array([np.mean(gains) for gains in by_task.values()])
    values_B = resample_BT(len(gains_T), RESAMPLES, 0) @ gains_T
    return {"success": float(values_B[0]), "ci95": interval(values_B)}
