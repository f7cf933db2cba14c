"""Settings and router are read again while the gateway runs: all of them or none, and no request fails."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import aiohttp
import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from r2v.clients import make_client
from r2v.core.errors import SettingsError
from r2v.gateway.ledger import Ledger
from r2v.gateway.reload import OF_START, Generation, LiveApp, check_reloadable
from r2v.gateway.settings import GatewaySettings, ServerSettings, TelemetrySettings
from r2v.routers.base import FittedWith
from servers import KEY, Model, free_port, running, settings
from test_gateway import ASK, TOOLS, make  # noqa: F401  (a fixture)
from test_gateway_limits import router_of_entropy
from test_gateway_workers import AUTH, Served, gone

ONE, TWO = (), ("--workers", "2")
both = pytest.mark.parametrize("options", [ONE, TWO], ids=["one process", "two workers"])
PRICES = {
    "A": ({"input": 1, "output": 2}, {"input": 10, "output": 20}),
    "B": ({"input": 3, "output": 5}, {"input": 7, "output": 9}),
}
THRESHOLDS = {"A": 0.3, "B": 0.6}
PATIENT = {f"{model}__{key}": 30.0 for model in ("small", "teacher") for key in ("timeout_s", "connect_timeout_s")}
"""Models and clients share a process here, which may be slow."""
CALLS = 60
"""Of the teacher, that a day may have."""


@contextmanager
def served(folder: Path, *options: str, env=None, **changes) -> Iterator[tuple[Served, Model, Model]]:
    small, teacher = Model("small", error_rate=0.5), Model("teacher")
    with running(small.app()) as slm, running(teacher.app()) as large:
        started = Served(folder, (slm, large), *options, env=env, **changes)
        try:
            yield started, small, teacher
        finally:
            if started.process.poll() is None:
                started.end()
            started.process.stdout.close()
            started.process.stderr.close()


def state(gateway: Served) -> dict:
    found: dict = httpx.get(f"{gateway.admin}/v1/stats", headers=AUTH, timeout=60).json()["reloads"]
    return found


def reload(gateway: Served, key: str = KEY) -> httpx.Response:
    return httpx.post(f"{gateway.admin}/v1/reload", headers={"authorization": f"Bearer {key}"}, timeout=60)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def changes_of(name: str, router: Path) -> dict:
    """One of two configurations: names and prices of the models differ, and what the router's folder holds."""
    router_of_entropy(router, THRESHOLDS[name])
    slm, teacher = PRICES[name]
    return {
        "small__model": f"small-{name}", "teacher__model": f"teacher-{name}", "small__price": slm, "teacher__price": teacher,
        "route__router": str(router), "budget__per_day": {"teacher_calls": CALLS, "sessions": 10**6}, **PATIENT,
    }  # fmt: skip


class Load:
    """Clients that ask a hundred times a second, whatever becomes of it."""

    def __init__(self, url: str) -> None:
        self.url, self.stop = url, threading.Event()
        self.answers: list[tuple[int, str, dict]] = []
        """(status, body, headers)."""
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        async with aiohttp.ClientSession(
            headers=AUTH, connector=aiohttp.TCPConnector(limit=50, keepalive_timeout=3)
        ) as client:
            tasks, begun, start = [], 0, time.monotonic()
            while not self.stop.is_set():
                tasks.append(asyncio.ensure_future(self._ask(client, begun)))
                begun += 1
                await asyncio.sleep(max(0.0, start + begun / 100 - time.monotonic()))
            await asyncio.gather(*tasks)

    async def _ask(self, client: aiohttp.ClientSession, i: int) -> None:
        body = {"model": "r2v", "tools": TOOLS, "stream": i % 4 == 0}
        body["messages"] = [*ASK[:-1], {"role": "user", "content": f"look for the red value, {i}"}]
        try:
            async with client.post(
                f"{self.url}/v1/chat/completions", json=body, headers={"x-session-id": f"s{i % 7}"}
            ) as response:
                self.answers.append((response.status, await response.text(), dict(response.headers)))
        except aiohttp.ClientError as error:
            self.answers.append((0, repr(error), {}))


