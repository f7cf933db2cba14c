"""Parts of one's own: the examples through the pipeline, `r2v new`, `r2v check THING`; and a run that lacks torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from examples.own_router import OwnRouter
from rich.console import Console
from typer.testing import CliRunner

from r2v.cli import cli
from r2v.cli.parts import PARTS, check_class, check_thing, made_up_data, new_part
from r2v.core.checks import CheckFailed, check_router
from r2v.core.errors import SettingsError
from r2v.pipeline.run_folder import RunFolder
from r2v.pipeline.runner import Stage, run_stages, stage_fingerprint
from r2v.pipeline.settings import RunSettings
from r2v.pipeline.stages import STAGES
from r2v.routers import BUILT_IN, RIVALS, load_router, router_class
from r2v.runtime import plugins
from r2v.runtime.settings import load, validated
from test_routers_folders import decisions

ROOT = Path(__file__).parents[1]
TINY = (
    "tasks={policy: 30, router: 12, validation: 8, test: 8}", "clone={steps: 40, warmup_steps: 5}", "propose.tasks=4",
    "router.epochs=2", "threads=1", "evaluate={clairvoyant: 0, resamples: 50, asked_shares: [0.3]}",
    'routers=[r2v, {kind: "examples.own_router:OwnRouter", penalty: 3}]',
)  # fmt: skip


def r2v(*arguments: str, hide: str = "") -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own; `hide`: a module that is not installed there."""
    hidden = f"import sys; sys.modules['{hide}'] = None; " if hide else ""
    return subprocess.run(
        [sys.executable, "-c", f"{hidden}from r2v.cli import app; app()", *arguments],
        capture_output=True, text=True, cwd=ROOT, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_own_domain_verifier_and_router_go_through_the_pipeline_to_the_report(tmp_path):
    out = tmp_path / "run"
    done = r2v(
        "run", "examples/own-domain.yaml", "--out", str(out), *(word for change in TINY for word in ("--set", change))
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((out / "8-evaluate" / "results.json").read_text())
    mine = results["routers"]["own_router"]
    assert (mine["curve"][0][0], mine["curve"][-1][0]) == (0.0, 1.0) and len(mine["curve"]) >= 3
    assert (mine["colour"], mine["cites"], mine["broken"]) == (OwnRouter.colour, OwnRouter.cites, 0)
    assert set(results["differences"]) == {"own_router"}
    page = (out / "9-report" / "report.html").read_text()
    assert "own_router" in page and f"background: {OwnRouter.colour}" in page
    loaded = load_router(out / "7-fit" / "own_router")
    assert isinstance(loaded, OwnRouter)
    assert loaded.fitted_with.verifier == "examples.own_verifier:GuessVerifier"
    settings = load(out / "settings.yaml", RunSettings)
    assert settings.chosen_routers["own_router"] == (OwnRouter, {"penalty": 3})


def test_the_own_router_is_fitted_with_its_settings_and_saved(tmp_path):
    data = made_up_data()
    router = OwnRouter.fit(data).at(0.5)
    router.save(tmp_path)
    assert decisions(load_router(tmp_path)) == decisions(router)
    strict = OwnRouter.fit(replace(data, options={"own_router": {"penalty": 1e6}}))
    assert abs(strict.risk.layers[0][0]).max() < 0.01 < abs(router.risk.layers[0][0]).max()


@pytest.mark.parametrize("part", PARTS)
def test_a_new_part_passes_its_check(part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    done = CliRunner().invoke(cli, ["new", part, f"own-{part}-made-new"])
    assert done.exit_code == 0, done.output
    file = tmp_path / f"own_{part}_made_new.py"
    text = file.read_text()
    assert len(text.splitlines()) < 50 and "examples" not in text
    thing = f"own_{part}_made_new:" + ("DOMAIN" if part == "domain" else f"Own{part.capitalize()}MadeNew")
    assert f"next     r2v check {thing}" in done.output
    (line,) = check_thing(thing)
    assert line.startswith(f"{part:<12} {thing}: ")
    with pytest.raises(SettingsError, match="exists"):
        new_part(part, f"own-{part}-made-new", None)
    assert file.read_text() == text


def test_a_new_router_can_be_fitted_and_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    path, thing = new_part("router", "PatienceOfMine", Path("mine_of_tests/patience.py"))
    assert (path, thing) == (Path("mine_of_tests/patience.py"), "mine_of_tests.patience:PatienceOfMine")
    from mine_of_tests.patience import PatienceOfMine

    router = PatienceOfMine.fit(made_up_data()).at(0.5)
    assert router.name == "patience_of_mine"
    router.save(tmp_path / "folder")
    loaded = load_router(tmp_path / "folder")
    assert type(loaded) is PatienceOfMine and decisions(loaded) == decisions(router)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("thing", "x"), "there are router, domain, verifier"),
        (("router", "r2v"), "called r2v already"),
        (("router", "json"), "called json already"),
        (("domain", "3 keys"), "a letter first"),
        (("domain", "class"), "cannot name"),
        (("verifier", "sense", "--out", "sense.txt"), "is not the name of a Python file"),
    ],
)
def test_a_name_that_cannot_be_is_refused_in_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(cli, ["new", *arguments])
    assert isinstance(refused.exception, SettingsError) and message in str(refused.exception)
    assert not list(tmp_path.iterdir())


