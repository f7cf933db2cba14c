"""9 report: tables, figures and one HTML page from the results."""

from __future__ import annotations

from r2v.pipeline.runner import StageContext
from r2v.report.page import write_report
from r2v.runtime.store import read_episodes, read_json


def report(ctx: StageContext) -> None:
    evaluated = ctx.read("evaluate")
    write_report(
        read_json(evaluated / "results.json"),
        read_episodes(evaluated / "episodes.parquet"),
        ctx.out,
        title=ctx.root.name,
    )
