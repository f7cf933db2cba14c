"""Sessions that a weak and a stronger model were recorded on, both: escalating one puts the stronger one's own in its place.

Nothing is played, so all that is known is the outcome from the start: the mode is restart, and the price of what the weak
model did before comes on top.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from r2v.bench.data import records
from r2v.bench.prices import LIST, Bill
from r2v.bench.suite import Escalated, Loaded, Mode, Outcome
from r2v.clients.settings import PriceSettings
from r2v.core.errors import SettingsError
from r2v.core.groups import groups
from r2v.core.types import Episode
from r2v.logs.importing import import_logs, log_format
from r2v.logs.records import LogFormat, Recorded
from r2v.runtime.progress import Report
from r2v.studies.verdict_report import with_verdicts
from r2v.verdicts import parse_verdicts


@dataclass(frozen=True)
class RecordedPairs:
    """One set of records: which agents count as weak, and which one as strong."""

    name: str
    description: str
    source: str
    """Where the records are from."""
    path: str
    """Below the folder of the data."""
    log: str
    """Its log format."""
    weak: Mapping[str, str]
    """Agent -> its price, by the names of `r2v.bench.prices.LIST`."""
    strong: tuple[str, str]
    """The same of the stronger one."""
    tasks: str = ""
    """What the names of the tasks begin with that count."""
    verdicts: tuple[str, ...] = ()
    """What is known of the work while it runs (`r2v.verdicts`)."""
    mode: ClassVar[Mode] = "restart"

    def load(self, data: Path, progress: Report) -> Loaded:
        path = records(data, self.path, self.source)
        progress(0, 1, "reading")
        format_ = Of(log_format(self.log), frozenset((*self.weak, self.strong[0])), self.tasks)
        episodes, _ = import_logs(path, format_)
        progress(1, 1, "reading")
        handed: dict[tuple[str, str], list[Episode]] = defaultdict(list)
        for episode in episodes:
            if episode.agent == self.strong[0]:
                handed[episode.task.id, episode.perturbation].append(episode)
        kept = [e for e in episodes if e.agent in self.weak and e.steps and (e.task.id, e.perturbation) in handed]
        if not kept:
            raise SettingsError(f"{path} holds no task that {self.strong[0]} and a weaker model played, both")
        # Grouped beside the stronger model's own, and beside all tasks: what is one task does not depend on who played it.
        group_E = groups(kept).group_E
        if self.verdicts:
            kept = with_verdicts(kept, parse_verdicts(self.verdicts))
        stronger = [handed[e.task.id, e.perturbation] for e in kept]
        play = Recordings(kept, stronger, self._prices(), self.strong[0])
        facts = {"weak": sorted({e.agent for e in kept}), "usd_per_million_tokens": self._facts()}
        return Loaded(kept, group_E, self.strong[0], play, alone_again=again(kept), facts=facts)

    def _prices(self) -> dict[str, PriceSettings]:
        return {agent: LIST[price] for agent, price in (*self.weak.items(), self.strong)}

    def _facts(self) -> dict[str, list[float]]:
        return {agent: [price.input, price.output] for agent, price in self._prices().items()}


@dataclass(frozen=True)
class Of:
    """A log format that reads some agents' sessions only: the others need not become episodes."""

    format: LogFormat
    agents: frozenset[str]
    tasks: str

    @property
    def name(self) -> str:
        return self.format.name

    @property
    def description(self) -> str:
        return self.format.description

    @property
    def verifier(self) -> str | None:
        return self.format.verifier

    def read(self, path: Path) -> Iterator[Recorded | Episode]:
        for item in self.format.read(path):
            agent, task = (item.model, item.task) if isinstance(item, Recorded) else (item.agent, item.task.id)
            if agent in self.agents and task.startswith(self.tasks):
                yield item


