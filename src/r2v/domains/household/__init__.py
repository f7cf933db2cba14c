"""The household: a text game of rooms, receptacles and objects; generated rooms, or recorded ALFWorld games."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from r2v.core.protocols import Environment, Policy
from r2v.core.types import Action, Context, Task
from r2v.domains.base import Domain, EnvironmentSettings, made_in
from r2v.domains.household.catalogue import FAMILIES, Family
from r2v.domains.household.chat_format import HOUSEHOLD
from r2v.runtime.settings import PositiveInt

if TYPE_CHECKING:
    from r2v.domains.household.rules import World
    from r2v.domains.household.scenes import SceneSettings

Range = tuple[PositiveInt, PositiveInt]
_PHRASES = (
    "go to", "arrive at", "are in middle of room looking quickly around", "nothing happens", "are not carrying anything",
    "are carrying:", "pick up", "error: request timed out",
)  # fmt: skip


class HouseholdSettings(EnvironmentSettings):
    kind: str = "household"
    families: Annotated[tuple[Family, ...], Meta(min_length=1)] = FAMILIES
    """Task families."""
    house: Literal["small", "full"] = "full"
    """Object types of generated rooms: 24 or 48."""
    receptacles: Range = (6, 9)
    """Fewest and most receptacles in a generated room."""
    objects: Range = (8, 14)
    """Fewest and most objects in a generated room."""
    dialect: Literal["move", "put"] = "move"
    """`move O to R` as ALFWorld data since 0.4.0, or `put O in/on R` as before."""
    data: str | None = None
    """Folder of real ALFWorld games to use instead of generated ones, e.g. $ALFWORLD_DATA/json_2.1.1/train."""

    @property
    def scenes(self) -> SceneSettings:
        """How rooms are generated."""
        from r2v.domains.household.scenes import SceneSettings

        return SceneSettings(self.receptacles, self.objects, self.families, self.dialect, self.house)


class HouseholdDomain(Domain[HouseholdSettings]):
    name = "household"
    settings = HouseholdSettings
    verifier = "household"
    perturbations = made_in("r2v.domains.household.perturbations", "flaky", "partial", "inject", "distract")
    chat_format = HOUSEHOLD
    scratch = True
    # An entity ("cabinet 2") is one token, and so are set phrases: a tiny model learns to copy one token long before it
    # learns to copy two. Words that carry nothing are dropped, so observations are read with loss; no action has such words.
    pieces = "|".join(_PHRASES) + r"|[a-z]+ \d+|in/on|[a-z]+|\.{3}|\S"
    dropped = r"\b(?:a|an|the|you|see|your|is|in it|on the)\b|,? and\b|,|\.(?!\.)(?<!\.\.)"

    def tasks(self, env: HouseholdSettings, count: int, seed: int) -> list[Task]:
        if env.data is not None:
            from r2v.domains.household.games import real_tasks

            return real_tasks(Path(env.data), env.families)
        from r2v.domains.household.scenes import make_tasks

        return make_tasks(seed, count, env.scenes)

    def fresh_tasks(self, env: HouseholdSettings, count: int, seed: int) -> list[Task]:
        return super().fresh_tasks(env, count, seed) if env.data is not None else self.tasks(env, count, seed)

    def environment(self, env: HouseholdSettings, task: Task) -> Environment:
        from r2v.domains.household.env import Household

        return Household(_world(env, task))

    def expert(self) -> Policy:
        from r2v.domains.household.expert import HouseholdExpert

        return HouseholdExpert()

    def random_action(self, context: Context, seed: int) -> Action:
        from r2v.domains.household.noise import random_action

        return random_action(context, seed)


@lru_cache(maxsize=4096)
def _world(env: HouseholdSettings, task: Task) -> World:
    from r2v.domains.household.games import GAME_FILE, load_game
    from r2v.domains.household.scenes import generate

    if env.data is not None:
        return load_game(Path(os.path.expandvars(env.data)).expanduser() / task.id / GAME_FILE)
    return generate(task.id, task.family, env.scenes).world()


DOMAIN = HouseholdDomain()
