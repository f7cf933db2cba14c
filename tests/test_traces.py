"""Recorded trajectories: risk without a look at the future, replays that make nothing up, real recordings where present."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import lzma
import re
import shutil
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from r2v.cli import cli
from r2v.clients.recorded import RecordedPolicy
from r2v.core.agent import Solo
from r2v.core.checks import check_environment, check_policy
from r2v.core.errors import ArtifactError, NotRecorded, StageError
from r2v.core.groups import folds
from r2v.core.loop import run_episode
from r2v.core.types import Action, Memory
from r2v.domains.household.env import Household
from r2v.domains.household.games import load_game
from r2v.domains.recorded import RecordedTask
from r2v.evaluation.prefixes import Scored, by_prefix, measures
from r2v.logs.importing import import_logs
from r2v.maths.calibration import brier, ece
from r2v.maths.stats import auroc, auroc_B
from r2v.pipeline.settings import RunSettings
from r2v.report.inspection import headline, rise, write_inspection
from r2v.report.inspection_figures import auroc_by_prefix, risk_curves
from r2v.runtime.settings import load
from r2v.runtime.store import read_episodes
from r2v.studies.inspect_logs import inspect_logs

ROOT = Path(__file__).parent.parent
HOSTILE = "</script><img src=x onerror=alert(1)>"


def benchmark(name):
    sys.path.insert(0, str(ROOT / "benchmarks"))  # as when it is run: they share a module
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def episode(i: int, *, stuck: bool, success: bool, steps: int = 6, late: str = "", word: str = "try") -> dict:
    """A stuck episode repeats itself from step 2 on; `late` is said from step 4 on."""
    messages = [{"role": "user", "content": f"do thing {i} {HOSTILE}"}]
    for t in range(steps):
        said = "again" if stuck and t > 2 else f"{word} {i * 7 + t}"
        seen = ("Error" if stuck and t > 1 else f"ok {i * t}") + (late if t >= 4 else "")
        messages += [
            {"role": "assistant", "content": said + (late if t >= 4 else "")}, {"role": "user", "content": seen}
        ]  # fmt: skip
    return {"messages": messages, "success": success, "task": f"t{i // 2}", "model": "ab"[i % 2]}


def made(path: Path, episodes: int = 160, seed: int = 0, **changed) -> Path:
    """Two episodes a task; being stuck and the outcome agree in three of four. `changed` are changes of episode 8."""
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(episodes):
        stuck = bool(rng.random() < 0.5)
        raw = {"stuck": stuck, "success": bool(rng.random() < (0.25 if stuck else 0.75))}
        lines.append(json.dumps(episode(i, **(raw | changed if i == 8 else raw))))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def inspected(tmp_path_factory):
    """Episodes, and what inspecting them gives."""
    episodes, _ = import_logs(made(tmp_path_factory.mktemp("log") / "log.jsonl"), "openai-jsonl")
    return episodes, inspect_logs(episodes)


def test_a_risk_does_not_know_the_future(inspected, tmp_path):
    """Neither later texts (long enough to change what is kept of earlier ones) nor the outcome of an episode matter."""

    def changed(**how) -> tuple[bool | None, list[float]]:
        episodes, _ = import_logs(made(tmp_path / "log.jsonl", **how), "openai-jsonl")
        return episodes[8].success, inspect_logs(episodes).risks[8]

    success, was = inspected[0][8].success, inspected[1].risks[8]
    _, later = changed(late="x" * 40_000)
    assert later[:4] == was[:4]
    assert later[5] != was[5], "the change was not seen at all"
    assert changed(success=not success) == (not success, was)


def test_a_goal_is_not_known_before_it_is_said(tmp_path):
    messages = [{"role": "assistant", "content": "Hi! How can I help?"}, {"role": "user", "content": "book a flight"},
                {"role": "assistant", "content": "Where to?"}, {"role": "user", "content": "Rome"}]  # fmt: skip
    (tmp_path / "log.jsonl").write_text(json.dumps({"messages": messages, "success": True, "task": "a"}))
    (found,), _ = import_logs(tmp_path / "log.jsonl", "openai-jsonl")
    goal_lengths = [step.choice.features.values[14] for step in found.steps]
    assert goal_lengths == [0.0, 0.013]


def test_no_task_is_in_two_folds():
    task_N = np.random.default_rng(0).integers(0, 60, 500)
    fold_N = folds(np.unique(task_N, return_inverse=True)[1], 5, 3)
    assert all(len(set(fold_N[task_N == task])) == 1 for task in range(60))
    assert set(fold_N) == set(range(5))


def scored(n: int = 400, seed: int = 0) -> Scored:
    """Episodes of 1 to 8 steps; the longer, the likelier failed. The risk is the step index and nothing else."""
    rng = np.random.default_rng(seed)
    rows = [
        (t, failed, i // 4, i)
        for i, length in enumerate(rng.integers(1, 9, n))
        for failed in [float(rng.random() < length / 9)]
        for t in range(length)
    ]
    t, y, task, owner = (np.array(column) for column in zip(*rows, strict=True))
    return Scored(t / 10, y, t, task, owner)


def test_counting_steps_looks_good_overall_and_is_chance_at_every_step():
    steps = scored()
    assert measures(steps, seed=0)["auroc_ci95"][0] > 0.5
    for row in by_prefix(steps, seed=0):
        assert row["auroc"] is None or row["auroc"] == pytest.approx(0.5)
    assert [row["episodes"] for row in by_prefix(steps, seed=0)] == [int((steps.t_N == t).sum()) for t in range(8)]


def test_measures_are_those_of_the_plain_functions_and_intervals_cover():
    steps = scored().scored_by(np.random.default_rng(1).random(len(scored().y_N)))
    found = measures(steps, seed=0)
    assert found["auroc"] == pytest.approx(auroc(steps.p_N, steps.y_N))
    assert found["brier"] == pytest.approx(brier(steps.p_N, steps.y_N))
    assert found["ece"] == pytest.approx(ece(steps.p_N, steps.y_N))
    for name in ("auroc", "brier"):  # the bootstrap's ECE is biased upwards: its interval need not hold the value
        low, high = found[f"{name}_ci95"]
        assert low < found[name] < high


def test_weighted_auroc_is_the_auroc_of_repeated_rows():
    rng = np.random.default_rng(2)
    score, y, task = rng.integers(0, 6, 80) / 6, (rng.random(80) < 0.4).astype(float), rng.integers(0, 9, 80)
    weights = np.vstack([rng.integers(0, 4, 9).astype(float), np.zeros(9)])
    times = weights[0, task].astype(int)
    found = auroc_B(score, y, task, weights)
    assert found[0] == pytest.approx(auroc(np.repeat(score, times), np.repeat(y, times)))
    assert np.isnan(found[1])


def test_inspect_tells_what_the_risk_is_worth_and_shows_hostile_text_as_text(tmp_path):
    log = made(tmp_path / "log.jsonl")
    asked = ["inspect", str(log), "--format", "openai-jsonl", "--out", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(cli, asked)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == json.loads((tmp_path / "out/inspect.json").read_text())
    assert told["overall"]["episodes"] == 160 and told["overall"]["groups"] == 80
    rows = {row["t"]: row for row in told["by_prefix"]}
    assert len(rows) == 6 and rows[5]["auroc_ci95"][0] > 0.55  # stuck is seen
    assert rows[0]["auroc_ci95"][0] < 0.5 < rows[0]["auroc_ci95"][1] + 0.05  # at step 0 there is nothing to see
    assert told["without_looking"]["step index (= share of the horizon)"]["auroc"] == pytest.approx(0.5)
    assert set(told["by_model"]) == {"a", "b"}
    page = (tmp_path / "out/inspect.html").read_text()
    assert "onerror" in page and HOSTILE not in page and "<img" not in page
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page)


def test_of_several_models_the_headline_is_what_is_left_within_each(inspected):
    _, found = inspected
    within, rows = found.results["auroc_equal_step_within_model"], found.results["by_prefix"]
    said = headline(found.results)
    assert f"of one model the risk separates failing from solved with AUROC {within['auroc']:.2f} (" in said
    assert f"Across models it is {rows[0]['auroc']:.2f} at step 0" in said and "knowing the model alone, " in said
    weak = {**found.results, "auroc_equal_step_within_model": {"auroc": 0.53, "auroc_ci95": [0.45, 0.77]}}
    assert "0.53 (0.45 to 0.77); nothing here shows that the risk knows more than the model." in headline(weak)
    none = {**found.results, "auroc_equal_step_within_model": {"auroc": None, "auroc_ci95": None}}
    assert headline(none).startswith("Within no model there are failed and solved episodes")
    one = headline({**found.results, "auroc_equal_step_within_model": None})
    assert one.startswith("Among episodes of the same age") and "model" not in one


def test_no_legend_lies_on_the_data(inspected):
    _, found = inspected
    for draw in (risk_curves, auroc_by_prefix):
        figure = draw(found.results)
        figure.canvas.draw()
        (legend,), axes = figure.legends, figure.axes
        assert not any(one.get_legend() for one in axes)
        assert legend.get_window_extent().y0 >= axes[0].get_window_extent().y1


def test_the_page_counts_tasks_and_their_groups(inspected, tmp_path):
    episodes, found = inspected
    for groups, shown in ((80, "160 recorded episodes of 80 tasks by 2"), (9, "of 80 tasks in 9 groups of alike ones by 2")):
        page = write_inspection(
            found.results | {"groups": groups, "unknown_outcome": 0}, episodes, found.risks, tmp_path, title="x"
        )
        assert shown in page.read_text()


def test_views_without_log_probabilities_lose_nothing_that_a_black_box_has(inspected):
    episodes, full = inspected[0], inspected[1].results["overall"]
    assert inspect_logs(episodes, view="no_entropy").results["overall"] == full
    # With one candidate a step the stand-in for the entropy is the constant 0: present, and empty.
    assert inspect_logs(episodes, view="pseudo_entropy").results["overall"]["auroc"] == pytest.approx(
        full["auroc"], abs=0.03
    )


def test_too_few_episodes_are_refused(tmp_path):
    episodes, _ = import_logs(made(tmp_path / "log.jsonl", episodes=40), "openai-jsonl")
    with pytest.raises(StageError, match="40 episodes of 20 tasks in 20 groups of alike ones"):
        inspect_logs(episodes)


def test_where_the_risk_rises():
    assert rise([0.5, 0.2, 0.3, 0.9, 0.4]) == (pytest.approx(0.7), 3)
    assert rise([0.5, 0.4]) == (0.0, 0)
    assert rise([0.5]) == (0.0, 0)


def test_the_other_formats(tmp_path):
    room = "You are in the middle of a room. Looking quickly around you, you see a shelf 1."
    walk = {
        "task": "pick-Mug/trial_1",
        "model": "m",
        "iteration": "D0",
        "success": False,
        "intro": f"{room}\nYour task is to: put a mug in shelf.",
        "steps": [{"thoughts": ["Think: hm"], "action": "go to shelf 1", "observation": "On the shelf 1, you see nothing."}],
    }
    (tmp_path / "k.jsonl").write_text(json.dumps(walk))
    (found,), _ = import_logs(tmp_path / "k.jsonl", "knowagent-alfworld")
    assert (found.goal, found.agent, found.success) == ("put a mug in shelf.", "m D0", False)
    assert found.steps[0].choice.action == Action("go to shelf 1") and found.steps[0].choice.scores[0] > 0.5
    turns = {"task": "gsm8k/1", "model": "m", "teacher": "big", "feedback_kind": "textual", "success": True,
             "steps": [{"action": "a", "observation": "o"}, {"action": "b"}]}  # fmt: skip
    (tmp_path / "m.jsonl").write_text(json.dumps(turns))
    with pytest.raises(ArtifactError, match=r"tasks\.jsonl\.xz does not exist"):
        import_logs(tmp_path / "m.jsonl", "mint")
    with lzma.open(tmp_path / "tasks.jsonl.xz", "wt") as file:
        file.write(json.dumps({"task": "gsm8k/1", "prompt": "How many?"}))
    (found,), _ = import_logs(tmp_path / "m.jsonl", "mint")
    assert (found.goal, found.agent, len(found.steps)) == ("How many?", "m + textual of big", 2)


def recorded(tmp_path: Path, name: str, turns: list[tuple[str, str]], success: bool):
    messages = [{"role": "user", "content": "the goal"}]
    for said, seen in turns:
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": seen}]
    raw = {"messages": messages, "success": success, "task": "t", "model": name}
    (tmp_path / "log.jsonl").write_text(json.dumps(raw))
    return import_logs(tmp_path / "log.jsonl", "openai-jsonl")[0][0]


@pytest.fixture
def two(tmp_path):
    """Two models that part at step 1."""
    slm = recorded(tmp_path, "slm", [("look", "a door"), ("kick it", "ouch"), ("cry", "the end")], False)
    return slm, recorded(tmp_path, "teacher", [("look", "a door"), ("open it", "a room")], True)


def play(agent, environment, episode):
    return asyncio.run(
        run_episode(environment, agent, episode.task, seed=0, perturbation="none", horizon=9, memory=Memory())
    )


def test_a_replay_is_the_recording(two):
    for original in two:
        again = play(Solo(RecordedPolicy("x", [original]), "slm"), RecordedTask(two), original)
        assert [s.choice.action for s in again.steps] == [s.choice.action for s in original.steps]
        assert (again.success, again.stop) == (original.success, "done")


def test_what_nobody_recorded_is_a_failure_that_says_so(two):
    slm, teacher = two
    lost = play(Solo(RecordedPolicy("the 13B", [slm]), "slm"), RecordedTask([teacher]), slm)
    assert lost.success is None and lost.failure.boundary == "environment" and lost.failure.kind == "NotRecorded"
    assert "'kick it'" in lost.failure.message
    silent = play(Solo(RecordedPolicy("the 13B", []), "slm"), RecordedTask(two), slm)
    assert silent.failure.boundary == "slm" and "the 13B has no recorded action for step 0" in silent.failure.message


def test_recorded_parts_keep_their_contracts(two):
    contexts = two[0].contexts(5)
    asyncio.run(check_policy(RecordedPolicy("x", two), contexts[1]))
    asyncio.run(check_environment(lambda: RecordedTask(two), ["look", "open it", "more"]))
    drawn = {
        c.action.text for seed in range(20) for c in asyncio.run(RecordedPolicy("x", two).propose(contexts[1], 3, seed=seed))
    }
    assert drawn == {"kick it", "open it"}
    other = two[1].contexts(5)[1]
    with pytest.raises(NotRecorded):
        asyncio.run(RecordedPolicy("x", []).propose(other, 2, seed=0))


def test_handing_over_from_the_start_reaches_what_the_teacher_reached(tmp_path):
    """With every threshold below every risk the routed success is the teacher's, and nothing is missing."""
    slm, _ = import_logs(made(tmp_path / "log.jsonl", episodes=160), "openai-jsonl")
    slm = slm[::2]
    raw = [
        json.dumps(episode(2 * i, stuck=False, success=i % 10 > 0, steps=2, word="do") | {"model": "t"}) for i in range(80)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(raw))
    teacher, _ = import_logs(tmp_path / "t.jsonl", "openai-jsonl")
    module = benchmark("replay_real_slm")
    module.SHARES = (0.2, 1.0)
    found = module.study(slm, teacher)
    by_kind = {(row["hands over"], i % 2): row for i, row in enumerate(found["routed"])}
    for label in ("query level", "from the start"):
        row = by_kind[label, 1]
        assert row["handed over"] == 1 and row["success"] == found["teacher alone"]["success"] == 0.9
        assert (row["not recorded"], row["other failures"]) == (0, [])
    assert by_kind["from here", 0]["not recorded"] > 0


