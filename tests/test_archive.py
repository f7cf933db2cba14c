"""The archive of ledgers: Parquet by day, of all replicas, read as the ledgers were."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

pytest.importorskip("duckdb", reason="the extra `archive` is not installed")

from r2v.cli import cli
from r2v.core.errors import ArtifactError
from r2v.gateway.ledger import LastVerdict, Ledger
from r2v.gateway.reading import picked
from r2v.gateway.rows import TABLES
from r2v.logs.archive import Archive, _Partitions, write_archive
from r2v.logs.detection import detect
from r2v.logs.ledger import FORMAT, LedgerFormat, days_of, steps_of
from r2v.runtime.store import read_episodes
from test_gateway_modes import write
from test_gateway_postgres import play

DAY = 86_400
FIRST = DAY * 20_000.0


def run(*words: object):
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture(params=range(3))
def replicas(request, tmp_path, monkeypatch):
    """Two replicas that have served steps of the same sessions over some days, and a ledger that has all of them."""
    clock = [FIRST]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    with ExitStack() as stack:
        opened = [stack.enter_context(closing(Ledger(tmp_path / f"{name}.db"))) for name in ("all", "a", "b")]
        play(opened[0], opened[1:], request.param, clock)
        yield opened


def archive_all(folder: Path, *ledgers: Ledger) -> list[tuple[str, int]]:
    return [day for ledger in ledgers for day in write_archive(ledger, ledger.identity, folder)]


@pytest.mark.parametrize("part_bytes", [64e6, 5_000.0])
def test_an_archive_of_replicas_reads_as_one_ledger_of_all_their_steps(replicas, tmp_path, monkeypatch, part_bytes):
    monkeypatch.setattr("r2v.logs.archive.PARTITION_BYTES", part_bytes)
    whole, *parts = replicas
    monkeypatch.setattr(time, "time", lambda: FIRST + 1_000 * DAY)
    written = archive_all(tmp_path / "archive", *parts)
    assert sum(steps for _, steps in written) == whole.steps_in_all()
    assert sorted(FORMAT.read(tmp_path / "archive"), key=str) == sorted(FORMAT.read(tmp_path / "all.db"), key=str)
    assert steps_of(tmp_path / "archive") == whole.steps_in_all()
    assert days_of(tmp_path / "archive") == days_of(tmp_path / "all.db")
    assert detect(tmp_path / "archive") == "ledger"


def test_a_day_is_written_when_it_has_ended_and_again_where_the_ledger_has_more_of_it(tmp_path, monkeypatch):
    now = [FIRST + 0.5 * DAY]
    monkeypatch.setattr(time, "time", lambda: now[0])
    folder = tmp_path / "archive"
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        write(ledger, "s", 0, at=now[0])
        assert archive_all(folder, ledger) == []
        now[0] += DAY
        assert archive_all(folder, ledger) == [("2024-10-04", 1)]
        assert archive_all(folder, ledger) == []
        write(ledger, "s", 1, at=now[0] - DAY + 5)  # of a replica that was down, shipped late
        ledger.outcome("s", None, 1.0)
        assert archive_all(folder, ledger) == [("2024-10-04", 2)]
        now[0] += DAY
        assert archive_all(folder, ledger) == [("2024-10-05", 0)]  # the outcome came a day after the step
        while ledger.delete_old(now[0] + 1):
            pass
        assert archive_all(folder, ledger) == []
    (episode,) = FORMAT.read(folder)
    assert (len(episode.steps), episode.success) == (2, True)


def test_a_step_that_two_ledgers_have_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: FIRST + 10 * DAY)
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        for t in range(3):
            write(ledger, "s", t, at=FIRST + t, verdict=LastVerdict("tests", 0, t % 2))
        for replica in ("one", "other"):
            list(write_archive(ledger, replica, tmp_path / "archive"))
    (episode,) = FORMAT.read(tmp_path / "archive")
    assert [len(episode.steps), episode.success, episode.outcome_source] == [3, False, "tests"]


def test_days_of_before_a_column_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: FIRST + 10 * DAY)
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        for t in range(2):
            write(ledger, "s", t, at=FIRST + t * DAY, mode="canary")
        archive_all(tmp_path / "archive", ledger)
    first, _ = sorted((tmp_path / "archive").glob("*/steps.*.parquet"))
    pq.write_table(pq.read_table(first).drop_columns("mode"), first)
    with closing(Archive(tmp_path / "archive")) as archive:
        archive.verify()
        (session,) = archive.whole_sessions()
        assert [entry.mode for entry in session.entries] == [None, "canary"]


def test_a_verdict_shortly_before_the_archive_ends_is_no_outcome_yet(tmp_path, monkeypatch):
    now = [FIRST + DAY + 5]
    monkeypatch.setattr(time, "time", lambda: now[0])
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        for name, at in (("done", FIRST), ("late", FIRST + DAY - 5), ("sent", FIRST + DAY - 5)):
            write(ledger, name, 0, at=at, goal=name, verdict=LastVerdict("tests", 0, 0.0))
        ledger.outcome("sent", None, 1.0)
        archive_all(tmp_path / "archive", ledger)
        now[0] += DAY
        found = {e.goal: e.success for e in FORMAT.read(tmp_path / "archive")}
        assert found == {"done": False, "late": None, "sent": None}  # what was sent is of the next day
        write(ledger, "late", 1, at=FIRST + DAY + 5, goal="late", verdict=LastVerdict("tests", 0, 1.0))
        archive_all(tmp_path / "archive", ledger)
    assert {e.goal: e.success for e in FORMAT.read(tmp_path / "archive")} == {"done": False, "late": True, "sent": True}


def test_a_step_that_no_ledger_takes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: FIRST + 10 * DAY)
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        write(ledger, "s", 0, at=FIRST)
        archive_all(tmp_path / "archive", ledger)
    monkeypatch.setattr("r2v.logs.archive.RECORD_BYTES", 100)
    with pytest.raises(ArtifactError, match="more than a ledger takes"):
        list(FORMAT.read(tmp_path / "archive"))


def test_sessions_that_lie_mixed_are_read_in_parts_that_memory_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: FIRST + 10 * DAY)
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        for t in range(5):
            for i in range(30):
                write(ledger, f"s{i:02d}", t, at=FIRST + 100 * t + i, goal=f"g{i}")
        archive_all(tmp_path / "archive", ledger)
    wanted = list(FORMAT.read(tmp_path / "archive"))
    assert [episode.goal for episode in wanted] == [f"g{i}" for i in range(30)]
    assert all([step.t for step in episode.steps] == list(range(5)) for episode in wanted)
    monkeypatch.setattr("r2v.logs.archive.PARTITION_BYTES", 20_000.0)
    monkeypatch.setattr("r2v.logs.archive.STEPS", 7)
    read = []
    whole = _Partitions.rows
    monkeypatch.setattr(
        _Partitions, "rows", lambda self, part, *order: read.append((part, order)) or whole(self, part, *order)
    )
    assert list(FORMAT.read(tmp_path / "archive")) == wanted
    assert 5 < len({part for part, _ in read}) < 30


def test_a_damaged_page_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: FIRST + 10 * DAY)
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        for i in range(50):
            write(ledger, f"s{i}", 0, at=FIRST + i)
        archive_all(tmp_path / "archive", ledger)
    (steps,) = (tmp_path / "archive").glob("*/steps.*.parquet")
    content = bytearray(steps.read_bytes())
    end = len(content) * 3 // 4
    content[100:end] = bytes(end - 100)
    steps.write_bytes(content)
    with pytest.raises(ArtifactError, match="cannot be read as an archive") as error:
        list(FORMAT.read(tmp_path / "archive"))
    assert "\n" not in str(error.value)


def test_tools_come_with_their_own_sessions(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: FIRST + 10 * DAY)
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        for i in range(20):
            write(ledger, f"s{i}", 0, at=FIRST + 100 - i, goal=f"g{i}")
            if i % 3:
                ledger._db.execute("INSERT INTO tools VALUES (?, ?)", (f"s{i}", f"[{i}]"))
        archive_all(tmp_path / "archive", ledger)
    found = {episode.goal: episode.tools for episode in FORMAT.read(tmp_path / "archive")}
    assert found == {f"g{i}": f"[{i}]" if i % 3 else "" for i in range(20)}


def test_of_a_large_ledger_whole_tasks_are_read_and_the_same_ones_of_its_archive(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: FIRST + 10 * DAY)
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        for i in range(60):
            write(ledger, f"s{i}", 0, at=FIRST + i, goal=f"g{i % 20}")
            write(ledger, f"s{i}", 1, at=FIRST + i + 0.5, goal=f"g{i % 20}")
        archive_all(tmp_path / "archive", ledger)
    some = LedgerFormat(most_steps=30)
    found = list(some.read(tmp_path / "ledger.db"))
    assert len(found) == 15 and {sum(e.goal == one.goal for e in found) for one in found} == {3}
    assert list(some.read(tmp_path / "archive")) == found
    said = run("inspect", tmp_path / "archive", "--out", tmp_path / "out", "--most-steps", 30)
    assert "sample   of 120 steps 30 are read, of some tasks (--most-steps)" in said.output
    (tmp_path / "prices.yaml").write_text("seldom: {input: 1, output: 2}\n")
    told = "advise", tmp_path / "archive", "--out", tmp_path / "advice", "--prices", tmp_path / "prices.yaml"
    sampled = run(*told, "--most-steps", 30)
    assert sampled.exit_code == 0, "it may be a model of the ledger that the sample has not"
    assert "no model 'seldom'; they have r2v; " in sampled.stderr and "(in the part that is read)" in sampled.stderr
    assert "no model 'seldom'" in str(run(*told).exception)


def test_which_tasks_are_picked_does_not_depend_on_others_that_come_later():
    sessions = [(f"s{i}", f"g{i % 50}", 2) for i in range(200)]
    few, more = ({name for name, _ in picked(sessions, most)} for most in (40, 200))
    assert few < more and picked(sessions, None) == [(name, steps) for name, _, steps in sessions]
    assert len(picked([("s", "g", 10)], 1)) == 1


def test_the_command_archives_and_exports(replicas, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: FIRST + 1_000 * DAY)
    for name in ("a", "b"):
        done = run("archive", tmp_path / f"{name}.db", tmp_path / "archive")
        assert done.exit_code == 0 and f"next     r2v advise {tmp_path / 'archive'}" in done.output
    assert run("export", tmp_path / "archive", tmp_path / "some.parquet").exit_code == 0
    ended = [episode for episode in FORMAT.read(tmp_path / "all.db") if episode.success is not None]
    assert sorted(read_episodes(tmp_path / "some.parquet"), key=str) == sorted(ended, key=str)


@pytest.mark.parametrize("content", [b"", b"PAR1 no", b"PAR1" + bytes(200) + b"PAR1"])
def test_a_file_that_is_no_parquet_is_one_line(tmp_path, content):
    (tmp_path / "day=2026-11-27").mkdir()
    (tmp_path / "day=2026-11-27" / "steps.x.parquet").write_bytes(content)
    with pytest.raises(ArtifactError, match="cannot be read as an archive") as error:
        list(FORMAT.read(tmp_path))
    assert "\n" not in str(error.value)


def test_the_archive_reads_no_other_file(tmp_path):
    (tmp_path / "day=2026-11-27").mkdir()
    (tmp_path.parent / "secret.csv").write_text("a\n1\n")
    with closing(Archive(tmp_path)) as archive:
        archive.verify()
        assert archive.span() is None and list(archive.whole_sessions()) == []
        for query in (f"SELECT * FROM '{tmp_path.parent / 'secret.csv'}'", "SET enable_external_access = true"):
            with pytest.raises(ArtifactError):
                archive._ask(query)


CLICKHOUSE = """
import sys
from chdb import session
server, lines = session.Session(sys.argv[1]), open(sys.argv[2]).read().splitlines()
for day in sys.argv[3:]:
    for query in "\\n".join(line for line in lines if not line.startswith("--")).split(";"):
        if query.strip():
            server.query(query, params={"day": day})
