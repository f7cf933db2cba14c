"""Recorded trajectories of other programs as episodes: what happened as chat messages, how it ended, black-box features.

A recording has one candidate a step and no log-probabilities: features that need more are absent, never made up.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r2v.core.errors import ArtifactError, SettingsError
from r2v.core.features import featurise
from r2v.core.protocols import Verifier
from r2v.core.types import Candidate, Choice, Decision, Episode, Observation, Step, Task, Usage
from r2v.core.untrusted import read_json
from r2v.logs import BUILT_IN
from r2v.logs.records import WRONG, LogFormat, Recorded, outcome_in, said
from r2v.messages.conversation import contexts_of, tools_of
from r2v.messages.transcript import message_of, tools_text
from r2v.runtime import plugins
from r2v.verifiers import verifier_named

if TYPE_CHECKING:
    from r2v.runtime.progress import Report

HORIZON = 50
AT_ONCE = 256
"""Chats that are held until they become episodes."""
RECORDED = Decision("continue", "recorded", None, None, None, 1.0, (), "recorded")


def log_format(name: str) -> LogFormat:
    """A format by its short name, or `package.module:Thing`. Raises SettingsError."""
    return _made(plugins.load("log_formats", name, BUILT_IN))


def log_formats() -> list[tuple[str, LogFormat]]:
    """All by their short names, those of other packages first."""
    return [(name, _made(found)) for name, found in plugins.loadable("log_formats", BUILT_IN)]


def _made(found: Any) -> LogFormat:
    made: LogFormat = found() if isinstance(found, type) else found
    return made


def import_logs(
    path: Path,
    format_name: str | LogFormat,
    outcomes: Path | None = None,
    *,
    keep_unknown: bool = False,
    report: Report = lambda *_: None,
) -> tuple[list[Episode], int]:
    """Read logs as episodes.

    Args:
        path: a file or folder; for some formats the name of a data set.
        format_name: see `r2v.logs.BUILT_IN`; or a format itself, e.g. `r2v.logs.mapped.mapped({...})`.
        outcomes: JSON with outcomes by task, or by `model/task`, which go before those in the logs.
        keep_unknown: trajectories without an outcome are kept, as episodes whose `success` is None.
        report: called with how many trajectories have been read.

    Returns:
        (episodes, how many trajectories have no known outcome: they are left out, unless `keep_unknown`).

    Raises:
        ArtifactError: what is wrong in which file and line.
        SettingsError: there is no such format, or `outcomes` are given for logs that hold their own, or by task for one that
            several models played.
    """
    source = log_format(format_name) if isinstance(format_name, str) else format_name
    known = _outcomes(outcomes) if outcomes else {}
    found: list[Episode] = []
    chats: list[tuple[Recorded, bool | None]] = []
    groups: dict[str, str] = {}
    played: dict[str, str] = {}
    unknown = 0
    collects = gc.isenabled()
    gc.disable()  # all that is made here stays, and has no cycles: looking for garbage in it is a fifth of the time
    try:
        for number, item in enumerate(source.read(path), start=1):
            report(number, None, "sessions")
            success = _success(item, known, played, outcomes) if isinstance(item, Recorded) else item.success
            unknown += success is None
            if isinstance(item, Recorded) and item.group is not None:
                groups.setdefault(item.task, item.group)
            if success is None and not keep_unknown:
                continue
            if isinstance(item, Recorded):
                chats.append((item, success))
            elif outcomes:
                raise SettingsError(f"logs of the format {source.name} hold their own outcomes; leave out {outcomes}")
            else:
                found.append(item)
            if len(chats) == AT_ONCE:
                found += asyncio.run(_episodes(chats, source))
                chats = []
        if chats:
            found += asyncio.run(_episodes(chats, source))
    except WRONG as error:
        raise ArtifactError(f"{path} is not {source.name} ({said(error, {})})") from None
    finally:
        if collects:
            gc.enable()
    return [_grouped(episode, groups) for episode in found], unknown


def _success(item: Recorded, known: Mapping[str, bool], played: dict[str, str], path: Path | None) -> bool | None:
    """What the outcomes say of a model's task, else what the log says; `played` gets the model of each task."""
    if (own := known.get(f"{item.model}/{item.task}")) is not None:
        return own
    if item.task not in known:
        return item.success
    if (other := played.setdefault(item.task, item.model)) != item.model:
        raise SettingsError(
            f"{path} has one outcome of the task {item.task!r:.80}, which {other} and {item.model} played: give logs of one "
            "model and its outcomes, or write MODEL/TASK as keys"
        )
    return known[item.task]


