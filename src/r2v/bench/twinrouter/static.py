"""The static track's scores (section 5.1 of the paper; `main/eval/section11.py` and `main/tokenizer.py` of the repository).

A row passes where the chosen tier is at least its label, a trajectory where all of its rows pass. A prompt is written to
the cache whole where the tier before was another one, where more than `PUBLISHED.cache_steps` lie between, or where the
messages before are not how this prompt begins; else what was there is read and the rest written. A trajectory that fails
saves nothing and has cost what it cost: the always-high run follows.

Axes: N rows, T tiers, J trajectories.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2v.bench.twinrouter.bank import Row
from r2v.bench.twinrouter.bill import usd
from r2v.bench.twinrouter.published import HIGH, PUBLISHED, TIERS
from r2v.clients.tokens import Tokens
from r2v.maths import Floats
from r2v.studies.costs import CHARACTERS

Ints = NDArray[np.int64]
Count = Callable[[str, str], int]
"""Tokens of a text for a tier's tokeniser."""
MESSAGE, PROMPT = 4, 2
"""Tokens that each message, and each prompt, takes beside its text."""
SAME = ("role", "content", "tool_calls", "tool_call_id", "name")
"""By which two messages are the same."""


def characters(text: str, tier: str) -> int:
    """An estimate of the tokens: the tokenisers that the repository uses are on a hub."""
    return -(-len(text) // CHARACTERS)


@dataclass(frozen=True, eq=False)
class Bank:
    """The rows with what each would cost at each tier, priced once for all routers."""

    rows: Sequence[Row]
    gold_N: Ints
    cold_NT: Floats
    """USD where the whole prompt is written to the cache."""
    warm_NT: Floats
    """USD where the row before was of the same tier."""
    before_N: Ints
    """The row before it whose prompt a cache may still hold; -1: none."""
    trajectory_N: Ints
    benchmark_N: Ints
    benchmarks: tuple[str, ...]

    @classmethod
    def priced(cls, rows: Sequence[Row], count: Count = characters) -> Bank:
        """Price all rows, by trajectory and step; their order becomes that."""
        first: dict[str, int] = {}
        for row in rows:
            first.setdefault(row.instance, len(first))
        rows = sorted(rows, key=lambda row: (first[row.instance], row.step))
        benchmarks = tuple(dict.fromkeys(row.benchmark for row in rows))
        before_N = np.full(len(rows), -1)
        cold_NT, warm_NT = np.zeros((len(rows), len(TIERS))), np.zeros((len(rows), len(TIERS)))
        output_N = _outputs(rows, count)
        prompt_NT = np.array([[_prompt(row.messages, tier, count) for tier in TIERS] for row in rows])
        for n, row in enumerate(rows):
            earlier = rows[n - 1] if n and rows[n - 1].instance == row.instance else None
            if earlier and row.step - earlier.step <= PUBLISHED.cache_steps and _begins(row.messages, earlier.messages):
                before_N[n] = n - 1
            for t, tier in enumerate(TIERS):
                prompt, held = int(prompt_NT[n, t]), int(prompt_NT[n - 1, t]) if before_N[n] >= 0 else 0
                cold_NT[n, t] = usd(Tokens(prompt, output_N[n], 0, prompt), PUBLISHED.rates[tier])
                warm_NT[n, t] = usd(Tokens(prompt, output_N[n], held, prompt - held), PUBLISHED.rates[tier])
        return cls(
            rows,
            np.array([row.gold for row in rows]),
            cold_NT,
            warm_NT,
            before_N,
            np.array([first[row.instance] for row in rows]),
            np.array([benchmarks.index(row.benchmark) for row in rows]),
            benchmarks,
        )

    def usd_N(self, chosen_N: Ints) -> Floats:
        """What each row costs where these tiers were chosen."""
        n = np.arange(len(chosen_N))
        warm_N = (self.before_N >= 0) & (chosen_N[self.before_N] == chosen_N)
        return np.where(warm_N, self.warm_NT[n, chosen_N], self.cold_NT[n, chosen_N])

    def solved_J(self, chosen_N: Ints) -> Floats:
        """1 for each trajectory all of whose rows pass, else 0."""
        solved_J = np.ones(int(self.trajectory_N.max()) + 1)
        solved_J[self.trajectory_N[chosen_N < self.gold_N]] = 0.0
        return solved_J

    def scores(self, chosen_N: Ints) -> dict[str, Any]:
        """The published scores, in percent, and what lies below and above the labels."""
        usd_N, always_N = self.usd_N(chosen_N), self.usd_N(np.full(len(chosen_N), HIGH))
        solved_N = self.solved_J(chosen_N)[self.trajectory_N] == 1
        saved_N = np.where(solved_N, always_N, 0.0) - usd_N
        weight_B = np.bincount(self.benchmark_N) / len(chosen_N)
        saved_B = 100 * np.bincount(self.benchmark_N, saved_N) / np.bincount(self.benchmark_N, always_N)
        found: dict[str, Any] = {
            "row_pass": 100 * float(np.mean(chosen_N >= self.gold_N)),
            "row_exact": 100 * float(np.mean(chosen_N == self.gold_N)),
            "traj_pass": 100 * float(np.mean(solved_N)),
            "cost_save": float(weight_B @ saved_B),
        }
        return found | {
            "combined": sum(found.values()) / 4,
            "under": 100 * float(np.mean(chosen_N < self.gold_N)),
            "over": 100 * float(np.mean(chosen_N > self.gold_N)),
            "usd": float(usd_N.sum()),
            "cost_save_by_workload": dict(zip(self.benchmarks, saved_B.tolist(), strict=True)),
        }


def _outputs(rows: Sequence[Row], count: Count) -> list[int]:
    """Tokens that each row's call wrote: the assistant's messages that come with the next row's prompt; of a last row the
    mean of its trajectory, or `PUBLISHED.output_tokens`.
    """
    found: list[int] = []
    written: list[int] = []
    for row, later in zip(rows, [*rows[1:], None], strict=True):
        if later is None or later.instance != row.instance:
            known = [tokens for tokens in written if tokens > 0]
            found.append(sum(known) // len(known) if known else PUBLISHED.output_tokens)
            written = []
            continue
        added = [message for message in later.messages[len(row.messages) :] if message.get("role") == "assistant"]
        written.append(sum(count(_text(message), TIERS[row.gold]) + MESSAGE for message in added))
        found.append(written[-1])
    return found


def _prompt(messages: Sequence[Mapping[str, Any]], tier: str, count: Count) -> int:
    return sum(count(_text(message), tier) + MESSAGE for message in messages) + PROMPT


def _text(message: Mapping[str, Any]) -> str:
    """All of a message that is paid for: its words, and the names and arguments of its calls."""
    parts = [said] if (said := _words(message.get("content"))) else []
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        parts.append(str(function.get("name", "")))
        if arguments := function.get("arguments"):
            parts.append(arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))
    return "\n".join(parts)


def _words(content: Any) -> str:
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        return "\n".join(str(text) for text in texts if text)
    return "" if content is None else str(content)


def _begins(messages: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a prompt begins with all of another one."""
    if len(before) > len(messages):
        return False
    return all(_known(a) == _known(b) for a, b in zip(before, messages, strict=False))


def _known(message: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _words(message[key]) if key == "content" else message[key] for key in SAME if key in message}
