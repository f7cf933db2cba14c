"""A run on disk: which stage owns which folder, and one typed reader for each file that another stage reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec

from r2v.core.errors import ArtifactError, StageError
from r2v.core.types import TEACHER, Episode, Task
from r2v.evaluation.branches import Branch
from r2v.learning.pairs import PreferencePair, read_pairs
from r2v.pipeline.settings import RunSettings
from r2v.routers import load_router
from r2v.routers.base import RouterBase
from r2v.runtime.settings import load
from r2v.runtime.store import read_episodes, read_json, sha256, write_json

ORDER = ("collect", "perturb", "clone", "propose", "prefer", "rollout", "fit", "evaluate", "report")
MANIFEST = "manifest.json"


def interventions_file(model: str) -> str:
    """Of the teacher, or of another model of the pool."""
    return "help.json" if model == TEACHER else f"help-{model}.json"


def explored_file(model: str) -> str:
    """The same of the episodes with random escalation."""
    return "explored.parquet" if model == TEACHER else f"explored-{model}.parquet"


def folder_of(stage: str) -> str:
    """`fit` -> `7-fit`."""
    return f"{ORDER.index(stage) + 1}-{stage}"


@dataclass(frozen=True)
class Interventions:
    """`help.json`: what the teacher (in `help-MODEL.json` another model of the pool) would have done at the recorded steps,
    and the branched ones among them."""

    differs: list[list[bool]]
    differs_validation: list[list[bool]]
    branches: list[Branch]
    differs_redrawn: list[list[bool]] | None = None
    unlike_teacher: tuple[list[list[bool]], list[list[bool]]] | None = None
    """Of another model of the pool: whether it would do something else than the teacher, at the recorded steps and at those
    of validation.
    """


@dataclass(frozen=True)
class OperatingPoint:
    """A router's chosen threshold, with what was tried on the validation tasks."""

    threshold: float
    grid: tuple[float, ...]
    """Thresholds tried."""
    validation: tuple[tuple[float, float, float], ...]
    """Of each: share of steps escalated, success, teacher calls an episode."""

    @property
    def calls(self) -> tuple[float, ...]:
        return tuple(calls for _, _, calls in self.validation)


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run. Readers raise ArtifactError where a file is missing or damaged."""

    root: Path

    def of(self, stage: str) -> Path:
        """The folder that a stage owns."""
        return self.root / folder_of(stage)

    @cached_property
    def settings(self) -> RunSettings:
        """Its effective settings. Raises StageError where the folder is no run."""
        path = self.root / "settings.yaml"
        if not path.exists():
            raise StageError(f"{self.root} is not a run: it has no settings.yaml; make one with `r2v run`")
        return load(path, RunSettings)

    def finished(self, *stages: str) -> None:
        """Check that stages are finished and their files are what was written. Raises StageError, ArtifactError."""
        _ = self.settings  # a folder that is no run has no stages
        for stage in stages:
            out = self.of(stage)
            if not (out / MANIFEST).exists():
                raise StageError(f"{out} is not finished; run `r2v run` on it first")
            manifest = self.manifest(stage)
            check_hashes(out, manifest)
            if stage == "fit" and str(manifest.get("r2v")).startswith("0.1."):
                raise StageError(
                    f"{out} holds routers of r2v 0.1, some of them in parts; make them anew with "
                    f"`r2v run {self.root / 'settings.yaml'} --out {self.root}`"
                )

    def manifest(self, stage: str) -> dict[str, Any]:
        """What the runner noted of a finished stage; `outputs` holds the hash of each of its files."""
        path = self.of(stage) / MANIFEST
        manifest: dict[str, Any] = _converted(path, dict[str, Any])
        _converted(path, _Outputs, manifest)
        return manifest

    # -- tasks and episodes -------------------------------------------------------------------------------------------

    def splits(self) -> dict[str, tuple[Task, ...]]:
        """The tasks of each split: {"policy": ..., "router": ..., "validation": ..., "test": ...}."""
        found: dict[str, tuple[Task, ...]] = _converted(self.of("collect") / "tasks.json", dict[str, tuple[Task, ...]])
        return found

    def split(self, name: str) -> tuple[Task, ...]:
        return self.splits()[name]

    def write_splits(self, splits: Mapping[str, Sequence[Task]]) -> None:
        tasks = {name: [asdict(task) for task in tasks] for name, tasks in splits.items()}
        write_json(self.of("collect") / "tasks.json", tasks)

    def teacher_episodes(self) -> list[Episode]:
        """All episodes of the teacher, clean and perturbed."""
        return [e for stage in ("collect", "perturb") for e in read_episodes(self.of(stage) / "episodes.parquet")]

    def proposals(self) -> list[Episode]:
        """The cloned SLM on policy tasks."""
        return read_episodes(self.of("propose") / "episodes.parquet")

    def views(self) -> list[Episode]:
        """Their actions again, under another perturbation seed."""
        return read_episodes(self.of("propose") / "views.parquet")

    def pairs(self) -> list[PreferencePair]:
        return read_pairs(self.of("propose") / "pairs.json")

    def rollouts(self) -> list[Episode]:
        """The deployed SLM alone on the router tasks."""
        return read_episodes(self.of("rollout") / "router.parquet")

    def validation_episodes(self) -> list[Episode]:
        """The same on the validation tasks: played when the SLM was chosen, or with the rollouts if none is trained."""
        return read_episodes(self.of("prefer" if self.settings.trains else "rollout") / "validation.parquet")

    def explored(self, model: str = TEACHER) -> list[Episode]:
        return read_episodes(self.of("rollout") / explored_file(model))

    def redrawn(self) -> list[Episode]:
        return read_episodes(self.of("rollout") / "redrawn.parquet")

    def interventions(self, model: str = TEACHER) -> Interventions | None:
        """None where no router needed them."""
        path = self.of("rollout") / interventions_file(model)
        return _converted(path, Interventions) if path.exists() else None

    # -- models and routers -------------------------------------------------------------------------------------------

    @property
    def cloned(self) -> Path:
        return self.of("clone") / "model"

    @property
    def preferred(self) -> Path:
        return self.of("prefer") / "model"

    @property
    def slm(self) -> Path:
        """Folder of the SLM that was kept; of a chat endpoint, the file that names it."""
        return self.kept_model if self.settings.trains else self.root / "settings.yaml"

    @property
    def kept_model(self) -> Path:
        """Folder of the SLM that was trained and kept."""
        choice: _Choice = _converted(self.of("prefer") / "choice.json", _Choice)
        return self.of(choice.kept) / "model"

    def router_folder(self, name: str) -> Path:
        return self.of("fit") / name

    def router(self, name: str) -> RouterBase:
        _ = self.settings  # imports the routers that it names: a folder itself imports nothing
        return load_router(self.router_folder(name))

    def selection(self) -> dict[str, Any]:
        """How the operating points were chosen."""
        raw: dict[str, Any] = _converted(self.of("fit") / "thresholds.json", dict[str, Any])
        return raw

    def operating_points(self) -> dict[str, OperatingPoint]:
        """Of every router with a threshold."""
        try:
            return msgspec.convert(self.selection()["routers"], dict[str, OperatingPoint])
        except (KeyError, msgspec.ValidationError) as error:
            path = self.of("fit") / "thresholds.json"
            raise ArtifactError(f"{path} is incomplete ({error}); run the stage fit again") from None

    def results(self) -> dict[str, Any]:
        raw: dict[str, Any] = _converted(self.of("evaluate") / "results.json", dict[str, Any])
        return raw

    def evaluated(self) -> list[Episode]:
        """Every router at its operating point on the test tasks."""
        return read_episodes(self.of("evaluate") / "episodes.parquet")


class _Outputs(msgspec.Struct):
    outputs: dict[str, str]


class _Choice(msgspec.Struct):
    kept: Literal["clone", "prefer"]


def _converted(path: Path, kind: Any, value: Any = None) -> Any:
    """A JSON file of a run (or what was read of it) as a type. Raises ArtifactError."""
    try:
        return msgspec.convert(read_json(path) if value is None else value, kind)
    except msgspec.ValidationError as error:
        raise ArtifactError(f"{path} is not what r2v writes ({error}); delete it and run its stage again") from None


def check_hashes(out: Path, manifest: Mapping[str, Any]) -> None:
    """Raises ArtifactError where a stage's file is not what it wrote."""
    for name, expected in manifest["outputs"].items():
        if not (out / name).is_file():
            raise ArtifactError(f"{out / name} is missing; delete {out} and run again to make it anew")
        if sha256(out / name) != expected:
            raise ArtifactError(f"{out / name} is damaged or was edited; delete {out} and run again to make it anew")
