"""What can be plugged in. Anything with these methods works; nothing needs to be inherited or registered.

What may wait (models, environments) is async; what only computes is sync. `r2v.core.checks` holds the conformance tests of
each protocol; run them on your own implementations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from r2v.core.types import Action, Candidate, Change, Choice, Context, Decision, Features, Memory, Observation, Usage


class Environment(Protocol):
    """One task, one episode. There is no reset: build a new one."""

    @property
    def goal(self) -> str:
        """As the agent sees it."""
        ...

    async def start(self) -> Observation:
        """First observation. Called once, before any step."""
        ...

    async def step(self, action: Action) -> Observation:
        """Act. Raises RuntimeError after an observation with `done`."""
        ...

    async def close(self) -> None:
        """Free what the episode holds. Safe to call twice."""
        ...


@runtime_checkable
class Branching(Environment, Protocol):
    """An environment whose present can be copied, so that two futures of one step can be played."""

    def clone(self) -> Branching: ...


@runtime_checkable
class Scoring(Environment, Protocol):
    """An environment that can judge what was done when the steps have run out. Without it such an episode has failed."""

    async def out_of_steps(self) -> Observation | None:
        """The last observation, with `done`; None: it cannot be judged after all."""
        ...


class Policy(Protocol):
    """A source of actions: the SLM, the teacher, a script. Exactly k candidates; same context and seed = same candidates."""

    @property
    def name(self) -> str: ...

    async def propose(self, context: Context, k: int, *, seed: int) -> tuple[Candidate, ...]: ...


class Verifier(Protocol):
    """Scores actions in [0, 1] on local evidence only; it never sees the environment."""

    async def score(self, context: Context, actions: Sequence[Action]) -> tuple[float, ...]: ...


@runtime_checkable
class PricedVerifier(Verifier, Protocol):
    """One that pays for its scores, because it asks a model."""

    async def priced(self, context: Context, actions: Sequence[Action]) -> tuple[tuple[float, ...], Usage]:
        """What `score` gives, and what it cost."""
        ...

    def most(self, context: Context, actions: Sequence[Action]) -> Usage:
        """What that costs at most, for one try: a budget reserves it."""
        ...


class Perturbation(Protocol):
    """A pure function on texts; it never sees a state. Same arguments = same bytes; strength 0 = identity."""

    @property
    def family(self) -> str: ...

    def apply(
        self, text: str, *, where: Literal["goal", "observation"], previous: str, seed: int, t: int
    ) -> tuple[str, tuple[Change, ...]]:
        """The disturbed text and what was done. `previous` is the agent's previous observation ("" at the start)."""
        ...


class Router(Protocol):
    """Decides at one step who acts: a pure function of its arguments. What it needs of the past is in `memory`."""

    @property
    def name(self) -> str: ...

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision: ...


class Agent(Protocol):
    """State in, state out: all that survives a step is in `Memory`."""

    @property
    def name(self) -> str: ...

    async def act(self, context: Context, memory: Memory, *, seed: int) -> tuple[Choice, Memory]: ...
