"""Which environment a run plays, by `environment.kind`: its tasks, episodes, perturbations, verifier, chat format."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from r2v.core.errors import SettingsError
from r2v.core.protocols import Branching
from r2v.core.seeds import derive_seed
from r2v.core.types import Task
from r2v.domains.household.chat_format import HOUSEHOLD
from r2v.domains.household.env import Household
from r2v.domains.household.games import GAME_FILE, load_game, real_tasks
from r2v.domains.household.perturbations import make_perturbation
from r2v.domains.household.rules import World
from r2v.domains.household.scenes import SceneSettings, generate
from r2v.domains.household.scenes import make_tasks as generate_tasks
from r2v.domains.humaneval import env as humaneval
from r2v.domains.humaneval import perturbations as code
from r2v.domains.humaneval.problems import Problem, load_problems, problem_file
from r2v.domains.terminal import perturbations as shell
from r2v.domains.terminal import tasks as terminal
from r2v.domains.terminal.chat_format import SHELL
from r2v.domains.terminal.env import Terminal
from r2v.messages.chat_format import ChatFormat
from r2v.perturbations.operators import Operators
from r2v.pipeline.settings import EnvironmentSettings, HumanEvalSettings, RunSettings
from r2v.runtime import sandbox
from r2v.verifiers import VerifierName

CODE = ChatFormat(humaneval.SYSTEM, humaneval.action_of)


def make_tasks(settings: RunSettings, *, count: int | None = None, fresh: int | None = None) -> list[Task]:
    """All tasks of a run; or `count` newly generated ones that no run's own tasks can equal (`fresh`: their seed)."""
    e = settings.environment
    if isinstance(e, EnvironmentSettings) and e.data is None:
        wanted = sum(settings.tasks.model_dump().values()) if count is None else count
        seed = settings.seed if fresh is None else derive_seed("fresh tasks", settings.seed, fresh)
        return generate_tasks(seed, wanted, scene_settings(e))
    if fresh is not None:
        raise SettingsError("--fresh-tasks makes new generated household tasks; this run uses tasks that are given")
    if isinstance(e, EnvironmentSettings):
        return real_tasks(Path(str(e.data)), e.families)
    if isinstance(e, HumanEvalSettings):
        return [humaneval.task_of(problem) for problem in _problems(problem_file(e.problems)).values()]
    return terminal.make_tasks()


def make_world(settings: RunSettings, task: Task) -> Branching:
    """The task's environment, undisturbed."""
    e = settings.environment
    if isinstance(e, EnvironmentSettings):
        return Household(_household(e, task))
    if isinstance(e, HumanEvalSettings):
        return humaneval.CodeTask(_problems(problem_file(e.problems))[task.id])
    return Terminal(terminal.task_named(task.id.removeprefix("terminal/")))


def perturbation_of(settings: RunSettings, family: str, topic: str) -> Operators:
    make = {"household": make_perturbation, "humaneval": code.make, "terminal": shell.make}[settings.environment.kind]
    return make(family, settings.perturbations.strength, topic)


def verifier_of(settings: RunSettings) -> VerifierName:
    names: dict[str, VerifierName] = {"household": "household", "humaneval": "code", "terminal": "terminal"}
    return names[settings.environment.kind]


def chat_format_of(settings: RunSettings) -> ChatFormat:
    """How chat models are told to act here."""
    return {"household": HOUSEHOLD, "humaneval": CODE, "terminal": SHELL}[settings.environment.kind]


def scene_settings(e: EnvironmentSettings) -> SceneSettings:
    return SceneSettings(e.receptacles, e.objects, e.families, e.adapter, e.house)


@lru_cache(maxsize=4096)
def _household(e: EnvironmentSettings, task: Task) -> World:
    if e.data is not None:
        return load_game(Path(os.path.expandvars(e.data)).expanduser() / task.id / GAME_FILE)
    return generate(task.id, task.family, scene_settings(e)).world()


def confined_by(settings: RunSettings) -> tuple[str, ...] | None:
    """The layers of the sandbox that are active here, where models write code that is run; None where they write none."""
    return None if isinstance(settings.environment, EnvironmentSettings) else sandbox.layers()


def file_of_tasks(settings: RunSettings) -> Path | None:
    """The one file that a run's tasks are read from; its content may change although its name does not."""
    e = settings.environment
    return problem_file(e.problems) if isinstance(e, HumanEvalSettings) else None


@lru_cache(maxsize=2)
def _problems(path: Path) -> dict[str, Problem]:
    return {problem.id: problem for problem in load_problems(path)}
