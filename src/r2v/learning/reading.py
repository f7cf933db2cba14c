"""Fits a `Reader`: logistic regression on hashed words, binned features and the model's name, with scikit-learn.

Linear on purpose: on none of six recorded sets were boosted trees on top of it better on tasks left out, and on three or
four they were worse (`benchmarks/reading.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2v.core.features import FEATURES, batch, best
from r2v.core.groups import folds, splits
from r2v.core.mlp import Calibration
from r2v.core.reading import FIELDS, ROOM, VERDICT, Grams, Reader, grams, joined, texts
from r2v.core.types import Action, Episode, Step
from r2v.maths import Bools, Floats
from r2v.maths.calibration import fit_scaling, log_odds, nll

BINS = 5
DRAFTS = "second_draft"
"""The verdict that is known only after the step was decided: whether another draft does the same."""
PENALTIES = (0.1, 1.0)
"""Inverse strengths (scikit-learn's `C`) that are tried on groups of the training rows left out."""
FEATURE_SCALE, AGENT_SCALE = 0.4, 1.0
"""Size of the columns beside those of the words, which have length 1 a text: the larger, the less they are shrunk."""
NEVER = float(np.finfo(np.float32).max)
"""The edge of a bin that no value reaches."""
FLOOR = 0.95
"""Quantile, over the rows of the fit, of what tool results add together, below which they add no less."""
CLIPPED = (0.01, 0.99)
"""Quantiles of what a text adds over the rows of the fit, beyond which it is clipped."""


@dataclass(frozen=True, eq=False)
class ReadRows:
    """Steps as a reader sees them, one row a step."""

    said: Grams
    names: tuple[str, ...]
    """Columns of `x_NF`: all `FEATURES`, and the verdicts that any of the steps has."""
    x_NF: Floats
    present_NF: Bools
    agent_N: NDArray[np.int64]
    """Of `agents`."""
    agents: tuple[str, ...]
    episode_N: NDArray[np.int64]
    t_N: NDArray[np.int64]
    """Steps taken before."""
    group_N: NDArray[np.int64]
    """Rows of one group are never on both sides of a split."""

    def __len__(self) -> int:
        return len(self.agent_N)

    @cached_property
    def matrix(self) -> Any:
        """[N, ROOM] of the words (CSR)."""
        from scipy import sparse

        row_G = self.said.part_G // len(FIELDS)
        return sparse.csr_matrix((self.said.value_G, (row_G, self.said.index_G)), shape=(len(self), ROOM))

    def parts_NP(self, weight_G: Floats) -> Floats:
        """What each text adds, if each of its grams weighs so much."""
        return np.asarray(self._texts @ weight_G).reshape(len(self), len(FIELDS))

    @cached_property
    def _texts(self) -> Any:
        """[N x FIELDS, ROOM] of the words: the product with it takes a tenth of the time that `np.bincount` takes."""
        from scipy import sparse

        count = len(self) * len(FIELDS)
        first_T = np.searchsorted(self.said.part_G, np.arange(count + 1))
        return sparse.csr_matrix((self.said.value_G, self.said.index_G, first_T), shape=(count, ROOM))


def read_rows(
    episodes: Sequence[Episode], group_E: NDArray[np.int64], steps: Sequence[Sequence[int]], horizon: int = 50
) -> ReadRows:
    """The steps of some episodes, each with what the SLM would have done there.

    Args:
        episodes: recorded ones.
        group_E: of each episode, the group of its task.
        steps: of each episode, the numbers of the steps to read; all must have features.
    """
    said, features, known, owners, t = [], [], [], [], []
    for i, (episode, wanted) in enumerate(zip(episodes, steps, strict=True)):
        contexts = episode.contexts(horizon) if len(wanted) else []
        for number in wanted:
            step = episode.steps[number]
            assert step.choice.features is not None
            said.append(grams(texts(contexts[number], slm_action(step))))
            features.append(step.choice.features)
            known.append(dict(step.verdicts))
            owners.append(i)
            t.append(number)
    agents, agent_E = np.unique([episode.agent for episode in episodes] or [""], return_inverse=True)
    episode_N = np.array(owners, dtype=np.int64)
    x_NF, present_NF = batch(features)
    verdicts = sorted({name for row in known for name in row} - {DRAFTS})
    added_NV = np.array([[row.get(name, np.nan) for name in verdicts] for row in known]).reshape(len(known), len(verdicts))
    x_NF = np.hstack([x_NF, np.nan_to_num(added_NV)])
    present_NF = np.hstack([present_NF, ~np.isnan(added_NV)])
    return ReadRows(
        joined(said), (*FEATURES, *(VERDICT + name for name in verdicts)), x_NF, present_NF, agent_E[episode_N],
        tuple(map(str, agents)), episode_N, np.array(t, dtype=np.int64),
        np.asarray(group_E)[episode_N],
    )  # fmt: skip


def slm_action(step: Step) -> Action:
    """What the SLM would have done: the best candidate, also where the teacher then answered."""
    choice = step.choice
    return choice.candidates[best(choice.candidates, choice.scores)].action if choice.candidates else choice.action


def fit_reader(
    rows: ReadRows, y_N: Floats, use_N: Bools, *, seed: int, facts: Mapping[str, Any] | None = None,
    penalties: Sequence[float] = PENALTIES,
) -> Reader:  # fmt: skip
    """Fit P(y = 1) on some of the rows; the penalty is chosen on groups of them left out, then all of them are fitted. A y
    between 0 and 1 is a share.

    Raises ValueError where all labels are equal.
    """
    if not 0 < y_N[use_N].mean() < 1:
        raise ValueError("the steps to fit on all have the same label")
    held_N = use_N & (folds(rows.group_N, 4, seed) == 0)
    rest_N = use_N & ~held_N
    penalty = penalties[-1]
    if len(penalties) > 1 and held_N.any() and 0 < y_N[rest_N].mean() < 1:
        losses = {c: nll(probability(_fit(rows, y_N, rest_N, c), rows, held_N), y_N[held_N]) for c in penalties}
        penalty = min(losses, key=lambda c: losses[c])
    return _fit(rows, y_N, use_N, penalty, {"rows": int(use_N.sum()), "penalty": penalty, **(facts or {})})


def probability(reader: Reader, rows: ReadRows, use_N: Bools) -> Floats:
    """P(y = 1) of some of the rows, each as a step of its own model."""
    return reader.calibration(logit(reader, rows, use_N))


def logit(reader: Reader, rows: ReadRows, use_N: Bools) -> Floats:
    """Log-odds before calibration."""
    columns = [rows.names.index(name) for name in reader.names]
    offsets = np.array([reader.agents.get(agent, 0.0) for agent in rows.agents])
    x_NF, present_NF = rows.x_NF[use_N][:, columns], rows.present_NF[use_N][:, columns]
    return reader.logit(rows.parts_NP(reader.words)[use_N], x_NF, present_NF, offsets[rows.agent_N[use_N]])


def cross_fitted(
    rows: ReadRows, y_N: Floats, fold_N: NDArray[np.int64], *, seed: int, fitted: Callable[[], None] = lambda: None
) -> tuple[Floats, Floats]:
    """P(y = 1) of each row by a reader that saw no row of its fold (of its folds, one a column); the share of y = 1 where
    the others are all alike.

    Args:
        rows: of all folds.
        y_N: 1, 0, or NaN where it is not known: such a row is scored, and no reader is fitted on it.
        fold_N: of each row.
        seed: of the fits.
        fitted: called after each fold.

    Returns:
        (p_N, floored_N): without and with the reader's floor.
    """
    p_N, floored_N = np.zeros(len(rows)), np.zeros(len(rows))
    for held, rest in splits(fold_N):
        use_N = rest & ~np.isnan(y_N)
        p_N[held] = floored_N[held] = y_N[use_N].mean()
        if 0 < y_N[use_N].mean() < 1:
            reader = fit_reader(rows, y_N, use_N, seed=seed)
            p_N[held] = probability(reader, rows, held)
            floored_N[held] = probability(replace(reader, floored=True), rows, held)
        fitted()
    return p_N, floored_N


def calibrated(reader: Reader, p_N: Floats, y_N: Floats) -> Reader:
    """The reader with its slope and bias from probabilities on groups left out (Platt)."""
    slope, bias = fit_scaling(log_odds(p_N), y_N, with_bias=True)
    return replace(reader, calibration=Calibration(slope, bias))


def _fit(rows: ReadRows, y_N: Floats, use_N: Bools, penalty: float, facts: Mapping[str, Any] | None = None) -> Reader:
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    used = np.flatnonzero(use_N)
    known = [f for f in range(rows.x_NF.shape[1]) if rows.present_NF[used, f].any()]
    x_NF, present_NF = rows.x_NF[used][:, known], rows.present_NF[used][:, known]
    edges_FB = np.array([_edges(x_NF[present_NF[:, f], f]) for f in range(len(known))]).reshape(len(known), BINS - 1)
    bin_NF = (x_NF[:, :, None] >= edges_FB).sum(axis=2) + BINS * np.arange(len(known))
    row_N = np.arange(len(used))
    binned = sparse.csr_matrix(
        (np.full(int(present_NF.sum()), FEATURE_SCALE), (np.nonzero(present_NF)[0], bin_NF[present_NF])),
        shape=(len(used), BINS * len(known)),
    )
    named = sparse.csr_matrix(
        (np.full(len(used), AGENT_SCALE), (row_N, rows.agent_N[used])), shape=(len(used), len(rows.agents))
    )
    design, y, weight = sparse.hstack([rows.matrix[used], binned, named]).tocsr(), y_N[used], None
    if ((y > 0) & (y < 1)).any():  # a share counts as so much of a 1, and the rest of a 0
        design, weight, y = sparse.vstack([design, design]), np.concatenate([y, 1 - y]), np.repeat([1.0, 0.0], len(y))
    with threadpool_limits(1):
        fitted = LogisticRegression(C=penalty, max_iter=80, tol=1e-3).fit(design, y, sample_weight=weight)
    w = fitted.coef_[0]
    words, bins, agents = w[:ROOM], w[ROOM : ROOM + binned.shape[1]], w[ROOM + binned.shape[1] :] * AGENT_SCALE
    words, bins_FB = _rounded(words), _rounded(bins * FEATURE_SCALE).reshape(len(known), BINS)
    count_A = np.bincount(rows.agent_N[used], minlength=len(agents))
    mean = float(agents @ count_A / count_A.sum())
    offsets = {name: float(v - mean) for name, v, n in zip(rows.agents, agents, count_A, strict=True) if n}
    parts_NP = rows.parts_NP(words)[used]
    range_2P = _rounded(np.quantile(parts_NP, CLIPPED, axis=0))
    reader = Reader(
        tuple(rows.names[f] for f in known), edges_FB, bins_FB, words, range_2P, float(fitted.intercept_[0]) + mean,
        agents=offsets, facts=facts or {},
    )  # fmt: skip
    _, others_N = reader.added(parts_NP, x_NF, present_NF)
    return replace(reader, floor=float(np.float32(np.quantile(others_N, FLOOR))))


def _edges(values: Floats) -> Floats:
    """Inner edges of bins with about as many values each, as a folder holds them; `NEVER` where values repeat."""
    known = np.unique(values)
    at = np.unique(np.searchsorted(known, np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1], method="higher")))
    at = at[at > 0]
    between = _rounded((known[at - 1] + known[at]) / 2)  # never on a value, so that rounding moves none to another bin
    return np.concatenate([between, np.full(BINS - 1 - len(between), NEVER)])


def _rounded(values: Floats) -> Floats:
    """To single precision, as a folder holds them: a router decides after loading as it did before."""
    return np.asarray(values, dtype=np.float32).astype(np.float64)
