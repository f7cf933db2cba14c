"""What recorded episodes show about escalating: which steps may be learned from, and what an escalation was worth.

Four kinds, the strongest first. *paired*: a weaker and a stronger model played the same tasks, so handing a session over
is worth what the stronger one's own run solved more. *explored*: some steps drew their route with a logged probability, so
what escalating a step adds to the success of its session can be estimated; a measured benefit is stronger evidence than a
difference. *alike*: the teacher answered beside the SLM's draft, whatever the router wanted, so escalating a step is worth
something only where the two differ. *outcomes*: only the SLM played: what a teacher would add is not known.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from r2v.core.agreement import alike
from r2v.core.groups import Groups
from r2v.core.types import TEACHER, Choice, Code, Episode, ScoreKind, Step
from r2v.evaluation.curves import interval, resample_BT
from r2v.evaluation.gain import RESAMPLES, Units
from r2v.learning.reading import ReadRows, cross_fitted, read_rows, slm_action
from r2v.maths import Bools, Floats
from r2v.maths.offpolicy import doubly_robust_N
from r2v.studies.costs import CHARACTERS, tokens_of
from r2v.studies.stronger import LEAST_GROUPS, Stronger, cell_of, stronger_of, unhelped

Kind = Literal["paired", "explored", "alike", "outcomes"]
LEAST_LABELS = 100
"""Comparisons of drafts with answers."""
LEAST_EXPLORED = 100
"""Steps of each route that were drawn with a known probability."""
UNCHOSEN: frozenset[Code] = frozenset({"observe", "shadow", "explore"})
"""Codes of steps that the teacher answers whatever the router wants: they stand for all steps, others for those it chose."""
LEAST_EACH = 20
"""Episodes of each outcome."""
LEAST_PROPENSITY = 0.01
"""Probability of any model below which a step is left out: it would weigh as much as a hundred others."""
AT_FIRST = " at step 0"
"""After the kind of a score: as it was at the first step."""
MOST_STEPS = 25_000
"""Steps that are fitted on; of more, whole episodes are drawn."""


@dataclass(frozen=True, eq=False)
class Logs:
    """Recorded episodes, and which models play which part."""

    episodes: Sequence[Episode]
    groups: Groups
    slms: Sequence[str] = ()
    """Models that count as the SLM; none: all but the teacher."""
    teacher: str | None = None
    """The stronger model, if it is named."""
    stronger: str | None = None
    """The same; where none is named, the one that was chosen."""
    seed: int = 0
    """Of the draw where there are too many steps."""

    def is_slm(self, episode: Episode) -> bool:
        return not self.slms or episode.agent in self.slms

    def suffice(self, mine: Sequence[int]) -> bool:
        """Whether these episodes are of enough groups, and enough of them solved and failed."""
        solved = sum(bool(self.episodes[i].success) for i in mine)
        return self.of_enough_groups(mine) and min(solved, len(mine) - solved) >= LEAST_EACH

    def of_enough_groups(self, mine: Sequence[int]) -> bool:
        return len({self.groups.group_E[i] for i in mine}) >= LEAST_GROUPS

    def drawn(self, steps: Mapping[int, Sequence[int]]) -> tuple[list[Episode], ReadRows, int]:
        """Rows of at most `MOST_STEPS` steps, by whole episodes; the episodes of these; and how many were left out.

        Args:
            steps: of each episode to learn from, the numbers of its steps to read; at least one.
        """
        mine = sorted(steps)
        drawn = sorted(mine[n] for n in drawn_within([len(steps[i]) for i in mine], MOST_STEPS, self.seed))
        kept = [self.episodes[i] for i in drawn]
        return kept, read_rows(kept, self.groups.group_E[drawn], [steps[i] for i in drawn]), len(mine) - len(drawn)


@dataclass(frozen=True, eq=False, kw_only=True)
class Evidence(ABC):
    """Rows of steps, the label of each for every reader, and how readers' probabilities score a unit."""

    kind: ClassVar[Kind]
    score_kinds: ClassVar[tuple[ScoreKind, ...]]
    """Kinds of scores that a router may have."""
    reader: ClassVar[str] = "risk"
    """The reader of `labels` that every router has."""
    knows_teacher: ClassVar[bool] = True
    """Whether it shows what a teacher adds."""
    hands_over: ClassVar[bool] = False
    """Whether what was measured is a teacher that keeps the session."""

    episodes: list[Episode]
    """Those that are learned from."""
    rows: ReadRows
    labels: Mapping[str, Floats]
    """Of each reader (`risk`: the SLM fails; `teacher_risk`: the stronger model fails; `differs`): 1 or 0 a row, NaN where
    the row does not tell.
    """
    teacher: str | None
    """The stronger model, where it is known by name."""
    slm_tokens_U2: Floats = field(default_factory=lambda: np.zeros((0, 2)))
    """[input, output] of each unit; empty where no teacher is known."""
    teacher_tokens_U2: Floats = field(default_factory=lambda: np.zeros((0, 2)))
    usd_U2: Floats = field(default_factory=lambda: np.zeros((0, 2)))
    """[SLM, teacher] of each unit as it was served; NaN where it is not known, empty where it is known of none."""
    left_out: int = 0
    """Episodes that were not drawn."""

    @classmethod
    @abstractmethod
    def found(cls, logs: Logs) -> Evidence | None:
        """What the logs hold of this kind; None where it is too little."""

    @property
    def slms(self) -> tuple[str, ...]:
        return self.rows.agents

    @property
    @abstractmethod
    def unit_rows(self) -> NDArray[np.int64]:
        """Of each unit its first row."""

    @property
    def unit_models(self) -> NDArray[np.int64]:
        """Of each unit, the number of its SLM in `slms`."""
        return self.rows.agent_N[self.unit_rows]

    @property
    def unit_groups(self) -> NDArray[np.int64]:
        return self.rows.group_N[self.unit_rows]

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """Of each episode, its first row: the rows of an episode follow one another."""
        return np.unique(self.rows.episode_N, return_index=True)[1]

    def probabilities(
        self, fold_N: NDArray[np.int64], seed: int, fitted: Callable[[], None] = lambda: None
    ) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """[N] of each reader without its floor, and with it, from models that saw no row of its fold (of its folds).

        `fitted` is called after each fold of each reader.
        """
        found = {name: cross_fitted(self.rows, y_N, fold_N, seed=seed, fitted=fitted) for name, y_N in self.labels.items()}
        return {name: p_N for name, (p_N, _) in found.items()}, {name: p_N for name, (_, p_N) in found.items()}

    def units(self, p: Mapping[str, Floats], fold_N: NDArray[np.int64]) -> Units:
        """The units with the scores of these probabilities, and of the nulls that look at the first step alone."""
        score_N = self.scores(p)
        start_U = self._starts[self.rows.episode_N[self.unit_rows]]
        at_start = {f"{kind}{AT_FIRST}": s_N[start_U] for kind, s_N in score_N.items()}
        score_U = {kind: self._of_units(s_N) for kind, s_N in score_N.items()}
        return Units(self.worth(p), {**score_U, **at_start}, self.unit_models, self.unit_groups, fold_N[self.unit_rows])

    @abstractmethod
    def scores(self, p: Mapping[str, Floats]) -> dict[str, Floats]:
        """The score of each kind that a router has at each step, from its readers' probabilities."""

    @abstractmethod
    def _of_units(self, score_N: Floats) -> Floats:
        """The score of each unit from those of its rows."""

    @abstractmethod
    def worth(self, p: Mapping[str, Floats]) -> Floats:
        """[U] What escalating each unit adds; `p` are probabilities of readers that saw no row of its fold."""

    @abstractmethod
    def caught(self, units: Units, asked_U: Bools) -> dict[str, float | None]:
        """What escalating these units would catch, for a line of the table of thresholds."""

    @abstractmethod
    def at_risk(self, units: Units, kept_U: Bools) -> float | None:
        """What is lost where the SLM keeps these units; None where no teacher is known."""

    def success(self, units: Units, escalated_U: Bools, at_first_U: Bools) -> dict[str, float | None]:
        """Share of sessions solved under the router, and under what needs none; empty where it is not known."""
        return {}

    def solved(self, escalated_U: Bools) -> tuple[Floats, Floats] | None:
        """([U] success of each unit as routed, of the stronger model alone); None where it is not known."""
        return None

    def facts(self, units: Units, escalated_U: Bools, seed: int) -> dict[str, Any]:
        """What only this kind can say."""
        return {}


