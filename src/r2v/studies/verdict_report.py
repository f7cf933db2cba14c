"""What each verdict is worth on a user's own logs: how often it knows a value, how well that fits outcomes, its price."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from r2v.core.types import SOLVED, Context, Episode, is_hashed
from r2v.evaluation.prefixes import auroc_over_tasks
from r2v.verdicts.base import SessionVerdict, StepVerdict, Verdict, read_all, read_steps

HORIZON = 1_000_000
"""No verdict reads how long an episode may be."""


def verdict_report(episodes: Sequence[Episode], verdicts: Sequence[Verdict], seed: int) -> list[dict[str, Any]]:
    """Compare verdicts with outcomes that were seen or sent; one that was itself taken from a verdict shows nothing.

    Args:
        episodes: recorded ones; of a redacted ledger the values count that the gateway wrote down.
        verdicts: a judge among them is asked about each episode.
        seed: of the intervals.

    Returns:
        For each verdict `verdict`, `episodes` and `steps` (how many there are), `covered_episodes` and `covered_steps`
        (the shares for which it has a value), `compared` (episodes with a value and an outcome), `auroc` of its last value
        against success with `auroc_ci95` over tasks (None without both outcomes), `agrees` (share of the compared ones in
        which it is on the side of the outcome), and `usd`, what it cost here; what a judge's cache answers costs nothing.
    """
    return [_row(episodes, verdict, seed) for verdict in verdicts]


def verdict_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows of a report as lines for people."""
    found = []
    for row in rows:
        area = "no AUROC: it takes episodes of both outcomes with a value"
        if row["auroc"] is not None:
            low, high = row["auroc_ci95"]
            area = f"AUROC {row['auroc']:.2f} ({low:.2f} to {high:.2f}), agrees in {row['agrees']:.0%}"
        known = f"known in {row['covered_episodes']:.0%} of episodes, {row['covered_steps']:.0%} of steps"
        found.append(f"{row['verdict']:<13} {area}; {known}; ${row['usd']:.4f}")
    return found


def with_verdicts(episodes: Sequence[Episode], verdicts: Sequence[Verdict]) -> list[Episode]:
    """The episodes with what the verdicts knew at each step; without an outcome the last value known becomes it.

    A verdict that is asked once a session has ended is no part of a step; the first verdict that knows a value counts.
    """
    texts = [verdict for verdict in verdicts if not isinstance(verdict, StepVerdict | SessionVerdict)]
    found = []
    for episode in episodes:
        known: list[dict[str, float]] = [{} for _ in episode.steps]
        outcome = None
        for verdict in texts:
            *values, last = _values(verdict, episode)
            for step, value in zip(known, values, strict=True):
                step |= {} if value is None else {verdict.name: value}
            final = next((v for v in (last, *reversed(values)) if v is not None), None)
            outcome = outcome or (None if final is None else (verdict.name, final))
        steps = tuple(
            replace(step, verdicts=tuple((dict(step.verdicts) | values).items()))
            for step, values in zip(episode.steps, known, strict=True)
        )
        episode = replace(episode, steps=steps)
        if episode.success is None and outcome is not None:
            episode = replace(episode, success=outcome[1] >= SOLVED, outcome_source=outcome[0])
        found.append(episode)
    return found


def _row(episodes: Sequence[Episode], verdict: Verdict, seed: int) -> dict[str, Any]:
    before = verdict.usd if isinstance(verdict, SessionVerdict) else 0.0
    if isinstance(verdict, SessionVerdict):
        last = asyncio.run(_judged(verdict, episodes))
        known_steps = 0
    else:
        values = [_values(verdict, episode) for episode in episodes]
        last = [next((value for value in reversed(one) if value is not None), None) for one in values]
        known_steps = sum(value is not None for one in values for value in one[:-1])
    steps = sum(len(episode.steps) for episode in episodes)
    compared = [
        (value, float(episode.success), episode.task.id)
        for value, episode in zip(last, episodes, strict=True)
        if value is not None and episode.success is not None and not episode.outcome_source
    ]
    area, area_ci95, agrees = None, None, None
    if compared:
        value_N, y_N = np.array([one[:2] for one in compared]).T
        task_N = np.unique([task for *_, task in compared], return_inverse=True)[1]
        area, area_ci95 = auroc_over_tasks(value_N, y_N, task_N, seed=seed)
        agrees = float(((value_N >= 0.5) == (y_N == 1)).mean())
    return {
        "verdict": verdict.name,
        "episodes": len(episodes),
        "steps": steps,
        "covered_episodes": sum(value is not None for value in last) / max(1, len(episodes)),
        "covered_steps": known_steps / max(1, steps),
        "compared": len(compared),
        "auroc": area,
        "auroc_ci95": area_ci95,
        "agrees": agrees,
        "usd": (verdict.usd - before) if isinstance(verdict, SessionVerdict) else 0.0,
    }


def _values(verdict: Verdict, episode: Episode) -> list[float | None]:
    """What it knew at each step, and at last once the episode had ended."""
    hashed = is_hashed(episode.goal)
    found: list[float | None] = []
    contexts = episode.contexts(HORIZON)
    for step, context in zip(episode.steps, contexts, strict=True):
        noted = dict(step.verdicts).get(verdict.name)
        if hashed and noted is not None:
            found.append(noted)
            continue
        read = read_steps([verdict], step) if isinstance(verdict, StepVerdict) else _read(verdict, context, hashed)
        found.append(read[0][1] if read else noted)
    end = None
    if episode.steps and not isinstance(verdict, StepVerdict):
        context = contexts[-1]
        final = episode.final.text if episode.final is not None else ""
        answer = episode.steps[-1].choice.action
        whole = Context(context.goal, (*context.observations, final), (*context.actions, answer), HORIZON)
        end = next((value for _, value in _read(verdict, whole, hashed)), None)
    return [*found, end]


def _read(verdict: Verdict, context: Context, hashed: bool) -> tuple[tuple[str, float], ...]:
    """Hashes are no words to read."""
    return () if hashed else read_all([verdict], context)


async def _judged(judge: SessionVerdict, episodes: Sequence[Episode]) -> list[float | None]:
    """As many at once as the model's settings allow."""
    try:
        return list(await asyncio.gather(*(judge.judge(episode) for episode in episodes)))
    finally:
        if (close := getattr(judge, "close", None)) is not None:
            await close()
