"""One episode's decisions in the terminal (`r2v explain`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from r2v.core.types import Episode, Step


def explanation(episode: Episode) -> RenderableType:
    outcome = {True: "solved", False: "failed", None: "broke"}[episode.success]
    calls = sum(step.choice.teacher.calls > 0 for step in episode.steps)
    head = Text.assemble(
        (f"{episode.task.id} @ seed {episode.seed} ({episode.perturbation})\n", "bold"),
        f"goal      {episode.goal}\n",
        f"router    {episode.agent}\n",
        (f"outcome   {outcome} after {len(episode.steps)} steps, {calls} teacher calls ({episode.stop})", "bold"),
    )
    tail = [] if episode.final is None else [Text(f"\nat the end  {episode.final.text}")]
    if episode.failure is not None:
        tail.append(Text(f"{episode.failure.boundary} broke: {episode.failure.kind}: {episode.failure.message}"))
    return Group(head, *(_step(step) for step in episode.steps), *tail)


def _step(step: Step) -> Text:
    choice = step.choice
    text = Text(f"\n[{step.t}] {step.observation.text}\n")
    for change in step.observation.changes:
        text.append(f"      disturbed: {change.operator} ({change.family}); {change.detail}\n", "yellow")
    counts = Counter(candidate.action.text for candidate in choice.candidates)
    scores = dict(zip((c.action.text for c in choice.candidates), choice.scores, strict=False))
    for command, count in counts.most_common():
        score = f"  score {scores[command]:.2f}" if command in scores else ""
        text.append(f"      {count} x {command}{score}\n", "dim")
    if choice.decision is not None:
        text.append(f"      {choice.decision.reason}\n")
    text.append(f"    > {choice.action.text}", "bold")
    text.append(f"   ({choice.model})", "magenta" if choice.source == "teacher" else "dim")
    return text


def listing(episodes: Sequence[Episode]) -> Table:
    """All episodes of one router, with the names `explain` takes."""
    table = Table(title=f"{len(episodes)} episodes of {episodes[0].agent}")
    for heading in ("episode", "perturbation", "outcome", "steps", "calls"):
        table.add_column(heading)
    for e in episodes:
        calls = sum(step.choice.teacher.calls > 0 for step in e.steps)
        outcome = {True: "solved", False: "failed", None: "broke"}[e.success]
        table.add_row(f"{e.task.id}@{e.seed}", e.perturbation, outcome, str(len(e.steps)), str(calls))
    return table
