"""The table of routers for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def summary(results: dict[str, Any]) -> Table:
    table = Table(
        title=f"{results['tasks']} held-out tasks x {len(results['perturbation_seeds'])} perturbation seeds, closed loop"
    )
    for heading in (
        "router",
        "success",
        "95 % interval",
        "call rate",
        "calls/ep.",
        "steps/ep.",
        "cost/ep.",
        "worst seed",
        "area",
    ):
        table.add_column(heading, justify="left" if heading == "router" else "right")
    for name, r in results["routers"].items():
        low, high = r["ci95"]
        table.add_row(
            name,
            f"{r['success_rate']:.1%}",
            f"{low:.1%} to {high:.1%}",
            f"{r['llm_call_rate']:.1%}",
            f"{r['calls_per_episode']:.2f}",
            f"{r['steps_per_episode']:.1f}",
            f"{r['cost_per_episode']:.0f}",
            f"{r['worst_seed_success']:.1%}",
            "" if r["area"] is None else f"{r['area']:.3f}",
        )
    return table