def test_our_engine_answers_a_real_model_as_alfworld_did(games, shared_data):
    module = benchmark("alfworld_replay")
    with lzma.open(shared_data / "trajectories/knowagent_alfworld/episodes.jsonl.xz", "rt") as file:
        found = module.report(module.Games(games), [json.loads(line) for line in file])
    assert found["of them at hand"] == 0  # no recorded game is in the archive: all are rebuilt
    rebuilt = found["rebuilt"]
    assert rebuilt["episodes"] == 984 and rebuilt["steps"]["predicted"] == 12_847
    assert rebuilt["steps"]["predicted, equal"] >= 12_846
    assert rebuilt["success"]["equal"] >= 982


def test_where_the_game_is_at_hand_every_step_is_compared(games):
    """A recording made from a real game's walkthrough agrees; one forged answer is found."""
    module = benchmark("alfworld_replay")
    path = next(p for p in sorted(games.rglob("game.tw-pddl")) if json.loads(p.read_text()).get("walkthrough"))
    game, steps = Household(load_game(path)), []
    for command in json.loads(path.read_text())["walkthrough"]:
        steps.append({"action": command, "observation": module.normal(game.play(command)[0])})
    raw = {"task": "/".join(path.parts[-3:-1]), "intro": "no such room\n", "success": True, "steps": steps}
    at_hand = module.Games(games)
    good = module.report(at_hand, [raw])["exact"]
    assert good["agreement on predicted steps"] == 1 and good["success"] == {"equal": 1}
    steps[1]["observation"] = "Nothing happens, twice."
    bad = module.report(at_hand, [raw])["exact"]
    assert bad["steps"]["predicted"] - bad["steps"]["predicted, equal"] == 1


