"""The baselines of the paper (method, section 7), each one line of score; and the two that never and always ask."""

from __future__ import annotations

from dataclasses import dataclass

from r2v.core.features import FEATURES
from r2v.core.seeds import derive_uniform
from r2v.core.types import Context, Decision, Features, Memory, Route

_ENTROPY = FEATURES.index("first_token_entropy")
_MEAN = FEATURES.index("verifier_mean")
_BEST = FEATURES.index("verifier_best")

HEURISTIC_ENTROPY = 2.5
HEURISTIC_MEAN = 0.4


def entropy(features: Features) -> float:
    """Entropy of the first action token, nats; 0 where it is unknown."""
    return features.values[_ENTROPY]


def heuristic(features: Features) -> float:
    """At threshold 1 the paper's rule: entropy > 2.5 or mean verifier score < 0.4."""
    return max(features.values[_ENTROPY] / HEURISTIC_ENTROPY, (1 - features.values[_MEAN]) / (1 - HEURISTIC_MEAN))


def verifier(features: Features) -> float:
    """1 - best verifier score; the paper's rule is threshold 0.5."""
    return 1 - features.values[_BEST]


@dataclass(frozen=True)
class Never:
    """The small model alone."""

    name: str = "slm_only"

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        return Decision("continue", "never", None, None, None, 1.0, (), "never escalates")


@dataclass(frozen=True)
class Always:
    name: str = "llm_only"

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        return Decision("escalate", "always", None, None, None, 1.0, (), "always escalates")


@dataclass(frozen=True)
class Random:
    """Asks with probability `rate`, independent of the step; the propensity is logged."""

    rate: float
    name: str = "random"

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        draw = derive_uniform(seed, "random router")
        if draw < self.rate:
            return Decision("escalate", "random", None, None, self.rate, self.rate, (), f"drew {draw:.3f} < {self.rate:.3f}")
        return Decision(
            "continue", "random", None, None, self.rate, 1 - self.rate, (), f"drew {draw:.3f} >= {self.rate:.3f}"
        )


@dataclass(frozen=True)
class Redraw:
    """The small model alone, with a second draw of candidates at every step."""

    name: str = "redraw"

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        if memory.retries:
            return Decision("continue", "scheduled", None, None, None, 1.0, (), "drew twice")
        return Decision("retry", "retry", None, None, None, 1.0, (), "always draws twice")


@dataclass(frozen=True)
class AskAt:
    """Asks exactly at these steps: one arm of a branched episode."""

    steps: frozenset[int]
    name: str = "ask_at"

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        route: Route = "escalate" if context.t in self.steps else "continue"
        return Decision(route, "scheduled", None, None, None, 1.0, (), "this branch escalates at fixed steps")
