"""Conformance checks of the protocols, for your own implementations and ours. Each raises CheckFailed with one line.

asyncio.run(check_environment(lambda: MyEnvironment(task), ["look", "open door"]))
check(MY_DOMAIN)
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Any, get_args

from r2v.core.errors import ArtifactError, R2VError, SettingsError
from r2v.core.features import FEATURES
from r2v.core.protocols import Branching, Environment, Perturbation, Policy, Router, Verifier
from r2v.core.seeds import derive_seed
from r2v.core.types import Action, Candidate, Code, Context, Decision, Features, Memory, Observation, Task


class CheckFailed(R2VError):
    """A promise of a protocol does not hold."""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise CheckFailed(message)


async def check_environment(make: Callable[[], Environment], actions: Sequence[str]) -> None:
    """Two environments answer equal actions equally, and so does a clone, which leaves its original as it is. Done and
    success agree, and nothing goes on after the end.
    """
    first, second = make(), make()
    _require(first.goal == second.goal, "two environments of one task have different goals")
    pairs = [(await first.start(), await second.start())]
    for text in actions:
        if pairs[-1][0].done:
            break
        answer = await first.step(Action(text))
        if isinstance(second, Branching):
            clone = second.clone()
            _require(await clone.step(Action(text)) == answer, "a clone answers differently from its original")
            await clone.close()
        pairs.append((answer, await second.step(Action(text))))
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
    _check_signature(policy, "propose", "async def propose(self, context, k, *, seed)", context, k, seed=7)
    first = await _awaited(policy, "propose", policy.propose(context, k, seed=7))
    for candidate in first:
        _require(isinstance(candidate, Candidate), f"{policy.name} proposed a {_kind(candidate)}, no Candidate")
    _require(len(first) == k, f"{policy.name} proposed {len(first)} candidates when asked for {k}")
    second = await policy.propose(context, k, seed=7)
    _require([c.action for c in first] == [c.action for c in second], f"{policy.name} answers one seed in two ways")
    for candidate in first:
        _require(candidate.logp is None or candidate.logp <= 1e-6, f"{policy.name} gave a positive log-probability")
        _require(candidate.entropy is None or candidate.entropy >= 0, f"{policy.name} gave a negative entropy")


async def check_verifier(verifier: Verifier, context: Context, actions: Sequence[str]) -> None:
    """One score in [0, 1] an action, depending on the action only and not on its neighbours."""
    _check_signature(verifier, "score", "async def score(self, context, actions)", context, [])
    together = await _awaited(verifier, "score", verifier.score(context, [Action(text) for text in actions]))
    _require(hasattr(together, "__len__"), f"`score` returned a {_kind(together)}, no sequence of numbers")
    _require(len(together) == len(actions), f"{len(actions)} actions got {len(together)} scores")
    for text, score in zip(actions, together, strict=True):
        number = isinstance(score, Real) or hasattr(score, "__float__")  # a scalar of NumPy or torch
        _require(number, f"the score of {text!r} is the {_kind(score)} {score!r:.40}, no number")
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
    """Decisions are repeatable, take a route of the router's `routes`, carry a propensity in (0, 1], a code and a reason."""
    written = "def decide(self, context, features, memory, *, seed)"
    _check_signature(router, "decide", written, context, rows[0], Memory(), seed=0)
    for seed, features in enumerate(rows):
        decision, again = (router.decide(context, features, Memory(), seed=seed) for _ in range(2))
        what = _kind(decision)
        _require(isinstance(decision, Decision), f"`decide` of {router.name} returned a {what}; make it return a Decision")
        finite = decision.score is None or math.isfinite(decision.score)
        _require(finite, f"{router.name} gave the score {decision.score}; make it a finite number")
        _require(decision == again, f"{router.name} decides one case in two ways")
        _require(0 < decision.propensity <= 1, f"{router.name} logged the propensity {decision.propensity}")
        _require(bool(decision.reason), f"{router.name} gave no reason")
        routes = getattr(router, "routes", (decision.route,))
        _require(decision.route in routes, f"{router.name} took the route {decision.route}, which its `routes` leave out")
        _require(
            decision.code in get_args(Code), f"{router.name} gave the code {decision.code!r}, which is none of the list"
        )
        _require((decision.score is None) == (decision.score_kind is None), f"{router.name} gave a score without its kind")


def _kind(thing: Any) -> str:
    return type(thing).__name__


async def _awaited(part: Any, method: str, made: Any) -> Any:
    _require(inspect.isawaitable(made), f"`{method}` of {_name(part)} is not async; write `async def {method}`")
    return await made


