"""What README and docs say is so: links, commands, code, words; README's table comes from results.json."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

import r2v
from r2v.cli.common import cli
from r2v.core.mlp import linear
from r2v.pipeline.settings import RunSettings
from r2v.routers.base import FittedWith
from r2v.routers.r2v import R2V
from r2v.runtime.settings import load
from r2v.verifiers import source_sha256

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BENCHMARKS = ROOT / "benchmarks" / "README.md"
PAGES = [README, BENCHMARKS, *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "log.md")]
"""The lab log is a diary: what it said then stays."""
OLD_SECTION = "## The words of r2v 0.1"
OLD_WORDS = re.compile(
    r"\b(rungs?|wish(es)?|visits?|leash|wardens?|keepers?|lookouts?|told|knobs?)\b|`Moment`|asks? the teacher", re.I
)
OLD_NAMES = {
    "Rung", "Moment", "Parts", "Bench", "Player", "Knob", "Wish", "Visit", "Draft", "Told", "Telling", "Dialect", "Hold",
    "Manner", "Character",
}  # fmt: skip
OLD_IN_ANY_NAME = {"warden", "keeper", "leash", "lookout"}
named = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def commands() -> dict[str, str]:
    """Command -> its help texts, those of its options included."""
    return {name: " ".join(_helps(command)) for name, command in typer.main.get_command(cli).commands.items()}


def _helps(command):
    return [command.help or "", *(getattr(parameter, "help", None) or "" for parameter in command.params)]


@named
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    wrong = []
    for target in targets:
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        if not there.exists() or (anchor and anchor not in _anchors(there)):
            wrong.append(target)
    assert not wrong


def test_every_benchmark_is_on_their_page():
    assert {path.name for path in BENCHMARKS.parent.glob("*.py")} <= set(
        re.findall(r"\]\((\w+\.py)\)", BENCHMARKS.read_text())
    )


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_commands_exist():
    known = set(commands())
    for page in (*PAGES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "examples").glob("*.yaml"))):
        said = set(re.findall(r"(?<![\w/'])r2v ([a-z]+(?:-[a-z]+)*)(?![\w.@-])", _code_of(page)))
        assert said <= known, page.name


def _code_of(page: Path) -> str:
    """What stands in fences, in backticks, or is indented."""
    text, fence = page.read_text(), re.compile(r"^```.*?^```", re.M | re.S)
    rest = fence.sub("", text)
    return "\n".join([*fence.findall(text), *re.findall(r"`([^`]+)`", rest), *re.findall(r"^ {4}(.+)$", rest, re.M)])


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        assert set(re.findall(r"\bmake ([a-z-]+)", _code_of(page))) <= targets, page.name
    assert re.findall(r"^ {4}(make \w+)", README.read_text(), re.M)[:2] == ["make quickstart", "make test"]


def test_python_in_the_pages_runs_as_written(tmp_path):
    """Blocks marked `<!-- runnable -->`, those of a page one after the other, beside a finished run's router folder."""
    settings = load(ROOT / "examples/household.yaml", RunSettings)
    conditions = FittedWith(settings.slm.k, settings.environment.horizon, "household", "full", source_sha256("household"))
    risk = linear(("verifier_best",), np.zeros(1), np.ones(1), np.array([-2.0]), 1.0)
    router = R2V(risk=risk, fitted_with=conditions).at(0.5)
    router.save(tmp_path / "runs/quickstart/7-fit/r2v")
    blocks = {page: re.findall(r"<!-- runnable -->\n```python\n(.*?)```", page.read_text(), re.S) for page in PAGES}
    assert len(blocks[README]) == 2
    first = blocks[README][0].strip().splitlines()
    assert len([line for line in first if line]) <= 10
    for page, found in blocks.items():
        if found:
            done = subprocess.run(
                [sys.executable, "-W", "error", "-c", "\n".join(found)], cwd=tmp_path, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{page.name}: {done.stderr}"
            assert done.stdout.split()[0] in ("continue", "escalate")


@named
def test_the_old_words_are_gone_from_the_pages(page):
    text = page.read_text()
    before, _, after = text.partition(OLD_SECTION)
    kept = before + after[after.find("\n## ") :] if after else before
    assert not [found[0] for found in OLD_WORDS.finditer(kept)]


def test_the_old_words_are_gone_from_the_command_line():
    wrong = {name: found[0] for name, text in commands().items() if (found := OLD_WORDS.search(text))}
    assert not wrong


def test_help_has_no_brackets_that_are_taken_for_markup():
    assert not {name: found[0] for name, text in commands().items() if (found := re.search(r"(?<!\\)\[[a-z/]", text))}


def test_the_old_words_are_gone_from_names():
    assert not OLD_NAMES & set(r2v.__all__)
    wrong = []
    for path in sorted(Path(r2v.__file__).parent.rglob("*.py")):
        if "tasks" in path.parts:
            continue  # programs that agents shall mend
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                words = set(re.findall(r"[A-Z][a-z]*", node.name)) if isinstance(node, ast.ClassDef) else set()
                if words & OLD_NAMES or set(re.findall(r"[a-z]+", node.name.lower())) & OLD_IN_ANY_NAME:
                    wrong.append(f"{path.name}: {node.name}")
    assert not wrong


def test_each_term_stands_once_in_the_glossary():
    terms = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs/glossary.md").read_text().partition(OLD_SECTION)[0], re.M)[2:]
    assert len(terms) == len(set(terms)) and terms == sorted(terms, key=str.lower)


# -- README's table ------------------------------------------------------------------------------------------------------


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("readme_table", ROOT / "scripts/readme_table.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made_results(cpu: str = "A CPU") -> dict:
    def router(success, calls, points=(), at_calls=None, area=None, at_98=None):
        return {
            "success_rate": success, "ci95": [success - 0.05, success + 0.05], "llm_call_rate": calls / 20,
            "calls_per_episode": calls, "calls_ci95": [calls * 0.9, calls * 1.1], "points": points, "area": area,
            "at_calls": at_calls or {},
            "calls_at_equal_success": {} if at_98 is None else {"0.98": {"calls": at_98, "ci95": [at_98 / 2, None]}},
        }  # fmt: skip

    routers = {
        "slm_only": router(0.5, 0.0),
        "llm_only": router(0.9, 10.0),
        "r2v": router(0.8, 3.0, [[0.9, 1.0, 0.7], [0.5, 2.0, 0.71], [0.3, 3.0, 0.8]], {"1": 0.7, "2": 0.71}, 0.8, 8.74),
        "benefit": router(0.9, 2.0, [[0.1, 2.0, 0.9]], {"1": 0.7, "2": 0.9}, 0.9, 1.92),
    }
    ahead = {"success": -0.19, "ci95": [-0.3, -0.1]}
    level = {"success": -0.0001, "ci95": [-0.02, 0.02]}
    return {
        "tasks": 12, "perturbation_seeds": [1, 2], "routers": routers,
        "clairvoyant": {"calls_at_target": 0.25, "target": 0.98 * 0.9},
        "differences": {"benefit": {"at_calls": {"1": level, "2": ahead}}},
        "provenance": {
            "r2v": "9.9", "seed": 7, "split": "test tasks of the run", "python": "3.11", "libraries": {"numpy": "2.0"},
            "machine": {"cpu": cpu, "cores": 2}, "threads": 1,
        },
    }  # fmt: skip


def test_the_table_has_machine_intervals_and_calls_at_equal_success(script):
    text = script.section(made_results(), made_results("Another"))
    assert "12 test tasks of the run x 2 perturbation seeds, seed 7. A CPU, 2 cores, 1 training threads; r2v 9.9" in text
    assert "| benefit | 90.0% (85.0% to 95.0%) | 10.0% | 2.00 (1.80 to 2.20) | 1.92 (0.96 to ?) | 0.900 |" in text
    assert "| llm_only | 90.0% (85.0% to 95.0%) | 50.0% | 10.00 (9.00 to 11.00) |  |  |" in text
    assert "| benefit minus r2v (95 %) | +0.0 (-2.0 to +2.0) | +19.0 (+10.0 to +30.0) |" in text
    assert text.count("needs 0.25 calls an episode; `r2v` 8.74, `benefit` 1.92.") == 2 and "Another, 2 cores" in text
    found = made_results() | {
        "clairvoyant": None,
        "state_oracle": {
            "futures": 8,
            "episodes": 40,
            "calls_at_equal_success": {"0.98": {"calls": 0.4, "ci95": [0.3, 0.6]}},
        },
    }
    (said,) = script.oracle(found)
    assert said.startswith("For 98% of the teacher's success the state oracle") and "0.40 (0.30 to 0.60); `r2v` 8.74" in said


def test_a_readme_that_differs_from_the_results_is_found(tmp_path, script, capsys):
    page, run = tmp_path / "README.md", tmp_path / "run"
    page.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    (run / "8-evaluate").mkdir(parents=True)
    (run / "8-evaluate/results.json").write_text(json.dumps(made_results()))
    arguments = [str(run), "--readme", str(page)]
    assert script.main([*arguments, "--check"]) == 1
    assert "old" in page.read_text() and "differs" in capsys.readouterr().out
    assert script.main(arguments) == 0
    assert script.main([*arguments, "--check"]) == 0
    assert page.read_text().startswith("before\n") and page.read_text().endswith("\nafter\n")
    changed = made_results()
    changed["routers"]["benefit"]["calls_per_episode"] = 2.5
    (run / "8-evaluate/results.json").write_text(json.dumps(changed))
    assert script.main([*arguments, "--check"]) == 1


def test_docs_paper_has_the_numbers_of_readmes_table():
    rows = re.findall(r"^\| (\w+) \| ([\d.]+)% \(.*?\| ([\d.]+)% \|", README.read_text(), re.M)
    numbers = {name: of_run for name, *of_run in reversed(rows)}  # of the first table
    page = (ROOT / "docs/paper.md").read_text()
    titles = {"slm_only": "SLM alone", "r2v_paper": "R2V", "llm_only": "teacher alone"}
    for name in ("slm_only", "entropy", "heuristic", "r2v_paper", "llm_only"):
        success, rate = numbers[name]
        assert re.search(rf"^\| {titles.get(name, name)}\b.*\| {success} %, {float(rate):g} % \|$", page, re.M), name


def test_readme_has_the_place_for_its_table(script):
    assert script.replaced(README.read_text(), "x").count("\nx\n") == 1
