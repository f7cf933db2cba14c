"""The losses as pure functions (method, section 2).

Axes: B sequences, L tokens, V vocabulary, N pairs or positions. Log-probabilities in nats.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

JSD_TEMPERATURE = 2.0


def bc_loss(logits_BLV: Tensor, tokens_BL: Tensor, weights_BL: Tensor, total: Tensor | None = None) -> Tensor:
    """Weighted mean of -log pi(token | prefix). The weight at position l is that of predicting token l.

    `total`: what the weighted sum is divided by, where the rows are a part of a batch; None: the sum of their weights.
    """
    loss_N = F.cross_entropy(logits_BLV[:, :-1].flatten(0, 1), tokens_BL[:, 1:].flatten(), reduction="none")
    weights_N = weights_BL[:, 1:].flatten()
    return (loss_N * weights_N).sum() / (weights_N.sum() if total is None else total).clamp_min(1e-9)


def dpo_loss(chosen_N: Tensor, rejected_N: Tensor, chosen_ref_N: Tensor, rejected_ref_N: Tensor, beta: float) -> Tensor:
    """Mean of -log sigmoid(beta [log pi/ref (a+) - log pi/ref (a-)]), from summed token log-probs (Rafailov 2023, eq. 7)."""
    margin_N = (chosen_N - chosen_ref_N) - (rejected_N - rejected_ref_N)
    return -F.logsigmoid(beta * margin_N).mean()


def jsd_loss(logits_NV: Tensor, other_NV: Tensor) -> Tensor:
    """Mean Jensen-Shannon divergence of the two views' distributions, logits / 2 before softmax; in [0, log 2]."""
    p_NV = F.log_softmax(logits_NV / JSD_TEMPERATURE, dim=-1)
    q_NV = F.log_softmax(other_NV / JSD_TEMPERATURE, dim=-1)
    m_NV = torch.logsumexp(torch.stack([p_NV, q_NV]), dim=0) - math.log(2.0)
    kl_p = F.kl_div(m_NV, p_NV, reduction="none", log_target=True).sum(-1)
    kl_q = F.kl_div(m_NV, q_NV, reduction="none", log_target=True).sum(-1)
    return (0.5 * (kl_p + kl_q)).mean()
