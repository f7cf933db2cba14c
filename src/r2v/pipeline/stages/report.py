"""9 report: tables, figures and one HTML page from the results."""

from __future__ import annotations

from r2v.pipeline.runner import StageContext


def report(ctx: StageContext) -> None:
    from r2v.report.page import write_report  # here, because `r2v stages` lists the stages without the extra `report`

    write_report(ctx.run.results(), ctx.run.evaluated(), ctx.out, title=ctx.run.root.name)
