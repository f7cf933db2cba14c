"""Who&When: failed episodes of several agents, in which somebody named the decisive step. A JSON file each, or a folder.

{"question": ..., "question_ID": ..., "history": [{"content": ..., "role": ..., "name": ...}, ...], "mistake_step": "3", ...}

Every entry of the history is a step, whoever speaks: the label counts them so. What is said of the mistake besides its step
(who made it, why, the right answer) is not read.
"""

from __future__ import annotations

from r2v.logs.records import Recorded, Records, has
from r2v.messages.conversation import Json


def convert(raw: Json, where: str) -> Recorded:
    """Raises ValueError where the label names no entry of the history."""
    said: list[Json] = [
        {"role": "assistant", "content": entry["content"] or "", "name": entry.get("name") or entry["role"]}
        for entry in raw["history"]
    ]
    mistake = int(raw["mistake_step"])
    if not 0 <= mistake < len(said):
        raise ValueError(f"mistake_step {mistake} of {len(said)} entries")
    body = {"messages": [{"role": "user", "content": raw["question"]}, *said]}
    return Recorded(str(raw["question_ID"]), False, body, "recorded", mistake=mistake)


FORMAT = Records(
    "who-and-when", "Who&When's failures of several agents, with the decisive step", convert,
    recognises=has("question", "question_ID", "history", "mistake_step"),
)  # fmt: skip
