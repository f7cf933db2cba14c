"""`r2v improve LEDGER`: what the teacher answered in served sessions trains the SLM, and held-out sessions check it.

Sessions whose goals are the same or near copies are one task and stay together. The new model is kept only if the teacher's
answers in held-out sessions became more likely; else the old folder stays the one to serve.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from r2v.core.errors import StageError
from r2v.core.groups import groups
from r2v.core.splits import split
from r2v.core.types import Episode, Task
from r2v.evaluation.gain import paired_interval
from r2v.learning.settings import CloneSettings, ModelSettings
from r2v.runtime.store import write_json

HELD = 0.2
"""Share of the tasks with an answer of the teacher that are held out."""
LEAST_HELD = 20
"""Held-out tasks: with fewer an interval over them is too sure of itself, and the old model stays."""
LEAST = 2 * LEAST_HELD
"""Tasks with an answer of the teacher, so that at least as many are learned from."""
RESAMPLES = 2000
Progress = Callable[..., None]


def improve_on_logs(
    episodes: Sequence[Episode], model: ModelSettings, settings: CloneSettings, out: Path, seed: int, progress: Progress
) -> dict[str, Any]:
    """Train a model on served sessions into `out`, which gets `improve.json` and, if it is better, `model`.

    Args:
        episodes: the sessions, with messages; without an outcome, only the teacher's answers are learned.
        model: what training starts from; its folder is not written to.
        settings: of the training.
        out: a new folder, or that of the same command when it was killed.
        seed: of the split and of the training.
        progress: called with (done, of how many, note).

    Returns:
        What `improve.json` holds: {"rounds": [one], "left_out": counts by reason, "model": the folder to serve}.

    Raises:
        StageError: too few sessions hold answers of the teacher, or `out` holds something else.
        ArtifactError: the model cannot be read, or has no chat template.
    """
    from r2v.learning.clone import clone
    from r2v.learning.likelihood import teacher_losses

    assert model.path is not None
    if (out / "improve.json").exists():
        raise StageError(f"{out} holds a finished round; choose another --out")
    learned, held, group_H = _split(episodes, seed)
    begun = hashlib.sha256(msgspec.json.encode((list(episodes), model, settings, seed))).hexdigest()[:16]
    trained = out / "partial" / begun / "model"
    if trained.parent.parent.exists() and not trained.parent.exists():
        raise StageError(f"{out} holds the work of a command with other sessions or options; choose another --out")
    if (out / "model").exists():
        if trained.exists() or not (trained.parent / "report.json").exists():
            raise StageError(f"{out / 'model'} exists; choose another --out")
        (out / "model").rename(trained)  # killed before improve.json: it is checked again
    report = clone([], model, settings, trained, routed=learned, checkpoints=trained.parent, seed=seed, progress=progress)
    before_N = teacher_losses(model.path, model, held, progress)
    after_N = teacher_losses(trained, model, held, progress)
    verdict = likelier(group_H, before_N, after_N, seed)
    if verdict["kept"]:
        trained.rename(out / "model")
    calls = sum(step.choice.source == "teacher" for episode in learned for step in episode.steps)
    found = {
        "rounds": [{"round": 1, "teacher_calls_training": calls, "teacher_calls_total": calls, "slm_success": None,
                    "calls_at_98": None, **verdict}],
        "sessions": len(learned),
        "training": asdict(report),
        "model": str(out / "model") if verdict["kept"] else model.path,
    }  # fmt: skip
    write_json(out / "improve.json", found)
    return found


def _split(episodes: Sequence[Episode], seed: int) -> tuple[list[Episode], list[Episode], list[int]]:
    """(to learn from, held out, the group of each of these): by groups of tasks, and held out are sessions in which the
    teacher answered.
    """
    group_E = groups(episodes).group_E.tolist()
    asked = {g for e, g in zip(episodes, group_E, strict=True) if any(step.choice.source == "teacher" for step in e.steps)}
    if len(asked) < LEAST:
        raise StageError(
            f"{len(asked)} tasks have an answer of the teacher, {LEAST} are needed (near copies are one task): let the "
            "gateway serve more sessions (with `store.redact: false`)"
        )
    tasks = [Task(str(group), "served", "gateway", "") for group in asked]
    count = max(LEAST_HELD, round(HELD * len(tasks)))
    held = {int(task.id) for task in split(tasks, {"held": count}, seed=seed)["held"]}
    placed = list(zip(episodes, group_E, strict=True))
    return [e for e, g in placed if g not in held], [e for e, g in placed if g in held], [g for g in group_E if g in held]


def likelier(
    group_N: Sequence[int], before_N: Sequence[float | None], after_N: Sequence[float | None], seed: int
) -> dict[str, Any]:
    """Whether the teacher's answers became more likely: the paired interval over tasks of the fall in loss lies above 0, and
    there are enough tasks for an interval to say something.

    Args:
        group_N: of N held-out sessions, the task of each; near copies are one.
        before_N: mean loss of the answers of each, in nats a token, with the old model; None: none could be read.
        after_N: with the new one.
        seed: of the bootstrap.

    Raises:
        StageError: fewer than two tasks can be read.
    """
    by_group: dict[int, list[tuple[float, float]]] = {}
    for group, before, after in zip(group_N, before_N, after_N, strict=True):
        if before is not None and after is not None:
            by_group.setdefault(group, []).append((before, after))
    if len(by_group) < 2:
        raise StageError("no held-out session keeps messages that the model can read; see `store.redact` of the gateway")
    loss_T2 = np.array([np.mean(pairs, axis=0) for pairs in by_group.values()])
    low, high = paired_interval(loss_T2[:, 0] - loss_T2[:, 1], RESAMPLES, seed)
    before, after = loss_T2.mean(axis=0).tolist()
    missing = max(0, LEAST_HELD - len(loss_T2))
    return {
        "held_out_tasks": len(loss_T2), "held_out_tasks_missing": missing, "loss_before": before, "loss": after,
        "fall_ci95": [low, high], "kept": low > 0 and not missing,
    }  # fmt: skip
