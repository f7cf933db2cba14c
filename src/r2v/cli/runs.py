"""Commands that train, play and prove: each a few lines onto stages and report."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from r2v.cli.common import MAX_SEED, Address, Executor, Set, cli
from r2v.core.errors import SettingsError, StageError
from r2v.runtime.settings import keys, load
from r2v.runtime.store import read_episodes, read_json, write_json


@cli.command(rich_help_panel="Runs")
def run(
    settings: Annotated[Path, typer.Argument(help="Settings file, e.g. examples/household.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; give it again to resume.")],
    overrides: Set = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage (see `r2v stages`).")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Play nothing: print the plan, and ask each chat model once.")
    ] = False,
    executor: Executor = "processes",
    address: Address = None,
) -> None:
    """Train, fit and evaluate: all stages in order. Finished stages are skipped, a killed one is resumed."""
    from rich.console import Console

    from r2v.cli.logs import run_logs
    from r2v.pipeline.run_folder import MANIFEST, RunFolder, folder_of
    from r2v.pipeline.runner import run_stages
    from r2v.pipeline.settings import LogsSettings, RunSettings
    from r2v.pipeline.stages import STAGES
    from r2v.report.tables import summary
    from r2v.runtime.executor import ExecutorChoice

    choice = ExecutorChoice(executor, address)
    if "logs" in keys(settings):
        if until is not None:
            raise SettingsError(f"{settings} names logs: it has no stages to stop after")
        if dry_run:
            raise SettingsError(f"{settings} names logs: nothing is played, and nothing asked of a model; run it as it is")
        if executor != "processes":
            raise SettingsError(f"{settings} names logs: nothing is played on an executor; leave out --executor {executor}")
        run_logs(load(settings, LogsSettings, overrides or []), out)
        return
    names = [stage.name for stage in STAGES]
    if until is not None and until not in names:
        raise SettingsError(f"--until {until}: no such stage; the stages are {', '.join(names)}")
    effective = load(settings, RunSettings, overrides or [])
    console = Console()
    if (layers := effective.domain.confinement()) is not None:
        console.print(f"sandbox  {', '.join(layers)}", highlight=False)
    wanted = STAGES[: names.index(until) + 1] if until else STAGES
    if dry_run:
        from r2v.pipeline.plan import lines, plan
        from r2v.pipeline.runner import status

        for stage in wanted:
            console.print(f"{folder_of(stage.name):<11} {status(stage, effective, RunFolder(out))}", highlight=False)
        console.print("\n".join(lines(plans := plan(effective))), highlight=False, soft_wrap=True)
        if not all(p.answers for p in plans):
            raise SettingsError("a model did not answer; start its server, or correct its base_url, model or api_key_env")
        elsewhere = executor if executor != "processes" else None
        options = [*(("--set", change) for change in overrides or []), ("--until", until), ("--executor", elsewhere)]
        again = [word for option, value in [*options, ("--address", address)] if value for word in (option, value)]
        command = shlex.join(["r2v", "run", str(settings), "--out", str(out), *again])
        console.print(f"next     {command}", highlight=False, markup=False, soft_wrap=True)
        return
    needing = {"fit"} if not effective.trains else set(names) - {"collect", "perturb", "report"}
    pending = {stage.name for stage in wanted if not (RunFolder(out).of(stage.name) / MANIFEST).exists()}
    if needing & pending and find_spec("torch") is None:  # said now, not after hours of collecting
        raise ModuleNotFoundError("this run trains or fits", name="torch")
    run_stages(wanted, effective, out, console, choice)
    if until is None:
        finished = RunFolder(out)
        console.print(summary(finished.results()))
        console.print(f"\nreport   {finished.of('report') / 'report.html'}", highlight=False)
        console.print(f"numbers  {finished.of('evaluate') / 'results.json'}", highlight=False)
        console.print(f"next     r2v evaluate {out} --fresh-tasks 300 --seed 1 --out {out}-fresh", highlight=False)


@cli.command(rich_help_panel="Runs")
def evaluate(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    fresh_tasks: Annotated[int, typer.Option(min=2, help="How many new tasks to generate.")],
    out: Annotated[Path, typer.Option(help="Folder for results.json and report.html.")],
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Seed of the new tasks and of their perturbation seeds.")
    ] = 1,
    executor: Executor = "processes",
    address: Address = None,
) -> None:
    """Play a finished run on new tasks under perturbation seeds that were never used: nobody tuned on those."""
    from rich.console import Console

    from r2v.pipeline.stages.evaluate import evaluate_fresh
    from r2v.report.page import write_report
    from r2v.report.tables import summary
    from r2v.runtime.executor import ExecutorChoice

    choice, console = ExecutorChoice(executor, address), Console()
    evaluate_fresh(run_folder, out, fresh_tasks, seed, console, choice)
    results = read_json(out / "results.json")
    write_report(results, read_episodes(out / "episodes.parquet"), out, title=f"{run_folder.name}, fresh tasks")
    console.print(summary(results))
    console.print(f"\nreport   {out / 'report.html'}\nnumbers  {out / 'results.json'}", highlight=False)


@cli.command(rich_help_panel="Runs")
def certify(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    max_failure: Annotated[
        float | None, typer.Option(min=0, max=1, help="Largest failure rate that may be certified: 0.1 if not given.")
    ] = None,
    delta: Annotated[float, typer.Option(min=1e-6, max=0.5, help="Probability with which it may be wrong.")] = 0.1,
    cvar: Annotated[
        float | None,
        typer.Option(min=1e-6, max=1, help="CVaR: bound it in this worst share of the groups of episodes, not in all."),
    ] = None,
    relative: Annotated[
        float | None,
        typer.Option(min=0.01, max=1, help="Instead of --max-failure: above this share of the teacher's success."),
    ] = None,
    router: Annotated[str, typer.Option(help="Whose thresholds are tried.")] = "r2v",
    fresh_tasks: Annotated[int, typer.Option(min=2, help="How many new tasks to play.")] = 300,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the new tasks.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Certificate file; RUN/certificate.json if not given.")] = None,
    verify: Annotated[
        Path | None, typer.Option(help="Play nothing: check that this certificate was made for this run, and print it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON line.")] = False,
    executor: Executor = "processes",
    address: Address = None,
) -> None:
    """Prove on new tasks that a threshold keeps the failure rate below a bound, or the success above a share of the
    teacher's (Learn-then-Test), and say which is cheapest.

    A threshold may be proven only as far as the tasks allow: ask for a bound that leaves room above the teacher's own
    failure rate. Each try at other tasks or targets until one succeeds makes the proof worth less: decide first, then run.
    """
    if max_failure is not None and relative is not None:
        raise typer.BadParameter("--max-failure and --relative are two bounds; give one of them")
    from rich.console import Console

    from r2v.evaluation.certificate import Target, load_certificate, read_certificate
    from r2v.pipeline.run_folder import RunFolder
    from r2v.pipeline.runner import study
    from r2v.runtime.executor import ExecutorChoice
    from r2v.studies.certify import certify as make
    from r2v.studies.certify import describe, identity

    choice = ExecutorChoice(executor, address)
    RunFolder(run_folder).finished("collect", "clone", "prefer", "fit")
    console, path = Console(), verify or out or run_folder / "certificate.json"
    with study(run_folder, run_folder / "certify", "certify", console, choice) as ctx:
        if verify is not None:
            certificate = load_certificate(verify, identity(ctx, read_certificate(verify).router))
        else:
            bound = 0.1 if max_failure is None and relative is None else max_failure
            target = Target(bound, delta, cvar, relative)
            certificate = make(ctx, router, target, tasks=fresh_tasks, seed=seed)
            certificate.save(path)
    console.print(describe(certificate), highlight=False)
    console.print(f"\ncertificate  {path}", highlight=False)
    if as_json:
        facts = {"threshold": certificate.threshold, "calls_per_episode": certificate.calls_per_episode}
        typer.echo(json.dumps({**facts, **asdict(certificate)}))


@cli.command(rich_help_panel="Runs")
def ablate(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="A table, repeatable: features, closed, objective, labels, unseen, "
            "cvar, routes, consistency or k; all if not given."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the tables; RUN/ablation[-TABLE...] if not given.")] = None,
    executor: Executor = "processes",
    address: Address = None,
) -> None:
    """Make the paper's ablation tables on a finished run: closed loop and replay side by side, next to the paper's figures.

    Some minutes on two cores: about 50 router fits, four preference trainings if `prefer.enabled`, and all variants played
    on the test tasks. A killed one resumes.
    """
    from rich.console import Console

    from r2v.pipeline.run_folder import RunFolder
    from r2v.pipeline.runner import PARTIAL, study
    from r2v.report.ablation import write_ablation
    from r2v.runtime.executor import ExecutorChoice
    from r2v.studies.ablate import ablate as make
    from r2v.studies.ablate import fingerprint
    from r2v.studies.ablation_plan import TABLES

    choice = ExecutorChoice(executor, address)
    wanted = list(dict.fromkeys(only or ()))
    run, folder = RunFolder(run_folder), out or run_folder / "-".join(["ablation", *wanted])
    if unknown := [name for name in wanted if name not in TABLES]:
        raise SettingsError(f"no table is called {', '.join(unknown)}; there are {', '.join(TABLES)}")
    if not run.settings.trains:
        raise StageError(f"the SLM of {run_folder} is a chat endpoint; an ablation needs one that was trained in the run")
    if "consistency" in wanted and not run.settings.prefer.enabled:
        raise StageError(f"the table consistency needs a run with prefer: {{enabled: true}}, which {run_folder} has not")
    there = {path.name for path in folder.iterdir()} - {".lock"} if folder.is_dir() else set()
    if there and not there & {PARTIAL, "ablation.json"}:  # a `partial` that is not its own is refused by `study`
        raise StageError(f"{folder} exists and is no folder of `r2v ablate`; choose another --out")
    run.finished("collect", "perturb", "clone", "propose", "prefer", "rollout", "fit")
    console = Console()
    with study(run_folder, folder, "ablate", console, choice, fingerprint=fingerprint(run)) as ctx:
        tables = make(ctx, wanted or TABLES)
        write_json(folder / "ablation.json", tables)
        page = write_ablation(tables, run.results(), folder)
    console.print(f"page     {page}\nnumbers  {folder / 'ablation.json'}", highlight=False)


@cli.command(rich_help_panel="Runs")
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs, the reference first.")],
    router: Annotated[str, typer.Option(help="The router that is compared.")] = "r2v",
    out: Annotated[Path | None, typer.Option(help="Folder for comparison.html and comparison.json.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON line.")] = False,
) -> None:
    """Show finished runs side by side, one a backbone: the SLM alone, routed, the teacher, with intervals and frontiers."""
    from rich.console import Console

    from r2v.pipeline.run_folder import RunFolder
    from r2v.report.comparison import table, write_comparison
    from r2v.studies.compare import compare as make

    comparison, console = make([RunFolder(run) for run in runs], router), Console()
    console.print(table(comparison))
    if not comparison["same_tasks"]:
        console.print(f"Their rows are not paired, because the runs differ in {comparison['differs']}.", highlight=False)
    if out is not None:
        console.print(f"\npage     {write_comparison(comparison, out)}", highlight=False)
        console.print(f"numbers  {out / 'comparison.json'}", highlight=False)
    if as_json:
        typer.echo(json.dumps(comparison))


@cli.command(rich_help_panel="Runs")
def explain(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run or evaluation.")],
    episode: Annotated[
        str | None, typer.Argument(help="Task id (or the end of one), optionally with @SEED; leave out for a list.")
    ] = None,
    router: Annotated[str, typer.Option(help="Which router's episode.")] = "r2v",
) -> None:
    """Print the decisions of one episode: what was seen, proposed, scored, decided, and what came of it."""
    from rich.console import Console

    from r2v.pipeline.run_folder import folder_of
    from r2v.report.explain import explanation, listing

    if not run_folder.exists():
        raise SettingsError(f"{run_folder} does not exist; give the folder of a run, or of `r2v evaluate`")
    inside = run_folder / folder_of("evaluate") / "episodes.parquet"
    episodes = read_episodes(inside if inside.exists() else run_folder / "episodes.parquet")
    mine = [e for e in episodes if e.agent == router]
    if not mine:
        raise SettingsError(f"no episodes of router {router}; there are {', '.join(sorted({e.agent for e in episodes}))}")
    console = Console()
    if episode is None:
        table = listing(mine)
        # Wider than the terminal rather than with names cut off, which could not be given back.
        wide = Console(width=10_000).measure(table).maximum
        (console if wide <= console.width else Console(width=wide)).print(table)
        return
    name, _, z = episode.partition("@")
    found = [e for e in mine if e.task.id.endswith(name) and (not z or str(e.seed) == z)]
    if not found:
        raise SettingsError(f"no episode {episode} of router {router}; `r2v explain {run_folder}` lists them")
    found = [e for e in found if e.task.id == name] or found
    if len(tasks := dict.fromkeys(e.task.id for e in found)) > 1:
        raise SettingsError(
            f"{len(tasks)} tasks end in {name}: {', '.join(list(tasks)[:5])}; write more of the one you mean"
        )
    console.print(explanation(found[0]))
    if others := ", ".join(f"@{e.seed}" for e in found[1:]):
        console.print(f"\nof the same task also {others}", highlight=False)


@cli.command(rich_help_panel="Runs")
def cassette(
    path: Annotated[Path, typer.Argument(metavar="CASSETTE", help="As in the settings: without a suffix.")],
) -> None:
    """Pack the answers of chat models that a run has recorded, so that others play it again without the models."""
    from r2v.clients.cassette import Cassette, packed

    count = Cassette(path).pack()
    typer.echo(
        f"{count} questions with their answers in {packed(path)}\nnext     `r2v run` with the same settings beside this file"
    )


@cli.command(rich_help_panel="Runs")
def stages() -> None:
    """The stages of a run, with what each reads."""
    from r2v.pipeline.run_folder import folder_of
    from r2v.pipeline.stages import STAGES

    for stage in STAGES:
        reads = f"  (reads {', '.join(stage.reads)})" if stage.reads else ""
        typer.echo(f"{folder_of(stage.name):<12} {stage.does}{reads}")
