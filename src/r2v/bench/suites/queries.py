"""RouteLLM's questions, each with whether a weak and a strong model answer it right.

They are the evaluation data of RouteLLM (arXiv 2406.18665).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from r2v.bench.data import records
from r2v.bench.prices import LIST, Bill
from r2v.bench.suite import Escalated, Loaded, Mode, Outcome
from r2v.core.groups import groups
from r2v.core.types import Episode
from r2v.logs.files import objects
from r2v.logs.importing import import_logs
from r2v.logs.records import Recorded, Records
from r2v.messages.conversation import Json
from r2v.runtime.progress import Report

LOG = "queries/routellm.jsonl.xz"
WEAK, STRONG = "mixtral-8x7b", "gpt-4-turbo"
"""Mixtral-8x7B-Instruct-v0.1 and gpt-4-1106-preview."""
WRITTEN = {"mmlu": 1, "gsm8k": 500}
"""Characters of an answer, which is not recorded: a letter; a worked solution."""
SAMPLE, SEED = 4000, 0


def convert(raw: Json, where: str) -> Recorded:
    """A question as a session of one step, whose draft is empty: what the weak model wrote is not recorded."""
    question = [{"role": "user", "content": raw["prompt"]}, {"role": "assistant", "content": ""}]
    task = f"{raw['dataset']}/{raw['subject']}/{raw['idx']}"
    return Recorded(task, bool(raw["weak_correct"]), {"messages": question}, WEAK)


FORMAT = Records("routellm", "RouteLLM's questions with two models' outcomes (JSON lines)", convert)


@dataclass(frozen=True)
class Answers:
    """Whether each question is answered right by the model that is asked."""

    episodes: Sequence[Episode]
    strong: Sequence[bool]

    def __call__(self, asked: Sequence[tuple[int, Escalated]], progress: Report) -> list[Outcome]:
        return [self._outcome(e, bool(escalated)) for e, escalated in asked]

    def _outcome(self, e: int, escalated: bool) -> Outcome:
        episode, bill = self.episodes[e], Bill(LIST)
        bill.call(STRONG if escalated else WEAK, len(episode.goal), WRITTEN[episode.task.id.split("/")[0]])
        solved = self.strong[e] if escalated else bool(episode.success)
        return Outcome(float(solved), bill.usd, float(escalated), float(not escalated))


@dataclass(frozen=True)
class Queries:
    """A `Suite`."""

    name: str = "queries"
    description: str = (
        f"MMLU and GSM8K, {SAMPLE:,} of RouteLLM's 15,361 questions with its grades of Mixtral-8x7B and GPT-4 Turbo"
    )
    path: str = LOG
    mode: Mode = "restart"

    def load(self, data: Path, progress: Report) -> Loaded:
        """See `Suite.load`."""
        path = records(data, LOG, "the evaluation data of github.com/lm-sys/RouteLLM")
        rows = list(objects(path))
        drawn = np.random.default_rng(SEED).choice(len(rows), min(SAMPLE, len(rows)), replace=False)
        sample = [rows[i] for i in sorted(drawn.tolist())]
        episodes, _ = import_logs(path, replace(FORMAT, source=lambda _: iter(sample)))
        strong = [bool(raw["strong_correct"]) for _, raw in sample]
        progress(len(episodes), len(episodes), "questions read")
        facts = {
            "questions": len(rows),
            "drawn": len(episodes),
            "seed": SEED,
            "of": {name: sum(raw["dataset"] == name for _, raw in sample) for name in WRITTEN},
            "prices": f"list prices of {WEAK} and {STRONG}",
            "characters_of_an_answer": WRITTEN,
            "not_recorded": "answers, and examples in the prompt: a router sees the question alone, and the weak model is "
            "not paid where it is not asked",
        }
        return Loaded(episodes, groups(episodes).group_E, STRONG, Answers(episodes, strong), facts=facts)


QUERIES = Queries()
