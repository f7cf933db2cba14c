"""Plain rules for a gateway that has learned nothing yet."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from r2v.core.features import FEATURES
from r2v.core.types import Code, Context, Decision, Features, Memory
from r2v.routers.base import RouterBase

_ENTROPY, _BEST, _REPEATS = map(FEATURES.index, ("first_token_entropy", "verifier_best", "best_repeats"))
UNSURE = math.log(3)
"""Nats of the first token: as unsure as between three equally likely ones. Two are often two ways to say the same; and five
listed alternatives, what OpenAI-style servers tell, show at most ln 6."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rules(RouterBase):
    """Escalates, at threshold 1, where no candidate can be right, or where the SLM is unsure how to begin.

    The score is the larger of 1 - the best verifier score, which is 1 where every candidate is a call that cannot be
    executed or exactly what has just failed (`r2v.verifiers.tool_calls`), and entropy / ln 3, if that is known.
    """

    name: str = "rules"
    threshold: float | None = 1.0
    kind = "heuristic"
    colour = "#777777"

    def score(self, features: Features) -> float:
        return max(1 - features.values[_BEST], features.values[_ENTROPY] / UNSURE if features.present[_ENTROPY] else 0.0)

    def rule(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        decision = super().rule(context, features, memory, seed=seed)
        if decision.route == "continue":
            return decision
        code: Code = "risk_above"
        if features.values[_BEST] == 0:
            repeats = features.values[_REPEATS] > 0
            code = "repeats_failure" if repeats else "no_valid_call"
            reason = "the best candidate repeats what just failed" if repeats else "no candidate is a valid call"
        elif features.values[_ENTROPY] / UNSURE >= self.point:
            code, reason = "unsure", f"first token as unsure as among {math.exp(features.values[_ENTROPY]):.1f} tokens"
        else:
            return decision
        return replace(decision, code=code, reason=reason)