@dataclass(frozen=True, eq=False, kw_only=True)
class SessionEvidence(Evidence):
    """A unit is a session, escalated as a whole: its score is the highest of its steps."""

    alone_E: Floats
    """Success of the SLM alone in each session that is a unit."""

    @property
    def unit_rows(self) -> NDArray[np.int64]:
        return self._starts

    @property
    @abstractmethod
    def worth_U(self) -> Floats:
        """What escalating each session adds."""

    def worth(self, p: Mapping[str, Floats]) -> Floats:
        return self.worth_U

    def _of_units(self, score_N: Floats) -> Floats:
        return np.maximum.reduceat(score_N, self._starts)


class StepEvidence(Evidence):
    """A unit is a step."""

    @property
    def unit_rows(self) -> NDArray[np.int64]:
        return np.arange(len(self.rows))

    def _of_units(self, score_N: Floats) -> Floats:
        return score_N


def paired_labels(rows: ReadRows, alone_E: Floats, handed_E: Floats) -> dict[str, Floats]:
    """1 or 0 a row for each reader, from the success of the SLM and of the stronger model in each episode."""
    return {"risk": (1 - alone_E)[rows.episode_N], "teacher_risk": (handed_E < 0.5)[rows.episode_N].astype(float)}


@dataclass(frozen=True, eq=False, kw_only=True)
class Paired(SessionEvidence):
    """A weaker and a stronger model played the same tasks."""

    kind: ClassVar[Kind] = "paired"
    score_kinds: ClassVar[tuple[ScoreKind, ...]] = ("benefit", "risk")
    hands_over: ClassVar[bool] = True
    handed_E: Floats
    """Success of the stronger model on the same task."""

    @classmethod
    def found(cls, logs: Logs) -> Paired | None:
        teacher = logs.stronger
        solved: dict[tuple[str, str, int], list[float]] = defaultdict(list)
        spent: dict[tuple[str, str, int], list[Floats]] = defaultdict(list)
        for e in logs.episodes:
            if e.agent == teacher and e.success is not None and unhelped(e):
                solved[cell_of(e)].append(float(e.success))
                spent[cell_of(e)].append(tokens_of(e))
        mine = {
            i: own_steps(e) for i, e in enumerate(logs.episodes)
            if e.success is not None and e.agent != teacher and logs.is_slm(e) and cell_of(e) in solved
            and unhelped(e) and own_steps(e)
        }  # fmt: skip
        if not logs.suffice([*mine]):
            return None
        kept, rows, left_out = logs.drawn(mine)
        handed_E = np.array([float(np.mean(solved[cell_of(e)])) for e in kept])
        alone_E = np.array([float(bool(e.success)) for e in kept])
        return cls(
            episodes=kept, rows=rows, labels=paired_labels(rows, alone_E, handed_E), teacher=teacher, alone_E=alone_E,
            handed_E=handed_E,
            slm_tokens_U2=np.array([tokens_of(e) for e in kept]),
            teacher_tokens_U2=np.array([np.mean(spent[cell_of(e)], axis=0) for e in kept]), left_out=left_out,
        )  # fmt: skip

    @property
    def worth_U(self) -> Floats:
        return self.handed_E - self.alone_E

    def scores(self, p: Mapping[str, Floats]) -> dict[str, Floats]:
        return {"benefit": p["risk"] - p["teacher_risk"], "risk": p["risk"]}

    def caught(self, units: Units, asked_U: Bools) -> dict[str, float | None]:
        return {
            **_caught(asked_U, self.alone_E < 0.5), "helpful_of_escalated": _share(self.worth_U > 0, asked_U),
            "success": float((self.alone_E + asked_U * self.worth_U).mean()),
            "random_success": self._at_random(units, asked_U),
        }  # fmt: skip

    def at_risk(self, units: Units, kept_U: Bools) -> float | None:
        """Share of sessions that the stronger model would have ended better, and that the SLM keeps."""
        return float((kept_U * np.maximum(self.worth_U, 0)).mean())

    def success(self, units: Units, escalated_U: Bools, at_first_U: Bools) -> dict[str, float | None]:
        return {
            "router": float((self.alone_E + escalated_U * self.worth_U).mean()), "slm alone": float(self.alone_E.mean()),
            "random": self._at_random(units, escalated_U),
            "step 0 only": float((self.alone_E + at_first_U * self.worth_U).mean()),
            "teacher alone": float(self.handed_E.mean()), "slm again": self._again(escalated_U),
        }  # fmt: skip

    def solved(self, escalated_U: Bools) -> tuple[Floats, Floats] | None:
        return self.alone_E + escalated_U * self.worth_U, self.handed_E

    def _at_random(self, units: Units, escalated_U: Bools) -> float:
        """Success if as many sessions of each model were handed over at random."""
        rate_M = np.bincount(units.model_U, escalated_U) / np.maximum(1, np.bincount(units.model_U))
        return float((self.alone_E + rate_M[units.model_U] * self.worth_U).mean())

    def _again(self, escalated_U: Bools) -> float | None:
        """Success if the SLM started anew in place of the stronger model, from its other runs; None without any."""
        runs: dict[Any, list[float]] = defaultdict(list)
        cells = [(e.agent, e.task.id, e.perturbation) for e in self.episodes]
        for cell, alone in zip(cells, self.alone_E, strict=True):
            runs[cell].append(float(alone))
        known = [len(runs[cell]) > 1 for cell in cells]
        if np.mean(known) < 0.5:
            return None
        total = [
            (sum(runs[c]) - a) / (len(runs[c]) - 1) if asked else a
            for c, a, asked, ok in zip(cells, self.alone_E, escalated_U, known, strict=True)
            if ok
        ]
        return float(np.mean(total))


