"""Settings of everything that is trained. No torch here: reading a settings file stays quick."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from r2v.runtime.settings import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Settings


class LoraSettings(Settings):
    r: PositiveInt = 32
    alpha: PositiveInt = 64
    dropout: Fraction = 0.1


class ModelSettings(Settings):
    """Which causal LM is trained: one from scratch (the default), or `path` to start from."""

    path: str | None = None
    """Folder or hub id of a Hugging Face causal LM; its own tokenizer is used."""
    lora: LoraSettings | None = None
    """Train low-rank adapters instead of all weights; they are merged into the saved model."""
    hidden_size: PositiveInt = 64
    layers: PositiveInt = 3
    heads: PositiveInt = 4
    intermediate_size: PositiveInt = 192
    max_positions: PositiveInt = 4096
    initializer_range: PositiveFloat = 0.08
    """About 1 / sqrt(hidden size): the usual .02 halves the learning speed of a tiny model."""
    device: Annotated[str, Meta(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """Where it is trained and played; `auto`: on a GPU if there is one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of playing it, and of the products in training; its weights are trained and saved in float32. bfloat16 is for GPUs:
    most CPUs are slower with it."""

    def __post_init__(self) -> None:
        if self.path is not None and self.path.lower().endswith(".gguf"):
            raise ValueError(
                f"{self.path} is quantised and cannot be trained; name the Hugging Face model that it was made from, or "
                "serve it (llama-server -m FILE) and set slm: {model: {kind: chat, base_url: http://localhost:8080/v1, "
                "model: NAME}}"
            )
        if self.lora is not None and self.path is None:
            raise ValueError("`lora` adapts a trained model; set its folder or hub id as `path`, or leave out `lora`")


class CloneSettings(Settings):
    steps: PositiveInt = 2400
    """Optimiser steps (not seconds, so that results do not depend on the machine)."""
    batch_tokens: PositiveInt = 2048
    learning_rate: PositiveFloat = 3e-3
    warmup_steps: NonNegativeInt = 100
    weight_decay: NonNegativeFloat = 0.01
    observation_weight: NonNegativeFloat = 0.3
    """Loss weight of observation tokens; action tokens have 1."""
    checkpoint_every: PositiveInt = 200


class PreferSettings(Settings):
    """Preference training after cloning (DPO + consistency, R2V paper, section 4)."""

    enabled: bool = False
    """Off: the SLM was never better for it, in seven runs (docs/log.md)."""
    epochs: PositiveInt = 1
    learning_rate: PositiveFloat = 1e-4
    beta: PositiveFloat = 0.1
    lambda_dpo: NonNegativeFloat = 1.0
    lambda_cons: NonNegativeFloat = 0.2
    """Weight of the consistency (JSD) loss."""
    lambda_bc: NonNegativeFloat = 1.0
    """Weight of behavioural cloning on full expert episodes; without it the policy collapses."""
    trajectories_per_batch: PositiveInt = 4
    expert_tokens_per_batch: PositiveInt = 2048


class RouterSettings(Settings):
    features: Literal["paper", "extended", "own"] = "extended"
    """paper: router r2v has the paper's 15, which r2v_paper always has. extended: those and the text signals of
    `r2v.core.features`. own: every router that is fitted on features has those alone that no text of others moves, which
    costs a little and keeps planted texts from buying or suppressing calls (`text_attacks` in docs/results.md)."""
    reads: bool = False
    """Also fit the router `reading`, which reads texts beside the features."""
    weighting: Literal["step", "episode"] = "step"
    """Each step counts the same, or each episode (then the many late steps of failed episodes do not decide alone, but the
    risk is too low on them: on validation ECE .051 against .017 at equal AUROC)."""
    hidden: tuple[PositiveInt, ...] = (128, 64)
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.2
    epochs: PositiveInt = 50
    batch_size: Annotated[int, Meta(ge=2)] = 4096
    """Of one row there is no mean and variance to normalise by."""
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-2
    """Ours; the authors' is 1e-4. The two were not compared; it stays because the published results were made with it."""
    calibration: Literal["temperature", "platt", "isotonic"] = "temperature"
    cost_ratio: PositiveFloat = 5.0
    """c_LLM / c_SLM in the paper's objective."""
    kappa: PositiveFloat = 2.0
    """Price of a failure in units of c_LLM in the paper's objective (the paper does not say its own)."""
    alpha: Annotated[float, Meta(gt=0, le=1)] = 0.2
    """CVaR looks at the worst share alpha of the groups (`perturbations.groups`)."""
    epsilon: Fraction = 0.1
    """CVaR constraint of the paper's objective."""
    brier_weight: NonNegativeFloat = 0.3
    dual_learning_rate: PositiveFloat = 0.05
