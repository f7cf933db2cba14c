"""Puts outcomes together as `results.json` (docs/results.md describes every key)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from r2v.core.features import batch
from r2v.core.mlp import RiskMLP
from r2v.core.types import Episode
from r2v.evaluation.curves import area_B, calls_at_B, curve, interval, open_interval, resample_BT, success_at_B
from r2v.evaluation.outcomes import Outcomes
from r2v.maths.calibration import brier, ece, reliability_bins
from r2v.maths.risk import cvar
from r2v.maths.stats import auroc_or_none, sign_flip, wilson_over_tasks

REFERENCE, RANDOM = "r2v", "random"
CALLS = (0.5, 1.0, 2.0, 3.0, 4.0)
"""Budgets, in teacher calls an episode, at which routers are compared."""
EQUAL_SUCCESS = (0.98, 0.95)
"""Shares of the teacher's success at which their calls are compared."""


@dataclass(frozen=True)
class Played:
    """One router: what it did at its operating point, and at every threshold (none without one)."""

    chosen: Outcomes
    threshold: float | None
    grid: tuple[float, ...] = ()
    """Those thresholds."""
    points: tuple[Outcomes, ...] = ()


@dataclass(frozen=True)
class Prices:
    slm: float
    teacher: float


def summarise(
    played: Mapping[str, Played], seeds: Sequence[int], prices: Prices, alpha: float, resamples: int, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(`routers`, `differences`). `played` must hold slm_only and llm_only: the ends of every curve; llm_first is the other
    end where teacher calls are limited.
    """
    ends = (played["slm_only"].chosen, played.get("llm_first", played["llm_only"]).chosen)
    weights_BT = resample_BT(len(ends[0].success_T), resamples, seed)
    curves = {name: [*router.points, *ends] for name, router in played.items() if router.points}
    first = played["llm_first"].chosen if "llm_first" in played else None
    areas = {name: area_B(points, weights_BT, first) for name, points in curves.items()}
    at = {name: {calls: success_at_B(points, calls, weights_BT) for calls in CALLS} for name, points in curves.items()}
    wanted = {share: share * (weights_BT @ played["llm_only"].chosen.success_T) for share in EQUAL_SUCCESS}
    needs = {
        name: {share: calls_at_B(points, success_B, weights_BT) for share, success_B in wanted.items()}
        for name, points in curves.items()
    }
    routers = {
        name: {
            **_numbers(router.chosen, seeds, prices, alpha, weights_BT),
            "threshold": router.threshold,
            "curve": curve(curves[name]) if name in curves else [],
            "points": [_point(threshold, o) for threshold, o in zip(router.grid, router.points, strict=True)],
            "area": float(areas[name][0]) if name in areas else None,
            "over_random": _over(areas[name] - areas[RANDOM]) if name in areas and RANDOM in areas else None,
            "at_calls": {f"{calls:g}": float(success_B[0]) for calls, success_B in at.get(name, {}).items()},
            "calls_at_equal_success": {f"{share:g}": _calls(calls_B) for share, calls_B in needs.get(name, {}).items()},
            **_comparison(name, router.chosen, played),
        }
        for name, router in played.items()
    }
    differences = {
        name: {
            **_over(areas[REFERENCE] - other),
            "at_calls": {f"{calls:g}": _difference(at[REFERENCE][calls] - at[name][calls]) for calls in CALLS},
            "calls_at_equal_success": {
                f"{share:g}": _calls(_fewer(needs[REFERENCE][share], needs[name][share])) for share in EQUAL_SUCCESS
            },
        }
        for name, other in areas.items()
        if name != REFERENCE and REFERENCE in areas
    }
    return routers, differences


def _point(threshold: float, o: Outcomes) -> list[float]:
    return [threshold, float(o.teacher_calls_TZ.mean()), float(o.success_TZ.mean())]


def _over(areas_B: np.ndarray) -> dict[str, Any]:
    return {"area": float(areas_B[0]), "ci95": interval(areas_B)}


def _difference(values_B: np.ndarray) -> dict[str, Any]:
    return {"success": float(values_B[0]), "ci95": interval(values_B)}


def state_oracle_entry(
    prices: Sequence[float], points: Sequence[Outcomes], ends: Mapping[str, Outcomes], resamples: int, seed: int
) -> dict[str, Any]:
    """The curve of the state oracle, and its calls at equal success.

    Args:
        prices: of the points.
        points: what it did at each price.
        ends: the fixed agents of `summarise` on the same episodes.
        resamples: over the tasks of these episodes.
        seed: of the resamples.
    """
    alone, teacher = ends["slm_only"], ends["llm_only"]
    weights_BT = resample_BT(len(alone.success_T), resamples, seed)
    curve_points = [*points, alone, ends.get("llm_first", teacher)]
    needs = {
        share: calls_at_B(curve_points, share * (weights_BT @ teacher.success_T), weights_BT) for share in EQUAL_SUCCESS
    }
    return {
        "slm_success": float(alone.success_TZ.mean()),
        "teacher_success": float(teacher.success_TZ.mean()),
        "points": [_point(price, o) for price, o in zip(prices, points, strict=True)],
        "calls_at_equal_success": {f"{share:g}": _calls(calls_B) for share, calls_B in needs.items()},
    }


def _calls(values_B: np.ndarray) -> dict[str, Any]:
    """The sample's, with the interval of the resamples; None where the success is not reached."""
    return {"calls": float(values_B[0]) if np.isfinite(values_B[0]) else None, "ci95": open_interval(values_B)}


def _fewer(ours_B: np.ndarray, others_B: np.ndarray) -> np.ndarray:
    """Ours less the other's; NaN, not known, in a resample in which neither reaches the success."""
    with np.errstate(invalid="ignore"):  # inf - inf
        return np.asarray(ours_B - others_B)


def _numbers(o: Outcomes, seeds: Sequence[int], prices: Prices, alpha: float, weights_BT: np.ndarray) -> dict[str, Any]:
    by_seed = o.success_TZ.mean(axis=0)
    by_group = o.failure_of_group()
    worst = max(by_group, key=by_group.__getitem__)
    cost_TZ = prices.slm * o.slm_calls_TZ + prices.teacher * o.teacher_calls_TZ
    return {
        "success_rate": float(o.success_TZ.mean()),
        "ci95": wilson_over_tasks(o.success_TZ),
        "llm_call_rate": float(o.call_rate_TZ.mean()),
        "calls_per_episode": float(o.teacher_calls_TZ.mean()),
        "calls_ci95": interval(np.asarray(weights_BT @ o.calls_T)),
        "steps_per_episode": float(o.steps_TZ.mean()),
        "cost_per_episode": float(cost_TZ.mean()),
        "tokens_per_episode": {"slm": _known(o.slm_tokens_TZ), "teacher": _known(o.teacher_tokens_TZ)},
        "usd_per_episode": _known(o.usd_TZ),
        "verifier": _scoring(o),
        "worst_seed_success": float(by_seed.min()),
        "worst_group": {"group": worst, "success_rate": 1 - by_group[worst]},
        "cvar_failure": cvar(np.array(list(by_group.values())), alpha),
        "by_family": o.success_of_family(),
        "by_seed": {str(z): float(s) for z, s in zip(seeds, by_seed, strict=True)},
        "asked_by_position": [None if np.isnan(share) else float(share) for share in o.escalated_10],
        "broken": int(o.broken_TZ.sum()),
        **({"calls_by_model": {m: n / o.success_TZ.size for m, n in o.models.items()}} if o.models else {}),
    }


def _known(values_TZ: np.ndarray) -> float | None:
    """The mean; None where a value is not known."""
    mean = float(values_TZ.mean())
    return None if np.isnan(mean) else mean


def _scoring(o: Outcomes) -> dict[str, float | None] | None:
    """What a verifier that is a model cost an episode, beside `cost_per_episode`; None where it is a rule."""
    used, episodes = o.verifier, o.success_TZ.size
    if not used.calls:
        return None
    counts = {"calls": used.calls, "prompt_tokens": used.prompt_tokens, "completion_tokens": used.completion_tokens}
    return {key: None if count is None else count / episodes for key, count in {**counts, "usd": used.usd}.items()}


def _comparison(name: str, o: Outcomes, played: Mapping[str, Played]) -> dict[str, Any]:
    alone, reference = played["slm_only"].chosen.success_TZ, played.get(REFERENCE)
    escalated = o.teacher_calls_TZ > 0
    change = (o.success_TZ - alone)[escalated]
    return {
        "interventions": {
            "helped": int((change > 0).sum()),
            "nothing": int((change == 0).sum()),
            "hurt": int((change < 0).sum()),
        },
        "answers": _answers(o),
        "rescued_by_first_call": [
            [int(o.success_TZ[late].sum()), int(late.sum())]
            for late in ((alone == 0) & (o.first_TZ == quarter) for quarter in range(4))
        ],
        "mcnemar_p": None
        if name == REFERENCE or reference is None
        else sign_flip(np.rint((o.success_TZ - reference.chosen.success_TZ).sum(axis=1)).astype(int)),
    }


def _answers(o: Outcomes) -> dict[str, float] | None:
    """What the teacher's answers were, as shares of the calls; None without a call beside an SLM."""
    if not o.answers_3.sum():
        return None
    return dict(zip(("same", "among", "new"), (o.answers_3 / o.answers_3.sum()).tolist(), strict=True))


def calibration(model: RiskMLP, alone: Sequence[Episode], horizon: int) -> dict[str, Any]:
    """How honest a risk is on the steps of SLM-only episodes (`calibration` in results.json)."""
    steps = [(step, not e.success) for e in alone if e.success is not None for step in e.steps]
    features = [step.choice.features for step, _ in steps]
    assert None not in features
    p_N = model.risk(*batch([row for row in features if row is not None], model.names))
    y_N = np.array([float(failed) for _, failed in steps])
    third_N = np.array([step.t * 3 // horizon for step, _ in steps])
    return {
        "ece": ece(p_N, y_N),
        "brier": brier(p_N, y_N),
        "auroc": auroc_or_none(p_N, y_N),
        "auroc_by_third": [auroc_or_none(p_N[third_N == third], y_N[third_N == third]) for third in range(3)],
        "steps": len(steps),
        "bins": [list(entry) for entry in reliability_bins(p_N, y_N)],
    }
