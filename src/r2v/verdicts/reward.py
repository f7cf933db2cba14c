"""`reward`: the number that an environment prints with its answers, in a line such as `Reward: 0.5`."""

from __future__ import annotations

import re
from functools import cached_property

from r2v.core.types import Context
from r2v.runtime.settings import PositiveFloat, Settings
from r2v.verdicts.base import lines, results


class RewardVerdict(Settings):
    """The newest reward as a share of the full one; from one half on it counts as right."""

    name: str = "reward"
    label: str = "reward"
    """The word before the number, in any case."""
    full: PositiveFloat = 1.0
    """The reward of what is wholly right, e.g. 100."""
    right_from: float | None = None
    """The value is 1 from this reward on, else 0, e.g. where partial rewards are common; None: the share of `full`."""

    def __post_init__(self) -> None:
        if not self.label.strip():
            raise ValueError("label must be a word")

    def read(self, context: Context) -> float | None:
        for _, text in results(context):
            found = [match for line in lines(text) if (match := self._line.match(line))]
            if found:
                reward = float(found[-1][1])
                if self.right_from is not None:
                    return float(reward >= self.right_from)
                return min(1.0, max(0.0, reward / self.full))
        return None

    @cached_property
    def _line(self) -> re.Pattern[str]:
        label = re.escape(self.label.strip())
        return re.compile(
            r"\W{0,10}(?:(?:the|your|final|total|current|last|step) ){0,3}" + label + r"(?: is)?[^\w.+-]{1,5}"
            r"([+-]?(?:\d{1,15}(?:\.\d{0,20})?|\.\d{1,20})(?:e[+-]?\d{1,2})?)(?![\w%]|\.\d)",
            re.IGNORECASE,
        )
