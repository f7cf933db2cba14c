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
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from rich.console import Console

from r2v import __version__
from r2v.core.errors import ArtifactError, StageError
from r2v.pipeline.run_folder import MANIFEST, RunFolder, check_hashes
from r2v.pipeline.settings import RunSettings
from r2v.runtime.executor import Executor, ExecutorChoice
from r2v.runtime.progress import Report, progress
from r2v.runtime.settings import dump
from r2v.runtime.store import ASIDE, read_json, sha256, write_json, write_text
from r2v.verifiers import source_sha256

PARTIAL = "partial"
MARK = "fingerprint"
"""In `partial/`: what the pieces were made for, and that they are r2v's own."""
Job = TypeVar("Job")


@dataclass(frozen=True)
class StageContext:
    """What a stage or a study works with."""

    settings: RunSettings
    run: RunFolder
    out: Path
    """The folder that it writes to."""
    executor: Executor
    report: Report

    @property
    def partial(self) -> Path:
        """Where finished pieces survive a kill; removed when the stage is complete."""
        return self.out / PARTIAL

    def map(self, function: Callable[[Job], Any], jobs: Sequence[Job], label: str) -> list[Any]:
        """`function(job)` of every job, in their order, spread over the executor.

        Each result is written as JSON to `partial/`: a resumed stage does not compute it again.
        """
        pieces = [_Piece(function, job, self.partial / f"{label}-{i}.json") for i, job in enumerate(jobs)]
        self.executor.map(_run_piece, pieces, self.report, label)
        return [read_json(piece.path) for piece in pieces]


@dataclass(frozen=True)
class _Piece:
    function: Callable[[Any], Any]
    job: Any
    path: Path


def _run_piece(piece: _Piece) -> None:
    if not piece.path.exists():
        write_json(piece.path, piece.function(piece.job))


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
    """Whether it only serves to train the SLM: skipped, with a line in the log, where that is a chat endpoint."""
    prefers: bool = False
    """Whether it only serves preference training: skipped unless `prefer.enabled`."""
    untrained: str | None = None
    """The line where nothing is trained, if it does something else then."""

    def skipped(self, settings: RunSettings) -> bool:
        return (self.trains and not settings.trains) or (self.prefers and not settings.prefer.enabled)

    def does_under(self, settings: RunSettings) -> str:
        """The line for people under these settings, once it is done."""
        if self.trains and not settings.trains:
            return "skipped: the SLM is a chat endpoint, nothing is trained"
        if self.skipped(settings):
            return "skipped: preference training is off (prefer.enabled)"
        return self.does if settings.trains or self.untrained is None else self.untrained


LOCAL = ExecutorChoice()


def run_stages(
    stages: Sequence[Stage], settings: RunSettings, root: Path, console: Console, choice: ExecutorChoice = LOCAL
) -> None:
    """Run all `stages` into `root`. Raises StageError or ArtifactError with one line; work done so far is kept."""
    root.mkdir(parents=True, exist_ok=True)
    with locked(root), choice.started(settings.workers, root) as executor:
        write_text(root / "settings.yaml", dump(settings))
        run = RunFolder(root)
        for stage in stages:
            out = run.of(stage.name)
            fingerprint = stage_fingerprint(stage, settings, run)
            if is_complete(run, stage.name, fingerprint):
                console.print(f"[dim]{out.name:<11} up to date[/dim]", highlight=False)
                continue
            prepare(out, fingerprint)
            start = time.monotonic()
            does = stage.does_under(settings)
            if not stage.skipped(settings):
                with progress(console, out.name) as report:
                    stage.run(StageContext(settings, run, out, executor, report))
            seconds = time.monotonic() - start
            shutil.rmtree(out / PARTIAL)
            outputs = {str(p.relative_to(out)): sha256(p) for p in sorted(out.rglob("*")) if p.is_file()}
            facts = {"stage": stage.name, "fingerprint": fingerprint, "outputs": outputs, "seconds": round(seconds, 1)}
            write_json(out / MANIFEST, {**facts, "r2v": __version__})
            console.print(f"{out.name:<11} {does} [dim]({seconds:.0f} s)[/dim]", highlight=False)