def test_real_traces_are_inspected(shared_data, tmp_path):
    """KnowAgent: half of the real 13B model's episodes; the risk is above chance well before the end."""
    with lzma.open(shared_data / "trajectories/knowagent_alfworld/episodes.jsonl.xz", "rt") as file:
        (tmp_path / "half.jsonl").write_text("".join(islice(file, 510)))
    episodes, _ = import_logs(tmp_path / "half.jsonl", "knowagent-alfworld")
    found = inspect_logs(episodes).results
    rows = {row["t"]: row for row in found["by_prefix"]}
    assert rows[0]["episodes"] == 510 and rows[0]["auroc"] < rows[5]["auroc"]
    assert rows[5]["auroc_ci95"][0] > 0.6


def test_real_turns_are_read(shared_data, tmp_path):
    folder = shared_data / "trajectories" / "mint"
    shutil.copy(folder / "tasks.jsonl.xz", tmp_path)
    with lzma.open(folder / "dev_episodes.jsonl.xz", "rt") as file:
        (tmp_path / "some.jsonl").write_text("".join(islice(file, 400)))
    episodes, unknown = import_logs(tmp_path / "some.jsonl", "mint")
    assert len(episodes) == 400 and unknown == 0 and all(len(e.steps) <= 5 for e in episodes)


