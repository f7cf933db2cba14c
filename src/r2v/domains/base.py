"""`Domain`: all that a run needs to know about one kind of task, in one object.

A domain of your own is a subclass and an object of it, named in a settings file by its dotted path or by an entry point of
the group `r2v.domains`: `environment: {kind: my_package.my_module:DOMAIN}`. `r2v.core.checks.check_domain` checks it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from r2v.core.errors import SettingsError
from r2v.core.protocols import Environment, Perturbation, Policy, Verifier
from r2v.core.types import Action, Context, Task
from r2v.messages.chat_format import ChatFormat, command_of
from r2v.perturbations import TOGETHER
from r2v.perturbations.operators import Composite
from r2v.runtime import plugins
from r2v.runtime.settings import PositiveInt, Settings
from r2v.verifiers import verifier_named


class EnvironmentSettings(Settings):
    """What stands under `environment:`; a domain adds keys of its own in a subclass."""

    kind: str
    """The domain's name, or its dotted path."""
    horizon: PositiveInt = 40
    """Steps after which an episode counts as failed."""


E = TypeVar("E", bound=EnvironmentSettings)


def made_in(module: str, *families: str) -> Mapping[str, str]:
    """`Domain.perturbations` where one module has what makes each family, under its name."""
    return {family: f"{module}:{family}" for family in families}


class Domain(Generic[E]):
    """One kind of task. What a subclass leaves out it does not have."""

    name: ClassVar[str]
    settings: type[E] = EnvironmentSettings  # type: ignore[assignment]
    verifier: ClassVar[str] = "tool_calls"
    """Name or dotted path of the verifier (`r2v.verifiers`). It sees neither environment nor expert."""
    perturbations: ClassVar[Mapping[str, str]] = {}
    """Perturbation family -> dotted path of what makes it from (strength, topic). They see texts, never a state."""
    chat_format: ClassVar[ChatFormat] = ChatFormat(
        "You act by text commands, one at a time. Answer with exactly one command and nothing else.", command_of
    )
    """The system prompt of chat models, and how their replies become actions."""
    random_action: Callable[[Context, int], Action] | None = None
    """A random action from what the agent has read and a seed, for noisy episodes; None: there are none."""
    scratch: ClassVar[bool] = False
    """Whether a tiny model can be trained from nothing; its tokens are the matches of `pieces`, in lower case."""
    pieces: ClassVar[str] = r"\S+"
    """An action must be its pieces joined by single spaces."""
    dropped: ClassVar[str | None] = None
    """What such a model does not read, as a regular expression."""

    def tasks(self, env: E, count: int, seed: int) -> list[Task]:
        """The tasks of a run: `count` newly made ones, the same for the same seed, or those that are given."""
        raise NotImplementedError

    def fresh_tasks(self, env: E, count: int, seed: int) -> list[Task]:
        """Newly made tasks. Raises SettingsError where all tasks are given."""
        raise SettingsError(f"--fresh-tasks makes new tasks; those of this run ({env.kind}) are given")

    def environment(self, env: E, task: Task) -> Environment:
        """The undisturbed environment of one episode."""
        raise NotImplementedError

    @property
    def families(self) -> tuple[str, ...]:
        """The perturbation families that come with the domain."""
        return tuple(self.perturbations)

    def perturbation(self, family: str, strength: float, topic: str) -> Perturbation:
        """A family of the domain, of an entry point in `r2v.perturbations`, or by dotted path.

        Args:
            family: its name; of several that act together, their names joined by "+".
            strength: factor on its probabilities; 0 changes nothing.
            topic: the task's goal, whose words the disturbed texts may use.

        Raises:
            SettingsError: there is no such family.
        """
        if TOGETHER in family:
            parts = tuple(self.perturbation(part, strength, topic) for part in family.split(TOGETHER))
            return Composite(family, parts)
        made: Perturbation = plugins.load("perturbations", family, self.perturbations)(strength, topic)
        return made

    def expert(self) -> Policy | None:
        """A scripted teacher that sees only what the SLM sees; None where there is none."""
        return None

    def make_verifier(self) -> Verifier:
        """The verifier that the domain names."""
        return verifier_named(self.verifier)

    def task_file(self, env: E) -> Path | None:
        """The file that the tasks are read from; its content may change although its name does not."""
        return None

    def confinement(self) -> tuple[str, ...] | None:
        """Active layers of the sandbox where models write code that is run; None where they write none."""
        return None