@dataclass(frozen=True, eq=False, kw_only=True)
class Explored(StepEvidence):
    """Steps of one deployment that drew their route with a logged probability, in sessions with outcomes.

    The worth of a step is P(success | the teacher takes it) - P(success | the SLM does), all other steps going as the logged
    policy takes them: doubly robust, so that neither a router that escalates hard tasks nor a wrong reader biases it. A step
    that another stronger model took is a row, too, which tells of neither: without it the probabilities of the others, which
    add up to less than one, would not be those of what is left.
    """

    kind: ClassVar[Kind] = "explored"
    score_kinds: ClassVar[tuple[ScoreKind, ...]] = ("benefit", "risk")
    escalated_N: Floats
    """1 where the teacher took the step, 0 where it did not."""
    other_N: Floats
    """1 where another stronger model took it."""
    propensity_N: Floats
    """See `escalation_propensity`."""
    solved_N: Floats
    """Success of its session."""
    not_explored: int
    """Steps of sessions with outcomes whose route was certain, or nearly so."""

    @classmethod
    def found(cls, logs: Logs) -> Explored | None:
        ended = {
            i: e for i, e in enumerate(logs.episodes)
            if e.success is not None and e.agent != logs.teacher and logs.is_slm(e)
        }  # fmt: skip
        mine = {i: steps for i, steps in zip(ended, explored_steps([*ended.values()]), strict=True) if steps}
        for model in ("slm", TEACHER):
            of_model = [i for i, steps in mine.items() for t in steps if ended[i].steps[t].choice.model == model]
            if len(of_model) < LEAST_EXPLORED or not logs.suffice([*set(of_model)]):
                return None
        kept, rows, left_out = logs.drawn(mine)
        steps = [kept[e].steps[t] for e, t in zip(rows.episode_N, rows.t_N, strict=True)]
        escalated_N = np.array([float(step.choice.model == TEACHER) for step in steps])
        other_N = np.array([float(step.choice.model not in ("slm", TEACHER)) for step in steps])
        solved_N = np.array([float(bool(episode.success)) for episode in kept])[rows.episode_N]
        tokens_N2 = np.array([_tokens(step.choice) for step in steps])
        labels = {
            "risk": np.where(escalated_N + other_N == 0, 1 - solved_N, np.nan),
            "teacher_risk": np.where(escalated_N == 1, 1 - solved_N, np.nan),
        }
        return cls(
            episodes=kept, rows=rows, labels=labels, teacher="teacher", escalated_N=escalated_N, other_N=other_N,
            propensity_N=np.array([escalation_propensity(step) for step in steps], dtype=float), solved_N=solved_N,
            slm_tokens_U2=tokens_N2, teacher_tokens_U2=tokens_N2, left_out=left_out,
            not_explored=sum(len(e.steps) for e in ended.values()) - sum(map(len, mine.values())),
        )  # fmt: skip

    def scores(self, p: Mapping[str, Floats]) -> dict[str, Floats]:
        return {"benefit": p["risk"] - p["teacher_risk"], "risk": p["risk"]}

    def worth(self, p: Mapping[str, Floats]) -> Floats:
        return doubly_robust_N(
            self.escalated_N, self.propensity_N, self.solved_N, 1 - self.other_N, 1 - p["teacher_risk"], 1 - p["risk"]
        )

    def caught(self, units: Units, asked_U: Bools) -> dict[str, float | None]:
        """The mean worth of the steps escalated; which of them were worth it nobody knows: no step was taken both ways."""
        return {"benefit_of_escalated": _mean(units.worth_U[asked_U])}

    def at_risk(self, units: Units, kept_U: Bools) -> float | None:
        """Success that escalating a step that the SLM keeps would add, on average; below 0 where it would do harm."""
        return _mean(units.worth_U[kept_U])

    def facts(self, units: Units, escalated_U: Bools, seed: int) -> dict[str, Any]:
        benefit, benefit_ci95 = _mean_over_groups(units.worth_U, units, seed)
        return {
            "benefit": benefit, "benefit_ci95": benefit_ci95, "benefit_of_escalated": _mean(units.worth_U[escalated_U]),
            "steps_escalated_in_log": int(self.escalated_N.sum()), "steps_not_explored": self.not_explored,
        }  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class Alike(StepEvidence):
    """The teacher answered beside drafts of the SLM, at steps that the router did not choose."""

    kind: ClassVar[Kind] = "alike"
    score_kinds: ClassVar[tuple[ScoreKind, ...]] = ("disagreement",)
    reader: ClassVar[str] = "differs"

    @classmethod
    def found(cls, logs: Logs) -> Alike | None:
        labelled = {
            i: {t: d for t, s in enumerate(e.steps) if stands_for_all(s) and (d := differs(s)) is not None}
            for i, e in enumerate(logs.episodes)
        }
        mine = {i: list(known) for i, known in labelled.items() if known}
        values = [d for known in labelled.values() for d in known.values()]
        if len(values) < LEAST_LABELS or not logs.of_enough_groups([*mine]) or len(set(values)) < 2:
            return None
        kept, rows, left_out = logs.drawn(mine)
        steps = [kept[e].steps[t] for e, t in zip(rows.episode_N, rows.t_N, strict=True)]
        differs_N = np.array([float(bool(differs(step))) for step in steps])
        tokens_N2, usd_N2 = (np.array([of(step.choice) for step in steps], dtype=float) for of in (_tokens, _usd))
        return cls(
            episodes=kept, rows=rows, labels={"differs": differs_N}, teacher="teacher", slm_tokens_U2=tokens_N2,
            teacher_tokens_U2=tokens_N2, usd_U2=usd_N2, left_out=left_out,
        )  # fmt: skip

    def scores(self, p: Mapping[str, Floats]) -> dict[str, Floats]:
        return {"disagreement": p["differs"]}

    def worth(self, p: Mapping[str, Floats]) -> Floats:
        return self.labels["differs"]

    def caught(self, units: Units, asked_U: Bools) -> dict[str, float | None]:
        differs_U = units.worth_U > 0.5
        return {**_caught(asked_U, differs_U), "helpful_of_escalated": _share(differs_U, asked_U)}

    def at_risk(self, units: Units, kept_U: Bools) -> float | None:
        """Share of sessions with a step that differs and that the SLM keeps: so many are at risk at most.

        Where not all steps of a session were compared, it counts with as many such steps as that makes of all of them.
        """
        compared_E = np.bincount(self.rows.episode_N)
        lost_E = np.bincount(self.rows.episode_N, kept_U & (units.worth_U > 0))
        steps_E = np.array([len(episode.steps) for episode in self.episodes])
        share_E = np.where(compared_E == steps_E, np.minimum(lost_E, 1), lost_E * steps_E / compared_E)
        return float(min(1.0, share_E.mean()))

    def facts(self, units: Units, escalated_U: Bools, seed: int) -> dict[str, Any]:
        alike_share, alike_share_ci95 = _mean_over_groups(1 - units.worth_U, units, seed)
        return {"alike_share": alike_share, "alike_share_ci95": alike_share_ci95}


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcomes(SessionEvidence):
    """The SLM played without any help: a session that fails is worth escalating, if a teacher solves it.

    Sessions that were helped are no units: which ones were helped was chosen, and they may be solved because of it. Their
    steps after the last help are rows for the reader.
    """

    kind: ClassVar[Kind] = "outcomes"
    score_kinds: ClassVar[tuple[ScoreKind, ...]] = ("risk",)
    knows_teacher: ClassVar[bool] = False
    own_E: Bools
    """Whether nobody helped in an episode: these are the units."""

    @classmethod
    def found(cls, logs: Logs) -> Outcomes | None:
        mine = {
            i: own_steps(e) for i, e in enumerate(logs.episodes)
            if e.success is not None and logs.is_slm(e) and own_steps(e)
        }  # fmt: skip
        if not logs.suffice([i for i in mine if unhelped(logs.episodes[i])]):
            return None
        kept, rows, left_out = logs.drawn(mine)
        solved_E = np.array([float(bool(e.success)) for e in kept])
        own_E = np.array([unhelped(e) for e in kept])
        labels = {"risk": (1 - solved_E)[rows.episode_N]}
        return cls(
            episodes=kept, rows=rows, labels=labels, teacher=None, alone_E=solved_E[own_E], own_E=own_E, left_out=left_out
        )

    @property
    def unit_rows(self) -> NDArray[np.int64]:
        return self._starts[self.own_E]

    def _of_units(self, score_N: Floats) -> Floats:
        return super()._of_units(score_N)[self.own_E]

    @property
    def worth_U(self) -> Floats:
        return 1 - self.alone_E

    def scores(self, p: Mapping[str, Floats]) -> dict[str, Floats]:
        return {"risk": p["risk"]}

    def caught(self, units: Units, asked_U: Bools) -> dict[str, float | None]:
        return _caught(asked_U, self.alone_E < 0.5)

    def at_risk(self, units: Units, kept_U: Bools) -> float | None:
        return None

    def success(self, units: Units, escalated_U: Bools, at_first_U: Bools) -> dict[str, float | None]:
        """With a teacher that solves nothing of what is escalated, and with one that solves all of it."""
        return {
            "slm alone": float(self.alone_E.mean()), "router, at least": float((self.alone_E * ~escalated_U).mean()),
            "router, at most": float((self.alone_E + escalated_U * self.worth_U).mean()),
        }  # fmt: skip

    def facts(self, units: Units, escalated_U: Bools, seed: int) -> dict[str, Any]:
        return {"sessions_alone": int(self.own_E.sum()), "sessions_helped": int((~self.own_E).sum())}


