"""Where results come from: versions, hashes, machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from r2v import __version__
from r2v.pipeline.run_folder import MANIFEST
from r2v.pipeline.runner import StageContext
from r2v.runtime.store import sha256

LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch", "transformers", "tokenizers")
STAGES = ("collect", "perturb", "clone", "propose", "prefer", "rollout", "fit")


def provenance(ctx: StageContext, split: str) -> dict[str, Any]:
    """The `provenance` entry of `results.json`; trained numbers depend on the machine, so it is named."""
    run, settings = ctx.run, ctx.settings
    return {
        "r2v": __version__,
        "split": split,
        "seed": settings.seed,
        "settings_sha256": sha256(run.root / "settings.yaml"),
        "slm_sha256": sha256(run.slm),
        "router_sha256": sha256(run.router_folder("r2v")),
        "python": platform.python_version(),
        "libraries": {name: found for name in LIBRARIES if (found := _version(name))},
        "machine": {"cpu": cpu(), "cores": os.cpu_count(), "system": platform.platform()},
        "threads": settings.threads,
        "workers": settings.workers,
        "sandbox": settings.domain.confinement(),
        "times": {stage: run.manifest(stage)["seconds"] for stage in STAGES if (run.of(stage) / MANIFEST).exists()},
    }


def cpu() -> str:
    """The processor: training gives other weights on another one, also on one of the same name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":") for line in info.read_text(errors="replace").splitlines())
        found = {key.strip(): value.strip() for key, _, value in lines}
        if "model name" in found:
            return f"{found['model name']} (family {found.get('cpu family', '?')}, model {found.get('model', '?')})"
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
