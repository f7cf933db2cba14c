"""The decision of every router with a threshold: a score of the step, compared with it."""

from __future__ import annotations

from r2v.core.types import Code, Decision, Route, ScoreKind


def compare(
    name: str,
    kind: ScoreKind,
    score: float,
    threshold: float,
    *,
    above: Route = "escalate",
    state: tuple[float, ...] = (),
    why: str = "",
) -> Decision:
    """`above` where the score is at least the threshold, else `continue`.

    Args:
        name: what the reason calls the score.
        kind: what the score estimates.
        state: what the router wants to read at its next step.
        why: added to the reason.
    """
    reached = score >= threshold
    reason = f"{name} {score:.3f} {'>=' if reached else '<'} {threshold:.3f}{why}"
    if not reached:
        return Decision("continue", "risk_below", score, kind, threshold, 1.0, state, reason)
    code: Code = "retry" if above == "retry" else "risk_above"
    return Decision(above, code, score, kind, threshold, 1.0, state, reason)