def _check_signature(part: Any, method: str, written: str, *given: Any, **named: Any) -> None:
    """That a method takes what r2v gives it; else the error would be one of r2v's own files."""
    try:
        inspect.signature(getattr(part, method)).bind(*given, **named)
    except TypeError as error:
        raise CheckFailed(
            f"`{method}` of {_name(part)} does not take what r2v gives it ({error}); write `{written}`"
        ) from None
    except ValueError:
        pass  # one that is written in C tells no signature


def check_verdict(verdict: Any) -> None:
    """It has a name, and says of a context that it knows nothing (None), or a number from 0 to 1; equal of equal ones."""
    _require(
        isinstance(getattr(verdict, "name", None), str), f'{_name(verdict)} has no `name`; write one, as `name = "tests"`'
    )
    _check_signature(verdict, "read", "def read(self, context)", CONTEXT)
    value, again = verdict.read(CONTEXT), verdict.read(CONTEXT)
    known = value is None or (isinstance(value, Real) and 0 <= float(value) <= 1)
    _require(known, f"verdict {verdict.name} gave {value!r:.40}; make `read` return a number from 0 to 1, or None")
    _require(value == again, f"verdict {verdict.name} reads one context in two ways")


def check_suite(suite: Any) -> None:
    """It names itself and its mode, and misses records that are not there by a SettingsError (`r2v.bench.suite.Suite`)."""
    for word in ("name", "description", "path", "mode"):
        text = getattr(suite, word, None)
        _require(isinstance(text, str) and bool(text) and "\n" not in text, f"the suite has no {word} of one line")
    modes = ("restart", "takeover", "one_step")
    _require(suite.mode in modes, f"the suite {suite.name} has the mode {suite.mode!r}; there are {', '.join(modes)}")
    _check_signature(suite, "load", "def load(self, data, progress)", Path(), print)
    try:
        suite.load(Path("no-such-folder"), lambda *_: None)
    except R2VError:
        return
    raise CheckFailed(f"{suite.name} loads records that do not exist; it must raise SettingsError")


def check_log_format(log_format: Any) -> None:
    """It says in one line what it reads; a path that does not exist is an ArtifactError (`r2v.logs.records.LogFormat`)."""
    for word in ("name", "description"):
        text = getattr(log_format, word, None)
        _require(isinstance(text, str) and bool(text) and "\n" not in text, f"the log format has no {word} of one line")
    try:
        list(log_format.read(Path("no-such-folder/no-such-file")))
    except ArtifactError:
        return
    raise CheckFailed(f"{log_format.name} reads a file that does not exist; it must raise ArtifactError")


CHECKED_TASKS = 3
CONTEXT = Context(
    "put some pen on drawer.",
    ("You are in a room. You see a drawer 1, and a shelf 1.", "On the shelf 1, you see a pen 1, and a pen 2."),
    (Action("go to shelf 1"),),
    20,
)
PROPOSED = replace(CONTEXT, proposed=Action("take pen 1 from shelf 1"))
"""The same with what the SLM would do: what routers are asked with."""
COMMANDS = ("look", "take pen 1 from shelf 1", "go to drawer 1", "help", "look", "submit")
"""What things are checked on that come without a domain, and domains that have neither expert nor random actions."""


