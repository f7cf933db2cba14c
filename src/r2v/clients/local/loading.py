"""Reading a causal LM from a folder or hub id, and where it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from r2v.clients.local.attention import check_attention, layer_kinds
from r2v.core.errors import ArtifactError, SettingsError


def load_model(path: str | Path, *, device: str = "cpu", precision: str = "float32") -> tuple[Any, Any]:
    """(model, tokenizer) from a folder or hub id; `device` and `precision` as in `r2v.learning.settings.ModelSettings`.

    Raises ArtifactError with one line when it cannot be read, or when our cache and masks do not give what the model's own
    forward pass gives; SettingsError for a GPU that is not there.
    """
    where = chosen_device(device)
    disable_progress_bar()  # ours is the one bar a user sees
    try:
        layer_kinds(AutoConfig.from_pretrained(path))  # before its weights are read
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, precision)).to(where)
    except ArtifactError:
        raise
    except Exception as error:  # the libraries raise many kinds for a missing or damaged model
        raise ArtifactError(f"{path} is not a readable causal LM ({str(error).splitlines()[0]})") from error
    check_attention(model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def chosen_device(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU if there is one. Raises SettingsError for a GPU that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"slm.model.device is {name}, but torch sees {torch.cuda.device_count()} GPUs here; write auto")
    return device
