"""One suite from its records to its results: read, predict, seal, score."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r2v import __version__
from r2v.bench import BUILT_IN
from r2v.bench.data import records
from r2v.bench.entries import Entry
from r2v.bench.pool import DESCRIPTION as OF_POOL
from r2v.bench.pool import NAME as POOL
from r2v.bench.predictions import FOLDS, Seal, Split, predict
from r2v.bench.suite import Suite
from r2v.bench.table import SHARE, Table
from r2v.core.errors import SettingsError
from r2v.runtime import plugins
from r2v.runtime.progress import Report
from r2v.runtime.store import write_json

HOUSEHOLD, TWINROUTER = "household", "twinrouterbench"
OTHERS = {
    HOUSEHOLD: "routers of a finished run (--run) in closed loop on fresh tasks of the household",
    POOL: OF_POOL,
    TWINROUTER: "TwinRouterBench's static bank: a model before each call, four tiers (docs/twinrouterbench.md)",
}
"""What is no `Suite` of recorded sessions, and has results of its own shape."""


def suite_named(name: str) -> Suite:
    """By short name, of an installed package (`r2v.suites`), or `package.module:Thing`. Raises SettingsError."""
    found = plugins.load("suites", name, {**BUILT_IN, **OTHERS})
    made: Suite = found() if isinstance(found, type) else found
    if missing := [word for word in ("name", "description", "path", "mode", "load") if not hasattr(made, word)]:
        raise SettingsError(f"{name} is no suite: it has no {missing[0]} (see r2v.bench.suite.Suite)")
    return made


def why_not(name: str, data: Path) -> str | None:
    """What a suite that comes with r2v lacks, its records or a package; None: nothing."""
    suite = suite_named(name)
    if not (data / suite.path).exists():
        return f"no records in {data}"
    package: str | None = getattr(suite, "package", None)
    if package is not None and importlib.util.find_spec(package) is None:
        return f"{package} is not installed: pip install 'r2v[bench]'"
    return None


def run_household(run: Path | None, out: Path) -> dict[str, Any]:
    """The routers of a finished run, in closed loop on fresh tasks; see `r2v.bench.suites.household.bench`."""
    from r2v.bench.suites.household import bench

    results = bench(run, out=out / "played")
    write_json(out / "results.json", results)
    return results


def run_twinrouter(own: Sequence[str], data: Path, out: Path, progress: Report, seed: int) -> dict[str, Any]:
    """Routers on TwinRouterBench's static bank; see `r2v.bench.twinrouter.run.bench`."""
    from r2v.bench.twinrouter.adapter import named_router
    from r2v.bench.twinrouter.run import bench

    path = records(data, TWINROUTER, "Amorph/TwinRouterBench on Hugging Face")
    results = bench(path, {name: named_router(name) for name in own or ("recorded",)}, seed=seed, progress=progress)
    write_json(out / "results.json", results)
    return results


def run_suite(
    suite: Suite, wanted: Sequence[Entry], data: Path, out: Path, progress: Report, *, seed: int = 0,
    share: float = SHARE, unseen_models: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Run it.

    Args:
        suite: which.
        wanted: the rows.
        data: folder of the records.
        out: folder for `predictions.json.gz` and `results.json`.
        progress: called as work goes on.
        seed: of folds, fits and intervals.
        share: of strong calls, at which rows are compared.
        unseen_models: see `Split.of`.

    Returns:
        What `results.json` holds.

    Raises:
        SettingsError: the records or a package that the suite needs are not there.
    """
    start = time.monotonic()
    loaded = suite.load(data, progress)
    split = Split.of(loaded, suite.mode, seed, progress, unseen_models=unseen_models)
    found, left_out = predict(split, wanted, progress)
    if not found:
        raise SettingsError(
            f"no router can take part in {suite.name}: {left_out[0]['why'] if left_out else 'none was named'}"
        )
    seal = Seal.on(found, out / "predictions.json.gz")
    table = Table(split, found, seal, progress)
    results = {
        "suite": suite.name, "description": suite.description, "mode": suite.mode, "version": __version__, "seed": seed,
        "share": share, "sessions": len(loaded.episodes), "groups": int(np.max(loaded.group_E)) + 1, "folds": FOLDS,
        "unseen_models": unseen_models, "steps": sum(len(e.steps) for e in loaded.episodes), "strong": loaded.strong,
        "split_sha256": split.sha256, "predictions_sha256": seal.sha256,
        "rows": [table.row(predicted, share) for predicted in found], "left_out": left_out, "nulls": table.nulls(share),
        "fidelity": loaded.fidelity, **loaded.facts, "seconds": time.monotonic() - start,
    }  # fmt: skip
    write_json(out / "results.json", results)
    return results
