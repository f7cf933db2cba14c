"""Commands on recorded episodes and solutions: no environment is played."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from r2v.cli.common import (
    MAX_FIT_SEED,
    MOST_STEPS,
    Format,
    Imported,
    Logs,
    Map,
    MostSteps,
    Outcomes,
    check_parquet_out,
    cli,
    counted,
    imported,
    out_folder,
)
from r2v.core.errors import ArtifactError, SettingsError
from r2v.core.features import View
from r2v.logs import AUTO
from r2v.runtime.settings import dump
from r2v.runtime.store import write_episodes, write_json, write_text

if TYPE_CHECKING:
    from r2v.clients.settings import PriceSettings
    from r2v.pipeline.settings import LogsSettings
    from r2v.studies.advise import Advice
    from r2v.verdicts.base import Verdict


SAMPLE = 500
"""Sessions on which verdicts are measured that nobody has named."""
Slm = Annotated[
    list[str] | None,
    typer.Option("--slm", help="A model of the logs that counts as the SLM (repeatable); all but the teacher."),
]
Teacher = Annotated[
    str | None,
    typer.Option(help="The stronger model of the logs; the one that solves most of the tasks that it shares with others."),
]
Prices = Annotated[
    Path | None,
    typer.Option(help="YAML: model (or slm, teacher): {input: , output: }, in USD per million tokens."),
]
Share = Annotated[
    float | None,
    typer.Option(min=0.001, max=0.999, help="Share to escalate; the one that gains most on other tasks."),
]
Distrust = Annotated[
    bool,
    typer.Option(
        "--distrust-results",
        help="Others write what your tools return: it can then ask for the teacher, but hardly talk the router out of it. "
        "The router knows less.",
    ),
]
VerdictNames = Annotated[
    list[str] | None,
    typer.Option(
        "--verdict",
        help="What tells right from wrong while a session runs (repeatable): tests, reward, ... or a settings file with "
        "`verdicts`. It is read at each step, for the router too, and is the outcome of sessions that have none.",
    ),
]


@cli.command(rich_help_panel="Logs and solutions")
def advise(
    logs: Logs,
    out: Annotated[Path, typer.Option(help="Folder for advice.html and advice.json.")] = Path("advice"),
    kind: Format = AUTO,
    mapping: Map = None,
    outcomes: Outcomes = None,
    prices: Prices = None,
    verdict: VerdictNames = None,
    slm: Slm = None,
    teacher: Teacher = None,
    share: Share = None,
    distrust_results: Distrust = False,
    most_steps: MostSteps = MOST_STEPS,
    seed: Annotated[int, typer.Option(min=0, max=MAX_FIT_SEED, help="Seed of the folds, the fits and the intervals.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON line.")] = False,
) -> None:
    """Say what routing would bring on your logs, in money: whether it beats random escalation, at which share, at what risk.

    Reads the gateway's ledger and any log; says something useful for ten sessions, and what is missing.
    """
    with out_folder(out):
        priced = _prices(prices)  # before minutes of reading
        read = imported(logs, kind, outcomes, mapping, keep_unknown=True, most_steps=most_steps)
        advice = _advised(read, logs, priced, slm, teacher, share, seed, verdict, distrust=distrust_results)
        _show(advice.facts, out, _title(logs))
        if as_json:
            typer.echo(json.dumps(advice.facts))


@cli.command(rich_help_panel="Logs and solutions")
def fit(
    logs: Logs,
    out: Annotated[Path, typer.Option(help="Folder for the router.")],
    kind: Format = AUTO,
    mapping: Map = None,
    outcomes: Outcomes = None,
    prices: Prices = None,
    verdict: VerdictNames = None,
    slm: Slm = None,
    teacher: Teacher = None,
    share: Share = None,
    asked_share: Annotated[float | None, typer.Option(hidden=True, min=0.001, max=0.999, help="As --share.")] = None,
    distrust_results: Distrust = False,
    unproven: Annotated[
        bool,
        typer.Option(
            "--unproven", help="Write a router also where the evidence does not show that it beats random escalation."
        ),
    ] = False,
    most_steps: MostSteps = MOST_STEPS,
    seed: Annotated[int, typer.Option(min=0, max=MAX_FIT_SEED, help="Seed of the folds and of the fit.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON line.")] = False,
) -> None:
    """Fit a router on recorded episodes alone: your own traffic, or trajectories of other programs.

    Measures it first, as `r2v advise` does. Where it does not beat random escalation on tasks left out, no router is
    written, and the status is 2.
    """
    asked = asked_share if share is None else share
    with out_folder(out):
        priced = _prices(prices)
        read = imported(logs, kind, outcomes, mapping, keep_unknown=True, most_steps=most_steps)
        advice = _advised(read, logs, priced, slm, teacher, asked, seed, verdict, distrust=distrust_results)
        facts = _fit(advice, read, out, unproven=unproven, seed=seed)
        if as_json:
            typer.echo(json.dumps(facts))
        if facts["router"] is None:
            raise typer.Exit(2)


@cli.command(rich_help_panel="Logs and solutions")
def inspect(
    logs: Logs,
    out: Annotated[Path, typer.Option(help="Folder for inspect.html and inspect.json.")],
    kind: Format = AUTO,
    mapping: Map = None,
    outcomes: Outcomes = None,
    view: Annotated[
        View, typer.Option(help="What of each step is looked at; `pseudo_entropy` needs several candidates a step.")
    ] = "full",
    most_steps: MostSteps = MOST_STEPS,
    seed: Annotated[int, typer.Option(min=0, max=MAX_FIT_SEED, help="Seed of the folds, the fits and the intervals.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON line.")] = False,
) -> None:
    """Show where recorded episodes go wrong: the risk of each step, what it is worth, and the step at which each failed.

    Every risk is from a model that never saw the step's task. Some minutes for 100,000 steps.
    """
    with out_folder(out):
        read = imported(logs, kind, outcomes, mapping, most_steps=most_steps)
        _inspect(read, out, title=_title(logs), view=view, seed=seed, as_json=as_json)


@cli.command(rich_help_panel="Logs and solutions")
def clone(
    logs: Logs,
    model: Annotated[str, typer.Option(help="Folder or hub id of an instruct model to start from.")],
    out: Annotated[Path, typer.Option(help="Folder for the model and its report.")],
    kind: Format = AUTO,
    mapping: Map = None,
    outcomes: Outcomes = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 300,
    lora: Annotated[bool, typer.Option("--lora", help="Train low-rank adapters, merged at the end: less memory.")] = False,
    learning_rate: Annotated[float | None, typer.Option(min=1e-12, help="2e-5, or 2e-4 with --lora, if not given.")] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_FIT_SEED, help="Seed of the adapters and of the order of the episodes.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON line.")] = False,
) -> None:
    """Train a model on the successful episodes of logs or of an unredacted ledger: what the assistant wrote, calls included.

    A conversation is read in the model's chat template, whole: one that is longer than the model reads is left out.
    Killed, the same command goes on from its last checkpoint. On several GPUs:
    accelerate launch --multi_gpu $(which r2v) clone ...
    """
    from rich.console import Console

    from r2v.learning.clone import clone as train
    from r2v.learning.ranks import joined
    from r2v.learning.settings import CloneSettings, LoraSettings, ModelSettings
    from r2v.runtime.progress import progress

    with out_folder(out):  # before minutes of reading
        read = imported(logs, kind, outcomes, mapping)
    rate = learning_rate or (2e-4 if lora else 2e-5)
    settings = CloneSettings(steps=steps, learning_rate=rate, warmup_steps=steps // 10)
    start = ModelSettings(path=model, lora=LoraSettings() if lora else None)
    partial = out / "partial"
    begun = partial / hashlib.sha256(msgspec.json.encode((read.episodes, start, settings, seed))).hexdigest()[:16]
    with joined() as ranks:
        if begun.exists() and ranks.first:
            typer.echo(f"goes on  from the checkpoint in {begun}", err=True)
        with progress(Console(stderr=True, quiet=not ranks.first), "clone") as report:
            found = train(
                read.episodes, start, settings, out / "model", checkpoints=begun, seed=seed, progress=report, ranks=ranks
            )
    if not ranks.first:
        return
    facts = {
        **asdict(found),
        "unknown_outcome": read.unknown,
        "format": read.kind,
        "model": model,
        "lora": lora,
        "seed": seed,
    }
    write_json(out / "report.json", {**facts, "settings": msgspec.to_builtins(settings)})
    for path in partial.glob("[0-9a-f]" * 16):  # tries with other options, too
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):  # there is none, or it holds something else
        partial.rmdir()
    left_out = {"failed": found.left_out, "have no outcome": read.unknown, **found.unusable}
    typer.echo(f"{found.episodes} successful episodes learned from, {found.conversations} of them conversations")
    for reason, count in left_out.items():
        if count:
            typer.echo(f"left out  {count} {reason}")
    typer.echo(
        f"loss      {found.first_loss:.3f} at first, {found.final_loss:.3f} over the last tenth of {found.steps} steps"
    )
    typer.echo(f"model     {out / 'model'}\nreport    {out / 'report.json'}")
    if found.conversations:
        typer.echo(f"next      vllm serve {out / 'model'} --enable-auto-tool-choice --tool-call-parser PARSER-OF-THE-MODEL")
        typer.echo("          (r2v serve-model applies no chat template), then it is `models: {slm: ...}` of the gateway")
    else:
        typer.echo(f"next      r2v serve-model {out / 'model'}")
    if as_json:
        typer.echo(json.dumps(facts))


@cli.command("train-verifier", rich_help_panel="Logs and solutions")
def train_verifier(
    logs: Logs,
    out: Annotated[Path, typer.Option(help="Folder of the verifier; with --judge, of its calibration.json.")],
    kind: Format = AUTO,
    mapping: Map = None,
    outcomes: Outcomes = None,
    decay: Annotated[
        float,
        typer.Option(
            "--lambda", min=0, max=1, help="Of the targets: 1 the episode's outcome, less leans on later steps' values."
        ),
    ] = 1.0,
    judge: Annotated[
        Path | None, typer.Option(help="Calibrate a judge instead: YAML with its settings, e.g. `model: {base_url: ...}`.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps that the judge is asked about at most, one an episode.")] = 300,
    isotonic: Annotated[bool, typer.Option("--isotonic", help="A monotone step function instead of Platt's curve.")] = False,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_FIT_SEED, help="Seed of the folds, and of the steps that are drawn.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON line.")] = False,
) -> None:
    """Make a verifier that is a model from recorded episodes: learn a process reward model, or calibrate a judge."""
    from r2v.runtime.settings import load
    from r2v.studies.train_verifier import calibrate_judge, train_learned
    from r2v.verifiers.judge import JudgeVerifier

    asked = None if judge is None else load(judge, JudgeVerifier, hint="it holds e.g. `model: {base_url: ..., model: ...}`")
    with out_folder(out):
        episodes = imported(logs, kind, outcomes, mapping).episodes
        if asked is None:
            facts = train_learned(episodes, out, decay=decay, seed=seed)
            worth = facts["of_steps_on_tasks_left_out"]
            made = f"{facts['steps']} steps of {facts['episodes']} episodes; of tasks left out AUROC {worth['auroc']:.3f}"
            use = f"verifier: {{kind: learned, path: {out}}}"
        else:
            file = out / "calibration.json"
            how: Any = "isotonic" if isotonic else "platt"
            facts = calibrate_judge(asked, episodes, file, steps=steps, how=how, seed=seed)
            made = f"{facts['steps']} steps asked about for ${facts['usd'] or 0:.4f}; AUROC {facts['auroc']:.3f}"
            use = f"verifier: {{kind: judge, calibration: {file}, ...}} with the other settings of {judge}"
    typer.echo(f"verifier {out}  ({made})\nuse      {use}")
    if as_json:
        typer.echo(json.dumps(facts))


@cli.command("import", rich_help_panel="Logs and solutions")
def import_episodes(
    logs: Annotated[Path, typer.Argument(help="JSON, JSONL (.gz, .xz) or a folder of files.")],
    out: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    kind: Format = AUTO,
    mapping: Map = None,
    outcomes: Outcomes = None,
) -> None:
    """Write trajectories of other programs as episodes (Parquet), which `r2v fit` and `r2v inspect` take as they are."""
    check_parquet_out(out, logs)
    read = imported(logs, kind, outcomes, mapping)
    if not read.episodes:
        raise ArtifactError(f"{logs} has no episode with an outcome ({read.unknown} without one); give them with --outcomes")
    write_episodes(out, read.episodes)
    typer.echo(f"{counted(len(read.episodes), 'episode')}, {read.unknown} without an outcome left out\nwritten  {out}")
    typer.echo(f"next     r2v inspect {out} --out DIR, or r2v fit {out} --out DIR")


@cli.command("check-solutions", rich_help_panel="Logs and solutions")
def check_solutions(
    problems: Annotated[Path, typer.Argument(help="HumanEval, or HumanEval+ in either format (.jsonl, .jsonl.gz).")],
    samples: Annotated[
        Path | None, typer.Option(help="JSON lines with task_id and solution or completion; else the canonical solutions.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Solutions run at once.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON line.")] = False,
) -> None:
    """Run solutions in the sandbox and say which are right: on all base and plus inputs, compared outside the sandbox."""
    from rich.console import Console

    from r2v.runtime import sandbox
    from r2v.runtime.progress import progress
    from r2v.studies.check_solutions import check_solutions as check_all
    from r2v.studies.check_solutions import summary

    console = Console()
    console.print(f"sandbox  {', '.join(sandbox.layers())}", highlight=False)
    with progress(console, "check") as report:
        checked = check_all(problems, samples, report, workers=workers)
    facts = summary(checked, samples is None)
    for c in checked:
        if not c.verdict.passed:
            base = "base passes, " if c.verdict.base else ""
            console.print(f"{c.task_id} #{c.sample}: {base}{c.verdict.problem}", highlight=False, markup=False)
    what = "canonical solutions" if samples is None else f"problems have a right sample (of {len(checked)} samples"
    right = "" if samples is None else f", {facts['samples_passed']} right)"
    console.print(f"{facts['passed']} of {facts['problems']} {what}{right}", highlight=False)
    if as_json:
        typer.echo(json.dumps({**facts, "layers": sandbox.layers()}))


def run_logs(settings: LogsSettings, out: Path) -> None:
    """`r2v run` of a file with `logs`: inspect, advise, then fit."""
    logs = Path(settings.logs.path)
    outcomes = None if settings.logs.outcomes is None else Path(settings.logs.outcomes)
    with out_folder(out):
        read = imported(logs, settings.logs.format, outcomes)
        write_text(out / "settings.yaml", dump(settings))
        _inspect(read, out / "inspect", title=_title(logs), view=settings.view, seed=settings.seed, as_json=False)
        advice = _advised(read, logs, None, None, None, settings.asked_share, settings.seed)
        _show(advice.facts, out / "advice", _title(logs))
        _fit(advice, read, out / "router", unproven=settings.unproven, seed=settings.seed)


def _title(logs: Path) -> str:
    return f"{logs.resolve().parent.name}/{logs.name}"


def _advised(
    read: Imported,
    logs: Path,
    prices: tuple[Path, Mapping[str, PriceSettings]] | None,
    slms: list[str] | None,
    teacher: str | None,
    share: float | None,
    seed: int, names: Sequence[str] | None = None, *, distrust: bool = False,
) -> Advice:  # fmt: skip
    try:
        from r2v.studies.advise import advise
    except ModuleNotFoundError as error:
        raise SettingsError(f"{error.name} is not installed; pip install 'r2v[fit]'") from None
    from rich.console import Console

    from r2v.logs.ledger import days_of
    from r2v.runtime.progress import progress
    from r2v.studies.costs import Costs, nearest_first, unknown_prices
    from r2v.studies.verdict_report import verdict_report, with_verdicts

    named = {episode.agent for episode in read.episodes}
    for name in (*(slms or ()), *([teacher] if teacher else ())):
        if name not in named:
            raise SettingsError(f"{logs} has no model {name!r}; it has {nearest_first(name, named)}")
    if teacher in (slms or ()):
        raise SettingsError(f"--slm and --teacher both name {teacher}; name two models")
    days = days_of(logs) if read.kind == "ledger" else None
    for line in () if prices is None else unknown_prices(prices[1], read.episodes, prices[0]):
        if read.share == 1:
            raise SettingsError(line)
        typer.echo(f"prices   {line} (in the part that is read)", err=True)  # it may be a model of the rest
    costs = Costs({} if prices is None else prices[1], None if days is None else days * read.share)
    verdicts, episodes = _verdicts(names or ()), read.episodes
    sample = episodes if verdicts else episodes[:: -(-len(episodes) // SAMPLE) or 1]
    known = verdict_report(sample, verdicts or _verdicts(("tests", "reward")), seed)
    if verdicts:
        episodes = with_verdicts(episodes, verdicts)
    with progress(Console(stderr=True), "measure") as report:
        advice = advise(
            episodes,
            costs,
            slms=slms or (),
            teacher=teacher,
            share=share,
            distrust_results=distrust,
            seed=seed,
            report=report,
        )
    return replace(advice, facts={**advice.facts, "verdicts": known})


def _prices(path: Path | None) -> tuple[Path, Mapping[str, PriceSettings]] | None:
    """A file of prices, and what it says. Raises SettingsError."""
    from r2v.studies.costs import read_prices

    return None if path is None else (path, read_prices(path))


def _verdicts(names: Sequence[str]) -> tuple[Verdict, ...]:
    """By name, or those that a settings file lists."""
    from r2v.runtime.settings import read
    from r2v.verdicts import parse_verdicts

    listed: list[Any] = []
    for name in names:
        if not name.endswith((".yaml", ".yml")):
            listed.append(name)
            continue
        in_file: Any = read(Path(name), "a file of verdicts holds e.g. `verdicts: [tests]`").get("verdicts")
        parse_verdicts(in_file)  # before lists are joined: it may be anything
        listed += in_file
    return parse_verdicts(listed)


def _show(facts: dict[str, Any], out: Path, title: str) -> None:
    """Print the paragraph and the table, and write the page."""
    from rich.console import Console
    from rich.table import Table

    from r2v.report.advice import chosen_line, page, paragraph, table
    from r2v.studies.verdict_report import verdict_lines

    write_json(out / "advice.json", facts)
    write_text(out / "advice.html", page(facts, title=title))
    if chosen := chosen_line(facts):
        typer.echo(f"stronger {chosen}\n")
    typer.echo(paragraph(facts))
    if lines := table(facts):
        shown = Table(*lines[0], box=None, pad_edge=False)
        for line in lines[1:]:
            shown.add_row(*line)
        typer.echo("")
        Console().print(shown)
    if known := verdict_lines([v for v in facts["verdicts"] if v["covered_episodes"]]):
        typer.echo("\n".join(["", *known]))
    typer.echo(f"\npage     {out / 'advice.html'}\nnumbers  {out / 'advice.json'}")


def _fit(advice: Advice, read: Imported, out: Path, *, unproven: bool, seed: int) -> dict[str, Any]:
    """Write the router and say so; the facts of `fit_logs`."""
    from r2v.report.advice import chosen_line, paragraph, served_line
    from r2v.studies.fit_logs import fit_logs

    facts = fit_logs(advice, out, verifier=read.verifier, unproven=unproven, seed=seed)
    if chosen := chosen_line(facts):
        typer.echo(f"stronger {chosen}\n")
    typer.echo(paragraph(facts))
    if facts["router"] is None:
        if facts["evidence"] is not None:
            anyway = "; --unproven writes it all the same"
        else:
            anyway = f"; --unproven needs evidence, too: {facts['why']}" if unproven else ""
        typer.echo(f"no router written ({facts['verdict']}){anyway}")
    else:
        typer.echo(f"router   {out}{'' if facts['ready'] else '  (unproven)'}\nasks     {served_line(facts)}")
        typer.echo(
            f"next     route: {{router: {out}, mode: shadow}} in the gateway's settings, and no k: the router has its own"
        )
    return {**facts, "format": read.kind}


def _inspect(read: Imported, out: Path, *, title: str, view: View, seed: int, as_json: bool) -> None:
    from r2v.core.errors import StageError
    from r2v.report.inspection import headline, naming, write_inspection
    from r2v.studies.inspect_logs import inspect_logs
    from r2v.studies.localise import locate

    if view == "pseudo_entropy" and all(len(s.choice.candidates) < 2 for e in read.episodes for s in e.steps):
        raise SettingsError("view pseudo_entropy needs several candidates a step; these logs have one: leave it out")
    results: dict[str, Any] = {"format": read.kind, "unknown_outcome": read.unknown}
    try:
        found = inspect_logs(read.episodes, view=view, seed=seed)
    except StageError as error:  # labelled failures are worth a look even where none was solved
        if all(episode.mistake is None for episode in read.episodes):
            raise
        results["localiser"] = locate(read.episodes, seed=seed).results
        write_json(out / "inspect.json", results)
        typer.echo(f"no risks, no page: {error}\n{naming(results['localiser'])}\nnumbers  {out / 'inspect.json'}")
        if as_json:
            typer.echo(json.dumps(results))
        return
    results |= found.results
    write_json(out / "inspect.json", results)
    page = write_inspection(results, read.episodes, found.risks, out, title=f"{title} ({read.kind})", named=found.named)
    typer.echo(f"{headline(results)}\n{naming(results['localiser'])}")
    typer.echo(f"page     {page}\nnumbers  {out / 'inspect.json'}")
    if as_json:
        typer.echo(json.dumps(results))