@both
def test_no_request_fails_while_settings_and_router_change(tmp_path, options):
    router = tmp_path / "router"
    with served(tmp_path, *options, **changes_of("A", router)) as (gateway, _, teacher):
        load = Load(gateway.url)
        load.thread.start()
        reloads = 0
        try:
            while reloads < 8 or len(load.answers) < 400:
                gateway.write(**changes_of("BA"[reloads % 2], router))
                if reloads % 4 < 2:
                    gateway.process.send_signal(signal.SIGHUP)
                    until(lambda: state(gateway)["done"] == reloads + 1)  # noqa: B023
                else:
                    assert reload(gateway).json()["done"] == reloads + 1
                reloads += 1
                time.sleep(0.1)
        finally:
            load.stop.set()
            load.thread.join()
        assert {status for status, _, _ in load.answers} == {200}, [a for a in load.answers if a[0] != 200][:3]
        assert not [text for _, text, headers in load.answers if "event-stream" in headers["Content-Type"]
                    and not text.rstrip().endswith("[DONE]")]  # fmt: skip
        answered = [re.search(r'"id": ?"chatcmpl-(\w+)"', text)[1] for _, text, _ in load.answers]
        until(lambda: not rows(gateway, "SELECT * FROM holds"))
    # Every answered step is in the ledger once, and its numbers have no gap in any session.
    assert sorted(answered) == sorted(row for (row,) in rows(gateway, "SELECT id FROM steps"))
    for _, count, first, last in rows(gateway, "SELECT session, COUNT(*), MIN(t), MAX(t) FROM steps GROUP BY session"):
        assert (first, last) == (0, count - 1)
    # Each step is of one configuration: its model, its threshold and its prices.
    seen = set()
    with closing(Ledger(gateway.ledger)) as ledger:
        for session in ledger.all_sessions():
            for entry in ledger.steps(session):
                arm, name = entry.model.split("-")
                assert arm == {"slm": "small", "teacher": "teacher"}[entry.source]
                assert entry.threshold in (None, THRESHOLDS[name])
                slm, large = PRICES[name]
                choice = entry.step.choice
                assert entry.teacher_usd == pytest.approx(usd(choice.teacher, large))
                assert entry.slm_usd == pytest.approx(sum(usd(one.usage, slm) for one in choice.candidates))
                seen.add((name, entry.source))
    assert len(seen) == 4
    # Charged is what was spent, by old and new together; nobody got a call too many.
    parts = "SELECT teacher_calls calls, tokens, slm_usd + teacher_usd usd FROM steps"
    parts += " UNION ALL SELECT calls, tokens, usd FROM abandoned"
    spent = rows(gateway, f"SELECT SUM(calls), SUM(tokens), SUM(usd) FROM ({parts})")
    charged = rows(gateway, "SELECT SUM(calls), SUM(tokens), SUM(usd) FROM charges WHERE scope LIKE 'all %'")
    assert charged[0] == pytest.approx(spent[0])
    assert len(teacher.seen) <= charged[0][0]  # a call that did not come through in time may have to be paid
    assert rows(gateway, "SELECT MAX(calls) FROM charges WHERE scope LIKE 'all %'")[0][0] <= CALLS  # of each day
    assert rows(gateway, "SELECT 1 FROM steps WHERE code = 'budget_exhausted'")  # the limit was met


def rows(gateway: Served, query: str) -> list[tuple]:
    with closing(sqlite3.connect(gateway.ledger)) as db:
        return db.execute(query).fetchall()


def usd(usage, price: dict) -> float:
    return ((usage.prompt_tokens or 0) * price["input"] + (usage.completion_tokens or 0) * price["output"]) / 1e6


