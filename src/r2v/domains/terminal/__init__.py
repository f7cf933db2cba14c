"""The terminal: small tasks in a shell, run in the sandbox. There is no scripted expert."""

from __future__ import annotations

from r2v.core.protocols import Environment
from r2v.core.types import Task
from r2v.domains.base import Domain, EnvironmentSettings, made_in
from r2v.domains.terminal.chat_format import SHELL
from r2v.runtime.settings import PositiveInt


class TerminalSettings(EnvironmentSettings):
    horizon: PositiveInt = 25
    """Commands after which an episode counts as failed."""


class TerminalDomain(Domain[TerminalSettings]):
    name = "terminal"
    settings = TerminalSettings
    verifier = "terminal"
    perturbations = made_in("r2v.domains.terminal.perturbations", "flaky", "partial")
    chat_format = SHELL

    def tasks(self, env: TerminalSettings, count: int, seed: int) -> list[Task]:
        from r2v.domains.terminal.tasks import make_tasks

        return make_tasks()

    def environment(self, env: TerminalSettings, task: Task) -> Environment:
        from r2v.domains.terminal.env import Terminal
        from r2v.domains.terminal.tasks import task_named

        return Terminal(task_named(task.id.removeprefix("terminal/")))

    def confinement(self) -> tuple[str, ...]:
        from r2v.runtime import sandbox

        return sandbox.layers()


DOMAIN = TerminalDomain()
