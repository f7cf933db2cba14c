"""The gateway's ledger (`store.path`), or episodes in Parquet (`r2v export`, `r2v import`, the files of a run).

A session with an outcome is an episode. Its steps hold features, scores and decisions as they were; a redacted ledger has
hashes in the place of words and no messages: enough to fit a router, not to train a model.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from r2v.core.errors import ArtifactError, R2VError, SettingsError
from r2v.core.types import SOLVED, Episode, Observation, Step, Task
from r2v.gateway.ledger import Ledger
from r2v.gateway.postgres_url import EXAMPLE, is_postgres, problem_of
from r2v.gateway.reading import Entry, LedgerReader
from r2v.runtime.store import MALFORMED, check_step, read_episodes

if TYPE_CHECKING:
    from r2v.gateway.shared_ledger import SharedLedger


def sessions(ledger: LedgerReader) -> Iterator[Episode]:
    """Each session as an episode; `success` is None where it has no outcome, neither one that was sent nor a verdict."""
    for entries, outcome, offered in ledger.whole_sessions():
        reward, verdict = msgspec.convert(outcome or (None, ""), tuple[float | None, str])
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
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist")
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
    if url_in(path) is None and (path.suffix == ".parquet" or not path.is_file()):
        return None
    with _read(path) as ledger:
        span = msgspec.convert(ledger.span(), tuple[float, float] | None)
    return None if span is None else max(1.0, (span[1] - span[0]) / 86_400)


@contextmanager
def _read(path: Path) -> Iterator[LedgerReader]:
    """A ledger to read from. Raises ArtifactError for what no gateway has written, whatever is wrong with it."""
    ledger = Ledger(path) if (url := url_in(path)) is None else _shared(url)
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
    description: str = "the gateway's ledger, or episodes in Parquet"
    verifier: None = None

    def read(self, path: Path) -> Iterator[Episode]:
        if path.suffix == ".parquet":
            yield from read_episodes(path)
            return
        if url_in(path) is None and not path.exists():  # a new ledger would be made
            raise ArtifactError(f"{path} does not exist")
        with _read(path) as ledger:
            yield from sessions(ledger)


FORMAT = LedgerFormat()