@both
def test_a_stream_ends_on_the_settings_that_it_began_with(tmp_path, options):
    with served(tmp_path, *options, teacher__model="teacher-A", **PATIENT) as (gateway, _, teacher):
        teacher.may_go_on = threading.Event()
        body = {"model": "r2v:teacher", "messages": ASK, "stream": True}
        with httpx.stream(
            "POST", f"{gateway.url}/v1/chat/completions", json=body, headers={**AUTH, "x-session-id": "old"}, timeout=60
        ) as stream:
            lines = stream.iter_lines()
            first = next(lines)
            assert '"model":"teacher-A"' in first.replace(" ", "")
            gateway.write(teacher__model="teacher-B", **PATIENT)
            assert reload(gateway).status_code == 200
            assert {gateway.ask("new", model="r2v:teacher").headers["x-r2v-model"] for _ in range(4)} == {"teacher-B"}
            teacher.may_go_on.set()
            rest = list(lines)
        assert "data: [DONE]" in rest and not {'"teacher-B"', '"error"'} & set(re.findall(r'"[\w-]+"', "".join(rest)))
    assert rows(gateway, "SELECT model FROM steps WHERE session LIKE '%/old'") == [("teacher-A",)]


@both
def test_settings_that_are_wrong_leave_the_old_ones_in_use(tmp_path, options):
    fitted = FittedWith(5, 50, "tool_calls")
    router, port = str(router_of_entropy(tmp_path / "router", 0.3)), free_port()
    with served(tmp_path, *options, route__router=router, server__port=port) as (gateway, *_):
        before, good = state(gateway), gateway.config.read_text()

        def refused(**changes) -> str:
            gateway.write(**{"server__port": port} | changes)
            answer = reload(gateway)
            assert answer.status_code == 409, answer.text
            line: str = answer.json()["error"]["message"]
            assert "\n" not in line
            return line

        gateway.config.write_text(good.replace('"models"', '"model"'))
        assert "unknown key `model`; did you mean `models`?" in reload(gateway).json()["error"]["message"]
        gateway.config.write_text("{")
        assert f"{gateway.config} is not valid YAML" in reload(gateway).json()["error"]["message"]
        gateway.config.unlink()
        assert f"{gateway.config} does not exist" in reload(gateway).json()["error"]["message"]
        assert str(tmp_path / "gone") in refused(route__router=str(tmp_path / "gone"))
        other = router_of_entropy(tmp_path / "other", 0.3, fitted)
        assert "was fitted with k 5: leave out route.k" in refused(route__router=str(other))
        assert "NO_SUCH_KEY is not set" in refused(teacher__api_key_env="NO_SUCH_KEY")
        assert "server.key_env names NO_KEYS, which was not set" in refused(server__key_env="NO_KEYS")
        (tmp_path / "router" / "router.json").write_text("{")  # damaged where it lies
        assert "router.json is corrupt" in refused(route__router=str(tmp_path / "router"))
        # What takes a restart is named.
        for changes, key in (
            ({"server__port": free_port()}, "server.port"), ({"server__host": "127.0.0.2"}, "server.host"),
            ({"server__workers": 3}, "server.workers"),
            ({"server__admin_port": 9}, "server.admin_port"), ({"server__admin_host": "::1"}, "server.admin_host"),
            ({"store__path": str(tmp_path / "other.db")}, "store.path"), ({"store__keep_days": 3}, "store.keep_days"),
        ):  # fmt: skip
            if key == "server.workers" and options:
                continue  # given on the command line, which goes before the file
            line = refused(**changes)  # on Postgres another ledger is shipped to another database
            assert re.match(rf"{re.escape(key)}(, store\.url)? cannot change while the gateway runs", line), line
        count = state(gateway)["refused"]
        gateway.write(route__router=str(tmp_path / "gone"), server__port=port)
        gateway.process.send_signal(signal.SIGHUP)
        line = gateway.process.stderr.readline()
        assert line.startswith(f"r2v: reload refused: `route.router` = {tmp_path / 'gone'}: there is no such folder")
        assert f"settings {before['settings']} stay in use" in line
        found = state(gateway)
        assert found["refused"] == count + 1 and str(tmp_path / "gone") in found["problem"]
        same = ("settings", "router", "since", "done")
        assert [found[key] for key in same] == [before[key] for key in same]
        assert {gateway.ask(f"s{i}").headers.get("x-r2v-threshold") for i in range(8)} == {"0.3"}
        samples = metrics(gateway)
        assert samples["r2v_reloads_total", "refused"] == count + 1 and samples["r2v_reloads_total", "done"] == 0
        assert samples["r2v_reload_refused",] == 1 and samples["r2v_settings_since_seconds",] == before["since"]
        # And once it is mended, all is well.
        router_of_entropy(tmp_path / "router", 0.6)
        gateway.config.write_text(good)
        gateway.process.send_signal(signal.SIGHUP)
        assert gateway.process.stderr.readline().startswith(f"r2v: reloaded: settings {before['settings']}, router router ")
        until(lambda: state(gateway)["done"] == 1)
        found, samples = state(gateway), metrics(gateway)
        assert not found["problem"] and found["router"] != before["router"] and found["since"] > before["since"]
        assert samples["r2v_reload_refused",] == 0 and samples["r2v_last_reload_seconds",] == found["last"] >= found["since"]
        assert {gateway.ask(f"s{i}").headers.get("x-r2v-threshold") for i in range(8)} == {"0.6"}
        # The command says the same.
        asked = command("reload", str(gateway.config))
        assert (asked.returncode, asked.stdout) == (0, f"settings {found['settings']}\nrouter   {found['router']}\n")
        gateway.write(route__router=str(tmp_path / "gone"), server__port=port)
        asked = command("reload", str(gateway.config))
        assert asked.returncode == 1 and asked.stderr.startswith(
            f"r2v: `route.router` = {tmp_path / 'gone'}: there is no such folder"
        )


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from r2v.cli import app; app()", *arguments]
    return subprocess.run(program, capture_output=True, text=True, timeout=60, env={**os.environ, "R2V_API_KEY": KEY})


