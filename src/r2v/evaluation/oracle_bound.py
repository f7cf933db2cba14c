"""The oracle bound (clairvoyant policy): the fewest teacher calls with which each episode could have been solved.

Found by playing call sets in the real environment, with the random numbers of the recorded episode: a policy that
knows the future would escalate exactly there. No router can know that much; the distance to it is what remains to be gained.

0 calls and 1 call are searched exhaustively. For episodes that one call does not save, pairs of calls are tried up to a
limit, then runs of consecutive calls: what those find is an upper bound of the fewest, and 2 is a lower one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random

import numpy as np

from r2v.core.agent import AgentModels, Routed
from r2v.core.fixed import AtSteps
from r2v.core.seeds import derive_seed
from r2v.core.types import Episode
from r2v.evaluation.closed_loop import MakeEnvironment, play_all

PAIRS = 24
"""Pairs of calls tried in an episode."""
RUNS = (3, 8, 20)
"""Lengths of the runs of consecutive calls, begun at every fourth step; the last resort escalates from a step on."""
STRIDE = 4


@dataclass(frozen=True)
class Fewest:
    """Calls that save one SLM-only episode; None where nothing tried did."""

    task: str
    seed: int
    calls: int | None


async def fewest_calls(models: AgentModels, make_environment: MakeEnvironment, episode: Episode, *, horizon: int) -> Fewest:
    """Raises RuntimeError when a played episode breaks: a bound with holes is none."""
    case = (episode.task.id, episode.seed)
    if episode.success:
        return Fewest(*case, 0)
    steps = len(episode.steps)

    async def saving(sets: Sequence[Sequence[int]]) -> int | None:
        """The fewest calls really made in a solved one of these."""
        agents = [Routed(models, AtSteps(frozenset(s))) for s in sets]
        played = [e for (e,) in await play_all(agents, [(episode.task, episode.seed)], make_environment, horizon=horizon)]
        if broken := [e.failure for e in played if e.success is None]:
            raise RuntimeError(f"a branch of {episode.task.id} broke: {broken[0]}")
        solved = [sum(step.choice.teacher.calls > 0 for step in e.steps) for e in played if e.success]
        return min(solved, default=None)

    if (one := await saving([[t] for t in range(steps)])) is not None:
        return Fewest(*case, one)
    draw = Random(derive_seed("clairvoyant", *case))
    pairs = list(combinations(range(horizon), 2))
    if (two := await saving(draw.sample(pairs, min(PAIRS, len(pairs))))) is not None:
        return Fewest(*case, two)
    for length in RUNS:
        if (run := await saving([range(t, t + length) for t in range(0, horizon, STRIDE)])) is not None:
            return Fewest(*case, run)
    return Fewest(*case, await saving([range(t, horizon) for t in range(0, horizon // 2, STRIDE)]))


@dataclass(frozen=True)
class Bound:
    """Over a set of episodes, of which those the SLM failed may have been sampled."""

    success_rate: float
    """Of a policy that calls the teacher only where it saves the episode."""
    calls_per_episode: float
    calls_at_target: float | None
    """Calls an episode with which the target success can be had; None where no policy reaches it."""
    saved_by: dict[str, float]
    """Share of all episodes by the calls that solve them: "0", "1", "2", "3+", "none"."""
    searched: int
    """Failed episodes that were searched."""


def bound(alone_success: float, fewest: Sequence[Fewest], target: float) -> Bound:
    """`alone_success`: of the SLM, over all episodes; `fewest`: of a random sample of those that it failed."""
    calls = sorted(f.calls for f in fewest if f.calls is not None)
    each = (1 - alone_success) / max(1, len(fewest))  # share of all episodes that a sampled one stands for
    saved = np.array(calls, dtype=float)
    success, usage = alone_success + each * np.arange(len(calls) + 1), each * np.append(0.0, saved.cumsum())
    enough = success >= target - 1e-12
    return Bound(
        success_rate=float(success[-1]),
        calls_per_episode=float(usage[-1]),
        calls_at_target=float(usage[np.argmax(enough)]) if enough.any() else None,
        saved_by={
            "0": alone_success,
            "1": each * float((saved == 1).sum()),
            "2": each * float((saved == 2).sum()),
            "3+": each * float((saved > 2).sum()),
            "none": each * (len(fewest) - len(calls)),
        },
        searched=len(fewest),
    )
