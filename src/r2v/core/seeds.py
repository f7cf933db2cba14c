"""Seeds derived from what they are for, so that no two uses share a random stream by accident.

What is drawn in an episode depends on its task, its perturbation seed and the step alone, whoever asks: so routers are
compared under the same draws, and a model's answer can be had again later.
"""

from __future__ import annotations

from hashlib import blake2b


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed from labels and numbers; stable across processes, platforms and Python versions."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def derive_uniform(*parts: str | int) -> float:
    """A number in [0, 1) from the same parts."""
    return derive_seed(*parts) / 2**63


def episode_seed(task: str, z: int) -> int:
    """Of a router's memory in an episode of `task` under perturbation seed `z`."""
    return derive_seed(task, z, "episode")


def step_seed(task: str, z: int, t: int) -> int:
    """Of step t of that episode."""
    return derive_seed(task, z, t)


def call_seed(step: int, who: str, *labels: str | int) -> int:
    """Of what a model of that name, or the router ("router"), draws in the step with seed `step`."""
    return derive_seed(step, who, *labels)
