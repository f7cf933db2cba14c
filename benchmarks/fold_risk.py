"""Rows and folds of the replay benchmarks, whose risk is a small network on features (`r2v.learning.tabular`).

`r2v fit` reads texts (`r2v.learning.reading`); these studies are of routers on features, as the household's are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from r2v.core.features import batch
from r2v.core.types import Episode
from r2v.learning.labels import Rows

FOLDS = 5


def own_steps(episodes: Sequence[Episode]) -> tuple[Rows, list[str]]:
    """Steps of the episodes that the SLM played alone, labelled with the outcome; and the task of each.

    An episode with a step of the teacher does not show how the SLM would have ended, and leaving out only that step would
    keep its outcome. The teacher answers in the modes observe and shadow: the sessions are routed or forced (r2v:slm) ones.
    """
    features, y, owners, tasks = [], [], [], []
    for i, episode in enumerate(episodes):
        if episode.success is None or any(step.choice.source != "slm" for step in episode.steps):
            continue
        for step in episode.steps:
            if step.choice.features is not None:
                features.append(step.choice.features)
                y.append(float(not episode.success))
                owners.append(i)
                tasks.append(episode.task.id)
    x_NF, present_NF = batch(features)
    zeros = np.zeros(len(y), dtype=int)
    return Rows(x_NF, present_NF, np.array(y), zeros, np.array(owners, dtype=int)), tasks


def folds(task_N: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The fold of each row; a task, numbered from 0, is in one fold."""
    return np.asarray(np.random.default_rng(seed).permutation(int(task_N.max()) + 1)[task_N] % FOLDS)
