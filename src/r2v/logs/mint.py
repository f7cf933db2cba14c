"""MINT: lines with "steps", "success" and "teacher"; the prompts lie beside them in tasks.jsonl.xz.

An episode with a teacher's feedback is another agent's: the model still acts, the feedback is part of what it reads. The
last action has no observation of its own: what it led to is the outcome.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from r2v.core.errors import ArtifactError
from r2v.logs.files import objects
from r2v.logs.records import Recorded, Records, has, outcome_of, task_of, turns
from r2v.messages.conversation import Json


def convert(raw: Json, where: str) -> Recorded:
    prompts = _prompts(Path(where.rsplit(":", 1)[0]).parent)
    messages = turns(prompts[raw["task"]], [(step["action"], step.get("observation") or "") for step in raw["steps"]])
    feedback = f" + {raw['feedback_kind']} of {raw['teacher']}" if raw["teacher"] else ""
    task = task_of(raw, where)
    # Trials of a game of ALFWorld are the same task in the same room.
    game = task.rsplit("/", 1)[0] if task.startswith("alfworld/") else None
    return Recorded(task, outcome_of(raw), {"messages": messages}, f"{raw['model']}{feedback}", game)


@lru_cache(maxsize=1)
def _prompts(folder: Path) -> dict[str, str]:
    path = folder / "tasks.jsonl.xz"
    if not path.exists():
        raise ArtifactError(f"{path} does not exist; MINT's episodes need the file of their tasks beside them")
    return {entry["task"]: entry["prompt"] for _, entry in objects(path)}


FORMAT = Records(
    "mint", "MINT's episodes (JSON lines), with tasks.jsonl.xz beside them", convert,
    recognises=has("task", "teacher", "feedback_kind", "steps"),
)  # fmt: skip
