"""What stands in several places stands equally: extras, pins, slow tests; and CI sees every skip."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from typer.testing import CliRunner

from conftest import SLOW
from r2v import __version__
from r2v.cli import cli
from r2v.cli.extras import EXTRAS, missing

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {
    "scikit-learn": "sklearn",
    "prometheus-client": "prometheus_client",
    "opentelemetry-sdk": "opentelemetry",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
}
NOT_IMPORTED = {"uvloop", "httptools"}
"""What makes the server fast where it is there."""


def names_of(requirements: list[str]) -> set[str]:
    """Modules of requirements, with those of the extras of r2v that they name."""
    found = set()
    for requirement in requirements:
        name, more = re.match(r"([A-Za-z0-9_-]+)(?:\[([a-z,]+)\])?", requirement).groups()
        if name == "r2v":
            for extra in more.split(","):
                found |= names_of(PROJECT["optional-dependencies"][extra])
        else:
            found.add(MODULES.get(name, name))
    return found


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_command_line_knows_what_each_extra_brings(extra):
    assert set(EXTRAS[extra]) == names_of(PROJECT["optional-dependencies"][extra]) - NOT_IMPORTED


def test_ranges_are_in_the_project_and_pins_in_the_constraints():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    for requirement in chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        assert "==" not in requirement.split(";")[0], requirement
        name, bound = re.match(r"([A-Za-z0-9_-]+)(?:\[[a-z,]+\])?(?:>=([\d.]+))?", requirement).groups()
        if name == "r2v":
            continue
        pinned = pins[name.lower()]
        if bound is not None:
            assert [int(n) for n in re.findall(r"\d+", pinned)] >= [int(n) for n in bound.split(".")], requirement


@pytest.mark.parametrize(
    ("module", "command", "extra"),
    [
        ("torch", "run", "train"),
        ("pyarrow", "run", "train"),
        ("pyarrow", "fit", "fit"),
        ("scipy", "fit", "fit"),
        ("pyarrow.parquet", "inspect", "report"),
        ("jinja2", "evaluate", "train"),
        ("uvicorn", "serve", "serve"),
        ("jsonschema", "serve", "serve"),
        ("textworld", "run", "alfworld"),
        ("ray", "run", "ray"),
    ],
)
def test_a_missing_module_names_the_extra_of_the_command(module, command, extra):
    line = missing(module, [command, "x.yaml"])
    assert line is not None and line.endswith(f"pip install 'r2v[{extra}]'") and "\n" not in line


def test_a_missing_module_of_no_extra_is_a_fault_to_be_seen():
    assert missing("r2v.nothing", ["run"]) is None


@pytest.mark.parametrize(
    ("hidden", "command", "extra"),
    [
        ("uvicorn", ["serve", "--mock"], "serve"),
        ("matplotlib", ["inspect", "log.jsonl", "--format", "openai-jsonl", "--out", "page"], "report"),
    ],
)
def test_a_command_without_its_extra_ends_in_one_line(tmp_path, hidden, command, extra):
    message = {"role": "assistant", "content": "x"}
    (tmp_path / "log.jsonl").write_text(json.dumps({"messages": [message], "success": True, "task": "t"}))
    hide = f"import sys; sys.modules['{hidden}'] = None; from r2v.cli import app; app()"
    done = subprocess.run([sys.executable, "-c", hide, *command], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert re.fullmatch(rf"r2v: {hidden} is not installed; pip install 'r2v\[{extra}\]'\n", done.stderr), done.stderr


def test_the_version_is_said_and_stands_once():
    assert CliRunner().invoke(cli, ["--version"]).output == f"r2v {__version__}\n"
    assert PROJECT["version"] == __version__


def test_every_slow_test_exists():
    for entry in SLOW:
        file, _, name = entry.partition("::")
        functions = {n.name for n in ast.walk(ast.parse((ROOT / "tests" / file).read_text())) if hasattr(n, "name")}
        assert not name or name in functions, entry


@pytest.mark.parametrize(
    ("reason", "ci", "status"),
    [
        ("no chromium on this machine", "true", 1),
        ("no chromium on this machine", "", 0),
        ("no /proc on this system", "true", 0),
    ],
)
def test_ci_fails_on_a_skip_that_is_not_on_the_list(tmp_path, reason, ci, status):
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(f"import pytest\ndef test_it(): pytest.skip({reason!r})\ndef test_else(): pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        check=False,
    )
    assert done.returncode == status, done.stdout
    assert (reason in done.stdout) == bool(status)


def test_the_latest_clients_are_those_that_a_user_gets_who_names_no_version():
    spec = importlib.util.spec_from_file_location("install", ROOT / "tests" / "agents" / "install.py")
    install = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(install)
    text = (ROOT / "tests" / "agents" / "versions.json").read_text()
    pinned, _ = install.wanted(text, latest=False)
    latest, _ = install.wanted(text, latest=True)
    assert {group: list(packages) for group, packages in latest.items()} == {g: list(p) for g, p in pinned.items()}
    assert set(latest["npm"].values()) == {"latest"}  # not "*", which is an older release where Node is an older one


def test_every_mutant_is_another_program_that_compiles():
    spec = importlib.util.spec_from_file_location("mutate", ROOT / "scripts" / "mutate.py")
    mutate = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = mutate
    spec.loader.exec_module(mutate)
    original = ast.dump(ast.parse((mutate.SOURCE / "core/seeds.py").read_text()))
    mutants = list(mutate.mutants_of("core/seeds.py"))
    assert mutants
    changed = [mutate.mutated(mutant) for mutant in mutants]
    assert len({ast.dump(tree) for tree in changed} - {original}) == len(mutants)
    for tree in changed:
        compile(tree, "seeds.py", "exec")
