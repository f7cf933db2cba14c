"""The localiser: finds what went wrong where it is planted, is measured on tasks left out, and comes back as it was."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from r2v.cli import cli
from r2v.core.errors import ArtifactError
from r2v.core.localiser import CARD, WEIGHTS, FailureLabel, Localiser, labels_of, load_localiser, step_features
from r2v.core.types import Action, Episode
from r2v.evaluation.branches import Branch, with_mistakes
from r2v.learning.localise import save_localiser
from r2v.logs.importing import import_logs
from r2v.runtime.store import decode, encode, read_episodes, write_episodes
from r2v.studies import localise
from r2v.studies.localise import fitted, locate, measured, shipped

PLANTED = "I could not look it up, so let us assume a placeholder: probably 4711 guests."


def record(i: int, rng: np.random.Generator, **changed) -> dict:
    """A failure of a team; one of its members makes something up, at a place that says nothing."""
    length = int(rng.integers(5, 9))
    at = int(rng.integers(1, length))
    said = [f"Room {rng.integers(100)} of the hotel was read aloud." for _ in range(length)]
    said[at] = PLANTED
    return {
        "question": f"how many guests has hotel {i // 2}?", "question_ID": f"q{i // 2}", "is_correct": False,
        "history": [{"role": "user", "name": f"Member_{t % 3}", "content": text} for t, text in enumerate(said)],
        "mistake_step": str(at), "mistake_agent": "Member_0", "mistake_reason": "made up", "ground_truth": "7", **changed,
    }  # fmt: skip


def made(folder: Path, count: int = 88, seed: int = 0, **changed) -> Path:
    """Failures of half as many questions, a file each."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i:03}.json").write_text(json.dumps(record(i, rng, **changed)))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("ww") / "records")


@pytest.fixture(scope="module")
def failures(folder) -> list[Episode]:
    return import_logs(folder, "who-and-when")[0]


@pytest.fixture(scope="module")
def localiser(failures):
    return fitted(labels_of(failures), [step_features(episode) for episode in failures])


# -- the format ---------------------------------------------------------------------------------------------------


def test_each_entry_is_a_step_and_the_label_counts_them(folder, failures):
    for file, episode in zip(sorted(folder.iterdir()), failures, strict=True):
        raw = json.loads(file.read_text())
        assert [step.choice.action.text for step in episode.steps] == [entry["content"] for entry in raw["history"]]
        assert [step.choice.reply.name for step in episode.steps] == [entry["name"] for entry in raw["history"]]
        assert (episode.mistake, episode.success) == (int(raw["mistake_step"]), False)
        assert (episode.task.id, episode.goal) == (raw["question_ID"], raw["question"])


def test_what_is_said_of_the_mistake_is_not_read(folder, failures, tmp_path):
    other = made(tmp_path / "other", mistake_agent="Member_9", mistake_reason="x", ground_truth="9")
    assert import_logs(other, "who-and-when")[0] == failures


def test_a_label_that_names_no_step_is_refused_with_its_file(tmp_path):
    with pytest.raises(ArtifactError, match=r"000\.json.*mistake_step 99"):
        import_logs(made(tmp_path / "bad", 1, mistake_step="99"), "who-and-when")
    with pytest.raises(ArtifactError, match="who-and-when"):
        import_logs(made(tmp_path / "worse", 1, history=None), "who-and-when")


def test_the_label_is_stored_and_episodes_of_before_load(failures, tmp_path):
    write_episodes(tmp_path / "e.parquet", failures[:3])
    assert read_episodes(tmp_path / "e.parquet") == failures[:3]
    old = json.loads(encode(failures[0]))
    del old["mistake"]
    assert decode(json.dumps(old).encode()) == replace(failures[0], mistake=None)


# -- labels -------------------------------------------------------------------------------------------------------


def test_a_label_is_of_a_failure_and_of_one_of_its_steps(failures):
    one = failures[0]
    assert labels_of([one, replace(one, success=True), replace(one, mistake=None)]) == [FailureLabel(one, one.mistake)]
    with pytest.raises(ValueError, match="none numbered"):
        FailureLabel(one, len(one.steps))


def test_branches_label_the_first_step_that_gains_where_all_were_tried(failures):
    one = failures[0]
    differ = [False, True, True, True, *[False] * (len(one.steps) - 4)]

    def mistake(*branches: tuple[int, int, bool, bool], success: bool = False) -> int | None:
        episode = replace(one, mistake=None, success=success)
        return with_mistakes([episode], [Branch(0, *b) for b in branches], [differ])[0].mistake

    lost, won = (False, False), (True, False)
    assert mistake((1, 0, *lost), (2, 0, *won), (3, 0, *won)) == 2
    assert mistake((1, 0, *won), (2, 0, *won), (3, 0, *lost)) == 1
    assert mistake((2, 0, *won), (3, 0, *won)) is None, "step 1 was not tried"
    assert mistake((1, 0, *won), (2, 0, *lost)) is None, "those that go wrong late would be left out"
    assert mistake((1, 0, *lost), (2, 0, *lost), (3, 0, *lost)) is None
    assert mistake((1, 0, *won), (2, 0, *won), (3, 0, *won), success=True) is None
    assert mistake((1, 0, *won), (1, 1, False, True), (2, 0, *won), (3, 0, *lost)) == 2, (
        "what one draw gained another one lost"
    )


