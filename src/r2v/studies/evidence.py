"""What recorded episodes show about escalating: which steps may be learned from, and what an escalation was worth.

Three kinds, the strongest first. *paired*: a weaker and a stronger model played the same tasks, so handing a session over
is worth what the stronger one's own run solved more. *alike*: the teacher answered beside the SLM's draft, so escalating a
step is worth something only where the two differ. *outcomes*: only the SLM played: what a teacher would add is not known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from r2v.core.agreement import alike
from r2v.core.groups import Groups
from r2v.core.types import Choice, Episode, ScoreKind, Step
from r2v.evaluation.gain import Units
from r2v.learning.reading import ReadRows, cross_fitted, read_rows, slm_action
from r2v.maths import Floats
from r2v.studies.costs import CHARACTERS, tokens_of

Kind = Literal["paired", "alike", "outcomes"]
LEAST_GROUPS = 20
"""Groups of tasks that a comparison of two models takes; with fewer no interval says anything."""
LEAST_LABELS = 100
"""Comparisons of drafts with answers."""
LEAST_EACH = 20
"""Episodes of each outcome."""
AT_FIRST = " at step 0"
"""After the kind of a score: as it was at the first step."""
MOST_STEPS = 25_000
"""Steps that are fitted on; of more, whole episodes are drawn."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Rows of steps, the label of each for every reader, and how readers' probabilities score a unit."""

    kind: Kind
    episodes: list[Episode]
    """Those that are learned from: the SLM's, or of `alike` those with drafts."""
    rows: ReadRows
    labels: Mapping[str, Floats]
    """Of each reader (`risk`: the SLM fails; `teacher_risk`: the stronger model fails; `differs`): 1 or 0 a row."""
    worth_U: Floats
    """Of each unit: an episode, or of `alike` a row."""
    teacher: str | None
    """The stronger model, where it is known by name."""
    alone_E: Floats = field(default_factory=lambda: np.zeros(0))
    """Success of the SLM alone in each episode; empty for `alike`."""
    handed_E: Floats = field(default_factory=lambda: np.zeros(0))
    """Success of the stronger model on the same task; empty where it is not known."""
    slm_tokens_U2: Floats = field(default_factory=lambda: np.zeros((0, 2)))
    """[input, output] of each unit."""
    teacher_tokens_U2: Floats = field(default_factory=lambda: np.zeros((0, 2)))
    usd_U2: Floats = field(default_factory=lambda: np.zeros((0, 2)))
    """[SLM, teacher] of each unit as it was served; NaN where it is not known."""
    left_out: int = 0
    """Episodes that were not drawn."""

    @property
    def slms(self) -> tuple[str, ...]:
        return self.rows.agents

    @property
    def unit_models(self) -> NDArray[np.int64]:
        """Of each unit, the number of its SLM in `slms`."""
        return self.rows.agent_N if self.kind == "alike" else self.rows.agent_N[self._starts]

    @property
    def unit_groups(self) -> NDArray[np.int64]:
        return self.rows.group_N if self.kind == "alike" else self.rows.group_N[self._starts]

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """Of each episode, its first row: the rows of an episode follow one another."""
        return np.unique(self.rows.episode_N, return_index=True)[1]

    def kinds(self) -> tuple[ScoreKind, ...]:
        """Kinds of scores that a router may have."""
        return {"paired": ("benefit", "risk"), "alike": ("disagreement",), "outcomes": ("risk",)}[self.kind]  # type: ignore[return-value]

    def probabilities(self, fold_N: NDArray[np.int64], seed: int) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """[N] of each reader without its floor, and with it, from models that saw no row of its fold (of its folds)."""
        found = {name: cross_fitted(self.rows, y_N, fold_N, seed=seed) for name, y_N in self.labels.items()}
        return {name: p_N for name, (p_N, _) in found.items()}, {name: p_N for name, (_, p_N) in found.items()}

    def units(self, p: Mapping[str, Floats], fold_N: NDArray[np.int64]) -> Units:
        """The units with the scores of these probabilities, and of the nulls that look at the first step alone."""
        score_N = scores(self.kind, p)
        at_start = {f"{kind}{AT_FIRST}": s_N[self._starts] for kind, s_N in score_N.items()}
        if self.kind == "alike":
            at_start = {kind: s_E[self.rows.episode_N] for kind, s_E in at_start.items()}
            fold_U = fold_N
        else:
            score_N = {kind: np.maximum.reduceat(s_N, self._starts) for kind, s_N in score_N.items()}
            fold_U = fold_N[self._starts]
        return Units(self.worth_U, {**score_N, **at_start}, self.unit_models, self.unit_groups, fold_U)


