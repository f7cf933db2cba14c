"""What naming the decisive step is worth: on Who&When's labelled failures, and on a run whose help.json holds branches.

    python benchmarks/localiser.py PATH [--risk ROUTER] [--ship FOLDER] [--seeds N]

PATH: Who&When's folder, or a finished run (`help.branches` high, so that every step on which the teacher differs is tried).
--risk: the folder of a router with a risk; the largest rise of that risk is one more row. Of a run its own `r2v` is taken.
--ship: fit on all of it and write the localiser there, with these figures as its card.
--seeds: divisions into folds; the figures are means over them. Target: top-1 of .30 on Who&When.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from r2v.core.localiser import NAMES, FailureLabel, labels_of, step_features, turns_of
from r2v.evaluation.branches import with_mistakes
from r2v.learning.localise import save_localiser
from r2v.logs.importing import import_logs
from r2v.pipeline.run_folder import RunFolder
from r2v.routers import load_router
from r2v.studies.localise import fitted, left_out, measured, shipped

POSITIONS = {i for i, name in enumerate(NAMES) if name.startswith("is_step") or name in ("log_step", "fraction",
             "fraction_squared", "is_last", "is_last_but_one", "is_last_but_two")}  # fmt: skip
DATA = "Who&When (Zhang et al. 2025), 184 failures of teams of agents on GAIA and AssistantBench, decisive step by hand"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--risk", type=Path)
    parser.add_argument("--ship", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    run = (options.path / "6-rollout").exists()
    if run:
        folder = RunFolder(options.path)
        tried = folder.interventions()
        if tried is None or not tried.branches:
            raise SystemExit(f"{options.path} holds no branches: run it with the router benefit")
        episodes = with_mistakes(folder.rollouts(), tried.branches, tried.differs)
        own = options.path / "7-fit" / "r2v"
        options.risk = options.risk or (own if own.exists() else None)
    else:
        episodes, _ = import_logs(options.path, "who-and-when")
    labels = labels_of(episodes)
    features = [step_features(label.episode) for label in labels]
    risks = None
    if options.risk:
        router: Any = load_router(options.risk)
        risks = [[router.score(step.choice.features) for step in label.episode.steps] for label in labels]
    found = measured(labels, features, risks, seeds=options.seeds).results
    show("localiser, tasks left out", found["top1"], found["within1"], found["top1_ci95"])
    print(f"    over {options.seeds} divisions: {min(found['top1_by_seed']):.3f} to {max(found['top1_by_seed']):.3f}")
    alone = [np.where([i in POSITIONS for i in range(len(NAMES))], x_TF, 0.0) for x_TF in features]
    by_position = measured(labels, alone, seeds=options.seeds).results
    show("the same, of positions alone", by_position["top1"], by_position["within1"], by_position["top1_ci95"])
    for rule in found["always_step_k"].values():
        show(f"always step {rule['k']}", rule["top1"], rule["within1"])
    show("random (expected)", found["random"]["top1"], found["random"]["within1"])
    if found["risk_curve"]:
        show("largest rise of the risk", found["risk_curve"]["top1"], found["risk_curve"]["within1"])
    print(f"{found['episodes']} labelled failures, {found['groups']} groups of tasks")
    if run:
        p_ET = [shipped().of_features(x_TF) for x_TF in features]
        show("the shipped localiser", *hits(labels, p_ET))
        return
    parts = {}
    p_ET = left_out(labels, features, seed=0)
    for part, team in (("Algorithm-Generated", False), ("Hand-Crafted", True)):
        mine = [i for i, label in enumerate(labels) if has_leader(label) == team]
        parts[part] = dict(zip(("top1", "within1"), hits([labels[i] for i in mine], [p_ET[i] for i in mine]), strict=True))
        show(f"{part} ({len(mine)}), first division", **parts[part])
    if options.ship:
        facts = {
            "data": DATA, "licence": "MIT", "left_out": found, "positions_alone": by_position["top1"], "parts": parts,
        }  # fmt: skip
        save_localiser(fitted(labels, features, facts=facts), options.ship)


def show(name: str, top1: float, within1: float, ci95: list[float] | None = None) -> None:
    around = "" if ci95 is None else f" ({ci95[0]:.3f}-{ci95[1]:.3f})"
    print(f"{name:<44} top-1 {top1:.3f}{around}  within 1 {within1:.3f}")


def hits(labels: list[FailureLabel], p_ET: list[np.ndarray]) -> tuple[float, float]:
    off = np.array([abs(int(p_T.argmax()) - label.step) for label, p_T in zip(labels, p_ET, strict=True)])
    return float((off == 0).mean()), float((off <= 1).mean())


def has_leader(label: FailureLabel) -> bool:
    return any("Orchestrator" in turn.speaker for turn in turns_of(label.episode))


if __name__ == "__main__":
    main()
