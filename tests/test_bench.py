"""`r2v bench`: fits never see what they are scored on, predictions are sealed, and the nulls stand beside each row."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from r2v.bench.entries import NULL, RANDOM, RECORDED, SHUFFLED, entries
from r2v.bench.predictions import Seal, Split, predict
from r2v.bench.prices import LIST, Bill
from r2v.bench.run import suite_named, why_not
from r2v.bench.suite import Loaded, Outcome
from r2v.bench.suites.recorded import INTERCODE, INTERCODE_VERDICT, again
from r2v.bench.table import Table
from r2v.cli import cli
from r2v.core.errors import SettingsError, StageError
from r2v.core.types import Context, Decision, Features, Memory
from r2v.routers import SHIPPED, router_class
from r2v.routers.base import FittedWith, RouterBase
from r2v.routers.fit_data import FitData

SHOWN = INTERCODE_VERDICT.path
TASKS, BASES = 120, 24
ROWS = ("reading_benefit", "reading", "heuristic", "litellm_stall", RANDOM, NULL, SHUFFLED)


def quiet(done: int, total: int, note: str = "") -> None:
    pass


def record(task: int, setting: str, model: str, actions: Sequence[str], won: bool) -> dict[str, Any]:
    missing = f"Error executing query: Table 'base_{task % BASES}.t{task}' doesn't exist"
    steps = [
        {"action": action, "observation": missing if "lost" in action else "[(1,)]",
         "reward": float(won and i == len(actions) - 1), "valid": "lost" not in action}
        for i, action in enumerate(actions)
    ]  # fmt: skip
    return {
        "env": "sql", "model": model, "setting": f"ic_sql_{setting}", "dataset": "./data/spider/dev.json", "task": task,
        "query": f"question {task} about number {task * 7919 % 1000}", "max_reward": float(won), "success": won,
        "steps": steps,
    }  # fmt: skip


def tasks_of(seed: int = 0) -> list[dict[str, Any]]:
    """The weak model fails half of the tasks, and one sees it from its second step on; of these the strong one solves the
    half that can be told by `deep` against `hopeless`.
    """
    rng, found = np.random.default_rng(seed), []
    for task in range(TASKS):
        fails, hopeless = rng.random() < 0.5, rng.random() < 0.5
        words = (
            ["SELECT 1", f"SELECT lost {'hopeless' if hopeless else 'deep'}", "SELECT lost"] if fails else ["SELECT 1"] * 3
        )
        weak = record(task, "multiturn_gpt-3.5_10_turns", "gpt-3.5", words, not fails)
        strong = record(task, "multiturn_gpt-4_10_turns", "gpt-4", ["SELECT 2"], not (fails and hopeless))
        found += [weak, strong]
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    (folder / SHOWN).parent.mkdir(parents=True)
    with lzma.open(folder / SHOWN, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in tasks_of())
    return folder


@pytest.fixture(scope="module")
def split(data: Path) -> Split:
    return Split.of(INTERCODE_VERDICT.load(data, quiet), "restart", 0, quiet)


@pytest.fixture(scope="module")
def table(split: Split, tmp_path_factory: pytest.TempPathFactory) -> Table:
    found, left_out = predict(split, [e for e in entries() if e.name in ROWS], quiet)
    assert not left_out
    return Table(split, found, Seal.on(found, tmp_path_factory.mktemp("sealed") / "predictions.json.gz"), quiet)


def row_of(table: Table, name: str) -> dict[str, Any]:
    return table.row(next(p for p in table.found if p.entry.name == name))


def test_a_router_that_sees_who_can_be_helped_beats_the_nulls(table: Table):
    row, nulls = row_of(table, "reading_benefit"), table.nulls()
    assert row["share_strong"] == pytest.approx(0.25)
    assert row["gain_over_random_ci95"][0] > 0.1 and row["gain_over_step_0_ci95"][0] > 0.1
    ends = nulls["slm alone"]["success"], nulls["strong alone"]["success"]
    assert row["success"] == pytest.approx(ends[1], abs=0.05)  # a quarter of the sessions is worth it, and no other one
    assert nulls["random"]["success"] == pytest.approx(0.75 * ends[0] + 0.25 * ends[1])
    assert nulls["best single"] == "strong alone"


def test_what_is_fitted_on_dealt_outcomes_gains_nothing(table: Table):
    low, high = row_of(table, SHUFFLED)["gain_over_random_ci95"]
    assert low < 0 < high or high < 0.1


def test_a_row_costs_what_its_calls_cost(table: Table, split: Split):
    row = row_of(table, "reading_benefit")
    money = [o.usd for o in split.loaded.play([(i, ()) for i in range(TASKS)], quiet)]
    assert row["usd_per_solved"] > np.mean(money) / row["success"]
    assert row_of(table, NULL)["curve"][-1][:2] == [1.0, table.nulls()["strong alone"]["success"]]


def test_no_fit_sees_a_task_that_it_is_scored_on(split: Split):
    seen: list[set[str]] = []

    class Spy(RouterBase):
        @classmethod
        def fit(cls, data: FitData) -> RouterBase:
            seen.append({e.task.family for e in (*data.recorded, *data.validation, *data.explored)})
            assert not {e.task.id for e in data.recorded} & {e.task.id for e in data.validation}
            return cls(name="spy")

        def score(self, features: Features) -> float:
            return 0.0 if features.values[12] < 1 else 1.0

    entry = replace(entries()[0], name="spy", router=Spy)
    predict(split, [entry], quiet)
    episodes = split.loaded.episodes
    for fold, families in enumerate(seen):
        held = {e.task.family for e, f in zip(episodes, split.fold_E, strict=True) if f == fold}
        assert held and not held & families
    assert len(seen) == 5


def test_weak_models_may_be_left_out_beside_the_tasks(split: Split):
    with pytest.raises(SettingsError, match="one weak model"):
        Split.of(split.loaded, "restart", 0, quiet, unseen_models=True)
    episodes = [replace(e, agent=f"weak {i % 4}") for i, e in enumerate(split.loaded.episodes)]
    unseen = Split.of(replace(split.loaded, episodes=episodes), "restart", 0, quiet, unseen_models=True)
    scored = np.zeros(len(episodes), dtype=int)
    for held_E, data in unseen.fits:
        held = [episodes[i] for i in np.flatnonzero(held_E)]
        seen = [*data.recorded, *data.validation]
        assert not {e.agent for e in held} & {e.agent for e in seen}
        assert not {e.task.family for e in held} & {e.task.family for e in seen}
        scored += held_E
    assert (scored == 1).all() and len(unseen.fits) == 15
    found, left_out = predict(unseen, [e for e in entries() if e.name == "query"], quiet)
    assert len(found) == 1 and not left_out and unseen.sha256 != split.sha256


def test_predictions_are_scored_as_they_were_sealed_or_not_at_all(split: Split, tmp_path: Path):
    found, _ = predict(split, [e for e in entries() if e.name == "heuristic"], quiet)
    seal = Seal.on(found, tmp_path / "p.json.gz")
    Table(split, found, seal, quiet)
    found[0].steps_PE[0][0] = (1,) if found[0].steps_PE[0][0] != (1,) else ()
    with pytest.raises(StageError, match="sealed"):
        Table(split, found, seal, quiet)
    text = gzip.decompress(seal.path.read_bytes()).replace(b"heuristic", b"heuristik")
    seal.path.write_bytes(gzip.compress(text))
    with pytest.raises(StageError, match="sealed"):
        Table(split, found, seal, quiet)


class Coin(RouterBase):
    """Escalates every other task at its first step, whatever it reads."""

    def thresholds(self, validation: Sequence[Any], shares: Sequence[float]) -> list[float]:
        return [1.0]

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        route = "escalate" if context.t == 0 and len(context.goal) % 2 else "continue"
        return Decision(route, "scheduled", None, None, None, 1.0, (), "by the goal's length")


def bench(*words: object) -> Result:
    return CliRunner().invoke(cli, ["bench", *map(str, words)])


def test_routers_of_ones_own_by_dotted_path_and_by_folder(data: Path, tmp_path: Path):
    """A folder takes part only where it knows the features."""
    own, folders = "test_bench:Coin", [str(tmp_path / name) for name in ("same", "other")]
    for folder, known in zip(folders, (RECORDED, FittedWith(5, 50, "household")), strict=True):
        router_class("switchyard_stage")(threshold=0.5, fitted_with=known).save(Path(folder))
    routers = [word for name in (own, *folders) for word in ("--router", name)]
    done = bench("intercode-verdict", "--data", data, "--out", tmp_path, *routers, "--only", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout.splitlines()[-1])
    rows = {row["router"]: row for row in facts["rows"]}
    assert rows.keys() == {own, folders[0], NULL, RANDOM}
    assert rows[own]["fixed"] and 0.2 < rows[own]["share_strong"] < 0.8
    assert all({"router", "share_strong", "success", "ci95", "usd_per_solved"} <= row.keys() for row in rows.values())
    (left,) = facts["left_out"]
    assert left["router"] == folders[1] and "5 candidates" in left["why"] and "tool_calls" in left["why"]
    assert {"random", "step 0 only", "slm alone", "strong alone", "best single", "slm again"} == facts["nulls"].keys()
    assert facts["suite"] == "intercode-verdict" and facts["fidelity"] == {}
    page = (tmp_path / "bench.html").read_text()
    assert own in page and facts["predictions_sha256"][:16] in page


@pytest.mark.parametrize("name", ["recorded", str(SHIPPED["recorded"])])
def test_the_router_that_comes_fitted_is_scored_and_says_on_what_it_was_fitted(data: Path, tmp_path: Path, name: str):
    """It was fitted on sessions of any length, and on these very ones."""
    done = bench("intercode-verdict", "--data", data, "--out", tmp_path, "--router", name, "--only", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout.splitlines()[-1])
    assert [row["router"] for row in facts["rows"]].count(name) == 1 and facts["left_out"] == []
    line = "fitted elsewhere on InterCode SQL, InterCode Bash, WorkBench: on these its row shows what it has seen"
    assert f"{name}: {line}" in " ".join(done.stdout.split())
    assert RANDOM not in {row["router"] for row in facts["rows"] if row["source"].startswith("fitted elsewhere")}


def test_the_same_seed_predicts_the_same(split: Split, data: Path, tmp_path: Path):
    cheap = [e for e in entries() if e.name in ("heuristic", "query", RANDOM)]
    splits = (split, *(Split.of(INTERCODE_VERDICT.load(data, quiet), "restart", seed, quiet) for seed in (0, 1)))
    seals = [Seal.on(predict(one, cheap, quiet)[0], tmp_path / f"{i}.json.gz").sha256 for i, one in enumerate(splits)]
    assert seals[0] == seals[1] != seals[2]
    assert splits[0].sha256 == splits[1].sha256 != splits[2].sha256


class Broken(RouterBase):
    """Knows a step that there is not."""

    @classmethod
    def fit(cls, data: FitData) -> RouterBase:
        return cls(name=data.recorded[0].steps[99].observation.text)


def test_what_is_no_suite_and_a_router_that_breaks_end_in_one_line(data: Path, tmp_path: Path):
    done = bench("intercode-verdict", "--data", data, "--out", tmp_path, "--only", "--router", "test_bench:Broken")
    assert isinstance(done.exception, SettingsError)
    assert "router test_bench:Broken broke: IndexError" in str(done.exception) and "test_bench.py:" in str(done.exception)
    none = bench("json:loads", "--data", data, "--out", tmp_path)
    assert isinstance(none.exception, SettingsError) and "json:loads is no suite" in str(none.exception)


def test_missing_records_end_in_one_line(tmp_path: Path):
    for words in (("intercode", "--data", tmp_path), ("--data", tmp_path), ("no-such-suite", "--data", tmp_path)):
        done = bench(*words, "--out", tmp_path / "out")
        assert isinstance(done.exception, SettingsError) and "\n" not in str(done.exception)
    assert "--data" in str(bench("intercode", "--data", tmp_path).exception)


def test_records_are_found_where_they_usually_lie(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("R2V_BENCH_DATA", "R2V_SHARED"):
        monkeypatch.delenv(name, raising=False)
    assert "bench-data/" in str(bench("intercode").exception)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/data").symlink_to(data)
    assert "bench-data/" in str(bench("intercode").exception)
    monkeypatch.setenv("R2V_SHARED", str(tmp_path / "shared"))
    assert "both" in str(bench("intercode").exception)  # they are read: no agent in them was shown no reward


def test_the_list_names_every_suite_and_why_routers_are_left_out(tmp_path: Path):
    listed = bench("--list", "--data", tmp_path).output
    assert "intercode-verdict" in listed and "no records in" in listed
    assert "restart" in listed and "its fit needs" in listed


def test_all_suites_are_those_that_can_be_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert why_not("intercode", data) is None and why_not("mint", data) == f"no records in {data}"
    records = tmp_path / suite_named("agentdojo").path
    records.parent.mkdir(parents=True)
    records.touch()
    assert why_not("agentdojo", tmp_path) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'r2v[bench]'" in why_not("agentdojo", tmp_path)
    refused = bench("--data", tmp_path)  # and nothing else has records there
    assert refused.exit_code and "agentdojo is left out: agentdojo is not installed" in refused.output


def test_only_what_is_shown_the_verdict_has_one(data: Path):
    shown, hidden = (suite.verdicts for suite in (INTERCODE_VERDICT, INTERCODE))
    assert shown and not hidden
    known = [step.verdicts for e in INTERCODE_VERDICT.load(data, quiet).episodes for step in e.steps]
    assert any(known) and suite_named("intercode-verdict") is INTERCODE_VERDICT


def test_another_run_of_the_weak_model_stands_beside_the_routers(data: Path):
    episodes = INTERCODE_VERDICT.load(data, quiet).episodes
    assert again(episodes) is None
    solved = [e for e in episodes if e.success]
    runs = [*solved, *(replace(e, seed=1, success=i < len(solved) / 2) for i, e in enumerate(solved))]
    assert again(runs) == pytest.approx(0.75, abs=0.02)


def test_a_bill_reads_cached_what_the_same_model_has_read():
    bill = Bill({"a": LIST["gpt-4o"], "b": LIST["gpt-4"]})
    bill.call("a", 4_000_000, 0)
    assert bill.usd == pytest.approx(2.5)
    bill.call("a", 8_000_000, 4_000_000)
    assert bill.usd == pytest.approx(2.5 + 1.25 + 2.5 + 10)
    bill.call("b", 8_000_000, 0)  # the other model has read nothing of it
    assert bill.usd == pytest.approx(16.25 + 60)


@dataclass
class Steps:
    """Single steps: the one at which the weak model fails must be asked."""

    lengths: Sequence[int]

    def __call__(self, asked: Sequence[tuple[int, tuple[int, ...]]], progress: Any) -> list[Outcome]:
        return [Outcome(float(1 in steps), 1.0 + len(steps), len(steps), self.lengths[i]) for i, steps in asked]


def test_single_steps_are_counted_as_such(split: Split, tmp_path: Path):
    loaded = split.loaded
    play = Steps([len(e.steps) for e in loaded.episodes])
    stepped = Loaded([replace(e, success=False) for e in loaded.episodes], loaded.group_E, "teacher", play)
    steps = Split.of(stepped, "one_step", 0, quiet)

    class AtOne(RouterBase):
        def thresholds(self, validation: Sequence[Any], shares: Sequence[float]) -> list[float]:
            return [1.0]

        def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
            route = "escalate" if context.t == 1 else "continue"
            return Decision(route, "scheduled", None, None, None, 1.0, (), "")

    one = replace(entries()[0], name="second step", router=AtOne)
    found, _ = predict(steps, [one, *(e for e in entries() if e.name == RANDOM)], quiet)
    table = Table(steps, found, Seal.on(found, tmp_path / "p.json.gz"), quiet)
    row = row_of(table, "second step")
    assert row["share_strong"] == pytest.approx(1 / 3) and row["success"] == 1
    assert row["gain_over_random"] == pytest.approx(2 / 3, abs=0.1)  # a third of the steps at random finds a third of them
