"""Files that somebody else has written end in one line: no traceback, no waiting, no exhausted memory, no foreign code."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import re
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from r2v import cli
from r2v.core import untrusted
from r2v.core.errors import R2VError
from r2v.core.untrusted import MB
from r2v.evaluation.certificate import Certificate, Target, Tried, read_certificate
from r2v.gateway.ledger import Ledger
from r2v.gateway.rows import Entry
from r2v.logs.importing import import_logs
from r2v.logs.terminalbench import COLUMNS
from r2v.pipeline.runner import locked
from r2v.report.explain import explanation
from r2v.routers import load_router
from r2v.routers.base import FittedWith
from r2v.routers.r2v import R2V
from r2v.runtime.store import encode, read_episodes, write_episodes
from r2v.studies.certify import describe
from test_routers_folders import PARTS, decisions, make, network
from toy import played_episode

SECONDS = 60
"""Most of them take a second; the machine may be busy."""
CONFIG = {
    "version": 1,
    "models": {role: {"base_url": "http://127.0.0.1:9/v1", "model": role, "price": {"input": 1, "output": 1}}
               for role in ("slm", "teacher")},
}  # fmt: skip


def told(capsys, monkeypatch, *arguments: object) -> str:
    """The one line on standard error that a command ends in, run in this process as the command line runs it."""

    def late(*_: object) -> None:
        raise AssertionError(f"{arguments} has not ended after {SECONDS} s")

    monkeypatch.setattr(sys, "argv", ["r2v", *map(str, arguments)])
    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.app()
    finally:
        signal.alarm(0)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("format ")]
    assert ended.value.code == 1 and len(lines) == 1 and lines[0].startswith("r2v: "), lines
    assert lines[0].isprintable() and len(lines[0]) < 1100
    return lines[0]


def told_with_little_memory(*arguments: object, memory: int = 2048 * MB) -> str:
    """The same in a process of its own that may take so much memory."""
    code = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory})); from r2v.cli import app; app()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=2 * SECONDS, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if not line.startswith("format ")]
    assert done.returncode == 1 and len(lines) == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    return lines[0]


@pytest.fixture
def fails(capsys, monkeypatch):
    monkeypatch.delenv("R2V_OWN_ROUTERS", raising=False)
    return lambda *arguments: told(capsys, monkeypatch, *arguments)


# -- router folders ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "router"
    R2V(risk=network(), threshold=0.5, fitted_with=FittedWith(3, 50, "tool_calls")).save(path)
    return path


def edited(**changes: object):
    """A change of `router.json`; a dotted key reaches into a group."""

    def change(folder: Path) -> None:
        raw = json.loads((folder / "router.json").read_text())
        for key, value in changes.items():
            *groups, last = key.split("__")
            inner = raw
            for group in groups:
                inner = inner[group]
            inner[last] = value
        (folder / "router.json").write_text(json.dumps(raw))

    return change


def text(name: str, content: str | bytes):
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def linked(name: str, target: str):
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return change


def piped(name: str):
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def sparse(name: str, size: int):
    def change(folder: Path) -> None:
        os.truncate(folder / name, size)

    return change


def weights(header: object, body: bytes = b"", size: int | None = None):
    encoded = json.dumps(header).encode()
    return text("weights.safetensors", struct.pack("<Q", len(encoded) if size is None else size) + encoded + body)


def entry(shape: list, *offsets: int, dtype: str = "F32") -> dict:
    return {"0": {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}}


def deep(opening: str, closing: str = "", times: int = 100_000) -> str:
    return opening * times + closing * times


HOSTILE_ROUTERS = {
    "a link to a device": (linked("weights.safetensors", "/dev/zero"), "is no regular file"),
    "a link to a device as settings": (linked("router.json", "/dev/zero"), "is no regular file"),
    "a pipe": (piped("weights.safetensors"), "is no regular file"),
    "a pipe as settings": (piped("router.json"), "is no regular file"),
    "a link to itself": (linked("router.json", "router.json"), "cannot be read"),
    "a link out of the folder": (linked("router.json", "../elsewhere.json"), "links out of"),
    "a folder as a file": (lambda f: ((f / "router.json").unlink(), (f / "router.json").mkdir()), "is no regular file"),
    "endless weights": (sparse("weights.safetensors", 1 << 40), "is longer than 64 MB"),
    "endless settings": (sparse("router.json", 1 << 40), "is longer than 64 MB"),
    "deep settings": (text("router.json", deep("[")), "deeper than 100"),
    "deep facts": (edited(facts={"x": json.loads(deep("[", "]", 200))}), "deeper than 100"),
    "a threshold that is no number": (text("router.json", '{"format": 2, "threshold": NaN}'), "no finite number"),
    "a threshold beyond numbers": (text("router.json", '{"format": 2, "threshold": 1e999}'), "no finite number"),
    "an integer of many digits": (text("router.json", f'{{"format": {"9" * 5000}}}'), "5000 digits"),
    "two thresholds": (text("router.json", '{"threshold": 1, "threshold": 0}'), "occurs twice"),
    "half a character": (text("router.json", '{"format": "\\ud800"}'), "corrupt"),
    "bytes": (text("router.json", b"\xff\x00\x1b[2J"), "corrupt"),
    "a list": (text("router.json", "[]"), "corrupt"),
    "many candidates": (edited(fitted_with__k=5000), r"<= 1000 - at `\$.fitted_with.k`"),
    "no candidates": (edited(fitted_with__k=0), "fitted_with.k"),
    "an endless horizon": (edited(fitted_with__horizon=10**200), "fitted_with.horizon"),
    "foreign code": (edited(kind="antigravity:Router"), "names code that does not come with r2v .antigravity:Router."),
    "foreign code of Python": (edited(kind="os:system"), "is not a router"),
    "a kind that is a number": (edited(kind=3), "corrupt"),
    "a name of another kind": (edited(kind="r2v"), "names code that does not come with r2v"),
    "a calibration without order": (edited(risk__calibration__x=[1, 0, 2]), "rising x"),
    "a calibration cut short": (edited(risk__calibration__y=[1]), "as many y as x"),
    "an array that is not there": (edited(risk__mean_F="99"), "corrupt"),
    "layers that do not fit": (edited(risk__layers=[["2", "3"]]), "do not fit together"),
    "no layers": (edited(risk__layers=[]), "do not fit together"),
    "a spread of zero": (edited(risk__std_F="5"), "a spread is not above 0|do not fit"),
    "no header": (text("weights.safetensors", b"\x08"), "corrupt"),
    "a header of 2**63 bytes": (weights({}, size=2**63), "a header of 9223372036854775808 bytes"),
    "a deep header": (text("weights.safetensors", struct.pack("<Q", 100_000) + deep("[").encode()), "deeper than 100"),
    "a header that is a list": (weights([]), "corrupt"),
    "a shape that promises much": (weights(entry([1 << 40], 0, 8), bytes(8)), "corrupt"),
    "a shape of negative sizes": (weights(entry([-1, -2], 0, 8), bytes(8)), "corrupt"),
    "a shape of nothing and much": (weights(entry([0, 1 << 70], 0, 0)), "corrupt"),
    "a shape of many axes": (weights(entry([1] * 70, 0, 4), bytes(4)), "corrupt"),
    "a shape of words": (weights(entry(["2"], 0, 8), bytes(8)), "corrupt"),
    "numbers that are none": (weights(entry([2], 0, 8), struct.pack("<2f", float("nan"), 1)), "holds NaN"),
    "integers": (weights(entry([2], 0, 8, dtype="I32"), bytes(8)), "corrupt"),
    "offsets beyond the end": (weights(entry([2], 8, 16), bytes(8)), "does not fit"),
}


@pytest.mark.parametrize("name", HOSTILE_ROUTERS)
def test_a_hostile_router_folder_is_one_line(name, folder, fails):
    change, message = HOSTILE_ROUTERS[name]
    shutil.copyfile(folder / "router.json", folder.parent / "elsewhere.json")
    change(folder)
    line = fails("check", folder)
    assert re.search(message, line), line
    assert "antigravity" not in sys.modules


def test_a_folder_may_name_code_that_the_user_names(folder, tmp_path, monkeypatch):
    (tmp_path / "router_of_mine.py").write_text("from r2v.routers.r2v import R2V\nclass Mine(R2V):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    edited(kind="router_of_mine:Mine")(folder)
    with pytest.raises(R2VError, match="set R2V_OWN_ROUTERS=router_of_mine:Mine in the environment"):
        load_router(folder)
    assert "router_of_mine" not in sys.modules
    monkeypatch.setenv("R2V_OWN_ROUTERS", "other:Router,router_of_mine:Mine")
    assert type(load_router(folder)).__name__ == "Mine"
    monkeypatch.delenv("R2V_OWN_ROUTERS")
    assert type(load_router(folder)).__name__ == "Mine"  # imported, so the folder makes nothing run


# -- gateways ---------------------------------------------------------------------------------------------------------


def gateway(tmp_path: Path, **route: object) -> Path:
    path = tmp_path / "r2v.yaml"
    path.write_text(json.dumps({**CONFIG, "route": route, "store": {"path": str(tmp_path / "ledger.db")}}))
    return path


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"k": 33}, "asks for more than a gateway allows: `fitted_with.k` = 33"),
        ({"verifier": "tool_cals"}, "was fitted with the verifier tool_cals, which does not come with r2v"),
        ({"verifier": "antigravity:fly"}, "set route.verifier to antigravity:fly"),
        ({"verifier": ""}, "was fitted with the verifier , which"),
        ({"view": "all"}, "is corrupt"),
    ],
)
def test_a_folder_cannot_raise_the_limits_of_a_gateway_or_choose_its_code(conditions, message, folder, tmp_path, fails):
    edited(**{f"fitted_with__{key}": value for key, value in conditions.items()})(folder)
    assert message in fails("check", gateway(tmp_path, router=str(folder)))
    assert "antigravity" not in sys.modules


CERTIFICATE = Certificate("router", Target(0.1, 0.1, None), 0.5, 300, (1,), (Tried(0.5, 0.05, 0.01, 2.0),), {}, "2026-11-28")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (deep("["), "deeper than 100"),
        ('{"format": 1, "router": "router", "threshold": 0.5, "threshold": 0.9}', "occurs twice"),
        ({"threshold": "0.5"}, "is not a certificate"),
        ({"tried": []}, "is not a certificate"),
        ({"tried": [{"threshold": 0.5}]}, "is not a certificate"),
        ({"target": {"max_failure": 7, "delta": 0.1, "alpha": None}}, "<= 1.0"),
        ({"tasks": -1}, "is not a certificate"),
        ({"threshold": 0.4}, "was not tried"),
        ("[]", "is not a certificate"),
        ("/dev/zero", "is no regular file"),
    ],
)
def test_a_hostile_certificate_is_one_line(content, message, folder, tmp_path, fails):
    path = tmp_path / "certificate.json"
    if isinstance(content, dict):
        CERTIFICATE.save(path)
        path.write_text(json.dumps(json.loads(path.read_text()) | content))
    elif content.startswith("/dev"):
        path.symlink_to(content)
    else:
        path.write_text(content)
    assert message in fails("check", gateway(tmp_path, router=str(folder), certificate=str(path)))


def laughs(merge: bool = False) -> str:
    """Nine lists of nine: some kB, a thousand million values."""
    if merge:
        lines = ["a0: &a0 {k: v}", *(f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10))]
    else:
        lines = ["a0: &a0 lol", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10))]
    return "\n".join(lines)


HOSTILE_SETTINGS = {
    "aliases of aliases": (laughs(), "more than 100000 values"),
    "merges of merges": (laughs(merge=True), "more than 100000 values"),
    "an alias of itself": ("a: &a [*a]", "deeper than 100|more than 100000 values"),
    "deep": (deep("[", times=5000), "nested too deeply|deeper than"),
    "deep in lines": ("\n".join(" " * i + "a:" for i in range(150)), "deeper than 100|too deeply"),
    "long": ("a: " + "x" * (2 * MB), "is longer than 1 MB"),
    "a day that is none": ("a: 2001-99-99", "is not valid YAML"),
    "an integer of many digits": ("a: " + "9" * 5000, "is not valid YAML"),
    "code": ("a: !!python/object/apply:os.system ['true']", "is not valid YAML"),
    "bytes": ("a: \x00", "is not valid YAML"),
    "infinite": ("slm: {input: .inf, output: 1.0e+999}", "no finite number"),
}  # fmt: skip


@pytest.mark.parametrize("command", ["check", "run", "advise"])
@pytest.mark.parametrize("name", HOSTILE_SETTINGS)
def test_hostile_settings_are_one_line(command, name, tmp_path, fails, episodes):
    content, message = HOSTILE_SETTINGS[name]
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    arguments = {
        "check": ("check", path), "run": ("run", path, "--out", tmp_path / "out"),
        "advise": ("advise", episodes, "--prices", path, "--out", tmp_path / "out"),
    }  # fmt: skip
    line = fails(*arguments[command])
    assert re.search(message, line), line


# -- logs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def episodes(tmp_path) -> Path:
    path = tmp_path / "episodes.parquet"
    write_episodes(path, [played_episode()])
    return path


def parquet(path: Path, metadata: dict | None = None, **columns: object) -> Path:
    marks = {"r2v_schema": "2"} if metadata is None else metadata
    pq.write_table(pa.table(columns).replace_schema_metadata(marks), path, compression="zstd")
    return path


def lying(path: Path) -> Path:
    """A page of 300 MB whose column says that it unpacks to some bytes."""
    parquet(path, record=pa.array(["x" * (300 * MB)]))
    data = path.read_bytes()
    about = pq.ParquetFile(path).metadata.row_group(0).column(0)
    said = varint(about.total_uncompressed_size)
    assert len(data) < MB and said in data
    path.write_bytes(data.replace(said, b"\xe4" + b"\x80" * (len(said) - 2) + b"\0"))
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size == 50
    return path


def varint(value: int) -> bytes:
    value, found = value * 2, b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def packed(path: Path, module, part: bytes, times: int) -> Path:
    """Parts of 8 MB one after the other, packed once."""
    path.write_bytes(module.compress(part) * times)
    return path


LINE, NO_LINE = b" " * (8 * MB - 1) + b"\n", b" " * (8 * MB)


def shared(value: str, rows: int) -> pa.Array:
    """A text that all rows share."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))