KINDS: tuple[type[Evidence], ...] = (Paired, Explored, Alike, Outcomes)
"""The strongest first."""


def evidence_of(
    episodes: Sequence[Episode], found: Groups, *, slms: Sequence[str] = (), teacher: str | None = None,
    chosen: Stronger | None = None, seed: int = 0,
) -> Evidence | None:  # fmt: skip
    """The strongest evidence that the episodes hold; None where they hold too little for any.

    Args:
        episodes: recorded ones.
        found: their groups.
        slms: models that count as the SLM; none: all but the teacher.
        teacher: the stronger model; None: the one of `chosen`.
        chosen: what was chosen; None: `stronger_of` chooses.
        seed: of the draw where there are too many steps.
    """
    stronger = teacher or (chosen or stronger_of(episodes, found.group_E, slms=slms, seed=seed)).model
    logs = Logs(episodes, found, slms, teacher, stronger, seed)
    return next((evidence for kind in KINDS if (evidence := kind.found(logs)) is not None), None)


def own_steps(episode: Episode) -> list[int]:
    """Steps after which the SLM played alone to the end, whose outcome is its own: all, or those after the last help."""
    start = 0
    for t, step in enumerate(episode.steps):
        if step.choice.source != "slm":
            start = t + 1
    return [t for t in range(start, len(episode.steps)) if episode.steps[t].choice.features is not None]


