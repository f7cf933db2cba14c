"""Recorded trajectories of other programs as episodes: what happened as chat messages, how it ended, black-box features.

A recording has one candidate a step and no log-probabilities: features that need more are absent, never made up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from r2v.core.errors import ArtifactError, SettingsError
from r2v.core.features import featurise
from r2v.core.protocols import Verifier
from r2v.core.types import SOLVED, Candidate, Choice, Decision, Episode, Observation, Step, Task, Usage
from r2v.logs import BUILT_IN
from r2v.logs.files import json_of, text_of
from r2v.logs.records import LogFormat, Recorded
from r2v.messages.conversation import BadRequest, context_of, tools_of
from r2v.messages.transcript import message_of, tools_text
from r2v.runtime import plugins
from r2v.verifiers import verifier_named

HORIZON = 50
RECORDED = Decision("continue", "recorded", None, None, None, 1.0, (), "recorded")


def log_format(name: str) -> LogFormat:
    """A format by its short name, or `package.module:Thing`. Raises SettingsError."""
    found = plugins.load("log_formats", name, BUILT_IN)
    made: LogFormat = found() if isinstance(found, type) else found
    return made


def import_logs(path: Path, format_name: str, outcomes: Path | None = None) -> tuple[list[Episode], int]:
    """Read logs as episodes.

    Args:
        path: a file or folder; for some formats the name of a data set.
        format_name: see `r2v.logs.BUILT_IN`.
        outcomes: JSON with outcomes by task, which go before those in the logs.

    Returns:
        (episodes, how many trajectories were left out because their outcome is unknown).

    Raises:
        ArtifactError: what is wrong in which file and line.
        SettingsError: there is no such format, or `outcomes` are given for logs that hold their own.
    """
    source = log_format(format_name)
    known = _outcomes(outcomes) if outcomes else {}
    found: list[Episode] = []
    chats: list[tuple[Recorded, bool]] = []
    unknown = 0
    try:
        for item in source.read(path):
            success = known.get(item.task, item.success) if isinstance(item, Recorded) else item.success
            if success is None:
                unknown += 1
            elif isinstance(item, Recorded):
                chats.append((item, success))
            elif outcomes:
                raise SettingsError(f"logs of the format {source.name} hold their own outcomes; leave out {outcomes}")
            else:
                found.append(item)
    except BadRequest as error:
        raise ArtifactError(f"{path} is not {source.name} ({error})") from None
    if chats:
        found += asyncio.run(_episodes(chats, source))
    return found, unknown


async def _episodes(chats: Sequence[tuple[Recorded, bool]], source: LogFormat) -> list[Episode]:
    name: Any = source.verifier
    if name is None:
        raise SettingsError(f"the log format {source.name} gives chats, so it must name the verifier that scores them")
    return [await _episode(chat, success, verifier_named(name, tools_of(chat.request.tools))) for chat, success in chats]


async def _episode(recorded: Recorded, success: bool, verifier: Verifier) -> Episode:
    """Each assistant message is a step, seen with what was known before it: the request that led to it."""
    request = recorded.request
    whole = context_of(request, HORIZON)
    messages = [message_of(message) for message in recorded.body["messages"]]
    replies = [i for i, message in enumerate(messages) if message.role == "assistant"]
    steps = []
    begin = 0
    for t, (action, at) in enumerate(zip(whole.actions, replies, strict=True)):
        # Not a part of `whole`: how much of a text is kept, and what the goal is, would be known from later messages.
        context = context_of(replace(request, messages=request.messages[:at]), HORIZON)
        candidates = (Candidate(action, None, None, Usage()),)
        scores = await verifier.score(context, [action])
        choice = Choice(
            action, "slm", candidates, scores, featurise(context, candidates, scores), RECORDED, Usage(1), Usage(),
            messages[at],
        )  # fmt: skip
        observation = Observation(context.observations[-1], False, None, None, "", ())
        steps.append(Step(t, 0, observation, choice, tuple(messages[begin:at])))
        begin = at + 1
    final = Observation(whole.observations[-1], True, success, float(success), "", ())
    task = Task(recorded.task, recorded.model, "recorded", whole.goal)
    return Episode(
        task, 0, "none", recorded.model, whole.goal, tuple(steps), final, success, "done", None,
        tools_text(recorded.body.get("tools")), tuple(messages[begin:]),
    )  # fmt: skip


def _outcomes(path: Path) -> dict[str, bool]:
    """Outcomes by task: {"task": true, ...}, or a SWE-bench report with resolved_ids and unresolved_ids."""
    raw = json_of(text_of(path), str(path))
    if not isinstance(raw, dict):
        raise ArtifactError(f"{path} must be a JSON object of outcomes by task")
    if "resolved_ids" in raw:
        failed: Sequence[str] = [*(raw.get("unresolved_ids") or []), *(raw.get("empty_patch_ids") or [])]
        return {**dict.fromkeys(failed, False), **dict.fromkeys(raw["resolved_ids"], True)}
    return {task: value >= SOLVED for task, value in raw.items() if isinstance(value, int | float)}