def long_episode() -> str:
    return encode(replace(played_episode(), tools="x" * MB)).decode()


def numbers(path: Path) -> Path:
    """Episodes of a million numbers each."""
    raw = json.loads(encode(played_episode()))
    raw["steps"][0]["choice"]["decision"] = {
        "route": "continue", "code": "never", "score": None, "score_kind": None, "threshold": None, "propensity": 1,
        "state": ["N"], "reason": "",
    }  # fmt: skip
    record = json.dumps(raw).replace('["N"]', f"[{'1,' * 1_000_000}1]")
    return parquet(path, record=pa.array([record] * 60))


BOMBS = {
    "one text that all rows share": (
        lambda path: parquet(path / "x.parquet", {}, **dict.fromkeys(COLUMNS[1:], shared("a", 2400)),
                             task_name=shared("x" * MB, 2400)), "is not terminalbench"),
    "one episode that all rows share": (
        lambda path: parquet(path / "x.parquet", record=shared(long_episode(), 2400)), "unpacks to more than 256 MB"),
    "texts of zeros": (lambda path: parquet(path / "x.parquet", record=["\0" * (300 * MB)]), "unpacks to more than 256 MB"),
    "pages that the file lies about": (lambda path: lying(path / "x.parquet"), "unpacks to more than 256 MB"),
    "a list of nothing": (
        lambda path: parquet(path / "x.parquet", record=pa.array([[None] * 21_000_000], pa.list_(pa.int8()))),
        "more than 20000000 values"),
    "numbers": (lambda path: numbers(path / "x.parquet"), "more than 10000000 values"),
    "lines in gz": (lambda path: packed(path / "x.jsonl.gz", gzip, LINE, 300), "unpacks to more than 256 MB"),
    "lines in xz": (lambda path: packed(path / "x.jsonl.xz", lzma, LINE, 300), "unpacks to more than 256 MB"),
    "one line in gz": (lambda path: packed(path / "x.jsonl.gz", gzip, NO_LINE, 300), "has a line of more than 64 MB"),
    "one value in gz": (lambda path: packed(path / "x.json.gz", gzip, NO_LINE, 300), "more than 256 MB"),
    "many values": (lambda path: path / "x.json", "more than 20000000 values"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_line_in_little_memory(name, tmp_path):
    make, message = BOMBS[name]
    path = make(tmp_path)
    if name == "many values":
        path.write_text("[" + "[]," * 25_000_000 + "[]]")
    else:
        assert path.stat().st_size < 20 * MB
    start = time.monotonic()
    line = told_with_little_memory("import", path, tmp_path / "out.parquet")
    assert re.search(message, line), line
    assert time.monotonic() - start < SECONDS and not (tmp_path / "out.parquet").exists()


CHAT = {
    "task": "t",
    "success": True,
    "messages": [{"role": "user", "content": "go"}, {"role": "assistant", "content": "on"}],
}
HOSTILE_LOGS = {
    "deep JSON": ("x.json", deep("["), "deeper than 100"),
    "deep JSON lines": ("x.jsonl", deep('{"a":'), "deeper than 100"),
    "JSON of another shape": ("x.jsonl", json.dumps({**CHAT, "messages": 3}), "x.jsonl"),
    "a message of another shape": ("x.jsonl", json.dumps({**CHAT, "messages": [[]]}), "x.jsonl"),
    "an integer of many digits": ("x.jsonl", json.dumps({**CHAT, "n": "N"}).replace('"N"', "9" * 9999), "is not JSON"),
    "half a character": ("x.jsonl", json.dumps({**CHAT, "task": "\ud800"}), "x.jsonl"),
    "bytes": ("x.jsonl", b"\xff\xfe\x00", "cannot be read"),
    "bytes in gz": ("x.jsonl.gz", b"\x1f\x8b\xff", "cannot be read"),
    "bytes in xz": ("x.jsonl.xz", b"\xfd7zXZ\x00\xff", "cannot be read"),
    "no Parquet": ("x.parquet", b"PAR1" + bytes(100) + b"PAR1", "corrupt"),
    "Parquet with a long footer": ("x.parquet", b"PAR1" + b"\xff\xff\xff\x7fPAR1", "corrupt"),
    "no ledger": ("x.db", b"SQLite format 3\0" + b"\xff" * 4000, "is not a ledger"),
}


@pytest.mark.parametrize("command", ["import", "advise"])
@pytest.mark.parametrize("name", HOSTILE_LOGS)
def test_hostile_logs_are_one_line(command, name, tmp_path, fails):
    file, content, message = HOSTILE_LOGS[name]
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    out = tmp_path / "out.parquet"
    assert message in fails(*(("import", path, out) if command == "import" else ("advise", path, "--out", tmp_path / "o")))


def test_a_job_of_harbor_of_another_shape_is_one_line(tmp_path, fails):
    trial = tmp_path / "job" / "trial" / "agent"
    trial.mkdir(parents=True)
    (trial / "trajectory.json").write_text('{"schema_version": "ATIF-v1", "steps": []}')
    (trial / "trajectory.cont-x.json").write_text("[]")
    assert "is not atif" in fails("import", tmp_path / "job", tmp_path / "out.parquet")


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet", ".db", ".jsonl.gz", ".log"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_no_log_is_waited_for(kind, ending, tmp_path, fails):
    path = tmp_path / f"x{ending}"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    assert "is no regular file" in fails("import", path, tmp_path / "out.parquet")
    if ending == ".db":
        assert "is no regular file" in fails("export", path, tmp_path / "out.parquet")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "must be a JSON object"), (deep("["), "deeper than 100"), ('{"t": NaN}', "no finite number"),
        ('{"resolved_ids": [[1]]}', "lists of task names"), ('{"resolved_ids": 3}', "lists of task names"),
        ('{"t": true, "u": "maybe"}', "'u': its outcome is 'maybe'; true, a number from 0 to 1 or a word"),
        ('{"t": {"resolved": true}}', "'t': its outcome is {'resolved': True}; true, a number from 0 to 1"),
    ],
)  # fmt: skip
def test_hostile_outcomes_are_one_line(content, message, tmp_path, fails):
    logs, path = tmp_path / "x.jsonl", tmp_path / "outcomes.json"
    logs.write_text(json.dumps(CHAT) + "\n")
    path.write_text(content)
    assert message in fails("import", logs, tmp_path / "out.parquet", "--outcomes", path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"other": [1]}, "has no column record|in no format"),
        ({"record": [1, 2]}, "malformed episode"),
        ({"record": pa.array([None], pa.string())}, "malformed episode"),
        ({"record": ["{"]}, "malformed episode"),
        ({"record": [deep("[")]}, "malformed episode"),
        ({"record": [[["a"]]]}, "malformed episode"),
        ({f"c{i}": [1] for i in range(1001)}, "more than 1000 columns"),
        ({"record": pa.nulls(10_000_001)}, "10000000 rows"),
    ],
)  # fmt: skip
def test_hostile_episodes_are_one_line(columns, message, tmp_path, fails):
    path = parquet(tmp_path / "x.parquet", **columns)
    line = fails("import", path, tmp_path / "out.parquet")
    assert re.search(message, line), line


