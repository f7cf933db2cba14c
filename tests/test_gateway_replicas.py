"""Replicas of the gateway: sessions, budgets and the kill switch in a real Redis, behind a real reverse proxy."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import httpx
import msgspec
import pytest
from typer.testing import CliRunner

from r2v.cli import cli
from r2v.clients.mock import complete
from r2v.core.errors import SettingsError
from r2v.core.types import Decision
from r2v.gateway.check import problems
from r2v.gateway.ledger import Ledger, ModeChange
from r2v.gateway.sessions import SIGNATURES
from r2v.gateway.stores import shared_state
from servers import KEY, Model, free_port, gateway, running, settings

pytest.importorskip("redis", reason="the extra `redis` is not installed")
pytestmark = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")

AUTH = {"authorization": f"Bearer {KEY}"}
ASK = [{"role": "user", "content": "look for the red value"}]


@contextmanager
def started(command: list[str], port: int):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 0.2).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, command
                time.sleep(0.02)
        yield process
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    port = free_port()
    folder = tmp_path_factory.mktemp("redis")
    command = ["redis-server", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(folder)]
    with started(command, port):
        yield f"redis://127.0.0.1:{port}/0"


def shared_sessions(url: str, prefix: str):
    from r2v.gateway.redis_connection import Connection
    from r2v.gateway.redis_state import RedisSessions

    return RedisSessions(Connection(url, prefix), 0.2)


def test_a_session_is_one_for_all_replicas(redis_url):
    async def play() -> None:
        a, b = shared_sessions(redis_url, "one"), shared_sessions(redis_url, "one")
        first = await a.enter("k/s", dry=False)
        decision = Decision("escalate", "risk_above", 0.5, "risk", 0.4, 1.0, (), "risk_above")
        await a.remember(first, decision, teacher=True, tokens=123)
        await a.sign(first, "sig", "teacher-1")
        second = await b.enter("k/s", dry=False)
        assert (first.t, second.t) == (0, 1) and second.memory.decisions == (decision,)
        assert not second.cold and second.prompt_tokens == 123 and second.signatures == {"sig": "teacher-1"}
        for i in range(SIGNATURES + 3):
            await b.sign(second, f"sig{i}", "teacher-1")
        assert list((await a.enter("k/s", dry=True)).signatures) == [f"sig{i}" for i in range(3, SIGNATURES + 3)]
        assert (await b.enter("k/s", dry=True)).t == 2 and (await a.enter("k/s", dry=False)).t == 2
        await asyncio.sleep(0.3)
        assert (await b.enter("k/s", dry=True)).cold
        await b.kill(True)
        assert await a.killed()
        await b.kill(False)
        assert not await a.killed()
        assert await a.mode() is None
        await b.set_mode(change := ModeChange("shadow", "observe", "200 of 200 answers alike", 1.5, True))
        assert await a.mode() == change
        await a.close()
        await b.close()

    asyncio.run(play())


def test_decisions_that_an_older_replica_wrote_are_read(redis_url):
    """Replicas are replaced one after another while their Redis stays."""
    old = {"rung": "teacher_latch", "risk": 0.7, "threshold": 0.4, "propensity": 1.0, "reason": "latch: 2 before"}

    async def play() -> None:
        sessions = shared_sessions(redis_url, "old")
        await sessions._redis.run(("RPUSH", "old:decisions:k/s", json.dumps(old)))
        (decision,) = (await sessions.enter("k/s", dry=True)).memory.decisions
        assert (decision.route, decision.code, decision.score, decision.score_kind) == ("takeover", "latch", 0.7, "custom")
        await sessions.close()

    asyncio.run(play())


NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream replicas {{ server {a}; server {b}; }}
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://replicas; proxy_buffering off; }} }}
}}
"""


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_two_replicas_behind_a_proxy_never_exceed_a_budget(redis_url, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_REDIS", redis_url)
    small, teacher = Model("small-1", error_rate=0.5), Model("teacher-1")
    with ExitStack() as stack:
        urls = [stack.enter_context(running(model.app())) for model in (small, teacher)]
        replicas = []
        for name in ("a", "b"):
            config = settings(
                *urls, tmp_path / f"{name}.db", route__router="verifier", route__threshold=0.0,
                store__redis_env="TEST_REDIS",
                budget__session={"teacher_calls": 7}, budget__per_day={"teacher_calls": 10},
            )  # fmt: skip
            replicas.append(stack.enter_context(gateway(config)))
        port = free_port()
        conf = tmp_path / "nginx.conf"
        a, b = (url.removeprefix("http://") for url, _ in replicas)
        conf.write_text(NGINX.format(folder=tmp_path, a=a, b=b, port=port))
        stack.enter_context(started(["nginx", "-c", str(conf), "-e", str(tmp_path / "start.log")], port))
        teacher.delay = 0.05

        def ask(i: int) -> httpx.Response:
            headers = {**AUTH, "x-session-id": f"s{i % 2}"}
            body = {"model": "r2v", "messages": ASK}
            return httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, headers=headers, timeout=20)

        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(ask, range(40)))
        assert {answer.status_code for answer in answers} == {200}
        assert len(teacher.seen) == 10  # two sessions could have had seven each: the day had ten
        steps = sorted((answer.headers["x-r2v-session-id"], int(answer.headers["x-r2v-step"])) for answer in answers)
        assert steps == [(f"s{s}", t) for s in (0, 1) for t in range(20)]  # no step twice, none missing
        served = [len(service.ledger.sessions(10)) for _, service in replicas]
        assert served == [2, 2]  # both replicas served both sessions
        httpx.post(f"{replicas[0][0]}/v1/kill", json={"on": True}, headers=AUTH)
        answer = httpx.post(
            f"{replicas[1][0]}/v1/chat/completions", json={"model": "r2v:teacher", "messages": ASK}, headers=AUTH
        )
        assert answer.headers["x-r2v-arm"] == "slm"


