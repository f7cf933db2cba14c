"""`Household`: one game as an environment. Synchronous inside; the protocol's methods only wrap `play`."""

from __future__ import annotations

import re

from r2v.core.types import Action, Observation
from r2v.domains.household.rules import NOTHING_HAPPENS, World, apply, commands, is_won
from r2v.domains.household.texts import feedback, introduction, room

_PUT = re.compile(r"^put (.+) in/on (.+)$")
_MOVE = re.compile(r"^move (.+) to (.+)$")
CHANGES = {"go", "open", "close", "take", "put", "clean", "heat", "cool", "use", "slice"}


class Household:
    """One episode of one game (`r2v.core.protocols.Branching`). The engine has no step limit of its own."""

    def __init__(self, world: World, *, any_dialect: bool = True) -> None:
        """`any_dialect`: accept `move O to R` and `put O in/on R` whatever the game's own spelling is."""
        self.world = world
        self.goal = world.sentence
        self._state = world.start.copy()
        self._any_dialect = any_dialect
        self._commands = commands(world, self._state)
        self._latent = self._state.latent()
        self._done = False

    def introduction(self) -> str:
        """The first screen as TextWorld prints it, with banner and task."""
        return introduction(self.world, self._state)

    def admissible_commands(self) -> list[str]:
        return sorted(self._commands)

    def play(self, command: str) -> tuple[str, int, bool]:
        """(feedback, reward, won). A command that is not admissible changes nothing and answers "Nothing happens."."""
        command = command.strip()
        effect = self._commands.get(command)
        if effect is None and self._any_dialect:
            effect = self._commands.get(self._respell(command))
        if effect is None:
            return NOTHING_HAPPENS, int(self._done), self._done
        if effect[0] in CHANGES:
            apply(self.world, self._state, effect)
            self._commands = commands(self.world, self._state)
            self._latent = self._state.latent()
            self._done = is_won(self.world, self._state)
        return feedback(self.world, self._state, effect), int(self._done), self._done

    def clone(self) -> Household:
        """An independent copy of the present."""
        copy = Household.__new__(Household)
        copy.__dict__.update(self.__dict__)
        copy._state = self._state.copy()
        return copy

    async def start(self) -> Observation:
        """The room; banner and task are left out because the context carries the goal."""
        return Observation(room(self.world, self._state), False, None, None, self._latent, ())

    async def step(self, action: Action) -> Observation:
        if self._done:
            raise RuntimeError("the episode is over; build a new environment")
        text, reward, done = self.play(action.text)
        return Observation(text.strip(), done, True if done else None, float(reward), self._latent, ())

    async def close(self) -> None:
        """Nothing to free."""

    def _respell(self, command: str) -> str:
        if self.world.dialect == "move":
            return _PUT.sub(r"move \1 to \2", command)
        return _MOVE.sub(r"put \1 in/on \2", command)