def test_the_wheel_holds_what_new_parts_are_made_from():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shipped = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert shipped == {f"examples/{name}.py": f"r2v/cli/templates/{name}.py" for name, _, _ in PARTS.values()}
    assert all((ROOT / source).is_file() for source in shipped)


def test_the_examples_stay_short():
    assert all(len((ROOT / f"examples/{name}.py").read_text().splitlines()) < 50 for name, _, _ in PARTS.values())


@pytest.mark.parametrize(
    ("thing", "kinds"),
    [
        ("household", ["domain", "verifier"]),
        ("atif", ["log format"]),
        ("tests", ["verdict"]),
        ("workbench", ["log format", "suite"]),
        ("query", ["router"]),
        ("bandit", ["router"]),
        ("reading_benefit", ["router"]),
        ("switchyard_stage", ["router"]),
        ("r2v.domains.household.expert:HouseholdExpert", ["policy"]),
        ("examples.own_verifier:GuessVerifier", ["verifier"]),
        ("examples.own_domain:static", ["perturbation"]),
        ("examples.own_router:OwnRouter", ["router"]),
    ],
)
def test_things_are_found_and_checked(thing, kinds):
    assert [line[:12].strip() for line in check_thing(thing)] == kinds


def test_a_router_folder_is_checked(tmp_path):
    OwnRouter.fit(made_up_data()).at(0.5).save(tmp_path)
    assert CliRunner().invoke(cli, ["check", str(tmp_path)]).output.startswith(f"router       {tmp_path}: ")


