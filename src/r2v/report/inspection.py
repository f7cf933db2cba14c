"""The page of `r2v inspect`: risk along recorded episodes, what it is worth, and the episodes where it rises most."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from markupsafe import Markup

from r2v.core.types import Episode
from r2v.report.figures import svg
from r2v.report.inspection_figures import FIGURES
from r2v.report.page import page_template, script_safe

SHOWN = 20
"""Episodes of each kind on the page."""
CLIP = 700
"""Characters shown of a text; the middle of a longer one is left out."""
MARKED_T = (0, 1, 2, 4, 8, 16)
"""Steps named in the headline, as far as episodes got there."""


def write_inspection(
    results: dict[str, Any],
    episodes: Sequence[Episode],
    risks: Sequence[Sequence[float]],
    out: Path,
    *,
    title: str,
    named: Sequence[int | None] = (),
) -> Path:
    """Write `inspect.html` into `out`; `risks` and `named` as in `r2v.studies.inspect_logs.Inspection`. Returns the page's
    path.
    """
    template = page_template("inspect.html.j2")
    path = out / "inspect.html"
    text = template.render(
        title=title,
        r=results,
        headline=headline(results),
        naming=naming(results["localiser"]) if "localiser" in results else "",
        figures=[(caption, Markup(svg(draw(results)))) for caption, draw in FIGURES],
        episodes=script_safe(selected(episodes, risks, named)),
    )
    path.write_text(text, encoding="utf-8")
    return path


def headline(results: dict[str, Any]) -> str:
    """Whether the risk is informative at a given step, in words; of several models within each of them."""
    known = [m for m in results["by_prefix"] if m["t"] in MARKED_T and m["auroc"] is not None]
    values = _at_steps(known)
    within = results["auroc_equal_step_within_model"]
    if within is not None:
        which = _at_steps([m for m in results["which_model_by_prefix"] if m["t"] in {k["t"] for k in known}])
        across = f" Across models it is {values}; knowing the model alone, {which}."
        if within["auroc"] is None:
            return f"Within no model there are failed and solved episodes to compare.{across}"
        low, high = within["auroc_ci95"]
        verdict = (
            "the interval lies above chance" if low > 0.5 else "nothing here shows that the risk knows more than the model"
        )
        return (
            f"Among steps of the same number and of one model the risk separates failing from solved with AUROC "
            f"{within['auroc']:.2f} ({low:.2f} to {high:.2f}); {verdict}.{across}"
        )
    clear = [m for m in known if m["auroc_ci95"][0] > 0.5]
    verdict = (
        "the interval lies above chance at each of them"
        if len(clear) == len(known)
        else "no interval lies above chance: nothing here shows that the risk knows anything"
        if not clear
        else f"the interval lies above chance at {len(clear)} of these {len(known)} steps"
    )
    return f"Among episodes of the same age the risk separates failing from solved with AUROC {values}; {verdict}."


def _at_steps(areas: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{m['auroc']:.2f} at step {m['t']}" for m in areas if m["auroc"] is not None) or "not known"


def naming(found: dict[str, Any]) -> str:
    """What it is worth that a step of each failed episode is named, in words."""
    low, high = found["top1_ci95"]
    best, first, risk = found["always_step_k"]["best"], found["always_step_k"]["first"], found["risk_curve"]
    where = "here, on tasks left out" if found["source"].startswith("labels") else "not measured here; on its own data"
    others = {f"step {best['k']}": best, f"step {first['k']}": first, "a random step": found["random"]}
    others |= {} if risk is None else {"the largest rise of the risk": risk}
    return (
        f"The step that is named in a failed episode is the decisive one in {found['top1']:.0%} ({low:.0%} to {high:.0%}; "
        f"{where}, {found['episodes']} labelled failures), at most one off in {found['within1']:.0%}. Without a localiser: "
        + ", ".join(f"{name} {rule['top1']:.0%}" for name, rule in others.items())
        + "."
    )


def selected(
    episodes: Sequence[Episode], risks: Sequence[Sequence[float]], named: Sequence[int | None] = ()
) -> list[dict[str, Any]]:
    """Three kinds of episodes: failed where the risk rose most, solved where it rose most, failed where it never rose."""
    live = [i for i, p in enumerate(risks) if p]
    by_rise = sorted(live, key=lambda i: -rise(risks[i])[0])
    failed = [i for i in by_rise if not episodes[i].success]
    kinds = {
        "the risk rose, and it failed": failed[:SHOWN],
        "the risk rose, yet it was solved": [i for i in by_rise if episodes[i].success][:SHOWN],
        "it failed, and no risk was seen": sorted(failed, key=lambda i: max(risks[i]))[:SHOWN],
    }
    named = named or [None] * len(episodes)
    return [{**_episode(kind, episodes[i], risks[i]), "named": named[i]} for kind, chosen in kinds.items() for i in chosen]


def rise(p: Sequence[float]) -> tuple[float, int]:
    """(largest rise above the lowest risk so far, step with the largest single jump on the way; 0 where nothing rises)."""
    climb = max(b - min(p[: t + 1]) for t, b in enumerate(p))
    jumps = [b - a for a, b in pairwise(p)]
    return climb, 1 + jumps.index(max(jumps)) if jumps and max(jumps) > 0 else 0


def _episode(kind: str, episode: Episode, p: Sequence[float]) -> dict[str, Any]:
    climb, jump = rise(p)
    return {
        "kind": kind,
        "task": episode.task.id,
        "model": episode.agent,
        "goal": _clipped(episode.goal),
        "success": episode.success,
        "labelled": episode.mistake,
        "rise": round(climb, 3),
        "jump": jump,
        "final": None if episode.final is None else _clipped(episode.final.text),
        "steps": [
            {"seen": _clipped(s.observation.text), "action": _clipped(s.choice.action.text), "risk": round(risk, 3)}
            for s, risk in zip(episode.steps, p, strict=True)
        ],
    }


def _clipped(text: str) -> str:
    if len(text) <= CLIP:
        return text
    return f"{text[: CLIP // 2]} [… {len(text) - CLIP} characters …] {text[-CLIP // 2 :]}"
