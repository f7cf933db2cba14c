"""What `r2v bench` shows: a table a suite for the terminal, and a page with all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from rich.table import Table

from r2v.report.comparison import SHADES
from r2v.report.figures import new, svg
from r2v.report.page import number, page_template
from r2v.runtime.store import write_text

Results = dict[str, Any]
"""See `r2v.bench.run.run_suite`."""
DRAWN = len(SHADES)


def ranked(results: Results) -> list[dict[str, Any]]:
    """The rows, what gains most over random escalation first."""
    return sorted(results["rows"], key=lambda row: -row["gain_over_random"])


def best(results: Results) -> dict[str, Any]:
    """Of the rows that can be read at the share asked for, the one that gains most over random escalation."""
    rows = ranked(results)
    return next((row for row in rows if not row["fixed"]), rows[0])


def table(results: Results) -> Table:
    """For the terminal; the page has all columns."""
    share = results["share"]
    shown = Table(title=f"{results['suite']}: {results['sessions']} sessions, at {share:.0%} strong calls")
    shown.add_column("router", overflow="fold", min_width=16)
    for heading in ("strong", "success", "over random", "over step 0", "$/solved"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in ranked(results):
        shown.add_row(
            row["router"], f"{row['share_strong']:.0%}", f"{row['success']:.3f}", gain(row, "random"), gain(row, "step_0"),
            number(row["usd_per_solved"], 4),
        )  # fmt: skip
    return shown


def plain_table(results: Results) -> Table:
    """Of a suite with results of its own shape, what all suites have."""
    shown = Table(title=results["suite"])
    for heading in ("router", "strong", "success", "95 %", "$/solved"):
        shown.add_column(heading, justify="left" if heading == "router" else "right")
    for row in results["rows"]:
        low, high = row["ci95"]
        interval, usd = f"{low:.3f} to {high:.3f}", number(row["usd_per_solved"], 4)
        shown.add_row(row["router"], f"{row['share_strong']:.0%}", f"{row['success']:.3f}", interval, usd)
    return shown


def gain(row: dict[str, Any], over: str) -> str:
    """A gain with its interval."""
    found = row[f"gain_over_{over}"]
    if found is None:
        return "–"
    low, high = row[f"gain_over_{over}_ci95"]
    return f"{found:+.3f} ({low:+.3f}, {high:+.3f})"


def verdict(results: Results) -> str:
    """What came out, in one line, whichever way it came out."""
    row = best(results)
    low = row["gain_over_random_ci95"][0]
    nulls = results["nulls"]
    alone, strong = (nulls[name]["success"] for name in ("slm alone", "strong alone"))
    ends = f"the weak model alone {alone:.3f}, {results['strong']} {strong:.3f}"
    if low <= 0:
        return f"No router is surely better than random escalation ({ends})."
    over = row["gain_over_step_0_ci95"]
    also = "also" if over is not None and over[0] > 0 else "but not surely"
    return f"{row['router']} gains {gain(row, 'random')} over random escalation, {also} over deciding at step 0 ({ends})."


def figure(results: Results) -> Figure:
    """Success against the share of strong calls: the best routers, and random escalation."""
    drawn, axes = new(7.6, 4.2)
    rows = [row for row in ranked(results) if not row["fixed"]][:DRAWN]
    for row, shade in zip(rows, SHADES, strict=False):
        points = sorted(row["curve"])
        axes.plot([p[0] for p in points], [p[1] for p in points], color=shade, lw=1.6, marker="o", ms=3, label=row["router"])
    ends = [results["nulls"][name]["success"] for name in ("slm alone", "strong alone")]
    axes.plot([0, 1], ends, color="#777777", lw=1.2, ls="--", label="a coin, once a session")
    axes.axvline(results["share"], color="#bbbbbb", lw=0.8, zorder=0)
    axes.set_xlabel("strong calls (share of steps)" if results["mode"] == "one_step" else "sessions handed over (share)")
    axes.set_ylabel("success")
    axes.set_xlim(-0.02, 1.02)
    drawn.legend(loc="outside right center", frameon=False)
    return drawn


def write_bench(found: Sequence[Results], out: Path) -> Path:
    """Write `bench.html`; returns its path."""
    suites = [
        {
            **results,
            "rows": ranked(results),
            "best": best(results),
            "verdict": verdict(results),
            "figure": Markup(svg(figure(results))),
        }
        for results in found
    ]
    path = out / "bench.html"
    write_text(path, page_template("bench.html.j2").render(suites=suites, gain=gain))
    return path
