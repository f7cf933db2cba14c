"""The shared ledger: journals of replicas are shipped to a real Postgres, and read there."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from typer.testing import CliRunner

pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
from postgres_server import cluster, programs
from r2v.cli import app, cli
from r2v.core.errors import ArtifactError, SettingsError
from r2v.gateway.budgets import Account, Amount
from r2v.gateway.ledger import LastVerdict, Ledger
from r2v.gateway.rows import TABLES
from r2v.gateway.settings import GatewaySettings
from r2v.gateway.shared_ledger import NUL, TYPES, VERSION, SharedLedger
from r2v.logs.detection import detect
from r2v.logs.ledger import days_of
from r2v.runtime.settings import validated
from r2v.runtime.store import read_episodes
from servers import settings as gateway_settings
from test_gateway import ASK, AUTH, make  # noqa: F401
from test_gateway_modes import write
from test_gateway_replicas import redis_url  # noqa: F401
from test_gateway_totals import MODES, shown, write_some
from test_gateway_workers import served

pytestmark = pytest.mark.skipif(programs() is None, reason="postgres is not installed")

needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")


@pytest.fixture
def url() -> str:
    return cluster().database()


@pytest.fixture
def shared(url):
    with closing(SharedLedger(url)) as opened:
        yield opened


def ship_all(shared: SharedLedger, *ledgers: Ledger) -> None:
    """Ship the rest of each journal in turn, a batch at a time."""
    left = list(ledgers)
    while left:
        left = [ledger for ledger in left if shared.ship(ledger.journal, ledger.identity)[2]]


def read(ledger) -> list:
    """All that is read of a ledger, whatever keeps it."""
    names = sorted(ledger.all_sessions())
    whole = sorted((s.entries[0].session, [e.id for e in s.entries], s.outcome, s.tools) for s in ledger.whole_sessions())
    return [
        *shown(ledger), names, whole, ledger.span(), ledger.uncounted(), ledger.last_end(),
        [(ledger.steps(n), ledger.tools(n), ledger.outcomes(n), ledger.abandoned(n), ledger.has(n)) for n in names],
        ledger.sessions(1000, mode="canary"), ledger.sessions(1000, escalated=True), ledger.sessions(9, failed=True),
        ledger.sessions(9, failed=False, before=86_400.0 * 20_003), ledger.sessions(9, tenant="s1"), ledger.has("none"),
        sorted(ledger.scores_and_failures(20, "risk")[0]), ledger.outcome_of("none"),
    ]  # fmt: skip


# -- what is shipped, and what is read of it --------------------------------------------------------------------------


def test_a_shipped_ledger_is_read_as_the_one_that_was_shipped(tmp_path, shared):
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        write_some(ledger, 300, seed=1)
        ledger._db.execute("INSERT INTO tools VALUES ('s1', '[1]')")
        ship_all(shared, ledger)
        assert read(shared) == read(ledger)
        ship_all(shared, ledger)
        shared.restart(ledger.identity)
        ship_all(shared, ledger)  # all of it once more
        assert read(shared) == read(ledger)


def test_the_schema_has_the_declared_columns_and_the_totals_of_sqlite(tmp_path, shared):
    shared.prepare()

    def columns(table: str) -> dict[str, str]:
        query = "SELECT column_name, udt_name FROM information_schema.columns WHERE table_name = :table"
        return dict(shared._all(query, {"table": table}))

    for table, declared in TABLES.items():
        assert columns(table) == {column.name: kind for column, kind in zip(declared, TYPES[table], strict=True)}
    kinds = {"INTEGER": "int8", "REAL": "float8", "TEXT": "text"}
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        for table in ("session_totals", "day_totals"):
            here = ledger._db.execute("SELECT name, type FROM pragma_table_info(?)", (table,))
            assert columns(table) == {name: kinds[kind] for name, kind in here}


def play(reference: Ledger, journals: list[Ledger], seed: int, clock: list[float]) -> None:
    """The same random steps, outcomes and abandoned calls into the reference, and into the journal of some replica."""
    draw = random.Random(seed)
    begun: dict[str, int] = {}
    for i in range(60):
        clock[0] += draw.choice([1.0, 3_600.0, 40_000.0])
        s, both = f"s{draw.randrange(8)}", (reference, draw.choice(journals))
        kind = draw.random()
        if kind < 0.65 or s not in begun:
            t = begun[s] = begun.get(s, -1) + 1
            verdict = (
                LastVerdict(f"v{(rank := draw.randrange(3))}", rank, draw.randrange(2)) if draw.random() < 0.3 else None
            )
            known = {
                "key": f"k{s}", "mode": draw.choice([*MODES[:2], None]), "source": draw.choice(["slm", "teacher"]),
                "alike": draw.choice([None, True, False]), "score": draw.choice([None, 0.25, 0.75]), "goal": f"goal {i}",
                "route": draw.choice(["continue", "escalate"]), "tokens": draw.randrange(100),
                "score_kind": draw.choice(["risk", "entropy"]),
            }  # fmt: skip
            for ledger in both:
                write(ledger, s, t, at=clock[0], verdict=verdict, **known)
        elif kind < 0.9:
            t, reward = draw.choice([None, None, 0]), float(draw.randrange(2))
            for ledger in both:
                ledger.outcome(s, t, reward)
        else:
            for ledger in both:
                ledger.accounts.hold(f"held {i}", Account(s, f"k{s}", 20_000), Amount(1, 50, 1.0))
                ledger.accounts.release(f"held {i}", Amount(), Amount(1, i, 0.125), "client gone")


@given(st.integers(0, 10**6))
@examples(max_examples=12, derandomize=True)
def test_what_is_read_does_not_depend_on_the_order_of_arrival(seed):
    """Rows of a session lie in several journals; an outcome comes before steps, or one batch before another."""
    draw, clock = random.Random(seed), [86_400.0 * 20_000]
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(time, "time", lambda: clock[0])
        patch.setattr("r2v.gateway.journal.BATCH_ROWS", draw.choice([1, 3, 500]))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        reference, *journals = (stack.enter_context(closing(Ledger(folder / f"{i}.db"))) for i in range(4))
        shared = stack.enter_context(closing(SharedLedger(cluster().database())))
        play(reference, journals, seed, clock)
        for _ in range(30):
            journal = draw.choice(journals)
            shared.ship(journal.journal, journal.identity)
        ship_all(shared, *journals)
        assert read(shared) == read(reference)


def test_replicas_that_ship_at_once_count_everything_once(tmp_path, url, monkeypatch):
    monkeypatch.setattr("r2v.gateway.journal.BATCH_ROWS", 7)
    with ExitStack() as stack:
        journals = [stack.enter_context(closing(Ledger(tmp_path / f"{i}.db"))) for i in range(3)]
        for i, journal in enumerate(journals):
            for row in range(80):  # of the same sessions
                write(journal, f"s{row % 5}", row, at=1000.0 + row, id=f"{i}-{row}")
                journal.outcome(f"s{row % 5}", None, float(row % 2))
        links = [stack.enter_context(closing(SharedLedger(url))) for _ in journals]
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(ship_all, links, journals))
        assert [(row["session"], row["steps"]) for row in links[0].sessions(9)] == [(f"s{s}", 48) for s in (4, 3, 2, 1, 0)]
        (first, today) = links[0].days(0.0)
        assert (first["steps"], today["ended"]) == (240, 5)


def test_what_a_server_lost_is_shipped_again(tmp_path, url, shared):
    """A standby that took over may lack the last shipments; what it has of them it has whole."""
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        write_some(ledger, 20, seed=1)
        ship_all(shared, ledger)
        name = url.rsplit("/", 1)[1]
        shared.close()  # a database that is copied may have no connection
        cluster().execute(f"CREATE DATABASE {name}_before TEMPLATE {name}")
        write_some_more(ledger)
        ship_all(shared, ledger)
        with closing(SharedLedger(f"{url}_before")) as standby:
            assert len(standby.steps("later")) == 0
            ship_all(standby, ledger)
            assert read(standby) == read(ledger) and len(standby.steps("later")) == 5


def write_some_more(ledger: Ledger) -> None:
    for t in range(5):
        write(ledger, "later", t, at=86_400.0 * 20_005 + t)


def test_a_nul_character_is_shown_by_its_symbol(tmp_path, shared):
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        write(ledger, "k/a\0b", goal="mend\0it", model="m\0")
        ledger.outcome("k/a\0b", None, 1.0)
        ship_all(shared, ledger)
        (row,) = shared.sessions(9, text="d\0i")
        assert (row["session"], row["goal"], row["reward"]) == (f"k/a{NUL}b", f"mend{NUL}it", 1.0)
        (entry,) = shared.steps("k/a\0b")
        assert entry.step == ledger.steps("k/a\0b")[0].step and shared.has("k/a\0b")


def test_rows_that_no_gateway_has_written_are_one_line(tmp_path, url, shared, refused):
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        write(ledger, "s")
        ship_all(shared, ledger)
        ledger._db.execute("INSERT INTO outcomes VALUES ('s', NULL, 'all', 1)")
    assert "no gateway has written" in refused("ship", tmp_path / "ledger.db", url)
    cluster().execute("UPDATE steps SET record = 'x'", url.rsplit("/", 1)[1])
    assert "no gateway has written" in refused("export", url, tmp_path / "out.parquet")


# -- the journal ------------------------------------------------------------------------------------------------------


def test_a_journal_drops_only_what_is_shipped(tmp_path, shared):
    """SQLite gives the numbers of deleted rows out again: what gets them is shipped all the same."""
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        for i in range(6):
            write(ledger, f"s{i}", at=100.0 + i)
        identity, *_ = shared.ship(ledger.journal, ledger.identity)
        write(ledger, "s5", 1, at=106.0)
        ledger.outcome("s4", None, 1.0)
        assert ledger.delete_old(1000.0, identity) == 4 and ledger.delete_old(1000.0, "another") == 0
        assert sorted(ledger.all_sessions()) == ["s4", "s5"]  # with what came since
        ship_all(shared, ledger)
        assert ledger.delete_old(1000.0, identity) == 2
        ledger.outcome("s1", None, 0.0)  # which another replica served, say
        for i in range(7):
            write(ledger, f"new{i}", at=200.0 + i)
        ship_all(shared, ledger)
        assert len(list(shared.all_sessions())) == 13 and shared.outcome_of("s1") == (0.0, "")
        while ledger.delete_old(time.time() + 1, identity):
            pass
        assert ledger._db.execute("SELECT COUNT(*) FROM outcomes").fetchone() == (0,)


def test_a_step_that_no_gateway_wrote_keeps_no_others_waiting(tmp_path, shared, caplog):
    with closing(Ledger(tmp_path / "l.db")) as ledger:
        for t in range(3):
            write(ledger, "s", t)
        ledger._db.execute("UPDATE steps SET threshold = 'high' WHERE t = 1")
        ship_all(shared, ledger)
    assert [step.t for step in shared.steps("s")] == [0, 2] and "is not shipped: no gateway wrote it" in caplog.text


def test_a_ledger_of_schema_6_is_shipped_with_what_it_abandoned(tmp_path, shared):
    path = tmp_path / "ledger.db"
    with closing(Ledger(path)) as ledger:
        write_some(ledger, 30, seed=3)
        ledger._db.execute("ALTER TABLE abandoned DROP COLUMN id")
        ledger._db.execute("ALTER TABLE identity DROP COLUMN replicas")
        ledger._db.execute("DROP TABLE shipped")
        ledger._db.execute("PRAGMA user_version = 6")
    with closing(Ledger(path)) as ledger:
        assert ledger._db.execute("SELECT COUNT(*) FROM abandoned").fetchone()[0] > 3
        ship_all(shared, ledger)
        shared.restart(ledger.identity)
        ship_all(shared, ledger)
        assert read(shared) == read(ledger)


def test_old_sessions_are_deleted_and_the_sums_of_their_days_stay(tmp_path, shared):
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        write_some(ledger, 250, seed=2)
        write(ledger, "kept", at=86_400.0 * 20_010 + 3)
        ship_all(shared, ledger)
        days, counts = shared.days(0.0), []
        while deleted := shared.delete_old(86_400.0 * 20_010):
            counts.append(deleted)
        assert counts == [200, 50] and list(shared.all_sessions()) == ["kept"] and shared.days(0.0) == days
        left = "SELECT (SELECT COUNT(*) FROM steps), (SELECT COUNT(*) FROM outcomes), (SELECT COUNT(*) FROM abandoned)"
        assert shared._all(left) == [(1, 0, 0)]


# -- who may ship -----------------------------------------------------------------------------------------------------


def test_a_second_replica_without_redis_is_refused(shared, monkeypatch):
    shared.join("a", alone=False)
    shared.join("b", alone=False)  # both have their sessions in Redis
    with pytest.raises(SettingsError, match=r"journal [ab]\) ships to .* store.redis_env"):
        shared.join("c", alone=True)
    shared.leave("a")
    shared.leave("b")
    shared.join("c", alone=True)
    shared.join("c", alone=True)  # itself, started again
    with pytest.raises(SettingsError, match="journal c"):
        shared.join("a", alone=False)
    monkeypatch.setattr("r2v.gateway.shared_ledger.LIVE_S", 0)  # it was killed, and is silent
    shared.join("a", alone=True)


def test_a_newer_schema_and_other_databases_are_refused(url, shared):
    name = url.rsplit("/", 1)[1]
    cluster().execute(f"INSERT INTO r2v_schema VALUES ({VERSION + 1})", name)
    for ask in (shared.prepare, shared.verify):
        with pytest.raises(ArtifactError, match="made by a newer r2v"):
            ask()
    cluster().execute(f"CREATE DATABASE {name}_latin ENCODING 'LATIN1' TEMPLATE template0")
    with closing(SharedLedger(f"{url}_latin")) as latin, pytest.raises(ArtifactError, match="encoding LATIN1"):
        latin.prepare()
    with closing(SharedLedger(cluster().url("postgres"))) as empty, pytest.raises(ArtifactError, match="holds no ledger"):
        empty.verify()
    with closing(SharedLedger(f"{url}_none")) as none, pytest.raises(SettingsError, match="refuses"):
        none.prepare()


def test_several_gateways_make_the_schema_once():
    name = f"empty{next(cluster()._numbers)}"
    cluster().execute(f"CREATE DATABASE {name}")
    links = [SharedLedger(cluster().url(name)) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(SharedLedger.prepare, links))
    assert cluster().execute("SELECT version FROM r2v_schema", name) == [(VERSION,)]
    for link in links:
        link.close()


# -- settings and commands --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("store", "problem"),
    [
        ({"url": "postgresql://u:geheim@h/db"}, "holds a password"),
        ({"url": "postgresql://u@h/db?password=geheim"}, "holds a password"),
        ({"url": "postgresql://u:ge@heim@h/db"}, "special characters"),
        ({"url": "postgresql:///db"}, "must name a host and a database"),
        ({"url": "mysql://h/geheim"}, "must name a host"),
        ({"url": "postgresql://u@h/db", "url_env": "X"}, "leave out one"),
        ({"url": "sqlite:///other.db"}, "leave out one"),
        ({"url_env": "NOT_SET_ANYWHERE"}, "is not set"),
        ({"url_env": "TEST_WRONG_URL"}, "special characters"),
    ],
)
def test_urls_that_are_wrong_or_hold_a_password_are_one_line(tmp_path, refused, monkeypatch, store, problem):
    monkeypatch.setenv("TEST_WRONG_URL", "postgresql://u:ge@heim@h/db")
    raw = msgspec.to_builtins(gateway_settings("http://x", "http://x", tmp_path / "ledger.db"))
    given = {key: value for key, value in raw["store"].items() if key not in ("url", "url_env")}
    (tmp_path / "r2v.json").write_bytes(msgspec.json.encode({**raw, "store": given | store}))
    line = refused("serve", tmp_path / "r2v.json")
    assert problem in line and "heim" not in line
    if list(store) == ["url"] and store["url"].startswith("postgresql"):
        line = refused("ship", write_ledger(tmp_path / "l.db"), store["url"])
        assert problem in line and "heim" not in line


def write_ledger(path: Path, sessions: int = 3) -> Path:
    with closing(Ledger(path)) as ledger:
        for i in range(sessions):
            write(ledger, f"s{i}", at=100.0 + i)
            ledger.outcome(f"s{i}", None, float(i % 2))
    return path


def test_a_file_may_be_named_by_a_url(tmp_path):
    raw = msgspec.to_builtins(gateway_settings("http://x", "http://x", "x.db"))
    read = validated(GatewaySettings, {**raw, "store": {"url": f"sqlite:///{tmp_path}/other.db"}})
    assert (read.store.path, read.store.url) == (f"{tmp_path}/other.db", None)


def test_a_ledger_is_moved_and_read_by_its_url(tmp_path, monkeypatch, capsys):
    path, name = write_ledger(tmp_path / "ledger.db"), f"moved{next(cluster()._numbers)}"
    cluster().execute(f"CREATE DATABASE {name}")
    url = cluster().url(name)

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["r2v", *map(str, arguments)])
        with pytest.raises(SystemExit, match="None"):
            app()
        return capsys.readouterr().out

    assert "6 rows" in run("ship", path, url) and "0 rows" in run("ship", path, url)
    assert "6 rows" in run("ship", path, url, "--again")
    assert "3 episodes" in run("export", url, tmp_path / "a.parquet")
    run("export", path, tmp_path / "b.parquet")
    assert read_episodes(tmp_path / "a.parquet") == read_episodes(tmp_path / "b.parquet")
    assert days_of(Path(url)) == days_of(path) == 1.0 and detect(Path(url)) == "ledger"
    assert "teacher" in run("advise", url, "--out", tmp_path / "advice")


# -- gateways that run ------------------------------------------------------------------------------------------------


def post(url: str, session: str, **more) -> httpx.Response:
    return httpx.post(
        f"{url}/v1/chat/completions", json={"model": "r2v", "messages": ASK, **more},
        headers={**AUTH, "x-session-id": session}, timeout=20,
    )  # fmt: skip


def report(url: str, session: str, reward: float = 1.0, **more) -> httpx.Response:
    body = {"session_id": session, "reward": reward, **more}
    return httpx.post(f"{url}/v1/outcomes", json=body, headers=AUTH, timeout=20)


def until(found, seconds: float = 30.0):
    """What `found` returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


