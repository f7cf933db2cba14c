"""What the commands share. A command imports what it runs when it runs, so that `r2v serve` loads no pipeline."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from r2v.core.errors import SettingsError
from r2v.core.types import Episode

cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Step-level routing for LLM agents.")

MAX_SEED = 999_999
"""So that the perturbation seeds of evaluations and of certificates never meet."""
Set = Annotated[list[str] | None, typer.Option("--set", help="Change one setting, e.g. --set clone.steps=500.")]
Logs = Annotated[Path, typer.Argument(help="Ledger, Parquet, JSON, JSONL (.gz, .xz) or a folder of files.")]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        help="ledger, openai-jsonl, anthropic-jsonl, mini-swe-agent, tau-ctx, atif, terminal-log, terminalbench, "
        "knowagent-alfworld, mint.",
    ),
]
Outcomes = Annotated[
    Path | None, typer.Option(help="JSON with outcomes by task, or a SWE-ctx report, for logs that hold none.")
]


def imported(logs: Path, kind: str, outcomes: Path | None) -> tuple[list[Episode], int]:
    """(episodes, trajectories left out because their outcome is unknown)."""
    gateway_module()
    from r2v.logs.importing import FORMATS, import_logs

    if kind not in FORMATS:
        raise SettingsError(f"--format {kind}: the formats are {', '.join(FORMATS)}")
    return import_logs(logs, kind, outcomes)


def gateway_module() -> ModuleType:
    """The gateway's module; it needs the extra `serve`."""
    try:
        from r2v.gateway import serve as module
    except ModuleNotFoundError as error:
        raise SettingsError(f"{error.name} is not installed; pip install 'r2v[serve]'") from None
    return module
