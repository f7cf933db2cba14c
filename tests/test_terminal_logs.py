"""Recorded terminal work: plain text logs, and trials in the shape of the paper's data set."""

from __future__ import annotations

import builtins
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from r2v.cli import cli
from r2v.core.errors import ArtifactError, SettingsError
from r2v.core.features import FEATURES
from r2v.core.types import Action
from r2v.domains.terminal.verifier import score
from r2v.logs.importing import import_logs
from r2v.logs.terminalbench import NOT_RECORDED, hub_trials

LOG = """\
# task: broken-build
# model: m
# success: no
# goal: Mend the build.
It is a C project.
$ make
main.c:1: error: x
make: *** [all] Error 1
$ cat > note <<E
> one
> E
$ echo '> quoted'; echo '$ 5'
\\> quoted
\\$ 5

$ submit
"""


def test_a_text_log_is_an_episode(tmp_path):
    (tmp_path / "one.log").write_text(LOG)
    (tmp_path / "two.txt").write_text("# goal: g\n# reward: 1.0\n$ ls\na b\n")
    (tmp_path / "three.txt").write_text("# goal: g\n$ ls\n")
    (first, second), unknown = import_logs(tmp_path, "terminal-log")
    assert unknown == 1
    assert (first.task.id, first.agent, first.goal, first.success) == (
        "broken-build",
        "m",
        "Mend the build.\nIt is a C project.",
        False,
    )
    actions = [step.choice.action for step in first.steps]
    assert actions == [Action(t) for t in ("make", "cat > note <<E\none\nE", "echo '> quoted'; echo '$ 5'", "submit")]
    make = "main.c:1: error: x\nmake: *** [all] Error 1"
    assert [step.observation.text for step in first.steps[1:]] == [make, "", "> quoted\n$ 5\n"]
    assert first.steps[1].choice.scores == (score(actions[1].text, make, ["make"]),)
    assert (second.task.id, second.success) == ("two", True)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("$ ls\n", "no line `# goal"),
        ("# goal: g\nls\n", "no command"),
        ("# goal: g\n# success: maybe\n$ ls\n", "its outcome is 'maybe'"),
    ],
)
def test_a_text_log_that_is_none_is_one_line_that_says_why(tmp_path, text, what):
    (tmp_path / "a.log").write_text(text)
    with pytest.raises(ArtifactError, match=rf"a\.log is not terminal-log .*{what}"):
        import_logs(tmp_path / "a.log", "terminal-log")


def agent(cmd, obs, fn="bash_command", msg="I think"):
    return {"src": "agent", "msg": msg, "tools": [{"fn": fn, "cmd": cmd}], "obs": obs}


