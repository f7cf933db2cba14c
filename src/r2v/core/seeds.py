"""Seeds derived from what they are for, so that no two uses share a random stream by accident."""

from __future__ import annotations

from hashlib import blake2b


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed from labels and numbers; stable across processes, platforms and Python versions."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def derive_uniform(*parts: str | int) -> float:
    """A number in [0, 1) from the same parts."""
    return derive_seed(*parts) / 2**63