@needs_redis
def test_two_replicas_are_one_record_when_one_is_killed(tmp_path, url, shared, redis_url, monkeypatch):  # noqa: F811
    monkeypatch.setenv("TEST_REDIS", redis_url)
    answered = []
    with ExitStack() as stack:
        replicas = [
            stack.enter_context(served(folder, *workers, store__url=url, store__redis_env="TEST_REDIS"))
            for folder, workers in ((tmp_path / "a", ()), (tmp_path / "b", ("--workers", "2")))
            if folder.mkdir() is None
        ]
        for i in range(24):
            answered.append(replicas[i % 2].ask("both"))
        replicas[0].ask("first")
        assert {report(replica.url, "both", step=3).status_code for replica in replicas} == {200}
        replicas[0].ask("last")  # is in the journal; that is what counts
        replicas[0].end(signal.SIGKILL)
        answered += [replicas[1].ask("both") for _ in range(6)]
        assert report(replicas[1].url, "first", 0.0).status_code == 200  # only the other has served it
        assert report(replicas[1].url, "never").status_code == 400
    assert {answer.status_code for answer in answered} == {200}
    assert CliRunner().invoke(cli, ["ship", str(tmp_path / "a" / "ledger.db"), url]).exit_code == 0
    tenant = next(iter(shared.all_sessions())).split("/")[0]
    steps = shared.steps(f"{tenant}/both")
    assert [step.t for step in steps] == list(range(30))
    assert [step.id for step in steps] == [answer.headers["x-r2v-decision-id"] for answer in answered]
    assert len(shared.steps(f"{tenant}/first")) == len(shared.steps(f"{tenant}/last")) == 1
    rows = shared._all("SELECT session, t, reward FROM outcomes ORDER BY session")
    assert rows == [(f"{tenant}/both", 3, 1.0), (f"{tenant}/first", None, 0.0)]
    assert sum(day["steps"] for day in shared.days(0.0)) == 32


