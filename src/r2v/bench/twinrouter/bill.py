"""What calls cost by TwinRouterBench's rules, and what a run of its dynamic track comes to.

Four counts of tokens (read anew, read from the cache, written to it, written as the answer), each at its price; and
`PUBLISHED.penalty_usd` for each case that is not solved.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from r2v.bench.twinrouter.published import MODELS, PRICES, PUBLISHED, TIERS, DynamicRow
from r2v.clients.settings import PriceSettings
from r2v.clients.tokens import Tokens
from r2v.core.errors import ArtifactError
from r2v.core.types import SOLVED
from r2v.core.untrusted import parsed_json, read_json, unpacked_lines
from r2v.evaluation.curves import interval, resample_BT
from r2v.gateway.ledger import Ledger
from r2v.messages.conversation import counted

RESAMPLES = 1000
STRONGEST = MODELS[TIERS[-1]]
ASIDE = ".aside"
"""After a session's name: requests beside its steps, such as titles."""


def usd(tokens: Tokens, price: PriceSettings) -> float:
    """Of one call."""
    return price.usd(tokens.prompt, tokens.output, tokens.cached, tokens.cache_written)


def tokens_of(usage: Mapping[str, Any]) -> Tokens:
    """The counts that an OpenAI-style server reports, OpenRouter's cache writes included.

    Raises ValueError where a count is missing or cannot be true.
    """
    named = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    if not any(named):  # some proxies fill in Anthropic's names alone
        other = (usage.get("input_tokens"), usage.get("output_tokens"))
        named = other if any(other) else named
    details = usage.get("prompt_tokens_details")
    details = details if isinstance(details, Mapping) else {}
    caches = (details.get("cached_tokens") or 0, details.get("cache_write_tokens") or 0)
    counts = [counted(int(n) if isinstance(n, float) and n.is_integer() else n) for n in (*named, *caches)]
    if None in counts:
        raise ValueError("usage needs whole numbers of prompt_tokens and completion_tokens, and of cached ones if any")
    tokens = Tokens(*counts)  # type: ignore[arg-type]
    if tokens.cached + tokens.cache_written > tokens.prompt:
        raise ValueError(f"{tokens.cached} + {tokens.cache_written} cached tokens in a prompt of {tokens.prompt}")
    return tokens


@dataclass
class PromptCaches:
    """What each model's provider holds of one instance's prompt, for calls whose usage does not say it.

    A call reads what the same model read at its latest call, if that is at most `lifetime` ago and still how the prompt
    begins; it writes the rest. Other models called in between change nothing.
    """

    lifetime: float = PUBLISHED.cache_s
    """In the unit of the calls' times."""
    _latest: dict[str, tuple[float, int, tuple[str, ...]]] = field(default_factory=dict)

    def call(self, model: str, at: float, prompt: int, output: int, messages: Sequence[str] = ()) -> Tokens:
        """The counts of one call.

        Args:
            model: which one.
            at: when.
            prompt: tokens of all that it reads.
            output: tokens that it writes.
            messages: what it reads, one text a message; without any every prompt is taken to continue the one before.
        """
        held = 0
        if model in self._latest:
            before, tokens, begun = self._latest[model]
            if at - before <= self.lifetime and tuple(messages[: len(begun)]) == begun:
                held = min(tokens, prompt)
        self._latest[model] = (at, prompt, tuple(messages))
        return Tokens(prompt, output, held, prompt - held)


@dataclass(frozen=True, slots=True)
class Case:
    """One instance of a run."""

    instance: str
    solved: bool
    usd: float
    """Of its calls."""
    calls: Mapping[str, int]
    """Model -> how many."""


def total(cases: Sequence[Case]) -> dict[str, Any]:
    """The leaderboard's totals, by its names; it is sorted by `total_leaderboard_bill_usd`."""
    solved, spent = sum(case.solved for case in cases), math.fsum(case.usd for case in cases)
    penalty = PUBLISHED.penalty_usd * (len(cases) - solved)
    return {
        "total_leaderboard_bill_usd": spent + penalty,
        "total_router_cost_usd": spent,
        "total_penalty_cost_usd": penalty,
        "resolved_count": solved,
        "instance_count": len(cases),
        "resolved_rate": solved / len(cases) if cases else None,
        "avg_cost_per_resolved_usd": (spent + penalty) / solved if solved else None,
    }


