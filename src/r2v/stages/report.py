"""9 report: tables, figures and one HTML page from the results."""

from __future__ import annotations

from r2v.report.page import write_report
from r2v.stages.runner import Bench
from r2v.store import read_episodes, read_json


def report(bench: Bench) -> None:
    evaluated = bench.read("evaluate")
    write_report(
        read_json(evaluated / "results.json"),
        read_episodes(evaluated / "episodes.parquet"),
        bench.out,
        title=bench.root.name,
    )
