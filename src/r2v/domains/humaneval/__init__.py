"""HumanEval and HumanEval+: Python functions, run in the sandbox. There is no scripted expert."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from r2v.core.protocols import Environment
from r2v.core.types import Task
from r2v.domains.base import Domain, EnvironmentSettings, made_in
from r2v.domains.humaneval.chat_format import CODE
from r2v.runtime.settings import PositiveInt

if TYPE_CHECKING:
    from r2v.domains.humaneval.problems import Problem


class HumanEvalSettings(EnvironmentSettings):
    horizon: PositiveInt = 8
    problems: str | None = None
    """HumanEval or HumanEval+ file; else $HUMANEVAL_OVERRIDE_PATH, else the ten problems that come with r2v."""


class HumanEvalDomain(Domain[HumanEvalSettings]):
    name = "humaneval"
    settings = HumanEvalSettings
    verifier = "code"
    perturbations = made_in("r2v.domains.humaneval.perturbations", "flaky", "partial", "inject", "distract")
    chat_format = CODE

    def tasks(self, env: HumanEvalSettings, count: int, seed: int) -> list[Task]:
        from r2v.domains.humaneval.env import task_of

        return [task_of(problem) for problem in _problems(self.task_file(env)).values()]

    def environment(self, env: HumanEvalSettings, task: Task) -> Environment:
        from r2v.domains.humaneval.env import CodeTask

        return CodeTask(_problems(self.task_file(env))[task.id])

    def task_file(self, env: HumanEvalSettings) -> Path:
        from r2v.domains.humaneval.problems import problem_file

        return problem_file(env.problems)

    def confinement(self) -> tuple[str, ...]:
        from r2v.runtime import sandbox

        return sandbox.layers()


@lru_cache(maxsize=2)
def _problems(path: Path) -> dict[str, Problem]:
    from r2v.domains.humaneval.problems import load_problems

    return {problem.id: problem for problem in load_problems(path)}


DOMAIN = HumanEvalDomain()
