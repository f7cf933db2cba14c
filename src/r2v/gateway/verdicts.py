"""Verdicts in the gateway: read before each decision, kept with the step, and in the end the outcome of a session."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from r2v.core.types import Action, Context, Step
from r2v.gateway.ledger import LastVerdict
from r2v.verdicts.base import Known, SessionVerdict, StepVerdict, Verdict, read_all, read_steps, with_answer


class SessionVerdicts:
    """The configured verdicts, but those that are asked once a session has ended: the gateway never knows that one has."""

    def __init__(self, verdicts: Sequence[Verdict]) -> None:
        """`verdicts`: the one that is trusted most first."""
        self._step = [verdict for verdict in verdicts if isinstance(verdict, StepVerdict)]
        self._text = [verdict for verdict in verdicts if not isinstance(verdict, StepVerdict | SessionVerdict)]
        self._answer = [verdict for verdict in self._text if getattr(verdict, "reads_answer", False)]

    async def of_context(self, context: Context) -> Known:
        """What is known before the decision. In a thread: a function of the user's may take its time."""
        return await asyncio.to_thread(read_all, self._text, context) if self._text else ()

    def of_step(self, step: Step) -> Known:
        """What the drafts of the step say."""
        return read_steps(self._step, step)

    async def last(self, known: Known, context: Context, answer: Action) -> LastVerdict | None:
        """The outcome of the session, should it end here: of the verdicts that know one the one that stands first.

        Args:
            known: what was known before the step.
            context: of the step.
            answer: what the agent does. Where it calls no tool it may be the last thing that the agent says, and the
                verdicts that judge answers read it, too.
        """
        values = dict(known)
        if self._answer and not answer.tool_calls:
            values |= await asyncio.to_thread(read_all, self._answer, with_answer(context, answer))
        for rank, verdict in enumerate(self._text):
            if verdict.name in values:
                return LastVerdict(verdict.name, rank, values[verdict.name])
        return None