def scores(kind: Kind, p: Mapping[str, Floats]) -> dict[str, Floats]:
    """The score of each kind that a router has at each step, from its readers' probabilities."""
    if kind == "alike":
        return {"disagreement": p["differs"]}
    risk = {"risk": p["risk"]}
    return {"benefit": p["risk"] - p["teacher_risk"], **risk} if kind == "paired" else risk


def evidence_of(
    episodes: Sequence[Episode], found: Groups, *, slms: Sequence[str] = (), teacher: str | None = None, seed: int = 0
) -> Evidence | None:
    """The strongest evidence that the episodes hold; None where they hold too little for any.

    Args:
        episodes: recorded ones.
        found: their groups.
        slms: models that count as the SLM; none: all but the teacher.
        teacher: the stronger model; None: of those that played at least half of the tasks the one that solved most.
        seed: of the draw where there are too many steps.
    """
    return (
        _paired(episodes, found, slms, teacher, seed)
        or _alike(episodes, found, seed)
        or _outcomes(episodes, found, slms, seed)
    )


def own_steps(episode: Episode) -> list[int]:
    """Steps after which the SLM played alone to the end, whose outcome is its own: all, or those after the last help."""
    start = 0
    for t, step in enumerate(episode.steps):
        if step.choice.source != "slm":
            start = t + 1
    return [t for t in range(start, len(episode.steps)) if episode.steps[t].choice.features is not None]


def differs(step: Step) -> bool | None:
    """Whether the teacher, who answered beside a draft of the SLM, did something else; None where nobody can tell."""
    if step.alike is not None:
        return not step.alike
    if step.choice.source != "teacher" or not step.choice.candidates or step.choice.features is None:
        return None
    same = alike(slm_action(step), step.choice.action)
    return None if same is None else not same


def strongest(episodes: Sequence[Episode]) -> str | None:
    """Of the models that played at least half of the tasks, or as many as any other, the one that solved most of them."""
    played, solved = defaultdict(set), defaultdict(list)
    for e in episodes:
        if e.success is not None:
            played[e.agent].add(_cell(e))
            solved[e.agent].append(float(e.success))
    if len(played) < 2:
        return None
    tasks = len(set().union(*played.values()))
    enough = min(tasks / 2, sorted(map(len, played.values()))[-2])
    return max((a for a in played if len(played[a]) >= enough), key=lambda a: (np.mean(solved[a]), len(played[a])))


def _cell(episode: Episode) -> tuple[str, str, int]:
    """What two models must share to be compared: the task, and what disturbed it."""
    return episode.task.id, episode.perturbation, episode.seed


def _paired(
    episodes: Sequence[Episode], found: Groups, slms: Sequence[str], teacher: str | None, seed: int
) -> Evidence | None:
    teacher = teacher or strongest(episodes)
    solved: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    spent: dict[tuple[str, str, int], list[Floats]] = defaultdict(list)
    for e in episodes:
        if e.agent == teacher and e.success is not None and all(s.choice.source == "slm" for s in e.steps):
            solved[_cell(e)].append(float(e.success))
            spent[_cell(e)].append(tokens_of(e))
    mine = [
        i for i, e in enumerate(episodes)
        if e.success is not None and e.agent != teacher and (not slms or e.agent in slms) and _cell(e) in solved
        and all(step.choice.source == "slm" for step in e.steps) and own_steps(e)
    ]  # fmt: skip
    if len({found.group_E[i] for i in mine}) < LEAST_GROUPS or not _both([episodes[i] for i in mine]):
        return None
    kept, rows, left_out = _drawn(episodes, found, mine, seed)
    handed_E = np.array([float(np.mean(solved[_cell(e)])) for e in kept])
    alone_E = np.array([float(bool(e.success)) for e in kept])
    labels = paired_labels(rows, alone_E, handed_E)
    own_E2 = np.array([tokens_of(e) for e in kept])
    teacher_E2 = np.array([np.mean(spent[_cell(e)], axis=0) for e in kept])
    return Evidence(
        "paired", kept, rows, labels, handed_E - alone_E, teacher, alone_E, handed_E, own_E2, teacher_E2, left_out=left_out
    )


