"""Recorded trajectories of other programs as episodes: what happened as chat messages, how it ended, black-box features.

ledger           r2v's own (`store.path` of the gateway), or Parquet from `r2v export`
openai-jsonl     a line an episode: {"messages": [...], "tools": [...], "task": ..., "success" or "reward": ...}
anthropic-jsonl  the same with Anthropic's messages (and "system")
mini-swe-agent   *.traj.json files or a folder of them; outcomes from the file, or a SWE-bench report with resolved_ids
tau-bench        results of tau-bench / tau2 (a list of runs with "traj" or "messages"), or lines with "steps"
atif             Agent Trajectory Interchange Format files with the outcome in `extra`, or a job of Harbor (`harbor.py`)
terminal-log     plain text: commands and their output (`terminal_logs.py`)
terminalbench    the data set of Terminal-Bench trials that the paper's authors used (`terminal_logs.py`)
knowagent-alfworld  lines with "intro", "steps" and "success": ALFWorld episodes of one model, tuned in iterations
mint             lines with "steps", "success", "teacher"; the prompts lie beside them in tasks.jsonl.xz. An episode with a
                 teacher's feedback is another agent: the model still acts, the feedback is part of what it reads

A recording has one candidate a step and no log-probabilities: features that need more are absent, never made up.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from r2v.errors import ArtifactError
from r2v.features import featurise
from r2v.gateway import harbor
from r2v.gateway.anthropic import from_messages
from r2v.gateway.chat import BadRequest, Json, Request, context_of, parse, tools_of
from r2v.gateway.export import SOLVED, episodes_of
from r2v.gateway.ledger import Ledger
from r2v.gateway.terminal_logs import from_text, from_trial, text_logs, trials
from r2v.protocols import Verifier
from r2v.store import read_episodes
from r2v.types import Candidate, Choice, Decision, Episode, Observation, Step, Task, Usage
from r2v.verifiers.household import HouseholdVerifier
from r2v.verifiers.terminal import TerminalVerifier
from r2v.verifiers.tool_calls import ToolCallVerifier

FORMATS = (
    "ledger",
    "openai-jsonl",
    "anthropic-jsonl",
    "mini-swe-agent",
    "tau-bench",
    "atif",
    "terminal-log",
    "terminalbench",
    "knowagent-alfworld",
    "mint",
)
HORIZON = 50
RECORDED = Decision("continue", None, None, 1.0, "recorded")


@dataclass(frozen=True)
class Recorded:
    """One trajectory in the neutral form."""

    task: str
    success: bool | None
    body: Json
    """Chat-completion body with all messages."""
    model: str
    verifier: Verifier | None = None
    """What scores its actions; None: the one for agents we know nothing about."""


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
    known = _resolved(outcomes) if outcomes else {}
    readers: dict[str, Callable[[Any, str], Recorded]] = {
        "openai-jsonl": _openai, "anthropic-jsonl": _anthropic, "mini-swe-agent": _mini, "tau-bench": _tau, "atif": _atif,
        "terminal-log": lambda raw, where: _shell(from_text(raw, where), where),
        "terminalbench": lambda raw, where: _shell(from_trial(raw, where), where),
        "knowagent-alfworld": _knowagent, "mint": _mint,
    }  # fmt: skip
    sources: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
        "terminal-log": text_logs, "terminalbench": trials, "atif": harbor.trials if harbor.is_job(path) else _objects,
    }  # fmt: skip
    found: list[tuple[Recorded, Request, bool]] = []
    unknown = 0
    for where, raw in sources.get(kind, _objects)(path):
        try:
            recorded = readers[kind](raw, where)
            request = parse(msgspec.json.encode(recorded.body))
        except (KeyError, TypeError, ValueError, AttributeError, BadRequest) as error:
            raise ArtifactError(f"{where} is not {kind} ({type(error).__name__}: {error})") from None
        success = known.get(recorded.task, recorded.success)
        if success is None:
            unknown += 1
            continue
        found.append((recorded, request, success))
    return asyncio.run(_episodes(found)), unknown


async def _episodes(found: Sequence[tuple[Recorded, Request, bool]]) -> list[Episode]:
    return [await _episode(recorded, request, success) for recorded, request, success in found]


async def _episode(recorded: Recorded, request: Request, success: bool) -> Episode:
    """Each assistant message is a step, seen with what was known before it: the request that would have asked for it."""
    verifier = recorded.verifier or ToolCallVerifier(tools_of(request.tools))
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


def _objects(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, object) of every JSON object: lines of a file, elements of a list, files of a folder."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and ".json" in p.name) if path.is_dir() else [path]
    if not files:
        raise ArtifactError(f"{path} holds no JSON files")
    for file in files:
        opener: Any = {".xz": lzma.open, ".gz": gzip.open}.get(file.suffix, open)
        try:
            with opener(file, "rt", encoding="utf-8") as stream:
                text = stream.read()
        except (OSError, UnicodeDecodeError, lzma.LZMAError, EOFError) as error:
            raise ArtifactError(f"{file} cannot be read ({error})") from None
        if ".jsonl" in file.name:
            for number, line in enumerate(text.splitlines(), start=1):
                if line.strip():
                    yield f"{file}:{number}", _json(line, f"{file}:{number}")
            continue
        value = _json(text, str(file))
        listed = value.get("simulations") if isinstance(value, dict) and "simulations" in value else value
        for number, entry in enumerate(listed if isinstance(listed, list) else [listed], start=1):
            yield f"{file}:{number}", entry


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ArtifactError(f"{where} is not JSON ({error})") from None


def _outcome(raw: Mapping[str, Any]) -> bool | None:
    """What a record says of its success, in the places where records say it."""
    for place in (
        raw,
        raw.get("info") or {},
        raw.get("extra") or {},
        raw.get("metadata") or {},
        raw.get("reward_info") or {},
    ):
        if not isinstance(place, Mapping):
            continue
        for key in ("success", "resolved", "passed", "reward", "score"):
            value = place.get(key)
            if isinstance(value, bool):
                return value
            if isinstance(value, int | float):
                return value >= SOLVED
    return None


def _task(raw: Mapping[str, Any], otherwise: str) -> str:
    info = raw.get("info") if isinstance(raw.get("info"), Mapping) else {}
    for place in (raw, info):
        assert isinstance(place, Mapping)
        for key in ("task", "task_id", "instance_id", "problem_id"):
            if place.get(key) is not None:
                benchmark = raw.get("benchmark")
                return f"{benchmark}/{place[key]}" if benchmark else str(place[key])
    return otherwise


def _openai(raw: Json, where: str) -> Recorded:
    body = {"messages": raw["messages"], **({"tools": raw["tools"]} if raw.get("tools") else {})}
    goal = next((str(m.get("content")) for m in raw["messages"] if m.get("role") == "user"), where)
    return Recorded(_task(raw, goal), _outcome(raw), body, str(raw.get("model", "recorded")))


def _shell(raw: Json, where: str) -> Recorded:
    """The same where the assistant's messages are shell commands."""
    return replace(_openai(raw, where), verifier=TerminalVerifier())


