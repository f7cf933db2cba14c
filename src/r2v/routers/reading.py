"""A router that reads: what the goal, the newest observation and the SLM's own proposal say, beside the features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from r2v.core.reading import Reader
from r2v.core.types import Action, Context, Decision, Episode, Features, Memory, Route, ScoreKind
from r2v.routers.base import FitData, RouterBase, compare, quantiles

Estimate = Literal["risk", "benefit", "disagreement"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading(RouterBase):
    """Escalates where a reader sees that the SLM fails, that only the teacher solves the task, or that the two differ."""

    name: str = "reading"
    estimates: Estimate = "risk"
    reader: Reader
    """P(the SLM fails), or P(the teacher acts otherwise)."""
    teacher: Reader | None = None
    """P(the teacher fails on this task), of `benefit`: its score is the difference."""
    hands_over: bool = False
    """The teacher keeps the session from there on: what was measured on recorded sessions of both."""
    kind: ClassVar[ScoreKind | None] = "risk"
    routes = frozenset({"continue", "escalate", "takeover"})
    colour = "#ee7733"
    cites = "Ours; hashed words as in feature hashing (arXiv 0902.2206)."

    @classmethod
    def fit(cls, data: FitData) -> Reading:
        """The risk of failing, on the SLM's own episodes."""
        import numpy as np

        from r2v.core.groups import folds
        from r2v.learning.reading import calibrated, cross_fitted, fit_reader, read_rows

        tasks = {task: i for i, task in enumerate(dict.fromkeys(episode.task.id for episode in data.rollouts))}
        group_E = np.array([tasks[episode.task.id] for episode in data.rollouts])
        steps = [[t for t, s in enumerate(e.steps) if s.choice.features is not None] for e in data.rollouts]
        rows = read_rows(data.rollouts, group_E, steps, data.horizon)
        failed_N = np.array([float(not episode.success) for episode in data.rollouts])[rows.episode_N]
        _, p_N = cross_fitted(rows, failed_N, folds(rows.group_N, 5, data.seed), seed=data.seed)
        facts = {**data.facts, "seed": data.seed, "estimates": "the risk that going on with the SLM will fail the episode"}
        reader = fit_reader(rows, failed_N, np.ones(len(rows), dtype=bool), seed=data.seed, facts=facts)
        return cls(reader=calibrated(reader, p_N, failed_N), fitted_with=data.fitted_with)

    def score_of(self, context: Context, action: Action, features: Features) -> float:
        """What is compared with the threshold."""
        score = self.reader.score(context, action, features)
        return score - self.teacher.score(context, action, features) if self.teacher else score

    def thresholds(self, validation: Sequence[Episode], shares: Sequence[float]) -> list[float]:
        assert self.fitted_with is not None and self.fitted_with.horizon is not None
        scores = [
            self.score_of(context, step.choice.action, step.choice.features)
            for episode in validation
            for context, step in zip(episode.contexts(self.fitted_with.horizon), episode.steps, strict=True)
            if step.choice.features is not None
        ]
        return quantiles(scores, shares)

    def rule(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        """Raises ValueError where the context does not say what the SLM proposes."""
        if context.proposed is None:
            raise ValueError(f"router {self.name} reads what the SLM proposes: give it in `Context.proposed`")
        return self.compared(self.score_of(context, context.proposed, features))

    def compared(self, score: float, why: str = "") -> Decision:
        """The decision on a score; `why` is added to its reason."""
        above: Route = "takeover" if self.hands_over else "escalate"
        return compare(self.name, self.estimates, score, self.point, above=above, why=why)
