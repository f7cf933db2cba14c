"""`r2v improve RUN`: what the teacher answers on escalated steps trains the SLM, so that fewer steps need it (DAgger).

A round: the routed agent plays fresh tasks; the teacher's answers on the SLM's own states, and the SLM's actions of solved
episodes, join the training data; the SLM is trained on; it is compared with the one before on validation tasks, and only a
better one is kept; then rollouts, router and thresholds are made anew. A round's folder is a run: it can be evaluated,
certified and served. Test tasks are played once, at the end.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from r2v import __version__
from r2v.core.errors import SettingsError, StageError
from r2v.core.seeds import derive_seed
from r2v.core.types import TEACHER, Episode, Member, Task
from r2v.evaluation.curves import calls_at
from r2v.evaluation.gain import paired_interval
from r2v.evaluation.outcomes import gather, row
from r2v.maths import Floats
from r2v.maths.stats import sign_flip, wilson_over_tasks
from r2v.pipeline.agents import AgentSpec
from r2v.pipeline.play import outcomes, play, play_episodes
from r2v.pipeline.run_folder import RunFolder, explored_file
from r2v.pipeline.runner import Stage, StageContext, run_stages, study
from r2v.pipeline.settings import IMPROVE_SEEDS_FROM, RunSettings
from r2v.pipeline.stages import STAGES
from r2v.pipeline.teaching import play_teacher
from r2v.routers import router_class
from r2v.runtime.executor import ExecutorChoice
from r2v.runtime.store import read_episodes, read_json, write_episodes, write_json

TARGET = 0.98
"""Share of the teacher's success at which calls are compared."""
NO_LESSONS = "no_new_data"
ARMS = {
    "teacher_episodes": "whole episodes of the teacher, on as many of the same tasks as its calls pay for",
    "random_steps": "the SLM plays, and the teacher answers on steps drawn at random, as often",
    NO_LESSONS: "the training alone, without a call",
}
"""What the calls of the rounds are compared with: name -> what it is. `random_steps_x3` has three times as many calls."""
TIMES = re.compile(r"(random_steps)_x([1-9]\d?)")
DONE = ("collect", "clone", "prefer", "rollout", "fit", "evaluate")
Report = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What decides the outcome; another plan needs another folder."""

    router: str
    """Whose escalations are learned from."""
    tasks: int
    """Fresh tasks a round, each played under two perturbation seeds."""
    steps: int | None
    """Optimiser steps a round; None: as many as the run's own cloning took."""
    learning_rate: float | None
    """Of them; None: that of the run's own cloning."""
    seed: int
    """Of the fresh tasks."""
    share: float | None = None
    """Of the SLM's steps, those that are escalated while it learns: thresholds are then chosen without a call, and by the
    run's own rule, on validation tasks, in a copy of the last round that was kept. None: by that rule after each round.
    """


