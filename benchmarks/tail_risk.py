"""Tail risk on a household run: what alpha, epsilon and the bound change, how often the bound holds, what proof costs.

    python benchmarks/tail_risk.py play RUN OUT [--tasks 400] [--routers r2v cascade]
    python benchmarks/tail_risk.py training RUN
    python benchmarks/tail_risk.py rule OUT
    python benchmarks/tail_risk.py held-out OUT [--draws 200]
    python benchmarks/tail_risk.py proof OUT [--draws 200]

RUN is a finished run with `perturbations.severities` and `groups: [family, severity]`. `play` plays many fresh tasks at
many thresholds, once under the run's severities and once under others, and writes the outcomes to OUT; the other commands
draw validation sets and certificates from those, thousands of times. A killed `play` goes on where it was. `training` fits
r2v_paper anew for each alpha and epsilon. All tables are Markdown.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from rich.console import Console

from r2v.core.features import PAPER
from r2v.core.seeds import derive_seed
from r2v.evaluation.certificate import Target, certified
from r2v.evaluation.operating_point import Point, choose
from r2v.evaluation.outcomes import Outcomes, Row, gather
from r2v.evaluation.tail import failures, worst_mean
from r2v.learning.labels import failure_rows
from r2v.maths import Floats
from r2v.pipeline.agents import AgentSpec
from r2v.pipeline.play import at, outcomes, play, routed_at
from r2v.pipeline.run_folder import RunFolder
from r2v.pipeline.runner import study
from r2v.pipeline.settings import FRESH_SEEDS_FROM
from r2v.studies.certify import SHARES

HELD_OUT = (0.75, 1.5)
"""Severities that the run has not."""
FEW = (0.02, 0.06, 0.12, 0.2, 0.35, 0.6)
"""Shares of the six thresholds that a run tries if its settings say nothing."""
ALPHAS = (1.0, 0.5, 0.25, 1 / 12)
BOUNDS = (0.6, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15)
HELD_OUT_BOUNDS = {1.0: (0.2, 0.15, 0.12), 0.5: (0.35, 0.3, 0.25), 0.25: (0.5, 0.45, 0.4, 0.35)}
"""For each alpha: the teacher itself fails often in the worst groups."""
DELTA = 0.1


@dataclass(frozen=True)
class Played:
    """One router at its thresholds, the strictest first, under one set of severities, and the teacher on the same."""

    thresholds: list[float]
    success_PTZ: Floats
    calls_PTZ: Floats
    teacher_TZ: Floats
    group_TZ: np.ndarray
    few: list[int]
    """Which of the thresholds a run would try."""

    def some(self, tasks_T: np.ndarray, seeds: Sequence[int] | None = None) -> Played:
        """Some of the tasks (one may be drawn twice) and seeds."""
        z = np.arange(self.group_TZ.shape[1]) if seeds is None else np.array(seeds)
        pick = np.ix_(tasks_T, z)
        cut = [x[:, *pick] for x in (self.success_PTZ, self.calls_PTZ)]
        return Played(self.thresholds, *cut, self.teacher_TZ[pick], self.group_TZ[pick], self.few)

    def outcomes(self, blank: Callable[[int, int], Outcomes], only: Sequence[int] | None = None) -> list[Outcomes]:
        """As a rule or a certificate takes them, a threshold each."""
        shape, names = self.group_TZ.shape, np.unique(self.group_TZ, return_inverse=True)[1].reshape(self.group_TZ.shape)
        return [
            replace(blank(*shape), success_TZ=self.success_PTZ[i], teacher_calls_TZ=self.calls_PTZ[i], group_TZ=names)
            for i in (range(len(self.thresholds)) if only is None else only)
        ]


class Blank:
    """Outcomes of a shape, made once."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, int], Outcomes] = {}

    def __call__(self, tasks: int, seeds: int) -> Outcomes:
        if (tasks, seeds) not in self.known:
            names, zs = [str(i) for i in range(tasks)], range(1, seeds + 1)
            rows = [Row(name, z, "none", False, False, 1, 1, 0, (), (0, 0, 0)) for name in names for z in zs]
            self.known[tasks, seeds] = gather(rows, names, list(zs), 40)
        return self.known[tasks, seeds]


BLANK = Blank()