def test_an_episode_whose_features_do_not_fit_is_one_line(tmp_path, fails, episodes):
    raw = json.loads(pq.read_table(episodes).column("record")[0].as_py())
    raw["steps"][0]["choice"]["features"] = {"values": [1.0], "present": [True]}
    path = parquet(tmp_path / "x.parquet", record=[json.dumps(raw)])
    assert "1 features of a step where r2v has" in fails("import", path, tmp_path / "out.parquet")


# -- ledgers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path) -> Path:
    path, step = tmp_path / "ledger.db", played_episode().steps[0]
    made = Ledger(path)
    for t in range(3):
        made.write(Entry(
            f"id{t}", "session", t, 1000.0 + t, "key", "slm", "risk_below", "m", 0.1, "risk", 0.5, 1.0, 0.0, 0.0, 0.0, 5, 0,
            1, 1.0, "continue", "goal", replace(step, t=t), True, "active",
        ))  # fmt: skip
    made.outcome("session", None, 1.0)
    made.close()
    return path


def test_the_ledger_of_these_tests_is_read(ledger, tmp_path):
    (found,), unknown = import_logs(ledger, "ledger")
    assert unknown == 0 and found.success and len(found.steps) == 3


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (["UPDATE steps SET record = x'00'"], "a row that no gateway has written"),
        (["UPDATE steps SET record = 'null'"], "a row that no gateway has written"),
        (["UPDATE steps SET record = 7"], "a row that no gateway has written"),
        (["UPDATE steps SET record = zeroblob(70000000)"], "a row that no gateway has written"),
        ([f"UPDATE steps SET record = '{deep('[')}'"], "a row that no gateway has written"),
        (["UPDATE steps SET t = 'many'"], "a row that no gateway has written"),
        (["UPDATE steps SET goal = x'ff'"], "a row that no gateway has written"),
        (["UPDATE steps SET goal = CAST(x'ff' AS TEXT)"], "a row that no gateway has written"),
        (["UPDATE steps SET alike = 'x'"], "a row that no gateway has written"),
        (["UPDATE outcomes SET reward = 'good'"], "a row that no gateway has written"),
        (["INSERT INTO tools VALUES ('session', x'00')"], "a row that no gateway has written"),
        (["DROP TABLE outcomes"], "a row that no gateway has written"),
        (["PRAGMA user_version = 99"], "written by another version"),
        (["PRAGMA user_version = 2"], "is not a ledger"),
        (["CREATE TRIGGER x AFTER INSERT ON steps BEGIN DELETE FROM steps; END"], "has the trigger 'x'"),
        (["CREATE VIEW x AS SELECT 1"], "has the view 'x'"),
        (["CREATE VIRTUAL TABLE x USING fts5(a)"], "has the table 'x"),
        (["ALTER TABLE steps ADD COLUMN x AS (zeroblob(1000))"], "has the table 'steps'"),
        ([
            "ALTER TABLE steps RENAME TO s",
            "CREATE VIEW steps AS WITH RECURSIVE r(session) AS (SELECT 'a' UNION ALL SELECT session || 'a' FROM r) "
            "SELECT * FROM r",
        ], "which no ledger of r2v has"),
    ],
)  # fmt: skip
def test_a_hostile_ledger_is_one_line(statements, message, ledger, tmp_path, fails):
    db = sqlite3.connect(ledger)
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()
    assert message in fails("export", ledger, tmp_path / "out.parquet")


