"""What a suite of the bench is: recorded episodes of a weak model, and what comes of asking a stronger one at some step.

A suite has one way to ask, its `mode`. *restart*: the stronger model's own run takes the place of the session, from the
start. *takeover*: it goes on from the state that the weak model has reached. *one_step*: it takes single steps, and the
weak model's recorded calls follow.

Axes: E episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from r2v.core.types import Episode
from r2v.runtime.progress import Report

Mode = Literal["restart", "takeover", "one_step"]
Escalated = tuple[int, ...]
"""Steps of one episode that a router escalates, rising; of a restart or takeover one at most: where it happens."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one episode with some of its steps escalated."""

    success: float
    """1 or 0; between them the share of several attempts."""
    usd: float
    """Of all calls, drafts that were thrown away included."""
    strong_calls: float
    weak_calls: float
    injected: bool | None = None
    """Whether what an attacker had planted was carried out; None where nothing was planted."""


class Suite(Protocol):
    """One set of records and one way to ask."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str:
        """One line for people: which models, how many tasks, who says what succeeded."""
        ...

    @property
    def path(self) -> str:
        """Where its records lie, below the folder of all records."""
        ...

    @property
    def mode(self) -> Mode: ...

    def load(self, data: Path, progress: Report) -> Loaded:
        """Read the records below `data`. Raises SettingsError where they are not there, and how to get them."""
        ...


class Play(Protocol):
    """Finds out what comes of episodes with some of their steps escalated; `Loaded.outcomes` remembers it."""

    def __call__(self, asked: Sequence[tuple[int, Escalated]], progress: Report) -> list[Outcome]:
        """The outcome of each (number of the episode, its steps escalated); without any, that of the weak model alone."""
        ...


@dataclass(frozen=True, eq=False)
class Loaded:
    """A suite's records."""

    episodes: list[Episode]
    """Of weak models, each with its outcome; `perturbation` names the attack, if there was one."""
    group_E: NDArray[np.int64]
    """Numbers of groups from 0: tasks of one are never on both sides of a split."""
    strong: str
    """The stronger model (or teacher)."""
    play: Play
    differs: list[list[bool]] | None = None
    """Of each step, whether the stronger model would do something else there; None where nobody knows."""
    alone_again: float | None = None
    """Success of the weak model where it started anew, from other runs of it; None without any."""
    fidelity: dict[str, Any] = field(default_factory=dict)
    """How many recorded episodes come out in the engine as they were recorded (`replayed`, `of`, `share`), and the names of
    those that do not and are left out (`left_out`); empty where there is no engine."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else readers should know: prices, counts, where the data come from."""
    _known: dict[tuple[int, Escalated], Outcome] = field(default_factory=dict)

    def outcomes(self, asked: Sequence[tuple[int, Escalated]], progress: Report) -> list[Outcome]:
        """As `play`, which is asked about each only once."""
        new = [key for key in dict.fromkeys(asked) if key not in self._known]
        self._known.update(zip(new, self.play(new, progress), strict=True))
        return [self._known[key] for key in asked]