# -- the fit ------------------------------------------------------------------------------------------------------


def test_a_planted_mistake_is_found_in_episodes_of_other_tasks(failures):
    found = measured(labels_of(failures), seeds=1).results
    assert found["top1"] > 0.9 and found["top1_ci95"][0] > 0.8 and found["within1"] >= found["top1"]
    assert found["always_step_k"]["best"]["top1"] < 0.5 and found["always_step_k"]["first"]["k"] == 1
    assert found["random"]["top1"] == pytest.approx(np.mean([1 / len(e.steps) for e in failures]))
    assert (found["episodes"], found["groups"], found["risk_curve"]) == (88, 44, None)


def test_labels_by_chance_are_found_by_chance(failures):
    rng = np.random.default_rng(1)
    labels = [FailureLabel(e, int(rng.integers(len(e.steps)))) for e in failures]
    assert measured(labels, seeds=1).results["top1"] < 0.35


def test_a_question_is_never_on_both_sides(failures, monkeypatch):
    features = [step_features(episode) for episode in failures]
    known = {id(x_TF): episode.task.id for x_TF, episode in zip(features, failures, strict=True)}
    seen: list[set[str]] = []

    class Spy:
        def of_features(self, x_TF):
            assert known[id(x_TF)] not in seen[-1]
            return np.full(len(x_TF), 1 / len(x_TF))

    def fit(x_ETF, step_E, group_E, **_):
        seen.append({known[id(x_TF)] for x_TF in x_ETF})
        assert len(set(group_E.tolist())) == len(seen[-1])  # and the fit is told which belong together
        return Spy()

    monkeypatch.setattr(localise, "fit_localiser", fit)
    assert all(len(p_T) for p_T in localise.left_out(labels_of(failures), features, seed=0))
    assert len(seen) == localise.FOLDS


def test_too_few_tasks_are_refused(failures):
    with pytest.raises(ValueError, match="too few"):
        fitted(labels_of(failures[:8]), [step_features(episode) for episode in failures[:8]])


def test_neither_label_nor_outcome_is_read(localiser, failures):
    other = replace(failures[0], mistake=None, success=True)
    assert np.array_equal(localiser.probabilities(other), localiser.probabilities(failures[0]))


# -- the object ---------------------------------------------------------------------------------------------------


def test_it_comes_back_bit_for_bit(localiser, failures, tmp_path):
    save_localiser(localiser, tmp_path / "l")
    back = load_localiser(tmp_path / "l")
    assert back.facts == localiser.facts
    for name, array in localiser.arrays.items():
        assert np.array_equal(array, back.arrays[name])
    for episode in failures:
        p_T = back.probabilities(episode)
        assert np.array_equal(p_T, localiser.probabilities(episode)) and p_T.sum() == pytest.approx(1)
        assert len(p_T) == len(episode.steps)


def test_a_damaged_one_is_refused(localiser, tmp_path):
    save_localiser(localiser, tmp_path / "l")
    whole = json.loads((tmp_path / "l" / CARD).read_text())
    other = {**whole, "features": ["no feature", *whole["features"][1:]]}
    for card in ({**whole, "features": whole["features"][1:]}, other, {**whole, "format": 9}, [], {}):
        (tmp_path / "l" / CARD).write_text(json.dumps(card))
        with pytest.raises(ArtifactError, match="fit it again"):
            load_localiser(tmp_path / "l")
    (tmp_path / "l" / WEIGHTS).unlink()
    with pytest.raises(ArtifactError):
        load_localiser(tmp_path / "l")


def test_it_reads_its_own_features_by_name(localiser, failures):
    """A later r2v may know more features; a localiser of before still reads its own."""
    some = [i for i, name in enumerate(localiser.names) if name.startswith("says_")]
    names = tuple(localiser.names[i] for i in some)
    few = Localiser(names, *(a[..., some] for a in localiser.arrays.values()))
    assert list(few.standardised(step_features(failures[0])).shape) == [len(failures[0].steps), len(some)]
    x_TF = localiser.standardised(step_features(failures[0]))[:, some]
    assert np.array_equal(few.standardised(step_features(failures[0])), x_TF)


