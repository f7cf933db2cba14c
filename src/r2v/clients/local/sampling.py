"""Drawing tokens from logits with given uniforms, so that a draw depends on its request's seed and not on its batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

ENTROPY_TOP = 20


def uniforms_KL(seed: int, k: int, length: int) -> np.ndarray:
    """The uniforms of one request: candidate k, token position l."""
    return np.random.Generator(np.random.Philox(key=seed)).random((k, length))


def cumulative_NV(logits_NV: Tensor, temperature: float, top_p: float) -> Tensor:
    """Cumulative probability over the vocabulary, tokens outside the nucleus (`top_p`) at zero probability.

    In the order of the vocabulary, not of the probabilities: float noise may swap two nearly equal probabilities, and
    must not swap what is drawn.
    """
    probabilities = torch.softmax(logits_NV / temperature, dim=-1)
    if probabilities.device.type == "cpu":  # NumPy sorts short rows several times as fast as torch
        ranked = torch.from_numpy(np.sort(probabilities.numpy(), axis=-1)).flip(-1)
    else:
        ranked = probabilities.sort(dim=-1, descending=True).values
    inside = ranked.cumsum(dim=-1) - ranked < top_p
    least = ranked.gather(1, inside.sum(dim=-1, keepdim=True) - 1)
    cumulative = probabilities.masked_fill(probabilities < least, 0.0).double().cumsum(dim=-1)
    return cumulative / cumulative[:, -1:]


def draw_NK(cumulative_NV: Tensor, uniforms_NK: Tensor) -> Tensor:
    """The token at each uniform in [0, 1) of a row, by inverse CDF."""
    return torch.searchsorted(cumulative_NV, uniforms_NK, right=True)


def entropy_N(top_N20: Tensor, vocabulary: int) -> Tensor:
    """Entropy in nats from the log-probabilities of the 20 likeliest tokens, the rest spread evenly over the vocabulary
    (method, feature 1).
    """
    entropy = -(top_N20.exp() * top_N20).sum(dim=-1)
    others = vocabulary - top_N20.shape[-1]
    if others:
        rest = (1 - top_N20.exp().sum(dim=-1)).clamp_min(1e-12)
        entropy = entropy - rest * (rest / others).log()
    return entropy.clamp_min(0.0)
