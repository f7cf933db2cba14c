"""KnowAgent's ALFWorld episodes of one model, tuned in iterations: lines with "intro", "steps" and "success".

The model's thoughts between the commands are left out; the room and the goal are one text in the file.
"""

from __future__ import annotations

from r2v.logs.records import Recorded, Records, has, outcome_of, task_of, turns
from r2v.messages.conversation import Json


def convert(raw: Json, where: str) -> Recorded:
    room, goal = raw["intro"].split("Your task is to: ", 1)
    first, *rest = turns(goal.strip(), [(step["action"], step["observation"]) for step in raw["steps"]])
    messages = [first, {"role": "user", "content": room.strip()}, *rest]
    task = task_of(raw, where)
    game = task.split("/", 1)[0]  # its trials are the same task in the same room
    return Recorded(task, outcome_of(raw), {"messages": messages}, f"{raw['model']} {raw['iteration']}", game)


FORMAT = Records(
    "knowagent-alfworld", "KnowAgent's ALFWorld episodes (JSON lines)", convert, verifier="household",
    recognises=has("intro", "iteration", "steps"),
)  # fmt: skip