def test_a_run_names_its_routers(refused, tmp_path):
    OwnRouter.fit(made_up_data()).at(0.5).save(tmp_path / "7-fit" / "mine")
    (tmp_path / "settings.yaml").touch()
    assert f"{tmp_path} is a run; give a router of it, {tmp_path}/7-fit/NAME: mine\n" in refused("check", tmp_path)


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        ("missing.yaml", "missing.yaml does not exist; `r2v init FILE` writes gateway settings"),
        ("nothing", "nothing is no settings file, router folder .* your own part is package.module:Thing"),
        ("no.such:Thing", "there is no module no"),
        ("examples.own_domain:NOTHING", "has no NOTHING"),
        ("examples", "router.json does not exist"),
    ],
)
def test_what_is_not_there_is_said_with_the_mend(thing, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(Exception, match=message) as raised:
        check_thing(thing)
    assert "\n" not in str(raised.value)


BROKEN = """\
from dataclasses import dataclass
from typing import ClassVar
from r2v.routers.base import RouterBase

class Loud:
    async def score(self, context, actions): return [2.0] * len(actions)

class Sync:
    def score(self, context, actions): return [0.5] * len(actions)

class Few:
    async def score(self, context): return []

class Words:
    async def score(self, context, actions): return ["high"] * len(actions)

class Says:
    name = "says"
    def decide(self, context, features, memory, *, seed): return "escalate"

class Short:
    name = "short"
    def decide(self, context, features): return None

class Loose:
    name = "loose"
    def read(self, context): return 7

class Right:
    name = "right"
    def read(self, context): return 1.0

class Bench:
    name, description, path, mode = "b", "two models", "b.jsonl", "sideways"
    def load(self, data, progress): raise ValueError

class Bare(RouterBase):
    name = "bare"
    def score(self, features): return 0.5

class Undecorated(RouterBase):
    level: float = 0.0

def of(**said):
    said = {"__doc__": "d", "__module__": __name__, "score": lambda self, features: features.values[0], **said}
    return dataclass(frozen=True, kw_only=True, eq=False)(type("Made", (RouterBase,), said))

NEEDS, NO_SET = of(needs=frozenset({"anwsers"})), of(needs="answers")
KIND, COLOUR, ROUTES = of(kind="rsik"), of(colour="blurple"), of(routes=frozenset({"up"}))
NAME = of(name="Bad Name/../x", __annotations__={"name": str})
NOTHING = of(fit=classmethod(lambda cls, data: None))
NAN = of(score=lambda self, features: float("nan"))
TAKES = of(score=lambda self: 0.5)

class Fails:
    async def score(self, context, actions): return [1 / 0]

@dataclass(frozen=True, kw_only=True, eq=False)
class Forgets(RouterBase):
    '''Holds what it learned outside its fields.'''
    name: str = "forgets"
    learned: ClassVar[list] = []
    @classmethod
    def fit(cls, data):
        made = cls()
        object.__setattr__(made, "level", 0.7)
        return made
    def score(self, features): return getattr(self, "level", 0.0) + features.values[4]
    def at(self, threshold):
        made = super().at(threshold)
        object.__setattr__(made, "level", self.level)
        return made
"""


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        ("Loud", "outside [0, 1]"),
        ("Fails", "broke: ZeroDivisionError"),
        ("Sync", "`score` of Sync is not async; write `async def score`"),
        (
            "Few",
            "does not take what r2v gives it (too many positional arguments); write `async def score(self, context",
        ),
        ("Words", "is the str 'high', no number"),
        ("Says", "`decide` of says returned a str; make it return a Decision"),
        ("Short", "write `def decide(self, context, features, memory, *, seed)`"),
        ("Loose", "verdict loose gave 7; make `read` return a number from 0 to 1, or None"),
        ("Bench", "the suite b has the mode 'sideways'; there are restart, takeover, one_step"),
        ("Bare", "`name` is no field; write its type, and @dataclass(frozen=True, kw_only=True, eq=False) above the class"),
        ("Undecorated", "`level` is no field; write its type, and @dataclass"),
        ("NEEDS", "`needs` has 'anwsers'; there are answers, branches"),
        ("NO_SET", "`needs` = 'answers'; write a set, as frozenset({'answers'})"),
        ("KIND", "`kind` = 'rsik'; there are risk, "),
        ("COLOUR", "`colour` = 'blurple'; write it as #rrggbb"),
        ("ROUTES", "`routes` has 'up'; there are continue, "),
        ("NAME", "`name` = 'Bad Name/../x' names a folder, too; take letters"),
        ("NOTHING", "returned a NoneType; make it return the router"),
        ("NAN", "scores a step with what is no finite number"),
        (
            "TAKES",
            "`score` of Made does not take what r2v gives it (too many positional arguments)",
        ),
        ("Forgets", "decides otherwise once saved and loaded"),
    ],
)
def test_a_broken_promise_is_one_line_and_a_failure(refused, thing, message, tmp_path, monkeypatch):
    (tmp_path / "broken_parts.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    assert message in refused("check", f"broken_parts:{thing}")


def test_every_router_that_comes_with_r2v_says_what_it_is():
    for name in (*BUILT_IN, *RIVALS):
        check_class(router_class(name))


def test_parts_of_packages_are_checked_and_told_where_they_cannot_be_used(tmp_path, monkeypatch, caplog):
    (tmp_path / "parts_of_a_package.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    mine = {"right": "parts_of_a_package:Right"}
    same = {"r2v": "parts_of_a_package:Bare"}
    monkeypatch.setattr(plugins, "installed", lambda group: mine if group == "verdicts" else same)
    (line,) = check_thing("right")
    assert line.startswith("verdict      right: ")
    assert "r2v is not used: a part that comes with r2v is called so" in caplog.text


def test_a_router_keeps_to_its_routes():
    class Strays(OwnRouter):
        routes = frozenset({"continue"})

    data = made_up_data()
    rows = [step.choice.features for step in data.recorded[0].steps]
    context = data.recorded[0].contexts(8)[0]
    with pytest.raises(CheckFailed, match="took the route escalate"):
        check_router(Strays(risk=OwnRouter.fit(data).risk, threshold=0.0), rows, context)


def test_a_run_without_torch_stops_before_it_plays(tmp_path):
    out = tmp_path / "run"
    done = r2v("run", "examples/own-domain.yaml", "--out", str(out), hide="torch")
    assert (done.returncode, done.stderr) == (1, "r2v: torch is not installed; pip install 'r2v[train]'\n")
    assert not out.exists()
    collected = r2v(
        "run", "examples/own-domain.yaml", "--out", str(out), "--until", "collect", "--set", "tasks.policy=4", hide="torch"
    )
    assert collected.returncode == 0, collected.stderr


def test_collect_does_not_claim_what_the_teacher_did_not_play(tmp_path, monkeypatch):
    monkeypatch.setenv("R2V_API_KEY", "x")
    (tmp_path / "chat.yaml").write_text(
        "version: 1\nenvironment: {kind: 'examples.own_domain:DOMAIN', horizon: 7}\n"
        "tasks: {policy: 0, router: 4, validation: 4, test: 4}\n"
        "slm: {model: {kind: chat, base_url: 'http://127.0.0.1:9/v1', model: m}}\n"
    )
    console = Console(record=True, width=200)
    run_stages(STAGES[:2], load(tmp_path / "chat.yaml", RunSettings), tmp_path / "run", console)
    collect, perturb = console.export_text().splitlines()[-2:]
    assert "the teacher played none" in collect and "skipped" in perturb


def test_a_change_of_ones_own_code_makes_its_stages_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    source = tmp_path / "a_router_of_mine.py"
    source.write_text("from r2v.routers.verifier import VerifierRouter as V\n\nclass Mine(V):\n    name = 'mine'\n")
    (tmp_path / "a_domain_of_mine").mkdir()
    (tmp_path / "a_domain_of_mine" / "__init__.py").write_text(
        "from r2v.domains.household import HouseholdDomain as H\n\nclass D(H):\n    pass\n\nDOMAIN = D()\n"
    )
    settings = validated(RunSettings, {
        "version": 1, "routers": ["r2v", "a_router_of_mine:Mine"], "environment": {"kind": "a_domain_of_mine:DOMAIN"},
    })  # fmt: skip

    def fingerprints():
        stages = (Stage("s", "", (), uses, lambda ctx: None) for uses in (("routers",), ("environment",), ("slm",)))
        return [stage_fingerprint(stage, settings, RunFolder(tmp_path)) for stage in stages]

    before = fingerprints()
    assert fingerprints() == before
    source.write_text(source.read_text() + "    K = 2\n")
    routed = fingerprints()
    assert routed[0] != before[0] and routed[1:] == before[1:]
    (tmp_path / "a_domain_of_mine" / "rules.py").write_text("K = 3\n")
    assert fingerprints()[1] != before[1] and fingerprints()[2] == before[2]