def metrics(gateway: Served) -> dict[tuple, float]:
    text = httpx.get(f"{gateway.admin}/metrics", headers=AUTH, timeout=60).text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text) for sample in family.samples
    }  # fmt: skip


@both
def test_keys_limits_and_the_mode_are_read_again_and_options_stay(tmp_path, options):
    keys = {"R2V_API_KEY": "first", "R2V_ADMIN_KEY": KEY, "OTHER_KEYS": "second"}
    with served(tmp_path, *options, "--set", "route.threshold=0.4", env=keys) as (gateway, *_):

        def ask(key: str, size: int = 10) -> int:
            body = {"model": "r2v", "messages": [{"role": "user", "content": "x" * size}]}
            headers = {"authorization": f"Bearer {key}"}
            return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=60).status_code

        assert [ask("first"), ask("second"), ask("first", 30_000)] == [200, 401, 200]
        assert reload(gateway, "first").status_code == 403
        gateway.write(
            server__key_env="OTHER_KEYS", server__max_body_bytes=20_000, route__threshold=0.9, route__mode="observe"
        )
        assert reload(gateway).status_code == 200
        for _ in range(6):  # whichever worker answers
            assert [ask("first"), ask("second"), ask("second", 30_000)] == [401, 200, 413]
        assert httpx.get(f"{gateway.admin}/v1/stats", headers=AUTH).json()["threshold"] == 0.4
        assert httpx.get(f"{gateway.admin}/v1/mode", headers=AUTH).json()["mode"] == "observe"
        # The mode that operators have changed to stays until route.mode is edited.
        promoted = {"action": "promote", "force": True}
        assert httpx.post(f"{gateway.admin}/v1/mode", json=promoted, headers=AUTH).json()["mode"] == "shadow"
        assert reload(gateway).status_code == 200
        for _ in range(6):
            assert ask("second") == 200
        assert httpx.get(f"{gateway.admin}/v1/mode", headers=AUTH).json()["mode"] == "shadow"
        gateway.write(server__key_env="OTHER_KEYS", route__mode="canary")
        assert reload(gateway).status_code == 200
        assert ask("second", 30_000) == 200
        assert httpx.get(f"{gateway.admin}/v1/mode", headers=AUTH).json()["mode"] == "canary"


