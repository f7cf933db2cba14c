"""A router that reads: what the goal, the newest observation and the SLM's own proposal say, beside the features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from r2v.core.errors import StageError
from r2v.core.reading import Reader
from r2v.core.types import Action, Context, Decision, Episode, Features, Memory, Route, ScoreKind
from r2v.routers.base import RouterBase, compare, quantiles
from r2v.routers.fit_data import FitData

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
    def fit(cls, data: FitData) -> Self:
        """The risk of failing, on the SLM's own episodes."""
        return cls(reader=data.reader, fitted_with=data.fitted_with)

    def reads(self, context: Context, action: Action) -> bool:
        """Whether this is a step at which it may escalate."""
        return True

    def score_of(self, context: Context, action: Action, features: Features) -> float:
        """What is compared with the threshold."""
        score = self.reader.score(context, action, features)
        return score - self.teacher.score(context, action, features) if self.teacher else score

    def estimate(self, context: Context, features: Features) -> float:
        """Raises ValueError where the context does not say what the SLM proposes."""
        if context.proposed is None:
            raise ValueError(f"router {self.name} reads what the SLM proposes: give it in `Context.proposed`")
        return self.score_of(context, context.proposed, features)

    def thresholds(self, validation: Sequence[Episode], shares: Sequence[float]) -> list[float]:
        """Raises StageError where it reads none of these steps."""
        assert self.fitted_with is not None and self.fitted_with.horizon is not None
        scores = [
            self.score_of(context, step.choice.action, step.choice.features)
            for episode in validation
            for context, step in zip(episode.contexts(self.fitted_with.horizon), episode.steps, strict=True)
            if step.choice.features is not None and self.reads(context, step.choice.action)
        ]
        if not scores:
            raise StageError(f"router {self.name} finds no step among the validation episodes at which it would decide")
        return quantiles(scores, shares)

    def rule(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        """Raises ValueError where the context does not say what the SLM proposes."""
        if context.proposed is not None and not self.reads(context, context.proposed):
            return Decision("continue", "scheduled", None, None, self.point, 1.0, (), "not a step at which it may escalate")
        return self.compared(self.estimate(context, features))

    def compared(self, score: float, why: str = "") -> Decision:
        """The decision on a score; `why` is added to its reason."""
        above: Route = "takeover" if self.hands_over else "escalate"
        return compare(self.name, self.estimates, score, self.point, above=above, why=why)
