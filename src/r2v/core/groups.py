"""Which tasks must never be on both sides of a split: the same ones under several names, and near copies."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2v.core.types import Episode

ALIKE = 0.7
"""Shared share (Jaccard) of the rare word triples of two goals from which on they are one task."""
COMMON = 0.05
"""Share of the goals from which on a triple is of a frame that all share (a prompt), not of the task."""
LOOKED_UP = 8
"""Rarest triples of a goal by which near copies are searched."""
LONGEST = 6000
"""Characters of a goal that are read."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Episodes that stay together in every split."""

    group_E: NDArray[np.int64]
    """Of each episode, numbered from 0."""
    tasks: int
    found: dict[str, int]
    """Tasks that were joined with another one, by what joined them: the log format's own group, or alike goals."""

    @property
    def count(self) -> int:
        return int(self.group_E.max()) + 1 if len(self.group_E) else 0

    def facts(self) -> dict[str, Any]:
        return {"tasks": self.tasks, "groups": self.count, **self.found}


def groups(episodes: Sequence[Episode]) -> Groups:
    """Join tasks by id, by the group that the log format knows (a user, a database, a template), and by alike goals.

    Should alike goals leave fewer than ten groups, they are one frame, not copies, and join nothing.
    """
    names = {name: i for i, name in enumerate(dict.fromkeys(e.task.id for e in episodes))}
    goal_of = {e.task.id: e.task.goal for e in reversed(episodes)}
    root = list(range(len(names)))
    by_group: dict[str, int] = {}
    for episode in episodes:
        if episode.task.environment == "recorded":
            first = by_group.setdefault(episode.task.family, names[episode.task.id])
            _join(root, first, names[episode.task.id])
    given = len(names) - _count(root)
    with_goals = list(root)
    for one, other in _copies([goal_of[name] for name in names]):
        _join(with_goals, one, other)
    alike = _count(root) - _count(with_goals)
    if _count(with_goals) < 10 <= _count(root):
        with_goals, alike = root, 0
    number = {top: i for i, top in enumerate(dict.fromkeys(_top(with_goals, i) for i in range(len(names))))}
    group_T = [number[_top(with_goals, i)] for i in range(len(names))]
    group_E = np.array([group_T[names[e.task.id]] for e in episodes], dtype=np.int64)
    return Groups(group_E, len(names), {"joined_by_the_log": given, "joined_by_alike_goals": alike})


def folds(group_N: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """The fold of each row, so that the folds hold about as many rows each; a group, numbered from 0, is in one fold."""
    size_G = np.bincount(group_N)
    order = np.random.default_rng(seed).permutation(len(size_G))
    order = order[np.argsort(-size_G[order], kind="stable")]
    filled, fold_G = np.zeros(count), np.zeros(len(size_G), dtype=np.int64)
    for group in order:
        fold_G[group] = np.argmin(filled)
        filled[fold_G[group]] += size_G[group]
    return fold_G[group_N]


def splits(fold_N: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """(rows of a fold, rows of the others) for each fold; of two columns, of tasks and models say, those of both the task's
    and the model's fold, and those of neither.
    """
    fold_NC = fold_N[:, None] if fold_N.ndim == 1 else fold_N
    for fold in np.unique(fold_NC, axis=0):
        same_NC = fold_NC == fold
        yield same_NC.all(axis=1), ~same_NC.any(axis=1)


def _copies(goals: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of goals that are nearly the same."""
    triples = [_triples(goal) for goal in goals]
    count = Counter(triple for found in triples for triple in found)
    most = max(3.0, COMMON * len(goals))
    rare = [{triple for triple in found if count[triple] <= most} for found in triples]
    holders: dict[Any, list[int]] = defaultdict(list)
    pairs = []
    for i, found in enumerate(rare):
        keys: list[Any] = sorted(found, key=lambda triple: (count[triple], triple))[:LOOKED_UP]
        if len(found) < 2:
            keys = [" ".join(goals[i].lower().split())]  # too short to compare: only the very same text
        near = {j for key in keys for j in holders[key]}
        pairs += [(j, i) for j in near if len(found) < 2 or len(found & rare[j]) >= ALIKE * len(found | rare[j])]
        for key in keys:
            holders[key].append(i)
    return pairs


def _triples(goal: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", goal[:LONGEST].lower())
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def _top(root: list[int], i: int) -> int:
    while root[i] != i:
        root[i] = root[root[i]]
        i = root[i]
    return i


def _join(root: list[int], one: int, other: int) -> None:
    root[_top(root, other)] = _top(root, one)


def _count(root: list[int]) -> int:
    return sum(_top(root, i) == i for i in range(len(root)))
