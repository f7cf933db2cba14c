"""Two futures of one step: the teacher acts there, or the SLM does; then the SLM goes on (method, section 6, `benefit`).

A step on which the teacher would do what the SLM does has one future: its benefit is exactly 0 and need not be played.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from r2v.core.agent import AgentModels, Forked, Routed
from r2v.core.agreement import alike
from r2v.core.features import best
from r2v.core.fixed import AtSteps, Directed, Never
from r2v.core.protocols import Agent, Policy
from r2v.core.types import TEACHER, Action, Episode
from r2v.evaluation.closed_loop import MakeEnvironment, play_all


@dataclass(frozen=True)
class Branch:
    """Step t of the `episode`-th recorded episode, under one draw of the future."""

    episode: int
    t: int
    draw: int
    """0: the recorded future of the SLM. The same draw of both futures uses the same random numbers."""
    helped: bool
    """Success when the teacher acted at t."""
    alone: bool
    """Success when the SLM acted at t."""


async def answers(episode: Episode, policy: Policy, horizon: int, model: str = TEACHER) -> list[Action]:
    """What the teacher, or another model of the pool, would do at each step of a routed episode."""
    found = []
    for step, context in zip(episode.steps, episode.contexts(horizon), strict=True):
        seed = episode.call_seed(step.t, model)
        (answer,) = await policy.propose(context, 1, seed=seed)
        found.append(answer.action)
    return found


def differing(episode: Episode, others: Sequence[Action]) -> list[bool]:
    """Of each step of a routed episode, whether another action is other than the SLM's best candidate."""
    choices = [step.choice for step in episode.steps]
    own = [choice.candidates[best(choice.candidates, choice.scores)].action for choice in choices]
    return [not alike(mine, other) for mine, other in zip(own, others, strict=True)]


async def differs(episode: Episode, teacher: Policy, horizon: int) -> list[bool]:
    """For each step of a routed episode: would the teacher do something else than the SLM's best candidate?"""
    return differing(episode, await answers(episode, teacher, horizon))


async def branch(
    models: AgentModels,
    make_environment: MakeEnvironment,
    number: int,
    episode: Episode,
    steps: Sequence[int],
    *,
    draws: int,
    horizon: int,
    model: str = TEACHER,
) -> list[Branch]:
    """Play both futures of each step `draws` times. `episode` must be one that these models played alone.

    A future that breaks counts as failed, as in every evaluation. `model`: the one of the pool that takes the step.
    """
    never = Routed(models, Never())
    futures: dict[tuple[int, int, bool], Agent] = {}
    for draw in range(draws):
        after = Routed(models if draw == 0 else replace(models, draw=draw), never.router)
        for t in steps:
            futures[t, draw, True] = Forked(Routed(models, Directed(AtSteps(frozenset([t])), model)), after, t)
            if draw:
                futures[t, draw, False] = Forked(never, after, t)
    played = await play_all(list(futures.values()), [(episode.task, episode.seed)], make_environment, horizon=horizon)
    success = {key: bool(e.success) for key, (e,) in zip(futures, played, strict=True)}
    recorded = bool(episode.success)
    return [
        Branch(number, t, draw, success[t, draw, True], success[t, draw, False] if draw else recorded)
        for t in steps
        for draw in range(draws)
    ]


def with_mistakes(
    episodes: Sequence[Episode], branches: Sequence[Branch], differ: Sequence[Sequence[bool]]
) -> list[Episode]:
    """The episodes; a failed one with the step at which it went wrong (`mistake`), where its branches show that.

    That is the first step at which the teacher's action gains: more of its futures are solved than of the SLM's. An
    episode is labelled only where each step on which the teacher differs was branched: else the labelled ones would be
    those that go wrong early.

    Args:
        branches: of these episodes, by number.
        differ: of each episode, whether the teacher would have done something else at each step.
    """
    gains: dict[tuple[int, int], int] = {}
    for b in branches:
        gains[b.episode, b.t] = gains.get((b.episode, b.t), 0) + b.helped - b.alone
    found = []
    for number, (episode, other) in enumerate(zip(episodes, differ, strict=True)):
        steps = [(number, t) for t, differs_here in enumerate(other) if differs_here]
        gaining = [t for _, t in steps if gains.get((number, t), 0) > 0]
        known = bool(gaining) and episode.success is False and all(step in gains for step in steps)
        found.append(replace(episode, mistake=gaining[0]) if known else episode)
    return found
