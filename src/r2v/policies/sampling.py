"""Drawing tokens from logits with given uniforms, so that a draw depends on its request's seed and not on its batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

ENTROPY_TOP = 20


def uniforms_KL(seed: int, k: int, length: int) -> np.ndarray:
    """The uniforms of one request: candidate k, token position l."""
    return np.random.Generator(np.random.Philox(key=seed)).random((k, length))


def cumulative_NV(logits_NV: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """(token ids by falling probability, cumulative probability inside the nucleus), both [N, V']."""
    probabilities, order = torch.softmax(logits_NV / temperature, dim=-1).sort(dim=-1, descending=True, stable=True)
    cumulative = probabilities.cumsum(dim=-1)
    outside = cumulative - probabilities >= top_p
    probabilities = probabilities.masked_fill(outside, 0.0)
    return order, probabilities.cumsum(dim=-1) / probabilities.sum(dim=-1, keepdim=True)


def draw_N(order_NV: Tensor, cumulative_NV: Tensor, uniforms_N: Tensor) -> Tensor:
    """The token at each uniform, by inverse CDF."""
    index_N1 = (cumulative_NV < uniforms_N[:, None]).sum(dim=-1, keepdim=True).clamp_max(order_NV.shape[1] - 1)
    return order_NV.gather(1, index_N1).squeeze(1)


def entropy_N(logp_NV: Tensor) -> Tensor:
    """Entropy in nats from the 20 likeliest tokens, the rest spread evenly over the vocabulary (method, feature 1)."""
    vocabulary = logp_NV.shape[-1]
    top_N20 = logp_NV.topk(min(ENTROPY_TOP, vocabulary), dim=-1).values
    entropy = -(top_N20.exp() * top_N20).sum(dim=-1)
    others = vocabulary - top_N20.shape[-1]
    if others:
        rest = (1 - top_N20.exp().sum(dim=-1)).clamp_min(1e-12)
        entropy = entropy - rest * (rest / others).log()
    return entropy.clamp_min(0.0)
