"""Runs untrusted programs. `support()` says what this host allows, `RunResult.layers` what was active in a run."""

from __future__ import annotations

from r2v.runtime.sandbox.launch import Limits, RunResult, Support, layers, run, support

__all__ = ["Limits", "RunResult", "Support", "layers", "run", "support"]
