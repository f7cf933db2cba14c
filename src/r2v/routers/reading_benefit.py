"""Reading for benefit: where the SLM fails and the teacher does not."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Self

import numpy as np

from r2v.core.reading import Reader
from r2v.routers.fit_data import FitData
from r2v.routers.reading import Estimate, Reading


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadingBenefit(Reading):
    """Escalates where P(the SLM fails) most exceeds P(the episode fails although the teacher helps): two readers."""

    name: str = "reading_benefit"
    estimates: Estimate = "benefit"
    kind = "benefit"
    needs = frozenset({"branches"})
    colour = "#cc3311"
    cites = "Ours; the difference of two models, one for each action, is the T-learner (arXiv 1706.03461)."

    @classmethod
    def fit(cls, data: FitData) -> Self:
        return cls(reader=data.reader, teacher=fit_teacher(data), fitted_with=data.fitted_with)


def fit_teacher(data: FitData) -> Reader | None:
    """P(the episode fails although the teacher helps at this step), on the branched steps; all futures of one are one row.

    None where that share is the same at all of them: it would then move no step before another.
    """
    failed: defaultdict[tuple[int, int], list[bool]] = defaultdict(list)
    for b in data.branches:
        failed[b.episode, b.t].append(not b.helped)
    steps: list[list[int]] = [[] for _ in data.recorded]
    for episode, t in sorted(failed):
        steps[episode].append(t)
    y = [float(np.mean(failed[key])) for key in sorted(failed)]
    if len(set(y)) < 2:
        return None
    return data.reading(data.recorded, steps, y, "the risk that the episode will fail although the teacher helps here")
