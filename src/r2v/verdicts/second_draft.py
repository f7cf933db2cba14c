"""`second_draft`: whether independent drafts of one step would do the same.

Models that disagree with themselves are more often wrong. It needs several candidates at a step, or a draft of the SLM
beside the teacher's answer; a log with one candidate a step says nothing.
"""

from __future__ import annotations

from r2v.core.agreement import alike
from r2v.core.features import best
from r2v.core.types import Context, Step
from r2v.runtime.settings import Settings


class AgreementVerdict(Settings):
    """Share of the other drafts of a step that do what the best one does, or what the teacher did. Words that differ count
    as different, so it is for agents that call tools or write commands.
    """

    name: str = "second_draft"

    def read(self, context: Context) -> float | None:
        """None: drafts are no part of what the agent has seen."""
        return None

    def read_step(self, step: Step) -> float | None:
        choice = step.choice
        others = [candidate.action for candidate in choice.candidates]
        if choice.source == "teacher":
            reference = choice.action
        elif others:
            reference = others.pop(best(choice.candidates, choice.scores) if choice.scores else 0)
        if not others:
            return None
        return sum(alike(other, reference) is True for other in others) / len(others)
