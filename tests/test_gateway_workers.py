"""The gateway as several processes: workers that share one ledger, and the control plane on a port of its own."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from r2v.core.types import Decision, Step
from r2v.gateway.check import problems
from r2v.gateway.control import PLAIN, ROUTES
from r2v.gateway.ledger import Ledger, ModeChange
from r2v.gateway.metrics import Counts
from r2v.gateway.sessions import Items, LocalSessions
from r2v.gateway.settings import GatewaySettings
from r2v.messages.protocol import encode
from servers import KEY, Model, free_port, running, settings
from test_gateway import ASK, TOOLS
from test_gateway_modes import STEP, write
from test_routers_folders import make as make_router

AUTH = {"authorization": f"Bearer {KEY}"}
DECISION = Decision("escalate", "risk_above", 0.5, "risk", 0.4, 1.0, (), "risk_above")


class Served:
    """`r2v serve`, as one process or as several."""

    def __init__(
        self, folder: Path, models: tuple[str, str], *options: str, env: Mapping[str, str] | None = None, **changes
    ) -> None:
        self.ledger, self.config, self.answered = folder / "ledger.db", folder / "gateway.yaml", []
        self._models = models
        self.write(**changes)
        command = [sys.executable, "-c", "from r2v.cli import app; app()", "serve", str(self.config), *options]
        command += [] if "server__port" in changes else ["--port", "0"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "R2V_API_KEY": KEY, **(env or {})},
        )  # fmt: skip
        lines = [self.process.stdout.readline() for _ in range(4)]
        assert lines[-1].startswith("page"), [*lines, self.process.stderr.read()]
        self.url, self.admin = lines[0].split()[1], lines[-1].split()[1].split("/#")[0]

    def write(self, **changes) -> None:
        """Its settings file, with changes of `servers.settings`."""
        self.config.write_text(msgspec.json.encode(settings(*self._models, self.ledger, **changes)).decode())

    def children(self) -> list[int]:
        """Of workers and control plane, by the port that each listens on: all of those that serve HTTP."""
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as file:
            pids = [int(pid) for pid in file.read().split()]
        return [pid for pid in pids if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]

    def workers(self) -> dict[int, Counts]:
        """What each worker has counted, by its process."""
        with closing(sqlite3.connect(self.ledger)) as db:
            rows = db.execute("SELECT worker, counts FROM worker_counts").fetchall()
        return {int(worker): msgspec.msgpack.decode(counts, type=Counts) for worker, counts in rows}

    def ask(self, session: str, client: httpx.Client | None = None, **more) -> httpx.Response:
        """A step, on a connection of its own unless a client is given."""
        post = httpx.post if client is None else client.post
        body = {"model": "r2v", "messages": ASK, "tools": TOOLS, **more}
        headers = {**AUTH, "x-session-id": session}
        return post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=30)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        self.process.stdout.read(), self.process.stderr.read()
        return self.process.wait(timeout=30)


@contextmanager
def served(folder: Path, *options: str, **changes) -> Iterator[Served]:
    with running(Model("small-1", error_rate=0.5).app()) as small, running(Model("teacher-1").app()) as teacher:
        started = Served(folder, (small, teacher), *options, **changes)
        try:
            yield started
        finally:
            if started.process.poll() is None:
                started.end()
            started.process.stdout.close()
            started.process.stderr.close()


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 20
    while alive := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
        assert alive
    return True


def test_two_workers_are_one_gateway(tmp_path):
    with served(tmp_path, "--workers", "2", budget__session={"teacher_calls": 100}) as gateway:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda i: gateway.ask(f"s{i % 4}"), range(160)))
        assert {answer.status_code for answer in answers} == {200}
        steps = sorted((answer.headers["x-r2v-session-id"], int(answer.headers["x-r2v-step"])) for answer in answers)
        assert steps == [(f"s{s}", t) for s in range(4) for t in range(40)]  # none twice, none missing
        deadline = time.monotonic() + 20
        while sum(sum(counts.arms.values()) for counts in gateway.workers().values()) < 160:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        by_worker = [sum(counts.arms.values()) for counts in gateway.workers().values()]
        assert len(by_worker) == 2 and min(by_worker) >= 8, by_worker
        admin = httpx.Client(base_url=gateway.admin, headers=AUTH, timeout=30)
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(admin.get("/metrics").text) for sample in family.samples
        }  # fmt: skip
        assert samples["r2v_requests_total", "slm"] + samples.get(("r2v_requests_total", "teacher"), 0) == 160
        assert samples["r2v_overhead_seconds_count",] == 160 and samples["r2v_upstream_available", "slm"] == 1
        shown = admin.get("/v1/stats?days=1").json()
        assert sum(shown["arms"].values()) == shown["days"][0]["steps"] == 160
        assert [row["steps"] for row in admin.get("/v1/sessions").json()["sessions"]] == [40] * 4
        assert len(admin.get("/v1/sessions/s1").json()["steps"]) == 40 and "r2v gateway" in admin.get("/").text
        # Each plane has its own paths.
        paths = [prefix + path.replace("{session:path}", "s1") for path, *_ in ROUTES for prefix in ("/v1", "")]
        for path in (*PLAIN, *paths):
            refused = httpx.get(gateway.url + path, headers=AUTH)
            assert refused.status_code == 404 and f"admin port: {gateway.admin}{path}" in refused.json()["error"]["message"]
        assert admin.post("/v1/chat/completions", json={"messages": ASK}).status_code == 404
        assert httpx.get(f"{gateway.admin}/v1/stats").status_code == 401
        # What is switched on the one holds on all workers of the other.
        assert admin.post("/v1/kill", json={"on": True}).json() == {"on": True}
        assert {gateway.ask("k", model="r2v:teacher").headers["x-r2v-arm"] for _ in range(12)} == {"slm"}
        admin.post("/v1/kill", json={"on": False})
        assert admin.post("/v1/mode", json={"action": "rollback"}).json()["mode"] == "observe"
        assert {gateway.ask("m").headers["x-r2v-arm"] for _ in range(12)} == {"teacher"}
        admin.close()
        children = gateway.children()
        assert len(children) == 3
        assert gateway.end() == -signal.SIGTERM and gone(children)


def test_workers_choose_among_more_than_two_models(tmp_path):
    """Every process that loads the router knows the models that it may name, and so does `r2v check`."""
    replace(make_router("pool_bandit"), fitted_with=None, threshold=-1e9).save(tmp_path / "router")
    with running(Model("medium-1").app()) as medium:
        other = {"base_url": f"{medium}/v1", "model": "medium-1", "price": {"input": 2, "output": 4}}
        changes = {"models__medium": other, "route__router": str(tmp_path / "router")}
        with served(tmp_path, "--workers", "2", **changes) as gateway:
            assert {gateway.ask(f"s{i}", model="r2v:medium").headers["x-r2v-model"] for i in range(12)} == {"medium-1"}
            assert gateway.ask("own").headers["x-r2v-arm"] in ("medium", "teacher")
            models = httpx.get(f"{gateway.admin}/v1/stats", headers=AUTH).json()["models"]
            assert {name: one["model"] for name, one in models.items()} == {
                "slm": "small-1", "medium": "medium-1", "teacher": "teacher-1",
            }  # fmt: skip
            found = problems(msgspec.json.decode(gateway.config.read_bytes(), type=GatewaySettings), lambda line: None)
            assert not [problem for problem in found if "medium" in problem]
            assert gateway.end() == -signal.SIGTERM


def test_a_killed_worker_loses_no_answered_step_and_is_started_again(tmp_path):
    with served(tmp_path, "--workers", "2") as gateway:
        stop, killed, before = threading.Event(), [], gateway.children()

        def load(i: int) -> None:
            with httpx.Client() as client:
                while not stop.is_set():
                    try:
                        answer = gateway.ask(f"s{i % 5}", client)
                    except httpx.HTTPError:
                        continue
                    gateway.answered.append((answer.status_code, answer.headers.get("x-r2v-decision-id")))

        with ThreadPoolExecutor(10) as pool:
            for i in range(10):
                pool.submit(load, i)
            try:
                deadline = time.monotonic() + 60
                while len(gateway.answered) < 60 or len(gateway.workers()) < 2:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                killed = [max(gateway.workers(), key=lambda pid: sum(gateway.workers()[pid].arms.values()))]
                os.kill(killed[0], signal.SIGKILL)
                so_far = len(gateway.answered)
                while len(gateway.answered) < so_far + 60 or len(gateway.workers()) < 3:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            finally:
                stop.set()
        assert {status for status, _ in gateway.answered} == {200}
        with closing(sqlite3.connect(gateway.ledger)) as db:
            written = {row[0] for row in db.execute("SELECT id FROM steps")}
            twice = db.execute("SELECT session, t FROM steps GROUP BY session, t HAVING COUNT(*) > 1").fetchall()
        assert {step for _, step in gateway.answered} <= written and not twice
        after = gateway.children()
        assert len(after) == 3 and killed[0] in before and killed[0] not in after
        gateway.process.kill()  # then its children end by themselves
        gateway.process.wait()
        assert gone(after)


def test_a_second_gateway_does_not_share_the_port(tmp_path):
    with served(tmp_path, "--workers", "2") as gateway:
        port = gateway.url.rsplit(":", 1)[1]
        command = [
            sys.executable,
            "-c",
            "from r2v.cli import app; app()",
            "serve",
            "--mock",
            "--workers",
            "2",
            "--port",
            port,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert done.returncode == 1 and done.stderr.startswith(f"r2v: cannot listen on 127.0.0.1:{port}"), done.stderr


def test_what_a_client_refers_to_is_found_by_every_worker(tmp_path):
    with served(tmp_path, "--workers", "2", store__redact=True) as gateway:
        found = []
        for i in range(12):
            first = httpx.post(
                f"{gateway.url}/v1/responses", json={"model": "r2v", "input": f"word-{i}"}, headers=AUTH
            ).json()
            body = {"model": "r2v", "input": "and now?", "previous_response_id": first["id"]}
            found.append(httpx.post(f"{gateway.url}/v1/responses", json=body, headers=AUTH, timeout=30).status_code)
        assert found == [200] * 12
        assert all(b"word-3" not in path.read_bytes() for path in tmp_path.glob("ledger.db*"))


def test_an_admin_port_with_one_worker_and_what_does_not_start(tmp_path):
    with served(tmp_path, "--admin-port", str(free_port())) as gateway:
        assert gateway.ask("a").status_code == 200
        assert httpx.get(f"{gateway.admin}/v1/mode", headers=AUTH).json()["mode"] == "active"
        assert gateway.admin != gateway.url and len(gateway.children()) == 2
    config = tmp_path / "gateway.yaml"
    config.write_text(config.read_text().replace('"router":"rules"', '"router":"gone"'))
    command = [sys.executable, "-c", "from r2v.cli import app; app()", "serve", str(config), "--port", "0", "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "R2V_API_KEY": KEY}, timeout=60)
    assert done.returncode == 1 and re.fullmatch(r"r2v: .*gone.*\n", done.stderr), done.stderr


# -- what processes share ---------------------------------------------------------------------------------------------


def test_a_ledger_keeps_its_locks_where_the_process_opens_it_again(tmp_path):
    """Without them another process that reads it, and ends, deletes the log that holds the latest rows."""
    path = tmp_path / "ledger.db"
    count = "SELECT COUNT(*) FROM steps"
    reads = f"import sqlite3; db = sqlite3.connect({str(path)!r}); print(db.execute({count!r}).fetchone()); db.close()"
    with closing(Ledger(path)) as ledger:
        write(ledger, "s", 0)
        with closing(Ledger(path)):
            pass
        for t in (1, 2):
            done = subprocess.run([sys.executable, "-c", reads], capture_output=True, text=True, check=True)
            assert done.stdout == f"({t},)\n"
            assert path.with_name("ledger.db-wal").exists()
            write(ledger, "s", t)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute(count).fetchone() == (3,)


def test_a_session_is_one_for_all_processes_of_a_ledger(tmp_path):
    async def play() -> None:
        ledgers = [Ledger(tmp_path / "ledger.db") for _ in range(2)]
        a, b = (LocalSessions(ledger, 0.2) for ledger in ledgers)

        async def step(i: int, sessions: LocalSessions, teacher: bool = False) -> int:
            session = await sessions.enter("k/s", dry=False)
            write(ledgers[i], "k/s", session.t, step=step_of(session.t))
            await sessions.remember(session, DECISION, teacher=teacher, tokens=100 + session.t)
            return session.t

        assert [await step(i % 2, (a, b)[i % 2], i == 3) for i in range(4)] == [0, 1, 2, 3]
        for sessions in (a, b):
            session = await sessions.enter("k/s", dry=True)
            assert (session.t, len(session.memory.decisions), session.cold, session.prompt_tokens) == (4, 4, False, 103)
        # Two steps of one session at the same time, written in the other order.
        first, second = await a.enter("k/s", dry=False), await b.enter("k/s", dry=False)
        assert (first.t, second.t) == (4, 5)
        for i, sessions, session in ((1, b, second), (0, a, first)):
            write(ledgers[i], "k/s", session.t, step=step_of(session.t))
            await sessions.remember(session, DECISION, teacher=False, tokens=1)
        await a.sign(first, "sig", "teacher-1")
        for sessions in (a, b):
            session = await sessions.enter("k/s", dry=True)
            assert len(session.memory.decisions) == 6 and session.signatures == {"sig": "teacher-1"}
        await asyncio.sleep(0.3)
        assert (await b.enter("k/s", dry=True)).cold
        assert not await b.had_tools("k/s")
        await a.offer_tools("k/s")
        assert await b.had_tools("k/s") and (await b.enter("k/s", dry=True)).t == 6
        await b.kill(True)
        assert await a.killed() and await b.killed()
        await a.kill(False)
        assert not await b.killed()
        assert await b.mode() is None
        await a.set_mode(change := ModeChange("shadow", "observe", "200 of 200 answers alike", 1.5, True))
        assert await b.mode() == await a.mode() == change
        # Sessions without a name are numbered alike.
        assert await a.run_of("auto", fresh=True) == await b.run_of("auto", fresh=True) == "auto"
        write(ledgers[0], "auto", 0)
        assert await a.run_of("auto", fresh=False) == await b.run_of("auto", fresh=False) == "auto"
        assert await b.run_of("auto", fresh=True) == "auto.1"
        write(ledgers[1], "auto.1", 0)
        assert await a.run_of("auto", fresh=False) == "auto.1" and await a.run_of("auto", fresh=True) == "auto.2"
        for ledger in ledgers:
            ledger.close()

    asyncio.run(play())


def step_of(t: int) -> Step:
    return Step(t, 0, STEP.observation, replace(STEP.choice, decision=DECISION))


def test_the_steps_of_an_older_ledger_go_on_where_they_ended(tmp_path):
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        for t in range(3):
            write(ledger, "k/s", t)
        assert ledger.states.next_step("k/s") == 3 and ledger.states.begin_step("k/s") == 3
        assert ledger.states.begin_step("k/s") == 4 and ledger.states.next_step("other") == 0
        ledger.states.offer_tools("late")
        assert ledger.states.begin_step("late") == 0


@pytest.mark.parametrize("shared", [False, True])
def test_items_are_kept_up_to_a_size_the_oldest_forgotten_first(tmp_path, shared):
    path = str(tmp_path / "items.db") if shared else ":memory:"
    a = Items(path, most_bytes=900)
    b = Items(path, most_bytes=900) if shared else a
    a.keep("k", {"one": [{"text": "x" * 300}], "two": [{"text": "y" * 300}]})
    assert b.get("k", "one") == encode([{"text": "x" * 300}]) and b.get("other", "one") is None
    b.keep("k", {"one": [{"text": "z" * 300}]})  # again: it counts once
    assert a.get("k", "one") == encode([{"text": "z" * 300}]) and a.get("k", "two") is not None
    a.keep("k", {"three": [{"text": "w" * 300}]})
    assert b.get("k", "two") is None and b.get("k", "one") is not None and b.get("k", "three") is not None
