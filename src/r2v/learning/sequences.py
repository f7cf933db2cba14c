"""Episodes as token sequences with loss weights, and batches of them.

Example (weights in brackets): Task: ... you see a shelf 1. > [.3 each]  go to shelf 1 <eos> [1 each]  You arrive ... [.3]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from r2v.clients.local.transcript import Encoder, segments
from r2v.core.types import Episode


@dataclass(frozen=True)
class Sequences:
    tokens: tuple[NDArray[np.int64], ...]
    weights: tuple[NDArray[np.float32], ...]


def encode_episodes(episodes: Sequence[Episode], tokenizer: Any, observation_weight: float) -> Sequences:
    """No weight on the actions of source "noise"; the final observation is not learned."""
    encoder, all_tokens, all_weights = Encoder(tokenizer), [], []
    told = [
        segments(e.goal, [s.observation.text for s in e.steps], [s.choice.action.text for s in e.steps]) for e in episodes
    ]
    encoder.learn(text for texts in told for text, _ in texts)
    for episode, texts in zip(episodes, told, strict=True):
        actors = iter(step.choice.source for step in episode.steps)
        tokens, weights = list(encoder.bos), [0.0] * len(encoder.bos)
        for text, is_action in texts:
            piece = encoder(text, action=is_action)
            weight = observation_weight if not is_action else float(next(actors) != "noise")
            tokens += piece
            weights += [weight] * len(piece)
        all_tokens.append(np.array(tokens, dtype=np.int64))
        all_weights.append(np.array(weights, dtype=np.float32))
    return Sequences(tuple(all_tokens), tuple(all_weights))


def batches(data: Sequences, batch_tokens: int, pad: int, *, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (tokens_BL, weights_BL), at most `batch_tokens` tokens each, sequences of like length together.

    Padding is on the right: a causal model needs no mask for it, and its weight is 0.
    """
    lengths = np.array([len(tokens) for tokens in data.tokens])
    epoch = 0
    while True:
        rng = np.random.default_rng([seed, epoch])
        order = np.argsort(lengths + rng.uniform(0, 16, len(lengths)), kind="stable")
        groups: list[list[int]] = [[]]
        width = 0
        for i in order:
            width = max(width, int(lengths[i]))
            if groups[-1] and (len(groups[-1]) + 1) * width > batch_tokens:
                groups.append([])
                width = int(lengths[i])
            groups[-1].append(int(i))
        for g in rng.permutation(len(groups)):
            members, longest = groups[g], max(int(lengths[i]) for i in groups[g])
            tokens_BL = np.full((len(members), longest), pad, dtype=np.int64)
            weights_BL = np.zeros((len(members), longest), dtype=np.float32)
            for row, i in enumerate(members):
                tokens_BL[row, : lengths[i]] = data.tokens[i]
                weights_BL[row, : lengths[i]] = data.weights[i]
            yield torch.from_numpy(tokens_BL), torch.from_numpy(weights_BL)
        epoch += 1