# -- problems and runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", deep("["), "deeper than 100"),
        ("p.jsonl", "[]", "one JSON object a line"),
        ("p.jsonl", '{"task_id": 3}', "is no HumanEval problem"),
        ("p.jsonl.gz", gzip.compress(b" " * 300 * MB, 1), "more than 64 MB"),
        ("p.jsonl.gz", b"\x1f\x8b", "cannot be read"),
    ],
)
def test_hostile_problem_files_are_one_line(name, content, message, tmp_path, fails):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in fails("check-solutions", path)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (deep("["), "deeper than 100"), ("[]", "manifest.json is"), ("{}", "manifest.json is"),
        ('{"outputs": [1]}', "manifest.json is"), ('{"outputs": {"../../../../../dev/zero": "0"}}', "is missing"),
    ],
)  # fmt: skip
def test_hostile_run_folders_are_one_line(manifest, message, tmp_path, fails):
    run = tmp_path / "run"
    (run / "1-collect").mkdir(parents=True)
    (run / "settings.yaml").write_text("version: 1\n")
    (run / "1-collect" / "manifest.json").write_text(manifest)
    assert message in fails("evaluate", run, "--fresh-tasks", 5, "--out", tmp_path / "out")


def test_the_lock_of_a_run_empties_no_file_that_it_links_to(tmp_path):
    (tmp_path / "kept").write_text("kept")
    (tmp_path / ".lock").symlink_to("kept")
    with locked(tmp_path):
        assert (tmp_path / "kept").read_text() == "kept"


