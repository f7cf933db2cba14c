"""Records that older versions wrote, as today's: the names of the fields and of the routes have changed."""

from __future__ import annotations

from typing import Any, get_args

from r2v.core.types import Code

ROUTES = {"teacher_step": "escalate", "teacher_latch": "takeover"}


def upgraded_episode(raw: dict[str, Any]) -> dict[str, Any]:
    """An episode of schema 1 (r2v 0.1) in the form of `r2v.core.types.Episode`."""
    return {**raw, "steps": [upgraded_step(step) for step in raw["steps"]]}


def upgraded_step(raw: dict[str, Any]) -> dict[str, Any]:
    """A step of r2v 0.1 in the form of `r2v.core.types.Step`; one of today stays as it is."""
    choice = dict(raw["choice"])
    if "actor" not in choice:
        return raw
    choice["source"] = choice.pop("actor")
    if choice["decision"] is not None:
        choice["decision"] = upgraded_decision(choice["decision"])
    return {**raw, "choice": choice}


def upgraded_decision(raw: dict[str, Any]) -> dict[str, Any]:
    """A decision of r2v 0.1 in the form of `r2v.core.types.Decision`; one of today stays as it is.

    The code was the beginning of the gateway's reasons; what a score estimates was not written.
    """
    if "rung" not in raw:
        return raw
    code = raw["reason"].split(":", 1)[0]
    if code not in get_args(Code):
        code = "risk_below" if raw["rung"] == "continue" else "risk_above"
    return {
        "route": ROUTES.get(raw["rung"], raw["rung"]), "code": code, "score": raw["risk"],
        "score_kind": None if raw["risk"] is None else "custom", "threshold": raw["threshold"],
        "propensity": raw["propensity"], "state": [], "reason": raw["reason"],
    }  # fmt: skip
