"""The command `r2v`. Every known problem ends in one line and exit status 1, a wrong command line in one line and 2."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

try:
    import typer

    from r2v import __version__

    # Each adds its commands; help lists them in this order.
    from r2v.cli import runs, improve  # noqa: F401  # isort: skip
    from r2v.cli import bench, gateway, keys, logs  # noqa: F401
    from r2v.cli.common import Stopped, UsageError, cli, usage_line
    from r2v.cli.extras import missing
    from r2v.core.errors import R2VError
except KeyboardInterrupt:  # they take a second
    raise SystemExit(130) from None

LONGEST = 1_000
"""Characters of an error: it may quote a file."""
SERVES = {"serve", "serve-model", "launch"}
RESUMES = {"run", "evaluate", "certify", "ablate", "improve", "clone"}
WRITES_LAST = {"advise", "fit", "inspect", "import", "export", "train-verifier", "compare"}
UNWRITABLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG,
}  # fmt: skip
"""Of a path that was named on the command line."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"r2v {__version__}")
        raise typer.Exit


@cli.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def app() -> None:
    """Entry point: known errors become one line."""
    try:
        raise SystemExit(cli(prog_name="r2v", standalone_mode=False))
    except UsageError as error:
        if (line := usage_line(error)) is None:
            raise SystemExit(2) from None
        _fail(line, status=2)
    except R2VError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if (error.name or "r2v").split(".")[0] == "r2v":
            raise
        _fail(missing(error.name or "", sys.argv[1:]) or f"{error}, which is not installed")
    except MemoryError:
        _fail("a file holds more than fits into this machine's memory; give a smaller one")
    except (Stopped, KeyboardInterrupt) as stopped:
        if (line := _stopped(str(stopped))) is None:
            raise SystemExit(130) from None
        _fail(line, status=130)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            _fail(f"the disk is full ({error.filename or 'while writing'}); free some space and run the same command again")
        if error.errno in UNWRITABLE and error.filename is not None:
            _fail(f"{error.filename} cannot be opened or written ({os.strerror(error.errno)}); choose another path")
        raise


def _stopped(command: str) -> str | None:
    """What Ctrl-C leaves of a command; None of a server, which is ended so."""
    if command in SERVES:
        return None
    if command in RESUMES:
        return "stopped; run the same command again to resume"
    return "stopped; nothing was written" if command in WRITES_LAST else "stopped"


def _fail(message: str, status: int = 1) -> None:
    line = " ".join(message.split())
    shown = "".join(c if c.isprintable() else "?" for c in line[:LONGEST])  # files may hold what steers a terminal
    print(f"r2v: {shown}{'...' if len(line) > LONGEST else ''}", file=sys.stderr)
    raise SystemExit(status)