@needs_redis
def test_an_outcome_finds_a_session_of_another_replica(make, url, redis_url, monkeypatch):  # noqa: F811
    monkeypatch.setenv("TEST_REDIS", redis_url)
    one, other = (make(store__url=url, store__redis_env="TEST_REDIS") for _ in range(2))
    assert post(one.url, "s").status_code == 200
    assert report(other.url, "s", 1.0).status_code == 200  # at once: Redis knows it
    until(lambda: not one.service.shipping.waiting())
    subprocess.run(["redis-cli", "-u", redis_url, "flushall"], check=True, capture_output=True)
    assert {report(replica.url, "s", 0.25).status_code for replica in (one, other)} == {200}
    until(lambda: not one.service.shipping.waiting() + other.service.shipping.waiting())
    with closing(SharedLedger(url)) as shared:
        assert shared._all("SELECT reward FROM outcomes") == [(0.25,)]
    shown = [replica.client.get("/v1/sessions").json()["sessions"] for replica in (one, other)]
    assert shown[0] == shown[1] and shown[0][0]["reward"] == 0.25
    assert other.client.get("/v1/sessions/s").json()["steps"][0]["step"] == 0


def test_a_gateway_serves_while_postgres_is_down_and_ships_what_came(make, url, monkeypatch):  # noqa: F811
    monkeypatch.setattr("r2v.gateway.shipping.AGAIN_S", 0.1)
    world, answers, stop = make(store__url=url), [], threading.Event()

    def play(s: int) -> None:
        while not stop.is_set():
            answers.append(post(world.url, f"s{s}"))

    with ThreadPoolExecutor(3) as pool:
        for s in range(3):
            pool.submit(play, s)
        until(lambda: world.service.shipping.seconds() < 1 and len(answers) > 20)
        for number in (signal.SIGQUIT, signal.SIGINT):  # a crash; an orderly stop
            cluster().stop(number)
            found = until(lambda: (s := world.client.get("/v1/stats?days=3").json())["shared"]["problem"] and s)
            assert "out of reach" in found["shared"]["problem"] and "\n" not in found["shared"]["problem"]
            before = len(answers)
            until(lambda before=before: len(answers) > before + 20)
            assert world.client.get("/ready").status_code == world.client.get("/v1/stats").status_code == 200
            samples = dict(line.rsplit(" ", 1) for line in world.client.get("/metrics").text.splitlines() if line[0] != "#")
            assert float(samples["r2v_unshipped_rows"]) > 0 and float(samples["r2v_unshipped_seconds"]) > 0
            refused = world.client.get("/v1/sessions")
            assert refused.status_code == 503 and "retry-after" in refused.headers
            asked = report(world.url, "another replica's")
            assert asked.status_code == 503 and "retry-after" in asked.headers
            cluster().start()
            until(lambda: not world.client.get("/v1/stats").json()["shared"]["problem"])
        stop.set()
    assert {answer.status_code for answer in answers} == {200}
    until(lambda: not world.service.shipping.waiting())
    with closing(SharedLedger(url)) as shared:
        steps = [step.id for s in shared.whole_sessions() for step in s.entries]
        assert sorted(steps) == sorted(answer.headers["x-r2v-decision-id"] for answer in answers)
        assert sum(day["steps"] for day in shared.days(0.0)) == len(answers)


