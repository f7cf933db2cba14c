"""Jobs of Harbor, the harness of Terminal-Bench 2: what an agent did and how it ended lie in two files of a trial's folder.

JOB/TRIAL/agent/trajectory.json    ATIF; trajectory.cont-1.json and so on where a history was cut and went on
JOB/TRIAL/result.json              {"task_name": ..., "verifier_result": {"rewards": {"reward": 1.0}} | null, ...}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r2v.logs.files import json_of, objects, text_of
from r2v.messages.conversation import Json

WHOLE = "agent/trajectory.json"


def trajectories(path: Path) -> Iterator[tuple[str, Json]]:
    """(file, ATIF trajectory with task and reward in `extra`) of each trial of a job; of any other path its JSON objects.

    Without a reward (the trial broke before it was judged, or still runs) `extra` has none. Raises ArtifactError.
    """
    files = sorted(path.rglob(WHOLE)) if path.is_dir() else []
    if not files:
        yield from objects(path)
    for file in files:
        whole = _read(file)
        for more in sorted(file.parent.glob("trajectory.cont-*.json"), key=lambda p: int(p.stem.rsplit("-", 1)[1])):
            whole["steps"] += [step for step in _read(more)["steps"] if not step.get("is_copied_context")]
        trial = file.parent.parent
        result = _read(trial / "result.json") if (trial / "result.json").exists() else {}
        rewards = (result.get("verifier_result") or {}).get("rewards") or {}
        about: Json = {"task": result.get("task_name", trial.name)}
        about |= {"reward": rewards["reward"]} if "reward" in rewards else {}
        yield str(file), {**whole, "extra": about}


def _read(file: Path) -> Any:
    return json_of(text_of(file), str(file))