def score_run(folder: Path, only: Collection[str] | None = None) -> list[Case]:
    """The cases of a run of `twinrouterbench dynamic run`, every call repriced from the usage that its provider reported.

    Args:
        folder: its `--output-dir`, with `results/INSTANCE.json` and `INSTANCE.trace.jsonl`.
        only: instances to take, e.g. the held-out hundred; None: all.

    Raises:
        ArtifactError: something is missing or wrong, with the file.
    """
    paths = sorted((folder / "results").glob("*.json"))
    paths = [path for path in paths if only is None or path.stem in only]
    if missing := sorted(set(only or ()) - {path.stem for path in paths}):
        raise ArtifactError(f"{folder}/results has no {missing[0]}.json ({len(missing)} missing); run these instances, too")
    if not paths:
        raise ArtifactError(f"{folder}/results has no JSON files; give the --output-dir of `twinrouterbench dynamic run`")
    cases = []
    for path in paths:
        try:
            result = read_json(path)
            solved = result.get("resolved", False)
        except (ValueError, AttributeError) as error:
            raise ArtifactError(f"{path} is no result of the harness ({error}); run the instance again") from None
        trace = folder / f"{path.stem}.trace.jsonl"
        calls: Counter[str] = Counter()
        spent = []
        for line, step in _steps(trace):
            try:
                model = step["model_id"]
                spent.append(usd(tokens_of(step["raw_usage"]), PRICES[model]))
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                what = f"no {error}" if isinstance(error, KeyError) else error
                raise ArtifactError(
                    f"{trace}, line {line}: the call has no price ({what}); run the instance again"
                ) from None
            calls[model] += 1
        cases.append(Case(path.stem, solved is True, math.fsum(spent), calls))
    return cases


def _steps(trace: Path) -> Iterable[tuple[int, Any]]:
    """(number of the line, call) of a trace, without its last line, which sums up."""
    try:
        for number, text in enumerate(unpacked_lines(trace), 1):
            if text.strip():
                step = parsed_json(text, exact=False)
                if not (isinstance(step, dict) and "__marker__" in step):
                    yield number, step
    except FileNotFoundError:
        raise ArtifactError(f"{trace} does not exist; put it beside results/, as the harness wrote it") from None
    except ValueError as error:
        raise ArtifactError(f"{trace}, line {number}: it is no JSON ({error}); run the instance again") from None


def ledger_cases(path: Path) -> list[Case]:
    """The cases that a gateway of r2v served, a session each, by what it has charged for all calls, unused drafts included.

    Args:
        path: of its ledger. Sessions are named by their instances (`x-r2v-session-id`), and have outcomes.

    Raises:
        ArtifactError: there is no such ledger, or a session has no outcome.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist; give the gateway's ledger (`store.path`)")
    spent: dict[str, float] = defaultdict(float)
    calls: dict[str, Counter[str]] = {}
    solved: dict[str, bool] = {}
    with closing(Ledger(path)) as ledger:
        for entries, outcome, _ in ledger.whole_sessions(None):
            name = entries[0].session.rpartition("/")[2].removesuffix(ASIDE)  # KEY/NAME
            spent[name] += math.fsum(entry.slm_usd + entry.teacher_usd for entry in entries)
            calls.setdefault(name, Counter()).update(entry.model for entry in entries)
            if outcome is not None:
                solved[name] = outcome[0] >= SOLVED
    if unknown := sorted(spent.keys() - solved.keys()):
        raise ArtifactError(
            f"{path}: the session {unknown[0]} has no outcome ({len(unknown)} have none); send each by POST /v1/outcomes"
        )
    return [Case(name, solved[name], spent[name], calls[name]) for name in sorted(spent)]


def row_of(router: str, cases: Sequence[Case], seed: int = 1) -> dict[str, Any]:
    """A run as a row of `r2v bench`, with the leaderboard's totals beside it; the interval is over cases."""
    calls = sum((Counter(case.calls) for case in cases), Counter[str]())
    found = total(cases)
    success_T = np.array([float(case.solved) for case in cases])
    success_B = np.round(
        resample_BT(len(cases), RESAMPLES, seed) @ success_T, 12
    )  # weights add up to 1 but for the last bits
    spent, solved = found["total_router_cost_usd"], found["resolved_count"]
    return {
        "router": router,
        "share_strong": calls[STRONGEST] / calls.total() if calls else None,
        "success": found["resolved_rate"],
        "ci95": interval(success_B),
        "usd_per_solved": spent / solved if solved else None,
        **found,
    }


def published_rows(seed: int = 1) -> list[dict[str, Any]]:
    """The rows of the public leaderboard in the same form, the smallest bill first."""
    rows = [row_of(row.router, _cases(row), seed) for row in PUBLISHED.dynamic]
    return sorted(rows, key=lambda row: row["total_leaderboard_bill_usd"])


def _cases(row: DynamicRow) -> list[Case]:
    """Cases of which only the sums are known: each costs the mean."""
    calls: Sequence[Mapping[str, int]] = [row.calls, *[{}] * (row.cases - 1)]
    return [Case("", i < row.resolved, row.api_usd / row.cases, calls[i]) for i in range(row.cases)]
