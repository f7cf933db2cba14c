"""AgentDojo in its own engine: recorded weak models, and its own solution of each task as the teacher that is asked.

The records are the exported runs of AgentDojo's authors. The engine makes the recorded calls again, so that the state before
every step is known, and what comes of another call there is the engine's word: `utility` for the user's task, `security` for
the planted one. Clean and attacked runs of a task are episodes of one group.

The teacher knows the solution (`Cell.plan`): it makes those of its calls that nobody has made yet, then gives its answer.
No planted text misleads it, so its gain is about the most that a stronger model could bring at that step; but it undoes
nothing of what the weak model has done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from r2v.bench.data import records
from r2v.bench.prices import LIST, Bill
from r2v.bench.suite import Escalated, Loaded, Mode, Outcome
from r2v.core.errors import ArtifactError
from r2v.core.types import Episode, ToolCall
from r2v.domains.agentdojo.engine import VERSION, Cell, Judged, State, cell_of
from r2v.logs.agentdojo import FORMAT
from r2v.logs.files import objects
from r2v.logs.importing import import_logs
from r2v.runtime.progress import Report

RECORDS = "trajectories/agentdojo/episodes.jsonl.xz"
WEAK = {
    "claude-3-haiku-20240307": ("claude-3-haiku-20240307", "claude-3-haiku"),
    "claude-3-sonnet-20240229": ("claude-3-sonnet-20240229", "claude-3-sonnet"),
    "command-r": ("command-r", "command-r"),
    "command-r-plus": ("command-r-plus", "command-r-plus"),
    "gemini-1-5-flash-001": ("gemini-1.5-flash-001", "gemini-1.5-flash"),
    "gemini-1-5-flash-002": ("gemini-1.5-flash-002", "gemini-1.5-flash"),
    "meta-llama_Llama-3-70b-chat-hf": ("meta-llama/Llama-3-70b-chat-hf", "llama-3-70b"),
}
"""Setting -> (the model's name in the engine, in the list of prices): all settings without a defence, recorded clean and
attacked, that solve less than half of their 154 cells (77 tasks; the suite travel is not recorded). gpt-4-0125-preview
solves exactly half and is not among them."""
STRONG = "claude-3-5-sonnet-20240620"
"""The recorded stronger model, for `facts`; the teacher is charged its price."""
TEACHER = "claude-3.5-sonnet"


@dataclass(frozen=True)
class Turn:
    """One message of the weak model."""

    calls: tuple[ToolCall, ...]
    written: int
    """Characters."""
    came: int
    """Characters that came into the chat before it and are no tool's result."""


@dataclass(frozen=True)
class Session:
    """A recorded episode in the engine."""

    cell: Cell
    price: str
    turns: tuple[Turn, ...]
    answer: str | None
    """The last message; None where the recording breaks off."""
    recorded: Judged

    def alone(self) -> Judged:
        """What the engine says of the recorded calls."""
        state = self.cell.start
        for turn in self.turns:
            state = state.after(turn.calls)
        return self.cell.judge(state, self.answer)

    def differs(self) -> list[bool]:
        """At each step, whether the teacher's next call, or its answer, is another one than the weak model's."""
        found, state = [], self.cell.start
        for turn in self.turns:
            plan = self.cell.plan(state)[:1]
            found.append([self.cell.canonical(c) for c in turn.calls] != [self.cell.canonical(c) for c in plan])
            state = state.after(turn.calls)
        return found


class _Account:
    """Counts the calls of one session, and prices what each read and wrote."""

    def __init__(self, weak: str) -> None:
        self._bill = Bill({weak: LIST[weak], TEACHER: LIST[TEACHER]})
        self._read = 0
        self._calls: Counter[str] = Counter()
        self._weak = weak

    def came(self, characters: int) -> None:
        """So many came into the chat that no call wrote."""
        self._read += characters

    def wrote(self, model: str, characters: int) -> None:
        """A model read the chat and wrote so many; they enter the chat only by `did`."""
        self._bill.call(model, self._read, characters)
        self._calls[model] += 1

    def did(self, state: State, calls: tuple[ToolCall, ...], written: int) -> State:
        """A message enters the chat, its calls are made, and their results enter it."""
        reached = state.after(calls)
        self._read += written + (sum(map(len, reached.results)) if calls else 0)
        return reached

    def outcome(self, judged: Judged) -> Outcome:
        strong, weak = self._calls[TEACHER], self._calls[self._weak]
        return Outcome(float(judged.success), self._bill.usd, strong, weak, judged.injected)


@dataclass
class _Play:
    """`r2v.bench.suite.Play`: forks of recorded sessions in the engine."""

    sessions: Sequence[Session]
    mode: Mode

    def __call__(self, asked: Sequence[tuple[int, Escalated]], progress: Report) -> list[Outcome]:
        found = []
        for done, (number, escalated) in enumerate(asked, start=1):
            found.append(self._played(self.sessions[number], escalated))
            if done % 100 == 0 or done == len(asked):
                progress(done, len(asked), "forks")
        return found

    def _played(self, session: Session, escalated: Escalated) -> Outcome:
        if escalated and not 0 <= min(escalated) <= max(escalated) < len(session.turns):
            raise ValueError(f"steps {escalated} of a session of {len(session.turns)}")
        cell, account, state = session.cell, _Account(session.price), session.cell.start
        account.came(len(cell.tools))
        for t, turn in enumerate(session.turns):
            account.came(turn.came)
            account.wrote(session.price, turn.written)  # also where it is thrown away
            if t not in escalated:
                state = account.did(state, turn.calls, turn.written)
                continue
            plan = cell.plan(state)
            for call in plan if self.mode == "takeover" else plan[:1]:
                written = len(call.name) + len(call.arguments)
                account.wrote(TEACHER, written)
                state = account.did(state, (call,), written)
            if self.mode == "takeover" or not plan:
                account.wrote(TEACHER, len(cell.answer))
                return account.outcome(cell.judge(state, cell.answer))
        if session.turns and len(session.turns) - 1 in escalated and session.answer is not None:
            account.wrote(session.price, session.turns[-1].written)  # a call took the place of the answer, which follows it
        return account.outcome(cell.judge(state, session.answer))


@dataclass(frozen=True)
class AgentDojo:
    """A suite of the bench (`r2v.bench.suite.Suite`)."""

    name: str
    mode: Mode
    how: str
    path: str = RECORDS
    package: str = "agentdojo"
    """What has to be installed."""

    @property
    def description(self) -> str:
        return (
            "7 weak models of 2024 on AgentDojo's workspace, slack and banking tasks, clean and under one attack; "
            f"its engine {VERSION} says what succeeds. {self.how}"
        )

    def load(self, data: Path, progress: Report) -> Loaded:
        """See `Suite.load`. An episode without a message of the model counts as one that does not replay.

        Raises:
            SettingsError: the records are not there, or the package `agentdojo` is not installed.
            ArtifactError: the file holds something else.
        """
        path = records(data, self.path, "the runs of github.com/ethz-spylab/agentdojo")
        raw = list(_records(path))
        episodes, _ = import_logs(path, replace(FORMAT, source=lambda _: iter(raw)), keep_unknown=True)
        sessions = [
            session_of(row, episode, *WEAK.get(row["setting"], (STRONG, TEACHER)))
            for (_, row), episode in zip(raw, episodes, strict=True)
        ]
        weak = [i for i, (_, row) in enumerate(raw) if row["setting"] in WEAK]
        same = []
        for done, i in enumerate(weak):
            if done % 50 == 0:
                progress(done, len(weak), "replay")
            same.append(bool(sessions[i].turns) and sessions[i].alone() == sessions[i].recorded)
        unsolvable = sorted({_task(s.cell) for s in (sessions[i] for i in weak) if not _solved(s.cell)})
        kept = [i for i, alike in zip(weak, same, strict=True) if alike and _task(sessions[i].cell) not in unsolvable]
        play = _Play([sessions[i] for i in kept], self.mode)
        tasks = [episodes[i].task.family for i in kept]
        facts: dict[str, Any] = {
            "engine": f"agentdojo {VERSION}",
            "weak": list(WEAK),
            "teacher": f"AgentDojo's own solution, priced as {TEACHER}",
            "cells": len({(episodes[i].task.id, episodes[i].perturbation) for i in kept}),
            "left_out_unsolvable": unsolvable,
        }
        names = [f"{episodes[i].agent} {episodes[i].task.id} {episodes[i].perturbation}" for i in weak]
        attacked = [sessions[i].cell.injection_task is not None for i in weak]
        found = Loaded(
            [episodes[i] for i in kept],
            np.unique(tasks, return_inverse=True)[1].astype(np.int64),
            "AgentDojo's own solution",
            play,
            differs=[session.differs() for session in play.sessions],
            fidelity=_fidelity(names, same, [not a for a in attacked]) | {"attacked": _fidelity(names, same, attacked)},
            facts=facts,
        )
        if self.mode == "takeover":
            strong = {_where(s.cell): s for i, s in enumerate(sessions) if raw[i][1]["setting"] == STRONG}
            facts["recorded_stronger_model"] = _same_history(play.sessions, found, strong, progress)
        return found


TAKEOVER = AgentDojo(
    "agentdojo", "takeover",
    "From the escalated step on AgentDojo's own solution is carried out, but for what was done already.",
)  # fmt: skip
ONE_STEP = AgentDojo(
    "agentdojo-step", "one_step",
    "At each escalated step the next call of AgentDojo's own solution takes the place of the weak model's; its other calls "
    "follow as recorded, whatever it would have done on seeing the result (open loop), and no session gets longer.",
)  # fmt: skip


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, record) of the settings that count, where there is a chat. Raises ArtifactError."""
    for where, row in objects(path):
        if not FORMAT.recognises(row):
            raise ArtifactError(
                f"{where} is not AgentDojo's: `{FORMAT.name}` records have suite, user_task, setting, messages"
            )
        if row["setting"] in (*WEAK, STRONG) and row["messages"]:
            yield where, row


def session_of(row: dict[str, Any], episode: Episode, victim: str, price: str) -> Session:
    """A record, the episode made of it, its model's name in the engine, and in `r2v.bench.prices.LIST`."""
    cell = cell_of(row["suite"], row["user_task"], row["injection_task"], victim)
    turns = []
    for step in episode.steps:
        came = sum(len(message.content or "") for message in step.messages if message.role != "tool")
        calls = step.choice.action.tool_calls
        said = (step.choice.reply.content if step.choice.reply else None) or ""
        written = len(said) + sum(len(call.name) + len(call.arguments) for call in calls)
        turns.append(Turn(calls, written, came))
    last = row["messages"][-1]
    answer = (last["content"] or "") if last["role"] == "assistant" else None
    injected = row["security_flag"] if row["attack"] else None
    return Session(cell, price, tuple(turns), answer, Judged(row["success"], injected))


