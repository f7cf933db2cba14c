"""The page of `r2v ablate`: the paper's tables made anew, each row beside the paper's own figures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from r2v.report.figures import colour, empty, svg
from r2v.report.page import page_template
from r2v.routers.r2v import R2V

Tables = dict[str, Any]
Printed = dict[str, tuple[float, float]]
"""Name of a row -> (success %, teacher calls %) as the paper prints them."""


CVAR_NOTE = (
    "The paper's objective, escalating at p >= 0.5 as its script does. CVaR is the mean of the worst ceil(alpha Z) of Z "
    "perturbation seeds, so alphas that pick the same number of seeds are the same objective."
)


@dataclass(frozen=True)
class Section:
    key: str
    title: str
    note: str
    printed: Printed


def write_ablation(tables: Tables, results: dict[str, Any], out: Path) -> Path:
    """Write `ablation.html` and its figures; returns the page's path. `results`: the run's, for its main table."""
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for name, draw in (("cvar", cvar), ("features", feature_groups), ("consistency", consistency)):
        if name not in tables["tables"]:  # the weights of the consistency loss, where preference training is off
            continue
        figure = draw(tables["tables"])
        figure.savefig(folder / f"{name}.png", dpi=160)
        drawn[name] = Markup(svg(figure))
    paper = _paper()
    template = page_template("ablation.html.j2")
    path = out / "ablation.html"
    sections = [section for section in _sections(paper) if section.key in tables["tables"]]
    text = template.render(t=tables, results=results, paper=paper, sections=sections, figures=drawn)
    path.write_text(text, encoding="utf-8")
    return path


def _paper() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files("r2v.report").joinpath("paper_figures.json").read_text("utf-8"))
    return found


def _sections(paper: dict[str, Any]) -> list[Section]:
    groups = {row[0]: (row[3], row[4]) for row in paper["feature_groups_qwen7b"]["rows"]}
    closed = {row[0]: (row[1], row[2]) for row in paper["closed_source"]["TextWorld"]}
    grid = {f"{row[0]:g}, {row[1]:g}": (row[2], row[3]) for row in paper["cvar_sweep_combined"]["rows"]}
    sweep = {f"{row[0]:g}": (row[3], row[4]) for row in paper["consistency_sweep_qwen7b"]["rows"]}
    return [
        Section("consistency", "Weight of the consistency loss", "An SLM trained anew for each weight.", sweep),
        Section("cvar", "CVaR: alpha, epsilon", CVAR_NOTE, grid),
        Section("features", "Feature groups", "The paper's 15 features by group, and all of ours.", groups),
        Section("closed", "Closed models", "Without log-probabilities, and with a stand-in for the entropy.", closed),
        Section("objective", "Objective", "Proper score and separate threshold, or the joint Lagrangian.", {}),
        Section("labels", "Labels", "What the router is taught: the SLM will fail; or the teacher would act otherwise.", {}),
        Section("routes", "Routes", "The alarm of the run's own r2v, answered in six ways.", {}),
        Section("k", "Candidates K", "With another K the SLM acts differently, too.", {}),
        Section(
            "unseen",
            "Unseen perturbation family",
            "Trained and calibrated without the family named, measured on it alone.",
            {},
        ),
    ]


def cvar(tables: dict[str, list[dict[str, Any]]]) -> Figure:
    """Teacher calls and success over the grid."""
    cells = {tuple(float(x) for x in row["name"].split(", ")): row for row in tables["cvar"]}
    alphas, epsilons = sorted({a for a, _ in cells}), sorted({e for _, e in cells})
    figure = empty(9.2, 3.4)
    titles = (("success_rate", "success rate"), ("llm_call_rate", "teacher-call rate"))
    for axes, (key, title) in zip(figure.subplots(1, 2), titles, strict=True):
        grid = [[cells[a, e][key] for e in epsilons] for a in alphas]
        axes.imshow(grid, cmap="Blues", aspect="auto")
        low, high = min(map(min, grid)), max(map(max, grid))
        for i, values in enumerate(grid):
            for j, value in enumerate(values):
                dark = value > low + 0.6 * (high - low)
                axes.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=8, color="white" if dark else "black")
        axes.set_xticks(range(len(epsilons)), [f"{e:g}" for e in epsilons])
        axes.set_yticks(range(len(alphas)), [f"{a:g}" for a in alphas])
        axes.set_xlabel("epsilon")
        axes.set_ylabel("alpha")
        axes.set_title(title, fontsize=10)
    return figure


def feature_groups(tables: dict[str, list[dict[str, Any]]]) -> Figure:
    figure = empty(6.6, 3.4)
    axes = figure.subplots()
    rows = sorted(tables["features"], key=lambda row: float(row["area"]))
    for y, row in enumerate(rows):
        low, high = row["area_ci95"]
        axes.errorbar(row["area"], y, xerr=[[row["area"] - low], [high - row["area"]]], fmt="o", color=R2V.colour, capsize=3)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_xlabel("area under success against call rate (95 % interval)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def consistency(tables: dict[str, list[dict[str, Any]]]) -> Figure:
    figure = empty(6.6, 3.4)
    axes = figure.subplots()
    rows = tables["consistency"]
    x = [float(row["name"]) for row in rows]
    for key, label, shade in (("slm_only", "SLM alone", colour("slm_only")), ("success_rate", "routed", R2V.colour)):
        axes.plot(x, [row[key] for row in rows], marker="o", color=shade, label=label)
    axes.set_xlabel("weight of the consistency loss")
    axes.set_ylabel("success rate")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure
