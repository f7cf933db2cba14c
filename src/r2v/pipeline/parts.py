"""The composition root: the only place where a name in the settings becomes an object."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from r2v.clients.chat import ChatPolicy, ChatSettings
from r2v.core.agent import AgentModels, Noisy, Routed, Solo
from r2v.core.features import View
from r2v.core.protocols import Agent, Environment, Policy, Router
from r2v.core.types import Task
from r2v.domains.household.expert import HouseholdExpert
from r2v.domains.household.noise import random_action
from r2v.perturbations import family_of
from r2v.perturbations.wrap import PerturbedBranching
from r2v.pipeline.settings import RunSettings, SlmSettings
from r2v.pipeline.worlds import chat_format_of, make_world, perturbation_of, verifier_of
from r2v.routers import baselines, comparators, interventions
from r2v.routers.mlp import load_router
from r2v.routers.threshold import Score, ThresholdRouter
from r2v.runtime.store import read_json
from r2v.verifiers import verifier_named

if TYPE_CHECKING:
    from r2v.clients.local.policy import LocalPolicy

CLEAN = 0
"""Perturbation seed of unperturbed episodes."""

WITHOUT_KNOB = ("slm_only", "llm_only")


@dataclass(frozen=True)
class AgentSpec:
    """Who plays, in words that travel to a worker process."""

    kind: Literal["teacher", "noisy_teacher", "routed"]
    slm: Path | None = None
    """Model folder."""
    router: str = "slm_only"
    threshold: float | None = None
    fitted: Path | None = None
    """Folder with the fitted routers, for those that need one."""
    view: View = "full"


def make_environment(settings: RunSettings, task: Task, z: int) -> tuple[Environment, str]:
    """The task's environment under perturbation seed z (0 = clean), and the perturbation family."""
    environment = make_world(settings, task)
    family = family_of(task.id, z, settings.perturbations.families)
    if z == CLEAN:
        return environment, family
    perturbation = perturbation_of(settings, family, environment.goal)
    return PerturbedBranching(environment, perturbation, seed=z, salt=task.id), family


def make_teacher(settings: RunSettings) -> Policy:
    if isinstance(settings.teacher, ChatSettings):
        return ChatPolicy(settings.teacher, name="teacher", chat_format=chat_format_of(settings), logprobs=False)
    return HouseholdExpert()


def make_slm(settings: SlmSettings, folder: Path) -> LocalPolicy:
    """The trained SLM in `folder` with an empty cache, on the CPU sampled with one thread."""
    import torch

    from r2v.clients.local.policy import LocalPolicy

    torch.set_num_threads(1)
    return LocalPolicy(
        *_loaded(folder, settings.trained.device, settings.trained.precision),
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_new_tokens=settings.max_new_tokens,
    )


@lru_cache(maxsize=2)
def _loaded(folder: Path, device: str, precision: str) -> tuple[Any, Any]:
    from r2v.clients.local.loading import load_model

    return load_model(folder, device=device, precision=precision)


def make_router(name: str, threshold: float | None, fitted: Path | None) -> Router:
    """A router by its name in reports; those with a operating_point need a threshold, the fitted ones their folder."""
    if name == "slm_only":
        return baselines.Never()
    if threshold is None:
        raise ValueError(f"router {name} needs a threshold")
    if name == "random":
        return baselines.Random(threshold)
    if name.startswith(ROUTE_PREFIX):
        how = next(how for how in interventions.HOW if name == ROUTE_PREFIX + how)
        return interventions.Intervention(make_score("r2v", fitted), threshold, how, name)
    if name == "redraw":
        return baselines.Redraw()
    if name == "judge_latch":
        return comparators.JudgeLatch(threshold)
    if name in ("query", "conformal", "cascade_routing", "helper", "restart"):
        if fitted is None:
            raise ValueError(f"router {name} needs the folder of fitted routers")
        if name == "query":
            return comparators.Query(make_goal_model(fitted), threshold)
        if name == "conformal":
            return comparators.Conformal(make_score("r2v", fitted), _band(fitted), threshold)
        if name == "restart":
            return comparators.Restart(make_score(name, fitted), threshold, _renewal(threshold, fitted))
        if name == "cascade_routing":
            now, later = make_score("cascade", fitted), _risk_of(fitted / "cascade_routing")
            return comparators.CascadeRouting(now, later, threshold, RETRY_PRICE)
        return _helper(threshold, fitted)
    if name == "helper_position":
        if fitted is None:
            raise ValueError(f"router {name} needs the folder of fitted routers")
        return _helper_at(int(threshold), fitted)
    return ThresholdRouter(name, make_score(name, fitted), threshold)


ROUTE_PREFIX = "route "
"""Begins the names of routers that answer the same alarm, r2v's, with one route each."""
RETRY_PRICE = 0.02
"""Of one more draw of candidates, in teacher calls: the paper's 50 : 1."""


