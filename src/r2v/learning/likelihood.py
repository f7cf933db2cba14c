"""How likely a model thinks what the teacher answered: the held-out check of a model that learned from conversations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from r2v.clients.local.attention import longest_text
from r2v.clients.local.loading import load_model
from r2v.core.types import Episode
from r2v.learning.losses import bc_loss
from r2v.learning.models import half_products
from r2v.learning.sequences import encode_chats
from r2v.learning.settings import ModelSettings


def teacher_losses(
    folder: Path | str, settings: ModelSettings, episodes: Sequence[Episode], progress: Callable[..., None] = lambda *_: None
) -> list[float | None]:
    """Mean -log p in nats of the tokens of the teacher's answers, in each conversation; None where there is none to read.

    Args:
        folder: the model, or its hub id.
        settings: its device and precision.
        episodes: conversations that keep messages.
        progress: called with (done, of how many, note).

    Raises:
        ArtifactError: the model cannot be read, or has no chat template.
    """
    model, tokenizer = load_model(folder, device=settings.device)
    model.eval()
    found: list[float | None] = []
    for n, episode in enumerate(episodes, start=1):
        alone = replace(episode, success=None)  # of an episode that was not solved only the teacher's actions have weight
        data, _ = encode_chats([alone], tokenizer, longest_text(model.config))
        total, tokens = 0.0, 0.0
        for tokens_L, weights_L in zip(data.tokens, data.weights, strict=True):
            if not (count := float(weights_L[1:].sum())):
                continue
            ids_1L, weights_1L = (torch.from_numpy(part)[None].to(model.device) for part in (tokens_L, weights_L))
            with torch.inference_mode(), half_products(model, settings):
                total += bc_loss(model(input_ids=ids_1L, use_cache=False).logits.float(), ids_1L, weights_1L).item() * count
            tokens += count
        found.append(total / tokens if tokens else None)
        progress(n, len(episodes), "held out")
    return found
