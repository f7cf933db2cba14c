"""The totals that the page and the budgets read: kept as rows come, counted in batches of rows that were there before."""

from __future__ import annotations

import random
import sqlite3
import time
from contextlib import closing

import pytest

from r2v.gateway.budgets import Account, Amount
from r2v.gateway.ledger import OLD_ROWS, LastVerdict, Ledger
from test_gateway import make  # noqa: F401
from test_gateway_modes import write

MODES = ("observe", "canary", "control")


def uncount(ledger: Ledger, tables: tuple[str, ...] = ()) -> None:
    """Make a ledger one of schema 5, of before there were totals."""
    db = ledger._db
    for trigger, *_ in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        db.execute(f"DROP TRIGGER {trigger}")
    shared = ("session_states", "signatures", "kill_switch", "worker_counts", "charges", "holds", "identity", "keys")
    for table in ("session_totals", "day_totals", "comparisons", "uncounted", "shipped", *shared, *tables):
        db.execute(f"DROP TABLE {table}")
    for column in ("why", "id"):
        db.execute(f"ALTER TABLE abandoned DROP COLUMN {column}")
    db.execute("PRAGMA user_version = 5")


def write_some(ledger: Ledger, sessions: int, seed: int) -> None:
    """Sessions of several steps, days, modes and keys, mixed; outcomes, verdicts and abandoned calls."""
    draw = random.Random(seed)
    rows = [(s, t) for s in range(sessions) for t in range(draw.randrange(1, 6))]
    draw.shuffle(rows)
    for s, t in rows:
        at = 86_400.0 * draw.randrange(20_000, 20_004) + draw.random()
        verdict = LastVerdict("tests", draw.randrange(2), draw.randrange(2)) if draw.random() < 0.2 else None
        write(
            ledger, f"s{s}", t, at=at, key=f"k{s % 3}", mode=MODES[s % 3] if draw.random() < 0.9 else None, verdict=verdict,
            source=draw.choice(["slm", "teacher"]) if s % 2 else "slm", alike=draw.choice([None, True, False]),
            score=draw.random(), route=draw.choice(["continue", "escalate"]), tokens=draw.randrange(100),
            goal=f"goal {s} {t}",
        )  # fmt: skip
        if draw.random() < 0.2:
            ledger.outcome(f"s{s}", draw.choice([None, 1]), float(draw.randrange(2)))
        if draw.random() < 0.1:
            abandon(ledger, s, draw.randrange(50))


def abandon(ledger: Ledger, s: int, tokens: int) -> None:
    """A step that was charged and left no row."""
    name = f"abandoned {ledger._db.total_changes}"
    ledger.accounts.hold(name, Account(f"s{s}", f"k{s % 3}", 20_000), Amount(1, 50, 1.0))
    ledger.accounts.release(name, Amount(), Amount(1, tokens, 0.125), "client gone")


def shown(ledger: Ledger) -> list:
    """All that is read of the totals."""
    return [
        ledger.sessions(1000), ledger.sessions(1000, text="GOAL 1"), ledger.days(0.0), ledger.labels(86_400.0 * 20_001),
        [ledger.ended(mode, 0.0) for mode in MODES], sorted(ledger.scores_and_failures(1000, None)[0]),
        [ledger.outcome_of(f"s{s}") for s in range(200)],
    ]  # fmt: skip


@pytest.fixture
def ledger(tmp_path):
    with closing(Ledger(tmp_path / "ledger.db")) as opened:
        yield opened


def expected_sessions(db: sqlite3.Connection) -> dict[str, tuple]:
    """What is known of each session, from its rows."""
    rows = db.execute(
        "SELECT session, COUNT(*), MAX(time), SUM(teacher_calls), SUM(slm_usd), COUNT(alike), SUM(alike), "
        "SUM(route = 'escalate'), goal FROM steps GROUP BY session"
    )
    return {session: tuple(rest) for session, *rest in rows}


