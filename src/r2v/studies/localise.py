"""The step at which each failed episode went wrong, by a localiser, and what that is worth on failures left out.

Where enough failures of the logs are labelled (`Episode.mistake`: somebody said so, or a branch showed it), a localiser is
fitted on them, and every figure and every named step of theirs is of groups of tasks left out. Else the one in this package
names the steps, and its own figures are given: what it is worth on other logs nobody has measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2v.core.groups import folds, groups
from r2v.core.localiser import FailureLabel, Localiser, labels_of, load_localiser, step_features
from r2v.core.types import Episode
from r2v.evaluation.curves import interval, resample_BT
from r2v.learning.localise import fit_localiser
from r2v.maths import Floats
from r2v.report.inspection import rise

SHIPPED = Path(__file__).parent / "shipped_localiser"
FOLDS = 10
SEEDS = 3
"""Of the folds; the figures are means over them."""
RESAMPLES = 2000
LEAST_LABELLED = 40
"""Groups of tasks with labelled failures from which on the logs' own labels are fitted and measured on."""
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Located:
    results: dict[str, Any]
    """What `inspect.json` holds under `localiser`."""
    named: list[int | None]
    """Of each episode the step at which it went wrong; None for one that did not fail or has no steps."""


@lru_cache(maxsize=1)
def shipped() -> Localiser:
    """The localiser in this package; its `facts` are its card."""
    return load_localiser(SHIPPED)


def locate(episodes: Sequence[Episode], risks: Sequence[Sequence[float]] = (), *, seed: int = 0) -> Located:
    """Name the step at which each failed episode went wrong.

    Args:
        episodes: recorded ones.
        risks: of each a risk for each step, or nothing, whose largest rise is measured beside it.
        seed: of folds and intervals.
    """
    failed = [i for i, episode in enumerate(episodes) if episode.success is False and episode.steps]
    labels = labels_of(episodes)
    features = {i: step_features(episodes[i]) for i in failed}
    own = groups([label.episode for label in labels]).count >= LEAST_LABELLED
    p: dict[int, Floats] = {}
    if own:
        labelled = [i for i in failed if episodes[i].mistake is not None]
        found = measured(labels, [features[i] for i in labelled], [risks[i] for i in labelled] if risks else None, seed=seed)
        results = {**found.results, "source": "labels of these logs, tasks left out"}
        p = dict(zip(labelled, found.probabilities, strict=True))
        localiser = fitted(labels, [features[i] for i in labelled], seed=seed)
    else:
        localiser = shipped()
        about = localiser.facts
        results = {**about["left_out"], "source": f"shipped, figures of its own data: {about['data']}"}
    named: list[int | None] = [None] * len(episodes)
    listed = []
    for i in failed:
        p_T = p[i] if i in p else localiser.of_features(features[i])
        step = int(p_T.argmax())
        named[i] = step
        listed.append({"episode": i, "task": episodes[i].task.id, "step": step, "p": round(float(p_T[step]), 4)})
    return Located({**results, "labelled_here": len(labels), "named": listed}, named)


@dataclass(frozen=True)
class Measured:
    results: dict[str, Any]
    probabilities: list[Floats]
    """Of each failure, by a localiser that was fitted without its group (folds of the first seed)."""