def make_score(name: str, fitted: Path | None) -> Score:
    """The score that the named router compares with its threshold."""
    if name in ("entropy", "heuristic", "verifier"):
        return {"entropy": baselines.entropy, "heuristic": baselines.heuristic, "verifier": baselines.verifier}[name]
    if name == "judge_latch":
        return baselines.verifier
    if fitted is None:
        raise ValueError(f"router {name} needs the folder of fitted routers")
    if name == "benefit":
        return _benefit_of(fitted)
    if name == "bandit":
        return _bandit(fitted)
    return _risk_of(fitted / {"cascade_routing": "cascade", "restart": "r2v"}.get(name, name))


@lru_cache(maxsize=8)
def _risk_of(folder: Path) -> Score:
    """The fitted risk; each step's is computed once, however many thresholds it is compared with."""
    return lru_cache(maxsize=1 << 14)(load_router(folder).score)


@lru_cache(maxsize=2)
def _benefit_of(fitted: Path) -> Score:
    """P(the teacher differs) x what its step is worth where it does; `benefit/` holds the second factor."""
    differs, worth = _risk_of(fitted / "cascade"), load_router(fitted / "benefit").value
    return lru_cache(maxsize=1 << 14)(lambda features: differs(features) * worth(features))


@lru_cache(maxsize=2)
def _bandit(fitted: Path) -> Score:
    raw = read_json(fitted / "bandit" / "arms.json")
    model = comparators.LinUCB(load_router(fitted / "bandit"), np.array(raw["inverse"]), raw["bonus"])
    return lru_cache(maxsize=1 << 14)(model.score)


@lru_cache(maxsize=2)
def make_goal_model(fitted: Path) -> comparators.GoalModel:
    raw = read_json(fitted / "query.json")
    return comparators.GoalModel(raw["bias"], raw["weights"])


@lru_cache(maxsize=2)
def _band(fitted: Path) -> comparators.Band:
    raw = read_json(fitted / "conformal.json")
    return comparators.Band(*(np.array(raw[key]) for key in ("mean", "std", "excess")))


def _renewal(threshold: float, fitted: Path) -> comparators.Renewal:
    """What was measured at the nearest threshold."""
    table = read_json(fitted / "restart.json")
    entry = min(table, key=lambda e: abs(e["threshold"] - threshold))
    return comparators.Renewal(**{key: value for key, value in entry.items() if key != "threshold"})


def _helper(budget: float, fitted: Path) -> Router:
    """The mixture that uses `budget` teacher calls an episode on the validation tasks."""
    mixture = next(m for m in read_json(fitted / "helper" / "helper.json")["mixtures"] if m["budget"] == budget)
    first, second = (_helper_at(i, fitted) for i in (mixture["first"], mixture["second"]))
    return comparators.Mixture(first, second, mixture["weight"], "helper")


@lru_cache(maxsize=128)
def _helper_at(position: int, fitted: Path) -> Router:
    """The helper at one of the prices it was tried at; -1 never asks."""
    if position < 0:
        return baselines.Never()
    at = read_json(fitted / "helper" / "helper.json")["positions"][position]
    return ThresholdRouter("helper", _value_of(fitted / "helper" / str(at["value"])), at["price"])


@lru_cache(maxsize=16)
def _value_of(folder: Path) -> Score:
    return lru_cache(maxsize=1 << 14)(load_router(folder).value)


def make_models(settings: RunSettings, slm: Path, view: View = "full") -> AgentModels:
    """What a routed agent with this SLM is made of besides its router."""
    model = settings.slm.model
    if isinstance(model, ChatSettings):
        small: Policy = ChatPolicy(model, name="slm", chat_format=chat_format_of(settings))
    else:
        small = make_slm(settings.slm, slm)
    return AgentModels(small, make_teacher(settings), verifier_named(verifier_of(settings)), settings.slm.k, view=view)


def make_agents(settings: RunSettings, specs: Iterable[AgentSpec]) -> list[Agent]:
    """Agents that play together: those with the same SLM share their models. Nothing is left over from earlier ones."""
    models: dict[tuple[Path, View], AgentModels] = {}

    def made(spec: AgentSpec) -> Agent:
        if spec.kind == "teacher":
            return Solo(make_teacher(settings), "teacher")
        if spec.kind == "noisy_teacher":
            return Noisy(Solo(make_teacher(settings), "teacher"), settings.collect.noise, random_action)
        if spec.slm is None:
            raise ValueError("a routed agent needs the folder of its SLM")
        key = spec.slm, spec.view
        if key not in models:
            models[key] = make_models(settings, *key)
        return Routed(models[key], make_router(spec.router, spec.threshold, spec.fitted))

    return [made(spec) for spec in specs]