STEPS = [
    {"src": "system", "msg": "You are an agent", "tools": None, "obs": None},
    {"src": "user", "msg": "Mend the build.", "tools": None, "obs": None},
    agent("make", "make: *** Error 1"),
    {"src": "agent", "msg": "hm", "tools": None, "obs": None},
    {"src": "agent", "msg": "", "tools": [{"fn": "Bash", "cmd": "ls"}, {"fn": "Read", "cmd": "main.c"}], "obs": "$1f"},
    agent("", None, fn="mark_task_complete"),
]
TRIAL = {"task_name": "build", "agent": "terminus-2", "model": "gpt@openai", "reward": 1, "steps": json.dumps(STEPS)}
ROWS = [
    TRIAL,
    {**TRIAL, "task_name": "no steps", "steps": "null"},
    {**TRIAL, "task_name": "none", "steps": None},
    {**TRIAL, "task_name": "a command is missing", "steps": json.dumps([*STEPS, agent("$2a", "x")])},
    {**TRIAL, "task_name": "goal is missing", "reward": 0,
     "steps": json.dumps([{"src": "user", "msg": "$3", "tools": None, "obs": None}, agent("ls", "a")])},
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A data set as the hub stores it: Parquet files below data/, with columns that are not read."""
    (tmp_path / "data").mkdir()
    table = pa.Table.from_pylist([{**row, "duration_seconds": 1.5, "trial_id": str(i)} for i, row in enumerate(ROWS)])
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    return tmp_path


def test_trials_become_episodes_and_what_is_not_recorded_is_not_made_up(folder):
    (first, last), unknown = import_logs(folder, "terminalbench")
    assert unknown == 3
    assert (first.task.id, first.agent, first.goal, first.success) == (
        "build",
        "terminus-2/gpt@openai",
        "Mend the build.",
        True,
    )
    assert [step.choice.action.text for step in first.steps] == ["make", "ls\nRead main.c", "mark_task_complete"]
    assert [step.observation.text for step in first.steps] == ["Mend the build.", "make: *** Error 1", NOT_RECORDED]
    features = first.steps[0].choice.features
    assert len(features.values) == len(FEATURES) and not features.present[0]
    assert (last.goal, last.success) == ("goal is missing", False)


def test_trials_are_read_from_json_lines_too(tmp_path):
    (tmp_path / "trials.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    episodes, unknown = import_logs(tmp_path / "trials.jsonl", "terminalbench")
    assert (len(episodes), unknown) == (2, 3)


def test_a_data_set_is_read_by_its_name(folder, tmp_path, monkeypatch):
    """`datasets` itself reads a folder of the same shape, without the network."""
    pytest.importorskip("datasets", reason="needs the extra r2v[datasets]")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = list(hub_trials(str(folder), "train[:2]"))
    assert [(where.rsplit(":", 1)[1], row["task_name"]) for where, row in rows] == [("0", "build"), ("1", "no steps")]
    assert rows[0][1]["steps"] == TRIAL["steps"]


def test_without_the_extra_the_error_names_it(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **named):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SettingsError, match=r"r2v\[datasets\]"):
        next(hub_trials("somebody/something", "train"))


def test_names_that_are_none_and_files_that_are_broken_are_told(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist, and is not the name of a data set"):
        import_logs(tmp_path / "nothing.parquet", "terminalbench")
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(ArtifactError, match=r"bad\.parquet cannot be read"):
        import_logs(tmp_path / "bad.parquet", "terminalbench")


def test_a_job_of_harbor_is_read_with_its_outcomes(tmp_path):
    def step(number, keys, seen, **more):
        call = {"tool_call_id": f"c{number}", "function_name": "bash_command", "arguments": {"keystrokes": keys}}
        result = {"source_call_id": f"c{number}", "content": seen}
        said = {
            "step_id": number,
            "source": "agent",
            "message": "so",
            "tool_calls": [call],
            "observation": {"results": [result]},
        }
        return said | more

    for name, rewards in (("a__1", {"reward": 1.0}), ("a__2", {"reward": 0}), ("b__1", None)):
        trial = tmp_path / "job" / name
        (trial / "agent").mkdir(parents=True)
        steps = [{"step_id": 1, "source": "user", "message": "Mend it."}, step(2, "make\n", "Error 1")]
        atif = {"schema_version": "ATIF-v1.7", "session_id": name, "agent": {"name": "terminus-2", "model_name": "r2v"}}
        (trial / "agent" / "trajectory.json").write_text(json.dumps({**atif, "steps": steps}))
        if name == "a__1":
            steps = [step(1, "make\n", "Error 1", is_copied_context=True), step(2, "ls\n", "main.c")]
            (trial / "agent" / "trajectory.cont-1.json").write_text(json.dumps({**atif, "steps": steps}))
        result = {"task_name": name[0], "verifier_result": rewards and {"rewards": rewards}}
        (trial / "result.json").write_text(json.dumps(result))
    (tmp_path / "job" / "result.json").write_text("{}")
    (first, second), unknown = import_logs(tmp_path, "atif")
    assert unknown == 1
    assert [(e.task.id, e.success, len(e.steps), e.goal) for e in (first, second)] == [
        ("a", True, 2, "Mend it."),
        ("a", False, 1, "Mend it."),
    ]
    assert "make" in first.steps[0].choice.action.text and first.steps[1].observation.text == "Error 1"


def test_the_command_line_reads_them(folder):
    done = CliRunner().invoke(cli, ["fit", str(folder), "--format", "terminalbench", "--out", str(folder / "r"), "--json"])
    told = json.loads(done.stdout.splitlines()[-1])
    assert (done.exit_code, told["with_outcome"], told["sessions"]) == (2, 2, 5)
