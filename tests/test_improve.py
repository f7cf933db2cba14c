"""`r2v improve`: what the teacher answered trains the SLM, and only a better one is kept."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from r2v.cli import cli
from r2v.clients.local.loading import load_model
from r2v.core.errors import SettingsError, StageError
from r2v.learning.models import save_model
from r2v.learning.sequences import encode_chats, is_learned
from r2v.learning.settings import CloneSettings, ModelSettings
from r2v.logs.importing import import_logs
from r2v.pipeline.run_folder import RunFolder
from r2v.pipeline.runner import run_stages, study
from r2v.pipeline.settings import RunSettings
from r2v.pipeline.stages import STAGES
from r2v.routers.base import features_of
from r2v.runtime.settings import load
from r2v.runtime.store import read_episodes, read_json, write_json
from r2v.studies import improve as improving
from r2v.studies.ablate import _remade
from r2v.studies.improve import Plan, gain, improve, lines, router_calls
from r2v.studies.improve_on_logs import LEAST, LEAST_HELD, _split, improve_on_logs, likelier
from test_conversation_training import TEMPLATE, ledger
from test_local_models import chat_tokenizer
from tiny_models import tiny

SETTINGS = """\
version: 1
threads: 1
environment: {house: small, receptacles: [4, 4], objects: [4, 4], horizon: 10, families: [pick_and_place_simple]}
tasks: {policy: 150, router: 20, validation: 12, test: 8}
perturbations: {strength: 0.1, collect: [1], rollout: [21, 22], validation: [31, 32], test: [41, 42]}
slm: {model: {hidden_size: 64, layers: 2, heads: 4, intermediate_size: 96}, k: 3}
clone: {steps: 350, batch_tokens: 512, learning_rate: 1.0e-2, checkpoint_every: 20, warmup_steps: 20}
routers: [r2v, cascade]
router: {epochs: 3}
evaluate: {asked_shares: [0.3], resamples: 200, clairvoyant: 0}
"""
PLAN = Plan("r2v", tasks=16, steps=30, learning_rate=1e-3, seed=1)
SAME = replace(PLAN, steps=1, learning_rate=1e-12)
"""A training that changes nothing."""


ARMS = ("teacher_episodes",)


class InProcess:
    """Plays in this process, which has loaded torch; `most` jobs, then it is stopped."""

    def __init__(self, most: float = float("inf")):
        self.left = most

    @contextmanager
    def started(self, workers, folder):
        yield self

    def map(self, function, jobs, report, note=""):
        for job in jobs:
            if self.left <= 0:
                raise KeyboardInterrupt
            self.left -= 1
            function(job)


QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("improve")
    (folder / "tiny.yaml").write_text(SETTINGS)
    run_stages(STAGES, load(folder / "tiny.yaml", RunSettings), folder / "run", QUIET, InProcess())
    return folder / "run"


@pytest.fixture(scope="module")
def base_model(tmp_path_factory):
    """A folder with a small random Qwen2, bytes as tokens, and a chat template with tools."""
    made = chat_tokenizer(TEMPLATE)
    made.pad_token = made.eos_token
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "initializer_range": 0.1}
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model(tiny("qwen2", made, **sizes), made, folder)
    return folder


@pytest.fixture(scope="module")
def improved(base):
    """Stopped before the first episode, and between two stages; then it goes on.

    The round is kept whatever came of it: a model that is shown to be better would train for minutes.
    """
    out = base.parent / "improved"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(improving, "gain", lambda *given: gain(*given) | {"kept": True})
        for most in (0, 2, 2):
            with pytest.raises(KeyboardInterrupt):
                improve(base, out, PLAN, 1, ARMS, QUIET, InProcess(most))
        return improve(base, out, PLAN, 1, ARMS, QUIET, InProcess())


def test_a_round_learns_from_escalations_and_its_folder_is_a_run(base, improved):
    (one,) = improved["rounds"]
    run = RunFolder(base.parent / "improved" / "round-1")
    assert one["slm_success"] == run.selection()["slm_success"]
    assert one["slm_success_before"] == RunFolder(base).selection()["slm_success"]
    run.finished("collect", "clone", "prefer", "rollout", "fit", "evaluate", "report")
    assert improved["last_kept"] == str(run.root) and run.router("r2v")
    played = read_episodes(run.of("collect") / "episodes.parquet")
    asked = sum(step.choice.source == "teacher" for e in played for step in e.steps)
    assert 0 < one["teacher_calls_training"] == asked < sum(len(e.steps) for e in played)
    assert one["teacher_calls_total"] == asked + one["teacher_calls_router"] > asked
    assert improved["test"]["after"]["slm_success"] == run.results()["routers"]["slm_only"]["success_rate"]
    assert improved["test"]["before"] != improved["test"]["after"]
    assert str(run.root) in lines(improved)[-1]
    json.dumps(improved)


def test_what_it_is_compared_with_spends_as_many_calls_and_learns_as_long(base, improved):
    calls = improved["rounds"][0]["teacher_calls_training"]
    spent = {name: rounds[0]["teacher_calls_training"] for name, rounds in improved["compared"].items()}
    assert spent["teacher_episodes"] == pytest.approx(calls, abs=10)  # the last episode is played to its end
    for name in spent:
        run = RunFolder(base.parent / "improved" / name / "round-1")
        assert json.loads((run.of("clone") / "report.json").read_text())["steps"] == PLAN.steps
        one = improved["test"]["compared"][name]
        low, high = one["behind_ci95"]
        assert low <= improved["test"]["after"]["slm_success"] - one["slm_success"] <= high


def test_the_last_lines_say_whether_the_lessons_did_more_than_the_training(improved):
    for behind, expected in (([-0.01, 0.3], True), ([0.01, 0.3], False)):
        control = improved["test"]["compared"]["teacher_episodes"] | {"behind_ci95": behind}
        shown = "\n".join(lines(improved | {"test": improved["test"] | {"compared": {"no_new_data": control}}}))
        assert "(the training alone, without a call); the rounds' is better by" in shown
        assert ("lessons     are not shown to help beyond that training" in shown) == expected


@pytest.mark.parametrize("router", ["r2v", "cascade"])
def test_with_a_share_only_the_thresholds_at_the_end_cost_calls(base, tmp_path, monkeypatch, router):
    """Round 2 is rolled back, so those of round 1 are chosen by playing at the end, once; a comparison may cost more.

    The teacher's answers that `cascade` is fitted on are paid for in round 1, and not again at the end.
    """
    verdicts = iter([True, True, False, False])
    monkeypatch.setattr(improving, "gain", lambda *given: gain(*given) | {"kept": next(verdicts)})
    plan, arms = replace(PLAN, router=router, share=0.3), ("random_steps_x2",)
    found = improve(base, tmp_path / "out", plan, 2, arms, QUIET, InProcess())
    first, second = found["rounds"]
    assert (first["teacher_calls_router"] > 0) == (router == "cascade")
    assert first["calls_at_98"] is None and not second["kept"]
    last = RunFolder(Path(found["last_kept"]))
    assert last.root == tmp_path / "out" / "last" / "round-1"
    played = last.selection()["teacher_calls"]
    assert last.settings.evaluate.rule == "target" and played > 0
    lessons = sum(one["teacher_calls_training"] for one in found["rounds"])
    assert found["teacher_calls_total"] == lessons + first["teacher_calls_router"] + played
    ours, others = (one["teacher_calls_training"] for one in (first, found["compared"]["random_steps_x2"][0]))
    assert others == pytest.approx(2 * ours, rel=0.4)
    verdicts = iter(())
    assert improve(base, tmp_path / "out", plan, 2, arms, QUIET, InProcess(1)) == found  # the arms' test, nothing else


def test_nothing_is_spent_where_the_rounds_spent_nothing(base, tmp_path, monkeypatch):
    budgets, report = {}, improving._Round.report

    def without_calls(one, run):
        budgets[one.arm] = one.calls
        return report(one, run) | ({} if one.arm else {"teacher_calls_training": 0})

    monkeypatch.setattr(improving._Round, "report", without_calls)
    found = improve(base, tmp_path / "out", SAME, 1, ("teacher_episodes", "random_steps"), QUIET, InProcess())
    assert found["compared"]["teacher_episodes"][0]["teacher_calls_training"] > 0  # one episode at least
    assert budgets == {"": 0, "teacher_episodes": 0, "random_steps": 0}


def test_the_curve_ends_where_teacher_calls_are_limited(tmp_path):
    def of(success, calls, points=()):
        return {"success_rate": success, "calls_per_episode": calls, "ci95": [0, 1], "points": points}

    routers = {"slm_only": of(0.5, 0), "llm_only": of(1.0, 9), "r2v": of(0.7, 2, [[0.5, 2.0, 0.7]])}
    for ends, calls in (({}, 8.533), ({"llm_first": of(0.98, 3.0)}, 3.0), ({"llm_first": of(0.8, 3.0)}, None)):
        write_json(tmp_path / "8-evaluate" / "results.json", {"routers": routers | ends})
        assert improving._tested(RunFolder(tmp_path), "r2v")["calls_at_98"] == (calls and pytest.approx(calls, abs=1e-3))


def test_rounds_ablations_and_replay_keep_to_the_limit_of_calls(base, tmp_path):
    shutil.copytree(base, tmp_path / "run")
    settings = RunFolder(base).settings
    run_stages(STAGES, settings.but(evaluate=settings.evaluate.but(max_calls=1)), tmp_path / "run", QUIET, InProcess())
    run = RunFolder(tmp_path / "run")
    assert run.results()["replay"]["routers"]["llm_first"]["calls_per_episode"] <= 1
    improve(run.root, tmp_path / "out", SAME, 1, (), QUIET, InProcess())
    played = read_episodes(RunFolder(tmp_path / "out" / "round-1").of("collect") / "episodes.parquet")
    assert max(sum(step.choice.teacher.calls for step in e.steps) for e in played) == 1
    with study(run.root, tmp_path / "ablation", "ablate", QUIET, InProcess()) as ctx:
        remade = _remade(ctx, "k 3", "3", run.slm, 3)
    assert 0 < remade["calls_per_episode"] <= 1 and remade["replay"]["calls_per_episode"] <= 1


class Counting(InProcess):
    """Adds up the teacher calls of what a router plays while it is fitted."""

    tuning = 0.0

    def map(self, function, jobs, report, note=""):
        super().map(function, jobs, report, note)
        if note.startswith("helper "):
            self.tuning += sum(row["teacher_calls"] for job in jobs for of in read_json(job.path).values() for row in of)


def test_the_calls_of_tuning_are_calls_of_the_router(base, tmp_path):
    shutil.copytree(base, tmp_path / "run")
    settings, counting = RunFolder(base).settings, Counting()
    few = settings.help.but(rates=(0.3,), explore_seeds=1, budgets=(0.5, 1.0))
    run_stages(STAGES[:7], settings.but(routers=("r2v", "helper"), help=few), tmp_path / "run", QUIET, counting)
    run = RunFolder(tmp_path / "run")
    selection = run.selection()
    assert selection["teacher_calls_tuning"] == counting.tuning > 0
    assert RunFolder(base).selection()["teacher_calls_tuning"] == 0
    spent = router_calls(run)
    write_json(run.of("fit") / "thresholds.json", selection | {"teacher_calls_tuning": 0})
    assert spent - router_calls(run) == counting.tuning


def test_thresholds_by_share_cost_no_call_and_are_not_certified(base, tmp_path):
    shutil.copytree(base, tmp_path / "run")
    settings = RunFolder(base).settings
    changed = settings.but(evaluate=settings.evaluate.but(rule="share", share=0.2))
    run_stages(STAGES, changed, tmp_path / "run", QUIET, InProcess())
    run = RunFolder(tmp_path / "run")
    assert (run.selection()["teacher_calls"], run.selection()["teacher_success"]) == (0, None)
    scores = [run.router("r2v").score(f) for episode in run.validation_episodes() for f in features_of(episode)]
    threshold = run.operating_points()["r2v"].threshold
    assert 0.2 <= np.mean(np.array(scores) >= threshold) < 0.3
    assert run.results()["routers"]["r2v"]["calls_per_episode"] > 0  # played on the test tasks
    page = (run.of("report") / "report.html").read_text()
    assert "own steps escalated, nothing played, chosen on 12 validation tasks; the test" in page
    refused = CliRunner().invoke(cli, ["certify", str(run.root), "--fresh-tasks", "4"])
    assert "were never played on validation tasks" in str(refused.exception)


def test_preference_training_that_was_killed_while_it_played_is_not_done_again(base, tmp_path, monkeypatch):
    shutil.copytree(base, tmp_path / "run")
    settings = RunFolder(base).settings
    changed, run = settings.but(prefer=settings.prefer.but(enabled=True)), RunFolder(tmp_path / "run")
    run_stages(STAGES[:4], changed, run.root, QUIET, InProcess())
    with pytest.raises(KeyboardInterrupt):
        run_stages(STAGES[:5], changed, run.root, QUIET, InProcess(0))
    trained = (run.preferred / "model.safetensors").read_bytes()
    (run.of("prefer") / "model" / ".config.json.0123abcd").touch()  # a kill in the middle of a file
    monkeypatch.setattr("r2v.learning.prefer.prefer", None)
    run_stages(STAGES[:5], changed, run.root, QUIET, InProcess())
    run.finished("prefer")
    assert (run.preferred / "model.safetensors").read_bytes() == trained
    assert (run.of("prefer") / "report.json").exists()
    assert not [name for name in run.manifest("prefer")["outputs"] if "0123abcd" in name]


def test_a_model_takes_the_place_of_one_that_is_there(base_model, tmp_path):
    """As when a stage was killed between its model and what it notes of it."""
    model, tokenizer = load_model(base_model)
    for name in ("model", ".model.writing"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old.bin").touch()
    save_model(model, tokenizer, tmp_path / "model")
    assert load_model(tmp_path / "model") and not list(tmp_path.rglob("old.bin")) and len(list(tmp_path.iterdir())) == 1


def test_tasks_and_seeds_of_rounds_are_nobody_elses(base, improved):
    run, known = RunFolder(base.parent / "improved" / "round-1"), RunFolder(base).splits()
    assert {name: run.split(name) for name in ("router", "validation", "test")} == {
        name: known[name] for name in ("router", "validation", "test")
    }
    fresh = {task.id for task in run.split("policy")}
    assert len(fresh) == PLAN.tasks and not fresh & {task.id for tasks in known.values() for task in tasks}
    assert min(e.seed for e in read_episodes(run.of("collect") / "episodes.parquet")) >= 2 * 10**12


def test_a_round_that_is_not_better_is_rolled_back_and_no_run(base, tmp_path):
    found = improve(base, tmp_path / "out", SAME, 1, (), QUIET, InProcess())
    (one,) = found["rounds"]
    assert (one["kept"], one["difference_ci95"]) == (False, [0.0, 0.0])
    assert one["teacher_calls_total"] == one["teacher_calls_training"] > 0
    assert found["last_kept"] == str(base) and found["test"]["before"] == found["test"]["after"]
    assert "no round was shown to be better" in lines(found)[1]
    assert not (tmp_path / "out" / "round-1" / "5-prefer" / "choice.json").exists()
    assert not (tmp_path / "out" / "round-1" / "8-evaluate").exists()


def test_what_is_done_is_not_played_again_and_another_plan_is_refused(base, improved, tmp_path):
    out = base.parent / "improved"
    assert improve(base, out, PLAN, 1, ARMS, QUIET, InProcess(1)) == improved  # the arms' test, which leaves no folder
    with pytest.raises(StageError, match="with other options; choose another --out"):
        improve(base, out, SAME, 1, (), QUIET, InProcess())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(StageError, match="is no folder of `r2v improve`"):
        improve(base, tmp_path / "mine", PLAN, 1, (), QUIET, InProcess())
    with pytest.raises(
        SettingsError,
        match="is called luck, teacher_episodes_x2; there are teacher_episodes, random_steps, no_new_data, and",
    ):
        improve(base, out, PLAN, 1, ("luck", "teacher_episodes_x2"), QUIET, InProcess())
    with pytest.raises(SettingsError, match="no router benefit with a threshold in this run; there are r2v"):
        improve(base, tmp_path / "new", replace(PLAN, router="benefit"), 1, (), QUIET, InProcess())


def test_a_ledger_trains_a_model_and_held_out_sessions_judge_it(base_model, tmp_path):
    path = ledger(tmp_path / "ledger.db", redact=False, things=tuple(f"thing{i}" for i in range(41)))
    command = ["improve", str(path), "--slm", str(base_model), "--steps", "12", "--json"]
    done = CliRunner().invoke(
        cli, [*command, "--learning-rate", "1e-2", "--out", str(tmp_path / "out")], catch_exceptions=False
    )
    found = json.loads(done.stdout.splitlines()[-1])
    (one,) = found["rounds"]
    assert one["kept"] and one["loss"] < one["loss_before"] and one["fall_ci95"][0] > 0
    assert (one["held_out_tasks"], one["teacher_calls_training"], found["sessions"]) == (LEAST_HELD, 21, 21)
    assert found["model"] == str(tmp_path / "out" / "model") and load_model(found["model"])
    assert not (tmp_path / "out" / "partial").exists() and f"next      serve {found['model']}" in done.stdout
    again = CliRunner().invoke(cli, [*command, "--out", str(tmp_path / "out")])
    assert "holds a finished round" in str(again.exception)

    rejected = CliRunner().invoke(
        cli, [*command, "--learning-rate", "1e-12", "--out", str(tmp_path / "same")], catch_exceptions=False
    )
    found = json.loads(rejected.stdout.splitlines()[-1])
    assert not found["rounds"][0]["kept"] and found["model"] == str(base_model)
    assert not (tmp_path / "same" / "model").exists() and "stays" in rejected.stdout


@pytest.mark.parametrize("at", ["likelier", "write_json"])
def test_a_ledgers_round_that_was_killed_ends_as_if_it_had_not_been(base_model, tmp_path, monkeypatch, at):
    path = ledger(tmp_path / "ledger.db", redact=False, things=tuple(f"thing{i}" for i in range(41)))
    episodes, _ = import_logs(path, "ledger")
    some = CloneSettings(steps=3, learning_rate=1e-2, warmup_steps=0)

    def run(name):
        return improve_on_logs(episodes, ModelSettings(path=str(base_model)), some, tmp_path / name, 1, lambda *_: None)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"r2v.studies.improve_on_logs.{at}", killed)
        with pytest.raises(KeyboardInterrupt):
            run("out")
    whole = run("whole")
    assert whole["rounds"][0]["kept"] and run("out") == whole | {"model": str(tmp_path / "out" / "model")}
    assert load_model(tmp_path / "out" / "model")
    (tmp_path / "mine" / "model").mkdir(parents=True)
    with pytest.raises(StageError, match="mine/model exists; choose another --out"):
        run("mine")


def test_a_ledger_with_too_little_is_refused(base_model, tmp_path):
    few = ledger(tmp_path / "few.db", redact=False)
    episodes, _ = import_logs(few, "ledger")
    with pytest.raises(StageError, match="2 tasks have an answer of the teacher, 40 are needed"):
        improve_on_logs(episodes, ModelSettings(path=str(base_model)), CloneSettings(), tmp_path / "out", 1, print)
    hashed, _ = import_logs(
        ledger(tmp_path / "hashed.db", redact=True, things=tuple(f"thing{i}" for i in range(LEAST))), "ledger"
    )
    with pytest.raises(StageError, match=r"keep no messages .*`store\.redact: false`"):
        improve_on_logs(hashed, ModelSettings(path=str(base_model)), CloneSettings(), tmp_path / "out", 1, print)


def test_near_copies_of_what_was_learned_are_not_held_out(tmp_path):
    (base, *_), _ = import_logs(ledger(tmp_path / "ledger.db", redact=False), "ledger")
    rng = np.random.default_rng(0)
    goals = [" ".join(f"w{n}" for n in rng.integers(10_000, size=25)) for _ in range(LEAST)]
    sent = [f"{goal} run {n}" for goal in goals for n in range(2)]
    episodes = [replace(base, task=replace(base.task, id=goal, goal=goal), goal=goal) for goal in sent]
    learned, held, group_H = _split(episodes, 0)
    assert len(held) == 2 * LEAST_HELD and not {e.goal[:-6] for e in learned} & {e.goal[:-6] for e in held}
    assert {group_H.count(group) for group in group_H} == {2}
    assert likelier(group_H, [1.0] * 40, [0.5] * 40, 0)["held_out_tasks"] == LEAST_HELD
    with pytest.raises(StageError, match=f"{LEAST - 1} tasks have an answer of the teacher, {LEAST} are needed"):
        _split(episodes[2:], 0)


def test_too_few_held_out_tasks_keep_nothing_and_say_how_many_are_missing():
    found = likelier(range(LEAST_HELD - 3), [1.0] * (LEAST_HELD - 3), [0.5] * (LEAST_HELD - 3), 0)
    assert found["fall_ci95"][0] > 0 and not found["kept"] and found["held_out_tasks_missing"] == 3
    assert likelier(range(LEAST_HELD), [1.0] * LEAST_HELD, [0.5] * LEAST_HELD, 0)["kept"]


def test_a_model_that_is_no_better_is_seldom_kept():
    """One in forty is what an interval of 95 % allows."""
    rng = np.random.default_rng(0)
    falls = rng.normal(size=(1200, LEAST_HELD))
    kept = [likelier(range(LEAST_HELD), 5 + fall, [5.0] * LEAST_HELD, 0)["kept"] for fall in falls]
    assert np.mean(kept) < 0.033


def test_of_an_unsolved_session_only_the_teachers_answers_are_learned(tmp_path):
    (episode, *_), _ = import_logs(ledger(tmp_path / "ledger.db", redact=False), "ledger")
    assert [step.choice.source for step in episode.steps] == ["slm", "teacher"]
    for success, learned in ((True, [True, True]), (False, [False, True]), (None, [False, True])):
        assert [is_learned(replace(episode, success=success), step) for step in episode.steps] == learned
    made = chat_tokenizer(TEMPLATE)
    data, _ = encode_chats([replace(episode, success=False)], made, 10_000)
    assert made.decode(data.tokens[0][data.weights[0] == 1]) == "The mug is on bed 1.<|im_end|>"


def test_what_is_no_run_needs_a_model(refused, tmp_path):
    (tmp_path / "ledger.db").touch()
    assert "name the model: --slm FOLDER" in refused("improve", tmp_path / "ledger.db")


def test_what_does_not_exist_is_said_to(refused, tmp_path):
    line = "none does not exist; give the folder of a run, or a gateway's ledger"
    assert line in refused("improve", tmp_path / "none") and line in refused("improve", tmp_path / "none", "--slm", "model")
    assert "does not exist" not in refused("improve", "postgresql://user@127.0.0.1:1/r2v", "--rounds", 2)


def test_an_option_of_the_other_kind_of_source_is_refused(refused, tmp_path):
    ledger_path, run = tmp_path / "ledger.db", tmp_path / "run"
    ledger_path.touch()
    line = refused("improve", ledger_path, "--slm", "model", "--rounds", 3, "--compare", "random_steps")
    assert line.endswith("ledger.db is no run (it has no settings.yaml); leave out what is for runs: --rounds, --compare\n")
    assert refused("improve", ledger_path, "--slm", "model", "--no-control").endswith("what is for runs: --no-control\n")
    run.mkdir()
    (run / "settings.yaml").touch()
    assert refused("improve", run, "--lora").endswith("whose settings name its SLM; leave out what is for ledgers: --lora\n")


def test_the_training_without_a_lesson_is_played_unless_it_is_left_out(improved, monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(improving, "improve", lambda *args: given.append(args[4]) or improved)
    (tmp_path / "settings.yaml").touch()
    for more in ([], ["--no-control"], ["--compare", "no_new_data", "--compare", "random_steps"]):
        assert CliRunner().invoke(cli, ["improve", str(tmp_path), *more]).exit_code == 0
    assert given == [["no_new_data"], [], ["no_new_data", "random_steps"]]


def test_only_what_is_shown_to_be_better_is_kept():
    half, whole = [1.0, 0.0], [1.0, 1.0]
    worse, better = np.array([half] * 40), np.array([half] * 30 + [whole] * 10)
    assert gain(worse, better, 500, 0)["kept"]
    assert not gain(better, worse, 500, 0)["kept"] and not gain(worse, worse, 500, 0)["kept"]
    assert not gain(worse, np.array([half] * 39 + [whole]), 500, 0)["kept"]  # one task of forty is luck
    few = gain(np.array([half] * 5), np.array([whole] * 5), 500, 0)
    assert few["difference_ci95"] == [0.5, 0.5] and few["p"] == 2 / 2**5 and not few["kept"]  # five tasks show nothing
    assert gain(np.array([half] * 6), np.array([whole] * 6), 500, 0)["kept"]