def _grouped(episode: Episode, groups: Mapping[str, str]) -> Episode:
    """All episodes of a task are in one group, also those whose own record does not show it."""
    group = groups.get(episode.task.id)
    return episode if group is None else replace(episode, task=replace(episode.task, family=group))


async def _episodes(chats: Sequence[tuple[Recorded, bool | None]], source: LogFormat) -> list[Episode]:
    name: Any = source.verifier
    if name is None:
        raise SettingsError(f"the log format {source.name} gives chats, so it must name the verifier that scores them")
    verifiers: dict[bytes, Verifier] = {}  # episodes of one agent offer the same tools
    found = []
    for chat, success in chats:
        tools = chat.request.tools
        if tools not in verifiers:
            verifiers[tools] = verifier_named(name, tools_of(tools))
        found.append(await _episode(chat, success, verifiers[tools]))
    return found


async def _episode(recorded: Recorded, success: bool | None, verifier: Verifier) -> Episode:
    """Each assistant message is a step, seen with what was known before it: the request that led to it."""
    *contexts, whole = contexts_of(recorded.request, HORIZON)
    messages = [message_of(message) for message in recorded.body["messages"]]
    replies = [i for i, message in enumerate(messages) if message.role == "assistant"]
    steps = []
    begin = 0
    for t, (context, action, at) in enumerate(zip(contexts, whole.actions, replies, strict=True)):
        candidates = (Candidate(action, None, None, Usage()),)
        scores = await verifier.score(context, [action])
        choice = Choice(
            action, "slm", candidates, scores, featurise(context, candidates, scores), RECORDED, Usage(1), Usage(),
            messages[at],
        )  # fmt: skip
        observation = Observation(context.observations[-1], False, None, None, "", ())
        steps.append(Step(t, 0, observation, choice, tuple(messages[begin:at])))
        begin = at + 1
    reward = None if success is None else float(success)
    final = Observation(whole.observations[-1], True, success, reward, "", ())
    task = Task(recorded.task, recorded.task if recorded.group is None else recorded.group, "recorded", whole.goal)
    return Episode(
        task, 0, recorded.perturbation, recorded.model, whole.goal, tuple(steps), final, success, "done", None,
        tools_text(recorded.body.get("tools")), tuple(messages[begin:]), mistake=recorded.mistake,
    )  # fmt: skip


def _outcomes(path: Path) -> dict[str, bool]:
    """Outcomes by task or `model/task`: {"task": true, ...}, or a SWE-bench report with resolved_ids and unresolved_ids."""
    try:
        raw = read_json(path)
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist") from None
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON ({error})") from None
    if not isinstance(raw, dict):
        raise ArtifactError(f"{path} must be a JSON object of outcomes by task")
    if "resolved_ids" in raw:
        lists = [raw.get(key) or [] for key in ("unresolved_ids", "empty_patch_ids", "resolved_ids")]
        if not all(isinstance(ids, list) and all(isinstance(task, str) for task in ids) for ids in lists):
            raise ArtifactError(f"{path} must hold lists of task names under resolved_ids and unresolved_ids")
        unresolved, empty, resolved = lists
        return {**dict.fromkeys(unresolved, False), **dict.fromkeys(empty, False), **dict.fromkeys(resolved, True)}
    known: dict[str, bool] = {}
    for task, value in raw.items():
        try:
            outcome = outcome_in(value)
        except ValueError as error:
            raise ArtifactError(f"{path}: {task!r:.80}: {error}") from None
        if outcome is not None:
            known[task] = outcome
    return known
