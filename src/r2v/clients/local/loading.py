"""Reading a causal LM from a folder or hub id, and where it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from r2v.clients.local.attention import check_attention, layer_kinds
from r2v.core.errors import ArtifactError, SettingsError
from r2v.core.untrusted import MB, opened, read_json

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".model")
TEXT_BYTES = 256 * MB
"""Of a tokenizer or a config: the largest vocabularies take some 30 MB."""
LAYERS = 1_000
"""The largest models have some 130."""
HUB_S = 10
"""Seconds for the hub to say that it has a model."""
NUMBERS_PER_BYTE = 4
"""Weights of two bits each: no file holds more numbers than that."""
GROUPED_IN_PLACE = "TRANSFORMERS_SDPA_FORCE_GQA"
"""Read by transformers at each attention: 1: query heads that share keys read them in place, not a copy for each head."""


def load_model(path: str | Path, *, device: str = "cpu", precision: str = "float32") -> tuple[Any, Any]:
    """(model, tokenizer) from a folder or hub id; `device` and `precision` as in `r2v.learning.settings.ModelSettings`.

    Raises ArtifactError with one line when it cannot be read, or when our cache and masks do not give what the model's own
    forward pass gives; SettingsError for a GPU that is not there.
    """
    where = chosen_device(device)
    disable_progress_bar()  # ours is the one bar a user sees
    # On a CPU the copies take most of a step at long contexts; on a GPU torch has no fast kernel for them with a mask.
    os.environ[GROUPED_IN_PLACE] = "1" if where.type == "cpu" else "0"
    try:
        if Path(path).is_dir():
            _check_folder(Path(path))
        else:
            _check_hub(str(path))
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        layer_kinds(config)  # before its weights are read
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        dtype = getattr(torch, precision)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=False).to(where)
    except ArtifactError:
        raise
    except Exception as error:  # the libraries raise many kinds for a missing or damaged model
        raise ArtifactError(f"{path} is not a readable causal LM ({str(error).splitlines()[0]})") from error
    check_attention(model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _check_folder(folder: Path) -> None:
    """Check that a folder holds the numbers that its config promises. Raises ArtifactError, ValueError."""
    for file in folder.iterdir():
        if not file.is_dir():
            opened(file, None if file.suffix in WEIGHTS else TEXT_BYTES).close()
    stated = read_json(folder / "config.json", TEXT_BYTES)
    layers = max((value for key, value in stated.items() if "layers" in key and isinstance(value, int)), default=0)
    if layers > LAYERS:
        raise ArtifactError(f"{folder / 'config.json'} has {layers} layers, the most that r2v loads are {LAYERS}")
    with torch.device("meta"):  # which takes no memory
        planned = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    numbers = sum(parameter.numel() for parameter in planned.parameters())
    held = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in WEIGHTS)
    if numbers > NUMBERS_PER_BYTE * held:
        raise ArtifactError(f"{folder / 'config.json'} is of a model of {numbers:.3g} numbers, its weights are {held} bytes")


def _check_hub(name: str) -> None:
    """Ask the hub for a model once, unless its cache has it: the libraries ask for half a minute. Raises ArtifactError."""
    try:
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=HUB_S)
    except Exception as error:  # not a name of the hub, no such model, one that wants a token, no network
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArtifactError(
            f"{name} is no folder, and the Hugging Face hub does not give it ({problem}); give a model folder, or a model "
            "of the hub, such as Qwen/Qwen3-0.6B"
        ) from None


def chosen_device(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU if there is one. Raises SettingsError for a GPU that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"slm.model.device is {name}, but torch sees {torch.cuda.device_count()} GPUs here; write auto")
    return device
