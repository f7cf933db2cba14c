"""Attention masks for an own key/value cache and for trees of branches, in models whose layers see different spans.

A mask given to a Hugging Face model replaces the model's own. So the sliding window or chunk of each kind of layer is
applied here, by the position of a key in its text and not by its place in the cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from r2v.clients.local.slots import SlotCache
from r2v.core.errors import ArtifactError

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
SIZE_OF = {SLIDING: "sliding_window", CHUNKED: "attention_chunk_size"}
"""Where a model's config has the number of tokens that such a layer sees."""
TOLERANCE = {torch.float32: 1e-3}
"""Largest difference of our logits from the model's own, in standard deviations of these (root mean square)."""
HALF_TOLERANCE = 0.05


def layer_kinds(config: Any) -> dict[str, int]:
    """Tokens that each kind of the model's layers sees, its own included (0: all before it).

    Raises ArtifactError when some layers are not attention over a plain key/value cache (state-space and hybrid models).
    """
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        kinds = [next((kind for kind, name in SIZE_OF.items() if getattr(text, name, None)), FULL)]
    other = sorted(set(kinds) - {FULL, *SIZE_OF})
    if other:
        raise ArtifactError(_refusal(config, f"it has layers of kind {', '.join(other)}"))
    return {kind: getattr(text, SIZE_OF[kind]) if kind in SIZE_OF else 0 for kind in sorted(set(kinds))}


def longest_text(config: Any) -> int:
    """Tokens of context in which a token's position always means the same to the model.

    Models with a LongRoPE or dynamic-NTK position code turn all earlier keys when a text grows beyond its original length;
    cached keys cannot follow.
    """
    text = config.get_text_config()
    longest = int(getattr(text, "max_position_embeddings", None) or 1 << 30)
    return min(longest, turning_point(config) or longest)


def turning_point(config: Any) -> int | None:
    """Tokens from which on a LongRoPE or dynamic-NTK model encodes all positions anew; None in other models."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    for one in (rope, *rope.values()):  # some models have one for each kind of layer
        if isinstance(one, dict) and one.get("rope_type") in ("longrope", "dynamic"):
            return int(one.get("original_max_position_embeddings") or text.max_position_embeddings)
    return None


def attention_masks(
    model: Any, kinds: dict[str, int], visible_BQK: np.ndarray, queries_BQ: np.ndarray, keys_BK: np.ndarray
) -> Tensor | dict[str, Tensor]:
    """What is added to the attention scores, [B, 1, Q, K]; by kind of layer where the kinds see different keys.

    Args:
        model: a causal LM; its dtype and device are the masks'.
        kinds: its `layer_kinds`.
        visible_BQK: True where key k is in the text that ends with query q, or is q itself.
        queries_BQ: position of each query in its text.
        keys_BK: position of each key in its text.
    """
    farthest = queries_BQ.max() if any(kinds.values()) else 0
    sizes = {kind: size if size <= farthest else 0 for kind, size in kinds.items()}  # 0: nothing is beyond the window
    if not any(sizes.values()):
        return _additive(model, visible_BQK)
    masks = {
        kind: _additive(model, visible_BQK & _near(kind, size, queries_BQ, keys_BK) if size else visible_BQK)
        for kind, size in sizes.items()
    }
    return masks if len(masks) > 1 else masks.popitem()[1]


def _near(kind: str, size: int, queries_BQ: np.ndarray, keys_BK: np.ndarray) -> np.ndarray:
    if kind == CHUNKED:
        near: np.ndarray = queries_BQ[:, :, None] // size == keys_BK[:, None, :] // size
    else:
        near = queries_BQ[:, :, None] - keys_BK[:, None, :] < size
    return near


def _additive(model: Any, visible_BQK: np.ndarray) -> Tensor:
    """Made once here, not anew in each layer from a boolean mask. Finite, so that a row which sees nothing stays finite."""
    visible = torch.from_numpy(visible_BQK).to(model.device)
    mask = torch.zeros(visible.shape, dtype=model.dtype, device=model.device)
    return mask.masked_fill_(~visible, torch.finfo(model.dtype).min)[:, None]


@torch.no_grad()
def check_attention(model: Any) -> None:
    """Compare a few tokens' logits in a tree of branches, with our cache and without, to those of the model's plain forward.

    Its windows are shortened meanwhile, so that a few tokens reach beyond them. Raises ArtifactError when they differ.
    """
    text = model.config.get_text_config()
    spans = {SIZE_OF[kind]: size for kind, size in layer_kinds(model.config).items() if size}
    trunk, branch, end = 9, 4, 24
    tokens_L = np.random.default_rng(0).integers(0, text.vocab_size, end)
    positions_L = np.concatenate([np.arange(trunk + branch), np.arange(trunk, end - branch)])
    visible_LL = np.tril(np.ones((end, end), dtype=bool))
    visible_LL[trunk + branch :, trunk : trunk + branch] = False
    own = np.concatenate([np.arange(trunk), np.arange(trunk + branch, end)])
    cache = SlotCache(text.num_hidden_layers)

    def ours(begin: int, end: int, cache: SlotCache | None) -> Tensor:
        queries, keys = positions_L[None, begin:end], positions_L[None, :end]
        if cache is not None:
            cache.aim(torch.tensor([1]), torch.arange(begin, end)[None], end, subset=True)
        logits: Tensor = model(
            input_ids=torch.from_numpy(tokens_L[None, begin:end]).to(model.device),
            position_ids=torch.from_numpy(queries).to(model.device),
            attention_mask=attention_masks(
                model, layer_kinds(model.config), visible_LL[None, begin:end, :end], queries, keys
            ),
            past_key_values=cache,
            use_cache=cache is not None,
        ).logits[0]
        return logits.float()

    try:
        for name in spans:
            setattr(text, name, 5)
        plain = model(input_ids=torch.from_numpy(tokens_L[None, own]).to(model.device), use_cache=False).logits[0].float()
        cached = torch.cat([ours(0, trunk + 2, cache), ours(trunk + 2, end, cache)])
        apart = max(float((logits[own] - plain).std() / plain.std()) for logits in (ours(0, end, None), cached))
    except Exception as error:  # models raise many kinds for a cache or mask that is not theirs
        raise ArtifactError(_refusal(model.config, f"it fails with our cache: {str(error).splitlines()[0]}")) from error
    finally:
        for name, size in spans.items():
            setattr(text, name, size)
    if not apart <= TOLERANCE.get(model.dtype, HALF_TOLERANCE):
        raise ArtifactError(_refusal(model.config, f"its logits come out {apart:.2g} standard deviations apart"))


def _refusal(config: Any, why: str) -> str:
    return (
        f"r2v cannot run models of type {config.model_type} itself ({why}); serve it with vLLM or llama.cpp and name the "
        "server under slm: {model: {kind: chat, ...}}"
    )