def explored_steps(episodes: Sequence[Episode]) -> list[list[int]]:
    """Of each episode of one deployment, the steps that drew their route with a known probability."""
    taken = (step.choice for e in episodes for step in e.steps if step.choice.source == "teacher")
    stronger = len({c.model for c in taken if c.decision is not None and c.decision.propensity < 1})
    return [[t for t, s in enumerate(e.steps) if escalation_propensity(s, max(1, stronger)) is not None] for e in episodes]


def escalation_propensity(step: Step, stronger: int = 1) -> float | None:
    """P(the step is escalated, and to the model that took it where that is no SLM) as it was logged; None where any of the
    models was certain or impossible, or nearly so, where the SLM drafted nothing, and where the row contradicts itself.

    `stronger`: how many stronger models there are to draw from.
    """
    choice, decision = step.choice, step.choice.decision
    if decision is None or choice.features is None or choice.source not in ("slm", "teacher"):
        return None
    if (choice.source == "slm") != (decision.route == "continue"):
        return None
    # A step must be left out or not whichever model was drawn, and its row knows the probability of that one alone. Of the
    # least likely one it follows from how the gateway draws: the SLM as often as all others together. Rounded for the same.
    if choice.source == "slm":
        escalated = 1 - decision.propensity
        rarest = min(escalated, 1 - escalated) / stronger
    else:
        escalated = decision.propensity
        rarest = min(escalated, (1 - escalated) / (2 * stronger - 1))
    return round(escalated, 9) if round(rarest, 9) >= LEAST_PROPENSITY else None


