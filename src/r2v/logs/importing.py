"""Recorded trajectories of other programs as episodes: what happened as chat messages, how it ended, black-box features.

ledger           r2v's own (`store.path` of the gateway), or Parquet from `r2v export`
openai-jsonl     a line an episode: {"messages": [...], "tools": [...], "task": ..., "success" or "reward": ...}
anthropic-jsonl  the same with Anthropic's messages (and "system")
mini-swe-agent   *.traj.json files or a folder of them; outcomes from the file, or a SWE-ctx report with resolved_ids
tau-ctx        results of tau-ctx / tau2 (a list of runs with "traj" or "messages"), or lines with "steps"
atif             Agent Trajectory Interchange Format files with the outcome in `extra`, or a job of Harbor (`harbor.py`)
terminal-log     plain text: commands and their output (`terminal.py`)
terminalbench    the data set of Terminal-Bench trials that the paper's authors used (`terminal.py`)
knowagent-alfworld  lines with "intro", "steps" and "success": ALFWorld episodes of one model, tuned in iterations
mint             lines with "steps", "success", "teacher"; the prompts lie beside them in tasks.jsonl.xz. An episode with a
                 teacher's feedback is another agent: the model still acts, the feedback is part of what it reads

A recording has one candidate a step and no log-probabilities: features that need more are absent, never made up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from r2v.core.errors import ArtifactError
from r2v.core.features import featurise
from r2v.core.protocols import Verifier
from r2v.core.types import Candidate, Choice, Decision, Episode, Observation, Step, Task, Usage
from r2v.gateway.export import SOLVED, episodes_of
from r2v.gateway.ledger import Ledger
from r2v.logs import formats, harbor, terminal
from r2v.logs.files import json_of, objects, text_of
from r2v.logs.formats import Recorded
from r2v.messages.conversation import BadRequest, Request, context_of, parse, tools_of
from r2v.runtime.store import read_episodes
from r2v.verifiers import verifier_named

HORIZON = 50
RECORDED = Decision("continue", "recorded", None, None, None, 1.0, (), "recorded")
Source = Callable[[Path], Iterator[tuple[str, Any]]]
"""(where, raw trajectory) of all that a path holds."""
Reader = Callable[[Any, str], Recorded]

_READ: Mapping[str, tuple[Source, Reader, str]] = {
    "openai-jsonl": (objects, formats.openai, "tool_calls"),
    "anthropic-jsonl": (objects, formats.anthropic, "tool_calls"),
    "mini-swe-agent": (objects, formats.mini_swe_agent, "tool_calls"),
    "tau-ctx": (objects, formats.tau_bench, "tool_calls"),
    "atif": (harbor.trajectories, formats.atif, "tool_calls"),
    "terminal-log": (terminal.text_logs, formats.terminal_log, "terminal"),
    "terminalbench": (terminal.trials, formats.terminalbench, "terminal"),
    "knowagent-alfworld": (objects, formats.knowagent, "household"),
    "mint": (objects, formats.mint, "tool_calls"),
}
FORMATS = ("ledger", *_READ)


def verifier_of(kind: str) -> str | None:
    """What scores the actions of logs of a format; None for a ledger, which holds the scores of its gateway."""
    return _READ[kind][2] if kind in _READ else None


def import_logs(path: Path, kind: str, outcomes: Path | None = None) -> tuple[list[Episode], int]:
    """(episodes, trajectories left out because their outcome is unknown). Raises ArtifactError naming file and line."""
    if kind != "terminalbench" and not path.exists():
        raise ArtifactError(f"{path} does not exist")
    if kind == "ledger":
        if path.suffix == ".parquet":
            return read_episodes(path), 0
        ledger = Ledger(path)
        try:
            return episodes_of(ledger)
        finally:
            ledger.close()
    known = _outcomes(outcomes) if outcomes else {}
    source, read, verifier = _READ[kind]
    found: list[tuple[Recorded, Request, bool]] = []
    unknown = 0
    for where, raw in source(path):
        try:
            recorded = read(raw, where)
            request = parse(msgspec.json.encode(recorded.body))
        except (KeyError, TypeError, ValueError, AttributeError, BadRequest) as error:
            raise ArtifactError(f"{where} is not {kind} ({type(error).__name__}: {error})") from None
        success = known.get(recorded.task, recorded.success)
        if success is None:
            unknown += 1
            continue
        found.append((recorded, request, success))
    return asyncio.run(_episodes(found, verifier)), unknown


async def _episodes(found: Sequence[tuple[Recorded, Request, bool]], name: str) -> list[Episode]:
    return [
        await _episode(recorded, request, success, verifier_named(name, tools_of(request.tools)))
        for recorded, request, success in found
    ]


async def _episode(recorded: Recorded, request: Request, success: bool, verifier: Verifier) -> Episode:
    """Each assistant message is a step, seen with what was known before it: the request that would have asked for it."""
    whole = context_of(request, HORIZON)
    asked = [i for i, message in enumerate(request.messages) if message.role == "assistant"]
    steps = []
    for t, (action, at) in enumerate(zip(whole.actions, asked, strict=True)):
        # Not a part of `whole`: how much of a text is kept, and what the goal is, would be known from later messages.
        context = context_of(replace(request, messages=request.messages[:at]), HORIZON)
        candidates = (Candidate(action, None, None, Usage()),)
        scores = await verifier.score(context, [action])
        choice = Choice(
            action, "slm", candidates, scores, featurise(context, candidates, scores), RECORDED, Usage(1), Usage()
        )
        steps.append(Step(t, 0, Observation(context.observations[-1], False, None, None, "", ()), choice))
    final = Observation(whole.observations[-1], True, success, float(success), "", ())
    task = Task(recorded.task, recorded.model, "recorded", whole.goal)
    return Episode(task, 0, "none", recorded.model, whole.goal, tuple(steps), final, success, "done", None)


def _outcomes(path: Path) -> dict[str, bool]:
    """Outcomes by task: {"task": true, ...}, or a SWE-ctx report with resolved_ids and unresolved_ids."""
    raw = json_of(text_of(path), str(path))
    if not isinstance(raw, dict):
        raise ArtifactError(f"{path} must be a JSON object of outcomes by task")
    if "resolved_ids" in raw:
        failed: Sequence[str] = [*(raw.get("unresolved_ids") or []), *(raw.get("empty_patch_ids") or [])]
        return {**dict.fromkeys(failed, False), **dict.fromkeys(raw["resolved_ids"], True)}
    return {task: value >= SOLVED for task, value in raw.items() if isinstance(value, int | float)}
