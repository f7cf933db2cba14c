"""Which episodes a report carries, and what its browser shows of each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from r2v.core.types import Episode, Step

CASES = 14
"""(task, seed) pairs shown; each with every router's episode."""


def selected(episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """The episodes of a few instructive (task, seed) pairs, for all routers: rescued, hurt, failed, easy."""
    by_case: dict[tuple[str, int], dict[str, Episode]] = {}
    for episode in episodes:
        by_case.setdefault((episode.task.id, episode.seed), {})[episode.agent] = episode
    kinds: dict[tuple[Any, ...], list[tuple[str, int]]] = {}
    for case, played in by_case.items():
        alone, routed = played.get("slm_only"), played.get("r2v")
        kind = (alone and alone.success, routed and routed.success, next(iter(played.values())).perturbation)
        kinds.setdefault(kind, []).append(case)
    chosen: list[tuple[str, int]] = []
    for depth in range(CASES):  # one of each kind in turn, so that rare kinds are in
        for kind in sorted(kinds, key=str):
            if depth < len(kinds[kind]) and len(chosen) < CASES:
                chosen.append(kinds[kind][depth])
    return [_episode(episode) for case in chosen for episode in by_case[case].values()]


def _episode(episode: Episode) -> dict[str, Any]:
    return {
        "task": episode.task.id, "family": episode.task.family, "goal": episode.goal, "seed": episode.seed,
        "perturbation": episode.perturbation, "router": episode.agent, "success": episode.success, "stop": episode.stop,
        "steps": [_step(step) for step in episode.steps], "final": None if episode.final is None else episode.final.text,
    }  # fmt: skip


def _step(step: Step) -> dict[str, Any]:
    choice, decision = step.choice, step.choice.decision
    distinct: dict[str, dict[str, Any]] = {}
    for i, candidate in enumerate(choice.candidates):
        entry = distinct.setdefault(
            candidate.action.text,
            {
                "text": candidate.action.text,
                "count": 0,
                "logp": None if candidate.logp is None else round(candidate.logp, 2),
                "score": round(choice.scores[i], 2) if choice.scores else None,
            },
        )
        entry["count"] += 1
    return {
        "seen": step.observation.text,
        "changes": [[c.family, c.operator, c.detail] for c in step.observation.changes],
        "candidates": sorted(distinct.values(), key=lambda entry: -(entry["score"] or 0)),
        "risk": None if decision is None or decision.score is None else round(decision.score, 4),
        "threshold": None if decision is None or decision.threshold is None else round(decision.threshold, 4),
        "reason": None if decision is None else decision.reason,
        "source": choice.source,
        "action": choice.action.text,
    }