def improve(
    root: Path, out: Path, plan: Plan, rounds: int, arms: Sequence[str], console: Console, choice: ExecutorChoice
) -> Report:
    """Play all rounds into `out`; finished ones are not played again.

    Args:
        root: a finished run whose SLM was trained in it.
        out: gets a folder for each round, and `improve.json` with what this returns.
        plan: how.
        rounds: how many.
        arms: names of `ARMS`, in each of which as many calls are spent (or so many times as many), with the same training.
        console: shows progress.
        choice: where episodes are played.

    Returns:
        {"before": the run, "rounds": [one each], "compared": {arm: [one a round]}, "test": figures on test tasks}.

    Raises:
        SettingsError: there is no such router or arm, or the domain makes no fresh tasks.
        StageError: the run is not finished, trains no SLM, or `out` holds something else.
    """
    base = RunFolder(root)
    _check(base, plan)
    if unknown := [name for name in arms if _arm(name)[0] not in ARMS]:
        known = f"{', '.join(ARMS)}, and random_steps_x2 to _x99"
        raise SettingsError(f"nothing to compare with is called {', '.join(unknown)}; there are {known}")
    _claim(out, base, plan)
    before = {"slm_success": base.selection()["slm_success"], "calls_at_98": calls_on_validation(base, plan.router)}
    before["teacher_calls"] = sum(map(_calls, base.teacher_episodes()))
    played: list[Report] = []
    chains = {"": [base]} | {name: [base] for name in arms}
    compared: dict[str, list[Report]] = {name: [] for name in chains if name}
    for number in range(1, rounds + 1):
        spent = 0
        for arm, kept in chains.items():
            folder = out / arm / f"round-{number}"
            settings = _settings(base, kept[-1], plan)
            what, times = _arm(arm)
            one = _Round(base, kept[-1], _before(out / arm, number), plan, number, what, times * spent)
            run_stages(one.stages, settings, folder, console, choice)
            found = one.report(RunFolder(folder))
            spent = spent if arm else found["teacher_calls_training"]
            if found["kept"]:
                kept.append(RunFolder(folder))
            if arm:
                compared[arm].append(found)
                continue
            refitted = {"teacher_calls_router": 0, "calls_at_98": _last(played, before)["calls_at_98"]}
            if found["kept"]:
                run_stages([*one.stages, *_named("rollout", "fit")], settings, folder, console, choice)
                refitted = {
                    "teacher_calls_router": router_calls(RunFolder(folder)),
                    "calls_at_98": calls_on_validation(RunFolder(folder), plan.router),
                }
            total = found["teacher_calls_training"] + refitted["teacher_calls_router"]
            played.append(found | refitted | {"teacher_calls_total": total})
            console.print(_line(number, played[-1]), highlight=False, soft_wrap=True)
    last, late = chains[""][-1], 0.0
    if last is not base:
        one = _Round(base, chains[""][-2], _before(out, _number(last)), plan, _number(last), "", 0)
        settings = _settings(base, chains[""][-2], replace(plan, share=None))
        if plan.share is not None:  # its own thresholds cost no call; with more rounds it is one of them again
            last = _copied(last, out / "last")
        run_stages([*one.stages, *_named("rollout", "fit", "evaluate", "report")], settings, last.root, console, choice)
        if plan.share is not None:
            late = _threshold_calls(last)  # its rollouts are those that the round paid for
    others = {arm: kept[-1] for arm, kept in chains.items() if arm}
    report: Report = {
        "run": str(root),
        "out": str(out),
        **asdict(plan),
        "before": before,
        "rounds": played,
        "last_kept": str(last.root),
        "teacher_calls_total": sum(one["teacher_calls_total"] for one in played) + late,
        "compared": compared,
        "test": {
            "before": _tested(base, plan.router),
            "after": _tested(last, plan.router),
            "compared": _test_alone(root, out, last, others, console, choice) if others else {},
        },
    }
    write_json(out / "improve.json", report)
    return report


def _arm(name: str) -> tuple[str, int]:
    """`random_steps_x3` -> ("random_steps", 3): what it is, and how many times the calls."""
    return (found[1], int(found[2])) if (found := TIMES.fullmatch(name)) else (name, 1)


def _last(played: Sequence[Report], before: Report) -> Report:
    return played[-1] if played else before


def _number(folder: RunFolder) -> int:
    return int(folder.root.name.removeprefix("round-"))


def _before(out: Path, number: int) -> list[Path]:
    """The rounds before this one, kept or not: what was paid for is learned from again."""
    return [out / f"round-{i}" for i in range(1, number)]


def _named(*names: str) -> list[Stage]:
    return [stage for stage in STAGES if stage.name in names]


def _check(base: RunFolder, plan: Plan) -> None:
    if not base.settings.trains:
        raise StageError(
            f"the SLM of {base.root} is a chat endpoint, which is not trained; see `r2v improve LEDGER --slm MODEL`"
        )
    base.finished(*DONE)
    if plan.router not in (known := base.operating_points()):
        raise SettingsError(f"no router {plan.router} with a threshold in this run; there are {', '.join(known)}")


def _claim(out: Path, base: RunFolder, plan: Plan) -> None:
    """Make `out` the folder of this plan on this run. Raises StageError where it is that of another."""
    outputs = {stage: base.manifest(stage)["outputs"] for stage in DONE}
    facts = {"run": outputs, "plan": asdict(plan), "r2v": __version__}
    fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    mark = out / "plan.json"
    if not mark.exists():
        if out.exists() and any(out.iterdir()):
            raise StageError(f"{out} exists and is no folder of `r2v improve`; choose another --out")
        write_json(mark, {"fingerprint": fingerprint, **asdict(plan)})
    elif read_json(mark).get("fingerprint") != fingerprint:
        raise StageError(f"{out} holds rounds of another run, or with other options; choose another --out")


