"""An episode as a chat, and a chat model's reply as an action: how a domain speaks with models that it did not train."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from r2v.core.types import Action, Context

TASK = "Your task is to: "
MARKS = " \t>`\"'"
_BLOCK = re.compile(r"^[ \t]*```\w*[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class ChatFormat:
    """What a domain's models are instructed to do, and how a reply becomes an action's text."""

    system: str
    read: Callable[[str], str]
    opening: bool = False
    """Whether the first observation is what the system text speaks of, such as a list of tools: it then stands before that
    text. Tasks that begin alike share the whole system message, and a server's prompt cache reads it once."""


def messages(context: Context, system: str, *, system_role: bool = True, opening: bool = False) -> list[dict[str, str]]:
    """The episode as a chat: observations from the user, commands from the assistant. Without `system_role` the system text
    stands before the task. `opening`: see `ChatFormat`.
    """
    first = context.observations[0]
    task = f"{TASK}{context.goal}" if opening else f"{TASK}{context.goal}\n\n{first}"
    system = f"{first}\n\n{system}" if opening else system
    result = [{"role": "system", "content": system}, {"role": "user", "content": task}]
    if not system_role:
        result = [{"role": "user", "content": f"{system}\n\n{task}"}]
    for action, observation in zip(context.actions, context.observations[1:], strict=True):
        result += [{"role": "assistant", "content": action.text}, {"role": "user", "content": observation}]
    return result


def context_of_chat(chat: Sequence[tuple[str, str]]) -> Context:
    """The episode of such a chat, from the (role, text) of each message; system messages are left out. Raises ValueError
    for a chat of another form.
    """
    turns = [(role, text) for role, text in chat if role not in ("system", "developer")]
    roles = ["user" if t % 2 == 0 else "assistant" for t in range(len(turns))]
    if len(turns) % 2 == 0 or [role for role, _ in turns] != roles:
        raise ValueError("user and assistant must take turns, and the user has the last word")
    goal, found, first = turns[0][1].removeprefix(TASK).partition("\n\n")
    if not found or not turns[0][1].startswith(TASK):
        raise ValueError(f"the first message must begin with {TASK!r}, and the first observation follow after an empty line")
    observations = (first, *(text for _, text in turns[2::2]))
    return Context(goal, observations, tuple(Action(text) for _, text in turns[1::2]), len(observations))


def command_of(reply: str) -> str:
    """The command in a reply: the `Action:` line if there is one, else the last line; quotes, ticks and ">" removed."""
    unfenced = re.sub(r"^[ \t]*```\w*[ \t]*$", "", reply, flags=re.MULTILINE)  # in "```look```" the word is no language
    lines = [line.strip(MARKS) for line in unfenced.splitlines() if line.strip(MARKS)]
    marked = [line.split(":", 1)[1] for line in lines if line.lower().startswith("action:")]
    chosen = (marked or lines or [""])[-1]
    return chosen.strip(MARKS + ".")


def script_of(reply: str) -> str:
    """The first code block of a reply; without one, the whole reply, of which a prompt sign at the start is removed."""
    block = _BLOCK.search(reply)
    return block[1].rstrip() if block else reply.strip().strip("`").removeprefix("$ ").strip()