def _task(cell: Cell) -> str:
    return f"{cell.suite}/{cell.user_task}"


def _where(cell: Cell) -> tuple[str, str | None]:
    """The cell, whichever model the planted text addresses."""
    return _task(cell), cell.injection_task


def _solved(cell: Cell) -> bool:
    """Whether the engine accepts its own solution."""
    return cell.judge(cell.start.one_by_one(cell.solution), cell.answer).success


def _fidelity(names: Sequence[str], same: Sequence[bool], of: Sequence[bool]) -> dict[str, Any]:
    """Of some episodes: how many come out in the engine as they were recorded, and the names of the others."""
    chosen = [(name, alike) for name, alike, counts in zip(names, same, of, strict=True) if counts]
    replayed = sum(alike for _, alike in chosen)
    return {
        "replayed": replayed, "of": len(chosen), "share": replayed / max(1, len(chosen)),
        "left_out": [name for name, alike in chosen if not alike],
    }  # fmt: skip


def _same_history(
    sessions: Sequence[Session], loaded: Loaded, strong: dict[Any, Session], progress: Report
) -> dict[str, Any]:
    """Where the recorded stronger model had made the very calls that a weak one has made so far, and how it ended there."""
    found: dict[str, Any] = {"model": STRONG}
    for kind, planted in (("clean", False), ("attacked", True)):
        numbers = [n for n, s in enumerate(sessions) if (s.cell.injection_task is not None) == planted]
        points = [(n, t) for n in numbers for t in range(1, len(sessions[n].turns))]
        shared = [(n, t) for n, t in points if _stands_there(sessions[n], strong.get(_where(sessions[n].cell)), t)]
        others = [strong[_where(sessions[n].cell)].recorded for n, _ in shared]
        teacher = loaded.outcomes([(n, (t,)) for n, t in shared], progress)
        found[kind] = {
            "steps_after_the_first": len(points), "same_history": len(shared),
            "its_success": _mean([o.success for o in others]), "teacher_success": _mean([o.success for o in teacher]),
        }  # fmt: skip
        if planted:
            found[kind] |= {"its_injected": _mean([bool(o.injected) for o in others]),
                            "teacher_injected": _mean([bool(o.injected) for o in teacher])}  # fmt: skip
    return found


def _stands_there(weak: Session, strong: Session | None, t: int) -> bool:
    """Whether the stronger model made the same calls in its first t messages, and went on."""
    if strong is None or len(strong.turns) <= t:
        return False
    return _made(weak, t) == _made(strong, t)


def _made(session: Session, t: int) -> list[list[tuple[str, str]]]:
    return [[session.cell.canonical(call) for call in turn.calls] for turn in session.turns[:t]]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
