"""The gateway's ledger (`store.path`, `store.url`), an archive of ledgers (`r2v archive`), or episodes in Parquet (`r2v
export`, `r2v import`, the files of a run).

A session with an outcome is an episode. Its steps hold features, scores and decisions as they were; a redacted ledger has
hashes in the place of words and no messages: enough to fit a router, not to train a model.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from r2v.core.errors import ArtifactError, R2VError, SettingsError
from r2v.core.types import SOLVED, Episode, Observation, Step, Task
from r2v.core.untrusted import check_regular
from r2v.gateway.ledger import Ledger
from r2v.gateway.postgres_url import EXAMPLE, is_postgres, problem_of
from r2v.gateway.reading import QUIET_S, LedgerReader
from r2v.gateway.rows import Entry
from r2v.logs.files import DAYS
from r2v.runtime.store import MALFORMED, check_step, read_episodes

if TYPE_CHECKING:
    from types import ModuleType

    from r2v.gateway.shared_ledger import SharedLedger
    from r2v.logs.archive import Archive


def sessions(ledger: LedgerReader | Archive, most_steps: int | None = None) -> Iterator[Episode]:
    """Each session as an episode; `success` is None where it has no outcome, neither one that was sent nor a verdict, and
    where a verdict is all there is and the session may go on (`r2v.gateway.reading.QUIET_S`).

    Args:
        ledger: which.
        most_steps: of a ledger with more steps, the sessions of some tasks (`r2v.gateway.reading.picked`).
    """
    for entries, outcome, offered in ledger.whole_sessions(most_steps):
        reward, verdict = msgspec.convert(outcome or (None, ""), tuple[float | None, str])
        if verdict and entries[-1].time > time.time() - QUIET_S:
            reward, verdict = None, ""
        tools = msgspec.convert(offered, str)
        success = None if reward is None else reward >= SOLVED
        goal = entries[0].goal
        yield Episode(
            # Sessions with the same goal are one task: they never fall on both sides of a split.
            Task(goal, "served", "gateway", goal), 0, "none", "r2v", goal,
            tuple(_step(entry, i) for i, entry in enumerate(entries)),
            Observation("", True, success, reward, "", ()), success, "done", None, tools, (), verdict,
        )  # fmt: skip


def url_in(path: Path) -> str | None:
    """The URL of a shared ledger that was given in the place of a path; None of a path. Raises SettingsError."""
    if not is_postgres(path.as_posix()):
        return None
    scheme, rest = path.as_posix().split(":/", 1)  # a path has lost one of the two strokes
    if problem := problem_of(url := f"{scheme}://{rest.lstrip('/')}"):
        raise SettingsError(f"the URL of the ledger {problem}")
    return url


def _shared(url: str) -> SharedLedger:
    try:
        from r2v.gateway.shared_ledger import SharedLedger  # psycopg is an extra
    except ModuleNotFoundError:
        raise SettingsError("a ledger in Postgres needs the extra postgres: pip install 'r2v[postgres]'") from None
    return SharedLedger(url)


def _step(entry: Entry, t: int) -> Step:
    """The step with its place in the session, and with what the ledger knows of it beside its record: whether a second draft
    did the same.
    """
    check_step(entry.step)
    verdicts = entry.step.verdicts
    if entry.alike is not None and all(name != "second_draft" for name, _ in verdicts):
        verdicts = (*verdicts, ("second_draft", float(entry.alike)))
    return replace(entry.step, t=t, verdicts=verdicts, alike=entry.alike)


def shipped(path: Path, url: Path, *, again: bool) -> tuple[int, str]:
    """Ship a ledger to a shared one.

    Args:
        path: of the ledger.
        url: of the shared one.
        again: also what has been shipped.

    Returns:
        (how many rows were shipped, the URL).

    Raises:
        R2VError: one of the two cannot be read or written.
    """
    if (there := url_in(url)) is None:
        raise SettingsError(f"{url} is no shared ledger; write {EXAMPLE}")
    rows = 0
    with _read(path) as ledger, closing(_shared(there)) as shared:
        assert isinstance(ledger, Ledger)
        shared.prepare()
        if again:
            shared.restart(ledger.identity)
        while found := shared.ship(ledger.journal, ledger.identity)[2]:
            rows += found
    return rows, there


def days_of(path: Path) -> float | None:
    """Days between the first and the last step of a ledger, one at least; None of other files and of an empty ledger."""
    if not _is_ledger(path):
        return None
    with _read(path) as ledger:
        span = msgspec.convert(ledger.span(), tuple[float, float] | None)
    return None if span is None else max(1.0, (span[1] - span[0]) / 86_400)


def steps_of(path: Path) -> int | None:
    """How many steps a ledger or an archive has; None of other files."""
    if not _is_ledger(path):
        return None
    with _read(path) as ledger:
        return ledger.steps_in_all()


def archived(path: Path, folder: Path, replica: str | None) -> Iterator[tuple[str, int]]:
    """Write the days of a ledger that have ended into an archive.

    Args:
        path: of the ledger.
        folder: of the archive.
        replica: the ledger's name in it; None: its own identity, `shared` of one in Postgres.

    Yields:
        (day, steps of it) of each that was written.

    Raises:
        R2VError: one of the two cannot be read or written.
    """
    if path.suffix == ".parquet" or path.is_dir():
        raise ArtifactError(f"{path} is no ledger; {_MEND}")
    with _read(path) as ledger:
        assert isinstance(ledger, LedgerReader)
        own = ledger.identity if isinstance(ledger, Ledger) else "shared"
        yield from _archive().write_archive(ledger, replica or own, folder)


_MEND = "give the gateway's store.path or store.url; other logs are read without --format ledger"


def _check_written(path: Path) -> None:
    """Raises ArtifactError for a file of which `Ledger` would make a ledger: who reads one makes none."""
    check_regular(path)
    if not path.exists():
        raise ArtifactError(f"{path} does not exist")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            if db.execute("PRAGMA user_version").fetchone() == (0,):
                raise ArtifactError(f"{path} is no ledger; {_MEND}")
    except sqlite3.OperationalError:
        pass  # `Ledger` says what cannot be opened
    except sqlite3.DatabaseError as error:
        raise ArtifactError(f"{path} is not a ledger ({error}); {_MEND}") from None


def _is_ledger(path: Path) -> bool:
    return url_in(path) is not None or (path.is_file() and path.suffix != ".parquet") or is_archive(path)


def is_archive(path: Path) -> bool:
    return path.is_dir() and next(path.glob(DAYS), None) is not None


def _archive() -> ModuleType:
    try:
        from r2v.logs import archive  # DuckDB is an extra
    except ModuleNotFoundError as error:
        raise SettingsError(f"an archive needs {error.name}: pip install 'r2v[archive]'") from None
    return archive


def _opened(path: Path) -> Ledger | SharedLedger | Archive:
    if is_archive(path):
        found: Archive = _archive().Archive(path)
        return found
    if (url := url_in(path)) is not None:
        return _shared(url)
    _check_written(path)
    try:
        return Ledger(path)
    except ArtifactError as error:  # in words for who serves from it
        raise ArtifactError(str(error).replace("choose another store.path", _MEND)) from None


@contextmanager
def _read(path: Path) -> Iterator[LedgerReader | Archive]:
    """A ledger to read from. Raises ArtifactError for what no gateway has written, whatever is wrong with it."""
    ledger = _opened(path)
    try:
        if not isinstance(ledger, Ledger):
            ledger.verify()
        yield ledger
    except OSError as error:
        raise R2VError(f"the shared ledger is out of reach ({error})") from None
    except (sqlite3.Error, OverflowError, IndexError, *MALFORMED) as error:
        raise ArtifactError(f"{path} holds a row that no gateway has written ({error}); leave that session out") from None
    finally:
        ledger.close()


@dataclass(frozen=True)
class LedgerFormat:
    """`r2v.logs.records.LogFormat`."""

    name: str = "ledger"
    description: str = "the gateway's ledger, or an archive of it"
    verifier: None = None
    most_steps: int | None = None
    """See `sessions`."""

    def read(self, path: Path) -> Iterator[Episode]:
        if path.suffix == ".parquet":
            yield from read_episodes(path)
            return
        with _read(path) as ledger:
            yield from sessions(ledger, self.most_steps)


FORMAT = LedgerFormat()
EPISODES = LedgerFormat("episodes", "episodes in Parquet, of r2v export, r2v import or a run")
