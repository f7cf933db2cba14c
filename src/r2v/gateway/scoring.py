"""A verifier that asks a model, paid for from the budgets of its step."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

from r2v.clients.endpoint import on_lost
from r2v.clients.tokens import Tokens
from r2v.core.errors import ModelError
from r2v.core.protocols import PricedVerifier
from r2v.core.types import Action, Context, Usage
from r2v.gateway.budgets import Amount
from r2v.gateway.telemetry import model_call


class PaidVerifier:
    """Scores as its verifier does (`r2v.core.protocols.PricedVerifier`), while the budgets have room for the question."""

    def __init__(self, verifier: PricedVerifier, pay: Callable[[Amount], Awaitable[bool]]) -> None:
        """`pay` charges the step for what a question costs at most; whether there is room for it."""
        self._verifier, self._pay = verifier, pay
        self.spent = Amount()
        self.lost = Amount()
        """What broken or cancelled questions can have cost at most."""
        self.seconds = 0.0

    def most(self, context: Context, actions: Sequence[Action]) -> Usage:
        return self._verifier.most(context, actions)

    async def score(self, context: Context, actions: Sequence[Action]) -> tuple[float, ...]:
        return (await self.priced(context, actions))[0]

    async def priced(self, context: Context, actions: Sequence[Action]) -> tuple[tuple[float, ...], Usage]:
        """Raises ModelError where the budgets have no room."""
        most = _amount(self.most(context, actions))

        async def lost_try(answers: int, again: bool) -> bool:
            self.lost += most
            return not again or await self._pay(most)

        if not await self._pay(most):
            raise ModelError("the budget has no room for the verifier's question")
        start, token = time.perf_counter(), on_lost.set(lost_try)
        try:
            with model_call("verifier", None, 1) as call:
                scores, usage = await self._verifier.priced(context, actions)
                if usage.prompt_tokens is not None and usage.completion_tokens is not None:
                    call.tokens = Tokens(usage.prompt_tokens, usage.completion_tokens)
        except BaseException as error:
            if not isinstance(error, ModelError) or error.paid:
                self.lost += most
            raise
        finally:
            on_lost.reset(token)
            self.seconds += time.perf_counter() - start
        unknown = usage.calls and (usage.prompt_tokens is None or usage.completion_tokens is None)
        self.spent += Amount(0, most.tokens, usage.usd or 0.0) if unknown else _amount(usage)
        return scores, usage


def _amount(usage: Usage) -> Amount:
    return Amount(0, (usage.prompt_tokens or 0) + (usage.completion_tokens or 0), usage.usd or 0.0)
