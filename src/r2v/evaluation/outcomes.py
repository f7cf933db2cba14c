"""What came out of a set of episodes, as arrays with one row a task and one column a perturbation seed.

Axes: T tasks, Z perturbation seeds. The same (task, seed) sits in the same cell for every router, so comparisons pair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from r2v.core.features import best
from r2v.core.types import NO_USAGE, TEACHER, Episode, Usage
from r2v.perturbations import BY_SEED, GroupPart, group_of

HORIZON_TENTHS = 10


@dataclass(frozen=True)
class Row:
    """One episode in numbers."""

    task: str
    seed: int
    perturbation: str
    success: bool
    broken: bool
    steps: int
    slm_calls: int
    """Draws of candidates; a step with a retry has two."""
    teacher_calls: float
    """A call of another model of the pool counts as what it costs beside one of the teacher."""
    escalated: tuple[int, ...]
    """Steps on which the teacher, or another model of the pool, was called."""
    answers: tuple[int, int, int]
    """Of the calls beside an SLM: the teacher did what the SLM would have done; another of its candidates; neither."""
    slm_tokens: int | None = None
    """Read and written; None where nobody counted."""
    teacher_tokens: int | None = None
    usd: float | None = None
    """What both models cost; None where a price or a count is unknown."""
    verifier: Usage = NO_USAGE
    """What scoring candidates cost, where the verifier is a model."""
    models: Mapping[str, int] = field(default_factory=dict)
    """Calls of each stronger model; empty where the teacher is the only one."""
    severity: float | None = None
    """As `Episode.severity`."""


def row(episode: Episode, prices: Mapping[str, float] | None = None, alone: str = TEACHER) -> Row:
    """One episode in numbers; a broken one (`success` None) counts as not solved.

    Args:
        prices: of a call of each stronger model, in calls of the teacher; None: there is only the teacher.
        alone: the model that acts where no router decides.
    """
    asked = [step for step in episode.steps if step.choice.teacher.calls > 0]
    models = dict(Counter(step.choice.model if step.choice.decision else alone for step in asked)) if prices else {}
    calls = sum(count * prices[model] for model, count in models.items()) if prices else len(asked)
    slm = sum((step.choice.slm for step in episode.steps), NO_USAGE)
    teacher = sum((step.choice.teacher for step in episode.steps), NO_USAGE)
    usds = [usage.usd if usage.calls else 0.0 for usage in (slm, teacher)]
    return Row(
        task=episode.task.id, seed=episode.seed, perturbation=episode.perturbation, success=bool(episode.success),
        broken=episode.stop == "error", steps=len(episode.steps),
        slm_calls=slm.calls, teacher_calls=calls, escalated=tuple(step.t for step in asked), answers=_answers(episode),
        slm_tokens=_tokens(slm), teacher_tokens=_tokens(teacher), usd=None if None in usds else sum(filter(None, usds)),
        verifier=sum((step.choice.verifier for step in episode.steps), NO_USAGE), models=models,
        severity=episode.severity,
    )  # fmt: skip


def _tokens(usage: Usage) -> int | None:
    if not usage.calls:
        return 0
    counts = (usage.prompt_tokens, usage.completion_tokens)
    return None if None in counts else sum(filter(None, counts))


def _answers(episode: Episode) -> tuple[int, int, int]:
    same = among = new = 0
    for choice in (step.choice for step in episode.steps):
        if choice.features is None or not choice.teacher.calls:
            continue
        if choice.action == choice.candidates[best(choice.candidates, choice.scores)].action:
            same += 1
        elif any(choice.action == candidate.action for candidate in choice.candidates):
            among += 1
        else:
            new += 1
    return same, among, new


@dataclass(frozen=True)
class Outcomes:
    """All episodes of one router on the same tasks and seeds."""

    success_TZ: NDArray[np.float64]
    call_rate_TZ: NDArray[np.float64]
    """Steps on which a stronger model was called / steps of each episode."""
    teacher_calls_TZ: NDArray[np.float64]
    """As `Row.teacher_calls`."""
    slm_calls_TZ: NDArray[np.float64]
    steps_TZ: NDArray[np.float64]
    broken_TZ: NDArray[np.bool_]
    first_TZ: NDArray[np.float64]
    """Quarter of the horizon (0 to 3) with the first call; NaN without a call."""
    answers_3: NDArray[np.float64]
    """`Row.answers`, summed."""
    slm_tokens_TZ: NDArray[np.float64]
    """NaN where nobody counted; so are the next two."""
    teacher_tokens_TZ: NDArray[np.float64]
    usd_TZ: NDArray[np.float64]
    family_TZ: NDArray[np.str_]
    group_TZ: NDArray[np.str_]
    """The group of CVaR (`r2v.perturbations.group_of`)."""
    escalated_10: NDArray[np.float64]
    """Share of the steps in each tenth of the horizon on which the teacher was called; NaN where no step fell."""
    verifier: Usage = NO_USAGE
    """`Row.verifier`, summed."""
    models: Mapping[str, int] = field(default_factory=dict)
    """`Row.models`, summed."""

    @property
    def success_T(self) -> NDArray[np.float64]:
        return np.asarray(self.success_TZ.mean(axis=1))

    @property
    def call_rate_T(self) -> NDArray[np.float64]:
        return np.asarray(self.call_rate_TZ.mean(axis=1))

    @property
    def calls_T(self) -> NDArray[np.float64]:
        """Teacher calls an episode."""
        return np.asarray(self.teacher_calls_TZ.mean(axis=1))

    def failure_of_group(self) -> dict[str, float]:
        """Failure rate of each group of CVaR, in the order in which they occur."""
        names = dict.fromkeys(self.group_TZ.ravel().tolist())
        return {name: float(1 - self.success_TZ[self.group_TZ == name].mean()) for name in names}

    def success_of_family(self) -> dict[str, float]:
        return {str(f): float(self.success_TZ[self.family_TZ == f].mean()) for f in np.unique(self.family_TZ)}


def gather(
    rows: Iterable[Row],
    tasks: Sequence[str],
    seeds: Sequence[int],
    horizon: int,
    groups: Collection[GroupPart] = BY_SEED,
) -> Outcomes:
    """Arrange rows by task and seed; `groups` says what a group of CVaR is. Raises ValueError unless every (task, seed)
    occurs exactly once.
    """
    rows = list(rows)
    cells = {(r.task, r.seed): r for r in rows}
    expected = [(task, seed) for task in tasks for seed in seeds]
    if len(cells) != len(rows) or set(cells) != set(expected):
        raise ValueError(f"{len(rows)} episodes do not cover {len(expected)} pairs of task and seed exactly once")
    grid = [cells[key] for key in expected]
    shape = (len(tasks), len(seeds))

    def array(values: Iterable[float | None]) -> NDArray[np.float64]:
        return np.array(list(values), dtype=np.float64).reshape(shape)

    tenth = [t * HORIZON_TENTHS // horizon for t in range(horizon)]
    escalated_10, steps_10 = (
        np.bincount(np.fromiter(chain.from_iterable(steps), dtype=int), minlength=HORIZON_TENTHS)
        for steps in (([tenth[t] for t in r.escalated] for r in grid), (tenth[: r.steps] for r in grid))
    )
    return Outcomes(
        success_TZ=array(r.success for r in grid),
        call_rate_TZ=array(len(r.escalated) / max(1, r.steps) for r in grid),
        teacher_calls_TZ=array(r.teacher_calls for r in grid),
        slm_calls_TZ=array(r.slm_calls for r in grid),
        steps_TZ=array(r.steps for r in grid),
        broken_TZ=array(r.broken for r in grid).astype(bool),
        first_TZ=array(r.escalated[0] * 4 // horizon if r.escalated else np.nan for r in grid),
        answers_3=np.array([r.answers for r in grid], dtype=np.float64).sum(axis=0),
        slm_tokens_TZ=array(r.slm_tokens for r in grid),
        teacher_tokens_TZ=array(r.teacher_tokens for r in grid),
        usd_TZ=array(r.usd for r in grid),
        family_TZ=np.array([r.perturbation for r in grid]).reshape(shape),
        group_TZ=np.array([group_of(groups, r.perturbation, r.severity, r.seed) for r in grid]).reshape(shape),
        escalated_10=np.divide(escalated_10, steps_10, out=np.full(HORIZON_TENTHS, np.nan), where=steps_10 > 0),
        verifier=sum((r.verifier for r in grid), NO_USAGE),
        models=dict(sum((Counter(r.models) for r in grid), Counter())),
    )
