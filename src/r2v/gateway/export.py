"""The ledger as episodes: what was served becomes what is learned from.

A session with an outcome (reward >= .5 of the whole session is success) is an episode. Its steps hold features, scores and
decisions as they were; a redacted ledger has hashes in the place of words, which learning does not need.
"""

from __future__ import annotations

from dataclasses import replace

from r2v.core.types import Episode, Observation, Task
from r2v.gateway.ledger import Ledger

SOLVED = 0.5


def episodes_of(ledger: Ledger) -> tuple[list[Episode], int]:
    """(episodes of the sessions with an outcome, sessions without one)."""
    found, unknown = [], 0
    for session in ledger.all_sessions():
        entries = ledger.steps(session)
        rewards = [reward for t, reward in ledger.outcomes(session) if t is None]
        if not rewards:
            unknown += 1
            continue
        goal, success = entries[0].goal, rewards[-1] >= SOLVED
        steps = tuple(replace(entry.step, t=i) for i, entry in enumerate(entries))
        final = Observation("", True, success, rewards[-1], "", ())
        # Sessions with the same goal are one task: they never fall on both sides of a split.
        found.append(
            Episode(Task(goal, "served", "gateway", goal), 0, "none", "r2v", goal, steps, final, success, "done", None)
        )
    return found, unknown
