"""Runs stages in order: skips what is up to date, resumes what was killed, refuses what is damaged.

A stage owns one folder of the run. While it works, finished chunks lie in `partial/` under the stage's fingerprint; when
it is done, its outputs are hashed into `manifest.json`, which appears last. So a stage is complete exactly if its manifest
exists, and up to date exactly if the fingerprint in it equals today's.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from r2v import __version__
from r2v.core.errors import ArtifactError, StageError
from r2v.pipeline.settings import RunSettings
from r2v.runtime.executor import Workers
from r2v.runtime.progress import Report, progress
from r2v.runtime.settings import dump
from r2v.runtime.store import read_json, sha256, write_json, write_text

MANIFEST = "manifest.json"
PARTIAL = "partial"


@dataclass(frozen=True)
class StageContext:
    """What a stage gets to work with."""

    settings: RunSettings
    root: Path
    """The run's folder."""
    out: Path
    """The stage's own folder."""
    workers: Workers
    report: Report

    def read(self, stage: str) -> Path:
        """Folder of an earlier stage's outputs."""
        return self.root / folder_of(stage)

    @property
    def partial(self) -> Path:
        """Where finished chunks survive a kill; removed when the stage is complete."""
        return self.out / PARTIAL


@dataclass(frozen=True)
class Stage:
    name: str
    does: str
    """One line for people."""
    reads: tuple[str, ...]
    """Earlier stages whose outputs it reads."""
    uses: tuple[str, ...]
    """Settings groups it depends on."""
    run: Callable[[StageContext], None]
    trains: bool = False
    """Whether it only serves to train the SLM: skipped, and said to be, where that is a chat endpoint."""


def folder_of(stage: str) -> str:
    """`fit` -> `7-fit`."""
    from r2v.pipeline.stages import STAGES

    return f"{[s.name for s in STAGES].index(stage) + 1}-{stage}"


def run_stages(stages: Sequence[Stage], settings: RunSettings, root: Path, console: Console) -> None:
    """Run all `stages` into `root`. Raises StageError or ArtifactError with one line; work done so far is kept."""
    root.mkdir(parents=True, exist_ok=True)
    with locked(root), Workers(settings.workers) as workers:
        write_text(root / "settings.yaml", dump(settings))
        for stage in stages:
            out = root / folder_of(stage.name)
            fingerprint = stage_fingerprint(stage, settings, root)
            if _is_complete(out, fingerprint):
                console.print(f"[dim]{out.name:<11} up to date[/dim]", highlight=False)
                continue
            prepare(out, fingerprint)
            start = time.monotonic()
            does = stage.does
            if stage.trains and not settings.trains:
                does = "skipped: the SLM is a chat endpoint, nothing is trained"
            else:
                with progress(console, out.name) as report:
                    stage.run(StageContext(settings, root, out, workers, report))
            seconds = time.monotonic() - start
            shutil.rmtree(out / PARTIAL)
            outputs = {str(p.relative_to(out)): sha256(p) for p in sorted(out.rglob("*")) if p.is_file()}
            write_json(
                out / MANIFEST,
                {
                    "stage": stage.name,
                    "fingerprint": fingerprint,
                    "outputs": outputs,
                    "seconds": round(seconds, 1),
                    "r2v": __version__,
                },
            )
            console.print(f"{out.name:<11} {does} [dim]({seconds:.0f} s)[/dim]", highlight=False)


def check_outputs(root: Path, stage: str) -> Path:
    """The folder of a finished stage, its files compared with their recorded hashes. Raises StageError, ArtifactError."""
    out = root / folder_of(stage)
    if not (out / MANIFEST).exists():
        raise StageError(f"{out} is not finished; run `r2v run` on it first")
    _check_hashes(out, read_json(out / MANIFEST))
    return out


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Reservation the run's folder. Raises StageError when another process holds it (the lock dies with its process)."""
    with (root / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StageError(f"another r2v process is working in {root}; wait for it or choose another --out") from None
        yield


def stage_fingerprint(stage: Stage, settings: RunSettings, root: Path) -> str:
    """Hash of everything the stage depends on: its settings, its inputs' hashes, the tasks, the program's version."""
    dump = settings.model_dump(mode="json")
    inputs = {name: read_json(root / folder_of(name) / MANIFEST)["outputs"] for name in stage.reads}
    parts = {"stage": stage.name, "r2v": __version__, "seed": settings.seed, "inputs": inputs}
    parts["settings"] = {group: dump[group] for group in stage.uses}
    if "environment" in stage.uses and (tasks := settings.domain.task_file(settings.environment)):
        parts["tasks file"] = sha256(tasks)
    if stage.trains and not settings.trains:
        parts["skipped"] = True
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def fingerprint_of(root: Path, settings: RunSettings) -> str:
    """Hash of a finished run: its settings and the outputs of all its stages, up to the fit."""
    from r2v.pipeline.stages import STAGES

    stages = [s for s in STAGES if s.name not in ("evaluate", "report")]
    manifests = {s.name: read_json(root / folder_of(s.name) / MANIFEST)["outputs"] for s in stages}
    parts = {"settings": settings.model_dump(mode="json"), "outputs": manifests, "r2v": __version__}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _is_complete(out: Path, fingerprint: str) -> bool:
    if not (out / MANIFEST).exists():
        return False
    manifest = read_json(out / MANIFEST)
    if manifest.get("fingerprint") != fingerprint:
        return False
    _check_hashes(out, manifest)
    return True


def _check_hashes(out: Path, manifest: Any) -> None:
    for name, expected in manifest["outputs"].items():
        if not (out / name).is_file():
            raise ArtifactError(f"{out / name} is missing; delete {out} and run again to make it anew")
        if sha256(out / name) != expected:
            raise ArtifactError(f"{out / name} is damaged or was edited; delete {out} and run again to make it anew")


def prepare(out: Path, fingerprint: str) -> None:
    """Keep the chunks of a killed try with the same fingerprint; clear everything else."""
    mark = out / PARTIAL / "fingerprint"
    if not (mark.exists() and mark.read_text() == fingerprint):
        shutil.rmtree(out, ignore_errors=True)
        write_text(mark, fingerprint)