def test_totals_are_those_of_the_rows(ledger):
    write_some(ledger, 120, seed=1)
    known = expected_sessions(ledger._db)
    found = {
        row["session"]: (row["steps"], row["time"], row["teacher_calls"], row["slm_usd"], row["labelled"], row["alike"],
                         row["escalated"], row["goal"])
        for row in ledger.sessions(1000)
    }  # fmt: skip
    assert found == known
    days = ledger._db.execute(
        "SELECT date(time, 'unixepoch'), COUNT(*), SUM(tokens), SUM(source = 'teacher') FROM steps GROUP BY 1 ORDER BY 1"
    ).fetchall()
    served = [day for day in ledger.days(0.0) if day["steps"]]
    assert [(day["day"], day["steps"], day["teacher_steps"]) for day in served] == [
        (d, n, taught) for d, n, _, taught in days
    ]
    finals = [outcome for s in range(120) if (outcome := ledger.outcome_of(f"s{s}")) is not None]
    assert sum(day["ended"] for day in ledger.days(0.0)) == len(finals) > 20
    assert sum(day["failed"] for day in ledger.days(0.0)) == sum(reward < 0.5 for reward, _ in finals)
    paid = ledger._db.execute("SELECT SUM(tokens) FROM (SELECT tokens FROM steps UNION ALL SELECT tokens FROM abandoned)")
    assert ledger._db.execute("SELECT SUM(tokens) FROM day_totals").fetchone() == paid.fetchone()


