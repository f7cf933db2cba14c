"""Conformance checks of the protocols, for your own implementations and ours. Each raises CheckFailed with one line.

asyncio.run(check_environment(lambda: MyEnvironment(task), ["look", "open door"]))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import get_args

from r2v.core.errors import R2VError
from r2v.core.protocols import Environment, Perturbation, Policy, Router, Verifier
from r2v.core.types import Action, Code, Context, Features, Memory, Observation


class CheckFailed(R2VError):
    """A promise of a protocol does not hold."""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise CheckFailed(message)


async def check_environment(make: Callable[[], Environment], actions: Sequence[str]) -> None:
    """Two environments answer equal actions equally; done and success agree; nothing goes on after the end."""
    first, second = make(), make()
    _require(first.goal == second.goal, "two environments of one task have different goals")
    pairs = [(await first.start(), await second.start())]
    for text in actions:
        if pairs[-1][0].done:
            break
        pairs.append((await first.step(Action(text)), await second.step(Action(text))))
    for t, (one, two) in enumerate(pairs):
        _require(one == two, f"equal actions led to different observations at step {t}")
        _check_observation(one, t)
    if pairs[-1][0].done:
        try:
            await first.step(Action(actions[-1]))
        except RuntimeError:
            pass
        else:
            raise CheckFailed("a step after the end must raise RuntimeError")
    for environment in (first, second):
        await environment.close()
        await environment.close()


def _check_observation(observation: Observation, t: int) -> None:
    _require(bool(observation.latent), f"step {t} has no latent hash; consistency pairs and branching need it")
    _require(observation.success is None or observation.done, f"step {t} has a success before the end")


async def check_policy(policy: Policy, context: Context, k: int = 3) -> None:
    """Exactly k candidates, and the same ones for the same context and seed."""
    first = await policy.propose(context, k, seed=7)
    _require(len(first) == k, f"{policy.name} proposed {len(first)} candidates when asked for {k}")
    second = await policy.propose(context, k, seed=7)
    _require([c.action for c in first] == [c.action for c in second], f"{policy.name} answers one seed in two ways")
    for candidate in first:
        _require(candidate.logp is None or candidate.logp <= 1e-6, f"{policy.name} gave a positive log-probability")
        _require(candidate.entropy is None or candidate.entropy >= 0, f"{policy.name} gave a negative entropy")


async def check_verifier(verifier: Verifier, context: Context, actions: Sequence[str]) -> None:
    """One score in [0, 1] an action, depending on the action only and not on its neighbours."""
    together = await verifier.score(context, [Action(text) for text in actions])
    _require(len(together) == len(actions), f"{len(actions)} actions got {len(together)} scores")
    for text, score in zip(actions, together, strict=True):
        _require(0 <= score <= 1, f"the score of {text!r} is {score}, outside [0, 1]")
        (alone,) = await verifier.score(context, [Action(text)])
        _require(alone == score, f"{text!r} scores {alone} alone and {score} among others")


def check_perturbation(make: Callable[[float], Perturbation], texts: Sequence[str], seeds: int = 50) -> None:
    """`make(strength)`: strength 0 is the identity; equal arguments give equal bytes; changes are logged iff made."""
    for seed in range(seeds):
        for t, (previous, text) in enumerate(pairwise(("", *texts))):
            same, changes = make(0.0).apply(text, where="observation", previous=previous, seed=seed, t=t)
            _require((same, changes) == (text, ()), f"strength 0 changed {text!r}")
            one = make(1.0).apply(text, where="observation", previous=previous, seed=seed, t=t)
            two = make(1.0).apply(text, where="observation", previous=previous, seed=seed, t=t)
            _require(one == two, f"equal seeds gave different texts for {text!r}")
            _require(bool(one[1]) or one[0] == text, f"a change of {text!r} was not logged")


def check_router(router: Router, rows: Sequence[Features], context: Context) -> None:
    """Decisions are repeatable, carry a propensity in (0, 1] and a reason."""
    for seed, features in enumerate(rows):
        decision, again = (router.decide(context, features, Memory(), seed=seed) for _ in range(2))
        _require(decision == again, f"{router.name} decides one case in two ways")
        _require(0 < decision.propensity <= 1, f"{router.name} logged the propensity {decision.propensity}")
        _require(bool(decision.reason), f"{router.name} gave no reason")
        _require(
            decision.code in get_args(Code), f"{router.name} gave the code {decision.code!r}, which is none of the list"
        )
        _require((decision.score is None) == (decision.score_kind is None), f"{router.name} gave a score without its kind")
