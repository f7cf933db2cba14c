"""The composition root of a run: settings and folders become agents and environments, in the process that plays them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from r2v.clients.chat import ChatPolicy, ChatSettings
from r2v.core.agent import AgentModels, Noisy, Routed, Solo
from r2v.core.features import View
from r2v.core.fixed import Always, Directed, Never, Redraw
from r2v.core.protocols import Agent, Environment, Policy, Router
from r2v.core.seeds import derive_seed, derive_uniform
from r2v.core.types import TEACHER, Action, Candidate, Context, Episode, Task
from r2v.perturbations import family_of
from r2v.perturbations.wrap import perturbed
from r2v.pipeline.settings import RunSettings, SlmSettings
from r2v.routers import load_router, router_class
from r2v.routers.base import RouterBase
from r2v.verifiers import verifier_named

if TYPE_CHECKING:
    from r2v.clients.local.policy import LocalPolicy

CLEAN = 0
"""Perturbation seed of unperturbed episodes."""
ALONE = "slm_only"
FIXED: dict[str, Callable[[], Router]] = {ALONE: Never, "llm_first": partial(Always, "llm_first"), "redraw": Redraw}


@dataclass(frozen=True)
class AgentSpec:
    """Who plays, in words that travel to a worker process."""

    kind: Literal["teacher", "noisy_teacher", "routed"]
    slm: Path | None = None
    """Model folder."""
    router: Path | str = ALONE
    """Folder of a router, or the name of one that is fitted on nothing."""
    threshold: float | None = None
    """Operating point; None: the one in the folder."""
    stronger: str | None = None
    """The model of the pool that acts alone, or wherever the router escalates; None: the teacher alone, or the model that
    the router names."""


def make_environment(
    settings: RunSettings, task: Task, z: int, redrawn: tuple[int, int] | None = None
) -> tuple[Environment, str]:
    """The task's environment under perturbation seed z (0 = clean), and the perturbation family.

    `redrawn` = (t, draw): what is seen after step t is disturbed by other random numbers.
    """
    domain = settings.domain
    environment = domain.environment(settings.environment, task)
    family = family_of(task.id, z, settings.perturbations.families)
    if z == CLEAN:
        return environment, family
    strength = settings.perturbations.strength * (settings.perturbations.severity(task.id, z) or 1.0)
    perturbation = domain.perturbation(family, strength, environment.goal)
    disturbed = perturbed(environment, perturbation, seed=z, salt=task.id)
    if redrawn is not None:
        disturbed.redraw(*redrawn)
    return disturbed, family


def with_severity(settings: RunSettings, episodes: Sequence[Episode]) -> list[Episode]:
    """Episodes of this run, each with the severity that its environment had."""
    return [replace(e, severity=settings.perturbations.severity(e.task.id, e.seed)) for e in episodes]


@dataclass(frozen=True)
class Mistaken:
    """A policy a share of whose actions are random ones instead."""

    policy: Policy
    share: float
    draw: Callable[[Context, int], Action]
    """A random action from what the policy may know (context, seed)."""

    @property
    def name(self) -> str:
        return self.policy.name

    async def propose(self, context: Context, k: int, *, seed: int) -> tuple[Candidate, ...]:
        candidates = await self.policy.propose(context, k, seed=seed)
        seeds = [derive_seed(seed, "mistake", i) for i in range(k)]
        return tuple(
            replace(candidate, action=self.draw(context, own), logp=None) if derive_uniform(own) < self.share else candidate
            for candidate, own in zip(candidates, seeds, strict=True)
        )


def make_teacher(settings: RunSettings, name: str = TEACHER) -> Policy:
    """The teacher, or another model of the pool."""
    domain, wanted = settings.domain, settings.teacher if name == TEACHER else settings.pool[name]
    if isinstance(wanted, ChatSettings):
        return ChatPolicy(wanted, name=name, chat_format=domain.chat_format, logprobs=False)
    expert, random_action = domain.expert(), domain.random_action
    assert expert is not None  # the settings were refused otherwise
    if not wanted.mistakes:
        return expert
    assert random_action is not None  # likewise
    return Mistaken(expert, wanted.mistakes, random_action)


def make_slm(settings: SlmSettings, folder: Path) -> LocalPolicy:
    """The trained SLM in `folder` with an empty cache, on the CPU sampled with one thread."""
    import torch

    from r2v.clients.local.policy import LocalPolicy

    torch.set_num_threads(1)
    trained = settings.trained
    return LocalPolicy.load(
        folder, device=trained.device, precision=trained.precision, temperature=settings.temperature, top_p=settings.top_p,
        max_new_tokens=settings.max_new_tokens,
    )  # fmt: skip


def make_models(settings: RunSettings, slm: Path, view: View = "full") -> AgentModels:
    """What a routed agent with this SLM is made of besides its router."""
    domain, model = settings.domain, settings.slm.model
    if isinstance(model, ChatSettings):
        policy: Policy = ChatPolicy(model, name="slm", chat_format=domain.chat_format)
    else:
        policy = make_slm(settings.slm, slm)
    pool = {name: make_teacher(settings, name) for name in settings.pool}
    verifier = verifier_named(settings.scored_by)
    return AgentModels(policy, make_teacher(settings), verifier, settings.slm.k, view=view, pool=pool)


def make_agents(settings: RunSettings, specs: Iterable[AgentSpec]) -> list[Agent]:
    """Agents that play together: those with the same SLM share their models, those with the same folder what was fitted."""
    models: dict[tuple[Path, View], AgentModels] = {}
    fitted: dict[Path, RouterBase] = {}

    def router(spec: AgentSpec) -> Router:
        if isinstance(spec.router, str):
            if spec.router in FIXED:
                return FIXED[spec.router]()
            base = router_class(spec.router)()
        else:
            if spec.router not in fitted:
                _ = settings.chosen_routers  # imports those that the settings name: a folder itself imports nothing
                fitted[spec.router] = load_router(spec.router)
            base = fitted[spec.router]
        return base if spec.threshold is None else base.at(spec.threshold)

    def agent(spec: AgentSpec) -> Agent:
        if spec.kind == "teacher":
            return Solo(make_teacher(settings, spec.stronger or TEACHER), "teacher")
        if spec.kind == "noisy_teacher":
            random_action = settings.domain.random_action
            assert random_action is not None  # the settings were refused otherwise
            return Noisy(Solo(make_teacher(settings), "teacher"), settings.collect.noise, random_action)
        if spec.slm is None:
            raise ValueError("a routed agent needs the folder of its SLM")
        chosen = router(spec)
        fitted_with = chosen.fitted_with if isinstance(chosen, RouterBase) else None
        key = spec.slm, fitted_with.view if fitted_with else "full"
        if key not in models:
            models[key] = make_models(settings, *key)
        return Routed(models[key], chosen if spec.stronger is None else Directed(chosen, spec.stronger))

    return [agent(spec) for spec in specs]
