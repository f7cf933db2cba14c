"""The composition root: the only place where a name in the settings becomes an object."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from r2v.agent import Noisy, Parts, Routed, Solo
from r2v.build.settings import RunSettings, SlmSettings
from r2v.environments.household.env import Household
from r2v.environments.household.expert import HouseholdExpert
from r2v.environments.household.games import GAME_FILE, load_game, real_tasks
from r2v.environments.household.noise import random_action
from r2v.environments.household.rules import World
from r2v.environments.household.scenes import SceneSettings, generate
from r2v.environments.household.scenes import make_tasks as generate_tasks
from r2v.errors import SettingsError
from r2v.perturbations import family_of, make_perturbation
from r2v.perturbations.wrap import PerturbedBranching
from r2v.policies.chat import ChatPolicy, ChatSettings
from r2v.protocols import Agent, Environment, Policy, Router
from r2v.routers import baselines
from r2v.routers.mlp import load_router
from r2v.routers.threshold import Score, ThresholdRouter
from r2v.seeds import derive_seed
from r2v.types import Task
from r2v.verifiers.household import HouseholdVerifier

CLEAN = 0
"""Perturbation seed of unperturbed episodes."""

WITH_KNOB = ("random", "entropy", "heuristic", "verifier", "r2v", "r2v_paper")
WITHOUT_KNOB = ("slm_only", "llm_only")


@dataclass(frozen=True)
class Player:
    """Who plays, in words that travel to a worker process."""

    kind: Literal["teacher", "noisy_teacher", "routed"]
    slm: Path | None = None
    """Model folder."""
    router: str = "slm_only"
    threshold: float | None = None
    fitted: Path | None = None
    """Folder with the fitted routers, for those that need one."""


def scene_settings(settings: RunSettings) -> SceneSettings:
    e = settings.environment
    return SceneSettings(e.receptacles, e.objects, e.families, e.dialect, e.house)


def make_tasks(settings: RunSettings, *, count: int | None = None, fresh: int | None = None) -> list[Task]:
    """All tasks of a run; or `count` newly generated ones that no run's own tasks can equal (`fresh`: their seed)."""
    if settings.environment.data is not None:
        if fresh is not None:
            raise SettingsError(
                "--fresh-tasks makes new generated tasks; this run uses the recorded games of environment.data"
            )
        return real_tasks(Path(settings.environment.data), settings.environment.families)
    wanted = sum(settings.tasks.model_dump().values()) if count is None else count
    seed = settings.seed if fresh is None else derive_seed("fresh tasks", settings.seed, fresh)
    return generate_tasks(seed, wanted, scene_settings(settings))


def make_environment(settings: RunSettings, task: Task, z: int) -> tuple[Environment, str]:
    """The task's environment under perturbation seed z (0 = clean), and the perturbation family."""
    environment = Household(_world(settings, task))
    family = family_of(task.id, z, settings.perturbations.families)
    if z == CLEAN:
        return environment, family
    perturbation = make_perturbation(family, settings.perturbations.strength, environment.goal)
    return PerturbedBranching(environment, perturbation, seed=z, salt=task.id), family


@lru_cache(maxsize=4096)
def _world(settings: RunSettings, task: Task) -> World:
    if settings.environment.data is not None:
        return load_game(Path(os.path.expandvars(settings.environment.data)).expanduser() / task.id / GAME_FILE)
    return generate(task.id, task.family, scene_settings(settings)).world()


def make_teacher(settings: RunSettings) -> Policy:
    if isinstance(settings.teacher, ChatSettings):
        return ChatPolicy(settings.teacher, name="teacher")
    return HouseholdExpert()


def make_slm(settings: SlmSettings, folder: Path) -> Policy:
    """The trained SLM with an empty cache, sampled with one thread."""
    import torch

    from r2v.policies.local import LocalPolicy

    torch.set_num_threads(1)
    return LocalPolicy(
        *_loaded(folder),
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_new_tokens=settings.max_new_tokens,
    )


@lru_cache(maxsize=2)
def _loaded(folder: Path) -> tuple[Any, Any]:
    from r2v.policies.loading import load_model

    return load_model(folder)


def make_router(name: str, threshold: float | None, fitted: Path | None) -> Router:
    """A router by its name in reports; those with a knob need a threshold, the fitted ones their folder."""
    if name == "slm_only":
        return baselines.Never()
    if threshold is None:
        raise ValueError(f"router {name} needs a threshold")
    if name == "random":
        return baselines.Random(threshold)
    return ThresholdRouter(name, make_score(name, fitted), threshold)


def make_score(name: str, fitted: Path | None) -> Score:
    """The score that the named router compares with its threshold."""
    if name in ("r2v", "r2v_paper"):
        if fitted is None:
            raise ValueError(f"router {name} needs the folder of fitted routers")
        return _risk_of(fitted / name)
    return {"entropy": baselines.entropy, "heuristic": baselines.heuristic, "verifier": baselines.verifier}[name]


@lru_cache(maxsize=4)
def _risk_of(folder: Path) -> Score:
    """The fitted risk; each step's is computed once, however many thresholds it is compared with."""
    return lru_cache(maxsize=1 << 14)(load_router(folder).score)


def make_agents(settings: RunSettings, players: Iterable[Player]) -> list[Agent]:
    """Agents that play together: those with the same SLM share their parts. Nothing is left over from earlier ones."""
    parts: dict[Path, Parts] = {}

    def agent(player: Player) -> Agent:
        if player.kind == "teacher":
            return Solo(make_teacher(settings), "teacher")
        if player.kind == "noisy_teacher":
            return Noisy(Solo(make_teacher(settings), "teacher"), settings.collect.noise, random_action)
        if player.slm is None:
            raise ValueError("a routed player needs the folder of its SLM")
        if player.slm not in parts:
            slm, teacher = make_slm(settings.slm, player.slm), make_teacher(settings)
            parts[player.slm] = Parts(slm, teacher, HouseholdVerifier(), settings.slm.k)
        return Routed(parts[player.slm], make_router(player.router, player.threshold, player.fitted))

    return [agent(player) for player in players]