@pytest.mark.parametrize(("key", "value"), [("k", 33), ("max_new_tokens", 10**9)])
def test_a_run_folder_cannot_make_a_served_model_draw_without_end(key, value, tmp_path, fails):
    (tmp_path / "settings.yaml").write_text(f"version: 1\nslm: {{{key}: {value}}}\n")
    assert f"`slm.{key}` = {value}" in fails("serve-model", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "has 1000000000 layers"),
        ({"vocab_size": 10**9, "hidden_size": 4096}, "numbers, its weights are"),
        ({"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}, "is not a readable causal LM"),
        ({"model_type": ["x"]}, "is not a readable causal LM"),
        (deep("["), "deeper than 100"),
    ],
)
def test_hostile_model_folders_are_one_line(changes, message, tmp_path, fails):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "evil.py").write_text("raise SystemExit('evil')")
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "num_attention_heads": 2}
    (folder / "config.json").write_text(changes if isinstance(changes, str) else json.dumps(config | changes))
    (folder / "model.safetensors").write_bytes(bytes(100))
    assert message in fails("serve-model", folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("/dev/zero")
    assert "is no regular file" in fails("serve-model", folder)


# -- the one place where files are opened -----------------------------------------------------------------------------


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"123")
    sized = os.fstat

    def before(descriptor: int) -> os.stat_result:
        about = sized(descriptor)
        with path.open("ab") as file:
            file.write(b"45")
        return about

    monkeypatch.setattr(untrusted.os, "fstat", before)
    with pytest.raises(R2VError, match="is longer than"):
        untrusted.read_bytes(path, 4)


