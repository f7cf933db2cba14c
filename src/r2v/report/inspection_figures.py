"""The figures of `r2v inspect`, drawn from inspect.json alone."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from r2v.report.figures import Results, calibration_figure, two_parts

SIZE = (5.0, 4.2)
FAILED, SOLVED, OTHER = "#d55e00", "#0072b2", "#777777"
FEW = 20
"""Below so many episodes of the rarer outcome, a point is drawn faintly."""


def risk_curves(r: Results) -> Figure:
    """Median risk and its quartiles at each step; below, how many episodes got there."""
    figure, top, bottom = two_parts(*SIZE)
    for name, colour in (("failed", FAILED), ("solved", SOLVED)):
        t, count, low, middle, high = zip(*r["curves"][name], strict=True)
        top.fill_between(t, low, high, color=colour, alpha=0.18, lw=0)
        top.plot(t, middle, color=colour, lw=2, marker="o", ms=3, label=f"{name} episodes")
        bottom.step(t, count, where="mid", color=colour, lw=1.4)
    top.set_ylabel("risk (median, quartiles)")
    top.set_ylim(-0.02, 1.02)
    _legend(figure, top)
    _steps(bottom)
    return figure


def auroc_by_prefix(r: Results) -> Figure:
    """AUROC among the episodes that got to a step, with its interval; below, how many these are."""
    figure, top, bottom = two_parts(*SIZE)
    top.axhline(0.5, color="#999999", lw=1, ls="--")
    rows = [m for m in r["by_prefix"] if m["auroc"] is not None]
    for few, label in ((False, "risk"), (True, f"risk, fewer than {FEW} episodes of one outcome")):
        part = [m for m in rows if (m["episodes"] * min(m["failed"], 1 - m["failed"]) < FEW) == few]
        if part:
            error = list(
                zip(*[(max(0, m["auroc"] - m["auroc_ci95"][0]), max(0, m["auroc_ci95"][1] - m["auroc"])) for m in part],
                    strict=True)
            )  # fmt: skip
            top.errorbar(
                [m["t"] for m in part], [m["auroc"] for m in part], yerr=error, fmt="o", ms=4, capsize=2, lw=1,
                color=SOLVED, alpha=0.3 if few else 1, label=label,
            )  # fmt: skip
    which = [m for m in r["which_model_by_prefix"] if m["auroc"] is not None]
    if which:
        top.plot([m["t"] for m in which], [m["auroc"] for m in which], color=OTHER, lw=1.4, label="knowing the model alone")
    top.set_ylabel("AUROC")
    top.set_ylim(-0.02, 1.02)
    _legend(figure, top)
    bottom.step([m["t"] for m in r["by_prefix"]], [m["episodes"] for m in r["by_prefix"]], where="mid", color=SOLVED, lw=1.4)
    _steps(bottom)
    return figure


def calibration(r: Results) -> Figure:
    return calibration_figure(r["calibration"], SOLVED, SIZE)


FIGURES: tuple[tuple[str, Callable[[Results], Figure]], ...] = (
    (
        "Risk along failed and solved episodes; late steps are reached by few solved ones (lower part)",
        risk_curves,
    ),
    ("What the risk is worth among episodes of the same age (dashed: chance)", auroc_by_prefix),
    ("Is the risk calibrated? (all steps, tasks left out of the fit)", calibration),
)


def _legend(figure: Figure, axes: Axes) -> None:
    """Above the figure, where no data can lie."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside upper left", ncols=2)


def _steps(axes: Axes) -> None:
    axes.set_ylabel("episodes")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
