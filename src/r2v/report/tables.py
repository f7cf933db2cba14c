"""The table of routers for the terminal: the columns that fit 80 characters; the page has them all."""

from __future__ import annotations

from typing import Any

from rich.table import Table

AT_EQUAL = "at 98 %"
"""Heading of the calls an episode with 98 % of the teacher's success."""


def summary(results: dict[str, Any]) -> Table:
    seeds = len(results["perturbation_seeds"])
    table = Table(title=f"closed loop: {results['tasks']} held-out tasks x {seeds} perturbation seeds")
    table.add_column("router", no_wrap=True)
    priced = any(r.get("usd_per_episode") for r in results["routers"].values())
    for heading in ("success", "95 %", "escalated", "calls", AT_EQUAL, "area", *(["USD/1000"] if priced else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, r in results["routers"].items():
        low, high = r["ci95"]
        table.add_row(
            name, f"{r['success_rate']:.1%}", f"{100 * low:.1f}-{100 * high:.1f}", f"{r['llm_call_rate']:.1%}",
            f"{r['calls_per_episode']:.2f}", _at_equal(r),
            "" if r["area"] is None else f"{r['area']:.3f}",
            *([f"{1000 * (r.get('usd_per_episode') or 0):.3f}"] if priced else []), style="bold" if name == "r2v" else "",
        )  # fmt: skip
    if unmet := results["selection"].get("unmet"):
        table.caption = f"On validation no threshold of {', '.join(unmet)} met the rule; the safest one was taken."
    return table


def _at_equal(router: dict[str, Any]) -> str:
    """Calls an episode with 98 % of the teacher's success; empty without a curve, or where it does not get there."""
    calls = router.get("calls_at_equal_success", {}).get("0.98", {}).get("calls")
    return "" if calls is None else f"{calls:.2f}"