@dataclass(frozen=True, eq=False)
class Recordings:
    """Outcomes by looking them up."""

    episodes: Sequence[Episode]
    stronger: Sequence[Sequence[Episode]]
    """Of each episode, the stronger model's own on the same task."""
    prices: Mapping[str, PriceSettings]
    strong: str

    def __call__(self, asked: Sequence[tuple[int, Escalated]], progress: Report) -> list[Outcome]:
        return [self._outcome(*key) for key in asked]

    def _outcome(self, number: int, escalated: Escalated) -> Outcome:
        episode = self.episodes[number]
        if not escalated:
            return Outcome(float(bool(episode.success)), self._usd(episode, len(episode.steps)), 0, len(episode.steps))
        drafts = escalated[0] + 1  # the one that the router saw is paid for, too
        runs = self.stronger[number]
        usd = self._usd(episode, drafts) + float(np.mean([self._usd(run, len(run.steps)) for run in runs]))
        success = float(np.mean([bool(run.success) for run in runs]))
        return Outcome(success, usd, float(np.mean([len(run.steps) for run in runs])), drafts)

    def _usd(self, episode: Episode, steps: int) -> float:
        """Of the first steps of a session."""
        bill, read = Bill(self.prices), len(episode.goal)
        for step in episode.steps[:steps]:
            read += len(step.observation.text)
            written = len(step.choice.action.text)
            bill.call(episode.agent, read, written)
            read += written
        return bill.usd


def again(episodes: Sequence[Episode]) -> float | None:
    """Success of another run of the same agent on the same task; None where less than half of them have one."""
    runs: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for e in episodes:
        runs[e.agent, e.task.id, e.perturbation].append(float(bool(e.success)))
    others = [np.mean(found) for found in runs.values() if len(found) > 1 for _ in found]
    return float(np.mean(others)) if len(others) >= len(episodes) / 2 else None


_SQL = ("github.com/princeton-nlp/intercode", "trajectories/intercode/episodes.jsonl.xz", "intercode")
_GPT_4 = ("gpt-4 multiturn 10 turns", "gpt-4")
INTERCODE_VERDICT = RecordedPairs(
    "intercode-verdict", "InterCode SQL: gpt-3.5 that is shown the reward of each turn, beside gpt-4", *_SQL,
    {"gpt-3.5 multiturn 10 turns": "gpt-3.5"}, _GPT_4, "sql/", ("reward",),
)  # fmt: skip
INTERCODE = RecordedPairs(
    "intercode", "InterCode SQL: gpt-3.5 that is shown no reward and stops by itself (ReAct), beside gpt-4", *_SQL,
    {"gpt-3.5 react 10 turns": "gpt-3.5"}, _GPT_4, "sql/",
)  # fmt: skip
WORKBENCH = RecordedPairs(
    "workbench", "WorkBench: four weaker models, each with the tools of all domains or of one, beside gpt-4",
    "github.com/olly-styles/WorkBench", "trajectories/workbench/episodes.jsonl.xz", "workbench",
    {
        "claude-2 all": "claude-2", "claude-2 domains": "claude-2", "gpt-3.5 domains": "gpt-3.5",
        "llama2-70b domains": "llama-2-70b", "mistral-8x7B all": "mixtral-8x7b", "mistral-8x7B domains": "mixtral-8x7b",
    },
    ("gpt-4 domains", "gpt-4"),
)  # fmt: skip
MINT = RecordedPairs(
    "mint", "MINT, nobody's feedback: six weaker models beside gpt-4",
    "github.com/xingyaoww/mint-bench", "trajectories/mint/dev_episodes.jsonl.xz", "mint",
    {
        "gpt-3.5-turbo-0613": "gpt-3.5", "claude-instant-1": "claude-instant", "Llama-2-70b-chat-hf": "llama-2-70b",
        "lemur-70b-chat-v1": "llama-2-70b", "Mixtral-8x7B-Instruct-v0.1": "mixtral-8x7b",
        "CodeLlama-34b-Instruct-hf": "codellama-34b",
    },
    ("gpt-4-0613", "gpt-4"),
)  # fmt: skip
TAU_BENCH = RecordedPairs(
    "tau-bench", "tau-bench retail: gpt-4o beside gpt-4.1, tasks of one user kept together",
    "github.com/sierra-research/tau-bench", "trajectories/tau_bench/episodes.jsonl.xz", "tau-bench",
    {"gpt-4o": "gpt-4o"}, ("gpt-4.1", "gpt-4.1"), "tau-bench retail",
)  # fmt: skip
