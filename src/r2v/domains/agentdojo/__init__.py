"""AgentDojo's tasks for live models, clean or with an injection planted. The expert knows the benchmark's own solutions."""

from __future__ import annotations

from r2v.core.errors import SettingsError
from r2v.core.protocols import Environment, Policy
from r2v.core.types import Task
from r2v.domains.agentdojo.chat_format import CALLS
from r2v.domains.base import Domain, EnvironmentSettings, made_in
from r2v.runtime.settings import PositiveInt


class AgentDojoSettings(EnvironmentSettings):
    horizon: PositiveInt = 16
    """Calls and the answer; AgentDojo's own agents stop after 15 calls."""
    suites: tuple[str, ...] = ("workspace", "slack", "banking", "travel")
    injection_task: str | None = None
    """What an attacker has planted wherever the task leads (`engine.ATTACK`), e.g. `injection_task_3`; null: nothing."""


class AgentDojoDomain(Domain[AgentDojoSettings]):
    name = "agentdojo"
    settings = AgentDojoSettings
    verifier = "agentdojo"
    perturbations = made_in("r2v.domains.agentdojo.perturbations", "flaky")
    chat_format = CALLS

    def tasks(self, env: AgentDojoSettings, count: int, seed: int) -> list[Task]:
        """All tasks of the suites. Raises SettingsError where a suite does not exist, or agentdojo is not installed."""
        from r2v.domains.agentdojo.engine import cell_of, suite_of

        cells = [cell_of(suite, name) for suite in env.suites for name in suite_of(suite).user_tasks]
        for suite in env.suites:
            known = suite_of(suite).injection_tasks
            if env.injection_task is not None and env.injection_task not in known:
                raise SettingsError(f"environment.injection_task: {suite} has {', '.join(known)}, not {env.injection_task}")
        return [Task(f"{cell.suite}/{cell.user_task}", cell.suite, self.name, cell.prompt) for cell in cells]

    def environment(self, env: AgentDojoSettings, task: Task) -> Environment:
        from r2v.domains.agentdojo.engine import cell_of
        from r2v.domains.agentdojo.env import Session

        return Session(cell_of(*task.id.split("/"), env.injection_task))

    def expert(self) -> Policy:
        from r2v.domains.agentdojo.expert import GroundTruth

        return GroundTruth()


DOMAIN = AgentDojoDomain()