def test_without_its_redis_no_step_is_served(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_REDIS", f"redis://127.0.0.1:{free_port()}/0")
    model = Model("small-1")
    with running(model.app()) as url:
        config = settings(url, url, Path(tmp_path, "ledger.db"), store__redis_env="TEST_REDIS")
        with gateway(config) as (there, _):
            answer = httpx.post(f"{there}/v1/chat/completions", json={"messages": ASK}, headers=AUTH, timeout=20)
    assert answer.status_code == 503 and answer.headers["x-r2v-reason"] == "store"
    assert not model.seen


def test_a_step_whose_redis_goes_is_refused(redis_url, tmp_path, monkeypatch):
    """While it asks for the kill switch, and after its row has been written."""
    monkeypatch.setenv("TEST_REDIS", redis_url)

    async def gone(*_):
        raise OSError("Redis: Connection closed by server.")

    def thinking(body: dict) -> dict:
        answer = complete(model.mock_model, body)
        answer["choices"][0]["message"]["thinking_blocks"] = [{"type": "thinking", "thinking": "so", "signature": "abc"}]
        return answer

    model = Model("small-1")
    model.reply = thinking
    with running(model.app()) as url:
        config = settings(url, url, tmp_path / "ledger.db", store__redis_env="TEST_REDIS")
        for name in ("killed", "sign"):
            with gateway(config) as (there, service):
                monkeypatch.setattr(service.sessions, name, gone)
                answer = httpx.post(f"{there}/v1/chat/completions", json={"messages": ASK}, headers=AUTH, timeout=20)
            assert (answer.status_code, answer.headers["x-r2v-reason"]) == (503, "store"), name


def test_a_redis_that_is_back_fails_one_command_at_most(tmp_path):
    """The connections that had been idle ended with it."""
    from r2v.gateway.redis_connection import Connection

    port = free_port()
    command = ["redis-server", "--port", str(port), "--save", "", "--dir", str(tmp_path)]

    async def play() -> None:
        connection = Connection(f"redis://127.0.0.1:{port}/0")
        with started(command, port):
            await asyncio.gather(*(connection.run(("PING",)) for _ in range(8)))
        with started(command, port):
            with pytest.raises(OSError, match="Redis"):
                await connection.run(("PING",))
            assert await asyncio.gather(*(connection.run(("PING",)) for _ in range(8))) == [[True]] * 8
        await connection.close()

    asyncio.run(play())


def redis_server(folder: Path, port: int, *options: str):
    folder.mkdir(exist_ok=True)
    return started(["redis-server", "--port", str(port), "--save", "", "--dir", str(folder), *options], port)


def test_what_is_written_waits_for_replicas_and_survives_a_failover(tmp_path):
    """Three Redis and a real sentinel; the one that all wrote to is killed while they write."""
    from r2v.gateway.redis_connection import Connection

    first, second, third, sentinel = (free_port() for _ in range(4))
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"sentinel monitor main 127.0.0.1 {first} 1\nsentinel down-after-milliseconds main 300\n"
        "sentinel failover-timeout main 2000\n"
    )
    follows = ("--replicaof", f"127.0.0.1 {first}", "--repl-diskless-sync-delay", "0")

    async def count(connection: Connection, numbers: list[int], wanted: Callable[[], int]) -> None:
        deadline = time.monotonic() + 20
        while len(numbers) < wanted():
            assert time.monotonic() < deadline, f"{len(numbers)} numbers, and then nothing was written"
            try:
                numbers.extend(await connection.run(("INCR", connection.key("count"))))
            except OSError:
                await asyncio.sleep(0.02)

    async def followed(replicas: int) -> None:
        connection = Connection(f"redis://127.0.0.1:{first}/0", replicas=replicas)
        await count(connection, [], lambda: 1)
        await connection.close()

    async def alone() -> None:
        connection = Connection(f"redis://127.0.0.1:{first}/0", replicas=1)
        with pytest.raises(OSError, match=r"0 of 1 replicas \(store\.redis_replicas\) have what was written"):
            await connection.run(("INCR", connection.key("count")))
        await connection.close()

    async def play(primary: subprocess.Popen) -> None:
        url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel}/main/0"  # the first does not answer
        both, any_, numbers = Connection(url, replicas=2), Connection(url), list[int]()
        playing = [asyncio.create_task(count(both, numbers, lambda: 1_000_000)) for _ in range(8)]
        while len(numbers) < 300:
            assert not any(task.done() for task in playing), "nothing is written"
            await asyncio.sleep(0.01)
        primary.kill()
        await asyncio.sleep(0.1)  # what had been acknowledged has been counted
        for task in playing:
            task.cancel()
        await asyncio.gather(*playing, return_exceptions=True)
        await count(any_, later := list[int](), lambda: 1)
        assert later[0] > max(numbers), "the one that took over did not have what had been acknowledged"
        await both.close()
        await any_.close()

    with ExitStack() as servers:
        primary = servers.enter_context(redis_server(tmp_path / "1", first, "--repl-diskless-sync-delay", "0"))
        asyncio.run(alone())
        for folder, port in (("2", second), ("3", third)):
            servers.enter_context(redis_server(tmp_path / folder, port, *follows))
        asyncio.run(followed(2))  # the sentinel asks who follows when it starts, and then every ten seconds
        servers.enter_context(started(["redis-server", str(config), "--sentinel", "--port", str(sentinel)], sentinel))
        asyncio.run(play(primary))


