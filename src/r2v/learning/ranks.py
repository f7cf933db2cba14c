"""Training by several processes (`accelerate launch --multi_gpu`, `torchrun`): each takes some rows of every batch, and the
gradients are summed, so that the weights are those of one process up to rounding and dropout.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from r2v.core.errors import SettingsError


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def rows(self, tokens_BL: Tensor, weights_BL: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of a batch that are this process's; one without weight where there are too few."""
        if self.world == 1:
            return tokens_BL, weights_BL
        own = slice(self.rank, None, self.world)
        if self.rank < len(tokens_BL):
            return tokens_BL[own], weights_BL[own]
        return tokens_BL[:1], torch.zeros_like(weights_BL[:1])

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a value over all processes."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def sum_gradients(self, model: Any) -> None:
        if self.world == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        together = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        at = 0
        for gradient in gradients:
            gradient.copy_(together[at : at + gradient.numel()].view_as(gradient))
            at += gradient.numel()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that were launched together, by the variables that `accelerate launch` and `torchrun` set.

    Raises SettingsError for ways of launching other than data parallel: each process holds the whole model.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"):
        if os.environ.get(name, "false").lower() in ("1", "true"):
            raise SettingsError(f"{name} is set: r2v trains data parallel; launch without FSDP, DeepSpeed and Megatron")
    if world == 1:
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Ranks(dist.get_rank(), world)
    finally:
        dist.destroy_process_group()
