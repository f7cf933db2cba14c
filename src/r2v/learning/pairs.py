"""Preference pairs: how they are chosen, and how they lie on disk.

[{"episode": 12, "t": 3, "chosen": "open drawer 1", "rejected": "look"}, ...]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from r2v.core.errors import ArtifactError
from r2v.core.features import best
from r2v.core.protocols import Policy
from r2v.core.types import TEACHER, Episode
from r2v.runtime.store import read_json, write_json


@dataclass(frozen=True)
class PreferencePair:
    episode: int
    """Index into the episodes that the pairs belong to."""
    t: int
    chosen: str
    rejected: str


def write_pairs(path: Path, pairs: Sequence[PreferencePair]) -> None:
    write_json(path, [asdict(pair) for pair in pairs])


def read_pairs(path: Path) -> list[PreferencePair]:
    """Raises ArtifactError when the file is missing or malformed."""
    try:
        return [PreferencePair(**raw) for raw in read_json(path)]
    except TypeError as error:
        raise ArtifactError(f"{path} holds a malformed pair ({error}); run the stage propose again") from None


async def preference_pairs(
    episodes: Sequence[Episode], teacher: Policy, *, horizon: int, good: float, min_gap: float
) -> list[PreferencePair]:
    """A pair for each step of these SLM episodes whose candidates are far enough apart (method, section 2).

    Chosen is the best-scored candidate, or the teacher's action where no candidate scores at least `good`; rejected is the
    worst-scored one, by at least `min_gap`.
    """
    pairs = []
    for index, episode in enumerate(episodes):
        for step, context in zip(episode.steps, episode.contexts(horizon), strict=True):
            candidates, scores = step.choice.candidates, step.choice.scores
            chosen_k = best(candidates, scores)
            rejected_k = min(range(len(scores)), key=lambda k: (scores[k], k))
            chosen, score = candidates[chosen_k].action.text, scores[chosen_k]
            if score < good:
                seed = episode.call_seed(step.t, TEACHER)
                (answer,) = await teacher.propose(context, 1, seed=seed)
                chosen, score = answer.action.text, 1.0
            rejected = candidates[rejected_k].action.text
            if rejected != chosen and score - scores[rejected_k] >= min_gap:
                pairs.append(PreferencePair(index, step.t, chosen, rejected))
    return pairs
