"""`r2v doctor`: what of r2v can run on this machine, and what it would take for the rest."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from r2v import __version__
from r2v.cli.extras import EXTRAS
from r2v.core.errors import R2VError
from r2v.runtime import sandbox

PROGRAMS = {
    "chromium": "tests of the pages",
    "redis-server": "replicas of the gateway",
    "git": "terminal tasks",
    "gcc": "terminal tasks",
    "make": "terminal tasks",
    "bwrap": "the sandbox (Debian's package is bubblewrap)",
}


def examine() -> dict[str, Any]:
    """Facts, without secrets: of environment variables only whether they are set."""
    disk = shutil.disk_usage(Path.cwd())
    return {
        "r2v": __version__,
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": _gpus(),
        "free_disk_gb": round(disk.free / 1e9, 1),
        "extras": {extra: _there(modules) for extra, modules in EXTRAS.items()} | _fit(),
        "programs": {name: shutil.which(name) for name in PROGRAMS},
        **_sandbox(),
        "keys": {name: name in os.environ for name in ("R2V_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY")},
        "data": {name: os.environ.get(name) for name in ("ALFWORLD_DATA", "HUMANEVAL_OVERRIDE_PATH", "HF_HOME")},
    }


def _there(modules: Iterable[str]) -> bool:
    return all(find_spec(name) for name in modules)


def _fit() -> dict[str, Any]:
    """`r2v fit` also works where the extra serve is alone: what that lacks is for Parquet."""
    rest = [name for name in EXTRAS["fit"] if name != "pyarrow"]
    return {"fit": "without Parquet"} if _there(rest) and not _there(["pyarrow"]) else {}


def _gpus() -> int | None:
    """How many torch can use; None without torch."""
    if find_spec("torch") is None:
        return None
    import torch

    return torch.cuda.device_count()


def _sandbox() -> dict[str, Any]:
    """Its active layers, or why no program can be confined here; and why stronger backends do not work."""
    try:
        support = sandbox.support()
    except R2VError as error:
        return {"sandbox": str(error)}
    return {"sandbox": list(support.layers)} | ({"sandbox_refused": list(support.refused)} if support.refused else {})


def advice(found: dict[str, Any]) -> list[str]:
    """What is missing, and the command that mends it."""
    lines = [
        f"extra {extra} is not installed: pip install 'r2v[{extra}]'"
        for extra, there in found["extras"].items()
        if not there
    ]
    if isinstance(found["extras"].get("fit"), str):
        lines.append("r2v fit, advise and inspect read no Parquet here: pip install 'r2v[fit]'")
    lines += [f"{name} is not installed; it is for {PROGRAMS[name]}" for name, path in found["programs"].items() if not path]
    if isinstance(found["sandbox"], str):
        lines.append(f"HumanEval+ and terminal tasks cannot run: {found['sandbox']}")
    elif "namespaces" not in found["sandbox"]:
        lines.append(
            "the sandbox has no namespaces here: model-written code is limited, but sees what you see; no terminal tasks"
        )
    lines += [f"the sandbox does without {reason}" for reason in found.get("sandbox_refused", ())]
    if found["free_disk_gb"] < 2:
        lines.append(f"{found['free_disk_gb']} GB of disk are free here; a run of the quickstart needs about 1")
    return lines
