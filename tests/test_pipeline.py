"""The whole pipeline, small but real: it runs, resumes, skips, repeats itself, and fails in one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from r2v.bench.suites import household
from r2v.gateway.routing import load_configured
from r2v.gateway.settings import RouteSettings
from r2v.pipeline.run_folder import folder_of
from r2v.pipeline.stages import STAGES
from r2v.runtime.executor import LocalProcesses
from r2v.runtime.store import read_episodes
from r2v.studies import compare

SETTINGS = """\
version: 1
workers: 1
threads: 1
environment: {house: small, receptacles: [4, 5], objects: [4, 6], horizon: 16, families: [pick_and_place_simple]}
tasks: {policy: 60, router: 16, validation: 8, test: 8}
perturbations: {strength: 0.3}
clone: {steps: 160, batch_tokens: 1024, checkpoint_every: 20}
propose: {tasks: 6}
prefer: {enabled: true}
router: {epochs: 5, reads: true}
evaluate: {asked_shares: [0.05, 0.3], resamples: 200, clairvoyant: 0, attacked_steps: 8}
"""


def r2v(*arguments: str, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", "from r2v.cli import app; app()", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


def results_of(folder: Path) -> dict:
    results = json.loads((folder / "8-evaluate" / "results.json").read_text())
    del results["provenance"]["times"]
    return results


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "tiny.yaml"
    path.write_text(SETTINGS)
    return path


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "one"
    done = r2v("run", str(settings), "--out", str(out))
    assert "report.html" in done.stdout
    return out


def test_every_stage_left_its_files_and_nothing_else(finished):
    for stage in STAGES:
        folder = finished / folder_of(stage.name)
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["outputs"]
        assert not (folder / "partial").exists()
    assert not [path for path in finished.rglob("*") if path.name.startswith(".") and path.name != ".lock"]
    assert (finished / "7-fit" / "r2v" / "router.json").exists()


def test_the_gateway_takes_a_router_with_what_it_was_fitted_with(finished):
    route = load_configured(RouteSettings(router=str(finished / "7-fit" / "r2v"))).route
    assert (route.verifier, route.k, route.horizon) == ("household", 5, 16)


def test_the_results_have_their_documented_shape(finished):
    results = results_of(finished)
    assert (results["protocol"], results["tasks"], results["perturbation_seeds"]) == (
        "closed_loop",
        8,
        [41, 42, 43, 44],
    )
    assert list(results["routers"]) == [
        "slm_only", "llm_only", "random", "entropy", "heuristic", "verifier", "r2v", "r2v_paper", "reading"
    ]  # fmt: skip
    for name, router in results["routers"].items():
        low, high = router["ci95"]
        assert 0 <= low <= router["success_rate"] <= high <= 1
        assert 0 <= router["llm_call_rate"] <= 1
        assert router["worst_seed_success"] <= router["success_rate"]
        assert router["broken"] == 0
        if name not in ("slm_only", "llm_only"):
            assert router["curve"][0][0] == 0.0
            assert router["curve"][-1][0] == 1.0
            assert 0 <= router["area"] <= 1
    assert results["routers"]["slm_only"]["llm_call_rate"] == 0.0
    assert results["routers"]["llm_only"]["llm_call_rate"] == 1.0
    assert set(results["differences"]) == {"random", "entropy", "heuristic", "verifier", "r2v_paper", "reading"}
    assert results["replay"]["routers"]["oracle"]["success_rate"] == 1.0


def test_runs_are_compared_side_by_side(finished, tmp_path):
    said = r2v("compare", str(finished), str(finished), "--out", str(tmp_path / "page"), "--json").stdout
    found = json.loads(said.splitlines()[-1])
    assert said.count("from scratch") == 4  # in the table of 80 columns, and in the line
    assert found == json.loads((tmp_path / "page" / "comparison.json").read_text())
    results = results_of(finished)["routers"]
    for row in found["rows"]:
        assert (row["slm"], row["teacher"]) == ("from scratch, 3 x 64", "expert")
        assert row["routers"]["r2v"]["success_rate"] == results["r2v"]["success_rate"]
        assert row["routers"]["slm_only"]["ci95"] == results["slm_only"]["ci95"]
    assert "differences" not in found["rows"][0]
    assert found["rows"][1]["differences"]["r2v"] == {"success": 0.0, "ci95": [0.0, 0.0]}
    assert "from scratch, 3 x 64" in (tmp_path / "page" / "comparison.html").read_text()


def test_runs_under_other_conditions_are_not_paired(finished, tmp_path):
    """The same tasks and seeds, but more steps and stronger disturbance: another episode each."""
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    settings = yaml.safe_load((other / "settings.yaml").read_text())
    settings["environment"]["horizon"] += 10
    settings["perturbations"] |= {"strength": 2.0, "test_severities": [0.5, 1.0]}
    (other / "settings.yaml").write_text(yaml.safe_dump(settings))
    said = r2v("compare", str(finished), str(other), "--out", str(tmp_path / "page"), "--json").stdout
    found = json.loads(said.splitlines()[-1])
    assert not found["same_tasks"] and "differences" not in found["rows"][1]
    for name in ("environment.horizon: 16, 26", "perturbations.strength: 0.3, 2.0", "severities of the test: [], [0.5,1.0]"):
        assert name in found["differs"]
    assert "tasks or perturbation seeds" not in found["differs"]
    assert "are not paired, because the runs differ in environment.horizon" in " ".join(said.split())
    assert "differ in environment.horizon" in (tmp_path / "page" / "comparison.html").read_text()


def test_what_cannot_be_compared_is_one_line(finished, refused, tmp_path):
    assert "did not evaluate benefit; it has slm_only, llm_only" in refused("compare", finished, "--router", "benefit")
    assert "is not a run" in refused("compare", finished, tmp_path)


def test_differences_of_runs_are_paired_over_tasks():
    """Of three tasks under two seeds, the second run solves one episode more of the first task, and one less of none."""
    cells = [(task, seed, "flaky") for task in "abc" for seed in (1, 2)]
    first = dict.fromkeys(cells, False) | {("b", 1, "flaky"): True}
    found = compare.difference(first | {("a", 1, "flaky"): True}, first)
    assert found["success"] == pytest.approx(1 / 6) and found["ci95"] == [0.0, 0.5]


def test_splits_and_seeds_are_disjoint(finished):
    splits = json.loads((finished / "1-collect" / "tasks.json").read_text())
    ids = [task["id"] for tasks in splits.values() for task in tasks]
    assert len(ids) == len(set(ids)) == 92
    from r2v.runtime.store import read_episodes

    seeds = {
        stage: {e.seed for e in read_episodes(finished / folder_of(stage) / f"{file}.parquet")}
        for stage, file in (("perturb", "episodes"), ("rollout", "router"), ("evaluate", "episodes"))
    }
    assert not seeds["perturb"] & seeds["rollout"] and not seeds["rollout"] & seeds["evaluate"]
    for episode in read_episodes(finished / "6-rollout" / "router.parquet"):
        assert all(step.seed == episode.seed != 0 and step.choice.source == "slm" for step in episode.steps)


def test_a_second_run_does_nothing(finished, settings):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("manifest.json")}
    assert r2v("run", str(settings), "--out", str(finished)).stdout.count("up to date") == len(STAGES)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("manifest.json")} == before


def test_a_run_killed_again_and_again_ends_with_the_same_numbers(finished, settings, tmp_path):
    """kill -9 between two agents of a stage, amid cloning, fitting and evaluating, and when a model was saved."""
    out = tmp_path / "killed"
    command = [sys.executable, "-c", "from r2v.cli import app; app()", "run", str(settings), "--out", str(out)]
    command += ["--set", "workers=2"]
    for wanted in (
        "1-collect/partial/plain-0.json",
        "3-clone/partial/clone.pt",
        "3-clone/model",
        "5-prefer/model",
        "7-fit/r2v/router.json",
        "8-evaluate/partial/fingerprint",
    ):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        deadline = time.monotonic() + 600
        while not (out / wanted).exists():
            assert process.poll() is None, f"finished before {wanted} appeared"
            assert time.monotonic() < deadline
            time.sleep(0.002)  # the shortest-lived of these files is there for half a second
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    r2v("run", str(settings), "--out", str(out))
    assert results_of(out) == results_of(finished)


def test_changing_a_setting_runs_only_what_depends_on_it(finished, settings, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    kept = r2v("run", str(settings), "--out", str(copy), "--set", "evaluate.resamples=300", "--until", "rollout")
    assert kept.stdout.count("up to date") == 6
    changed = r2v("run", str(settings), "--out", str(copy), "--set", "prefer.learning_rate=1e-5", "--until", "prefer")
    assert changed.stdout.count("up to date") == 4
    assert "the SLM was chosen" in changed.stdout


SCIENCE = [
    "random", "entropy", "heuristic", "verifier", "rules", "r2v", "r2v_paper", "benefit", "helper", "query", "cascade",
    "cascade_routing", "judge_latch", "conformal", "bandit", "restart", "reading", "recorded",
]  # fmt: skip


@pytest.fixture(scope="module")
def science(finished, settings, tmp_path_factory) -> Path:
    """The same run with every router and the clairvoyant bound: the small model is not trained again."""
    out = tmp_path_factory.mktemp("science") / "run"
    shutil.copytree(finished, out)
    done = r2v("run", str(settings), "--out", str(out), "--set", "routers=all", "--set", "evaluate.clairvoyant=30")
    assert done.stdout.count("up to date") == 5
    return out


def test_every_router_is_fitted_played_and_compared_at_equal_calls(science):
    results = results_of(science)
    assert list(results["routers"]) == ["slm_only", "llm_only", *SCIENCE]
    assert set(results["differences"]) == set(SCIENCE) - {"r2v"}
    for name in SCIENCE:
        router = results["routers"][name]
        assert router["broken"] == 0
        assert set(router["at_calls"]) == {"0.5", "1", "2", "3", "4"}
        assert all(0 <= success <= 1 for success in router["at_calls"].values())
        assert [point[0] for point in router["points"]] == json.loads((science / "7-fit" / "thresholds.json").read_text())[
            "routers"
        ][name]["grid"]
    for difference in results["differences"].values():
        assert all(d["ci95"][0] <= d["success"] <= d["ci95"][1] for d in difference["at_calls"].values())
    assert set(SCIENCE) - set(results["replay"]["routers"]) == {"cascade_routing", "restart"}  # they draw anew


def test_the_clairvoyant_bound_is_a_bound(science):
    results = results_of(science)
    bound = results["clairvoyant"]
    assert sum(bound["saved_by"].values()) == pytest.approx(1)
    alone = results["routers"]["slm_only"]["success_rate"]
    assert bound["saved_by"]["0"] == pytest.approx(alone)
    assert alone <= bound["success_rate"] <= 1
    if bound["searched"] == round((1 - alone) * results["tasks"] * 4):  # nothing was sampled away
        for router in results["routers"].values():
            if router["calls_per_episode"] <= bound["calls_per_episode"]:
                assert router["success_rate"] <= bound["success_rate"] + 1e-9


def test_no_routed_episode_has_more_calls_than_the_limit(finished, settings, tmp_path):
    out = tmp_path / "limited"
    shutil.copytree(finished, out)
    limits = ("routers=[random, r2v]", "router.reads=false", "evaluate.max_calls=2", "evaluate.state_oracle=1",
              "evaluate.state_oracle_futures=1")  # fmt: skip
    r2v("run", str(settings), "--out", str(out), *(part for limit in limits for part in ("--set", limit)))
    results = results_of(out)
    assert results["max_calls"] == 2 and results_of(finished)["max_calls"] is None
    assert list(results["routers"])[:3] == ["slm_only", "llm_only", "llm_first"]
    for name in ("random", "r2v"):
        assert all(calls <= 2 for _, calls, _ in results["routers"][name]["points"])
        assert results["routers"][name]["curve"][-1][0] < 1  # it ends at llm_first
    calls, spent = {}, set()
    for episode in read_episodes(out / "8-evaluate" / "episodes.parquet"):
        asked = sum(step.choice.teacher.calls for step in episode.steps)
        calls.setdefault(episode.agent, []).append(asked)
        if episode.agent == "llm_first" and len(episode.steps) > 2:
            assert [step.choice.decision.code for step in episode.steps[2:]] == ["budget_exhausted"] * len(episode.steps[2:])
            spent.add(f"{episode.task.id}@{episode.seed}")
    assert {name: max(made) for name, made in calls.items()}["expert"] > 2  # the teacher alone has no limit
    assert all(max(calls[agent]) <= 2 for agent in calls if agent != "expert") and max(calls["llm_first"]) == 2
    oracle = results["state_oracle"]
    assert (oracle["episodes"], oracle["futures"]) == (1, 1)
    assert all(0 <= made <= 2 and 0 <= success <= 1 for _, made, success in oracle["points"])
    assert "no call is left" in r2v("explain", str(out), max(spent), "--router", "llm_first").stdout


def test_certify_says_what_is_proven_and_for_what(science, finished, tmp_path):
    path = tmp_path / "certificate.json"
    common = ("certify", str(science), "--out", str(path), "--fresh-tasks", "16", "--router", "cascade", "--json")
    done = r2v(*common, "--max-failure", "1", "--delta", "0.3")
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["threshold"] in [tried["threshold"] for tried in last["tried"]]
    assert last["tasks"] == 16 and min(last["perturbation_seeds"]) >= 1_000_000_000_000
    assert json.loads(path.read_text())["identity"] == last["identity"]
    none = json.loads(r2v(*common, "--max-failure", "0.0", "--cvar", "0.5").stdout.splitlines()[-1])
    assert none["threshold"] is None and none["target"]["alpha"] == 0.5
    assert "no threshold" in r2v("certify", str(science), "--verify", str(path)).stdout
    other = r2v("certify", str(finished), "--verify", str(path), check=1)
    assert "another router" in other.stderr and other.stderr.count("\n") == 1
    assert "no router" in r2v("certify", str(finished), "--router", "helper", check=1).stderr


def test_ablate_makes_every_table(science):
    done = r2v("ablate", str(science))
    assert "ablation.html" in done.stdout
    made = json.loads((science / "ablation" / "ablation.json").read_text())
    rows = {name: [row["name"] for row in table] for name, table in made["tables"].items()}
    assert len(rows["cvar"]) == 30 and len(rows["features"]) == 9
    assert rows["unseen"] == ["flaky", "partial", "inject", "distract"]
    assert rows["consistency"] == ["0", "0.05", "0.2", "0.5", "1"] and rows["k"] == ["2", "3", "5", "8"]
    assert rows["routes"] == ["retry", "escalate", "escalate_3", "takeover", "restart", "rewind"]
    assert rows["labels"][-1] == "teacher differs"
    for name, table in made["tables"].items():
        for row in table:
            assert 0 <= row["success_rate"] <= 1 and 0 <= row["llm_call_rate"] <= 1
            if "replay" in row and name != "unseen":  # asking never hurts there
                assert row["replay"]["success_rate"] >= row.get("slm_only", made["slm_only"]) - 1e-9
    page = (science / "ablation" / "ablation.html").read_text()
    assert "replay (optimistic)" in page and "without_verifier" in page and "62.6 %" in page
    assert not (science / "ablation" / "partial").exists()
    assert "ablation-closed" in r2v("ablate", str(science), "--only", "closed").stdout
    alone = json.loads((science / "ablation-closed" / "ablation.json").read_text())["tables"]
    assert list(alone) == ["closed"]
    for row, before in zip(alone["closed"], made["tables"]["closed"], strict=True):  # other batches round otherwise
        assert row["success_rate"] == before["success_rate"] and row["ece"] == pytest.approx(before["ece"], abs=1e-6)


def test_the_bench_plays_a_run_on_fresh_tasks_beside_random_and_step_0(finished, tmp_path):
    found = household.bench(finished, 4, seed=7, out=tmp_path / "kept")
    rows = {row["router"]: row for row in found["rows"]}
    assert (found["suite"], found["facts"]["episodes"]) == ("household", 16)
    assert list(rows) == list(results_of(finished)["routers"])
    assert (rows["slm_only"]["share_strong"], rows["llm_only"]["share_strong"]) == (0, 1)
    assert all(row["ci95"][0] <= row["success"] <= row["ci95"][1] for row in rows.values())
    paid = [row["usd_per_solved"] for row in rows.values() if row["success"]]
    assert paid and all(usd > 0 for usd in paid)
    for name, nulls in found["nulls"].items():
        for null in (nulls["random"], nulls["step_0"]):
            assert null["success"] + null["gain"] == pytest.approx(rows[name]["success"])
    kept = json.loads((tmp_path / "kept/results.json").read_text())["routers"]
    assert {name: row["success"] for name, row in rows.items()} == {name: r["success_rate"] for name, r in kept.items()}


def test_fresh_tasks_are_new_and_have_the_same_shape(finished, tmp_path):
    out = tmp_path / "fresh"
    r2v("evaluate", str(finished), "--fresh-tasks", "4", "--seed", "7", "--out", str(out))
    fresh = json.loads((out / "results.json").read_text())
    assert fresh.keys() == results_of(finished).keys()
    assert fresh["tasks"] == 4
    assert min(fresh["perturbation_seeds"]) >= 1_000_000
    assert (out / "report.html").exists()


def test_explain_prints_the_decisions(finished, refused):
    listing = r2v("explain", str(finished)).stdout
    assert "32 episodes of r2v" in listing
    results = json.loads((finished / "1-collect" / "tasks.json").read_text())
    task = results["test"][0]["id"].rsplit("/", 1)[1]
    shown = r2v("explain", str(finished), f"{task}@41").stdout
    assert "goal " in shown and "r2v " in shown and "score" in shown
    assert "no episode" in refused("explain", finished, "nonsense")


def test_damage_is_one_line_and_a_failure(finished, settings, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    episodes = copy / "1-collect" / "episodes.parquet"
    whole = episodes.read_bytes()
    episodes.write_bytes(whole[:-5])
    done = r2v("run", str(settings), "--out", str(copy), check=1)
    assert done.stderr.count("\n") == 1
    assert "damaged" in done.stderr and "1-collect" in done.stderr
    episodes.write_bytes(whole)
    (copy / "7-fit" / "r2v" / "router.json").unlink()
    assert "missing" in r2v("evaluate", str(copy), "--fresh-tasks", "4", "--out", str(tmp_path / "x"), check=1).stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 1\nenvironment: {data: /nowhere}", "ALFWORLD_DATA"),
        (
            "version: 1\nteacher: {kind: chat, base_url: http://x/v1, model: m, api_key_env: R2V_NO_SUCH_KEY}",
            "R2V_NO_SUCH_KEY",
        ),
    ],
)
def test_bad_settings_are_one_line(refused, tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert message in refused("run", path, "--out", tmp_path / "out")


def test_missing_files_are_one_line(refused, tmp_path):
    assert "does not exist" in refused("run", tmp_path / "no.yaml", "--out", tmp_path / "o")
    assert "is not a run" in refused("evaluate", tmp_path, "--fresh-tasks", "4", "--out", tmp_path / "o")
    assert "does not exist" in refused("explain", tmp_path)


def test_a_full_disk_is_one_line(settings):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    code = (
        "import r2v.runtime.store, pathlib, builtins, r2v.cli as c, sys\n"
        "class Full(type(pathlib.Path())):\n"
        "    def write_text(self, *a, **k):\n"
        "        with open('/dev/full', 'w') as f: f.write('x' * 100_000)\n"
        "r2v.runtime.store.Path = Full\n"
        "original = r2v.runtime.store.whole_file\n"
        "from contextlib import contextmanager\n"
        "@contextmanager\n"
        "def whole(path):\n"
        "    with original(path) as aside: yield Full(aside)\n"
        "r2v.runtime.store.whole_file = whole\n"
        "sys.argv = ['r2v', 'run', sys.argv[1], '--out', sys.argv[2]]\n"
        "c.app()\n"
    )
    import tempfile

    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run([sys.executable, "-c", code, str(settings), out], capture_output=True, text=True)
    assert done.returncode == 1
    assert "the disk is full" in done.stderr
    assert done.stderr.count("\n") == 1


def test_two_runs_in_one_folder_do_not_meet(settings, tmp_path):
    from r2v.core.errors import StageError
    from r2v.pipeline.runner import locked

    with locked(tmp_path), pytest.raises(StageError, match="another r2v process"), locked(tmp_path):
        pass


def test_what_somebody_else_left_in_a_folder_stays(settings, refused, tmp_path):
    from rich.console import Console

    from r2v.core.errors import StageError
    from r2v.pipeline.runner import study

    run, mine = tmp_path / "run", tmp_path / "mine"
    run.mkdir()
    shutil.copy(settings, run / "settings.yaml")
    (mine / "partial").mkdir(parents=True)
    (mine / "notes.txt").touch()
    (mine / "partial" / "draft.txt").touch()
    for fingerprint in (None, "of the run"):
        with (
            pytest.raises(StageError, match="is not r2v's own; remove it, or choose another --out"),
            study(run, mine, "evaluate", Console(quiet=True), fingerprint=fingerprint),
        ):
            pass
    (mine / "partial" / "draft.txt").rename(mine / "draft.txt")
    for fingerprint in (None, "of the run"):
        with study(run, mine, "evaluate", Console(quiet=True), fingerprint=fingerprint):
            pass
    assert "is no folder of `r2v ablate`; choose another --out" in refused("ablate", run, "--out", mine)
    assert "no table is called closd; there are features" in refused("ablate", run, "--only", "closd")
    (twice := run / "ablation-k-cvar").mkdir()
    (twice / "notes.txt").touch()
    said = refused("ablate", run, *("--only", "k") * 2, "--only", "cvar", "--only", "k")
    assert f"{twice} exists and is no folder of `r2v ablate`" in said
    assert {path.name for path in mine.iterdir()} == {".lock", "notes.txt", "draft.txt"}


def _sleep(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


def _fails_first(job: int) -> None:
    if not job:
        raise ValueError("the first job")
    time.sleep(0.02)


def test_a_failed_job_ends_the_others_without_breaking_the_pools_own_thread():
    """An exception in that thread fails whichever test runs at that moment (see conftest)."""
    for _ in range(3):
        with pytest.raises(ValueError, match="the first job"), LocalProcesses(2) as pool:
            pool.map(_fails_first, range(200), lambda *_: None)
        for thread in threading.enumerate():
            if type(thread).__name__ == "_ExecutorManagerThread":
                thread.join(10)


@pytest.mark.skipif(not Path("/proc").exists(), reason="no /proc on this system")
def test_workers_end_with_the_run_that_was_killed(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_pipeline import _sleep\n"
        "from r2v.runtime.executor import LocalProcesses\n"
        "if __name__ == '__main__':\n"
        "    with LocalProcesses(1) as pool: pool.map(_sleep, [sys.argv[2]], lambda *_: None)\n"
    )
    script, mark = tmp_path / "main.py", tmp_path / "pid"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script), str(Path(__file__).parent), str(mark)])
    deadline = time.monotonic() + 60
    while not (mark.exists() and mark.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    worker = int(mark.read_text())
    while Path(f"/proc/{worker}").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the worker lives on"
        time.sleep(0.1)


def test_the_order_of_stages_cannot_lie():
    seen: set[str] = set()
    for stage in STAGES:
        assert set(stage.reads) <= seen, f"{stage.name} reads what no earlier stage writes"
        seen.add(stage.name)
    shown = r2v("stages").stdout
    assert [line.split()[0] for line in shown.splitlines()] == [folder_of(stage.name) for stage in STAGES]


def test_help_names_every_command():
    text = r2v("--help").stdout
    assert all(command in text for command in ("run", "evaluate", "explain", "stages"))


def test_a_run_of_r2v_0_1_is_refused_with_the_way_on(finished, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(finished, old)
    manifest = old / "7-fit" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "r2v": "0.1.0"}))
    done = r2v("evaluate", str(old), "--fresh-tasks", "4", "--out", str(tmp_path / "fresh"), check=1)
    assert "r2v run" in done.stderr and "0.1" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_run_of_three_models_takes_up_the_slm_of_a_pair(finished, tmp_path):
    """With another pool the SLM is not trained again, and what the medium model would do is tried as the teacher's is."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "pool.yaml").write_text(
        SETTINGS.replace("reads: true", "reads: false")
        + "pool: {medium: {mistakes: 0.3}}\nprices: {pool: {medium: 10}}\nhelp: {rates: [0.3], explore_seeds: 1}\n"
        + "routers: [r2v, pool_benefit, pool_bandit, pool_cascade_routing]\n"
    )
    done = r2v("run", str(tmp_path / "pool.yaml"), "--out", str(tmp_path / "run"))
    assert "5-prefer    up to date" in done.stdout + done.stderr
    rollout, results = tmp_path / "run" / "6-rollout", results_of(tmp_path / "run")
    teacher, medium = (json.loads((rollout / name).read_text()) for name in ("help.json", "help-medium.json"))
    assert teacher["unlike_teacher"] is None and teacher["differs"] != medium["differs"]
    assert [len(row) for row in medium["unlike_teacher"][0]] == [len(row) for row in medium["differs"]]
    assert any(any(row) for row in medium["unlike_teacher"][0]) and (rollout / "explored-medium.parquet").exists()
    routers = results["routers"]
    assert list(routers) == [
        "slm_only",
        "llm_only",
        "medium_only",
        "r2v",
        "pool_benefit",
        "pool_bandit",
        "pool_cascade_routing",
    ]
    alone, best = routers["medium_only"], routers["llm_only"]
    assert alone["llm_call_rate"] == 1.0 and alone["calls_per_episode"] == pytest.approx(alone["steps_per_episode"] / 5)
    assert set(alone["calls_by_model"]) == {"medium"} and alone["success_rate"] <= best["success_rate"]
    for name in ("pool_benefit", "pool_bandit", "pool_cascade_routing"):
        calls = routers[name]["calls_by_model"]
        equal = calls.get("medium", 0) / 5 + calls.get("teacher", 0)
        assert set(calls) <= {"medium", "teacher"} and routers[name]["calls_per_episode"] == pytest.approx(equal)
        assert load_configured(RouteSettings(router=str(tmp_path / "run" / "7-fit" / name)), ("medium", "teacher"))
    assert results["text_attacks"]["r2v"]["orders"]["steps"] and "medium_only" not in results["replay"]["routers"]
