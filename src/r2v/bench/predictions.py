"""What each router would escalate on tasks that it was not fitted on, written down before any of it is scored.

The tasks fall into folds, the same ones for every router. For each fold a router is fitted on the others, and plays the
fold's episodes at thresholds that escalate some shares of the steps of a part of the others that was kept from the fit.

Axes: E episodes, P operating points.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2v.bench.entries import HAVE, RECORDED, AtStart, Entry, shuffled
from r2v.bench.suite import Escalated, Loaded, Mode, Outcome
from r2v.core.errors import R2VError, SettingsError, broke
from r2v.core.groups import folds, splits
from r2v.core.seeds import derive_uniform
from r2v.core.types import Decision, Episode
from r2v.evaluation.branches import Branch
from r2v.evaluation.replay import RecordedSteps, escalations
from r2v.learning.settings import RouterSettings
from r2v.logs.importing import HORIZON
from r2v.routers.base import Need, RouterBase
from r2v.routers.fit_data import FitData
from r2v.runtime.progress import Report
from r2v.runtime.store import whole_file

FOLDS = 5
MODEL_FOLDS = 3
"""Of the weak models, where they are left out, too: each of its folds is fitted for each fold of the tasks."""
SHARES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0)
"""Of the steps of the SLM alone; a session is escalated if one of its steps is."""
EXPLORED = 0.25
"""Chance that an episode of the exploration escalates each step."""
CLUSTERS = 4
"""Groups of tasks over which `r2v_paper` takes its CVaR: records have no perturbation seeds."""


@dataclass(frozen=True, eq=False)
class Predicted:
    """What one entry escalates."""

    entry: Entry
    steps_PE: Sequence[Sequence[tuple[Any, ...]]]
    """The steps that are escalated; where there are several stronger models the one step, and the model."""
    fixed: bool
    """It has one operating point of its own, not a threshold that can be moved."""


@dataclass(frozen=True, eq=False)
class Split:
    """The folds of a suite, with what fits are given of each."""

    loaded: Loaded
    mode: Mode
    fold_E: NDArray[np.int64]
    """Or [E, 2]: of tasks and of weak models."""
    seed: int
    asked_at: Mapping[tuple[int, int], Outcome]
    """Of (episode, step): what comes of escalating just there."""
    _fitted: dict[tuple[type[RouterBase], int], RouterBase] = field(default_factory=dict)

    @classmethod
    def of(cls, loaded: Loaded, mode: Mode, seed: int, progress: Report, *, unseen_models: bool = False) -> Split:
        """The folds of a seed.

        Args:
            loaded: the suite's records.
            mode: its mode.
            seed: of the folds.
            progress: called as forks are played.
            unseen_models: fits see neither the tasks nor the weak models that they are scored on.

        Raises:
            SettingsError: there are too few weak models for that.
        """
        keys = [(i, t) for i, episode in enumerate(loaded.episodes) for t in range(len(episode.steps))]
        found = loaded.outcomes([(i, (t,)) for i, t in keys], progress)
        fold_E = folds(loaded.group_E, FOLDS, seed)
        if unseen_models:
            model_E = np.unique([e.agent for e in loaded.episodes], return_inverse=True)[1]
            if model_E.max() < 1:
                raise SettingsError("--unseen-models: this suite has one weak model; leave the option out")
            fold_E = np.stack([fold_E, folds(model_E, min(MODEL_FOLDS, int(model_E.max()) + 1), seed)], axis=1)
        return cls(loaded, mode, fold_E, seed, dict(zip(keys, found, strict=True)))

    @cached_property
    def recorded(self) -> list[RecordedSteps]:
        return [RecordedSteps.of(episode, HORIZON) for episode in self.loaded.episodes]

    @property
    def sha256(self) -> str:
        """Of which episodes there are and which fold each is in."""
        folds_E = self.fold_E.tolist()
        rows = [[e.agent, e.task.id, e.perturbation, f] for e, f in zip(self.loaded.episodes, folds_E, strict=True)]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    @cached_property
    def fits(self) -> list[tuple[NDArray[np.bool_], FitData]]:
        """(episodes of a fold, what is fitted on the others); models that several routers need are fitted once."""
        return [(held_E, self._data(rest_E)) for held_E, rest_E in splits(self.fold_E)]

    def _data(self, rest_E: NDArray[np.bool_]) -> FitData:
        """What a fit gets: the episodes of the other folds, a fifth of whose tasks are for choices and calibration."""
        group_E = np.unique(self.loaded.group_E[rest_E], return_inverse=True)[1]
        held = folds(group_E, FOLDS, self.seed + 1) == 0
        numbers = np.flatnonzero(rest_E)
        train, validation = numbers[~held], numbers[held]
        recorded = [self._clustered(i) for i in train]
        branches = [
            Branch(n, t, 0, self.asked_at[i, t].success >= 0.5, bool(self.loaded.episodes[i].success))
            for n, i in enumerate(train)
            for t in range(len(self.loaded.episodes[i].steps))
        ]
        known = self.loaded.differs or []
        return FitData(
            recorded, [self._clustered(i) for i in validation], RECORDED,
            RouterSettings(reads=True), self.seed, branches=branches, explored=[self._explored(i) for i in train],
            differs=[known[i] for i in train if known], differs_validation=[known[i] for i in validation if known],
        )  # fmt: skip

    def _clustered(self, i: int) -> Episode:
        episode, cluster = self.loaded.episodes[i], int(self.loaded.group_E[i]) % CLUSTERS
        return replace(episode, seed=cluster, steps=tuple(replace(step, seed=cluster) for step in episode.steps))

    def _explored(self, i: int) -> Episode:
        """The episode until a step drawn at random is escalated; what then came of it is its outcome."""
        episode = self.loaded.episodes[i]
        for t, step in enumerate(episode.steps):
            if derive_uniform(self.seed, "explored", i, t) < EXPLORED:
                drawn = Decision("escalate", "explore", None, None, None, EXPLORED, (), "drawn")
                asked = replace(step, choice=replace(step.choice, source="teacher", decision=drawn))
                won = self.asked_at[i, t].success >= 0.5
                return replace(episode, steps=(*episode.steps[:t], asked), success=won)
        return episode

    def predicted(self, entry: Entry) -> Predicted:
        """Raises R2VError where the entry cannot be fitted on these records, and ValueError where it cannot play them."""
        first = self.mode != "one_step"
        steps_PE: list[list[Escalated]] = [[() for _ in self.recorded] for _ in SHARES]
        points: set[float] = set()
        for fold, (held_E, data) in enumerate(self.fits):
            router = self._router(entry, fold, data)
            thresholds = [_threshold(router, data.validation, share) for share in SHARES]
            points.update(thresholds)
            served = [router.at(threshold) for threshold in dict.fromkeys(thresholds)]
            place = [[*dict.fromkeys(thresholds)].index(threshold) for threshold in thresholds]
            for i in np.flatnonzero(held_E):  # routers remember the scores of the latest steps
                found = [escalations(one, self.recorded[i], first=first) for one in served]
                for p, n in enumerate(place):
                    steps_PE[p][i] = found[n]
        fixed = len(points) == 1
        if fixed and all(steps[:1] == (0,) for steps in steps_PE[0]):
            raise ValueError("it scores every step alike: what it reads is not in these records")
        return Predicted(entry, steps_PE[:1] if fixed else steps_PE, fixed)

    def _router(self, entry: Entry, fold: int, data: FitData) -> RouterBase:
        if entry.shuffled:
            return entry.router.fit(shuffled(data, self.seed))
        router = entry.fitted
        if router is None:
            if (entry.router, fold) not in self._fitted:
                self._fitted[entry.router, fold] = entry.router.fit(data)
            router = self._fitted[entry.router, fold]
        return AtStart(inner=router, fitted_with=router.fitted_with) if entry.at_start else router


def _threshold(router: RouterBase, validation: Sequence[Episode], share: float) -> float:
    found = router.thresholds(validation, (share,))
    if not found:
        raise R2VError(f"{router.name} names no operating point")
    return found[0]


def predict(split: Split, wanted: Sequence[Entry], progress: Report) -> tuple[list[Predicted], list[dict[str, str]]]:
    """(what takes part, which entries do not and why). Raises SettingsError for a router that breaks."""
    have: frozenset[Need] = HAVE if split.loaded.differs is None else HAVE | frozenset({"answers"})
    return taking_part(wanted, have, split.predicted, progress)


def taking_part(
    wanted: Sequence[Entry], have: frozenset[Need], predicted: Callable[[Entry], Predicted], progress: Report
) -> tuple[list[Predicted], list[dict[str, str]]]:
    """(what takes part, which entries do not and why).

    Args:
        wanted: the rows.
        have: what fits can have on these records.
        predicted: finds out what an entry escalates; raises R2VError or ValueError where it cannot take part.
        progress: called before each entry.

    Raises:
        SettingsError: a router breaks.
    """
    found, left_out = [], []
    for n, entry in enumerate(wanted):
        progress(n, len(wanted), entry.name)
        why = entry.why_not(have)
        if why is None:
            try:
                found.append(predicted(entry))
            except (R2VError, ValueError) as error:
                why = str(error)
            except ModuleNotFoundError:
                raise  # the command line names the extra that has it
            except Exception as error:
                raise SettingsError(f"{broke(f'router {entry.name}', error)}; `r2v check` tries it alone") from error
        if why is not None:
            left_out.append({"router": entry.name, "why": why})
    return found, left_out


@dataclass(frozen=True)
class Seal:
    """That the predictions stand in a file, which was written before they were scored: scoring asks for one."""

    path: Path
    sha256: str

    @classmethod
    def on(cls, found: Sequence[Predicted], path: Path) -> Seal:
        """Write them."""
        text = json.dumps([{"router": p.entry.name, "fixed": p.fixed, "steps": p.steps_PE} for p in found]).encode()
        with whole_file(path) as aside:
            aside.write_bytes(gzip.compress(text, mtime=0))
        return cls(path, hashlib.sha256(text).hexdigest())

    def holds(self, found: Sequence[Predicted]) -> bool:
        """Whether the file has these predictions."""
        text = gzip.decompress(self.path.read_bytes())
        same: Any = [[p.entry.name, p.fixed, [[list(steps) for steps in row] for row in p.steps_PE]] for p in found]
        return hashlib.sha256(text).hexdigest() == self.sha256 and same == [
            [row["router"], row["fixed"], row["steps"]] for row in json.loads(text)
        ]
