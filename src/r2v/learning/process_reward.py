"""Fits a process reward model to recorded episodes: P(the task will be solved) from each action on, as in AgentPRM.

The targets are lambda-returns. With decay 1 they are Monte-Carlo: the outcome itself, at each step of its episode. Below 1
a target leans on the values of the steps that came next, which a model gives that saw no episode of the task (temporal
differences), so that a good step of an episode that was lost later is not taken for a bad one.

Axes: E episodes, T steps of one, N steps of all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from r2v.core.arrays import to_bytes
from r2v.core.errors import StageError
from r2v.core.features import FEATURES, batch
from r2v.core.groups import folds, groups, splits
from r2v.core.reading import Reader, grams, joined, texts
from r2v.core.types import Episode
from r2v.learning.reading import ReadRows, calibrated, fit_reader, probability
from r2v.maths import Bools, Floats
from r2v.maths.calibration import brier
from r2v.maths.stats import auroc
from r2v.runtime.store import whole_file, write_text
from r2v.verifiers.learned import CARD, FORMAT, NUMBERS, WEIGHTS, ProcessReward, numbers_of

DECAY, FOLDS = 1.0, 4
"""Lambda: .9 was better than 1 on MINT, no better on KnowAgent, worse on the household (`benchmarks/verifiers.py`). Folds of
tasks, each valued by a model of the others."""
LEAST_GROUPS = 10
"""Groups of tasks below which nothing is fitted."""


def lambda_returns(value_T: Floats, success: float, *, decay: float, discount: float = 1.0) -> Floats:
    """The targets of one episode's steps. Reward is only what the end brings.

    They are A_t + V_t of generalised advantage estimation, with A_t = sum over l of (discount x decay)^l x delta_(t+l) and
    delta_t = r_t + discount x V_(t+1) - V_t: the value of a step itself cancels, only those of later steps count.

    Args:
        value_T: the value of each step's action.
        success: what the last step led to.
        decay: lambda; 1: Monte-Carlo; 0: the value of the next step alone.
        discount: of what comes a step later.
    """
    target_T = np.empty(len(value_T))
    target_T[-1:] = success
    for t in range(len(value_T) - 2, -1, -1):
        target_T[t] = discount * ((1 - decay) * value_T[t + 1] + decay * target_T[t + 1])
    return target_T


def step_rows(episodes: Sequence[Episode], group_E: NDArray[np.int64], horizon: int = 50) -> ReadRows:
    """The executed action of each step of some episodes, in its context."""
    said, numbers, owners, t = [], [], [], []
    for i, episode in enumerate(episodes):
        for step, context in zip(episode.steps, episode.contexts(horizon), strict=True):
            said.append(grams(texts(context, step.choice.action)))
            numbers.append(numbers_of(context, step.choice.action))
            owners.append(i)
            t.append(step.t)
    agents, agent_E = np.unique([episode.agent for episode in episodes] or [""], return_inverse=True)
    episode_N = np.array(owners, dtype=np.int64)
    columns = [FEATURES.index(name) for name in NUMBERS]
    x_NF, present_NF = batch(numbers)
    return ReadRows(
        joined(said), NUMBERS, x_NF[:, columns], present_NF[:, columns], agent_E[episode_N], tuple(map(str, agents)),
        episode_N, np.array(t, dtype=np.int64), np.asarray(group_E)[episode_N],
    )  # fmt: skip


def fit_process_reward(
    rows: ReadRows, success_E: Floats, *, decay: float = DECAY, discount: float = 1.0, seed: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> ProcessReward:  # fmt: skip
    """Fit on steps of episodes whose outcome is known.

    Args:
        rows: all steps of the episodes (`step_rows`).
        success_E: 1 or 0 of each episode.
        decay: see `lambda_returns`.
        discount: see there.
        seed: of the folds.
        facts: what is known of the episodes, for the card.

    Raises:
        StageError: the tasks are too few, or all episodes ended alike.
    """
    tasks = len(np.unique(rows.group_N))
    solved_N = success_E[rows.episode_N]
    if tasks < LEAST_GROUPS:
        raise StageError(f"a verifier is learned from {LEAST_GROUPS} groups of tasks at least; these are {tasks}")
    if not 0 < solved_N.mean() < 1:
        raise StageError("all of these episodes ended alike: a verifier is learned from solved and failed ones")
    fold_N = task_folds(rows, seed)
    value_N = held_out_values(rows, solved_N, fold_N, decay=decay, discount=discount, seed=seed)
    every = np.ones(len(rows), dtype=bool)
    reader = _reader(rows, solved_N, every, fold_N, decay=decay, discount=discount, seed=seed)
    card = {
        "episodes": len(success_E), "steps": len(rows), "groups_of_tasks": tasks, "models": list(rows.agents)[:50],
        "decay": decay, "discount": discount, "seed": seed, **(facts or {}),
        "of_steps_on_tasks_left_out": {"auroc": auroc(value_N, solved_N), "brier": brier(value_N, solved_N)},
    }  # fmt: skip
    return ProcessReward(calibrated(_unnamed(reader), value_N, solved_N), float(success_E.mean()), card)


def task_folds(rows: ReadRows, seed: int) -> NDArray[np.int64]:
    """The fold of each row's task."""
    return folds(np.unique(rows.group_N, return_inverse=True)[1], FOLDS, seed)