def _anthropic(raw: Json, where: str) -> Recorded:
    body = from_messages({key: raw[key] for key in ("messages", "system", "tools") if key in raw})
    return _openai({**raw, "messages": body["messages"], "tools": body.get("tools")}, where)


def _mini(raw: Json, where: str) -> Recorded:
    """mini-swe-agent: a chat whose last entries may be the exit; the instance is in the file or is the file's name."""
    messages = [
        {"role": m["role"] if m["role"] in ("system", "user", "assistant", "tool") else "user", **_said(m)}
        for m in raw["messages"]
        if m.get("role") != "exit"
    ]
    config = (raw.get("info") or {}).get("config") or {}
    model = str((config.get("model") or {}).get("model_name", "recorded")) if isinstance(config, Mapping) else "recorded"
    name = Path(where.rsplit(":", 1)[0]).name.split(".")[0]
    return Recorded(_task(raw, name), _outcome(raw), {"messages": messages}, model)


def _said(message: Mapping[str, Any]) -> Json:
    kept = {key: message[key] for key in ("content", "tool_calls", "tool_call_id") if message.get(key) is not None}
    return kept or {"content": ""}


def _tau(raw: Json, where: str) -> Recorded:
    """A run of tau-bench ("traj") or tau2 ("messages"), or our own lines of steps."""
    if "steps" in raw:
        messages: list[Json] = [{"role": "user", "content": str(raw.get("user_first") or raw.get("instruction") or "")}]
        for i, step in enumerate(raw["steps"]):
            messages += _tau_step(step, f"call_{i}")
        return Recorded(_task(raw, where), _outcome(raw), {"messages": messages}, str(raw.get("model", "recorded")))
    messages = [
        {
            "role": m["role"],
            **_said({**m, "tool_calls": [_call(c) for c in m["tool_calls"]] if m.get("tool_calls") else None}),
        }
        for m in raw.get("traj") or raw["messages"]
    ]
    return Recorded(_task(raw, where), _outcome(raw), {"messages": messages}, "recorded")