def _copied(run: RunFolder, folder: Path) -> RunFolder:
    """The run again in a folder, under its own name; made once, whole or not at all."""
    target = folder / run.root.name
    if not target.exists():
        aside = folder / f".{run.root.name}"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(run.root, aside)
        aside.replace(target)
    return RunFolder(target)


def _settings(base: RunFolder, before: RunFolder, plan: Plan) -> RunSettings:
    """Those of the run, with the SLM before as what training starts from, and only the routers that the rounds need."""
    s = base.settings
    wanted = {"r2v", plan.router}
    routers = [e for e in s.routers if router_class(e if isinstance(e, str) else str(e.get("kind"))).name in wanted]
    return s.but(
        slm=s.slm.but(model=s.slm.trained.but(path=str(before.slm.resolve()))),
        tasks=s.tasks.but(policy=plan.tasks),
        routers=tuple(routers),
        clone=s.clone.but(steps=plan.steps or s.clone.steps, learning_rate=plan.learning_rate or s.clone.learning_rate),
        evaluate=s.evaluate if plan.share is None else s.evaluate.but(rule="share", share=plan.share),
    )


@dataclass(frozen=True)
class _Round:
    """One round of the command (arm ""), or of what it is compared with."""

    base: RunFolder
    before: RunFolder
    """The last one that was kept."""
    earlier: Sequence[Path]
    plan: Plan
    number: int
    arm: str
    calls: int
    """Teacher calls that an arm may spend."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Up to the choice between the SLM before and the new one; each owns the folder of the run's stage of its name."""
        plays = ("environment", "perturbations", "teacher", "tasks", "collect")
        alone = ("environment", "perturbations", "slm", "verifier")
        return (
            Stage("collect", "the routed agent played fresh tasks", (), plays, self._collect),
            Stage("clone", "the SLM was trained on the teacher's answers, too", ("collect",), ("slm", "clone"), self._clone),
            Stage("prefer", "the SLM was compared with the one before on validation tasks", ("collect", "clone"), alone,
                  self._compare),
        )  # fmt: skip

    def _collect(self, ctx: StageContext) -> None:
        tasks, seeds = self._tasks(ctx.settings)
        ctx.run.write_splits(self.base.splits() | {"policy": tasks})
        write_episodes(ctx.out / "episodes.parquet", self._episodes(ctx, tasks, seeds))

    def _episodes(self, ctx: StageContext, tasks: Sequence[Task], seeds: Sequence[int]) -> list[Episode]:
        if self.arm == NO_LESSONS:
            return []
        if self.arm == "teacher_episodes":
            an_episode = np.mean([_calls(e) for e in self.base.teacher_episodes()])
            return play_teacher(ctx, tasks[: max(1, round(self.calls / an_episode))], seeds[:1])
        if not self.arm:
            agent = AgentSpec("routed", self.before.slm, self.before.router_folder(self.plan.router))
            return play_episodes(ctx, agent, tasks, seeds, "fresh", max_calls=ctx.settings.evaluate.max_calls)
        ours = read_episodes(RunFolder(ctx.run.root.parents[1] / ctx.run.root.name).of("collect") / "episodes.parquet")
        share = min(
            1.0, self.calls / sum(len(e.steps) for e in ours)
        )  # as many calls in all, so none has a limit of its own
        return play_episodes(ctx, AgentSpec("routed", self.before.slm, "random", share), tasks, seeds, "fresh")

    def _tasks(self, settings: RunSettings) -> tuple[tuple[Task, ...], list[int]]:
        """Fresh tasks and perturbation seeds, which no run, evaluation, certificate or other round uses."""
        offset = IMPROVE_SEEDS_FROM + self.plan.seed * 1_000_000 + self.number * 1000
        tasks = settings.domain.fresh_tasks(
            settings.environment, self.plan.tasks, derive_seed("fresh tasks", settings.seed, offset)
        )
        known = {task.id for split in self.base.splits().values() for task in split}
        known |= {task.id for path in self.earlier for task in RunFolder(path).split("policy")}
        if overlap := known & {task.id for task in tasks}:
            raise StageError(f"{len(overlap)} of the new tasks are tasks of the run or of a round; choose another --seed")
        return tuple(tasks), [offset, offset + 1]

    def _clone(self, ctx: StageContext) -> None:
        import torch

        from r2v.learning.clone import clone

        s = ctx.settings
        torch.set_num_threads(s.threads)
        folders = [*map(RunFolder, self.earlier), ctx.run]
        collected = [e for folder in folders for e in read_episodes(folder.of("collect") / "episodes.parquet")]
        taught = self.base.teacher_episodes()
        if self.arm == "teacher_episodes":  # learned as the run learns them: the solved ones
            taught, collected = [*taught, *collected], []
        report = clone(
            taught, s.slm.trained, s.clone, ctx.out / "model", routed=collected, checkpoints=ctx.partial,
            seed=derive_seed("improve", s.seed, self.number) % 2**32, progress=ctx.report, pieces=s.domain.pieces,
            dropped=s.domain.dropped,
        )  # fmt: skip
        write_json(ctx.out / "report.json", asdict(report))

    def _compare(self, ctx: StageContext) -> None:
        s, run = ctx.settings, ctx.run
        tasks, seeds = run.split("validation"), s.perturbations.validation
        episodes = play_episodes(ctx, AgentSpec("routed", run.cloned), tasks, seeds, "validation")
        write_episodes(ctx.out / "validation.parquet", episodes)
        after, before = (
            gather(map(row, found), [task.id for task in tasks], seeds, s.environment.horizon).success_TZ
            for found in (episodes, self.before.validation_episodes())
        )
        verdict = gain(before, after, s.evaluate.resamples, s.seed)
        write_json(ctx.out / "gain.json", verdict)
        if verdict["kept"]:  # otherwise the folder is no run: nothing can be served from it by mistake
            write_json(ctx.out / "choice.json", {**verdict, "kept": "clone", "tasks": len(tasks)})

    def report(self, run: RunFolder) -> Report:
        found = read_json(run.of("prefer") / "gain.json")
        collected = read_episodes(run.of("collect") / "episodes.parquet")
        return {
            "round": self.number,
            "teacher_calls_training": sum(map(_calls, collected)),
            "slm_success": found["clone"],
            "slm_success_before": found["before"],
            "difference_ci95": found["difference_ci95"],
            "kept": found["kept"],
        }