def test_limits_of_connections_hold_on_those_that_are_open(tmp_path):
    with served(tmp_path) as (gateway, *_), httpx.Client(headers=AUTH, timeout=60) as client:
        head = {"x-session-id": "s", "x-padding": "y" * 3000}
        assert client.get(f"{gateway.url}/v1/models", headers=head).status_code == 200
        gateway.write(server__max_header_bytes=2000)
        assert client.post(f"{gateway.url}/v1/reload").status_code == 200
        assert client.get(f"{gateway.url}/v1/models", headers=head).status_code == 431


def test_a_worker_that_dies_is_started_with_the_settings_in_use(tmp_path):
    with served(tmp_path, *TWO, teacher__model="teacher-A") as (gateway, *_):
        gateway.write(teacher__model="teacher-B")
        assert reload(gateway).status_code == 200
        gateway.config.write_text("{")  # what is not in use is not read
        before = gateway.children()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        assert gone(before)
        until(lambda: len(gateway.children()) == 3)

        def answer() -> str:
            try:
                return gateway.ask("s", model="r2v:teacher").headers["x-r2v-model"]
            except httpx.HTTPError:
                return ""

        until(answer)
        assert {answer() for _ in range(8)} == {"teacher-B"}
        until(lambda: httpx.get(f"{gateway.admin}/health").status_code == 200)
        assert state(gateway)["done"] == 1


OWN = """
import os
from dataclasses import dataclass
from r2v.routers.rules import Rules


@dataclass(frozen=True, kw_only=True)
class Picky(Rules):
    def __post_init__(self):
        try:
            open(os.environ["MARK"], "x").close()
        except FileExistsError:
            raise ValueError("one of it is enough") from None
"""


def test_all_workers_take_other_settings_or_none_does(tmp_path):
    """The router can be made in one process alone."""
    (tmp_path / "own.py").write_text(OWN)
    env = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", "MARK": str(tmp_path / "mark")}
    with served(tmp_path, *TWO, env=env, teacher__model="teacher-A") as (gateway, *_):
        gateway.write(teacher__model="teacher-B", route__router="own:Picky")
        refused = reload(gateway)
        assert (refused.status_code, refused.json()["error"]["message"]) == (409, "ValueError: one of it is enough")
        assert (tmp_path / "mark").exists()
        assert {gateway.ask("s", model="r2v:teacher").headers["x-r2v-model"] for _ in range(12)} == {"teacher-A"}
        assert state(gateway)["router"] == "rules"


def test_a_gateway_whose_terminal_is_closed_ends(tmp_path):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from r2v.cli import app; app()", "serve", "--mock", "--port", "0"]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path,
        start_new_session=True, env={**os.environ, "R2V_API_KEY": KEY},
        preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),  # its own, for its session
    )  # fmt: skip
    os.close(theirs)
    try:
        lines = [process.stdout.readline() for _ in range(4)]
        url = lines[0].split()[1]
        process.send_signal(signal.SIGHUP)
        until(lambda: httpx.get(f"{url}/v1/stats", headers=AUTH).json()["reloads"]["done"] == 1)
        os.close(ours)
        process.stdout.read()
        assert process.wait(timeout=60) is not None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# -- in one process ---------------------------------------------------------------------------------------------------


