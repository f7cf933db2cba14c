"""Reading a causal LM from a folder or hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from r2v.errors import ArtifactError


def load_model(path: str | Path) -> tuple[Any, Any]:
    """(model in fp32, tokenizer) from a folder or hub id. Raises ArtifactError with one line when it cannot be read."""
    disable_progress_bar()  # ours is the one bar a user sees
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    except Exception as error:  # the libraries raise many kinds for a missing or damaged model
        raise ArtifactError(f"{path} is not a readable causal LM ({str(error).splitlines()[0]})") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer
