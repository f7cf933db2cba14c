"""`learned`: a process reward model, fitted on recorded episodes: how likely the task will be solved from this action on.

verifier: {kind: learned, path: runs/verifier}

`r2v train-verifier LOGS --out FOLDER` fits it (`r2v.learning.process_reward`): a logistic model on hashed words of goal,
newest observation, action and latest steps, and on numbers of the step (`r2v.core.reading`). Its value Q(context, action) is
the promise of AgentPRM (arXiv 2511.08325); the difference to the step before is the progress.

FOLDER/verifier.json        {"format": 1, "weights": SHA-256, "reader": {...}, "prior": 0.31, "facts": {...}}
FOLDER/weights.safetensors  the arrays of the reader
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec

from r2v.core.arrays import from_file
from r2v.core.errors import ArtifactError
from r2v.core.features import FEATURES, featurise
from r2v.core.reading import Reader, grams, texts
from r2v.core.types import NO_USAGE, Action, Candidate, Context, Features
from r2v.core.untrusted import ROUTER_BYTES, parsed_json, read_bytes
from r2v.runtime.settings import Settings

FORMAT = 1
CARD, WEIGHTS = "verifier.json", "weights.safetensors"
NUMBERS = (
    "step_index", "context_length", "goal_length", "best_repeats", "last_observation_repeats", "repeats_in_last_five",
    "distinct_actions", "steps_since_new", "last_observation_length", "unseen_words", "chosen_names_goal", "goal_seen",
    "goal_in_last", "goal_in_actions", "steps_since_goal",
)  # fmt: skip
"""Features of a step that depend on the context and the action alone."""
_COLUMNS = tuple(FEATURES.index(name) for name in NUMBERS)


def numbers_of(context: Context, action: Action) -> Features:
    """All `FEATURES`, of which only `NUMBERS` are present."""
    found = featurise(context, (Candidate(action, None, None, NO_USAGE),), (0.0,))
    return Features(found.values, tuple(i in _COLUMNS for i in range(len(FEATURES))))


@dataclass(frozen=True, eq=False)
class ProcessReward:
    """The value of an action: how likely the task will be solved if the agent does it and goes on."""

    reader: Reader
    prior: float
    """The mean success of the episodes that it was fitted on: the value before the first step."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What it was fitted on, and what it is worth on tasks left out."""

    def value(self, context: Context, action: Action) -> float:
        return self.reader.score_of(grams(texts(context, action)), numbers_of(context, action))

    def value_before(self, context: Context) -> float:
        """The value of the action before; `prior` where there is none."""
        if not context.actions:
            return self.prior
        before = Context(context.goal, context.observations[:-1], context.actions[:-1], context.horizon)
        return self.value(before, context.actions[-1])


class LearnedVerifier(Settings):
    """The value of each action by a process reward model in a folder."""

    path: str
    """Folder that `r2v train-verifier` wrote."""
    value: Literal["promise", "progress"] = "promise"
    """promise: the value itself, a probability. progress: (1 + what the action adds to the value of the one before) / 2: it
    ranks steps of different episodes by what they changed; the order of the candidates of one step is the same."""

    def __post_init__(self) -> None:
        _ = self._model

    async def score(self, context: Context, actions: Sequence[Action]) -> tuple[float, ...]:
        values = [self._model.value(context, action) for action in actions]
        if self.value == "progress":
            before = self._model.value_before(context)
            values = [(1 + value - before) / 2 for value in values]
        if not all(0 <= value <= 1 for value in values):  # what a folder from elsewhere may have been made to give
            raise ValueError(f"{self.path} gives {values}, which are no scores from 0 to 1; train it again")
        return tuple(values)

    @cached_property
    def _model(self) -> ProcessReward:
        return load_process_reward(Path(self.path))

    @property
    def fingerprint(self) -> str:
        """What its scores depend on beside its source; not where the folder lies."""
        card = read_bytes(Path(self.path) / CARD, ROUTER_BYTES)
        return f"{self.value} {hashlib.sha256(card).hexdigest()}"


def load_process_reward(folder: Path) -> ProcessReward:
    """From a folder that `r2v.learning.process_reward.save_process_reward` wrote. Raises ArtifactError."""
    try:
        card = parsed_json(read_bytes(folder / CARD, ROUTER_BYTES, within=folder))
        if card["format"] != FORMAT:
            raise ValueError(f"format {card['format']}, this r2v reads {FORMAT}")
        weights = hashlib.sha256(read_bytes(folder / WEIGHTS, ROUTER_BYTES, within=folder)).hexdigest()
        if weights != card["weights"]:
            raise ValueError(f"{WEIGHTS} is not the file that it was saved with")
        arrays = from_file(folder / WEIGHTS)
        reader = msgspec.convert(card["reader"], Reader, dec_hook=lambda kind, name: arrays[name])
        if unknown := set(reader.names) - set(NUMBERS):
            raise ValueError(f"features {sorted(unknown)}, which a verifier does not know")
        return ProcessReward(reader, msgspec.convert(card["prior"], float), dict(card["facts"]))
    except FileNotFoundError as error:
        raise ArtifactError(f"{error.filename} does not exist; `r2v train-verifier LOGS --out {folder}` writes it") from None
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ArtifactError(f"{folder} is no learned verifier ({error}); train it again") from None
