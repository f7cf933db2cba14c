"""`r2v bench`: routers beside one another on recorded agents."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from r2v.cli.common import MAX_FIT_SEED, cli
from r2v.core.errors import SettingsError
from r2v.runtime.executor import LocalProcesses
from r2v.runtime.progress import Report, progress

if TYPE_CHECKING:
    from r2v.bench.entries import Entry

PLACE = "bench-data"
"""Where records are looked for. `R2V_SHARED` names the folder whose `data` this project's tests read."""
Job = tuple[str, tuple[str, ...], bool, Path, Path, int, float, bool]


@cli.command(rich_help_panel="Logs and solutions")
def bench(
    suites: Annotated[
        list[str] | None, typer.Argument(help="Which (--list names them); all whose records are there.")
    ] = None,
    router: Annotated[
        list[str] | None,
        typer.Option(help="A router of your own (repeatable): package.module:Router, or the folder of a fitted one."),
    ] = None,
    only: Annotated[bool, typer.Option("--only", help="The routers of --router alone, beside the nulls.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(envvar="R2V_BENCH_DATA", help=f"Folder of the records (docs/bench.md); {PLACE} if not given."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for bench.html and, a folder a suite, results and predictions.")] = Path(
        "bench"
    ),
    run: Annotated[Path | None, typer.Option(help="A finished run of the household, whose routers its suite plays.")] = None,
    share: Annotated[float, typer.Option(min=0.01, max=0.99, help="Strong calls at which routers are compared.")] = 0.25,
    unseen_models: Annotated[
        bool, typer.Option("--unseen-models", help="Fits see neither the tasks nor the weak models that they are scored on.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=MAX_FIT_SEED, help="Seed of the folds, the fits and the intervals.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Suites that run at once, each in a process.")] = 2,
    listed: Annotated[bool, typer.Option("--list", help="Name the suites and the routers, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="End with a JSON line for each suite.")] = False,
) -> None:
    """Measure routers on recorded agents and in real engines, beside random escalation and a decision at step 0.

    Every router is fitted on other tasks than those it is scored on, and its predictions are written down first.
    """
    from r2v.bench import BUILT_IN
    from r2v.bench.run import OTHERS, why_not

    if data is None:
        shared = os.environ.get("R2V_SHARED")
        data = Path(PLACE) if shared is None or Path(PLACE).is_dir() else Path(shared) / "data"
    if listed:
        _list(data)
        return
    lacking = {} if suites else {name: why for name in BUILT_IN if (why := why_not(name, data))}
    names = suites or [name for name in BUILT_IN if name not in lacking]
    console = Console(stderr=True)
    for name, why in lacking.items():
        console.print(f"{name} is left out: {why}", highlight=False)
    if not names:
        raise SettingsError(f"{data} holds the records of no suite; give their folder with --data (see docs/bench.md)")
    jobs: list[Job] = [
        (name, tuple(router or ()), only, data, out, seed, share, unseen_models) for name in names if name not in OTHERS
    ]
    out.mkdir(parents=True, exist_ok=True)  # before minutes of work
    if len(jobs) == 1:
        with progress(console, jobs[0][0]) as report:
            _suite(jobs[0], report)
    elif jobs:
        with LocalProcesses(min(workers, len(jobs))) as processes, progress(console, "suites") as report:
            processes.map(_suite, jobs, report)
    others = {
        name: _other(name, router or [], only, run, data, out, seed, share, console) for name in names if name in OTHERS
    }
    found = {job[0]: json.loads((out / _folder(job[0]) / "results.json").read_text("utf-8")) for job in jobs}
    _show(found, others, out)
    if as_json:
        for name in names:
            typer.echo(json.dumps({**found, **others}[name]))


def _suite(job: Job, report: Report = lambda *_: None) -> None:
    from r2v.bench.run import run_suite, suite_named

    name, own, only, data, out, seed, share, unseen = job
    to = out / _folder(name)
    run_suite(suite_named(name), _entries(own, only), data, to, report, seed=seed, share=share, unseen_models=unseen)


def _other(
    name: str, own: list[str], only: bool, run: Path | None, data: Path, out: Path, seed: int, share: float, console: Console
) -> dict[str, Any]:
    from r2v.bench import pool
    from r2v.bench.run import HOUSEHOLD, run_household, run_twinrouter

    if name == HOUSEHOLD:
        return run_household(run, out / name)
    with progress(console, name) as report:
        if name == pool.NAME:
            return pool.bench(_entries(tuple(own), only), data, out / name, report, seed=seed, share=share)
        return run_twinrouter(own, data, out / name, report, seed)


def _folder(name: str) -> str:
    return name.replace(":", ".")


def _entries(own: tuple[str, ...], only: bool) -> list[Entry]:
    from r2v.bench.entries import NULL, RANDOM, entries

    if only and not own:
        raise SettingsError("--only wants a --router")
    return [entry for entry in entries(own) if not only or entry.name in (*own, NULL, RANDOM)]


def _show(found: dict[str, Any], others: dict[str, Any], out: Path) -> None:
    from r2v.bench.entries import FITTED
    from r2v.report.bench import plain_table, table, verdict, write_bench

    console = Console()
    if not console.is_terminal:
        console.width = 120
    for results in found.values():
        console.print(table(results))
        console.print(verdict(results), highlight=False)
        for row in results["rows"]:
            if row["source"].startswith(FITTED):
                console.print(f"{row['router']}: {row['source']}", highlight=False, markup=False)
    for name, results in others.items():
        console.print(plain_table(results))
        typer.echo(f"{out / name / 'results.json'}: all of it")
    if found:
        typer.echo(f"{write_bench([*found.values()], out)}: all rows, curves and what was left out")


def _list(data: Path) -> None:
    from r2v.bench import BUILT_IN
    from r2v.bench.entries import entries
    from r2v.bench.run import OTHERS, suite_named, why_not

    for name in BUILT_IN:
        typer.echo(f"{name:<20} {suite_named(name).description}{f' [{why}]' if (why := why_not(name, data)) else ''}")
    for name, description in OTHERS.items():
        typer.echo(f"{name:<20} {description}")
    typer.echo()
    for entry in entries():
        typer.echo(f"{entry.name:<28} {entry.source}{f' [not on all suites: {why}]' if (why := entry.why_not()) else ''}")