def answered_beside(step: Step) -> bool:
    """Whether the teacher answered beside a draft of the SLM."""
    return step.choice.model == TEACHER and bool(step.choice.candidates) and step.choice.features is not None


def stands_for_all(step: Step) -> bool:
    """Whether it was so whatever the router wanted; where nobody wrote down why, it may have been the router's choice."""
    decision = step.choice.decision
    return answered_beside(step) and decision is not None and decision.code in UNCHOSEN


def differs(step: Step) -> bool | None:
    """Whether the teacher, who answered beside a draft of the SLM, did something else; None where nobody can tell."""
    if step.alike is not None:
        return not step.alike
    if not answered_beside(step):
        return None
    same = alike(slm_action(step), step.choice.action)
    return None if same is None else not same


def drawn_within(steps: Sequence[int], most: int, seed: int) -> list[int]:
    """Places of episodes in random order, one at least, as long as their steps together are at most so many."""
    total, drawn = 0, []
    for n in np.random.default_rng(seed).permutation(len(steps)).tolist():
        if total and total + steps[n] > most:
            break
        total += steps[n]
        drawn.append(n)
    return drawn


def _tokens(choice: Choice) -> tuple[float, float]:
    """Of the teacher's answer, where there is one, else of a draft of the SLM; the other counts as as many."""
    usage, drafts = (choice.teacher, 1) if choice.source == "teacher" else (choice.slm, max(1, len(choice.candidates)))
    written = (usage.completion_tokens or 0) / drafts or len(choice.action.text) / CHARACTERS
    return float(usage.prompt_tokens or 0), written


def _usd(choice: Choice) -> tuple[float, float]:
    return tuple(float("nan") if u.usd is None else u.usd for u in (choice.slm, choice.teacher))  # type: ignore[return-value]


def _mean(value_U: Floats) -> float | None:
    return float(value_U.mean()) if len(value_U) else None


def _caught(asked_U: Bools, bad_U: Bools) -> dict[str, float | None]:
    return {"failures_caught": _share(asked_U, bad_U), "false_alarms": _share(asked_U, ~bad_U)}


def _share(found_U: Bools, among_U: Bools) -> float | None:
    """Share of some units that are found; None without any."""
    return _mean(found_U[among_U].astype(float))


def _mean_over_groups(value_U: Floats, units: Units, seed: int) -> tuple[float, list[float]]:
    """(mean over the units, its 95 % interval over groups of tasks)."""
    group_U = np.unique(units.group_U, return_inverse=True)[1]
    weight_BG = resample_BT(int(group_U.max()) + 1, RESAMPLES, seed)
    mean_B = (weight_BG @ np.bincount(group_U, value_U)) / (weight_BG @ np.bincount(group_U))
    return float(mean_B[0]), interval(mean_B)