@contextmanager
def study(
    root: Path, out: Path, label: str, console: Console, choice: ExecutorChoice = LOCAL, *, fingerprint: str | None = None
) -> Iterator[StageContext]:
    """A context for work on a finished run, in the folder `out`, which is locked; without error its pieces are removed.

    With a fingerprint, the pieces of a killed try with the same one are used again. Nothing else in `out` is removed: it may
    be any folder of the user. Raises StageError where its `partial` is not r2v's.
    """
    run = RunFolder(root)
    settings = run.settings
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        mark = out / PARTIAL / MARK
        if mark.parent.exists() and not mark.exists() and any(not ASIDE.fullmatch(p.name) for p in mark.parent.iterdir()):
            raise StageError(f"{mark.parent} is not r2v's own; remove it, or choose another --out")
        if fingerprint is None or not _made_for(mark, fingerprint):
            _clear(mark.parent, MARK)
            write_text(mark, fingerprint or label)
        with choice.started(settings.workers, out) as executor, progress(console, label) as report:
            yield StageContext(settings, run, out, executor, report)
        _clear(mark.parent, MARK)  # the mark goes last: a kill in between leaves a folder that is known
        shutil.rmtree(mark.parent, ignore_errors=True)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the run's folder. Raises StageError when another process holds it (the lock dies with its process)."""
    with (root / ".lock").open("a") as file:  # in a folder from elsewhere it may be a link to a file that must stay
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StageError(f"another r2v process is working in {root}; wait for it or choose another --out") from None
        yield


def stage_fingerprint(stage: Stage, settings: RunSettings, run: RunFolder) -> str:
    """Hash of everything the stage depends on: its settings, its inputs' hashes, the tasks, the program's version, and the
    code of one's own routers and domain.
    """
    dump = msgspec.to_builtins(settings)
    inputs = {name: run.manifest(name)["outputs"] for name in stage.reads}
    facts = {"stage": stage.name, "r2v": __version__, "seed": settings.seed, "inputs": inputs}
    facts["settings"] = {group: dump[group] for group in stage.uses}
    task_file = settings.domain.task_file(settings.environment)
    if "environment" in stage.uses and task_file:
        facts["tasks file"] = sha256(task_file)
    if "verifier" in stage.uses and settings.verifier is not None:
        facts["verifier"] = source_sha256(settings.verifier)
    routers = [router for router, _ in settings.chosen_routers.values()] if "routers" in stage.uses else []
    if own := _own_code([*routers, *([type(settings.domain)] if "environment" in stage.uses else [])]):
        facts["own code"] = own
    if stage.skipped(settings):
        facts["skipped"] = True
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _own_code(parts: Iterable[type]) -> dict[str, str]:
    """Module -> hash of its source (of a package all of its sources), of the parts that do not come with r2v."""
    found = {}
    for module in {part.__module__ for part in parts if part.__module__.split(".")[0] != "r2v"}:
        if (file := sys.modules[module].__file__) is not None:
            path = Path(file)
            sources = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
            found[module] = hashlib.sha256(b"".join(map(Path.read_bytes, sources))).hexdigest()
    return found


def status(stage: Stage, settings: RunSettings, run: RunFolder) -> str:
    """What `run_stages` would do with a stage now; after one that will be made anew, later ones may follow it."""
    try:
        done = is_complete(run, stage.name, stage_fingerprint(stage, settings, run))
    except (ArtifactError, StageError):
        done = False
    line = stage.does_under(settings)
    return "up to date" if done else line if stage.skipped(settings) else f"to do: {line}"


def is_complete(run: RunFolder, stage: str, fingerprint: str) -> bool:
    out = run.of(stage)
    if not (out / MANIFEST).exists():
        return False
    manifest = run.manifest(stage)
    if manifest.get("fingerprint") != fingerprint:
        return False
    check_hashes(out, manifest)
    return True


def prepare(out: Path, fingerprint: str) -> None:
    """Keep what a killed try with the same fingerprint left, but for files that it was writing; clear everything else."""
    mark = out / PARTIAL / MARK
    if _made_for(mark, fingerprint):
        for path in out.rglob(".*"):
            if ASIDE.fullmatch(path.name) and path.relative_to(out).parts[0] != PARTIAL:
                path.unlink()
    else:
        _clear(out, ".lock")
        write_text(mark, fingerprint)


def _made_for(mark: Path, fingerprint: str) -> bool:
    return mark.exists() and mark.read_text() == fingerprint


def _clear(folder: Path, but: str) -> None:
    for path in folder.iterdir() if folder.exists() else ():
        if path.name != but:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
