"""Verifiers that are models, made from recorded episodes: a process reward model fitted, or a judge calibrated."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from r2v.core.errors import StageError
from r2v.core.types import NO_USAGE, Episode, Usage, is_hashed
from r2v.learning.process_reward import save_process_reward, train_process_reward
from r2v.maths.calibration import brier
from r2v.maths.stats import auroc
from r2v.runtime.store import write_json
from r2v.verifiers.judge import JudgeVerifier

if TYPE_CHECKING:
    from r2v.clients.judging import CALIBRATIONS

LEAST = 30
"""Steps of each outcome from which on a judge is calibrated."""


def train_learned(episodes: Sequence[Episode], out: Path, *, decay: float, seed: int) -> dict[str, Any]:
    """Fit a process reward model and write its folder; its card. Raises StageError."""
    model = train_process_reward(episodes, decay=decay, seed=seed)
    save_process_reward(model, out)
    return dict(model.facts)


def calibrate_judge(
    judge: JudgeVerifier, episodes: Sequence[Episode], out: Path, *, steps: int, how: CALIBRATIONS, seed: int
) -> dict[str, Any]:
    """Ask a judge about one step of each of some episodes, and write what turns its numbers into P(success).

    Args:
        judge: as in the settings; a calibration that it has does not count.
        episodes: that nothing else is tested on; only those with a known outcome are used.
        out: the file.
        steps: to ask about at most.
        how: Platt's logistic curve, or a monotone step function.
        seed: of the draw.

    Returns:
        What was asked, what it cost, and what the numbers were worth before calibration.

    Raises:
        StageError: there are fewer than `LEAST` steps of either outcome.
        ModelError: the judge does not answer.
        ValueError: it answers with something else than scores.
    """
    from r2v.clients.judging import fit_calibration, log_odds

    said, usage = asyncio.run(_asked(judge, sample := drawn_steps(episodes, steps, seed)))
    solved = np.array([float(bool(episode.success)) for episode, _ in sample])
    if min(solved.sum(), (1 - solved).sum()) < LEAST:
        raise StageError(
            f"{int(solved.sum())} solved and {int((1 - solved).sum())} failed episodes were asked about; it takes {LEAST} "
            "of each: give more episodes, or a higher --steps"
        )
    calibration = fit_calibration(said, solved.tolist(), how)
    facts = {
        "model": judge.model.model, "steps": len(sample), "solved": int(solved.sum()), "how": how, "seed": seed,
        "auroc": auroc(np.array(said), solved), "brier_before": brier(np.array(said), solved),
        "brier": brier(calibration(log_odds(said)), solved), "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens, "usd": usage.usd,
    }  # fmt: skip
    write_json(out, {"calibration": asdict(calibration), "facts": facts})
    return facts


def drawn_steps(episodes: Sequence[Episode], steps: int, seed: int) -> list[tuple[Episode, int]]:
    """A step of each of so many episodes that have a known outcome and whose words are kept."""
    known = [e for e in episodes if e.success is not None and not e.outcome_source and e.steps and not is_hashed(e.goal)]
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(known))[:steps].tolist()
    return [(known[i], int(rng.integers(len(known[i].steps)))) for i in chosen]


async def _asked(judge: JudgeVerifier, sample: Sequence[tuple[Episode, int]]) -> tuple[list[float], Usage]:
    """(what the judge says of each executed action, what all of it cost)."""

    async def one(episode: Episode, t: int) -> tuple[float, Usage]:
        scores, usage = await judge.ask(episode.contexts(50)[t], [episode.steps[t].choice.action])
        return scores[0], usage

    found = await asyncio.gather(*(one(episode, t) for episode, t in sample))
    return [score for score, _ in found], sum((usage for _, usage in found), NO_USAGE)