@pytest.mark.parametrize("url", ["http://localhost", "redis+sentinel://localhost:26379", "redis://localhost:port"])
def test_what_is_no_url_of_a_redis_is_refused_in_one_line(url, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_REDIS", url)
    wanted = settings("http://127.0.0.1:1", "http://127.0.0.1:2", tmp_path / "l.db", store__redis_env="TEST_REDIS")
    with (
        closing(Ledger(tmp_path / "l.db")) as ledger,
        pytest.raises(SettingsError, match=r"TEST_REDIS of .* holds no URL"),
    ):
        shared_state(wanted, ledger)


def test_check_says_whether_redis_and_its_replicas_answer(redis_url, tmp_path, monkeypatch):
    shown: list[str] = []
    for url, replicas, found in (
        (redis_url, 0, []),
        (redis_url, 1, ["Redis: 0 of 1 replicas (store.redis_replicas) have what was written"]),
        (f"redis://127.0.0.1:{free_port()}", 0, ["Redis: "]),
    ):
        monkeypatch.setenv("TEST_REDIS", url)
        store = {"store__redis_env": "TEST_REDIS", "store__redis_replicas": replicas}
        wanted = settings("http://127.0.0.1:1", "http://127.0.0.1:2", tmp_path / "l.db", **store)
        said = [line for line in problems(wanted, shown.append) if line.startswith("Redis")]
        assert len(said) == len(found) and all(map(str.startswith, said, found)), said
    assert shown.count("redis     answers") == 1


def test_keys_in_redis_are_listed_where_there_is_no_ledger(redis_url, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_REDIS", redis_url)

    def run(folder: str, *arguments: str) -> str:
        config = tmp_path / "gateway.json"
        made = settings("http://x", "http://x", tmp_path / folder / "ledger.db", store__redis_env="TEST_REDIS")
        config.write_bytes(msgspec.json.encode(made))
        return CliRunner().invoke(cli, ["keys", *arguments, "--config", str(config)], catch_exceptions=False).output

    run("a", "create", "ci")
    assert "ci" in run("b", "list")
    assert (tmp_path / "a" / "ledger.db").exists() and not (tmp_path / "b").exists()