def said(episode: Episode, t: int, text: str) -> Episode:
    step = episode.steps[t]
    changed = replace(step, choice=replace(step.choice, action=Action(text)))
    return replace(episode, steps=(*episode.steps[:t], changed, *episode.steps[t + 1 :]))


@pytest.mark.parametrize("unit", ["a", "assum", "9,", "'", "\U0001f600", "error " * 9 + "?\n", "\x00```", "İ"])
def test_no_text_holds_it_up(localiser, failures, unit):
    hostile = said(failures[0], 1, unit * (4_000_000 // len(unit)))
    hostile = replace(hostile, goal=unit * 1_000_000)
    start = time.process_time()
    p_T = localiser.probabilities(hostile)
    assert time.process_time() - start < 1
    assert np.isfinite(p_T).all() and p_T.sum() == pytest.approx(1)


def test_time_grows_with_the_steps_and_no_faster(localiser, failures):
    text = " ".join(f"word{i} {i}" for i in range(400))
    long = replace(failures[0], steps=tuple(said(failures[0], 0, text + str(t)).steps[0] for t in range(1000)))
    start = time.process_time()
    assert len(localiser.probabilities(long)) == 1000
    assert time.process_time() - start < 10


def test_without_steps_there_is_nothing_to_name(localiser, failures):
    empty = replace(failures[0], steps=(), mistake=None)
    assert localiser.probabilities(empty).shape == (0,)
    assert locate([empty]).named == [None]


# -- the one in the package ---------------------------------------------------------------------------------------


def test_the_shipped_one_is_small_and_says_what_it_is_worth():
    assert sum(file.stat().st_size for file in localise.SHIPPED.iterdir()) < 200_000
    facts = shipped().facts
    assert facts["licence"] == "MIT" and facts["left_out"]["episodes"] == 184
    assert facts["left_out"]["top1"] >= 0.30 > facts["left_out"]["always_step_k"]["best"]["top1"]
    assert (localise.SHIPPED / "README.md").exists()


def test_naming_a_step_needs_neither_torch_nor_scikit_learn():
    code = (
        "import sys, r2v.studies.localise as l; l.shipped(); "
        "assert not {'torch', 'sklearn', 'scipy'} & {name.split('.')[0] for name in sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_logs_without_labels_are_named_by_the_shipped_one_and_told_so(failures):
    bare = [replace(episode, mistake=None, success=i % 3 == 0) for i, episode in enumerate(failures[:9])]
    located = locate(bare)
    assert located.results["source"].startswith("shipped") and located.results["labelled_here"] == 0
    assert located.results["top1"] == shipped().facts["left_out"]["top1"]
    for episode, step in zip(bare, located.named, strict=True):
        assert step is None if episode.success else step == int(shipped().probabilities(episode).argmax())
    assert [told["episode"] for told in located.results["named"]] == [1, 2, 4, 5, 7, 8]


# -- inspect ------------------------------------------------------------------------------------------------------


def test_inspect_names_steps_and_measures_itself_on_the_logs_own_labels(failures, tmp_path):
    # A solved twin of each: what a risk needs. Its own tasks' failures are left out, as theirs are.
    twins = [replace(said(e, e.mistake, "The book says seven."), mistake=None, success=True) for e in failures]
    twins = [replace(e, final=replace(e.final, success=True, reward=1.0)) for e in twins]
    others = [replace(e, task=replace(e.task, id=f"x{i}")) for i, e in enumerate(twins)]
    write_episodes(tmp_path / "e.parquet", [*failures, *others])
    done = CliRunner().invoke(cli, ["inspect", str(tmp_path / "e.parquet"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "The step that is named in a failed episode" in done.output and "88 labelled failures" in done.output
    told = json.loads((tmp_path / "out/inspect.json").read_text())["localiser"]
    assert told["top1"] > 0.9 and told["source"].startswith("labels of these logs")
    assert told["risk_curve"]["episodes"] == 88 and told["risk_curve"]["top1"] < told["top1"]
    right = [failures[named["episode"]].mistake == named["step"] for named in told["named"]]
    assert len(right) == 88 and np.mean(right) > 0.9
    page = (tmp_path / "out/inspect.html").read_text()
    assert "88 labelled failures" in page and '"named":' in page and "named as the step that went wrong" in page


def test_inspect_of_labelled_failures_alone_names_their_steps(folder, tmp_path):
    out = tmp_path / "out"
    done = CliRunner().invoke(cli, ["inspect", str(folder), "--format", "who-and-when", "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output.splitlines()[-1])
    assert told == json.loads((out / "inspect.json").read_text())
    assert told["localiser"]["top1"] > 0.9 and len(told["localiser"]["named"]) == 88
    assert "no risks, no page" in done.output and not (out / "inspect.html").exists()
