"""Behavioural cloning: own loop, any causal LM, resumable to the bit (method, section 2)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from r2v.clients.local.attention import longest_text
from r2v.clients.local.loading import chosen_device, load_model
from r2v.clients.local.transcript import segments
from r2v.core.errors import StageError
from r2v.core.types import Episode
from r2v.learning.losses import bc_loss
from r2v.learning.models import half_products, new_model, save_model, with_lora
from r2v.learning.ranks import ALONE, Ranks
from r2v.learning.sequences import Sequences, batches, encode_chats, encode_episodes, is_chat, is_learned
from r2v.learning.settings import CloneSettings, ModelSettings
from r2v.learning.tokenizer import train_tokenizer
from r2v.runtime.store import read_json, write_json

Progress = Callable[..., None]
CLIP = 1.0


@dataclass(frozen=True)
class CloneReport:
    episodes: int
    """Episodes learned from: those that were solved, and routed ones in which the teacher answered."""
    conversations: int
    """Of them, those that were encoded with the model's chat template."""
    left_out: int
    """Episodes without success, but for routed ones in which the teacher answered."""
    unusable: dict[str, int]
    """Of them, those that could not be learned from, by reason."""
    parameters: int
    vocabulary: int
    steps: int
    tokens: int
    """Tokens seen, padding included."""
    first_loss: float
    """Of the first step."""
    final_loss: float
    """Mean over the last tenth of the steps. Low loss is no guide to success."""