# -- fuzz -------------------------------------------------------------------------------------------------------------


def made_of(kind: str, folder: Path) -> Path:
    """A valid file of that kind."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind in ("router.json", "weights.safetensors"):
        R2V(risk=network(), threshold=0.5, fitted_with=FittedWith(3, 50, "tool_calls")).save(folder)
    elif kind == "certificate.json":
        CERTIFICATE.save(folder / kind)
    elif kind == "episodes.parquet":
        write_episodes(folder / kind, [played_episode()] * 3)
    else:
        made = Ledger(folder / kind)
        made.outcome("session", None, 1.0)
        made.write(Entry(
            "id", "session", 0, 1000.0, "key", "slm", "risk_below", "m", 0.1, "risk", 0.5, 1.0, 0.0, 0.0, 0.0, 5, 0, 1, 1.0,
            "continue", "goal", played_episode().steps[0], True, "active",
        ))  # fmt: skip
        made.close()
    return folder / kind


READ = {
    "router.json": lambda path: load_router(path.parent),
    "weights.safetensors": lambda path: load_router(path.parent),
    "certificate.json": read_certificate,
    "episodes.parquet": read_episodes,
    "ledger.db": lambda path: import_logs(path, "ledger"),
}
WORDS = [b"-1", b"null", b"[]", b"{}", b'""', b"1e308", b"0", b"true", b"9" * 20, b"\0", b"\xff\xff\xff\xff"]


@pytest.fixture(scope="module")
def valid(tmp_path_factory) -> dict[str, Path]:
    return {kind: made_of(kind, tmp_path_factory.mktemp("valid")) for kind in READ}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@pytest.mark.parametrize("kind", READ)
@given(data=st.data())
def test_any_change_of_a_valid_file_is_read_or_refused(kind, data, valid):
    """A change of bytes, a cut, or a word put in another's place: reading ends, in what it holds or in an R2VError."""
    original = valid[kind]
    content = bytearray(original.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at, how = data.draw(st.integers(0, len(content))), data.draw(st.integers(0, 3))
        if how == 0:
            content[at : at + 1] = data.draw(st.binary(max_size=4))
        elif how == 1:
            del content[at:]
        elif how == 2:
            content[at : at + data.draw(st.integers(0, 20))] = data.draw(st.sampled_from(WORDS))
        else:
            end = content.find(b",", at + 1)
            start = max(content.rfind(b":", 0, end), content.rfind(b" ", 0, end)) + 1
            if end > 0:
                content[start:end] = data.draw(st.sampled_from(WORDS))
    folder = original.parent / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original.parent, folder, ignore=shutil.ignore_patterns("changed"))
    (folder / kind).write_bytes(content)
    with suppress(R2VError):
        READ[kind](folder / kind)


