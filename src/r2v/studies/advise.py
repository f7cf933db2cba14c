"""What recorded episodes advise: whether a router that reads would beat random escalation, and what it would save.

Everything is measured on groups of tasks left out: readers never saw a group that they are measured on, and the operating
point of a fold is chosen on the others. Beside it stand what needs no router: random escalation of as many (the gain is
over it), a decision at the first step alone, either model alone, and another run of the SLM in the stronger model's place.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2v.core.groups import Groups, folds, groups, splits
from r2v.core.mlp import Calibration
from r2v.core.types import TEACHER, Episode
from r2v.evaluation.gain import (
    SHARES,
    Gain,
    Point,
    Units,
    Verdict,
    choice_widens,
    chosen,
    escalated,
    gain_by_model,
    gain_of,
    threshold,
)
from r2v.evaluation.prefixes import auroc_equal_step
from r2v.learning.reading import fit_reader
from r2v.maths import Bools, Floats
from r2v.maths.calibration import fit_scaling, log_odds
from r2v.routers.base import FittedWith
from r2v.routers.reading import Reading
from r2v.runtime.progress import Report
from r2v.studies.costs import Costs, tokens_of
from r2v.studies.evidence import (
    AT_FIRST,
    LEAST_EACH,
    LEAST_EXPLORED,
    LEAST_LABELS,
    Evidence,
    answered_beside,
    evidence_of,
    explored_steps,
    stands_for_all,
)
from r2v.studies.stronger import LEAST_GROUPS, Stronger, cell_of, stronger_of, unhelped
from r2v.verifiers.tool_calls import FAILED

FOLDS = 5
LOOKED_AT = 4000
"""Characters of a result in which an error is looked for."""


@dataclass(frozen=True, eq=False)
class Advice:
    """What came out, and what a router is made of if one is wanted."""

    facts: dict[str, Any]
    """What `advice.json` holds."""
    evidence: Evidence | None
    probabilities: Mapping[str, Floats]
    """Of each reader, on groups left out."""
    point: Point | None
    """The operating point that all logs together choose."""

    @property
    def verdict(self) -> Verdict:
        found: Verdict = self.facts["verdict"]
        return found


def advise(
    episodes: Sequence[Episode], costs: Costs, *, slms: Sequence[str] = (), teacher: str | None = None,
    share: float | None = None, distrust_results: bool = False, seed: int = 0, report: Report = lambda *_: None,
) -> Advice:  # fmt: skip
    """Measure.

    Args:
        episodes: recorded ones, with or without outcomes.
        costs: what calls cost.
        slms: models that count as the SLM; none: all but the teacher.
        teacher: the stronger model; None: the one that solves most of the tasks that it shares with others (`stronger_of`).
        share: the share of units to escalate; None: of `SHARES` the one that gains most.
        distrust_results: what tools return can raise a score, but hardly lower it (`Reader.floor`).
        seed: of folds, fits and resamples.
        report: called with how many folds of how many have been fitted.
    """
    found = groups(episodes)
    if teacher is None:
        stronger = stronger_of(episodes, found.group_E, slms=slms, prices=costs.prices, seed=seed)
    else:
        stronger = Stronger(teacher, "named")
    facts = {
        "seed": seed, "distrust_results": distrust_results, **_counts(episodes, found), "stronger": asdict(stronger),
        **_MISSING,
    }  # fmt: skip
    evidence = evidence_of(episodes, found, slms=slms, teacher=teacher, chosen=stronger, seed=seed)
    if evidence is None:
        return Advice({**facts, **_not_enough(episodes, found, facts, stronger)}, None, {}, None)
    shares = SHARES if share is None else (share,)
    fits = _Fits(report, evidence)
    first, again = measured(evidence, shares, distrust_results, seed, fits)
    units, escalated_U, gain = first.units, first.escalated_U, first.gain
    point = chosen(units, np.ones(len(units), dtype=bool), shares, evidence.score_kinds)
    served = replace(units, scores=_served(evidence, first.p)[1])
    least = threshold(served.scores[point.kind], point.share)
    facts |= {
        "evidence": evidence.kind, "slms": list(evidence.slms), "teacher": evidence.teacher,
        "episodes_used": len(evidence.episodes), "episodes_not_drawn": evidence.left_out, "steps_used": len(evidence.rows),
        "tasks_used": len({cell_of(e) for e in evidence.episodes}), "groups_used": gain.groups, "score": point.kind,
        "share_escalated": gain.share,
        **_gains(evidence, gain),
        "points_of_folds": [f"{p.kind} at {p.share:.0%}" for p in first.points],
        "nulls": _nulls(evidence, first, seed), "by_model": _by_model(evidence, first, seed),
        "left_out_models": _left_out_models(evidence, shares, distrust_results, seed, fits),
        "table": _table(evidence, served, point.kind, costs), "measured": _line(evidence, units, escalated_U, costs),
        "threshold": least, "share_from_threshold": float((served.scores[point.kind] >= least).mean()),
        **_area(evidence, first.plain, seed), "at_risk": evidence.at_risk(units, ~escalated_U),
        **costs.money(evidence, escalated_U, seed), **evidence.facts(units, escalated_U, seed),
    }  # fmt: skip
    return Advice(facts | verdict_of(evidence, gain, again, facts["explored"], stronger.why), evidence, first.p, point)


@dataclass(frozen=True, eq=False)
class Split:
    """What is escalated with one split into folds, each by what the others show."""

    plain: Mapping[str, Floats]
    """Of each reader without its floor."""
    p: Mapping[str, Floats]
    """Of each reader as it is served."""
    units: Units
    escalated_U: Bools
    points: Sequence[Point]
    """Of each fold."""
    wider: float
    """Of `choice_widens`."""
    gain: Gain


class _Fits:
    """Counts the fits of `advise` for its progress."""

    def __init__(self, report: Report, evidence: Evidence) -> None:
        """At most so many: two splits of the tasks, and one of tasks and models."""
        models = len(evidence.slms)
        self._total = len(evidence.labels) * FOLDS * (2 + (min(FOLDS, models) if models > 1 else 0))
        self._report, self._readers = report, len(evidence.labels)

    def part(self, note: str, after: int) -> Callable[[], None]:
        """What to call after each fold of a part, before which there are so many folds a reader, be they needed or not."""
        done = itertools.count(self._readers * after + 1)
        return lambda: self._report(next(done), self._total, note)


def measured(
    evidence: Evidence, shares: Sequence[float], distrust_results: bool, seed: int, fits: _Fits | None = None
) -> tuple[Split, Gain | None]:
    """One split, and the gain with other folds where the first beats random: what is there shows in both, luck with one
    split seldom does.
    """
    fits = fits or _Fits(lambda *_: None, evidence)
    fold_N = folds(evidence.rows.group_N, FOLDS, seed)
    first = _split(evidence, fold_N, shares, distrust_results, seed, fits.part("tasks left out", 0))
    if not evidence.knows_teacher or not first.gain.beats_random:
        return first, None
    fold_N = folds(evidence.rows.group_N, FOLDS, seed + 1)
    fitted = fits.part("other tasks left out", FOLDS)
    return first, _split(evidence, fold_N, shares, distrust_results, seed + 1, fitted).gain


def _split(
    evidence: Evidence, fold_N: NDArray[np.int64], shares: Sequence[float], distrust_results: bool, seed: int,
    fitted: Callable[[], None],
) -> Split:  # fmt: skip
    plain, floored = evidence.probabilities(fold_N, seed, fitted)
    p = floored if distrust_results else plain
    units = evidence.units(p, fold_N)
    escalated_U, points = escalated(units, shares, evidence.score_kinds)
    wider = choice_widens(units, shares, evidence.score_kinds, seed)
    return Split(plain, p, units, escalated_U, points, wider, gain_of(escalated_U, units, seed, wider=wider))


_MISSING: dict[str, Any] = dict.fromkeys(
    ("evidence", "share_escalated", "gain_over_random", "gain_ci95", "usd_saved_share", "sessions_needed",
     "auroc_equal_step", "auroc_equal_step_ci95", "why")
)  # fmt: skip


def _served(evidence: Evidence, p: Mapping[str, Floats]) -> tuple[dict[str, Calibration], Mapping[str, Floats]]:
    """(the calibration of each reader, the scores of the units as the router gives them: of calibrated probabilities)."""
    found, served = {}, {}
    for name, y_N in evidence.labels.items():
        logit_N, known_N = log_odds(p[name]), ~np.isnan(y_N)
        found[name] = Calibration(*fit_scaling(logit_N[known_N], y_N[known_N], with_bias=True))
        served[name] = found[name](logit_N)
    return found, evidence.units(served, np.zeros(len(evidence.rows), dtype=np.int64)).scores


def router_of(advice: Advice, fitted_with: FittedWith, *, seed: int = 0) -> Reading:
    """The router that was measured, fitted on all of it, at the operating point that all of it chooses.

    Raises ValueError where the logs hold no evidence.
    """
    evidence, point = advice.evidence, advice.point
    if evidence is None or point is None:
        raise ValueError("these logs hold nothing to fit a router on")
    served = evidence.slms[0] if len(evidence.slms) == 1 else None
    floored = advice.facts["distrust_results"]
    calibrations, scores = _served(evidence, advice.probabilities)
    readers = {
        name: replace(
            fit_reader(evidence.rows, y_N, ~np.isnan(y_N), seed=seed),
            calibration=calibrations[name], agent=served, floored=floored,
        )
        for name, y_N in evidence.labels.items()
    }  # fmt: skip
    kept = (
        "verdict", "evidence", "episodes_used", "groups_used", "teacher", "gain_over_random", "gain_ci95",
        "share_escalated", "auroc_equal_step", "seed",
    )  # fmt: skip
    kind: Any = point.kind
    return Reading(
        threshold=threshold(scores[kind], point.share), estimates=kind,
        reader=readers[evidence.reader],
        teacher=readers.get("teacher_risk") if kind == "benefit" else None,
        hands_over=evidence.hands_over, fitted_with=fitted_with,
        facts={key: advice.facts[key] for key in kept},
    )  # fmt: skip


def _counts(episodes: Sequence[Episode], found: Groups) -> dict[str, Any]:
    models: dict[str, dict[str, Any]] = {}
    for name in sorted({e.agent for e in episodes}):
        mine = [e for e in episodes if e.agent == name]
        known = [e.success for e in mine if e.success is not None]
        models[name] = {
            "sessions": len(mine), "with_outcome": len(known), "solved": float(np.mean(known)) if known else None,
            "steps": sum(len(e.steps) for e in mine),
        }  # fmt: skip
    ended = [e for e in episodes if e.success is not None]
    beside = Counter(stands_for_all(s) for e in episodes for s in e.steps if answered_beside(s))
    took = Counter(e.steps[t].choice.model for e, ts in zip(ended, explored_steps(ended), strict=True) for t in ts)
    return {
        "sessions": len(episodes), "steps": sum(len(e.steps) for e in episodes),
        "with_outcome": len(ended),
        "helped": sum(not unhelped(e) for e in episodes),
        "teacher_beside_drafts": {"counted": beside[True], "chosen_by_router": beside[False]},
        "explored": {"escalated": took[TEACHER], "continued": took["slm"]},
        **found.facts(), "models": models, "happened": _happened(episodes),
    }  # fmt: skip


def _happened(episodes: Sequence[Episode]) -> dict[str, Any]:
    """What a reader of logs asks first."""
    steps = [step for episode in episodes for step in episode.steps]
    tools = Counter(call.name for step in steps for call in step.choice.action.tool_calls)
    actions = [[step.choice.action for step in episode.steps] for episode in episodes]
    repeated = [action in done[:t] for done in actions for t, action in enumerate(done)]
    seen = [step.observation.text[:LOOKED_AT] for step in steps if step.t]
    lengths = [len(episode.steps) for episode in episodes] or [0]
    return {
        "tools": dict(tools.most_common(8)), "median_steps": float(np.median(lengths)), "longest": max(lengths),
        "repeated": float(np.mean(repeated)) if repeated else None,
        "errors": float(np.mean([FAILED.search(text) is not None for text in seen])) if seen else None,
        "tokens": np.mean([tokens_of(e) for e in episodes], axis=0).tolist() if episodes else [0.0, 0.0],
    }  # fmt: skip


def _not_enough(episodes: Sequence[Episode], found: Groups, counts: Mapping[str, Any], stronger: Stronger) -> dict[str, Any]:
    """What is missing, in the words of what to do about it."""
    outcomes = [e.success for e in episodes if e.success is not None]
    missing = []
    if found.count < LEAST_GROUPS:
        missing.append(f"{found.count} different tasks of at least {LEAST_GROUPS}")
    each = min(sum(outcomes), len(outcomes) - sum(outcomes))
    if each < LEAST_EACH:
        missing.append(
            f"{len(outcomes)} outcomes, the rarer one {each} times of at least {LEAST_EACH} (verdicts, POST /v1/outcomes, "
            f"--outcomes), or {LEAST_LABELS} steps that the teacher answered beside a draft (mode observe)"
        )
        if chosen := counts["teacher_beside_drafts"]["chosen_by_router"]:
            missing[-1] += f", not counting {chosen} that the router chose, which say nothing of the others"
    if any(counts["explored"].values()):
        missing.append(f"to measure what escalating a step adds: {_exploration(counts['explored'])}")
    if not missing and stronger.why:
        missing.append(stronger.why)
    if not missing:
        missing.append(f"one model has to play {LEAST_GROUPS} tasks alone, to solve {LEAST_EACH} and to fail {LEAST_EACH}")
    rare = max(each / max(1, len(episodes)), 0.02)
    needed = max(LEAST_GROUPS, int(np.ceil(LEAST_EACH / rare)))
    return {"verdict": "not_enough", "why": "; ".join(missing), "sessions_needed": max(0, needed - len(episodes)) or needed}


def _exploration(explored: Mapping[str, int]) -> str:
    return (
        f"set route.explore until {LEAST_EXPLORED} steps of each route were drawn at random "
        f"(now {explored['escalated']} escalated, {explored['continued']} not)"
    )


def _gains(evidence: Evidence, gain: Gain) -> dict[str, Any]:
    names = ("gain_over_random", "gain_ci95", "gain_ci99")
    if not evidence.knows_teacher:  # what is found are failing sessions; nobody knows what a teacher would make of them
        return {**dict.fromkeys(names), "failures_found_over_random": gain.gain, "failures_found_ci95": list(gain.ci95)}
    return dict(zip(names, (gain.gain, list(gain.ci95), list(gain.ci99)), strict=True))


def verdict_of(
    evidence: Evidence, gain: Gain, again: Gain | None, explored: Mapping[str, int], none_stronger: str | None = None
) -> dict[str, Any]:
    """The verdict, why, and how many more sessions it takes.

    Args:
        evidence: what was measured on.
        gain: over random escalation.
        again: with other folds; None where it was not measured.
        explored: steps of each route that were drawn at random.
        none_stronger: why no stronger model was chosen; None where one was.
    """
    per_group = len(evidence.episodes) / gain.groups
    needed = max(one.groups_needed for one in (gain, again) if one is not None)
    more = max(0, int(np.ceil((needed - gain.groups) * per_group)))
    if not evidence.knows_teacher:
        # A risk finds failing sessions; whether anybody else would solve them is not in such logs.
        unnamed = evidence.slms == ("recorded",)
        both = f"too few tasks that two models played (the weaker one has to solve {LEAST_EACH} and to fail {LEAST_EACH}): "
        one = "only one model's outcomes are known: "
        why = (
            (f"{none_stronger}; or " if none_stronger else one if len(evidence.slms) == 1 else both)
            + ("name the model of each record, if there are several (--map model=...); or " if unnamed else "")
            + "let the teacher answer some of these tasks (mode observe), log both, or "
            + _exploration(explored)
        )
        return {"verdict": "not_enough", "why": why, "sessions_needed": LEAST_LABELS}
    second = {} if again is None else {"gain_other_folds": again.gain, "gain_other_folds_ci99": list(again.ci99)}
    if again is not None and again.beats_random:
        why = "the gain over random escalation of as many is above 0, on two splits of the tasks"
        return {"verdict": "route", "why": why, "sessions_needed": 0, **second}
    why = "the gain over random escalation may be 0"
    return {"verdict": "no_route", "why": why, "sessions_needed": max(1, more), **second}


def _nulls(evidence: Evidence, split: Split, seed: int) -> dict[str, Any]:
    """What needs no step-level router, at the same share."""
    units, escalated_U = split.units, split.escalated_U
    share = float(escalated_U.mean())
    at_first, _ = escalated(units, (share,), [k for k in units.scores if k.endswith(AT_FIRST)])
    paired = gain_of(escalated_U.astype(float) - at_first.astype(float), units, seed, wider=split.wider)
    found: dict[str, Any] = {
        "random": {"share": share, "gain": 0.0},
        "step 0 only": _brief(gain_of(at_first, units, seed)),
        "gain_over_step_0": {"gain": paired.gain, "ci95": list(paired.ci95)},
    }
    if success := evidence.success(units, escalated_U, at_first):
        found["success"] = success
    return found


def _brief(gain: Gain) -> dict[str, Any]:
    return {"share": gain.share, "gain": gain.gain, "ci95": list(gain.ci95)}


def _by_model(evidence: Evidence, split: Split, seed: int) -> dict[str, Any]:
    return {
        evidence.slms[model]: {
            "units": int((split.units.model_U == model).sum()), "share_escalated": gain.share, "gain_over_random": gain.gain,
            "gain_ci95": list(gain.ci95),
        }
        for model, gain in gain_by_model(split.escalated_U, split.units, seed, wider=split.wider).items()
    }  # fmt: skip


def _left_out_models(
    evidence: Evidence, shares: Sequence[float], distrust_results: bool, seed: int, fits: _Fits
) -> dict[str, Any] | None:
    """The same for models that nobody saw: neither readers nor operating points know the unit's model or its tasks.

    None where the other models say nothing about other tasks.
    """
    rows = evidence.rows
    count = min(FOLDS, len(evidence.slms))
    fold_N2 = np.stack([folds(rows.group_N, FOLDS, seed), folds(rows.agent_N, count, seed)], axis=1)
    if not all(rest.any() for _, rest in splits(fold_N2)):
        return None
    found = _split(evidence, fold_N2, shares, distrust_results, seed, fits.part("models left out", 2 * FOLDS))
    return {
        "folds": count, "share_escalated": found.gain.share, **_gains(evidence, found.gain),
        **_area(evidence, found.plain, seed), "models": _by_model(evidence, found, seed),
    }  # fmt: skip


def _table(evidence: Evidence, units: Units, kind: str, costs: Costs) -> list[dict[str, Any]]:
    """A line a share, by thresholds of the scores as served; where scores are equal, several shares escalate the same."""
    score_U = units.scores[kind]
    thresholds = [threshold(score_U, share) for share in SHARES]
    lines = [{**_line(evidence, units, score_U >= least, costs), "threshold": least} for least in thresholds]
    return [*{line["share"]: line for line in lines}.values()]


def _line(evidence: Evidence, units: Units, escalated_U: Bools, costs: Costs) -> dict[str, Any]:
    """What escalating these units would catch, and what it would save."""
    return {
        "share": float(escalated_U.mean()), **evidence.caught(units, escalated_U),
        "at_risk": evidence.at_risk(units, ~escalated_U), "usd_saved_share": costs.saved_share(evidence, escalated_U),
    }  # fmt: skip


def _area(evidence: Evidence, p: Mapping[str, Floats], seed: int) -> dict[str, Any]:
    rows, y_N = evidence.rows, evidence.labels[evidence.reader]
    known_N = ~np.isnan(y_N)
    arguments = p[evidence.reader][known_N], y_N[known_N], rows.t_N[known_N], rows.group_N[known_N]
    area, area_ci95 = auroc_equal_step(*arguments, seed=seed)
    within, within_ci95 = auroc_equal_step(*arguments, seed=seed, within_N=rows.agent_N[known_N])
    return {
        "auroc_equal_step": area, "auroc_equal_step_ci95": area_ci95,
        "auroc_equal_step_within_model": within, "auroc_equal_step_within_model_ci95": within_ci95,
    }  # fmt: skip