def test_a_gateway_starts_without_its_postgres(make):  # noqa: F811
    url = cluster().database()
    cluster().stop()
    try:
        world = make(store__url=url)
        assert post(world.url, "s").status_code == 200
        assert "out of reach" in world.client.get("/v1/stats").json()["shared"]["problem"]
    finally:
        cluster().start()
    until(lambda: world.client.get("/v1/sessions").json().get("sessions"))


def test_what_is_left_is_shipped_when_gateways_end(tmp_path, url, shared, monkeypatch):
    with served(tmp_path, "--workers", "2", store__url=url) as gateway:
        for i in range(12):
            gateway.ask(f"s{i % 3}")
        assert gateway.end() == -signal.SIGTERM
    assert sorted(row["steps"] for row in shared.sessions(9)) == [4, 4, 4]
    assert shared._all("SELECT COUNT(*) FROM replicas WHERE seen > '-infinity'") == [(0,)]


@pytest.mark.parametrize("options", [(), ("--workers", "2")])
def test_no_step_and_no_end_waits_for_a_postgres_that_hangs(tmp_path, url, options):
    name = url.rsplit("/", 1)[1]
    with served(tmp_path, *options, store__url=url) as gateway:
        assert gateway.ask("s").status_code == 200
        until(lambda: cluster().execute("SELECT steps FROM session_totals", name))
        pids = [pid for (pid,) in cluster().execute(f"SELECT pid FROM pg_stat_activity WHERE datname = '{name}'")]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            assert {gateway.ask("s").status_code for _ in range(10)} == {200}
            assert gateway.end() == -signal.SIGTERM
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
    assert CliRunner().invoke(cli, ["ship", str(tmp_path / "ledger.db"), url]).exit_code == 0
    with closing(SharedLedger(url)) as shared:
        assert [row["steps"] for row in shared.sessions(9)] == [11]


