"""Routers that choose among several stronger models, on MINT's recorded sessions: `r2v bench mint-pool`.

Everybody plays the same sessions of the weak models and is fitted as in the other suites. A session is handed over once, to
the model that the router names, whose own recorded run then counts, beside what the weak model did before; a router that
knows SLM and teacher alone hands over to the teacher. Rows are read at equal dollars a session: what handing a share of the
sessions to the teacher at random costs.

Axes: E sessions, P operating points, B bootstrap resamples over groups of tasks (the first is the sample).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from r2v import __version__
from r2v.bench.entries import HAVE, Entry
from r2v.bench.predictions import SHARES as OF_PAIRS
from r2v.bench.predictions import Predicted, Seal, Split, taking_part
from r2v.bench.suites.recorded import MINT
from r2v.core.errors import StageError
from r2v.core.protocols import Router
from r2v.core.types import TEACHER, Member
from r2v.evaluation.curves import interval, resample_BT
from r2v.evaluation.gain import RESAMPLES
from r2v.evaluation.replay import RecordedSteps, decisions
from r2v.maths import Floats
from r2v.routers.base import Need
from r2v.routers.fit_data import FitData
from r2v.routers.reading_benefit import ReadingBenefit
from r2v.runtime.progress import Report
from r2v.runtime.store import write_json

NAME = "mint-pool"
DESCRIPTION = "MINT: five weaker models, and three stronger ones to hand a session to; at equal dollars"
STRONGER = {
    "claude-instant": ("claude-instant-1", "claude-instant"), "llama-3-70b": ("Meta-Llama-3-70B-Instruct", "llama-3-70b"),
    TEACHER: MINT.strong,
}  # fmt: skip
"""Name in the pool -> agent of the records, and its price; the teacher is the last."""
SHARES = (*OF_PAIRS[:-1], 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
"""Of the steps that are escalated; where nearly all are, what is left to decide is the model."""
LOTS = "lots between two single models"
Where = tuple[int, str] | tuple[()]
"""The step at which a session is handed over, and the model; empty: never."""


@dataclass(frozen=True, eq=False)
class Records:
    """The same sessions beside each stronger model."""

    splits: Mapping[str, Split]
    """By the name in the pool."""

    @classmethod
    def load(cls, data: Path, progress: Report, seed: int) -> Records:
        """Raises SettingsError where the records are not there."""
        splits = {}
        for name, strong in STRONGER.items():
            weak = {agent: price for agent, price in MINT.weak.items() if agent not in dict(STRONGER.values())}
            loaded = replace(MINT, weak=weak, strong=strong).load(data, progress)
            splits[name] = Split.of(loaded, MINT.mode, seed, progress)
        if len({split.sha256 for split in splits.values()}) > 1:
            raise StageError("the stronger models did not play the same sessions; leave out those that lack some")
        return cls(splits)

    @property
    def teacher(self) -> Split:
        return self.splits[TEACHER]

    def ends(self, name: str | None) -> tuple[Floats, Floats]:
        """(dollars, success) of each session that the weak model plays alone (None), or one of these takes at once."""
        number = range(len(self.teacher.loaded.episodes))
        if name is None:
            found = self.teacher.loaded.outcomes([(i, ()) for i in number], lambda *_: None)
        else:
            found = [self.splits[name].asked_at[i, 0] for i in number]
        return np.array([o.usd for o in found]), np.array([o.success for o in found])

    def fits(self) -> list[tuple[np.ndarray, FitData]]:
        """(sessions of a fold, what is fitted on the others), with the further models as the pool."""
        found, usd_E = [], {name: self.ends(name)[0] for name in self.splits}
        for fold, (held_E, data) in enumerate(self.teacher.fits):
            usd = {name: float(of_E[~held_E].mean()) for name, of_E in usd_E.items()}
            pool = [
                (Member(name, usd[name] / usd[TEACHER]), split.fits[fold][1])
                for name, split in self.splits.items()
                if name != TEACHER
            ]
            found.append((held_E, replace(data, pool=pool)))
        return found


def handed_over(router: Router, recorded: RecordedSteps) -> Where:
    """Where a router hands a recorded session over. Raises ValueError where it wants more than was recorded."""
    handed = ((t, decision.model) for t, decision in decisions(router, recorded) if decision.route != "continue")
    return next(handed, ())


def predicted(records: Records, entry: Entry, fits: Sequence[tuple[np.ndarray, FitData]]) -> Predicted:
    """What one entry hands over, at each share of the steps. Raises R2VError, ValueError as its router does."""
    where_PE: list[list[Where]] = [[() for _ in records.teacher.recorded] for _ in SHARES]
    for held_E, data in fits:
        router = entry.fitted or entry.router.fit(data)
        for p, share in enumerate(SHARES):
            (threshold, *_) = router.thresholds(data.validation, (share,))
            served = router.at(threshold)
            for i in np.flatnonzero(held_E):
                where_PE[p][i] = handed_over(served, records.teacher.recorded[i])
    return Predicted(entry, where_PE, False)


def bench(
    wanted: Sequence[Entry], data: Path, out: Path, progress: Report, *, seed: int = 0, share: float = 0.25
) -> dict[str, Any]:
    """Run it; what `results.json` holds.

    Args:
        wanted: the rows; those whose fit needs what records do not hold are left out by name.
        data: folder of the records.
        out: folder for `predictions.json.gz` and `results.json`.
        progress: called as work goes on.
        seed: of folds, fits and intervals.
        share: of the sessions; handing so many to the teacher at random costs what the rows may.

    Raises:
        SettingsError: the records are not there, or a router breaks.
    """
    start = time.monotonic()
    records = Records.load(data, progress, seed)
    found, left_out = _predictions(records, wanted, progress)
    seal = Seal.on(found, out / "predictions.json.gz")
    results = Scores(records, seed, share).results(found, seal)
    results |= {"left_out": left_out, "version": __version__, "seconds": time.monotonic() - start}
    write_json(out / "results.json", results)
    return results


def _predictions(
    records: Records, wanted: Sequence[Entry], progress: Report
) -> tuple[list[Predicted], list[dict[str, str]]]:
    have: frozenset[Need] = HAVE | frozenset({"pool"})
    fits, asked = records.fits(), [entry for entry in wanted if not (entry.at_start or entry.shuffled)]
    found, left_out = taking_part(asked, have, lambda entry: predicted(records, entry, fits), progress)
    for name, (agent, _) in STRONGER.items():  # the pair with each other model in the teacher's place
        if name != TEACHER:
            entry = Entry(f"{ReadingBenefit.name}, to {agent}", ReadingBenefit, f"{ReadingBenefit.name} of another pair")
            one = predicted(records, entry, records.splits[name].fits)
            directed = [[(where[0], name) if where else () for where in row] for row in one.steps_PE]
            found.append(replace(one, steps_PE=directed))
    return found, left_out


class Scores:
    """Scores sealed predictions at equal dollars."""

    def __init__(self, records: Records, seed: int, share: float) -> None:
        self._records = records
        groups_E = np.unique(records.teacher.loaded.group_E, return_inverse=True)[1]
        weight_BE = resample_BT(int(groups_E.max()) + 1, RESAMPLES // 2, seed)[:, groups_E]
        self._weight_BE = weight_BE / weight_BE.sum(axis=1, keepdims=True)
        self._alone, to_teacher = records.ends(None), records.ends(TEACHER)
        self._share = share
        self.usd = float((1 - share) * self._alone[0].mean() + share * to_teacher[0].mean())
        """Dollars a session at which rows are compared."""

    def results(self, found: Sequence[Predicted], seal: Seal) -> dict[str, Any]:
        """Raises StageError where the seal is not of these predictions."""
        if not seal.holds(found):
            raise StageError(f"{seal.path} does not hold these predictions as they were sealed; run the bench again")
        singles = {agent: self._records.ends(name) for name, (agent, _) in STRONGER.items()}
        lots_B = np.array([by_lot([self._alone, *singles.values()], self.usd, w_E) for w_E in self._weight_BE])
        means = {
            name: (float(usd_E.mean()), float(won_E.mean()))
            for name, (usd_E, won_E) in {"slm alone": self._alone, **singles}.items()
        }
        teacher = self._records.teacher
        return {
            "suite": NAME, "description": DESCRIPTION, "mode": MINT.mode, "share": self._share, "usd_per_session": self.usd,
            "sessions": len(teacher.loaded.episodes), "split_sha256": teacher.sha256, "predictions_sha256": seal.sha256,
            "rows": [self._row(one, lots_B) for one in found], "fidelity": {},
            "nulls": {
                **{
                    name: {"success": won, "usd_per_session": usd, "usd_per_solved": usd / won if won else None}
                    for name, (usd, won) in means.items()
                },
                LOTS: {"success": float(lots_B[0]), "ci95": interval(lots_B), "usd_per_session": self.usd},
            },
        }  # fmt: skip

    def _row(self, one: Predicted, lots_B: Floats) -> dict[str, Any]:
        usd_PE, won_PE = np.zeros((2, len(one.steps_PE), len(self._alone[0])))
        by_model_P = [dict.fromkeys(STRONGER, 0.0) for _ in one.steps_PE]
        for p, row in enumerate(one.steps_PE):
            for i, where in enumerate(row):
                t, model = where or (None, TEACHER)
                loaded = self._records.splits[model].loaded
                (outcome,) = loaded.outcomes([(i, () if t is None else (t,))], lambda *_: None)
                usd_PE[p, i], won_PE[p, i] = outcome.usd, outcome.success
                if t is not None:
                    by_model_P[p][model] += 1 / len(row)
        cost_PE, success_PE = np.vstack([self._alone[0], usd_PE]), np.vstack([self._alone[1], won_PE])
        success_B = np.array([at_usd(cost_PE, success_PE, self.usd, w_E) for w_E in self._weight_BE])
        spent_P, mean_P = cost_PE.mean(axis=1), success_PE.mean(axis=1)
        share_P = np.array([0.0, *(sum(of.values()) for of in by_model_P)])
        order_P = np.argsort(spent_P, kind="stable")
        return {
            "router": one.entry.name, "source": one.entry.source,
            "success": float(success_B[0]), "ci95": interval(success_B),
            "share_strong": float(np.interp(self.usd, spent_P[order_P], share_P[order_P])),
            "usd_per_solved": min(self.usd, float(spent_P.max())) / float(success_B[0]) if success_B[0] else None,
            "gain_over_lots": float((success_B - lots_B)[0]), "gain_over_lots_ci95": interval(success_B - lots_B),
            "curve": np.stack([spent_P, mean_P], axis=1)[order_P].tolist(), "handed_over": by_model_P,
        }  # fmt: skip


def at_usd(cost_PE: Floats, success_PE: Floats, usd: float, weight_E: Floats) -> float:
    """Success at so many dollars a session, mixing the points on either side; dearer ones that solve less are not taken."""
    cost_P, success_P = cost_PE @ weight_E, success_PE @ weight_E
    order_P = np.argsort(cost_P, kind="stable")
    return float(np.interp(usd, cost_P[order_P], np.maximum.accumulate(success_P[order_P])))


def by_lot(singles: Sequence[tuple[Floats, Floats]], usd: float, weight_E: Floats) -> float:
    """Success of the best mixture of two single models at so many dollars a session."""
    points = [(float(cost_E @ weight_E), float(won_E @ weight_E)) for cost_E, won_E in singles]
    below, above = ([point for point in points if (point[0] <= usd) == cheap] for cheap in (True, False))
    mixed = [a[1] + (usd - a[0]) / (b[0] - a[0]) * (b[1] - a[1]) for a in below for b in above]
    return max([0.0, *(won for _, won in below), *mixed])
