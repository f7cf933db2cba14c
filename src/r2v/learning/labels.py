"""Labels of steps (method, section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from r2v.core.features import FEATURES, batch
from r2v.core.types import Episode
from r2v.maths import Bools, Floats
from r2v.perturbations import BY_SEED, GroupPart, group_of


@dataclass(frozen=True, eq=False)
class Rows:
    """One row a step of the SLM's own rollouts."""

    x_NF: Floats
    present_NF: Bools
    y_N: Floats
    """The label; for `failure_rows` 1 where the SLM failed the episode, the same for all its steps."""
    group_N: NDArray[np.int64]
    """Number of the group of CVaR: by default one a perturbation seed."""
    episode_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y_N)

    def where(self, keep_N: Bools) -> Rows:
        return Rows(
            self.x_NF[keep_N], self.present_NF[keep_N], self.y_N[keep_N], self.group_N[keep_N], self.episode_N[keep_N]
        )

    def columns(self, names: Sequence[str]) -> Rows:
        """Some features of rows that hold all `FEATURES`."""
        columns = [FEATURES.index(name) for name in names]
        return replace(self, x_NF=self.x_NF[:, columns], present_NF=self.present_NF[:, columns])


def failure_rows(
    episodes: Sequence[Episode], names: Sequence[str] = FEATURES, groups: Sequence[GroupPart] = BY_SEED
) -> Rows:
    """`failure` labels; `groups` as in `labelled_rows`.

    Raises ValueError for episodes that were not scored, have an intervention, or lack features."""
    for episode in episodes:
        if episode.success is None:
            raise ValueError(f"{episode.task.id} seed {episode.seed} was not scored ({episode.failure})")
    return labelled_rows(episodes, [[not episode.success] * len(episode.steps) for episode in episodes], names, groups)


def labelled_rows(
    episodes: Sequence[Episode],
    labels: Sequence[Sequence[bool]],
    names: Sequence[str] = FEATURES,
    groups: Sequence[GroupPart] = BY_SEED,
) -> Rows:
    """Rows with one label a step, e.g. whether the teacher would have done something else. SLM-only episodes.

    `groups`: what the episodes of one group of CVaR share (`r2v.perturbations.group_of`).
    """
    features, y, members, owners = [], [], [], []
    number: dict[str, int] = {}
    for i, (episode, of_steps) in enumerate(zip(episodes, labels, strict=True)):
        group = group_of(groups, episode.perturbation, episode.severity, episode.seed)
        for step, label in zip(episode.steps, of_steps, strict=True):
            if step.choice.features is None or step.choice.source != "slm":
                raise ValueError(f"{episode.task.id} step {step.t} is not a step of an SLM-only rollout")
            features.append(step.choice.features)
            y.append(float(label))
            members.append(number.setdefault(group, len(number)))
            owners.append(i)
    x_NF, present_NF = batch(features, names)
    return Rows(x_NF, present_NF, np.array(y), np.array(members), np.array(owners))