def play_population(args: argparse.Namespace) -> None:
    with study(args.run, args.out, "tail", Console(), fingerprint=f"{args.routers} {args.seeds}") as ctx:
        settings, run = ctx.settings, ctx.run
        held = [e for e in run.validation_episodes() if e.success is not None]
        grids, few = {}, {}
        for name in args.routers:
            router = run.router(name)
            grids[name] = router.thresholds(held, SHARES)
            few[name] = [int(np.abs(np.array(grids[name]) - t).argmin()) for t in router.thresholds(held, FEW)]
        agents = {"llm_only": AgentSpec("teacher"), **routed_at(grids, run.of("fit"), run.slm)}
        for part, severities in (("same", settings.perturbations.severities), ("other", HELD_OUT)):
            there = replace(ctx, settings=settings.but(perturbations=settings.perturbations.but(test_severities=severities)))
            zs = [FRESH_SEEDS_FROM + (part == "other") * 1000 + i for i in range(args.seeds)]
            count, label = (args.tasks, "tail risk") if part == "same" else (args.tasks // 2, "tail risk, held out")
            tasks = settings.domain.fresh_tasks(settings.environment, count, derive_seed(label, settings.seed))
            rows, _ = play(there, agents, tasks, zs, part)
            found = {name: outcomes(there, r, tasks, zs, ("family", "severity")) for name, r in rows.items()}
            for name, grid in grids.items():
                of_router = [found[at(name, t)] for t in grid]
                np.savez_compressed(
                    args.out / f"{name}-{part}.npz", thresholds=grid, few=few[name], group=found["llm_only"].group_TZ,
                    success=np.array([o.success_TZ for o in of_router], dtype=np.int8),
                    calls=np.array([o.teacher_calls_TZ for o in of_router], dtype=np.int8),
                    teacher=found["llm_only"].success_TZ,
                )  # fmt: skip


def read(folder: Path, part: str) -> dict[str, Played]:
    found = {}
    for path in sorted(folder.glob(f"*-{part}.npz")):
        with np.load(path) as a:
            name = path.stem.removesuffix(f"-{part}")
            few = list(dict.fromkeys(a["few"].tolist()))
            found[name] = Played(
                a["thresholds"].tolist(), a["success"].astype(float), a["calls"].astype(float), a["teacher"].astype(float),
                a["group"], few,
            )  # fmt: skip
    return found


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def training(args: argparse.Namespace) -> None:
    """alpha and epsilon of the paper's objective: how much its router escalates."""
    import torch

    from r2v.learning.router import fit_mlp

    torch.set_num_threads(1)
    run = RunFolder(args.run)
    groups = run.settings.perturbations.groups
    train = failure_rows([e for e in run.rollouts() if e.success is not None], PAPER, groups)
    held = failure_rows([e for e in run.validation_episodes() if e.success is not None], PAPER, groups)
    rows = []
    for epsilon in (0.2, 0.1, 0.05, 0.02):
        row = [f"{epsilon:g}"]
        for alpha in ALPHAS:
            settings = run.settings.router.but(alpha=alpha, epsilon=epsilon, kappa=args.kappa, epochs=args.epochs)
            model = fit_mlp(train, held, PAPER, settings, "paper", seed=0)
            p_N = 1 / (1 + np.exp(-model.logit(held.x_NF, held.present_NF)))
            missed = [float((held.y_N * (1 - p_N))[held.group_N == g].mean()) for g in np.unique(held.group_N)]
            row.append(f"{(p_N >= 0.5).mean():.3f} ({max(missed):.3f})")
        rows.append(row)
    heads = ["epsilon", *(f"alpha {alpha:.2g}" for alpha in ALPHAS)]
    table(
        f"Share of validation steps that r2v_paper escalates at p >= .5 (missed risk of the worst group); {args.kappa=:g}",
        heads, rows,
    )  # fmt: skip


def rule_of(bound: float, confidence: float) -> SimpleNamespace:
    return SimpleNamespace(rule="cvar", max_failure=bound, worst_group=None, confidence=confidence)


def chosen(played: Played, bound: float, alpha: float, confidence: float) -> tuple[int, bool]:
    """(which threshold, whether it meets the bound on what it was chosen on)."""
    points = [Point(t, o) for t, o in zip(played.thresholds, played.outcomes(BLANK), strict=True)]
    point = choose(points, rule_of(bound, confidence), 1.0, alpha)
    return played.thresholds.index(point.threshold), point.met


def rule(args: argparse.Namespace) -> None:
    """The chosen point by alpha and bound, on one validation set."""
    for name, played in read(args.out, "same").items():
        some = played.some(np.arange(args.tasks))
        rows = []
        for bound in BOUNDS:
            row = [f"{bound:g}"]
            for alpha in ALPHAS:
                i, met = chosen(some, bound, alpha, 0.9)
                row.append(f"{some.calls_PTZ[i].mean():.2f}" if met else "none")
            rows.append(row)
        heads = ["bound", *(f"alpha {alpha:.2g}" for alpha in ALPHAS)]
        table(f"{name}: calls an episode at the point that `rule: cvar` picks on {args.tasks} tasks", heads, rows)


def tails(played: Played, alpha: float) -> Floats:
    """CVaR of failure at each threshold."""
    return np.array([worst_mean(failures(o, 0), alpha) for o in played.outcomes(BLANK)])


def held_out(args: argparse.Namespace) -> None:
    """Is the bound that a point met on a validation set met elsewhere?

    Three answers. `like these`: validation sets are drawn with replacement from all tasks, which are also the truth: the
    case that the test is made for. `other half`: each draw splits the tasks anew, chooses on one half and looks at the
    other, whose own rates are estimates on half of the tasks. `other severities`: other tasks, seeds and severities.
    """
    rng = np.random.default_rng(0)
    for name, same in read(args.out, "same").items():
        other, T = read(args.out, "other")[name], same.group_TZ.shape[0]
        rows = []
        for alpha, bounds in HELD_OUT_BOUNDS.items():
            truth, apart = tails(same, alpha), tails(other, alpha)
            orders = [rng.permutation(T) for _ in range(args.draws)]
            halves = [tails(same.some(order[T // 2 :]), alpha) for order in orders]
            for bound in bounds:
                for confidence in (0.0, 0.9):
                    whole = [chosen(same.some(rng.choice(T, args.tasks)), bound, alpha, confidence) for _ in orders]
                    split = [
                        chosen(same.some(rng.choice(order[: T // 2], args.tasks)), bound, alpha, confidence)
                        for order in orders
                    ]
                    like = [truth[i] <= bound for i, met in whole if met]
                    half = [held[i] <= bound for (i, met), held in zip(split, halves, strict=True) if met]
                    severe = [apart[i] <= bound for i, met in whole if met]
                    calls = [same.calls_PTZ[i].mean() for i, met in whole if met]
                    cells = [f"{np.mean(x):.0%}, {sum(x[:20])} of {len(x[:20])}" if x else "" for x in (like, half, severe)]
                    shown = f"{len(like) / args.draws:.0%}"
                    rows.append([f"{alpha:g}", f"{bound:g}", f"{confidence:g}", shown, *cells, f"{np.mean(calls):.2f}"])
        heads = ["alpha", "bound", "confidence", "a point met it", "like these", "other half", "other severities", "calls"]
        table(
            f"{name}: {args.draws} validation sets of {args.tasks} tasks; bound met (all draws, the first 20)", heads, rows
        )


def betting_p_before(x_NC: Floats, bound: float) -> Floats:
    """What certificates used before: bets that aim at growth."""
    N = len(x_NC)
    n = np.arange(1, N + 1)[:, None]
    mean_NC = (0.5 + x_NC.cumsum(axis=0)) / (n + 1)
    variance_NC = (0.25 + ((x_NC - mean_NC) ** 2).cumsum(axis=0)) / (n + 1)
    before_NC = np.vstack([np.full((1, x_NC.shape[1]), 0.25), variance_NC[:-1]])
    bet_NC = np.minimum(1.0, np.sqrt(2 * np.log(1 / DELTA) / (N * before_NC)))
    capital_NC = np.cumsum(np.log(np.maximum(1 - bet_NC * (x_NC - bound), 1e-300)), axis=0)
    return np.asarray(np.exp(-np.maximum(0.0, capital_NC.max(axis=0))))


def certified_before(points: Sequence[tuple[float, Outcomes]], target: Target) -> float | None:
    """The procedure before, where each task is in each group."""
    assert target.max_failure is not None
    best = None
    for threshold, o in points:
        names = np.unique(o.group_TZ)
        of_group = [
            np.where(o.group_TZ == n, 1 - o.success_TZ, 0).sum(axis=1) / (o.group_TZ == n).sum(axis=1) for n in names
        ]
        x_TG, G = np.stack(of_group, axis=1), len(names)
        worst = G if target.alpha is None else math.ceil(target.alpha * G - 1e-12)
        x_TC = np.stack([x_TG[:, list(c)].mean(axis=1) for c in combinations(range(G), worst)], axis=1)
        if betting_p_before(x_TC, target.max_failure).max() > DELTA:
            return best
        best = threshold
    return best


def families(played: Played) -> Played:
    """The groups are the families alone: each task meets each."""
    return replace(played, group_TZ=np.array([[name.split(", ")[0] for name in row] for row in played.group_TZ]))


def by_seed(played: Played) -> Played:
    """The groups are the seeds."""
    T, Z = played.group_TZ.shape
    return replace(played, group_TZ=np.tile([f"seed {z}" for z in range(Z)], (T, 1)))


def proof(args: argparse.Namespace) -> None:
    """What a certificate costs, over the cheapest threshold that truly meets the bound."""
    rng = np.random.default_rng(1)
    cases: list[tuple[str, Callable[[Played], Played], range, float | None, tuple[float, ...]]] = [
        ("4 seeds, 4 episodes a task", by_seed, range(4), 0.25, (0.2, 0.15)),
        ("none, 4 episodes a task", by_seed, range(4), None, (0.2, 0.15, 0.12)),
        ("4 families, 4 episodes a task", families, range(4), 0.25, (0.35, 0.3)),
        ("12 kinds, 4 episodes a task", lambda p: p, range(4), 0.25, (0.5, 0.45, 0.4)),
        ("12 kinds, 12 episodes a task", lambda p: p, range(12), 0.25, (0.5, 0.45, 0.4, 0.35)),
    ]
    for name, same in read(args.out, "same").items():
        rows = []
        for label, grouped, seeds, alpha, bounds in cases:
            all_tasks = np.arange(same.group_TZ.shape[0])
            population = grouped(same.some(all_tasks, seeds))
            truth = tails(population, alpha) if alpha else population.success_PTZ.mean(axis=(1, 2)) * -1 + 1
            calls = population.calls_PTZ.mean(axis=(1, 2))
            for bound in bounds:
                good = truth <= bound
                if not good.any():
                    continue
                ideal = calls[good].min()
                for tasks in (100, 300):
                    draws = [grouped(same.some(rng.choice(all_tasks, tasks), seeds)) for _ in range(args.draws)]
                    target = Target(bound, DELTA, alpha)
                    start = int(np.argmin(truth[population.few]))  # what validation would say, without its noise
                    few, many = population.few[: start + 1][::-1], list(range(population.few[start], -1, -1))
                    methods = {
                        "before": (certified_before, population.few[::-1]),
                        "now, 6 thresholds": (lambda p, t: certified(p, t)[0], few),
                        "now": (lambda p, t: certified(p, t)[0], many),
                    }
                    for method, (make, only) in methods.items():
                        if method.startswith("before") and label.startswith("12 kinds, 4"):
                            continue
                        found = [
                            make([(float(i), o) for i, o in zip(only, d.outcomes(BLANK, only), strict=True)], target)
                            for d in draws
                        ]
                        got = [int(i) for i in found if i is not None]
                        cost = np.mean([calls[i] for i in got]) if got else float("nan")
                        wrong = np.mean([i is not None and truth[int(i)] > bound for i in found])
                        rows.append([
                            label, "mean" if alpha is None else f"{alpha:g}", f"{bound:g}", f"{ideal:.2f}", str(tasks),
                            method, f"{cost:.2f}", f"{cost / ideal:.2f}", f"{1 - len(got) / len(found):.0%}", f"{wrong:.1%}",
                        ])  # fmt: skip
        heads = ["groups", "alpha", "bound", "ideal calls", "tasks", "method", "calls", "over ideal", "nothing", "wrong"]
        table(f"{name}: certificates at delta {DELTA:g}, {args.draws} draws of tasks from {len(all_tasks)}", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for label, function in (("play", play_population), ("training", training), ("rule", rule), ("held-out", held_out),
                            ("proof", proof)):  # fmt: skip
        command = commands.add_parser(label)
        command.set_defaults(function=function)
        if label in ("play", "training"):
            command.add_argument("run", type=Path)
        if label != "training":
            command.add_argument("out", type=Path)
        command.add_argument("--draws", type=int, default=200)
        command.add_argument("--tasks", type=int, default=400 if label == "play" else 80)
        command.add_argument("--seeds", type=int, default=12)
        command.add_argument("--routers", nargs="*", default=["r2v"])
        command.add_argument("--kappa", type=float, default=0.5)
        command.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__":
    main()
