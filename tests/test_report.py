"""The report: self-contained, true to its numbers, safe with hostile text, and alive in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from rich.console import Console

from r2v.core.fixed import Always, Never
from r2v.core.types import Change
from r2v.report.comparison import folders, frontiers, table, write_comparison
from r2v.report.explain import explanation, listing
from r2v.report.page import headline, worst_attacks, write_report
from r2v.report.tables import summary
from r2v.routers.random import Random
from toy import ThresholdRouter, routed, run

HOSTILE = "</script><img src=x onerror=alert(1)> & 'quotes'"


def router(success, rate, curve=True, **more):
    return {
        "success_rate": success, "ci95": [success - 0.03, min(1.0, success + 0.02)], "llm_call_rate": rate,
        "calls_per_episode": 12 * rate, "steps_per_episode": 12.5, "cost_per_episode": 12 + 600 * rate,
        "worst_seed_success": success - 0.02, "cvar_failure": 1.02 - success,
        "by_family": {"flaky": success, "partial": success - 0.1}, "by_seed": {"41": success, "42": success - 0.02},
        "asked_by_position": [rate] * 8 + [None, None], "broken": 0, "threshold": 0.4 if curve else None,
        "curve": [[0.0, 0.7], [rate, success], [1.0, 0.98]] if curve else [], "area": 0.9 if curve else None,
        "points": [[0.4, 12 * rate, success]] if curve else [], "at_calls": {"0.5": 0.75, "1": 0.8} if curve else {},
        "calls_at_equal_success": {"0.98": {"calls": 24 * rate, "ci95": [rate, None]}} if curve else {},
        "interventions": {"helped": 5, "nothing": 3, "hurt": 1}, "mcnemar_p": 0.03,
        "answers": {"same": 0.5, "among": 0.2, "new": 0.3} if curve else None,
        "rescued_by_first_call": [[5, 5], [3, 4], [1, 4], [0, 0]], **more,
    }  # fmt: skip


def results(**changes):
    routers = {
        "slm_only": router(0.7, 0.0, curve=False),
        "llm_only": router(0.98, 1.0, curve=False),
        "random": router(0.9, 0.4),
        "r2v": router(0.951, 0.123, mcnemar_p=None),
    }
    return {
        "protocol": "closed_loop",
        "tasks": 20,
        "perturbation_seeds": [41, 42],
        "routers": routers,
        "differences": {
            "random": {
                "area": 0.02, "ci95": [0.01, 0.03],
                "calls_at_equal_success": {"0.98": {"calls": -0.75, "ci95": [-1.5, -0.25]}},
                "at_calls": {
                    "0.5": {"success": 0.05, "ci95": [0.01, 0.08]}, "1": {"success": -0.01, "ci95": [-0.03, 0.01]}
                },
            }
        },
        "text_attacks": {
            "r2v": {
                "orders": {"bought": 0.0, "suppressed": 0.25, "steps": [40, 8]},
                "the goal x 50": {"bought": 0.9, "suppressed": 0.125, "steps": [40, 8]},
            },
            "random": {"orders": {"bought": None, "suppressed": None, "steps": [0, 0]}},
        },
        "clairvoyant": {
            "target": 0.96, "success_rate": 0.991, "calls_per_episode": 0.42, "calls_at_target": 0.33, "searched": 6,
            "saved_by": {"0": 0.7, "1": 0.2, "2": 0.05, "3+": 0.03, "none": 0.02},
        },
        "calibration": {
            "ece": 0.031, "brier": 0.12, "auroc": 0.87, "steps": 900,
            "auroc_by_third": [0.62, 0.75, None], "bins": [[0.1, 0.12, 500], [0.8, 0.75, 400]]
        },
        "replay": {
            "protocol": "replay", "tasks": 20, "perturbation_seeds": [41, 42],
            "routers": {"oracle": router(1.0, 0.3, curve=False)},
        },
        "preference": {"kept": "clone", "clone": 0.71, "prefer": 0.70, "difference_ci95": [-0.05, 0.03], "tasks": 10},
        "selection": {"rule": "fewest calls", "target": 0.95, "teacher_success": 0.98, "slm_success": 0.7, "tasks": 10},
        "provenance": {"r2v": "0.1.0", "split": "test", "times": {"clone": 3.0}},
        **changes,
    }  # fmt: skip


def episodes():
    played = []
    for name, chooser in (
        ("slm_only", Never()),
        ("r2v", ThresholdRouter("r2v", lambda f: 0.7, 0.5)),
        ("random", Random(threshold=0.5)),
    ):
        for z in (41, 42):
            episode = replace(run(routed(router=chooser), seed=z, horizon=4), agent=name)
            first = episode.steps[0]
            seen = replace(first.observation, text=HOSTILE, changes=(Change("inject", "direct", f"added: {HOSTILE}"),))
            played.append(replace(episode, steps=(replace(first, observation=seen), *episode.steps[1:])))
    return played


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_report(results(), episodes(), tmp_path_factory.mktemp("report"), title="a & b")


def test_the_page_is_self_contained(page):
    text = page.read_text()
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", text)
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(text) < 5_000_000
    assert {path.suffix for path in (page.parent / "figures").iterdir()} == {".png", ".svg"}


def test_each_column_is_defined_on_the_page_and_not_in_a_tooltip(page):
    text = page.read_text()
    assert "<th title" not in text
    for column in ("success", "call rate", "CVaR of failure", "area", "p vs r2v", "another candidate", "rescued"):
        assert f"<b>{column}</b>:" in text, column
    assert ".dot { filter: invert" in text  # llm_only is nearly black


def test_of_many_routers_the_figures_with_their_names_are_wide(page, tmp_path):
    found = results()
    found["routers"] |= {f"own {i}": router(0.9, 0.2, curve=False) for i in range(14)}
    wide = write_report(found, [], tmp_path, title="t").read_text()
    assert wide.count('<figure class="wide">') == 5 and '<figure class="wide">' not in page.read_text()


def test_the_worst_of_each_kind_of_text_stands_in_the_page(page):
    assert worst_attacks(results()["text_attacks"]["r2v"]) == {
        "bought": {"kind": "the goal x 50", "share": 0.9, "of": 40},
        "suppressed": {"kind": "orders", "share": 0.25, "of": 8},
    }  # fmt: skip
    assert worst_attacks(results()["text_attacks"]["random"]) == {"bought": None, "suppressed": None}
    text = " ".join(page.read_text().replace("\u00a0", " ").split())
    assert "Of 2 kinds of" in text and "25.0 % " in text and "the goal x 50" in text


def test_the_numbers_are_those_of_the_results(page):
    text = page.read_text()
    for number in ("95.1 %", "12.3 %", "0.031", "0.870", "+0.020", "5 / 3 / 1", "71.0 %", "the cloned SLM"):
        assert number in text, number
    assert "optimistic" in text.lower()


def test_hostile_text_cannot_leave_its_place(page):
    text = page.read_text()
    assert HOSTILE not in text
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert json.loads(data.group(1))[0]["steps"][0]["seen"] == HOSTILE


def test_the_headline_is_honest_either_way():
    assert "lies above random" in headline(results())
    worse = results(differences={"random": {"area": -0.01, "ci95": [-0.03, 0.01]}})
    assert "does not lie clearly above random" in headline(worse)
    no_better = results()
    no_better["routers"]["llm_only"]["success_rate"] = no_better["routers"]["slm_only"]["success_rate"]
    assert "The teacher alone solves no more" in headline(no_better)
    assert "solves no more" not in headline(results())
    assert "97.0 % of the teacher's success with 12.3 % of the teacher's calls" in headline(results())


def dom_of(page, hash="", *options):
    """The page in a real browser."""
    browser = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)
    if browser is None:
        pytest.skip("no chromium on this machine")
    return subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=4000", *options, "--dump-dom",
         f"file://{page}{hash}"],
        capture_output=True, text=True, timeout=120,
    ).stdout  # fmt: skip


def test_at_1400_pixels_no_column_of_the_main_table_is_out_of_sight(tmp_path):
    found = results()
    found["routers"]["cascade_routing"] = router(1.0, 1.0, curve=False) | {"mcnemar_p": 1.5e-8, "area": 0.458}
    page = write_report(found, [], tmp_path, title="t")
    measure = "const t = document.querySelector('.scroll'); document.title = `over ${t.scrollWidth - t.clientWidth}`"
    page.write_text(page.read_text() + f"<script>{measure}</script>")
    assert "<title>over 0</title>" in dom_of(page, "", "--window-size=1400,2400")


def test_a_browser_shows_the_episodes(page):
    dom = dom_of(page, "#r2v%2Ftoy%2Fpress%2F1%4042")
    assert dom.count('class="step teacher"') == 3
    assert "r2v 0.700 &gt;= 0.500" in dom
    assert "disturbed: direct (inject)" in dom
    assert "<img" not in dom


def test_what_episodes_cost_is_shown_where_it_is_known(tmp_path):
    """Results of r2v 0.2 have no such key."""
    priced = results()
    for r in priced["routers"].values():
        r["usd_per_episode"] = 0.0021
    console = Console(width=120, record=True)
    console.print(summary(priced))
    text = write_report(priced, [], tmp_path, title="t").read_text()
    assert "USD/1000" in console.export_text() and "<td>2.100</td>" in text
    console.print(summary(results()))
    assert "USD/1000" not in console.export_text()


def test_calls_at_equal_success_stand_in_the_table_and_on_the_page(page, tmp_path):
    def shown(found):
        console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(summary(found))
        console.file.close()
        return console.export_text(), write_report(found, [], tmp_path, title="t").read_text()

    terminal, text = shown(results())
    assert max(map(len, terminal.splitlines())) <= 80
    assert "at 98 %" in terminal and "2.95" in terminal and "9.60" in terminal
    assert "98 % of the teacher's success</th>" in text
    assert '<td>9.60 <span class="soft">0.40 to –</span>' in text and "<b>(+0.75)</b>" in text
    assert "state oracle" not in text and "llm_first" not in text
    oracle = {
        "episodes": 120, "futures": 16, "slm_success": 0.7, "teacher_success": 0.98, "points": [[0.2, 0.4, 0.93]],
        "calls_at_equal_success": {"0.98": {"calls": 0.34, "ci95": [0.21, 0.55]}},
    }  # fmt: skip
    unreached = router(0.8, 0.1, calls_at_equal_success={"0.98": {"calls": None, "ci95": [None, None]}})
    found = results(state_oracle=oracle, max_calls=3)
    found["routers"]["random"] = unreached
    terminal, text = shown(found)
    assert "<tr><td>state oracle</td><td>0.34" in text and "120 episodes" in text and "9.60" not in terminal
    assert "may have 3 teacher calls at most" in text and "<td>– <span" in text


def test_the_terminal_tables_and_explanations():
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary(results()))
    console.print(listing(episodes()[:2]))
    console.print(explanation(episodes()[2]))
    console.file.close()
    text = console.export_text()
    for part in (
        "95.1%",
        "r2v 0.700 >= 0.500",
        "disturbed: direct (inject)",
        "(teacher)",
        "> press red",
        "4 x press blue"[4:],
    ):
        assert part in text, part


def test_an_always_asking_router_without_curve_is_shown(tmp_path):
    bare = results(routers={"slm_only": router(0.7, 0.0, False), "llm_only": router(0.98, 1.0, False)}, differences={})
    assert write_report(bare, [replace(run(routed(router=Always())), agent="llm_only")], tmp_path, title="x").exists()


def test_runs_side_by_side_are_told_apart_by_their_folders(tmp_path):
    def row(run):
        routers = {
            name: router(0.9, 0.2) | {"usd_per_episode": None, "curve": [[0, 0.5], [1, 0.9]]}
            for name in ("slm_only", "r2v", "llm_only")
        }
        more = {"slm": "from scratch, 3 x 64", "teacher": "expert", "tasks": 2, "perturbation_seeds": [1]}
        rest = {"less_random": None, "calibration": {"ece": 0.1, "auroc": 0.7}}
        return {"run": run, "routers": routers, **more, **rest}

    found = {"router": "r2v", "same_tasks": False, "differs": "tasks", "rows": [row("runs/a"), row("runs/b")]}
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(found))
    console.file.close()
    text = console.export_text()
    assert [re.search(rf"^. {name} ", text, re.M) is not None for name in "ab"] == [True, True]
    shown = [label.get_text() for label in frontiers(found).legends[0].get_texts()]
    assert shown == ["a: from scratch, 3 x 64", "b: from scratch, 3 x 64"]
    assert "<b>a</b>: from scratch, 3 x 64" in write_comparison(found, tmp_path).read_text()
    apart = {"rows": [row("one/run"), row("two/run"), row("/three/run")]}
    assert folders(apart) == ["one/run", "two/run", "three/run"]
    assert folders({"rows": [row("one/run")] * 2}) == ["run", "run"]
