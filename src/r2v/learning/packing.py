"""A trajectory and all its preference pairs as one row: shared text once, every branch beside it (a tree mask).

    tokens     bos ... > | go to shelf 1 <eos> ... > | ... || chosen_1 | rejected_1 | chosen_2 ...
    a branch   sees the trajectory up to its step, and itself; its positions go on from there

About ten pairs share one trajectory, so this is some ten times cheaper than one row a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from r2v.clients.local.attention import attention_masks, layer_kinds, turning_point
from r2v.clients.local.transcript import Encoder, segments
from r2v.core.errors import ArtifactError
from r2v.core.types import Episode
from r2v.learning.pairs import PreferencePair


@dataclass(frozen=True)
class Packed:
    """One row. `predict` of a branch: the row positions whose logits predict its tokens."""

    tokens: np.ndarray
    positions: np.ndarray
    mask: np.ndarray
    """[L, L], True where the row may look."""
    branches: tuple[tuple[np.ndarray, np.ndarray], ...]
    """(predict, tokens) of chosen_1, rejected_1, chosen_2, ..."""
    own: tuple[tuple[np.ndarray, np.ndarray], ...]
    """(predict, tokens) of the trajectory's own actions, by step."""


def pack(episode: Episode, pairs: Sequence[PreferencePair], encoder: Encoder) -> Packed:
    """`pairs` of this episode. Without pairs it is the plain trajectory (a second view)."""
    observations = [step.observation.text for step in episode.steps]
    tokens, own = list(encoder.bos), []
    for text, is_action in segments(episode.goal, observations, [s.choice.action.text for s in episode.steps]):
        piece = encoder(text, action=is_action)
        if is_action:
            own.append((np.arange(len(tokens) - 1, len(tokens) + len(piece) - 1), np.array(piece)))
        tokens += piece
    trunk = len(tokens)
    positions = list(range(trunk))
    spans, branches = [], []
    for pair in pairs:
        prefix = int(own[pair.t][0][0]) + 1
        for text in (pair.chosen, pair.rejected):
            piece = encoder(text, action=True)
            start = len(tokens)
            branches.append((np.array([prefix - 1, *range(start, start + len(piece) - 1)]), np.array(piece)))
            spans.append((start, start + len(piece), prefix))
            tokens += piece
            positions += range(prefix, prefix + len(piece))
    mask = np.tril(np.ones((len(tokens), len(tokens)), dtype=bool))
    for start, end, prefix in spans:
        mask[start:end, prefix:start] = False
    return Packed(np.array(tokens), np.array(positions), mask, tuple(branches), tuple(own))


def forward(model: Any, rows: Sequence[Packed], pad: int) -> Tensor:
    """Logits [B, L, V] of rows, padded with token `pad` on the right.

    Raises ArtifactError when a text is so long that the model would encode all positions of the batch anew (LongRoPE).
    """
    longest, turn = max(int(row.positions.max()) + 1 for row in rows), turning_point(model.config)
    if turn is not None and longest > turn:
        raise ArtifactError(
            f"the model reads texts of at most {turn} tokens (its position code changes there); one has {longest}"
        )
    width = max(len(row.tokens) for row in rows)
    tokens_BL = np.full((len(rows), width), pad, dtype=np.int64)
    positions_BL = np.zeros((len(rows), width), dtype=np.int64)
    mask_BLL = np.repeat(np.eye(width, dtype=bool)[None], len(rows), axis=0)  # padding sees itself: no empty softmax
    for b, row in enumerate(rows):
        n = len(row.tokens)
        tokens_BL[b, :n], positions_BL[b, :n], mask_BLL[b, :n, :n] = row.tokens, row.positions, row.mask
    out: Tensor = model(
        input_ids=torch.from_numpy(tokens_BL).to(model.device),
        position_ids=torch.from_numpy(positions_BL).to(model.device),
        attention_mask=attention_masks(model, layer_kinds(model.config), mask_BLL, positions_BL, positions_BL),
        use_cache=False,
    ).logits
    return out


def branch_logp(logits_BLV: Tensor, rows: Sequence[Packed]) -> Tensor:
    """Summed token log-prob of every branch of every row, in order."""
    result = []
    for b, row in enumerate(rows):
        for predict, tokens in row.branches:
            logp = torch.log_softmax(logits_BLV[b, torch.from_numpy(predict)], dim=-1)
            result.append(logp.gather(1, torch.from_numpy(tokens)[:, None].to(logp.device)).sum())
    return torch.stack(result)
