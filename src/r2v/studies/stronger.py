"""Which model of recorded episodes is the stronger one: models are compared on the tasks that they share, task by task.

The share that a model solves of its own tasks says as much about these tasks as about the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

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

    other: str
    tasks: int
    groups: int
    solved: float
    """By the one model, mean over the tasks."""
    other_solved: float
    difference: float
    difference_ci95: tuple[float, float]
    """Over groups of tasks."""

    @property
    def clear(self) -> bool:
        return self.difference_ci95[0] > 0 or self.difference_ci95[1] < 0

    def facts(self) -> dict[str, Any]:
        return {
            "model": self.other, "common_tasks": self.tasks, "common_groups": self.groups, "solved_by_stronger": self.solved,
            "solved": self.other_solved, "difference": self.difference, "difference_ci95": list(self.difference_ci95),
            "clear": self.clear,
        }  # fmt: skip


@dataclass(frozen=True)
class Stronger:
    """The stronger model, and how it was chosen; or why it cannot be."""

    model: str | None
    how: Literal["named", "outcomes", "prices"] | None
    """None: it was not chosen."""
    nearest: Compared | None = None
    """The model that comes nearest to it, or is above it."""
    compared_with: int = 0
    """Models with which it shares enough tasks."""
    apart: tuple[str, ...] = ()
    """Models that share no task with it."""
    undecided: tuple[str, ...] = ()
    """Models between which nothing decides."""
    why: str = ""
    """Where it was not chosen: the reason, and which options to pass; empty where one model alone has outcomes."""

    def facts(self) -> dict[str, Any]:
        """What `advice.json` holds."""
        return {
            "model": self.model, "how": self.how, "why": self.why or None,
            "nearest": None if self.nearest is None else self.nearest.facts(), "compared_with": self.compared_with,
            "share_no_task": list(self.apart), "undecided": list(self.undecided),
        }  # fmt: skip


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
    if len(played.models) < 2:
        return Stronger(None, None)
    against = [a for a, name in enumerate(played.models) if name in slms or not slms]
    candidates = [a for a, name in enumerate(played.models) if name not in slms]
    if not candidates:
        return Stronger(None, None, why=_none_left(slms))
    compared = [a for a in candidates if any(played.shares_enough(a, b) for b in against)]
    if not compared:
        return Stronger(None, None, why=_none_shared(played, candidates, against))
    wanted_C = played.known_AC[against].any(axis=0)
    count_A = (played.known_AC & wanted_C).sum(axis=1)
    counts = sorted(int(count_A[a]) for a in compared)
    enough = min(wanted_C.sum() / 2, counts[max(0, len(counts) - 2)])
    eligible = [a for a in compared if count_A[a] >= enough]
    top, undecided = _by_outcomes(played, eligible, against)
    top, undecided, by_price = _by_prices(played, eligible, top, undecided, prices or {}, episodes)
    if top is None:
        names = tuple(played.models[a] for a in undecided)
        return Stronger(None, None, undecided=names, why=_undecided(played, undecided, prices or {}))
    beside = [b for b in against if b != top and played.shares_enough(top, b)]
    if not beside:
        return Stronger(None, None, why=_none_shared(played, [top], against))
    if slms and all(played.difference(top, b) <= 0 for b in beside):
        near = played.compare(top, max(beside, key=lambda b: -played.difference(top, b)))
        return Stronger(None, None, why=_none_left(slms, f": {_beside(played.models[top], near)}"))
    nearest = min(beside, key=lambda b: played.difference(top, b))
    apart = _apart(episodes, played.models[top], slms)
    how: Literal["prices", "outcomes"] = "prices" if by_price else "outcomes"
    return Stronger(played.models[top], how, played.compare(top, nearest), len(beside), apart)


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
        mine = [i for i, e in enumerate(episodes) if e.success is not None and unhelped(e)]
        groups_of = defaultdict(set)
        for i in mine:
            groups_of[episodes[i].agent].add(int(group_E[i]))
        models = sorted(name for name, of_model in groups_of.items() if len(of_model) >= LEAST_GROUPS)  # may be compared
        mine = [i for i in mine if len(groups_of[episodes[i].agent]) >= LEAST_GROUPS]
        cells: dict[tuple[str, str, int], int] = {}
        groups: list[int] = []
        for i in mine:
            if cells.setdefault(cell_of(episodes[i]), len(cells)) == len(groups):
                groups.append(int(group_E[i]))
        number = {name: a for a, name in enumerate(models)}
        sum_AC, count_AC = np.zeros((2, len(models), len(cells)))
        for i in mine:
            at = number[episodes[i].agent], cells[cell_of(episodes[i])]
            sum_AC[at] += bool(episodes[i].success)
            count_AC[at] += 1
        return cls(models, sum_AC / np.maximum(1, count_AC), count_AC > 0, np.array(groups, dtype=np.int64), seed)

    def common(self, a: int, b: int) -> NDArray[np.bool_]:
        both_C: NDArray[np.bool_] = self.known_AC[a] & self.known_AC[b]
        return both_C

    @cached_property
    def common_AA(self) -> NDArray[np.int64]:
        """Tasks that each two models share."""
        known_AC = self.known_AC.astype(np.float64)
        return (known_AC @ known_AC.T).astype(np.int64)

    @cached_property
    def _enough_AA(self) -> NDArray[np.bool_]:
        enough_AA = np.zeros(self.common_AA.shape, dtype=bool)
        for a, b in np.argwhere(np.triu(self.common_AA >= LEAST_GROUPS, 1)).tolist():
            enough_AA[a, b] = enough_AA[b, a] = self.groups(a, b) >= LEAST_GROUPS
        return enough_AA

    def groups(self, a: int, b: int) -> int:
        return len(np.unique(self.group_C[self.common(a, b)]))

    def shares_enough(self, a: int, b: int) -> bool:
        return bool(self._enough_AA[a, b])

    def difference(self, a: int, b: int) -> float:
        """Of the shares of the common tasks that are solved; rounded, so that equal ones are equal."""
        both_C = self.common(a, b)
        return round(float((self.solved_AC[a] - self.solved_AC[b])[both_C].mean()), 9)

    def compare(self, a: int, b: int) -> Compared:
        both_C = self.common(a, b)
        one_C, other_C = self.solved_AC[a][both_C], self.solved_AC[b][both_C]
        group_C = np.unique(self.group_C[both_C], return_inverse=True)[1]
        size_G = np.bincount(group_C)
        weight_BG = resample_BT(len(size_G), RESAMPLES, self.seed)
        found_B = (weight_BG @ np.bincount(group_C, one_C - other_C)) / (weight_BG @ size_G)
        return Compared(
            self.models[b], len(one_C), len(size_G), float(one_C.mean()), float(other_C.mean()), self.difference(a, b),
            wide_interval(found_B, size_G, OUTSIDE),
        )  # fmt: skip

    def clearly_below_any(self, a: int, others: Sequence[int]) -> bool:
        below = [b for b in others if b != a and self.shares_enough(a, b) and self.difference(a, b) < 0]
        return any(self.compare(a, b).clear for b in below)


def _by_outcomes(played: _Played, eligible: Sequence[int], against: Sequence[int]) -> tuple[int | None, list[int]]:
    """(the model that no other one beats, or None; those between which nothing decides)."""
    beaten = {
        a: sum(played.shares_enough(a, b) and played.difference(a, b) < 0 for b in eligible if b != a) for a in eligible
    }
    tops = [a for a in eligible if not beaten[a]]
    if not tops:  # each is beaten by another one
        return None, [a for a in eligible if beaten[a] == min(beaten.values())]
    weaker = [b for b in against if b not in tops]
    reach = {a: int(played.common_AA[a, weaker].sum()) for a in tops}
    first, *others = sorted(tops, key=lambda a: -reach[a])
    if all(played.shares_enough(first, b) and reach[first] > reach[b] for b in others):
        return first, []
    return None, tops


def _by_prices(
    played: _Played, eligible: Sequence[int], top: int | None, undecided: list[int],
    prices: Mapping[str, PriceSettings], episodes: Sequence[Episode],
) -> tuple[int | None, list[int], bool]:  # fmt: skip
    """(the model, those between which nothing decides, whether prices chose it), from what outcomes say."""
    open_still = undecided
    if top is not None:
        if played.models[top] not in prices:
            return top, [], False
        open_still = [top, *(
            b for b in eligible
            if b != top and played.models[b] in prices and played.shares_enough(top, b) and not played.compare(top, b).clear
        )]  # fmt: skip
    if len(open_still) < 2 or any(played.models[a] not in prices for a in open_still):
        return top, undecided, False
    read, written = np.sum([tokens_of(e) for e in episodes], axis=0)  # the same for all: dearer by the token
    price = {a: prices[played.models[a]].usd(read, written) for a in open_still}
    dearest = [a for a in open_still if price[a] == max(price.values())]
    if len(dearest) > 1 or dearest == [top] or played.clearly_below_any(dearest[0], eligible):
        return top, undecided, False
    return dearest[0], [], True


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
    most = max((played.groups(a, b) for a in candidates for b in against if a != b), default=0)
    return (
        "which model is the stronger one cannot be said: no two of these models share enough tasks "
        f"({most} groups of tasks at most, of at least {LEAST_GROUPS}); let two models play the same tasks, or name two "
        "that did (--slm, --teacher)"
    )


def _undecided(played: _Played, undecided: Sequence[int], prices: Mapping[str, PriceSettings]) -> str:
    a, b = undecided[:2] if len(undecided) > 1 else (undecided[0], undecided[0])
    if a == b or (played.shares_enough(a, b) and played.difference(a, b)):
        reason = "each solves less than another one of the tasks that the two share"
    elif played.shares_enough(a, b):
        near = played.compare(a, b)
        reason = f"each solves {near.solved:.1%} of the {near.tasks} tasks that both played"
    else:
        reason = f"they share {played.groups(a, b)} groups of tasks, of at least {LEAST_GROUPS}"
    models = [played.models[u] for u in undecided]
    mend = "" if all(model in prices for model in models) else ", or give the prices of all (--prices)"
    return f"which of {_listed(models)} is the stronger model cannot be said: {reason}; name it (--teacher){mend}"


def _beside(name: str, near: Compared) -> str:
    return (
        f"{name} solves {near.solved:.1%} of the {near.tasks} tasks that it shares with {near.other}, and that one "
        f"{near.other_solved:.1%}"
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more