VALUES = [None, True, -1, 0, 10**30, 1e308, "", "x", "1", [], [1], [[]], {}, {"x": 1}, [None], "\x1b[2J"]


def places(value: object, at: tuple = ()) -> list[tuple]:
    """Where in a JSON value its values lie."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, one in inner for place in places(one, (*at, key)))]


def put(value, place: tuple, new: object):
    if not place:
        return new
    key, *rest = place
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = put(value[key], tuple(rest), new)
    return copy


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@pytest.mark.parametrize("name", PARTS)
@given(data=st.data())
def test_a_router_with_any_value_anywhere_is_refused_or_decides(name, data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / f"router-{name}"
    if not folder.exists():
        make(name).save(folder)
    raw = json.loads((folder / "router.json").read_text())
    changed = put(raw, data.draw(st.sampled_from(places(raw))), data.draw(st.sampled_from(VALUES)))
    copy = folder.parent / f"changed-{name}"
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    (copy / "router.json").write_text(json.dumps(changed))
    with suppress(R2VError):
        router = load_router(copy)
        if router.threshold is not None:
            with np.errstate(all="ignore"):
                decisions(router)


def test_a_restart_router_that_measured_nothing_is_refused(tmp_path):
    make("restart").save(tmp_path)
    raw = json.loads((tmp_path / "router.json").read_text())
    (tmp_path / "router.json").write_text(json.dumps(raw | {"measured": []}))
    with pytest.raises(R2VError, match="measured"):
        load_router(tmp_path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_certificate_with_any_value_anywhere_is_refused_or_described(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "certificate.json"
    CERTIFICATE.save(path)
    raw = json.loads(path.read_text())
    changed = put(raw, data.draw(st.sampled_from(places(raw))), data.draw(st.sampled_from(VALUES)))
    path.write_text(json.dumps(changed))
    with suppress(R2VError):
        describe(read_certificate(path))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_episode_with_any_value_anywhere_is_refused_or_read(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "episode.parquet"
    raw = json.loads(encode(played_episode()))
    changed = put(raw, data.draw(st.sampled_from(places(raw))), data.draw(st.sampled_from(VALUES)))
    parquet(path, record=[json.dumps(changed)])
    with suppress(R2VError):
        for episode in read_episodes(path):
            explanation(episode)
