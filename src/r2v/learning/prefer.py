"""DPO with a frozen BC reference, JSD consistency between two views, and BC kept on full expert episodes.

L = lambda_bc L_BC + lambda_dpo L_DPO + lambda_cons L_cons          (R2V paper, section 4; method, section 2)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from r2v.clients.local.loading import load_model
from r2v.clients.local.transcript import Encoder
from r2v.core.errors import StageError
from r2v.core.types import Episode
from r2v.learning.clone import cosine, descend
from r2v.learning.losses import bc_loss, dpo_loss, jsd_loss
from r2v.learning.models import half_products, save_model, with_lora
from r2v.learning.packing import Packed, branch_logp, forward, pack
from r2v.learning.pairs import PreferencePair
from r2v.learning.sequences import batches, encode_episodes, is_chat
from r2v.learning.settings import ModelSettings, PreferSettings

OBSERVATION_WEIGHT = 0.3


@dataclass(frozen=True)
class PreferReport:
    pairs: int
    trajectories: int
    steps: int
    dpo_first: float
    dpo_last: float
    accuracy_last: float
    """Share of pairs in the last batches whose chosen action gained more than the rejected one."""
    consistency_first: float
    consistency_last: float


def prefer(
    model_folder: Path,
    model_settings: ModelSettings,
    experts: Sequence[Episode],
    episodes: Sequence[Episode],
    pairs: Sequence[PreferencePair],
    views: Sequence[Episode],
    settings: PreferSettings,
    out: Path,
    *,
    seed: int,
    progress: Callable[..., None],
) -> PreferReport:
    """Train from the model in `model_folder` and write a model folder to `out`.

    The reference is that model, computed before anything is trained; with LoRA only adapters are, and are merged in `out`.
    Conversations cannot be trained on so far.

    Args:
        model_folder: the cloned model.
        model_settings: its device, precision and LoRA.
        experts: episodes for the cloning loss; only the successful ones are used.
        episodes: what `pairs` and `views` belong to.
        pairs: at step t of episode i, a better and a worse action.
        views: of each episode, the same tasks and actions under another perturbation.
        settings: weights of the losses, steps and batches.
        out: the new folder.

    Raises:
        StageError: without pairs, or with conversations.
    """
    if not pairs:
        raise StageError("no preference pair was found; lower propose.min_gap or raise perturbations.strength")
    if any(is_chat(episode) for episode in (*experts, *episodes, *views)):
        raise StageError("preference training takes no conversations; clone trains on them")
    model, tokenizer = load_model(model_folder, device=model_settings.device)
    encoder = Encoder(tokenizer)
    by_episode: dict[int, list[PreferencePair]] = {}
    for pair in pairs:
        by_episode.setdefault(pair.episode, []).append(pair)
    owners = sorted(by_episode)
    rows = {i: pack(episodes[i], by_episode[i], encoder) for i in owners}
    other = {i: pack(views[i], (), encoder) for i in owners}
    same = {i: _same_state(episodes[i], views[i]) for i in owners}
    pad = tokenizer.pad_token_id
    size = settings.trajectories_per_batch
    model.eval()
    with torch.inference_mode(), half_products(model, model_settings):
        reference = {
            i: logp.clone()
            for at in range(0, len(owners), size)
            for i, logp in _reference(model, owners[at : at + size], rows, pad)
        }
    model = with_lora(model, model_settings).train()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=settings.learning_rate, weight_decay=0.0, fused=True
    )
    steps = settings.epochs * -(-len(owners) // size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(max(1, steps // 10), steps))
    expert = encode_episodes([e for e in experts if e.success], tokenizer, OBSERVATION_WEIGHT)
    experts_stream = batches(expert, settings.expert_tokens_per_batch, pad, seed=seed)
    log: list[tuple[float, float, float]] = []
    for epoch in range(settings.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(owners)
        for at in range(0, len(order), size):
            group = [int(i) for i in order[at : at + size]]
            packed = [rows[i] for i in group]
            tokens_BL, weights_BL = (part.to(model.device) for part in next(experts_stream))
            ref = torch.cat([reference[i] for i in group])
            with half_products(model, model_settings):
                logits = forward(model, packed, pad)
                logp = branch_logp(logits, packed)
                dpo = dpo_loss(logp[0::2], logp[1::2], ref[0::2], ref[1::2], settings.beta)
                consistency = _consistency(model, logits, group, rows, other, same, pad)
                bc = bc_loss(model(input_ids=tokens_BL, use_cache=False).logits, tokens_BL, weights_BL)
            loss = settings.lambda_bc * bc + settings.lambda_dpo * dpo + settings.lambda_cons * consistency
            descend(loss, model, optimizer, schedule)
            margin = (logp - ref)[0::2] - (logp - ref)[1::2]
            log.append((dpo.item(), consistency.item(), (margin > 0).float().mean().item()))
            progress(len(log), steps, f"dpo {dpo.item():.3f}")
    save_model(model, tokenizer, out)
    edge = max(1, len(log) // 10)
    first, last = np.mean(log[:edge], axis=0), np.mean(log[-edge:], axis=0)
    return PreferReport(
        pairs=len(pairs),
        trajectories=len(owners),
        steps=steps,
        dpo_first=float(first[0]),
        dpo_last=float(last[0]),
        accuracy_last=float(last[2]),
        consistency_first=float(first[1]),
        consistency_last=float(last[1]),
    )


def _reference(model: object, group: list[int], rows: dict[int, Packed], pad: int) -> list[tuple[int, Tensor]]:
    packed = [rows[i] for i in group]
    logp = branch_logp(forward(model, packed, pad), packed)
    sizes = [len(row.branches) for row in packed]
    return list(zip(group, torch.split(logp, sizes), strict=True))


def _consistency(
    model: object,
    logits: Tensor,
    group: list[int],
    rows: dict[int, Packed],
    other: dict[int, Packed],
    same: dict[int, list[int]],
    pad: int,
) -> Tensor:
    """JSD on the tokens of the executed actions, at the steps where both views show the same latent state."""
    view = forward(model, [other[i] for i in group], pad)
    here, there = [], []
    for b, i in enumerate(group):
        for t in same[i]:
            here.append(logits[b, torch.from_numpy(rows[i].own[t][0])])
            there.append(view[b, torch.from_numpy(other[i].own[t][0])])
    if not here:
        return logits.new_zeros(())
    return jsd_loss(torch.cat(here), torch.cat(there))


def _same_state(episode: Episode, view: Episode) -> list[int]:
    """Steps at which both episodes are in the same unperturbed state with the same actions behind them."""
    return [
        t
        for t, (a, b) in enumerate(zip(episode.steps, view.steps, strict=False))
        if a.observation.latent == b.observation.latent and a.choice.action.text == b.choice.action.text
    ]
