"""What is wrong with a command line or its settings is one line, which says how to mend it."""

from __future__ import annotations

import json
import re
import shlex
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from r2v.cli.common import cli
from r2v.core.errors import ArtifactError
from r2v.gateway.ledger import Ledger
from r2v.runtime.store import write_episodes
from toy import TASK, routed, run

MODEL = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "price": {"input": 1, "output": 1}}


def gateway_settings(folder: Path, **server: object) -> Path:
    config = folder / "r2v.json"
    models, store = {"slm": MODEL, "teacher": MODEL}, {"path": str(folder / "ledger.db")}
    config.write_text(json.dumps({"version": 1, "models": models, "store": store, "server": server}))
    return config


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("serve --workers -1", "'--workers': -1 is not in the range x>=1; `r2v serve --help`"),
        ("serve --port 99999", "'--port': 99999 is not in the range 0<=x<=65535; `r2v serve --help`"),
        ("keys create ci --usd-per-day -1", "'--usd-per-day': -1.0 is not in the range x>=0; `r2v keys create --help`"),
        ("rollback --to nowhere", "'nowhere' is not one of 'observe', 'shadow', 'canary'; `r2v rollback --help`"),
        ("serve --prot 1", "No such option: --prot"),
        ("run", "`r2v run --help`"),
        ("sevre", "No such command 'sevre'"),
    ],
)
def test_a_wrong_command_line_is_one_line(refused, arguments, line):
    assert line in refused(*arguments.split(), status=2)


def test_a_run_to_explain_that_is_not_there_is_reported_as_such(refused, tmp_path):
    assert f"{tmp_path / 'missing'} does not exist; give the folder of a run" in refused("explain", tmp_path / "missing")


@pytest.mark.parametrize("usd", ["nan", "inf"])
def test_a_limit_that_limits_nothing_is_refused(refused, usd):
    assert f"a key cannot have {usd} USD a day" in refused("keys", "create", "ci", "--usd-per-day", usd)


@pytest.mark.parametrize(("out", "why"), [("file", "File exists"), ("file/below", "Not a directory")])
def test_an_out_that_cannot_be_a_folder_is_named_before_any_work(refused, tmp_path, out, why):
    (tmp_path / "file").write_text("")
    said = refused("bench", "intercode", "--data", tmp_path, "--out", tmp_path / out)
    assert f"{tmp_path / out} cannot be opened or written ({why}); choose another path" in said


@pytest.mark.parametrize("command", ["advise", "fit", "inspect", "train-verifier", "clone", "run"])
def test_a_folder_is_made_before_logs_are_read_and_stays_only_with_results(refused, tmp_path, command):
    (tmp_path / "file").write_text("")
    log = tmp_path / "gone.jsonl"
    if command == "run":
        log = tmp_path / "logs.yaml"
        log.write_text("version: 1\nlogs: {path: gone.jsonl, format: openai-jsonl}\n")
    named = () if command == "run" else ("--format", "openai-jsonl")
    named += ("--model", "m") if command == "clone" else ()
    unmade = refused(command, log, *named, "--out", tmp_path / "file/below")
    assert "file/below cannot be opened or written (Not a directory)" in unmade
    assert "gone.jsonl does not exist" in refused(command, log, *named, "--out", tmp_path / "new/below")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["advise x --out y", "fit x --out y", "inspect x --out y", "train-verifier x --out y",
                                     "clone x --model m --out y", "bench"])  # fmt: skip
def test_a_seed_below_zero_is_refused(refused, command):
    assert "'--seed': -1 is not in the range 0<=x<=" in refused(*command.split(), "--seed", "-1", status=2)


@pytest.mark.parametrize(
    ("command", "broken", "said"),
    [
        ("run x --out y", "r2v.cli.runs.keys", "r2v: stopped; run the same command again to resume\n"),
        ("fit x --out y", "r2v.cli.logs.imported", "r2v: stopped; nothing was written\n"),
        ("bench --list", "r2v.cli.bench._list", "r2v: stopped\n"),
    ],
)
def test_ctrl_c_says_what_it_leaves(refused, tmp_path, monkeypatch, command, broken, said):
    def stop(*args, **named):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(broken, stop)
    assert refused(*command.split(), status=130) == said