def clone(
    episodes: Sequence[Episode],
    model_settings: ModelSettings,
    settings: CloneSettings,
    out: Path,
    *,
    routed: Sequence[Episode] = (),
    checkpoints: Path | None = None,
    seed: int = 0,
    progress: Progress = lambda *_: None,
    pieces: str = r"\S+",
    dropped: str | None = None,
    ranks: Ranks = ALONE,
) -> CloneReport:
    """Train on the successful episodes and write a model folder to `out`.

    Episodes that keep messages (imported logs, a ledger that is not redacted) are encoded with the chat template of the
    model's tokenizer, others in the transcript form that `r2v.clients.local.transcript` defines.

    Args:
        episodes: any; those without success are left out.
        model_settings: what to train; conversations need a `path` whose tokenizer has a chat template.
        settings: steps, batches and rates.
        out: the new folder.
        routed: episodes in which the teacher answered on some of the SLM's own steps (DAgger): of a solved one every action
            is learned, of any other the teacher's alone.
        checkpoints: a killed run continues from the last checkpoint in this folder and ends with the same weights (to the
            bit on a CPU); killed after the model was saved, it returns what it noted there; None: it begins anew.
        seed: of new weights or adapters, and of the order of the batches.
        progress: called with (step, steps, note).
        pieces: what a new tokenizer takes as one piece.
        dropped: what a new tokenizer drops.
        ranks: processes that train together; the first of them writes.

    Raises:
        StageError: no episode can be learned from, or `out` exists and was not made with these checkpoints.
        ArtifactError: the model cannot be read, or has no chat template and needs one.
    """
    noted = None if checkpoints is None else checkpoints / "report.json"
    if out.exists():
        if noted is not None and noted.exists():
            return CloneReport(**read_json(noted))
        raise StageError(f"{out} exists; remove it or choose another folder")
    taught = [e for e in routed if any(is_learned(e, step) for step in e.steps)]
    good = [*(episode for episode in episodes if episode.success), *taught]
    if not good:
        raise StageError("no episode to learn from was successful; check the teacher and, in a run, perturbations.strength")
    chats, others = [e for e in good if is_chat(e)], [e for e in good if not is_chat(e)]
    if model_settings.path:
        model, tokenizer = load_model(model_settings.path, device=model_settings.device)
        torch.manual_seed(seed)  # of adapters and dropout
        model = with_lora(model, model_settings)
    elif chats:
        raise StageError("conversations train a model that has a chat template; set its folder or hub id as `path`")
    else:
        tokenizer = train_tokenizer(_texts(good), pieces=pieces, dropped=dropped)
        model = new_model(model_settings, tokenizer, seed=seed).to(chosen_device(model_settings.device))
    data = encode_episodes(others, tokenizer, settings.observation_weight)
    spoken, unusable = encode_chats(chats, tokenizer, longest_text(model.config))
    conversations = len(chats) - sum(unusable.values())
    if not data.tokens and not spoken.tokens:
        why = "; ".join(f"{count} {reason}" for reason, count in unusable.items())
        raise StageError(f"no successful episode can be learned from: {why}")
    data = Sequences(data.tokens + spoken.tokens, data.weights + spoken.weights)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        betas=(0.9, 0.95),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(settings.warmup_steps, settings.steps))
    checkpoint = None if checkpoints is None else checkpoints / "clone.pt"
    first, losses, tokens = _resume(checkpoint, model, optimizer, schedule)
    model.train()
    stream = islice(batches(data, settings.batch_tokens, tokenizer.pad_token_id, seed=seed), first, settings.steps)
    for step, batch in enumerate(stream, start=first + 1):
        tokens += batch[0].numel()
        tokens_BL, weights_BL = (part.to(model.device) for part in ranks.rows(*batch))
        total = None if ranks.world == 1 else ranks.sum(weights_BL[:, 1:].sum())
        with half_products(model, model_settings):
            logits_BLV = model(input_ids=tokens_BL, use_cache=False).logits
            loss = bc_loss(logits_BLV, tokens_BL, weights_BL, total)
        descend(loss, model, optimizer, schedule, ranks)
        losses.append(ranks.sum(loss.detach()).item())
        if ranks.first and checkpoint is not None and step % settings.checkpoint_every == 0:
            _save(checkpoint, model, optimizer, schedule, step, losses, tokens)
        if step % 20 == 0:
            progress(step, settings.steps, f"loss {sum(losses[-20:]) / 20:.3f}")
    tail = losses[-max(1, len(losses) // 10) :]
    report = CloneReport(
        episodes=len(others) + conversations,
        conversations=conversations,
        left_out=len(episodes) + len(routed) - len(good),
        unusable=unusable,
        parameters=sum(p.numel() for p in model.parameters()),
        vocabulary=len(tokenizer),
        steps=settings.steps,
        tokens=tokens,
        first_loss=losses[0],
        final_loss=sum(tail) / len(tail),
    )
    if ranks.first:
        if noted is not None:  # before the model, which is whole or not there
            write_json(noted, asdict(report))
        save_model(model, tokenizer, out)
    ranks.wait()
    return report


def descend(loss: torch.Tensor, model: Any, optimizer: Any, schedule: Any, ranks: Ranks = ALONE) -> None:
    """One clipped optimiser step, on the sum of the losses of all processes."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    ranks.sum_gradients(model)
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    schedule.step()


def cosine(warmup: int, total: int) -> Callable[[int], float]:
    """Learning-rate factor: linear warm-up, then a cosine to 5 %."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, total - warmup)
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return factor


def _texts(episodes: Sequence[Episode]) -> list[str]:
    texts: dict[str, None] = {}
    for episode in episodes:
        observations = [step.observation.text for step in episode.steps]
        actions = [step.choice.action.text for step in episode.steps]
        texts.update(dict.fromkeys(text for text, _ in segments(episode.goal, observations, actions)))
    return list(texts)


def _resume(path: Path | None, model: Any, optimizer: Any, schedule: Any) -> tuple[int, list[float], int]:
    if path is None or not path.exists():
        return 0, [], 0
    saved = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    schedule.load_state_dict(saved["schedule"])
    torch.set_rng_state(saved["rng"])  # dropout, where the model has any
    torch.cuda.set_rng_state_all(saved["gpu_rngs"])
    return saved["step"], saved["losses"], saved["tokens"]


def _save(path: Path, model: Any, optimizer: Any, schedule: Any, step: int, losses: list[float], tokens: int) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "rng": torch.get_rng_state(),
        "gpu_rngs": torch.cuda.get_rng_state_all(),
        "step": step,
        "losses": losses,
        "tokens": tokens,
    }
    aside = path.with_suffix(".writing")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, aside)
    os.replace(aside, path)
