"""Tool flakiness for AgentDojo: what a tool answered is lost, ends early or has gaps. The call has had its effect.

What attackers plant is not among these: it is the engine's (`environment.injection_task`).
"""

from __future__ import annotations

import random

from r2v.perturbations.operators import Materials, Operator, family


def timeout(text: str, rng: random.Random, materials: Materials) -> str:
    return "TimeoutError: the tool did not answer in time"


def truncation(text: str, rng: random.Random, materials: Materials) -> str | None:
    return f"{text[: round(len(text) * rng.uniform(0.4, 0.8))]} ..." if len(text) > 20 else None


def gaps(text: str, rng: random.Random, materials: Materials) -> str | None:
    lines = text.split("\n")
    if len(lines) < 2:
        return None
    keep = max(1, round(len(lines) * (1 - rng.uniform(0.1, 0.5))))
    return "\n".join(lines[i] for i in sorted(rng.sample(range(len(lines)), keep)))


def _result(operator: Operator) -> Operator:
    """The same, which leaves the list of tools alone."""
    return lambda text, rng, materials: operator(text, rng, materials) if materials.previous else None


flaky = family(
    "flaky",
    (("timeout", 0.08, _result(timeout)), ("gaps", 0.10, _result(gaps)), ("truncation", 0.10, _result(truncation))),
)