def test_the_expert_rescues_a_real_model_and_gaps_are_counted(games, shared_data, monkeypatch):
    """Some 60 games: what the routed episodes reach lies between both ends, and one step of help leaves the recording."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module, replay = benchmark("replay_alfworld_slm"), benchmark("alfworld_replay")
    log = shared_data / "trajectories/knowagent_alfworld/episodes.jsonl.xz"
    with lzma.open(log, "rt") as file:
        by_task: dict[str, list[dict]] = {}
        for raw in map(json.loads, file):
            by_task.setdefault(raw["task"], []).append(raw)
    at_hand = replay.Games(games)
    likes = {task: replay.room_of(at_hand, both[0]) for task, both in by_task.items()}
    known = [(task, like) for task, like in likes.items() if like is not None][:60]
    worlds = {task: replay.cases_of(at_hand, like, by_task[task])[0][0] for task, like in known}
    monkeypatch.setattr(module, "SHARES", (0.5,))
    episodes = [e for e in import_logs(log, "knowagent-alfworld")[0] if e.task.id in worlds]
    found = module.study(worlds, episodes)
    rest, one = found["routed"]
    assert found["slm alone"] < rest["success"] <= 1 and rest["not recorded"] <= 3
    assert one["not recorded"] > 10 and rest["other failures"] == one["other failures"] == []


def test_alfworld_example_finds_real_games_and_collects(games, tmp_path, monkeypatch):
    few = tmp_path / "alfworld" / "json_2.1.1" / "train"
    chosen = sorted(games.rglob("game.tw-pddl"))[:6]
    for path in chosen:
        shutil.copytree(path.parent, few / path.parts[-3] / path.parts[-2])
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "alfworld"))
    example = ROOT / "examples" / "alfworld.yaml"
    settings = load(example, RunSettings)
    assert len(settings.domain.tasks(settings.environment, 0, 0)) == 6
    sizes = [f"tasks.{name}={n}" for name, n in (("policy", 3), ("router", 1), ("validation", 1), ("test", 1))]
    asked = ["run", str(example), "--out", str(tmp_path / "run"), "--until", "collect"]
    done = CliRunner().invoke(cli, [*asked, *(part for size in [*sizes, "workers=1"] for part in ("--set", size))])
    assert done.exit_code == 0, done.output
    played = read_episodes(tmp_path / "run" / "1-collect" / "episodes.parquet")
    assert len(played) == 3 and all(e.stop in ("done", "horizon") and e.steps for e in played)