def test_a_router_that_changed_on_disk_is_loaded_and_its_drift_begins_anew(make, tmp_path):  # noqa: F811
    world = make(route__router=str(router_of_entropy(tmp_path / "router", 0.3)))
    world.post()
    before = world.client.get("/v1/stats").json()
    assert (before["threshold"], before["drift"]["steps"]) == (0.3, 1)
    router_of_entropy(tmp_path / "router", 0.6)
    assert world.client.post("/v1/reload").status_code == 200
    after = world.client.get("/v1/stats").json()
    assert (after["threshold"], after["drift"], after["arms"]) == (0.6, None, before["arms"])
    assert world.post().headers["x-r2v-threshold"] == "0.6"
    after = world.client.get("/v1/stats").json()
    assert after["drift"]["steps"] == 1 and sum(after["arms"].values()) == 2
    assert after["reloads"]["router"].startswith("router ") and after["reloads"]["router"] != before["reloads"]["router"]


def test_every_setting_is_read_again_or_takes_a_restart(tmp_path):
    before = settings("http://a", "http://b", tmp_path / "ledger.db")
    again = {"key_env", "admin_key_env", "require_key", "allowed_hosts", "accepted_models", "cors_origins", "keep_alive_s"}
    limits = {name for name in ServerSettings.__struct_fields__ if name.startswith("max_") or name.endswith("_timeout_s")}
    assert {*OF_START, *again, *limits} == set(ServerSettings.__struct_fields__)  # a new one has to be thought about
    assert {"version", "models", "route", "budget", "server", "store", "verdicts", "telemetry"} == set(
        GatewaySettings.__struct_fields__
    )
    check_reloadable(before, before.but(verdicts=("tests",), server=before.server.but(keep_alive_s=1.0)))
    after = before.but(server=before.server.but(host="::1"), store=before.store.but(redact=True, path="x"))
    with pytest.raises(SettingsError, match=r"^server\.host, store\.path, store\.redact cannot change"):
        check_reloadable(before, after)
    traced = before.but(telemetry=TelemetrySettings(otlp="http://127.0.0.1:4318"))
    for one, other in ((before, traced), (traced, before)):
        with pytest.raises(SettingsError, match=r"telemetry.* cannot change"):
            check_reloadable(one, other)


def test_clients_are_closed_once_nobody_uses_them(tmp_path):
    """One whose settings stay is kept; another is closed when the last request on the old settings has ended."""
    given = settings("http://a", "http://b", tmp_path / "ledger.db")

    class Closed:
        def __init__(self, name: str) -> None:
            self.client, self.closed = make_client(given.models["slm"], name), 0
            close = self.client.close

            async def counted() -> None:
                self.closed += 1
                await close()

            self.client.close = counted  # type: ignore[method-assign]

    async def play() -> None:
        waiting = [asyncio.Event() for _ in range(3)]
        kept, old, new = Closed("kept"), Closed("old"), Closed("new")

        def generation(i: int, *clients: Closed) -> Generation:
            async def app(scope, receive, send) -> None:
                await waiting[i].wait()

            return Generation(
                given, "rules", app, lambda settings: live.current, clients=tuple(one.client for one in clients)
            )

        live = LiveApp(lambda live: generation(0, kept, old))
        first = asyncio.ensure_future(live({"type": "http"}, None, None))
        await asyncio.sleep(0)
        live.use(generation(1, kept, old))
        await asyncio.sleep(0.01)
        live.use(generation(2, kept, new))  # the second served nothing, but the first still uses its client
        await asyncio.sleep(0.01)
        assert (kept.closed, old.closed, new.closed) == (0, 0, 0)
        waiting[0].set()
        await first
        await asyncio.sleep(0.05)
        assert (kept.closed, old.closed, new.closed) == (0, 1, 0)

    asyncio.run(play())


def test_what_the_file_gave_is_known_in_another_process():
    """Else a worker would not refuse settings that contradict the router's fit, or a verifier that they name themselves."""
    import pickle

    sent = settings("http://a", "http://b", "ledger.db", route__k=3)
    got = pickle.loads(pickle.dumps(sent))
    assert got == sent and got.route.given == sent.route.given == {"k"} and got.given == sent.given
    assert msgspec.json.encode(got) == msgspec.json.encode(sent)