def test_ctrl_c_while_it_starts_is_no_traceback():
    code = """
import sys
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == "r2v.cli.bench":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Stop())
from r2v.cli import app
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize(
    ("out", "why"),
    [
        ("folder", "is a folder"),
        ("file/below", "cannot be opened or written (File exists)"),
        ("x" * 300, "cannot be opened or written (File name too long)"),
    ],
)
def test_a_path_where_no_file_can_be_is_named(refused, tmp_path, out, why):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=re.escape(f"{tmp_path / out} {why}; choose another path")):
        write_episodes(tmp_path / out, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    if out != "folder":
        assert f"{tmp_path / out} {why}; choose another" in refused("init", tmp_path / out)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc on this system")
@pytest.mark.parametrize("command", ["run examples/household.yaml --out", "init"])
def test_an_out_that_cannot_be_made_is_one_line(refused, command):
    assert "/proc/x cannot be opened or written (No such file or directory); choose another" in refused(
        *command.split(), "/proc/x"
    )


def test_what_follows_a_dry_run_has_its_options(tmp_path):
    example = Path(__file__).parents[1] / "examples" / "household.yaml"
    options = ["--out", str(tmp_path / "a b"), "--set", "seed=2", "--set", "tasks={router: 9}", "--until", "collect"]
    done = CliRunner().invoke(cli, ["run", str(example), *options, "--dry-run"])
    assert done.output.splitlines()[-1] == f"next     {shlex.join(['r2v', 'run', str(example), *options])}"


def test_an_episode_that_is_explained_is_the_only_one_meant(refused, tmp_path):
    played = [replace(run(routed(), seed=z), task=replace(TASK, id=name)) for name in ("1", "11", "21") for z in (3, 4)]
    write_episodes(tmp_path / "episodes.parquet", played)
    explain = ("explain", str(tmp_path), "--router", played[0].agent)
    shown = CliRunner().invoke(cli, [*explain, "1"]).output
    assert shown.startswith("1 @ seed 3") and shown.endswith("of the same task also @4\n")
    assert "also" not in CliRunner().invoke(cli, [*explain, "21@4"]).output
    write_episodes(tmp_path / "episodes.parquet", played[2:])
    assert "2 tasks end in 1: 11, 21; write more" in refused(*explain, "1")


def test_a_port_that_is_taken_names_its_option(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("R2V_API_KEY", "k")
    with socket.socket() as taken, socket.socket() as free:
        for one in (taken, free):
            one.bind(("127.0.0.1", 0))
        taken.listen()
        used, unused = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        serve = ("serve", gateway_settings(tmp_path))
        said = f"cannot listen on 127.0.0.1:{used} (Address already in use); choose another server."
        assert f"{said}port or --port\n" in refused(*serve, "--port", used, "--admin-port", unused)
        assert f"{said}admin_port or --admin-port\n" in refused(*serve, "--port", unused, "--admin-port", used)


def test_ports_that_are_equal_or_none_are_named(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("R2V_API_KEY", "k")
    both = "port and admin_port (--port and --admin-port) are both 8321; change one of them"
    assert both in refused("serve", gateway_settings(tmp_path), "--admin-port", 8321)
    assert f"`server`: {both}" in refused("serve", gateway_settings(tmp_path, port=8321, admin_port=8321))
    assert "`server.port` = 99999" in refused("serve", gateway_settings(tmp_path, port=99_999))
    past = refused("serve", gateway_settings(tmp_path, port=65_535, workers=2))
    assert "cannot listen on 127.0.0.1:65536 " in past and "--admin-port" in past


@pytest.mark.parametrize("url", ["", "localhost:8000/v1", "http://"])
def test_what_is_no_url_is_refused(refused, tmp_path, monkeypatch, url):
    monkeypatch.setenv("R2V_API_KEY", "k")
    path = tmp_path / "made.yaml"
    assert f"--slm-url {url!r} is no URL; give one such as" in refused("init", path, "--slm-url", url)
    assert not path.exists()
    for name in ("slm", "teacher"):
        config = gateway_settings(tmp_path)
        raw = json.loads(config.read_text())
        raw["models"][name] = MODEL | {"base_url": url}
        config.write_text(json.dumps(raw))
        assert f"`models.{name}`: base_url {url!r} is no URL; write one such as" in refused("check", config)


def test_what_reads_a_ledger_makes_none(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("R2V_API_KEY", "k")
    checked = CliRunner().invoke(cli, ["check", str(gateway_settings(tmp_path))])
    assert "ledger    " in checked.output and not (tmp_path / "ledger.db").exists()
    empty, other, new = tmp_path / "empty.jsonl", tmp_path / "other.db", tmp_path / "new.db"
    empty.touch()
    with closing(sqlite3.connect(other)) as db:
        db.execute("CREATE TABLE mine (x)")
    Ledger(new).close()
    before = [path.read_bytes() for path in (empty, other)]
    for command in ("export", "archive", "advise"):
        for path, said in ((empty, "is no ledger"), (other, "is no ledger"), (tmp_path / "gone.db", "does not exist")):
            format_of = ("--format", "ledger", "--out") if command == "advise" else ()
            assert said in refused(command, path, *format_of, tmp_path / "out.parquet")
    assert "has no session with an outcome (0 without one)" in refused("export", new, tmp_path / "out.parquet")
    assert [path.read_bytes() for path in (empty, other)] == before and not (tmp_path / "out.parquet").exists()


def test_episodes_take_no_other_files_place(refused, tmp_path):
    log = tmp_path / "log.jsonl"
    chat = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "gone"}]
    log.write_text(json.dumps({"task": "t", "success": True, "messages": chat}))
    Ledger(ledger := tmp_path / "ledger.db").close()
    (link := tmp_path / "link.parquet").symlink_to(ledger)
    (other := tmp_path / "other.parquet").write_text("mine")
    before = ledger.read_bytes()
    for out, said in (
        (ledger, "is not the name of a Parquet file"),
        (link, "is what is read"),
        (other, "no episodes of r2v"),
    ):
        assert said in refused("export", ledger, out)
        assert ("no episodes of r2v" if out == link else said) in refused("import", log, out)
    assert ledger.read_bytes() == before and other.read_text() == "mine" and link.is_symlink()
    made = tmp_path / "made.parquet"
    for _ in range(2):  # what it has written itself it may write again
        assert CliRunner().invoke(cli, ["import", str(log), str(made)]).exit_code == 0
    assert f"{made} is what is read" in refused("import", made, made)


def test_names_of_episodes_are_never_cut_off(tmp_path):
    log, name = tmp_path / "log.jsonl", "household/" + "pick_two_obj_and_place_" * 5
    chat = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "gone"}]
    log.write_text(json.dumps({"task": name, "model": "m", "success": True, "messages": chat}))
    done = CliRunner().invoke(cli, ["import", str(log), str(tmp_path / "episodes.parquet")])
    assert "1 episode, 0 without an outcome left out" in done.output
    listed = CliRunner().invoke(cli, ["explain", str(tmp_path), "--router", "m"], env={"COLUMNS": "80"})
    assert f"{name}@0" in listed.output


def test_doctor_knows_that_fit_works_without_parquet(monkeypatch):
    from r2v.cli import doctor

    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "pyarrow" else name)
    monkeypatch.setattr(doctor, "_gpus", lambda: None)
    found = doctor.examine()
    assert found["extras"]["fit"] == "without Parquet" and found["extras"]["serve"] is True
    lines = doctor.advice(found)
    assert "r2v fit, advise and inspect read no Parquet here: pip install 'r2v[fit]'" in lines
    assert not any(line.startswith("extra fit ") for line in lines)
