"""`r2v improve`: what the teacher answered trains the SLM."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r2v.cli.common import MAX_SEED, Address, Executor, cli, given, imported
from r2v.core.errors import SettingsError
from r2v.logs import AUTO

if TYPE_CHECKING:
    from r2v.runtime.executor import ExecutorChoice
    from r2v.studies.improve import Plan


@cli.command(rich_help_panel="Runs")
def improve(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="RUN|LEDGER", help="Folder of a finished run, or a gateway's ledger.")],
    rounds: Annotated[int, typer.Option(min=1, help="Of a run; more of them later go on from the last one.")] = 3,
    router: Annotated[str, typer.Option(help="Of a run: whose escalations the SLM learns from.")] = "r2v",
    tasks: Annotated[int, typer.Option(min=2, help="Of a run: fresh tasks a round.")] = 300,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            "--compare",
            help="Of a run (repeatable): also spend as many teacher calls on teacher_episodes or random_steps, three times "
            "as many (random_steps_x3), with the same training.",
        ),
    ] = None,
    control: Annotated[
        bool, typer.Option(help="Of a run: also train as long without a lesson, which tells what the lessons did.")
    ] = True,
    share: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            max=0.999,
            help="Of a run: share of steps escalated in the rounds, instead of thresholds that "
            "are chosen by playing: a router that needs none of the teacher's answers (r2v) then costs no call.",
        ),
    ] = None,
    slm: Annotated[str | None, typer.Option(help="With a ledger: folder or hub id of the model to train on.")] = None,
    lora: Annotated[bool, typer.Option("--lora", help="With a ledger: train adapters, merged at the end.")] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps a round; as the run's cloning, 300 with a ledger.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-12, help="As the run's cloning; with a ledger 2e-5, or 2e-4 with --lora.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the fresh tasks, or of what is held out.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder of the rounds; RUN/improve, or ./improved with a ledger.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON line.")] = False,
    executor: Executor = "processes",
    address: Address = None,
) -> None:
    """Train the SLM on what the teacher answered when it was called, keep it only if it is better, and fit the router anew.

    On a run: each round plays fresh tasks with the routed agent, and the new SLM must be better on validation tasks; test
    tasks are played once, at the end. On a ledger: the new SLM must find the teacher's answers in held-out sessions more
    likely. Otherwise the old one stays. A killed one resumes.
    """
    from r2v.gateway.postgres_url import is_postgres

    if not source.exists() and not is_postgres(source.as_posix()):
        raise SettingsError(f"{source} does not exist; give the folder of a run, or a gateway's ledger")
    if (source / "settings.yaml").exists():
        from r2v.runtime.executor import ExecutorChoice
        from r2v.studies.improve import NO_LESSONS, Plan

        if wrong := given(ctx, "slm", "lora"):
            raise SettingsError(f"{source} is a run, whose settings name its SLM; leave out what is for ledgers: {wrong}")
        plan = Plan(router, tasks, steps, learning_rate, seed, share)
        arms = dict.fromkeys([*([NO_LESSONS] if control else []), *(compare or [])])
        found = _run(source, out, plan, rounds, [*arms], ExecutorChoice(executor, address))
    else:
        if slm is None:
            raise SettingsError(f"{source} is no run (it has no settings.yaml); with a ledger name the model: --slm FOLDER")
        if wrong := given(ctx, "rounds", "router", "tasks", "compare", "control", "share", "executor", "address"):
            raise SettingsError(f"{source} is no run (it has no settings.yaml); leave out what is for runs: {wrong}")
        found = _ledger(source, out or Path("improved"), slm, lora, steps, learning_rate, seed)
    if as_json:
        typer.echo(json.dumps(found))


def _run(run: Path, out: Path | None, plan: Plan, rounds: int, compare: list[str], choice: ExecutorChoice) -> dict[str, Any]:
    from rich.console import Console

    from r2v.studies.improve import improve, lines

    console = Console()
    found = improve(run, out or run / "improve", plan, rounds, compare, console, choice)
    console.print("\n".join(lines(found)), highlight=False, soft_wrap=True)
    return found


def _ledger(
    ledger: Path, out: Path, slm: str, lora: bool, steps: int | None, learning_rate: float | None, seed: int
) -> dict[str, Any]:
    from rich.console import Console

    from r2v.learning.settings import CloneSettings, LoraSettings, ModelSettings
    from r2v.runtime.progress import progress
    from r2v.studies.improve_on_logs import improve_on_logs

    read, count = imported(ledger, AUTO, None, keep_unknown=True), steps or 300
    rate = learning_rate or (2e-4 if lora else 2e-5)
    model = ModelSettings(path=slm, lora=LoraSettings() if lora else None)
    settings = CloneSettings(steps=count, learning_rate=rate, warmup_steps=count // 10)
    with progress(Console(stderr=True), "improve") as report:
        found = improve_on_logs(read.episodes, model, settings, out, seed, report)
    shutil.rmtree(out / "partial", ignore_errors=True)
    (one,) = found["rounds"]
    low, high = one["fall_ci95"]
    typer.echo(f"learned   {one['teacher_calls_training']} answers of the teacher, in {found['sessions']} sessions")
    typer.echo(
        f"held out  {one['held_out_tasks']} tasks: loss of the teacher's answers {one['loss_before']:.3f} before, "
        f"{one['loss']:.3f} after (it fell by {low:.3f} to {high:.3f})"
    )
    if one["kept"]:
        typer.echo(f"model     {found['model']}\nnumbers   {out / 'improve.json'}")
        typer.echo(f"next      serve {found['model']} as the gateway's SLM, then r2v fit on its new sessions")
    else:
        missing = one["held_out_tasks_missing"]
        why = f": {missing} more held-out tasks are needed to tell" if missing else ""
        typer.echo(f"model     {found['model']} stays: the new one is not shown to be better, and was removed{why}")
        typer.echo(
            f"numbers   {out / 'improve.json'}\nnext      let the gateway serve more sessions, then the same with --out NEW"
        )
    return found