def _tau_step(step: Mapping[str, Any], identity: str) -> list[Json]:
    said: Json = {"role": "assistant", "content": step.get("action") or ""}
    seen = step.get("observation") or ""
    if not step.get("tool"):
        return [said, {"role": "user", "content": seen}]
    function = {"name": step["tool"], "arguments": step.get("arguments") or "{}"}
    said["tool_calls"] = [{"id": identity, "type": "function", "function": function}]
    return [said, {"role": "tool", "tool_call_id": identity, "content": seen}]


def _call(call: Mapping[str, Any]) -> Json:
    """A tool call, in OpenAI's form or tau2's flat one."""
    if "function" in call:
        return dict(call)
    function = {"name": call["name"], "arguments": json.dumps(call.get("arguments") or {})}
    return {"id": call.get("id"), "type": "function", "function": function}


def _atif(raw: Json, where: str) -> Recorded:
    if not str(raw.get("schema_version", "")).startswith("ATIF"):
        raise ValueError("no schema_version ATIF-...")
    messages: list[Json] = []
    for step in raw["steps"]:
        source = step["source"]
        text = step.get("message")
        said: Json = {"role": {"agent": "assistant"}.get(source, source), "content": text if text is not None else ""}
        calls = step.get("tool_calls") or []
        if calls:
            said["tool_calls"] = [
                {
                    "id": c["tool_call_id"],
                    "type": "function",
                    "function": {"name": c["function_name"], "arguments": json.dumps(c.get("arguments") or {})},
                }
                for c in calls
            ]
        messages.append(said)
        for result in (step.get("observation") or {}).get("results") or []:
            role = "tool" if result.get("source_call_id") else "user"
            messages.append(
                {"role": role, "tool_call_id": result.get("source_call_id"), "content": result.get("content") or ""}
            )
    agent = raw.get("agent") or {}
    task = _task(raw.get("extra") or {}, _task(raw, str(raw.get("session_id") or where)))
    return Recorded(task, _outcome(raw), {"messages": messages}, str(agent.get("model_name") or "recorded"))


def _knowagent(raw: Json, where: str) -> Recorded:
    """The model's thoughts between the commands are left out; the room and the goal are one text in the file."""
    room, goal = raw["intro"].split("Your task is to: ", 1)
    messages: list[Json] = [{"role": "user", "content": goal.strip()}, {"role": "user", "content": room.strip()}]
    for step in raw["steps"]:
        messages += [{"role": "assistant", "content": step["action"]}, {"role": "user", "content": step["observation"]}]
    model = f"{raw['model']} {raw['iteration']}"
    return Recorded(_task(raw, where), _outcome(raw), {"messages": messages}, model, HouseholdVerifier())


def _mint(raw: Json, where: str) -> Recorded:
    """The last action has no observation of its own: what it led to is the outcome."""
    prompts = _mint_prompts(Path(where.rsplit(":", 1)[0]).parent)
    messages: list[Json] = [{"role": "user", "content": prompts[raw["task"]]}]
    for step in raw["steps"]:
        messages.append({"role": "assistant", "content": step["action"]})
        messages.append({"role": "user", "content": step.get("observation") or ""})
    helped = f" + {raw['feedback_kind']} of {raw['teacher']}" if raw["teacher"] else ""
    return Recorded(_task(raw, where), _outcome(raw), {"messages": messages}, f"{raw['model']}{helped}")


@lru_cache(maxsize=1)
def _mint_prompts(folder: Path) -> dict[str, str]:
    path = folder / "tasks.jsonl.xz"
    if not path.exists():
        raise ArtifactError(f"{path} does not exist; MINT's episodes need the file of their tasks beside them")
    return {entry["task"]: entry["prompt"] for _, entry in _objects(path)}


def _resolved(path: Path) -> dict[str, bool]:
    """Outcomes by task: {"task": true, ...}, or a SWE-bench report with resolved_ids and unresolved_ids."""
    raw = _json(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(raw, dict):
        raise ArtifactError(f"{path} must be a JSON object of outcomes by task")
    if "resolved_ids" in raw:
        failed: Sequence[str] = [*(raw.get("unresolved_ids") or []), *(raw.get("empty_patch_ids") or [])]
        return {**dict.fromkeys(failed, False), **dict.fromkeys(raw["resolved_ids"], True)}
    return {task: value >= SOLVED for task, value in raw.items() if isinstance(value, int | float)}