def measured(
    labels: Sequence[FailureLabel],
    features: Sequence[Floats] | None = None,
    risks: Sequence[Sequence[float]] | None = None,
    *,
    seed: int = 0,
    seeds: int = SEEDS,
) -> Measured:
    """What naming is worth on failures of tasks left out, beside rules that look at nothing.

    Args:
        labels: failures, of at least `FOLDS` groups of tasks (`r2v.core.groups`); a group is never on both sides.
        features: of each, if they are known (`r2v.core.localiser.step_features`).
        risks: of each a risk for each step, or nothing where none is known.
        seed: of the first folds.
        seeds: how many divisions into folds.
    """
    x_ETF = [step_features(label.episode) for label in labels] if features is None else features
    at_E = np.array([label.step for label in labels])
    length_E = np.array([len(x_TF) for x_TF in x_ETF])
    group_E = groups([label.episode for label in labels]).group_E
    first: list[Floats] = []
    guess_SE = np.zeros((seeds, len(labels)), dtype=np.int64)
    for s in range(seeds):
        p_ET = left_out(labels, x_ETF, seed=seed + s)
        first = first or p_ET
        guess_SE[s] = [int(p_T.argmax()) for p_T in p_ET]
    top_E, near_E = (guess_SE == at_E).mean(axis=0), (np.abs(guess_SE - at_E) <= 1).mean(axis=0)
    best = int(np.bincount(at_E).argmax())
    window_E = np.minimum(at_E + 1, length_E - 1) - np.maximum(at_E - 1, 0) + 1
    results = {
        "episodes": len(labels),
        "groups": int(group_E.max()) + 1,
        "top1": float(top_E.mean()),
        "top1_ci95": _interval(top_E, group_E, seed),
        "top1_by_seed": (guess_SE == at_E).mean(axis=1).tolist(),
        "within1": float(near_E.mean()),
        "within1_ci95": _interval(near_E, group_E, seed),
        # The best step is chosen with all labels in view, which flatters this rule, not the localiser.
        "always_step_k": {"best": _always(best, at_E, length_E), "first": _always(1, at_E, length_E)},
        "random": {"top1": float((1 / length_E).mean()), "within1": float((window_E / length_E).mean())},
        "risk_curve": None if risks is None else _risk_curve(risks, at_E),
    }
    return Measured(results, first)


def left_out(labels: Sequence[FailureLabel], features: Sequence[Floats], *, seed: int) -> list[Floats]:
    """Probabilities of the steps of each failure, by a localiser that was fitted without its group of tasks."""
    fold_E = folds(groups([label.episode for label in labels]).group_E, FOLDS, seed)
    found: list[Floats] = [np.zeros(0)] * len(labels)
    for fold in range(FOLDS):
        inside, outside = np.flatnonzero(fold_E != fold).tolist(), np.flatnonzero(fold_E == fold).tolist()
        localiser = fitted([labels[i] for i in inside], [features[i] for i in inside], seed=seed)
        for i in outside:
            found[i] = localiser.of_features(features[i])
    return found


def fitted(
    labels: Sequence[FailureLabel], features: Sequence[Floats], *, seed: int = 0, facts: dict[str, Any] | None = None
) -> Localiser:
    """A localiser whose penalty is chosen on groups of tasks left out of what it is given."""
    group_E = groups([label.episode for label in labels]).group_E
    return fit_localiser(features, [label.step for label in labels], group_E, seed=seed, facts=facts)


def _always(k: int, at_E: Ints, length_E: Ints) -> dict[str, float]:
    """Always the same step; the last one where an episode is shorter."""
    guess_E = np.minimum(k, length_E - 1)
    return {"k": k, "top1": float((guess_E == at_E).mean()), "within1": float((np.abs(guess_E - at_E) <= 1).mean())}


def _risk_curve(risks: Sequence[Sequence[float]], at_E: Ints) -> dict[str, float] | None:
    """The step at which a risk rises most, of the episodes that have risks."""
    off = np.array([rise(p)[1] - at for p, at in zip(risks, at_E.tolist(), strict=True) if len(p)])
    if not len(off):
        return None
    return {"episodes": len(off), "top1": float((off == 0).mean()), "within1": float((np.abs(off) <= 1).mean())}


def _interval(value_E: Floats, group_E: Ints, seed: int) -> list[float]:
    """95 % interval of the mean, over resamples of groups."""
    weights_BG = resample_BT(int(group_E.max()) + 1, RESAMPLES, seed)
    return interval((weights_BG @ np.bincount(group_E, value_E)) / (weights_BG @ np.bincount(group_E)))
