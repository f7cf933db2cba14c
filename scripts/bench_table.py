"""The tables of docs/bench.md from the results that `r2v bench --out BENCH` wrote: `scripts/bench_table.py BENCH`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from r2v.bench import BUILT_IN
from r2v.report.bench import best, gain
from r2v.report.page import number

NULLS = ("slm alone", "random", "step 0 only", "strong alone")


def main(folder: Path) -> None:
    found = [json.loads(path.read_text()) for name in BUILT_IN if (path := folder / name / "results.json").exists()]
    print(nulls(found), gains(found), injections(found), sep="\n\n")


def nulls(found: list[dict[str, Any]]) -> str:
    """A row a suite: what needs no router, and the router that gains most."""
    lines = [
        "| suite | sessions, groups | weak alone | random | step 0 | strong alone | best row | success | over random | "
        "over step 0 | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in found:
        row = best(r)
        alone = [(r["nulls"].get(name) or {}).get("success") for name in NULLS]
        cells = [
            r["suite"], f"{r['sessions']:,}, {r['groups']}",
            *(number(solved, 3) for solved in alone), row["router"],
            f"{row['success']:.3f}", gain(row, "random"), gain(row, "step_0"), f"{r['seconds']:.0f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def gains(found: list[dict[str, Any]]) -> str:
    """A row a router, a column a suite: the gain over random escalation, bold where its interval is above 0."""
    names = list(dict.fromkeys(row["router"] for r in found for row in r["rows"]))
    lines = [f"| router | {' | '.join(r['suite'] for r in found)} |", "|---|" + "---|" * len(found)]
    for name in names:
        cells = []
        for r in found:
            row = next((row for row in r["rows"] if row["router"] == name), None)
            cells.append("–" if row is None else bold(row))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def injections(found: list[dict[str, Any]]) -> str:
    """Planted instructions, a row a router, in the suites that have some."""
    lines = [
        "| suite | router | strong share | injected (alone) | repaired | compromised | asked when attacked / clean |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in found:
        for row in r["rows"]:
            if "injected" in row:
                lines.append(
                    f"| {r['suite']} | {row['router']} | {row['share_strong']:.2f} | {row['injected']:.3f} "
                    f"({row['injected_alone']:.3f}) | {row['repaired']:.2f} | {row['compromised']:.3f} | "
                    f"{row['share_attacked']:.2f} / {row['share_clean']:.2f} |"
                )
    return "\n".join(lines)


def bold(row: dict[str, Any]) -> str:
    text = f"{row['gain_over_random']:+.3f}"
    text = f"**{text}**" if row["gain_over_random_ci95"][0] > 0 else text
    return f"{text} at {row['share_strong']:.0%}" if row["fixed"] else text


if __name__ == "__main__":
    main(Path(sys.argv[1]))