def held_out_values(
    rows: ReadRows, solved_N: Floats, fold_N: NDArray[np.int64], *, decay: float, discount: float = 1.0, seed: int = 0
) -> Floats:
    """The value of each row by a model that saw no outcome of its fold (of its folds, one a column), nor a target made of
    one; before calibration, and without the name of its model.
    """
    value_N = np.zeros(len(rows))
    for held, rest in splits(fold_N):
        reader = _reader(rows, solved_N, rest, fold_N, decay=decay, discount=discount, seed=seed)
        value_N[held] = probability(_unnamed(reader), rows, held)
    return value_N


def _reader(
    rows: ReadRows, solved_N: Floats, use_N: Bools, fold_N: NDArray[np.int64], *, decay: float, discount: float, seed: int
) -> Reader:
    """Fitted on some rows. With decay below 1 a first fit, to the outcomes, gives the values that the targets lean on, of
    each task by a model of the others among these rows.
    """
    target_N = _targets(rows, solved_N, solved_N, 1.0, discount)
    if decay < 1:
        value_N = solved_N.copy()
        for fold in np.unique(fold_N.reshape(len(rows), -1)[use_N, 0]):
            inside = fold_N.reshape(len(rows), -1)[:, 0] == fold
            reader = fit_reader(rows, target_N, use_N & ~inside, seed=seed)
            value_N[use_N & inside] = probability(reader, rows, use_N & inside)
        target_N = _targets(rows, value_N, solved_N, decay, discount)
    return fit_reader(rows, target_N, use_N, seed=seed)


def train_process_reward(
    episodes: Sequence[Episode], *, decay: float = DECAY, discount: float = 1.0, seed: int = 0
) -> ProcessReward:
    """Fit on the episodes whose outcome is known. Raises StageError; see `fit_process_reward`."""
    known = [episode for episode in episodes if episode.success is not None and episode.steps]
    if not known:
        raise StageError("no episode with a known outcome has a step: there is nothing to learn from")
    rows = step_rows(known, groups(known).group_E)
    success_E = np.array([float(bool(episode.success)) for episode in known])
    return fit_process_reward(rows, success_E, decay=decay, discount=discount, seed=seed)


def _targets(rows: ReadRows, value_N: Floats, solved_N: Floats, decay: float, discount: float) -> Floats:
    """Of all steps; rows of one episode stand one after the other."""
    first = [*np.unique(rows.episode_N, return_index=True)[1].tolist(), len(rows)]
    parts = [lambda_returns(value_N[a:b], solved_N[a], decay=decay, discount=discount) for a, b in pairwise(first)]
    return np.concatenate(parts)


def _unnamed(reader: Reader) -> Reader:
    """Without what is known of the models of the fit: a verifier is used on others."""
    return replace(reader, agents={})


def save_process_reward(model: ProcessReward, folder: Path) -> None:
    """Write the folder that `r2v.verifiers.learned.load_process_reward` reads; last the card with the hash of the rest."""
    arrays: dict[str, Floats] = {}

    def array(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            raise TypeError(f"a verifier cannot hold a {type(value).__name__}")
        arrays[str(len(arrays))] = value
        return str(len(arrays) - 1)

    reader = msgspec.to_builtins(model.reader, enc_hook=array)
    weights = to_bytes(arrays)
    card = {
        "format": FORMAT, "weights": hashlib.sha256(weights).hexdigest(), "reader": reader, "prior": model.prior,
        "facts": model.facts,
    }  # fmt: skip
    with whole_file(folder / WEIGHTS) as aside:
        aside.write_bytes(weights)
    write_text(folder / CARD, json.dumps(card, indent=2, allow_nan=False) + "\n")
