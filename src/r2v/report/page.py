"""One self-contained HTML page: it opens offline, and every number in it comes from results.json or the episodes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from r2v.core.types import Episode
from r2v.report.browser import selected
from r2v.report.figures import FIGURES, colour, svg


def page_template(name: str) -> Template:
    """A page of `templates/`: text is escaped, and a name that is not given is an error."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "signed": _signed, "number": number}
    environment.globals["colour"] = colour
    return environment.from_string(files("r2v.report").joinpath(f"templates/{name}").read_text("utf-8"))


def write_report(results: dict[str, Any], episodes: Sequence[Episode], out: Path, *, title: str) -> Path:
    """Write `report.html` and `figures/*.png, *.svg` into `out`; returns the page's path."""
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    figures = []
    for name, caption, draw in FIGURES:
        figure = draw(results)
        figure.savefig(folder / f"{name}.png", dpi=160)
        text = svg(figure)
        (folder / f"{name}.svg").write_text(text, encoding="utf-8")
        figures.append({"name": name, "caption": caption, "svg": Markup(text)})
    template = page_template("report.html.j2")
    path = out / "report.html"
    path.write_text(
        template.render(
            title=title,
            results=results,
            headline=headline(results),
            attacks={name: worst_attacks(kinds) for name, kinds in (results.get("text_attacks") or {}).items()},
            figures={figure["name"]: figure for figure in figures},
            episodes=script_safe(selected(episodes)),
        ),
        encoding="utf-8",
    )
    return path


def worst_attacks(kinds: dict[str, Any]) -> dict[str, Any]:
    """Of one router: {"bought" or "suppressed": {"kind", "share", "of" so many steps}, or None where no step counts}."""
    found: dict[str, Any] = {}
    for place, what in enumerate(("bought", "suppressed")):
        shares = {kind: rates[what] for kind, rates in kinds.items() if rates[what] is not None}
        worst = max(shares, key=lambda kind: shares[kind], default=None)
        found[what] = worst and {"kind": worst, "share": shares[worst], "of": kinds[worst]["steps"][place]}
    return found


def headline(results: dict[str, Any]) -> str:
    """What came out, in words, whichever way it came out."""
    routers = results["routers"]
    teacher = routers["llm_only"]
    r2v = routers.get("r2v")
    solved = {name: percent(routers[name]["success_rate"]) for name in ("slm_only", "llm_only")}
    ends = f"The SLM alone solves {solved['slm_only']} of the episodes, the teacher {solved['llm_only']}."
    if r2v is None or not teacher["success_rate"]:
        return ends
    if teacher["success_rate"] <= routers["slm_only"]["success_rate"]:
        ends += (
            " The teacher alone solves no more: a router can gain only where one of them succeeds and the other does not."
        )
    share = r2v["success_rate"] / teacher["success_rate"]
    calls = r2v["calls_per_episode"] / max(1e-9, teacher["calls_per_episode"])
    text = (
        f"{ends} r2v reaches {percent(r2v['success_rate'])}: {percent(share)} of the teacher's success with "
        f"{percent(calls)} of the teacher's calls."
    )
    rivals = {
        name: r for name, r in routers.items() if name not in ("r2v", "llm_only", "slm_only") and r["threshold"] is not None
    }
    cheaper = [n for n, r in rivals.items() if r["success_rate"] >= r2v["success_rate"]]
    if cheaper:
        name = min(cheaper, key=lambda n: float(rivals[n]["calls_per_episode"]))
        there, here = rivals[name]["calls_per_episode"], r2v["calls_per_episode"]
        if there < here:
            text += f" {name} does as well with {there:.2f} calls an episode instead of {here:.2f}."
    better = [n for n, d in results["differences"].items() if n in rivals and d["ci95"][0] > 0]
    unclear = [n for n in results["differences"] if n in rivals and n not in better]
    if better:
        text += f" Its curve lies above {_names(better)} (95 % interval above zero)"
        text += f"; against {_names(unclear)} it does not." if unclear else "."
    elif unclear:
        text += f" Its curve does not lie clearly above {_names(unclear)}."
    return text


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def script_safe(value: Any) -> Markup:
    """JSON that cannot end its <script>: episodes may hold any text."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
