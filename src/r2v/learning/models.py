"""Build the SLM from a config, or load any Hugging Face causal LM; full training or LoRA."""

from __future__ import annotations

import shutil
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from r2v.learning.settings import ModelSettings


def new_model(settings: ModelSettings, tokenizer: Any, *, seed: int) -> Any:
    """A Llama with random weights, fp32."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=settings.hidden_size, num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads, num_key_value_heads=settings.heads,
            intermediate_size=settings.intermediate_size, max_position_embeddings=settings.max_positions,
            initializer_range=settings.initializer_range, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    _relate_entities(model, tokenizer)
    return model


def _relate_entities(model: Any, tokenizer: Any) -> None:
    """Start "apple 1" and "apple 2" near "apple", and all "... 1" a little alike.

    A goal has "apple", a list has "apple 1": without this the model must first learn, type by type, that they belong
    together.
    """
    vocabulary = tokenizer.get_vocab()
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        numbers = torch.randn(100, table.shape[1]) * model.config.initializer_range
        for piece, i in sorted(vocabulary.items(), key=lambda entry: entry[1]):
            word, _, number = piece.rpartition(" ")
            if number.isdigit() and word in vocabulary:
                table[i] = 0.8 * table[vocabulary[word]] + 0.5 * numbers[int(number) % 100] + 0.33 * table[i]


def with_lora(model: Any, settings: ModelSettings) -> Any:
    """The model with trainable adapters on its linear layers, or the model itself when LoRA is off."""
    if settings.lora is None:
        return model
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.lora.r, lora_alpha=settings.lora.alpha, lora_dropout=settings.lora.dropout, target_modules="all-linear",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft's, renamed in transformers
        return get_peft_model(model, config)


def half_products(model: Any, settings: ModelSettings) -> AbstractContextManager[object]:
    """A context in which the model's matrix products are in bfloat16, where the settings want it."""
    if settings.precision == "float32":
        return nullcontext()
    return torch.autocast(model.device.type, torch.bfloat16)


def save_model(model: Any, tokenizer: Any, out: Path) -> None:
    """A plain model folder, adapters merged, in the place of one that is there; complete or not there."""
    disable_progress_bar()
    plain = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    aside = out.with_name(f".{out.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
    plain.save_pretrained(aside, safe_serialization=True)
    tokenizer.save_pretrained(aside)
    shutil.rmtree(out, ignore_errors=True)
    aside.rename(out)
