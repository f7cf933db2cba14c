"""What the commands share. A command imports what it runs when it runs, so that `r2v serve` loads no pipeline."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from r2v.core.errors import ArtifactError, SettingsError
from r2v.core.types import Episode
from r2v.logs import AUTO, BUILT_IN

if TYPE_CHECKING:
    from r2v.logs.records import LogFormat


class Stopped(Exception):
    """A command was stopped by Ctrl-C. Typer itself would end with a status and say nothing."""

    def __init__(self, command: str) -> None:
        super().__init__(command)
        self.command = command


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Stopped(ctx.invoked_subcommand or "") from None


cli = typer.Typer(
    cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False, help="Step-level routing for LLM agents."
)

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""A wrong command line, in the words of click: a package of its own, or part of newer versions of typer."""
MAX_FIT_SEED = 2**31 - 1
"""Of folds and fits: scikit-learn takes no larger one."""
MAX_SEED = 999_999
"""So that the perturbation seeds of evaluations and of certificates never meet."""
Set = Annotated[list[str] | None, typer.Option("--set", help="Change one setting (repeatable), e.g. --set seed=2.")]
Executor = Annotated[
    str, typer.Option(help="Where episodes are played: processes of this machine, or ray (pip install 'r2v\\[ray]').")
]
Address = Annotated[
    str | None,
    typer.Option(help="HOST:PORT of a Ray cluster; without it, --executor ray starts one on this machine for the command."),
]
Logs = Annotated[Path, typer.Argument(help="Ledger, Parquet, JSON, JSONL (.gz, .xz) or a folder of files.")]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        help=f"{AUTO} (by looking at the logs), {', '.join(BUILT_IN)}; or your own, package.module:Thing.",
        autocompletion=lambda: _described(),
    ),
]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        help="In place of a format, for JSON of your own: where each part of a record lies, e.g. --map task=info.id --map "
        "success=ok --map model=llm --map messages=chat. Keys: task, success, model, group; messages, tools; or goal, steps "
        "and, in a step, action, observation, tool, arguments.",
    ),
]
Outcomes = Annotated[
    Path | None, typer.Option(help="JSON with outcomes by task or MODEL/TASK, or a SWE-bench report, for logs without any.")
]

MostSteps = Annotated[
    int,
    typer.Option("--most-steps", min=1, help="Of a ledger with more steps, the sessions of some tasks are read: so many."),
]
MOST_STEPS = 100_000
"""Of a ledger: minutes of reading and fitting, and some GB of memory."""


def usage_line(error: Any) -> str | None:
    """What a `UsageError` says is wrong, and how to see what is right; None where there was nothing, and help is printed."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return None
    command = "r2v" if error.ctx is None else error.ctx.command_path
    return f"{error.format_message().rstrip('.')}; `{command} --help` shows what it takes"


def given(ctx: typer.Context, *options: str) -> str:
    """Those of the options (by the names of their parameters) that the command line gave: "--rounds, --share"."""
    sources = {name: ctx.get_parameter_source(name) for name in options}
    named = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    return ", ".join(f"--no-{name}" if ctx.params[name] is False else f"--{name}" for name in named)


def _described() -> list[tuple[str, str]]:
    """(name, what it is) of every log format, for the shell's completion."""
    from r2v.logs.importing import log_formats

    return [(AUTO, "by looking at the logs"), *((name, found.description) for name, found in log_formats())]


@dataclass(frozen=True)
class Imported:
    """What a command on logs works with."""

    episodes: list[Episode]
    unknown: int
    """Trajectories left out because their outcome is unknown."""
    kind: str
    """The format as it was named, or found."""
    verifier: str | None
    """What scored the steps, where that is known."""
    share: float = 1.0
    """Of the steps of a ledger that were read."""


def imported(
    logs: Path,
    kind: str,
    outcomes: Path | None,
    mapping: Sequence[str] | None = None,
    *,
    keep_unknown: bool = False,
    most_steps: int | None = None,
) -> Imported:
    """Read logs in the format of that name, in the one that `auto` finds, or by a mapping.

    A format that was found is printed on standard error, and so is that a part of a ledger is read, because it has more
    than `most_steps`. Raises ArtifactError, SettingsError.
    """
    from rich.console import Console

    from r2v.logs.detection import detect
    from r2v.logs.importing import import_logs, log_format
    from r2v.logs.ledger import LedgerFormat, steps_of
    from r2v.logs.mapped import mapped, mapping_of
    from r2v.runtime.progress import progress

    if mapping:
        if kind != AUTO:
            raise SettingsError(f"--map takes the place of --format {kind}; leave out one of them")
        source: LogFormat = mapped(mapping_of(mapping))
        kind = source.name
    else:
        if kind == AUTO:
            kind = detect(logs)
            typer.echo(f"format   {kind}", err=True)
        source = log_format(kind)
    share = 1.0
    if isinstance(source, LedgerFormat) and most_steps is not None and (steps := steps_of(logs) or 0) > most_steps:
        share = most_steps / steps
        typer.echo(f"sample   of {steps:,} steps {most_steps:,} are read, of some tasks (--most-steps)", err=True)
        source = replace(source, most_steps=most_steps)
    with progress(Console(stderr=True), "read") as report:
        episodes, unknown = import_logs(logs, source, outcomes, keep_unknown=keep_unknown, report=report)
    if empty := sum(not episode.steps for episode in episodes):
        typer.echo(f"no steps {counted(empty, 'session')} without a message of the assistant", err=True)
    return Imported(episodes, unknown, kind, source.verifier, share)


def counted(number: int, what: str) -> str:
    """ "1 session", "2 sessions"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


@contextmanager
def out_folder(out: Path) -> Iterator[None]:
    """Make a folder before the work whose results it gets, so that one that cannot be is reported first.

    What is empty at the end is removed again. Raises OSError.
    """
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
        yield
    finally:
        with suppress(OSError):
            for folder in new:
                folder.rmdir()


def check_parquet_out(out: Path, source: Path) -> None:
    """Raise SettingsError where episodes written to `out` would take the place of anything but episodes of before."""
    if out.suffix != ".parquet":
        raise SettingsError(f"{out} is not the name of a Parquet file, as episodes.parquet; choose another path")
    if not out.is_file():
        return
    if source.exists() and out.samefile(source):
        raise SettingsError(f"{out} is what is read; choose another path")
    from r2v.runtime.parquet import marks_of

    try:
        ours = b"r2v_schema" in marks_of(out)
    except ArtifactError:
        ours = False
    if not ours:
        raise SettingsError(f"{out} exists and holds no episodes of r2v; choose another path")


def gateway_module() -> ModuleType:
    """The gateway's module; it needs the extra `serve`."""
    gc.disable()  # what imports make stays, and looking through it for garbage is a tenth of the start
    try:
        from r2v.gateway import serve as module
    except ModuleNotFoundError as error:
        raise SettingsError(f"{error.name} is not installed; pip install 'r2v[serve]'") from None
    finally:
        gc.freeze()
        gc.enable()
    return module