@pytest.mark.parametrize("meanwhile", [False, True])
def test_a_ledger_of_before_shows_the_same_once_it_is_counted(tmp_path, monkeypatch, meanwhile):
    """`meanwhile`: steps and outcomes come while it is counted, of sessions of before too."""
    monkeypatch.setattr(time, "time", lambda: 86_400.0 * 20_004)
    with closing(Ledger(tmp_path / "anew.db")) as anew, closing(Ledger(tmp_path / "old.db")) as made:
        for each in (anew, made):
            write_some(each, 3 * OLD_ROWS // 4, seed=1)
        uncount(made)
        with closing(Ledger(tmp_path / "old.db")) as old:
            left, i = old.uncounted(), 0
            assert left > 2 * OLD_ROWS and old.days(0.0)[-1]["steps"] == 0
            while left:
                for each in (anew, old) if meanwhile else ():
                    write(each, f"s{i}", 90, at=86_400.0 * 20_003.5 + i, key=f"k{i % 3}", mode="canary", tokens=7)
                    each.outcome(f"s{i + 1}", None, 1.0)
                    abandon(each, i, 1)
                i, left = i + 1, old.count_old()
            assert i > 2 and old.count_old() == old.uncounted() == 0
            assert shown(old) == shown(anew)


def test_the_page_reads_as_much_of_a_large_ledger_as_of_a_small_one(ledger, monkeypatch):
    """Counted in steps of SQLite's machine: what a query of the page costs may not grow with the rows."""

    def work() -> dict[str, int]:
        ticks: dict[str, int] = {}
        for name, query in {
            "sessions": lambda: ledger.sessions(100), "none": lambda: ledger.sessions(100, text="no such"),
            "days": lambda: ledger.days(0.0), "labels": lambda: ledger.labels(0.0), "span": ledger.span,
            "ended": lambda: ledger.ended("canary", 0.0), "scores": lambda: ledger.scores_and_failures(50, None),
            "end": ledger.last_end, "charged": lambda: ledger.accounts.charged("all 20000"),
            "of": lambda: ledger.outcome_of("s1"),
        }.items():  # fmt: skip
            ticks[name] = 0

            def tick(name: str = name) -> int:
                ticks[name] += 1
                return 0

            for db in (ledger._db, ledger._reader):
                db.set_progress_handler(tick, 100)
            query()
        return ticks

    for bound in ("RECENT", "EVIDENCE"):
        monkeypatch.setattr(f"r2v.gateway.reading.{bound}", 100)
    grown = []
    for first, last in ((0, 500), (500, 5000)):
        for i in range(first, last):
            write(ledger, f"s{i}", at=86_400.0 * 20_000 + i, mode="canary", alike=True, source="slm")
            ledger.outcome(f"s{i}", None, float(i % 2))
        grown.append(work())
    assert all(large <= 1.5 * small + 2 for small, large in zip(grown[0].values(), grown[-1].values(), strict=True)), grown


def test_sessions_are_paged_by_time_and_found_among_the_recent(ledger, monkeypatch):
    monkeypatch.setattr("r2v.gateway.reading.RECENT", 4)
    for i in range(10):
        write(ledger, f"s{i}", at=100.0 + i)
    names, before = [], None
    while page := ledger.sessions(3, before=before):
        names.append([row["session"] for row in page])
        before = page[-1]["time"]
    assert names == [["s9", "s8", "s7"], ["s6", "s5", "s4"], ["s3", "s2", "s1"], ["s0"]]
    assert [row["session"] for row in ledger.sessions(9, text="S6")] == ["s6"] and not ledger.sessions(9, text="s5")
    assert [row["session"] for row in ledger.sessions(9, text="s5", before=109.0)] == ["s5"]


def test_evidence_rests_on_the_latest(ledger, monkeypatch):
    monkeypatch.setattr("r2v.gateway.reading.EVIDENCE", 3)
    for i in range(6):
        write(ledger, f"s{i}", at=100.0 + i, mode="canary", alike=i >= 4)
        ledger.outcome(f"s{i}", None, float(i < 4))
    assert ledger.labels(0.0) == (3, 2) and ledger.labels(105.0) == (1, 1)
    assert ledger.ended("canary", 0.0) == (3, 2)


# -- upkeep -----------------------------------------------------------------------------------------------------------


def test_old_sessions_are_deleted_and_the_sums_of_their_days_stay(ledger):
    write_some(ledger, 40, seed=2)
    day = 86_400.0 * 20_010
    for t in range(3 * OLD_ROWS // 2):  # more than one transaction takes
        write(ledger, f"long{t % 2}", t, at=day - 1 + t / OLD_ROWS)
    write(ledger, "kept", at=day + 3, tokens=5)
    ledger.states.begin_step("long0")
    ledger.states.sign("long0", "sig", "m")
    days, tables = ledger.days(0.0), ("steps", "outcomes", "verdicts", "abandoned", "comparisons", "session_states")
    counts = []
    while deleted := ledger.delete_old(day + 2):
        counts.append(deleted)
    assert sum(counts) == 42 and len(counts) == 2
    assert [row["session"] for row in ledger.sessions(100)] == ["kept"] and ledger.steps("kept")
    rows = [ledger._db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in (*tables, "signatures")]
    assert rows == [1, 0, 0, 0, 0, 0, 0]
    assert ledger.days(0.0) == days and ledger.accounts.charged("session long0") == Amount()
    assert ledger.states.begin_step("long0") == 0  # it begins anew


def test_a_gateway_counts_an_older_ledger_and_deletes_what_is_old_beside_serving(make, tmp_path):  # noqa: F811
    now = time.time()
    with closing(Ledger(tmp_path / "ledger.db")) as made:
        for i in range(3 * OLD_ROWS):
            write(made, f"s{i % 100}", i, at=now - 86_400 * (20 if i % 100 < 60 else 5))
        uncount(made)
    world = make(store__keep_days=10, budget__per_day={"teacher_calls": 10_000})

    def shown() -> dict:
        return world.client.get("/v1/stats?days=30").json()

    deadline = time.monotonic() + 30
    while shown()["uncounted"]:
        assert (
            "steps of an older ledger" in world.client.get("/v1/mode").json()["next"]["reason"] or not shown()["uncounted"]
        )
        assert world.post().status_code == 200 and time.monotonic() < deadline
    with closing(sqlite3.connect(world.ledger)) as db:
        while db.execute("SELECT COUNT(*) FROM steps WHERE session LIKE 's%'").fetchone() != (15 * 40,):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert sum(day["steps"] for day in shown()["days"]) >= 3 * OLD_ROWS
    refused = world.post("/v1/cleanup", {"keep_days": 0})
    assert refused.status_code == 400 and "keep_days" in refused.json()["error"]["message"]
    assert world.post("/v1/cleanup", {"keep_days": 1}).json() == {"deleted_sessions": 40}
    assert world.post("/v1/cleanup", {}).json() == {"deleted_sessions": 0}
