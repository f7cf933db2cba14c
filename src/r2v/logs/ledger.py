"""The gateway's ledger (`store.path`), or episodes in Parquet (`r2v export`, `r2v import`, the files of a run).

A session with an outcome is an episode. Its steps hold features, scores and decisions as they were; a redacted ledger has
hashes in the place of words and no messages: enough to fit a router, not to train a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from r2v.core.errors import ArtifactError
from r2v.core.types import SOLVED, Episode, Observation, Step, Task
from r2v.gateway.ledger import Entry, Ledger
from r2v.runtime.store import read_episodes


def sessions(ledger: Ledger) -> Iterator[Episode]:
    """Each session as an episode; `success` is None where it has no outcome, neither one that was sent nor a verdict."""
    for session in ledger.all_sessions():
        entries = ledger.steps(session)
        reward, verdict = ledger.outcome_of(session) or (None, "")
        success = None if reward is None else reward >= SOLVED
        goal = entries[0].goal
        yield Episode(
            # Sessions with the same goal are one task: they never fall on both sides of a split.
            Task(goal, "served", "gateway", goal), 0, "none", "r2v", goal,
            tuple(_step(entry, i) for i, entry in enumerate(entries)),
            Observation("", True, success, reward, "", ()), success, "done", None, ledger.tools(session), (), verdict,
        )  # fmt: skip


def _step(entry: Entry, t: int) -> Step:
    """The step with its place in the session, and with what the ledger knows of it beside its record: whether a second draft
    did the same.
    """
    verdicts = entry.step.verdicts
    if entry.alike is not None and all(name != "second_draft" for name, _ in verdicts):
        verdicts = (*verdicts, ("second_draft", float(entry.alike)))
    return replace(entry.step, t=t, verdicts=verdicts, alike=entry.alike)


def days_of(path: Path) -> float | None:
    """Days between the first and the last step of a ledger, one at least; None of other files and of an empty ledger."""
    if path.suffix == ".parquet" or not path.is_file():
        return None
    ledger = Ledger(path)
    try:
        span = ledger.span()
    finally:
        ledger.close()
    return None if span is None else max(1.0, (span[1] - span[0]) / 86_400)


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
        if not path.exists():  # a new ledger would be made
            raise ArtifactError(f"{path} does not exist")
        ledger = Ledger(path)
        try:
            yield from sessions(ledger)
        finally:
            ledger.close()


FORMAT = LedgerFormat()