for table in ("steps", "outcomes", "verdicts", "abandoned"):
    print(server.query(f"SELECT * FROM r2v.{table} FINAL ORDER BY ALL", "JSONCompactEachRow").data().count("\\n"))
print(server.query("SELECT sum(teacher_usd), sum(tokens) FROM r2v.steps FINAL", "TSV"))
print(server.query("SELECT table, name, type FROM system.columns WHERE database = 'r2v' ORDER BY table, position", "TSV"))
"""
"""Takes a folder for its data, the SQL, and days; the archive is below where it runs."""


def test_clickhouse_reads_an_archive_and_a_day_twice(replicas, tmp_path, monkeypatch):
    whole, *parts = replicas
    monkeypatch.setattr(time, "time", lambda: FIRST + 1_000 * DAY)
    archive_all(tmp_path / "archive", *parts)
    list(write_archive(parts[0], "again", tmp_path / "archive"))  # the same rows under another replica's name
    days = sorted(path.name.removeprefix("day=") for path in (tmp_path / "archive").iterdir())
    sql = Path(__file__).parents[1] / "deploy" / "clickhouse.sql"
    command = [sys.executable, "-c", CLICKHOUSE, str(tmp_path / "data"), str(sql), *days, days[0]]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    steps, outcomes, _, abandoned, sums, *columns = found.stdout.split("\n")
    assert int(steps) == whole.steps_in_all()
    assert int(outcomes) == whole.count("SELECT COUNT(*) FROM (SELECT DISTINCT session, t, time, reward FROM outcomes)")
    assert int(abandoned) == whole.count(
        "SELECT COUNT(*) FROM (SELECT DISTINCT session, key, time, calls, tokens, usd FROM abandoned)"
    )
    usd, tokens = whole._all("SELECT SUM(teacher_usd), SUM(tokens) FROM steps")[0]
    assert [float(value) for value in sums.split("\t")] == pytest.approx([usd, tokens])
    kinds = {str: "String", int: "Int64", float: "Float64", bool: "Bool", bytes: "String"}
    known = [re.sub(r"(LowCardinality|Nullable)\((.*)\)", r"\2", column).split("\t") for column in columns if column]
    assert known == [
        [table, column.name, kinds[column.kind]]
        for table in ("abandoned", "outcomes", "steps", "verdicts")
        for column in TABLES[table]
        if (table, column.name) != ("abandoned", "id")
    ]


def test_a_replica_has_a_name_that_makes_no_path(tmp_path):
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        write(ledger, "s", 0, at=FIRST)
        with pytest.raises(ArtifactError, match="names no replica"):
            list(write_archive(ledger, "../x", tmp_path / "archive"))


def test_the_command_says_what_is_wrong_and_that_there_is_nothing_new(tmp_path):
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        write(ledger, "s", 0)
    said = run("archive", tmp_path / "ledger.db", tmp_path / "archive").output
    assert "nothing new" in said and "next" not in said
    (tmp_path / "empty").mkdir()
    for name, problem in (("gone.db", "does not exist"), ("empty", "is no ledger; give")):
        assert problem in str(run("archive", tmp_path / name, tmp_path / "archive").exception)
