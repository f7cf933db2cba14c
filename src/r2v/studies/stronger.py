"""Which model of recorded episodes is the stronger one: models are compared on the tasks that they share, task by task.

The share that a model solves of its own tasks says as much about these tasks as about the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from r2v.clients.settings import PriceSettings
from r2v.core.types import Episode
from r2v.evaluation.curves import resample_BT
from r2v.evaluation.gain import RESAMPLES, wide_interval
from r2v.maths import Floats
from r2v.studies.costs import tokens_of

LEAST_GROUPS = 20
"""Groups of tasks that a comparison of two models takes; with fewer no interval says anything."""
OUTSIDE = 0.025
"""Share of resamples beyond either end of an interval."""
SHOWN = 5
"""Models that a line names."""


@dataclass(frozen=True)
class Compared:
    """Two models on the tasks that both played, several records of a task averaged."""

    model: str
    """The other one."""
    common_tasks: int
    common_groups: int
    solved_by_stronger: float
    """By the one model, mean over the tasks."""
    solved: float
    """By the other one."""
    difference: float
    difference_ci95: tuple[float, float]
    """Over groups of tasks."""
    clear: bool
    """Whether 0 lies outside."""


@dataclass(frozen=True)
class Stronger:
    """The stronger model, and how it was chosen; or why it cannot be."""

    model: str | None
    how: Literal["named", "outcomes", "prices"] | None
    """None: it was not chosen."""
    why: str | None = None
    """Where it was not chosen: the reason, and which options to pass; None where one model alone has outcomes."""
    nearest: Compared | None = None
    """The model that comes nearest to it, or is above it."""
    compared_with: int = 0
    """Models with which it shares enough tasks."""
    share_no_task: tuple[str, ...] = ()
    """Models that share no task with it."""
    undecided: tuple[str, ...] = ()
    """Models between which nothing decides."""


def stronger_of(
    episodes: Sequence[Episode], group_E: NDArray[np.int64], *, slms: Sequence[str] = (),
    prices: Mapping[str, PriceSettings] | None = None, seed: int = 0,
) -> Stronger:  # fmt: skip
    """Choose the model that solves at least as much as each other one, on the tasks that the two share.

    Candidates played at least half of the tasks, or as many as any other. Of equals the one is taken that shares more tasks
    with the weaker models. What outcomes leave open is settled by prices, if there are any: the dearer model is the stronger
    one. Nothing is chosen where it stays open, and a dearer model that clearly solves less is not taken.

    Args:
        episodes: recorded ones; those with an outcome that a model played without help are compared.
        group_E: of each episode, the group of its task.
        slms: models that count as the SLM; none: all but the stronger one.
        prices: of models by name; others are left out.
        seed: of the intervals.
    """
    played = _Played.of(episodes, group_E, seed)
    names = played.models
    if len(names) < 2:
        return Stronger(None, None)
    against = [a for a, name in enumerate(names) if name in slms or not slms]
    candidates = [a for a, name in enumerate(names) if name not in slms]
    compared = [a for a in candidates if played.beside(a, against)]
    if not compared:
        return Stronger(None, None, _none_shared(played, candidates, against) if candidates else _none_left(slms))
    wanted_C = played.known_AC[against].any(axis=0)
    count_A = (played.known_AC & wanted_C).sum(axis=1)
    enough = min(wanted_C.sum() / 2, np.sort(count_A[compared])[-2:][0])
    read, written = np.sum([tokens_of(e) for e in episodes], axis=0)  # the same for all: dearer by the token
    usd = {a: prices[name].usd(read, written) for a, name in enumerate(names) if prices and name in prices}
    best, how = _highest(played, [a for a in compared if count_A[a] >= enough], against, usd)
    if len(best) > 1:
        return Stronger(None, None, _undecided(played, best, usd), undecided=tuple(names[a] for a in best))
    (top,) = best
    beside = played.beside(top, against)
    if slms and all(played.difference(top, b) <= 0 for b in beside):
        near = played.compare(top, max(beside, key=lambda b: -played.difference(top, b)))
        shared = f"of the {near.common_tasks} tasks that it shares with {near.model}, and that one {near.solved:.1%}"
        return Stronger(None, None, _none_left(slms, f": {names[top]} solves {near.solved_by_stronger:.1%} {shared}"))
    near = played.compare(top, min(beside, key=lambda b: played.difference(top, b)))
    return Stronger(names[top], how, None, near, len(beside), _apart(episodes, names[top], slms))


def _highest(
    played: _Played, eligible: Sequence[int], against: Sequence[int], usd: Mapping[int, float]
) -> tuple[list[int], Literal["outcomes", "prices"]]:
    """(the models of the highest rank, what it is by): one is the stronger model, between several nothing decides.

    The fewer models beat a model the higher it ranks, and of those that none beats the higher the more tasks it shares with
    the weaker ones, if it shares enough with the others. Of those that are not clearly apart the dearest ranks highest.
    """
    above = {a: [b for b in played.beside(a, eligible) if played.difference(a, b) < 0] for a in eligible}
    fewest = min(map(len, above.values()))
    best = [a for a in eligible if len(above[a]) == fewest]
    if fewest:  # each is beaten by another
        best = [*best, *(b for b in above[best[0]] if b not in best)]
    else:
        reach = {a: (played.known_AC[a] & played.known_AC[[b for b in against if b not in best]]).sum() for a in best}
        first = max(best, key=lambda a: reach[a])
        if all(b == first or (reach[b] < reach[first] and played.groups_AA[first, b] >= LEAST_GROUPS) for b in best):
            best = [first]
    near = best
    if best[0] in usd and len(best) == 1:
        others = [b for b in played.beside(best[0], eligible) if b in usd]
        near = [*best, *(b for b in others if not played.compare(best[0], b).clear)]
    if all(a in usd for a in near):
        dearest = [a for a in near if usd[a] == max(usd[b] for b in near)]
        if len(dearest) == 1 and dearest != best and not any(played.compare(dearest[0], b).clear for b in above[dearest[0]]):
            return dearest, "prices"
    return best, "outcomes"


def unhelped(episode: Episode) -> bool:
    """Whether the model of the episode took all of its steps."""
    return all(step.choice.source == "slm" for step in episode.steps)


def cell_of(episode: Episode) -> tuple[str, str, int]:
    """What two models must share to be compared: the task, and what disturbed it."""
    return episode.task.id, episode.perturbation, episode.seed


@dataclass(frozen=True, eq=False)
class _Played:
    """What each model solved of each task."""

    models: list[str]
    solved_AC: Floats
    """Mean over the records of a task."""
    known_AC: NDArray[np.bool_]
    group_C: NDArray[np.int64]
    seed: int

    @classmethod
    def of(cls, episodes: Sequence[Episode], group_E: NDArray[np.int64], seed: int) -> _Played:
        own = [(e, int(g)) for e, g in zip(episodes, group_E, strict=True) if e.success is not None and unhelped(e)]
        groups_of = defaultdict(set)
        for e, group in own:
            groups_of[e.agent].add(group)
        own = [(e, group) for e, group in own if len(groups_of[e.agent]) >= LEAST_GROUPS]  # others cannot be compared
        models = sorted({e.agent for e, _ in own})
        groups: dict[tuple[str, str, int], int] = {}
        for e, group in own:
            groups.setdefault(cell_of(e), group)
        row, column = {name: a for a, name in enumerate(models)}, {cell: c for c, cell in enumerate(groups)}
        sum_AC, count_AC = np.zeros((2, len(models), len(groups)))
        for e, _ in own:
            sum_AC[row[e.agent], column[cell_of(e)]] += bool(e.success)
            count_AC[row[e.agent], column[cell_of(e)]] += 1
        group_C = np.array([*groups.values()], dtype=np.int64)
        return cls(models, sum_AC / np.maximum(1, count_AC), count_AC > 0, group_C, seed)

    @cached_property
    def groups_AA(self) -> NDArray[np.int64]:
        """Groups of tasks that each two models share."""
        known_AC, found_AA = self.known_AC.astype(np.float64), np.zeros(2 * (len(self.models),), dtype=np.int64)
        for group in np.unique(self.group_C):
            of_group_AC = known_AC[:, self.group_C == group]
            found_AA += of_group_AC @ of_group_AC.T > 0
        return found_AA

    def beside(self, a: int, others: Sequence[int]) -> list[int]:
        """Those of the others with which a model shares enough."""
        return [b for b in others if b != a and self.groups_AA[a, b] >= LEAST_GROUPS]

    def difference(self, a: int, b: int) -> float:
        """Of the shares of the common tasks that are solved; rounded, so that equal ones are equal."""
        both_C = self.known_AC[a] & self.known_AC[b]
        return round(float((self.solved_AC[a] - self.solved_AC[b])[both_C].mean()), 9)

    def compare(self, a: int, b: int) -> Compared:
        both_C = self.known_AC[a] & self.known_AC[b]
        one_C, other_C = self.solved_AC[a][both_C], self.solved_AC[b][both_C]
        group_C = np.unique(self.group_C[both_C], return_inverse=True)[1]
        size_G = np.bincount(group_C)
        weight_BG = resample_BT(len(size_G), RESAMPLES, self.seed)
        found_B = (weight_BG @ np.bincount(group_C, one_C - other_C)) / (weight_BG @ size_G)
        low, high = wide_interval(found_B, size_G, OUTSIDE)
        return Compared(
            self.models[b], len(one_C), len(size_G), float(one_C.mean()), float(other_C.mean()), self.difference(a, b),
            (low, high), low > 0 or high < 0,
        )  # fmt: skip


def _apart(episodes: Sequence[Episode], model: str, slms: Sequence[str]) -> tuple[str, ...]:
    """Models, of the SLMs where some are named, that share no task with this one."""
    mine = [e for e in episodes if e.success is not None and unhelped(e)]
    cells = {cell_of(e) for e in mine if e.agent == model}
    others = [e for e in mine if e.agent != model and (not slms or e.agent in slms)]
    return tuple(sorted({e.agent for e in others} - {e.agent for e in others if cell_of(e) in cells}))


def _none_left(slms: Sequence[str], reason: str = "") -> str:
    mend = "name the weaker one (--slm), or the stronger one (--teacher)"
    return f"no stronger model is left beside {_listed(slms)}{reason}; {mend}"


def _none_shared(played: _Played, candidates: Sequence[int], against: Sequence[int]) -> str:
    most = max((int(played.groups_AA[a, b]) for a in candidates for b in against if a != b), default=0)
    return (
        "which model is the stronger one cannot be said: no two of these models share enough tasks "
        f"({most} groups of tasks at most, of at least {LEAST_GROUPS}); let two models play the same tasks, or name two "
        "that did (--slm, --teacher)"
    )


def _undecided(played: _Played, best: Sequence[int], usd: Mapping[int, float]) -> str:
    a, b = best[:2]
    if played.groups_AA[a, b] < LEAST_GROUPS:
        reason = f"they share {played.groups_AA[a, b]} groups of tasks, of at least {LEAST_GROUPS}"
    elif played.difference(a, b):
        reason = "each solves less than another one of the tasks that the two share"
    else:
        near = played.compare(a, b)
        reason = f"each solves {near.solved:.1%} of the {near.common_tasks} tasks that both played"
    mend = "" if usd.keys() >= {*best} else ", or give the prices of all (--prices)"
    names = _listed([played.models[a] for a in best])
    return f"which of {names} is the stronger model cannot be said: {reason}; name it (--teacher){mend}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more
