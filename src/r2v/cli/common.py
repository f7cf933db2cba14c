"""What the commands share. A command imports what it runs when it runs, so that `r2v serve` loads no pipeline."""

from __future__ import annotations

import gc
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from r2v.core.errors import SettingsError
from r2v.core.types import Episode
from r2v.logs import BUILT_IN
from r2v.runtime import plugins

cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Step-level routing for LLM agents.")

MAX_SEED = 999_999
"""So that the perturbation seeds of evaluations and of certificates never meet."""
Set = Annotated[list[str] | None, typer.Option("--set", help="Change one setting, e.g. --set clone.steps=500.")]
Logs = Annotated[Path, typer.Argument(help="Ledger, Parquet, JSON, JSONL (.gz, .xz) or a folder of files.")]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        help=f"{', '.join(BUILT_IN)}; or your own, package.module:Thing.",
        autocompletion=lambda: _described(),
    ),
]
Outcomes = Annotated[
    Path | None, typer.Option(help="JSON with outcomes by task, or a SWE-bench report, for logs that hold none.")
]


def _described() -> list[tuple[str, str]]:
    """(name, what it is) of every log format, for the shell's completion."""
    from r2v.logs.importing import log_format

    return [(name, log_format(name).description) for name in plugins.names("log_formats", BUILT_IN)]


def imported(logs: Path, kind: str, outcomes: Path | None) -> tuple[list[Episode], int]:
    """(episodes, trajectories left out because their outcome is unknown)."""
    from r2v.logs.importing import import_logs

    return import_logs(logs, kind, outcomes)


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