def gain(before_TZ: Floats, after_TZ: Floats, resamples: int, seed: int) -> Report:
    """Whether a new SLM is better, from the success of both on each validation task under each seed.

    The paired interval must lie above 0, and chance must not show as much on so few tasks (the exact test over tasks).
    """
    low, high = difference(before_TZ, after_TZ, resamples, seed)
    p = sign_flip(np.rint((after_TZ - before_TZ).sum(axis=1)).astype(int))
    return {
        "kept": low > 0 and p <= 0.05,
        "before": float(before_TZ.mean()),
        "clone": float(after_TZ.mean()),
        "difference_ci95": [low, high],
        "p": p,
    }


def difference(before_TZ: Floats, after_TZ: Floats, resamples: int, seed: int) -> list[float]:
    """95 % interval of how much more the second succeeds, paired over tasks, widened where they are few."""
    return list(paired_interval((after_TZ - before_TZ).mean(axis=1), resamples, seed))


def calls_on_validation(run: RunFolder, router: str) -> float | None:
    """Calls an episode that a router needs for `TARGET` of the teacher's success, on the validation tasks; None also where
    they were not played.
    """
    selection, points = run.selection(), run.operating_points()[router].validation
    if selection["teacher_success"] is None:
        return None
    curve = [(0.0, selection["slm_success"]), *((calls, success) for _, success, calls in points)]
    return calls_at(curve, TARGET * selection["teacher_success"])


def router_calls(run: RunFolder) -> float:
    """Teacher calls that a run spent on its routers: answers on rollouts, branches, exploration, tuning and choosing
    thresholds. A call of another model of the pool is as much of one as its price is of the teacher's.
    """
    calls = _threshold_calls(run)
    for member in (Member(TEACHER, 1), *run.settings.members):
        if (tried := run.interventions(member.name)) is not None:
            answers = (tried.differs, tried.differs_validation, tried.differs_redrawn or ())
            calls += member.price * (sum(len(row) for part in answers for row in part) + len(tried.branches))
        explored = run.of("rollout") / explored_file(member.name)
        calls += member.price * sum(map(_calls, read_episodes(explored))) if explored.exists() else 0
    return calls