def test_a_second_gateway_without_redis_does_not_start(make, tmp_path, url, refused):  # noqa: F811
    make(store__url=url)
    config = tmp_path / "second.json"
    config.write_bytes(msgspec.json.encode(gateway_settings("http://x", "http://x", tmp_path / "b.db", store__url=url)))
    for options in ((), ("--workers", "2")):
        line = refused("serve", config, "--port", "0", *options)
        assert "budgets would be kept twice" in line and "store.redis_env" in line


def test_what_is_old_is_deleted_in_the_shared_ledger_and_in_the_journal(make, tmp_path, url):  # noqa: F811
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        for i in range(300):
            write(ledger, f"s{i}", at=time.time() - 86_400 * (20 if i < 250 else 5))
    world = make(store__url=url)
    until(lambda: not world.service.shipping.waiting() and world.service.shipping.identity)
    assert world.post("/v1/cleanup", {"keep_days": 10}).json() == {"deleted_sessions": 250}
    assert len(world.rows("id")) == 50 and len(world.client.get("/v1/sessions").json()["sessions"]) == 50
    assert sum(day["steps"] for day in world.client.get("/v1/stats?days=30").json()["days"]) == 300


@needs_redis
def test_a_journal_forgets_what_is_quiet_and_shipped(make, tmp_path, url, shared, redis_url, monkeypatch):  # noqa: F811
    now, names = time.time(), ("old", "new")
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        for name, age in zip(names, (2 * 86_400, 3_600), strict=True):
            write(ledger, name, at=now - age)
    monkeypatch.setenv("TEST_REDIS", redis_url)
    world = make(store__url=url, store__redis_env="TEST_REDIS")
    until(lambda: world.rows("session") == [("new",)])
    assert {row["session"] for row in shared.sessions(9)} == set(names)


def test_no_password_is_shown(make, url, monkeypatch, caplog):  # noqa: F811
    monkeypatch.setenv("TEST_URL", url.replace("postgres@", "postgres:geheim@"))
    world = make(store__url_env="TEST_URL")
    log = logging.getLogger("uvicorn.error")
    log.addHandler(caplog.handler)
    assert post(world.url, "s").status_code == 200
    until(lambda: world.client.get("/v1/sessions").json()["sessions"])
    cluster().stop()
    try:
        post(world.url, "s")
        until(lambda: world.service.shipping.problem)
        shown = world.client.get("/v1/stats?days=1").text
        asked = world.client.get("/v1/sessions").text
    finally:
        cluster().start()
        log.removeHandler(caplog.handler)
    assert "geheim" not in f"{shown} {asked} {caplog.text}" and "out of reach" in caplog.text
