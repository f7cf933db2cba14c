"""`RecordedTask`: one task as several episodes saw it. It answers what was recorded and nothing else.

With `RecordedPolicy` this is a closed loop without the original environment: agents may change hands wherever two recordings
share a state; elsewhere the environment raises `NotRecorded`.
"""

from __future__ import annotations

from collections.abc import Sequence

from r2v.core.errors import NotRecorded
from r2v.core.seeds import derive_seed
from r2v.core.types import Action, Episode, Observation

_History = tuple[tuple[str, ...], tuple[str, ...]]
"""(observations, actions taken)"""


class RecordedTask:
    """An `Environment` that can be cloned. Where recordings of one state differ, the first recording counts."""

    def __init__(self, episodes: Sequence[Episode]) -> None:
        """Raises ValueError unless the episodes, one at least, are of one task with one goal and have steps."""
        if len({(episode.task.id, episode.goal) for episode in episodes}) != 1 or not all(e.steps for e in episodes):
            raise ValueError("a recorded task needs episodes with steps, all of one task and one goal")
        self.goal = episodes[0].goal
        self._first = episodes[0].steps[0].observation.text
        self._answers: dict[_History, Observation] = {}
        for episode in episodes:
            seen = tuple(step.observation.text for step in episode.steps)
            done = tuple(step.choice.action.text for step in episode.steps)
            for t, step in enumerate(episode.steps[1:], start=1):
                self._answers.setdefault((seen[:t], done[:t]), _open(step.observation))
            if episode.final is not None:
                self._answers.setdefault((seen, done), episode.final)
        self._observations: tuple[str, ...] = ()
        self._actions: tuple[str, ...] = ()
        self._done = False

    async def start(self) -> Observation:
        return self._told(Observation(self._first, False, None, None, "", ()))

    async def step(self, action: Action) -> Observation:
        """Raises NotRecorded where no recording has this action here."""
        if self._done:
            raise RuntimeError("the episode is over; build a new environment")
        actions = (*self._actions, action.text)
        answer = self._answers.get((self._observations, actions))
        if answer is None:
            raise NotRecorded(f"nobody recorded {action.text[:60]!r} at step {len(self._actions)} of {self.goal[:60]!r}")
        self._actions = actions
        return self._told(answer)

    async def close(self) -> None:
        """Nothing to free."""

    def clone(self) -> RecordedTask:
        """An independent copy of the present."""
        copy = RecordedTask.__new__(RecordedTask)
        copy.__dict__.update(self.__dict__)
        return copy

    def _told(self, answer: Observation) -> Observation:
        self._observations = (*self._observations, answer.text)
        self._done = answer.done
        latent = f"{derive_seed(self.goal, *self._observations, *self._actions):016x}"
        return Observation(answer.text, answer.done, answer.success, answer.reward, latent, answer.changes)


def _open(observation: Observation) -> Observation:
    """As the episode went on after it."""
    return Observation(observation.text, False, None, observation.reward, "", observation.changes)
