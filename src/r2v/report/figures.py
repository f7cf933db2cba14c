"""The figures of a report, drawn from results.json alone. Object API only: no global matplotlib state."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = {"slm_only": "#7f7f7f", "llm_only": "#222222", "oracle": "#d55e00"}
"""Of what is no router; a router's colour stands in its file, and from there in results.json."""
_OTHER = "#666666"
_STRONG = ("r2v", "benefit", "helper")
Results = dict[str, Any]


def colour(name: str, of: Mapping[str, Any] | None = None) -> str:
    """The colour of a router; `of` is its entry in results.json."""
    return COLOURS.get(name) or (of or {}).get("colour") or _OTHER


def frontier(results: Results) -> Figure:
    """Success against teacher-call rate: curves, and operating points with their intervals."""
    figure, axes = new(7.6, 4.6)
    for name, r in results["routers"].items():
        if r["curve"]:
            x, y = zip(*r["curve"], strict=True)
            strong = name in _STRONG
            axes.plot(
                x, y, color=colour(name, r), lw=2.4 if strong else 1.2, marker="o", ms=3, label=name,
                zorder=5 if strong else 3,
            )  # fmt: skip
    for name, r in results["routers"].items():
        low, high = r["ci95"]
        error = [[max(0.0, r["success_rate"] - low)], [max(0.0, high - r["success_rate"])]]
        anchor = not r["curve"]
        axes.errorbar(
            r["llm_call_rate"], r["success_rate"], yerr=error, color=colour(name, r), fmt="s" if anchor else "D", ms=6,
            mec="white", capsize=3, lw=1.0, zorder=6, label=name if anchor else None,
        )  # fmt: skip
    axes.set_xlabel("teacher-call rate (share of steps)")
    axes.set_ylabel("success rate")
    axes.set_xlim(-0.02, 1.02)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def equal_calls(results: Results) -> Figure:
    """Success with the same number of teacher calls an episode, and the oracle bound."""
    figure, axes = new(7.6, 4.6)
    alone = results["routers"]["slm_only"]["success_rate"]
    for name, r in results["routers"].items():
        if r["at_calls"]:
            strong = name in _STRONG
            x, y = zip(*((float(calls), success) for calls, success in r["at_calls"].items()), strict=True)
            axes.plot(
                (0, *x), (alone, *y), color=colour(name, r), lw=2.4 if strong else 1.2, marker="o", ms=3, label=name,
                zorder=5 if strong else 3,
            )  # fmt: skip
    teacher = results["routers"]["llm_only"]
    axes.axhline(
        teacher["success_rate"],
        color=colour("llm_only"),
        lw=1,
        ls="--",
        label=f"llm_only, {teacher['calls_per_episode']:.1f}",
    )
    if bound := results["clairvoyant"]:
        at = bound["calls_per_episode"], bound["success_rate"]
        axes.plot(*at, marker="*", ms=14, color="#e69f00", ls="", label="oracle bound")
    if oracle := results.get("state_oracle"):
        x, y = zip(*sorted([(0.0, oracle["slm_success"]), *((c, s) for _, c, s in oracle["points"])]), strict=True)
        axes.plot(x, y, color="#e69f00", lw=1.2, ls=":", marker=".", label="state oracle")
    axes.set_xlabel("teacher calls an episode")
    axes.set_ylabel("success rate")
    figure.legend(loc="outside right center", frameon=False)
    return figure


def reliability(results: Results) -> Figure:
    return calibration_figure(results["calibration"]["bins"], colour("r2v", results["routers"].get("r2v")), (6.6, 4.4))


def calibration_figure(bins: Sequence[tuple[float, float, int]], shade: str, size: tuple[float, float]) -> Figure:
    """Predicted risk against the share of steps in failed episodes; below, how many steps fall in each bin."""
    figure, top, bottom = two_parts(*size)
    p, share, count = zip(*bins, strict=True) if bins else ((), (), ())
    top.plot([0, 1], [0, 1], color="#999999", lw=1, ls="--")
    top.plot(p, share, color=shade, marker="o", lw=2)
    top.set_ylabel("share of steps in failed episodes")
    top.set_ylim(-0.02, 1.02)
    bottom.bar(p, count, width=0.05, color=shade)
    bottom.set_ylabel("steps")
    bottom.set_xlabel("predicted risk")
    bottom.set_xlim(-0.02, 1.02)
    return figure


def by_family(results: Results) -> Figure:
    """Success per perturbation family, a group of bars each."""
    return _bars(results, "by_family", "perturbation family")


def by_seed(results: Results) -> Figure:
    return _bars(results, "by_seed", "perturbation seed")


def positions(results: Results) -> Figure:
    """Where along the episode the router escalates."""
    figure, axes = new(6.6, 3.4)
    for name, r in results["routers"].items():
        shares = r["asked_by_position"]
        if name not in ("slm_only", "llm_only"):
            strong = name in _STRONG
            x = [(i + 0.5) / 10 for i, share in enumerate(shares) if share is not None]
            y = [s for s in shares if s is not None]
            axes.plot(x, y, color=colour(name, r), lw=2.2 if strong else 1.0, marker="o", ms=3, label=name)
    axes.set_xlabel("position in the episode (share of the horizon)")
    axes.set_ylabel("share of steps escalated")
    axes.set_ylim(bottom=0)
    if axes.lines:
        figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return figure


FIGURES: tuple[tuple[str, str, Callable[[Results], Figure]], ...] = (
    ("frontier", "Success against teacher calls: up and to the left is better", frontier),
    (
        "equal_calls",
        "Success at equal numbers of teacher calls; a star, where there is one, is the oracle bound",
        equal_calls,
    ),
    ("reliability", "Is the risk calibrated? (r2v, steps of SLM-only test episodes)", reliability),
    ("by_family", "Success by perturbation family", by_family),
    ("by_seed", "Success by perturbation seed", by_seed),
    ("positions", "Where along the episode the router escalates", positions),
)


def svg(figure: Figure) -> str:
    """The figure as an inline SVG element, without the XML preamble."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _bars(results: Results, key: str, label: str) -> Figure:
    figure, axes = new(7.6, 3.4)
    routers = list(results["routers"].items())
    groups = list(routers[0][1][key])
    width = 0.84 / len(routers)
    for i, (name, r) in enumerate(routers):
        x = [g - 0.42 + (i + 0.5) * width for g in range(len(groups))]
        axes.bar(x, [r[key][group] for group in groups], width=width * 0.92, color=colour(name, r), label=name)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_xlabel(label)
    axes.set_ylabel("success rate")
    axes.set_ylim(0, 1.02)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return figure


def empty(width: float, height: float) -> Figure:
    """A figure without axes, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, in inches."""
    figure = empty(width, height)
    axes = figure.subplots()
    _clean(axes)
    return figure, axes


def two_parts(width: float, height: float) -> tuple[Figure, Axes, Axes]:
    """A figure with a large upper and a small lower part over one x axis."""
    figure = empty(width, height)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    _clean(top)
    _clean(bottom)
    return figure, top, bottom


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#999999", alpha=0.25, lw=0.8)
    axes.set_axisbelow(True)