async def check_domain(domain: Any) -> None:
    """A domain (`r2v.domains.base.Domain`) and all its parts, on some of its tasks.

    Its tasks are repeatable; what its expert does there (else random actions) is played on its environments; the expert
    solves one task at least; perturbations, verifier and chat format are checked on the texts that this gives.
    """
    env = domain.settings(kind=domain.name)
    tasks = domain.tasks(env, CHECKED_TASKS, 1)
    _require(bool(tasks), f"{domain.name} has no tasks")
    _require(tasks == domain.tasks(env, CHECKED_TASKS, 1), f"{domain.name} makes other tasks from the same seed")
    _require(len({task.id for task in tasks}) == len(tasks), f"two tasks of {domain.name} have the same id")
    try:
        fresh = domain.fresh_tasks(env, CHECKED_TASKS, 2)
    except SettingsError:
        fresh = []
    _require(not {task.id for task in tasks} & {task.id for task in fresh}, f"fresh tasks of {domain.name} are not new")
    solved, verifier = False, domain.make_verifier()
    for task in tasks[:CHECKED_TASKS]:
        contexts, success = await _played(domain, env, task)
        solved |= bool(success)
        *_, last = contexts
        actions = [action.text for action in last.actions]
        await check_environment(partial(domain.environment, env, task), [*actions, "nonsense"])
        await check_verifier(verifier, last, list(dict.fromkeys([*actions, "nonsense", ""])))
        for family in domain.families:
            made = domain.perturbation(family, 1.0, task.goal)
            _require(made.family == family, f"the perturbation {family} calls itself {made.family}")
            check_perturbation(partial(_of_strength, domain, family, task.goal), last.observations, seeds=10)
        for text in actions:
            read = domain.chat_format.read(text)
            _require(read == text, f"the chat format reads the action {text!r} as {read!r}")
        if (expert := domain.expert()) is not None:
            await check_policy(expert, contexts[len(contexts) // 2])
        if domain.random_action is not None:
            one, two = (domain.random_action(last, 5) for _ in range(2))
            _require(one == two, "one seed gives two random actions")
    _require(solved or domain.expert() is None, f"the expert solves none of {len(tasks[:CHECKED_TASKS])} tasks")


def _of_strength(domain: Any, family: str, topic: str, strength: float) -> Perturbation:
    made: Perturbation = domain.perturbation(family, strength, topic)
    return made


async def _played(domain: Any, env: Any, task: Task) -> tuple[list[Context], bool | None]:
    """The contexts of one episode of the expert, else of random actions, and how it ended."""
    environment, expert = domain.environment(env, task), domain.expert()
    observation = await environment.start()
    contexts = [Context(environment.goal, (observation.text,), (), env.horizon)]
    while not observation.done and contexts[-1].t < env.horizon:
        context, seed = contexts[-1], derive_seed(task.id, contexts[-1].t)
        if expert is not None:
            action = (await expert.propose(context, 1, seed=seed))[0].action
        elif domain.random_action is not None:
            action = domain.random_action(context, seed)
        elif context.t < len(COMMANDS):
            action = Action(COMMANDS[context.t])
        else:
            break
        observation = await environment.step(action)
        seen = (*context.observations, observation.text)
        contexts.append(Context(environment.goal, seen, (*context.actions, action), env.horizon))
    await environment.close()
    return contexts, observation.success


def check(thing: Any) -> str:
    """Find out what a thing is and run the checks of that.

    Args:
        thing: a domain, router, verifier, policy, log format, verdict, suite or environment, or what makes one without
            arguments, or what makes a perturbation of (strength, topic).

    Returns:
        What it was checked as.

    Raises:
        CheckFailed: a promise does not hold, or it is none of these.
    """
    if _has(thing, "tasks", "environment", "perturbation") and not isinstance(thing, type):
        asyncio.run(check_domain(thing))
        return "domain"
    if _has(thing, "start", "step") and isinstance(thing, type):
        asyncio.run(check_environment(thing, COMMANDS))
        return "environment"
    parameters = _parameters(thing)
    if callable(thing) and len(parameters) == 2 and not _has(thing, "apply"):
        check_perturbation(lambda strength: thing(strength, CONTEXT.goal), CONTEXT.observations)
        return "perturbation"
    if isinstance(thing, type) or (callable(thing) and not parameters and not _has(thing, "decide")):
        if parameters == ["tools"]:
            made = thing(tools=())
        elif parameters:
            raise CheckFailed(
                f"{_name(thing)} cannot be made without {', '.join(parameters)}; check an object, or what makes one"
            )
        else:
            made = thing()
        if _has(made, "start", "step"):
            asyncio.run(check_environment(thing, COMMANDS))
            return "environment"
        return check(made)
    if _has(thing, "decide"):
        unplaced = _has(thing, "at") and getattr(thing, "threshold", 0.0) is None
        check_router(thing.at(0.5) if unplaced else thing, [_row(i) for i in range(5)], PROPOSED)
        return "router"
    if _has(thing, "propose"):
        asyncio.run(check_policy(thing, CONTEXT))
        return "policy"
    if _has(thing, "score"):
        asyncio.run(check_verifier(thing, CONTEXT, COMMANDS))
        return "verifier"
    if _has(thing, "load") and hasattr(thing, "mode"):
        check_suite(thing)
        return "suite"
    if _has(thing, "read") and not hasattr(thing, "description"):
        check_verdict(thing)
        return "verdict"
    if _has(thing, "read"):
        check_log_format(thing)
        return "log format"
    raise CheckFailed(
        f"{_name(thing)} is no domain, router, verifier, policy, perturbation, log format, verdict, suite or environment"
    )


def _has(thing: Any, *methods: str) -> bool:
    return all(callable(getattr(thing, method, None)) for method in methods)


def _parameters(thing: Any) -> list[str]:
    """Names of what must be given to call it."""
    if not callable(thing):
        return []
    kinds = inspect.Parameter
    return [
        name
        for name, p in inspect.signature(thing).parameters.items()
        if p.default is kinds.empty and p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
    ]


def _name(thing: Any) -> str:
    return str(getattr(thing, "__name__", type(thing).__name__))


def _row(i: int) -> Features:
    return Features((float(i),) * len(FEATURES), (True,) * len(FEATURES))
