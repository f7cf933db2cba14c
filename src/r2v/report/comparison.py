"""What `r2v compare` shows of runs side by side: a table, their frontiers over one another, a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from rich.table import Table

from r2v.report.figures import new, svg
from r2v.report.page import page_template
from r2v.runtime.store import write_json

SHADES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
Comparison = dict[str, Any]
"""See `r2v.studies.compare`."""


def folders(comparison: Comparison) -> list[str]:
    """What tells the runs apart: as much of the end of each one's path as it takes."""
    paths = [Path(row["run"]) for row in comparison["rows"]]
    for n in range(1, max(len(path.parts) for path in paths)):
        ends = [str(Path(*path.parts[-n:])) for path in paths]
        if len(set(ends)) == len(set(paths)):
            return ends
    return [str(path) for path in paths]


def table(comparison: Comparison) -> Table:
    """For the terminal: the columns that fit 80 characters; the page has them all."""
    name = comparison["router"]
    shown = Table(title=f"{name} by backbone, closed loop")
    shown.add_column("run, SLM", overflow="fold", min_width=16)
    for heading in ("alone", name, "95 %", "teacher", "calls", "less random"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for folder, row in zip(folders(comparison), comparison["rows"], strict=True):
        routed, random = row["routers"][name], row["less_random"]
        low, high = routed["ci95"]
        shown.add_row(
            f"{folder}\n{row['slm']}", f"{row['routers']['slm_only']['success_rate']:.1%}", f"{routed['success_rate']:.1%}",
            f"{100 * low:.1f}-{100 * high:.1f}", f"{row['routers']['llm_only']['success_rate']:.1%}",
            f"{routed['calls_per_episode']:.2f}", "" if random is None else f"{random['area']:+.3f}",
        )  # fmt: skip
    return shown


def frontiers(comparison: Comparison) -> Figure:
    """Success against teacher-call rate, a curve a run: the SLM alone at its left end, the teacher at its right."""
    figure, axes = new(7.6, 4.6)
    for i, (folder, row) in enumerate(zip(folders(comparison), comparison["rows"], strict=True)):
        routed, shade = row["routers"][comparison["router"]], SHADES[i % len(SHADES)]
        if routed["curve"]:
            axes.plot(
                *zip(*routed["curve"], strict=True), color=shade, lw=1.8, marker="o", ms=3, label=f"{folder}: {row['slm']}"
            )
        low, high = routed["ci95"]
        error = [[max(0.0, routed["success_rate"] - low)], [max(0.0, high - routed["success_rate"])]]
        at = (routed["llm_call_rate"], routed["success_rate"])
        axes.errorbar(*at, yerr=error, color=shade, fmt="D", ms=6, mec="white", capsize=3, lw=1.0, zorder=6)
    axes.set_xlabel("teacher-call rate (share of steps)")
    axes.set_ylabel("success rate")
    axes.set_xlim(-0.02, 1.02)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def write_comparison(comparison: Comparison, out: Path) -> Path:
    """Write `comparison.json`, `comparison.html` and its figure into a folder; returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    figure = frontiers(comparison)
    figure.savefig(out / "frontiers.png", dpi=160)
    write_json(out / "comparison.json", comparison)
    path = out / "comparison.html"
    page = page_template("comparison.html.j2").render(c=comparison, folders=folders(comparison), figure=Markup(svg(figure)))
    path.write_text(page, encoding="utf-8")
    return path