def paired_labels(rows: ReadRows, alone_E: Floats, handed_E: Floats) -> dict[str, Floats]:
    """1 or 0 a row for each reader, from the success of the SLM and of the stronger model in each episode."""
    return {"risk": (1 - alone_E)[rows.episode_N], "teacher_risk": (handed_E < 0.5)[rows.episode_N].astype(float)}


def _alike(episodes: Sequence[Episode], found: Groups, seed: int) -> Evidence | None:
    labelled = {i: {t: d for t, s in enumerate(e.steps) if (d := differs(s)) is not None and s.choice.features is not None}
                for i, e in enumerate(episodes)}  # fmt: skip
    mine = [i for i, known in labelled.items() if known]
    values = [d for known in labelled.values() for d in known.values()]
    if len(values) < LEAST_LABELS or len({found.group_E[i] for i in mine}) < LEAST_GROUPS or len(set(values)) < 2:
        return None
    kept, rows, left_out = _drawn(episodes, found, mine, seed, {i: list(known) for i, known in labelled.items()})
    differs_N = np.array([float(bool(differs(kept[e].steps[t]))) for e, t in zip(rows.episode_N, rows.t_N, strict=True)])
    choices = [kept[e].steps[t].choice for e, t in zip(rows.episode_N, rows.t_N, strict=True)]
    tokens_N2, usd_N2 = (np.array([of(c) for c in choices], dtype=float) for of in (_tokens, _usd))
    return Evidence(
        "alike", kept, rows, {"differs": differs_N}, differs_N, "teacher", slm_tokens_U2=tokens_N2,
        teacher_tokens_U2=tokens_N2, usd_U2=usd_N2, left_out=left_out,
    )  # fmt: skip


def _tokens(choice: Choice) -> tuple[float, float]:
    """Of the teacher's answer; the SLM's draft counts as as many."""
    usage = choice.teacher
    return float(usage.prompt_tokens or 0), float(usage.completion_tokens or len(choice.action.text) / CHARACTERS)


def _usd(choice: Choice) -> tuple[float, float]:
    return tuple(float("nan") if u.usd is None else u.usd for u in (choice.slm, choice.teacher))  # type: ignore[return-value]


def _outcomes(episodes: Sequence[Episode], found: Groups, slms: Sequence[str], seed: int) -> Evidence | None:
    mine = [i for i, e in enumerate(episodes) if e.success is not None and (not slms or e.agent in slms) and own_steps(e)]
    if len({found.group_E[i] for i in mine}) < LEAST_GROUPS or not _both([episodes[i] for i in mine]):
        return None
    kept, rows, left_out = _drawn(episodes, found, mine, seed)
    alone_E = np.array([float(bool(e.success)) for e in kept])
    failed_N = (1 - alone_E)[rows.episode_N]
    return Evidence("outcomes", kept, rows, {"risk": failed_N}, 1 - alone_E, None, alone_E, left_out=left_out)


def _both(episodes: Sequence[Episode]) -> bool:
    solved = sum(bool(e.success) for e in episodes)
    return min(solved, len(episodes) - solved) >= LEAST_EACH


def drawn_within(steps: Sequence[int], most: int, seed: int) -> list[int]:
    """Places of episodes in random order, one at least, as long as their steps together are at most so many."""
    total, drawn = 0, []
    for n in np.random.default_rng(seed).permutation(len(steps)).tolist():
        if total and total + steps[n] > most:
            break
        total += steps[n]
        drawn.append(n)
    return drawn


def _drawn(
    episodes: Sequence[Episode], found: Groups, mine: Sequence[int], seed: int, steps: Mapping[int, list[int]] | None = None
) -> tuple[list[Episode], ReadRows, int]:
    """Rows of at most `MOST_STEPS` steps, by whole episodes; the episodes of these; and how many were left out."""
    wanted = {i: own_steps(episodes[i]) if steps is None else steps[i] for i in mine}
    drawn = sorted(mine[n] for n in drawn_within([len(wanted[i]) for i in mine], MOST_STEPS, seed))
    kept = [episodes[i] for i in drawn]
    return kept, read_rows(kept, found.group_E[drawn], [wanted[i] for i in drawn]), len(mine) - len(drawn)
