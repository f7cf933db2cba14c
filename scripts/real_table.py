"""The table of two real models in docs/paper.md, from the results.json of `make real-replay`.

    python scripts/real_table.py RUN [--check]

What stands between the two markers of the page is replaced; with --check nothing is written, and the exit status is 1 where
it differs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from readme_table import Row, results_of, rewritten, table, tasks

PAGE = Path(__file__).parents[1] / "docs" / "paper.md"


def section(results: Mapping[str, Any]) -> str:
    """What stands between the markers."""
    slm, teacher = results["routers"]["slm_only"], results["routers"]["llm_only"]
    spent = f"An episode of the SLM alone has {slm['tokens_per_episode']['slm']:,.0f} tokens, of the teacher alone "
    spent += f"{teacher['tokens_per_episode']['teacher']:,.0f}."
    calibration = results["calibration"]
    risk = f"The risk of r2v on the {calibration['steps']} test steps: AUROC {calibration['auroc']:.3f}, "
    risk += f"ECE {calibration['ece']:.3f}, Brier {calibration['brier']:.3f}."
    return "\n\n".join((f"{tasks(results)}. {spent} {risk}", table(*rows(results))))


def rows(results: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    replay = results["replay"]["routers"]
    head = ("router", "success (95 %)", "calls an episode", "area less that of random (95 %)", "USD for 1,000 episodes",
            "helped / hurt by calls", "success in replay, as the paper counts")  # fmt: skip
    found: list[Row] = []
    for name, r in results["routers"].items():
        low, high = r["ci95"]
        over, changed = r["over_random"], r["interventions"]
        gain = (
            ""
            if over is None or name == "random"
            else f"{over['area']:+.3f} ({over['ci95'][0]:+.3f} to {over['ci95'][1]:+.3f})"
        )
        again = f"{replay[name]['success_rate']:.1%}" if name in replay else ""
        found.append(
            (
                name, f"{r['success_rate']:.1%} ({low:.1%} to {high:.1%})", f"{r['calls_per_episode']:.2f}", gain,
                f"{1000 * r['usd_per_episode']:.3f}", f"{changed['helped']} / {changed['hurt']}", again,
            )
        )  # fmt: skip
    return head, found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 where the page differs")
    given = parser.parse_args(arguments)
    command = f"python scripts/real_table.py {given.run}"
    return rewritten(PAGE, section(results_of(given.run)), command, check=given.check)


if __name__ == "__main__":
    raise SystemExit(main())
