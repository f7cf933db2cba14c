"""The paper's evaluator, kept so that its tables can be compared. OPTIMISTIC: never quote it as success.

A failed SLM episode counts as solved as soon as one of its steps is escalated; the teacher never fails and escalation
never hurts; `llm_only` and `oracle` are 100 % by definition (method, section 9).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from r2v.core.agent import within_budget
from r2v.core.features import proposing
from r2v.core.protocols import Router
from r2v.core.seeds import episode_seed
from r2v.core.types import Context, Decision, Episode, Features, Memory, Route
from r2v.evaluation.outcomes import Outcomes, Row, gather, row
from r2v.evaluation.results import Played
from r2v.perturbations import BY_SEED, GroupPart

Escalations = Callable[[Episode], tuple[int, ...]]
"""Steps of a recorded SLM episode on which a router would have escalated."""


def replay(episodes: Sequence[Episode], escalations: Escalations) -> list[Row]:
    """Outcome of each SLM-only episode under the optimistic rule."""
    rows = []
    for episode in episodes:
        escalated = escalations(episode)
        recorded = row(episode)
        solved = recorded.success or bool(escalated)
        asked = replace(recorded, teacher_calls=len(escalated), escalated=escalated)
        rows.append(replace(asked, success=solved, teacher_tokens=None, usd=None))  # nobody really asked the teacher
    return rows


def escalated_steps(router: Router, horizon: int, max_calls: int | None = None) -> Escalations:
    """The recorded steps on which `router` escalates, decided by the code that decides in production."""
    return lambda episode: escalations(router, RecordedSteps.of(episode, horizon), max_calls=max_calls)


@dataclass(frozen=True, eq=False)
class RecordedSteps:
    """What a router reads at each step of a recorded SLM episode."""

    steps: tuple[tuple[Context, Features, int], ...]
    """(what was known, with what the SLM proposed; features; the router's seed)."""
    seed: int
    """Of the router's memory."""
    name: str

    @classmethod
    def of(cls, episode: Episode, horizon: int) -> RecordedSteps:
        """Raises ValueError for a step without features."""
        found = []
        for step, context in zip(episode.steps, episode.contexts(horizon), strict=True):
            if step.choice.features is None:
                raise ValueError(f"step {step.t} of {episode.task.id} has no features; replay needs routed SLM episodes")
            known = proposing(context, step.choice.candidates, step.choice.scores)
            found.append((known, step.choice.features, episode.call_seed(step.t, "router")))
        return cls(tuple(found), episode_seed(episode.task.id, episode.seed), episode.task.id)


def escalations(
    router: Router, recorded: RecordedSteps, *, first: bool = False, max_calls: int | None = None
) -> tuple[int, ...]:
    """The steps on which `router` escalates; after a takeover, all of them.

    Args:
        first: look no further than at the first one.
        max_calls: of an episode; None: no limit.

    Raises:
        ValueError: it wants what a recorded episode has not, another draw or attempt.
    """
    escalated: list[int] = []
    for t, decision in decisions(router, recorded, max_calls):
        if decision.route != "continue" and first:
            return (t,)
        if decision.route == "takeover":
            return (*escalated, *range(t, len(recorded.steps)))[:max_calls]
        if decision.route == "escalate":
            escalated.append(t)
    return tuple(escalated)


def decisions(router: Router, recorded: RecordedSteps, max_calls: int | None = None) -> Iterator[tuple[int, Decision]]:
    """(number of the step, what `router` decides there), as long as it is asked; ValueError as of `escalations`."""
    memory = Memory(max_calls, recorded.seed)
    for t, (context, features, seed) in enumerate(recorded.steps):
        decision = within_budget(router.decide(context, features, memory, seed=seed), memory)
        if decision.route in ("retry", "restart"):
            raise ValueError(f"{router.name} decides {decision.route}; a recorded episode has no more than was recorded")
        yield t, decision
        memory = memory.after(decision)


def oracle(episode: Episode) -> tuple[int, ...]:
    """Hindsight: every step of a failed episode. A diagnostic bound, never deployable."""
    return () if episode.success else tuple(step.t for step in episode.steps)


def always(episode: Episode) -> tuple[int, ...]:
    return tuple(step.t for step in episode.steps)


class Replayed(Protocol):
    """What replay needs of a fitted router (`r2v.routers.base.RouterBase`)."""

    def at(self, threshold: float) -> Router: ...


def replayable(routes: Collection[Route]) -> bool:
    """Whether a recorded episode is enough for a router with these routes: it holds no further draw and no other attempt."""
    return not {"retry", "restart"} & set(routes)


def replayed(
    alone: Sequence[Episode],
    routers: Mapping[str, tuple[Replayed, float, tuple[float, ...]]],
    tasks: Sequence[str],
    seeds: Sequence[int],
    horizon: int,
    groups: Collection[GroupPart] = BY_SEED,
    max_calls: int | None = None,
) -> dict[str, Played]:
    """The optimistic rule for each router (at its operating point, and at each of its thresholds) and for the oracle.

    With `max_calls` all but the teacher alone have so many calls an episode, and `llm_first` is the end of the curves.
    """

    def outcomes(escalations: Escalations) -> Outcomes:
        return gather(replay(alone, escalations), tasks, seeds, horizon, groups)

    found = {
        "slm_only": Played(outcomes(lambda episode: ()), None),
        "llm_only": Played(outcomes(always), None),
        **({} if max_calls is None else {"llm_first": Played(outcomes(lambda e: always(e)[:max_calls]), None)}),
        "oracle": Played(outcomes(lambda e: oracle(e)[:max_calls]), None),
    }
    for name, (router, threshold, grid) in routers.items():
        points = {t: outcomes(escalated_steps(router.at(t), horizon, max_calls)) for t in dict.fromkeys((threshold, *grid))}
        found[name] = Played(points[threshold], threshold, grid, tuple(points[t] for t in grid))
    return found
