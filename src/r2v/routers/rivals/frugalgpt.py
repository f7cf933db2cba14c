"""FrugalGPT: a scorer reads the finished answer, and a low score asks the strong model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from r2v.core.errors import StageError
from r2v.core.types import Action, Context
from r2v.routers.fit_data import FitData
from r2v.routers.reading import Reading
from r2v.routers.rivals.signals import submits


@dataclass(frozen=True, kw_only=True, eq=False)
class FrugalGPT(Reading):
    """Hands over where the SLM proposes an answer that a reader, fitted on answers alone, thinks wrong."""

    name: str = "frugalgpt"
    threshold: float | None = 0.5
    hands_over: bool = True
    without_call: bool = True
    """An action without a tool call is an answer: tools were called in the sessions of the fit, or these had one step."""
    routes = frozenset({"continue", "takeover"})
    colour = "#9c5a3c"
    cites = "FrugalGPT (arXiv 2305.05176): its cascade with a scorer of answers, on the answers of agents."

    @classmethod
    def fit(cls, data: FitData) -> Self:
        """Raises StageError where no session of the fit hands in an answer."""
        from r2v.learning.reading import slm_action

        actions = [[slm_action(step) for step in episode.steps] for episode in data.rollouts]
        without = any(action.tool_calls for done in actions for action in done) or all(len(done) == 1 for done in actions)
        steps = [
            [
                t
                for t, (step, action) in enumerate(zip(episode.steps, done, strict=True))
                if step.choice.features is not None and is_answer(action, without)
            ]
            for episode, done in zip(data.rollouts, actions, strict=True)
        ]
        wrong = [float(not e.success) for e, read in zip(data.rollouts, steps, strict=True) for _ in read]
        if not wrong:
            raise StageError(f"router {cls.name} finds no answer in these episodes: no action submits one")
        reader = data.reading(data.rollouts, steps, wrong, "the risk that the SLM's answer is wrong")
        return cls(reader=reader, without_call=without, fitted_with=data.fitted_with)

    def reads(self, context: Context, action: Action) -> bool:
        return is_answer(action, self.without_call)


def is_answer(action: Action, without_call: bool) -> bool:
    """Whether an action hands in an answer, by name or, `without_call`, because it calls no tool."""
    return submits(action) or (without_call and not action.tool_calls)
