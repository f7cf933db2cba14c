"""The results of README.md from a run's results.json: machine, intervals, calls at equal success.

    python scripts/readme_table.py RUN [--fresh RUN_FRESH] [--check]

RUN is a finished run, a folder that `r2v evaluate` wrote, or a results.json. What stands between the two markers of the
file is replaced; with --check nothing is written, and the exit status is 1 where it differs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
TARGET = "0.98"
"""Share of the teacher's success at which routers are compared."""
WANTED = f"{float(TARGET):.0%} of the teacher's success"
SHOWN = ("r2v", "benefit", "cascade", "helper", "cascade_routing")
"""Routers of the table at equal calls, where the run has them; r2v is what the others are compared with."""
Row = Sequence[str]


def results_of(path: Path) -> dict[str, Any]:
    """The results in a run, in the folder of an evaluation, or in a file."""
    places = (path / "8-evaluate" / "results.json", path / "results.json", path)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise SystemExit(f"readme_table: {path} holds no results.json; finish the run with `r2v run`")
    raw: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
    return raw


def calls_of(results: Mapping[str, Any], name: str) -> float | None:
    """Calls an episode that a router needs for TARGET of the teacher's success; None without a curve, or out of reach."""
    calls: float | None = needs(results["routers"][name])["calls"]
    return calls


def needs(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The calls at TARGET of the teacher's success, with their interval, of a router or of the state oracle."""
    at: Mapping[str, Any] = found["calls_at_equal_success"].get(TARGET, {"calls": None, "ci95": None})
    return at


def section(results: Mapping[str, Any], fresh: Mapping[str, Any] | None) -> str:
    """What stands between the markers."""
    parts = [f"{tasks(results)}. {machine(results)}.", table(*whole(results))]
    parts += oracle(results)
    if fresh is not None:
        elsewhere = "" if machine(fresh) == machine(results) else f" {machine(fresh)}."
        parts += [f"Success at equal teacher calls: {tasks(fresh)}.{elsewhere}", table(*equal_calls(fresh)), *oracle(fresh)]
    return "\n\n".join(parts)


def tasks(results: Mapping[str, Any]) -> str:
    """On what was played."""
    p = results["provenance"]
    return f"{results['tasks']} {p['split']} x {len(results['perturbation_seeds'])} perturbation seeds, seed {p['seed']}"


def machine(results: Mapping[str, Any]) -> str:
    """Where it was trained and played: another processor trains another small model."""
    p = results["provenance"]
    made = p.get("machine") or {"cpu": "machine not recorded", "cores": "?"}
    libraries = ", ".join(f"{name} {version}" for name, version in p["libraries"].items())
    return (
        f"{made['cpu']}, {made['cores']} cores, {p.get('threads', '?')} training threads; r2v {p['r2v']}, "
        f"Python {p['python']}, {libraries}"
    )


def oracle(results: Mapping[str, Any]) -> list[str]:
    """How much room is left: nothing of a bound that was not searched for or does not reach TARGET."""
    said = []
    bound, state = results["clairvoyant"], results.get("state_oracle")
    aim = float(TARGET) * results["routers"]["llm_only"]["success_rate"]
    if bound is not None and bound["calls_at_target"] is not None and abs(bound["target"] - aim) < 1e-9:
        said.append(f"the oracle bound (it knows the future) needs {bound['calls_at_target']:.2f} calls an episode")
    if state is not None and (calls := needs(state)["calls"]) is not None:
        said.append(
            f"the state oracle (it knows what help is worth at each step, as {state['futures']} futures say, and not the "
            f"future; {state['episodes']} episodes) {calls:.2f} ({_range(needs(state)['ci95'], '{:.2f}')})"
        )
    if not said:
        return []
    calls_by = [(name, calls_of(results, name)) for name in SHOWN if name in results["routers"]]
    others = ", ".join(f"`{name}` {calls:.2f}" for name, calls in calls_by if calls is not None)
    return [f"For {WANTED} {', '.join(said)}; {others}."]


def table(head: Row, rows: Sequence[Row]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def whole(results: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """Every router at its operating point, and the calls it needs at equal success."""
    head = ("router", "success (95 %)", "call rate", "calls an episode (95 %)", f"calls for {WANTED} (95 %)", "area")
    rows: list[Row] = []
    for name, r in results["routers"].items():
        calls, area = calls_of(results, name), r["area"]
        rows.append(
            (
                name,
                f"{r['success_rate']:.1%} ({_range(r['ci95'], '{:.1%}')})",
                f"{r['llm_call_rate']:.1%}",
                f"{r['calls_per_episode']:.2f} ({_range(r.get('calls_ci95'), '{:.2f}')})",
                "" if calls is None else f"{calls:.2f} ({_range(needs(r)['ci95'], '{:.2f}')})",
                "" if area is None else f"{area:.3f}",
            )
        )
    return head, rows


def equal_calls(results: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """Success of some routers at equal calls, and what each is ahead of r2v by."""
    routers = results["routers"]
    names = [name for name in SHOWN if name in routers and routers[name]["at_calls"]]
    budgets = list(routers[names[0]]["at_calls"])
    rows: list[Row] = [(name, *(f"{routers[name]['at_calls'][calls]:.1%}" for calls in budgets)) for name in names]
    for name in names:
        if (behind := results["differences"].get(name)) is not None:
            rows.append((f"{name} minus r2v (95 %)", *(_ahead(behind["at_calls"][calls]) for calls in budgets)))
    return ("teacher calls an episode", *budgets), rows


def _range(interval: Sequence[float | None] | None, form: str) -> str:
    """`low to high`; an end is `?` where too many resamples do not reach the success."""
    return "no interval" if interval is None else " to ".join("?" if end is None else form.format(end) for end in interval)


def _ahead(behind: Mapping[str, Any]) -> str:
    """`differences` says r2v minus the other; the table says the other minus r2v, in points."""
    low, high = behind["ci95"]
    ahead, least, most = (round(-100 * value, 1) + 0.0 for value in (behind["success"], high, low))  # + 0.0: no -0.0
    return f"{ahead:+.1f} ({least:+.1f} to {most:+.1f})"


def replaced(text: str, new: str) -> str:
    """The text with `new` between its markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"readme_table: the file must have {BEGIN} and {END} once each")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{new}\n{END}{rest.split(END)[1]}"


def rewritten(page: Path, new: str, command: str, *, check: bool) -> int:
    """Put `new` between the markers of the page; with `check` write nothing. Returns the exit status, 1 where it differs."""
    text = page.read_text(encoding="utf-8")
    after = replaced(text, new)
    if check and after != text:
        print(f"{page} differs from the results; `{command}` writes it anew")
        return 1
    if not check:
        page.write_text(after, encoding="utf-8")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--fresh", type=Path, help="what `r2v evaluate RUN --fresh-tasks N --out DIR` wrote")
    parser.add_argument("--readme", type=Path, default=Path(__file__).parents[1] / "README.md")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 where the file differs")
    a = parser.parse_args(arguments)
    new = section(results_of(a.run), None if a.fresh is None else results_of(a.fresh))
    return rewritten(a.readme, new, "make readme-table", check=a.check)


if __name__ == "__main__":
    raise SystemExit(main())
