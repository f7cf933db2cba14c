"""Runs programs that nobody vouches for. `layers()` says what this host allows, `Ran.layers` what was active in a run."""

from __future__ import annotations

from r2v.runtime.sandbox.launch import Limits, Ran, layers, run

__all__ = ["Limits", "Ran", "layers", "run"]
