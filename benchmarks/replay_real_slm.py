"""Routing on the errors of real models, without running one: MINT's recordings as SLM, as teacher and as environment.

`python benchmarks/replay_real_slm.py [--data DIR] [--slm MODEL] [--teacher MODEL]`

Both models were recorded alone on the same 357 tasks. The SLM acts; its risk (black-box features, fitted on other tasks)
is looked at before each step. Where it reaches a threshold, the episode is handed over:

  from the start   the task goes back to its start and the teacher plays it: recorded, except where both models began with
                   the same action and the tools answered differently
  from here        the teacher goes on from the SLM's state: recorded only at step 0, everything else is `NotRecorded`;
                   such episodes are counted and are no successes

The yardstick is handing over tasks at random before the first step: the straight line between the SLM alone and the teacher
alone, at the same number of teacher steps. Query level: the same with decisions at step 0 only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from fold_risk import FOLDS, folds, own_steps

from r2v.clients.recorded import RecordedPolicy
from r2v.core.agent import AgentModels, Routed
from r2v.core.mlp import RiskMLP
from r2v.core.types import Episode, Features
from r2v.domains.recorded import RecordedTask
from r2v.evaluation.closed_loop import play
from r2v.evaluation.curves import interval, resample_BT
from r2v.learning.tabular import fold_models
from r2v.logs.importing import import_logs
from r2v.routers.interventions import How, Intervention
from r2v.verifiers.tool_calls import ToolCallVerifier

SHARES = (0.01, 0.03, 0.1, 0.2, 0.4)
"""Thresholds: quantiles of the risk of the SLM's steps looked at."""
HORIZON = 20
SEED = 0


def study(slm: Sequence[Episode], teacher: Sequence[Episode]) -> dict[str, Any]:
    rows, tasks = own_steps(slm)
    names, task_N = np.unique(tasks, return_inverse=True)
    fold_N = folds(task_N, SEED)
    models = fold_models(rows, fold_N, SEED)
    fold_of = dict(zip(tasks, fold_N.tolist(), strict=True))
    first_N = np.append(True, np.diff(rows.episode_N) > 0)
    p_N = np.zeros(len(rows))
    for fold, model in enumerate(models):
        p_N[fold_N == fold] = model.risk(rows.x_NF[fold_N == fold], rows.present_NF[fold_N == fold])
    table = Table(names.tolist(), slm, teacher)
    found: dict[str, Any] = {"tasks": len(names), "slm alone": table.alone, "teacher alone": table.of_teacher, "routed": []}
    arms: tuple[tuple[str, How, bool], ...] = (
        ("from the start", "rewind", False),
        ("query level", "takeover", True),
        ("from here", "takeover", False),
    )
    for label, how, only_first in arms:
        for threshold in np.quantile(p_N[first_N] if only_first else p_N, [1 - share for share in SHARES]).tolist():
            episodes = _played(slm, teacher, models, fold_of, how, threshold, only_first)
            found["routed"].append({"hands over": label, "threshold": threshold, **table.against_chance(episodes)})
    return found


def _played(
    slm: Sequence[Episode], teacher: Sequence[Episode], models: Sequence[RiskMLP], fold_of: dict[str, int], how: How,
    threshold: float, only_first: bool,
) -> list[Episode]:  # fmt: skip
    """Every task in closed loop, routed by the risk that did not see it."""
    of_task = {e.task.id: [e, other] for e in slm for other in teacher if e.task.id == other.task.id}
    step_index = models[0].names.index("step_index")

    def agent(model: RiskMLP) -> Routed:
        def score(features: Features) -> float:
            return 0.0 if only_first and features.values[step_index] else model.score(features)

        both = AgentModels(RecordedPolicy("slm", slm), RecordedPolicy("teacher", teacher), ToolCallVerifier([]), 1)
        risk: Any = SimpleNamespace(score=score)
        return Routed(both, Intervention(risk=risk, threshold=threshold, how=how))

    played: list[Episode] = []
    for fold in range(FOLDS):
        cases = [(pair[0].task, 0) for task, pair in of_task.items() if fold_of[task] == fold]
        make = lambda task, _: (RecordedTask(of_task[task.id]), "none")  # noqa: E731
        played += asyncio.run(play(agent(models[fold]), cases, make, horizon=HORIZON))
    return played


class Table:
    """Routed episodes against those of both models alone, task by task."""

    def __init__(self, names: Sequence[str], slm: Sequence[Episode], teacher: Sequence[Episode]) -> None:
        self._place = {name: i for i, name in enumerate(names)}
        self._weights_BT = resample_BT(len(names), 2000, SEED)
        self._slm_T = self._column([float(bool(e.success)) for e in slm], slm)
        self._teacher_T = self._column([float(bool(e.success)) for e in teacher], teacher)
        self._steps_T = self._column([len(e.steps) for e in teacher], teacher)
        self.alone = float(self._slm_T.mean())
        self.of_teacher = {"success": float(self._teacher_T.mean()), "steps": float(self._steps_T.mean())}

    def _column(self, values: Sequence[float], episodes: Sequence[Episode]) -> np.ndarray[Any, Any]:
        column = np.zeros(len(self._place))
        column[[self._place[e.task.id] for e in episodes]] = values
        return column

    def against_chance(self, episodes: Sequence[Episode]) -> dict[str, Any]:
        success_T = self._column([float(bool(e.success)) for e in episodes], episodes)
        asked_T = self._column([sum(s.choice.teacher.calls for s in e.steps) for e in episodes], episodes)
        missing = sum(e.failure is not None and e.failure.kind == "NotRecorded" for e in episodes)
        other = sorted({e.failure.kind for e in episodes if e.failure is not None} - {"NotRecorded"})
        w = self._weights_BT
        share_B = (w @ asked_T) / (w @ self._steps_T)
        line_B = (1 - share_B) * (w @ self._slm_T) + share_B * (w @ self._teacher_T)
        gain_B = w @ success_T - line_B
        return {
            "handed over": float((asked_T > 0).mean()), "teacher steps": float(asked_T.mean()),
            "success": float(success_T.mean()), "random": float(line_B[0]),
            "gain": float(gain_B[0]), "gain_ci95": interval(gain_B), "not recorded": missing, "other failures": other,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with trajectories/mint")
    parser.add_argument("--slm", default="CodeActAgent-Mistral-7b-v0.1")
    parser.add_argument("--teacher", default="gpt-4-0613")
    wanted = parser.parse_args()
    episodes, _ = import_logs(wanted.data / "trajectories/mint/dev_episodes.jsonl.xz", "mint")
    by_model = {
        name: {e.task.id: e for e in episodes if e.agent == name and e.steps} for name in (wanted.slm, wanted.teacher)
    }
    both = sorted(by_model[wanted.slm].keys() & by_model[wanted.teacher].keys())
    slm, teacher = ([of[task] for task in both] for of in by_model.values())
    print(json.dumps({"slm": wanted.slm, "teacher": wanted.teacher, **study(slm, teacher)}, indent=1))


if __name__ == "__main__":
    main()