def _threshold_calls(run: RunFolder) -> float:
    """Teacher calls of choosing thresholds, and of tuning those routers that play before (the helper)."""
    selection = run.selection()
    return float(selection["teacher_calls"]) + float(selection.get("teacher_calls_tuning", 0))  # older runs: not counted


def _calls(episode: Episode) -> int:
    return sum(step.choice.teacher.calls for step in episode.steps)


def _tested(run: RunFolder, router: str) -> Report:
    """A router on the test tasks, as the stage evaluate found it."""
    routers = run.results()["routers"]
    most = "llm_first" if "llm_first" in routers else "llm_only"  # as the curves of results.json end
    ends = [(routers[name]["calls_per_episode"], routers[name]["success_rate"]) for name in ("slm_only", most)]
    points = [*ends, *((calls, success) for _, calls, success in routers[router]["points"])]
    teacher = routers["llm_only"]["success_rate"]
    return {
        "slm_success": routers["slm_only"]["success_rate"],
        "slm_ci95": routers["slm_only"]["ci95"],
        "teacher_success": teacher,
        "routed_success": routers[router]["success_rate"],
        "routed_calls": routers[router]["calls_per_episode"],
        "calls_at_98": calls_at(points, TARGET * teacher),
    }


def _test_alone(
    root: Path, out: Path, last: RunFolder, others: Mapping[str, RunFolder], console: Console, choice: ExecutorChoice
) -> Report:
    """The last SLM of each arm alone on the test tasks, and how much more of them that of the rounds solves."""
    with study(root, out / "test", "test", console, choice) as ctx:
        tasks, seeds = ctx.run.split("test"), ctx.settings.perturbations.test
        agents = {name: AgentSpec("routed", run.slm) for name, run in {"": last, **others}.items()}
        rows, _ = play(ctx, agents, tasks, seeds, "test")
        success = {name: outcomes(ctx, rows[name], tasks, seeds).success_TZ for name in agents}
    resamples, seed = ctx.settings.evaluate.resamples, ctx.settings.seed
    return {
        name: {
            "slm_success": float(success[name].mean()),
            "slm_ci95": wilson_over_tasks(success[name]),
            "behind_ci95": difference(success[name], success[""], resamples, seed),
        }
        for name in others
    }


def _line(number: int, found: Report) -> str:
    low, high = found["difference_ci95"]
    change = f"SLM {found['slm_success_before']:.1%} -> {found['slm_success']:.1%} ({low:+.3f} to {high:+.3f})"
    calls = "not reached, or not played" if found["calls_at_98"] is None else f"{found['calls_at_98']:.2f}"
    verdict = (
        f"kept; calls at {TARGET:.0%} of the teacher {calls}" if found["kept"] else "rolled back: not shown to be better"
    )
    return f"round {number}     {change}, {found['teacher_calls_training']} teacher calls to learn from: {verdict}"


def lines(found: Report) -> list[str]:
    """What came out, for people, and where it lies."""
    before, after = found["test"]["before"], found["test"]["after"]
    shown = [f"{'before':<11} {_figures(before)}", f"{'after':<11} {_figures(after)}"]
    for name, one in found["test"]["compared"].items():
        low, high = one["behind_ci95"]
        shown.append(
            f"{name:<11} SLM {one['slm_success']:.1%} on test tasks ({ARMS[_arm(name)[0]]}); the rounds' is better by "
            f"{low:+.3f} to {high:+.3f}"
        )
        if name == NO_LESSONS and low <= 0:
            shown.append("lessons     are not shown to help beyond that training: train longer before paying for more")
    if found["last_kept"] == found["run"]:
        shown[1] = f"{'after':<11} the same: no round was shown to be better"
    return [*shown, f"numbers     {Path(found['out']) / 'improve.json'}", f"next        r2v certify {found['last_kept']}"]


def _figures(test: Report) -> str:
    calls = "are never enough" if test["calls_at_98"] is None else f"{test['calls_at_98']:.2f}"
    return (
        f"SLM {test['slm_success']:.1%} on test tasks; calls an episode for {TARGET:.0%} of the teacher's success: {calls}"
    )
