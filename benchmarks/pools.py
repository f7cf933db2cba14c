"""Do pools of more than two models pay? MINT's recorded sessions: six weak models, and three stronger ones to hand over to.

    python benchmarks/pools.py [--data ../shared/data] [--json]

Each router is fitted on four folds of task groups and decides on the fifth (as in `r2v bench`); a session is handed over
once, to the model that the router names, whose own recorded run then counts, beside what the weak model did before. Rows are
read at equal dollars a session: those that `reading_benefit` between SLM and teacher alone spends where it hands over a
quarter of the sessions. Beside it the same with each other model in the teacher's place, and drawing lots between any two
single models, the best of which is taken in hindsight.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from r2v.bench.entries import RECORDED
from r2v.bench.predictions import SHARES, Split
from r2v.bench.suites.recorded import MINT
from r2v.core.types import TEACHER, Member, Memory
from r2v.evaluation.curves import interval, resample_BT
from r2v.evaluation.replay import RecordedSteps
from r2v.routers.base import Part, RouterBase
from r2v.routers.pool import Pool
from r2v.routers.reading_benefit import ReadingBenefit

STRONGER = {
    "claude-instant": ("claude-instant-1", "claude-instant"), "llama-3-70b": ("Meta-Llama-3-70B-Instruct", "llama-3-70b"),
    TEACHER: ("gpt-4-0613", "gpt-4"),
}  # fmt: skip
"""Name in the pool -> agent of the records, and its price."""
WEAK = {agent: price for agent, price in MINT.weak.items() if agent != "claude-instant-1"}
SHARE, SEED = 0.25, 0


@dataclass(frozen=True)
class Scored:
    """Axes: P operating points, E sessions."""

    usd_PE: np.ndarray
    success_PE: np.ndarray
    by_model_P: list[dict[str, float]]
    """Share of the sessions that each model gets."""


def quiet(*_: object) -> None:
    pass


def handed_over(router: RouterBase, recorded: RecordedSteps) -> tuple[int, str] | None:
    """(step, model) at which a session is handed over; None: never."""
    memory = Memory(seed=recorded.seed)
    for t, (context, features, seed) in enumerate(recorded.steps):
        decision = router.decide(context, features, memory, seed=seed)
        if decision.route != "continue":
            return t, decision.model
        memory = memory.after(decision)
    return None


def scored(splits: dict[str, Split], routers: list[RouterBase]) -> Scored:
    """A router of each fold, played on its fold at each operating point."""
    first = next(iter(splits.values()))
    usd_PE, success_PE = (np.zeros((len(SHARES), len(first.loaded.episodes))) for _ in range(2))
    by_model_P = [dict.fromkeys(splits, 0.0) for _ in SHARES]
    for router, (held_E, data) in zip(routers, first.fits, strict=True):
        for p, share in enumerate(SHARES):
            (threshold,) = router.thresholds(data.validation, (share,))
            at = router.at(threshold)
            for i in np.flatnonzero(held_E):
                where = handed_over(at, first.recorded[i])
                split, steps = (first, ()) if where is None else (splits[where[1]], (where[0],))
                (outcome,) = split.loaded.outcomes([(int(i), steps)], quiet)
                usd_PE[p, i], success_PE[p, i] = outcome.usd, outcome.success
                if where is not None:
                    by_model_P[p][where[1]] += 1 / held_E.size
    return Scored(usd_PE, success_PE, by_model_P)


def at_usd(scored: Scored, ends: tuple[np.ndarray, np.ndarray], usd: float, weight_E: np.ndarray) -> float:
    """Success at so many dollars a session, mixing the points on either side, from the weak model alone on."""
    usd_P = np.array([ends[0], *scored.usd_PE]) @ weight_E
    success_P = np.array([ends[1], *scored.success_PE]) @ weight_E
    order = np.argsort(usd_P, kind="stable")
    return float(np.interp(usd, usd_P[order], np.maximum.accumulate(success_P[order])))


def by_lot(singles: list[tuple[np.ndarray, np.ndarray]], usd: float, weight_E: np.ndarray) -> float:
    """The best mixture of two single models at so many dollars a session."""
    points = [(float(cost @ weight_E), float(won @ weight_E)) for cost, won in singles]
    below, above = ([p for p in points if (p[0] <= usd) == cheap] for cheap in (True, False))
    best = max((won for _, won in below), default=0.0)
    lines = [a[1] + (usd - a[0]) / (b[0] - a[0]) * (b[1] - a[1]) for a in below for b in above]
    return max([best, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    splits = {}
    for name, strong in STRONGER.items():
        loaded = replace(MINT, weak=WEAK, strong=strong).load(options.data, quiet)
        splits[name] = Split.of(loaded, "restart", SEED, quiet)
    first = next(iter(splits.values()))
    assert len({split.sha256 for split in splits.values()}) == 1, "the models did not play the same sessions"

    gains = {name: [ReadingBenefit.fit(data) for _, data in split.fits] for name, split in splits.items()}
    prices = []
    for held_E, _ in first.fits:  # of a session that is handed over at once, on the tasks of the fit
        usd = {name: np.mean([split.asked_at[i, 0].usd for i in np.flatnonzero(~held_E)]) for name, split in splits.items()}
        prices.append({name: float(usd[name] / usd[TEACHER]) for name in splits})

    def pools(names: list[str]) -> list[RouterBase]:
        return [
            Pool(
                members=tuple(Member(name, prices[fold][name]) for name in names),
                gains=tuple(Part(gains[name][fold]) for name in names), fitted_with=RECORDED,
            )
            for fold in range(len(first.fits))
        ]  # fmt: skip

    played = {"pool": scored(splits, pools(list(splits)))}
    played |= {f"pair with {STRONGER[name][0]}": scored(splits, pools([name])) for name in splits}
    number = range(len(first.loaded.episodes))
    alone = first.loaded.outcomes([(i, ()) for i in number], quiet)
    ends = np.array([o.usd for o in alone]), np.array([o.success for o in alone])
    singles = [ends]
    for split in splits.values():
        at_once = [split.asked_at[i, 0] for i in number]
        singles.append((np.array([o.usd for o in at_once]), np.array([o.success for o in at_once])))

    groups = np.unique(first.loaded.group_E, return_inverse=True)[1]
    weight_BE = resample_BT(int(groups.max()) + 1, 1000, SEED)[:, groups]
    weight_BE = weight_BE / weight_BE.sum(axis=1, keepdims=True)
    pool, teacher = played["pool"], played[f"pair with {STRONGER[TEACHER][0]}"]
    share_P = np.array([sum(of.values()) for of in teacher.by_model_P])
    usd_P = teacher.usd_PE @ weight_BE[0]
    budget = float(np.interp(SHARE, share_P, usd_P))
    rows = {name: np.array([at_usd(one, ends, budget, w) for w in weight_BE]) for name, one in played.items()}
    rows["lots between single models"] = np.array([by_lot(singles, budget, w) for w in weight_BE])
    names = ["weak alone", *(STRONGER[name][0] for name in splits)]
    result = {
        "sessions": len(number), "groups": int(groups.max()) + 1, "usd_per_session": budget,
        "singles": {
            name: {"usd": float(cost @ weight_BE[0]), "success": float(won @ weight_BE[0])}
            for name, (cost, won) in zip(names, singles, strict=True)
        },
        "rows": {name: {"success": float(v[0]), "ci95": interval(v)} for name, v in rows.items()},
        "pool_less": {
            name: {"gain": float((rows["pool"] - v)[0]), "ci95": interval(rows["pool"] - v)}
            for name, v in rows.items() if name != "pool"
        },
        "pool_points": [
            {"usd": float(cost @ weight_BE[0]), "success": float(won @ weight_BE[0]), "handed_over": of}
            for cost, won, of in zip(pool.usd_PE, pool.success_PE, pool.by_model_P, strict=True)
        ],
        "prices": prices[0],
    }  # fmt: skip
    if options.json:
        print(json.dumps(result))
        return
    print(f"{result['sessions']} sessions of {result['groups']} task groups; ${budget:.4f} a session")
    for name, single in result["singles"].items():
        print(f"  {name:<34} {single['success']:.3f} at ${single['usd']:.4f}")
    for name, found in result["rows"].items():
        print(f"{name:<36} {found['success']:.3f} ({found['ci95'][0]:.3f} to {found['ci95'][1]:.3f})")
    for name, found in result["pool_less"].items():
        print(f"pool less {name:<26} {found['gain']:+.3f} ({found['ci95'][0]:+.3f} to {found['ci95'][1]:+.3f})")
    for point in result["pool_points"]:
        shares = ", ".join(f"{name} {share:.2f}" for name, share in point["handed_over"].items())
        print(f"  pool: {point['success']:.3f} at ${point['usd']:.4f}; {shares}")


if __name__ == "__main__":
    main()
