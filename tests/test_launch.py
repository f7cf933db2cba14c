"""`r2v init`, `launch`, `promote`, `rollback`: the first hour, with programs that stand in for agents."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from r2v.cli.launch import AGENTS, admin_key, ask, environment
from r2v.core.errors import SettingsError
from r2v.gateway.settings import GatewaySettings
from r2v.runtime.settings import load
from servers import Model, running, settings

R2V = [sys.executable, "-c", "from r2v.cli import app; app()"]
AGENT = """#!{python}
import json, os, re, sys, urllib.request
told = " ".join([*os.environ.values(), *sys.argv])
url, key = re.search(r"http://127.0.0.1:\\d+", told)[0], re.search(r"r2v-[\\w-]{{32}}", told)[0]
ask = urllib.request.Request(url + "/v1/sessions", headers={{"authorization": "Bearer " + key}})
status = urllib.request.urlopen(ask).status
json.dump({{"env": dict(os.environ), "args": sys.argv[1:], "status": status}}, open({seen!r}, "w"))
print("the agent's own words")
sys.exit(7)
"""


class Desk:
    """A user's machine: a home, programs on PATH, settings for two made-up models."""

    def __init__(self, folder: Path, models: str) -> None:
        self.folder, self.seen = folder, folder / "seen.json"
        (folder / "bin").mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.env = {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin", "HOME": str(folder), "XDG_STATE_HOME": str(folder / "state"),
            "ANTHROPIC_API_KEY": "teacher-secret", "COPY": "teacher-secret", "ANTHROPIC_BASE_URL": "http://elsewhere",
            "OPENAI_API_KEY": "another", "EDITOR": "vi", "http_proxy": "http://proxy.invalid:9",
            **{name: value for name, value in os.environ.items() if name == "PYTHONPATH"},
        }  # fmt: skip
        assert self.run("init", "r2v.yaml", "--slm-url", f"{models}/v1").returncode == 0
        text = (folder / "r2v.yaml").read_text()
        changed = text.replace("https://api.anthropic.com", models).replace("8321", str(self.port))
        (folder / "r2v.yaml").write_text(changed)

    def install(self, program: str) -> None:
        path = self.folder / "bin" / program
        path.write_text(AGENT.format(python=sys.executable, seen=str(self.seen)))
        path.chmod(0o755)

    def run(self, *arguments: str, **more) -> subprocess.CompletedProcess[str]:
        options = {"cwd": self.folder, "env": self.env, "capture_output": True, "text": True, "timeout": 120}
        return subprocess.run([*R2V, *arguments], **options | more)

    def serve(self) -> subprocess.Popen[str]:
        served = subprocess.Popen(
            [*R2V, "serve", "r2v.yaml"], cwd=self.folder, env=self.env, stdout=subprocess.PIPE, text=True
        )
        assert served.stdout and "gateway" in served.stdout.readline()
        return served


@pytest.fixture
def desk(tmp_path):
    with running(Model("m").app()) as models:
        yield Desk(tmp_path, models)


def test_an_agent_gets_none_of_the_gateways_secrets():
    judge = {"base_url": "http://x/v1", "model": "m", "api_key_env": "JUDGE_KEY", "price": {"input": 2, "output": 4}}
    config = settings(
        "http://x", "http://y", Path("l.db"), server__admin_key_env="ADMINS", store__redis_env="REDIS", telemetry={},
        store__url_env="LEDGER", store__hash_key_env="HASH", models__judge=judge,
    )  # fmt: skip
    secrets = ("JUDGE_KEY", "ADMINS", "REDIS", "LEDGER", "HASH", "PGPASSWORD", "OTEL_EXPORTER_OTLP_HEADERS", "R2V_ADMIN_KEY")
    ours = {name: f"secret-{name}" for name in secrets} | {"PATH": "/bin", "PGHOST": "mine", "COPY": "secret-REDIS"}
    seen = environment(AGENTS["claude"], config, ours, "http://127.0.0.1:1", "key")
    assert not [name for name, value in seen.items() if value.startswith("secret")] and seen["PGHOST"] == "mine"


@pytest.mark.parametrize("teacher", ["anthropic", "openai"])
def test_what_init_writes_is_valid_and_cautious(tmp_path, teacher, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = subprocess.run(
        [*R2V, "init", "my.yaml", "--teacher", teacher, "--slm-model", 'a: "b" $c', "--slm-url", "http://x/v1"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    settings = load(tmp_path / "my.yaml", GatewaySettings)
    assert settings.route.mode == "observe" and settings.budget.session.teacher_calls is None
    assert (settings.models["slm"].model, settings.models["slm"].base_url) == ('a: "b" $c', "http://x/v1")
    assert settings.models["teacher"].provider == teacher
    assert f"export {settings.models['teacher'].api_key_env}=" in done.stdout
    assert "r2v launch claude --config my.yaml" in done.stdout


def test_models_on_this_machine_are_asked_past_any_proxy(desk):
    assert "http_proxy" in desk.env and "no_proxy" not in desk.env
    checked = desk.run("check", "r2v.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stderr == ""  # no connection is left to an event loop that has ended


def test_each_agent_is_told_of_the_gateway_and_of_no_other_key(desk):
    served = desk.serve()
    try:
        for name, agent in AGENTS.items():
            missing = desk.run("launch", name)
            assert (missing.returncode, missing.stderr) == (1, f"r2v: {agent.program} is not on PATH; {agent.install}\n")
            desk.install(agent.program)
            done = desk.run("launch", name, "--", "-p", "do it", "--config", "x")
            assert done.returncode == 7, done.stderr
            assert done.stdout == "the agent's own words\n" and f"http://127.0.0.1:{desk.port}/#key=r2v-" in done.stderr
            seen = json.loads(desk.seen.read_text())
            assert seen["status"] == 200 and seen["args"][-4:] == ["-p", "do it", "--config", "x"]
            assert "teacher-secret" not in str(seen) and "another" not in str(seen) and "elsewhere" not in str(seen)
            assert seen["env"]["EDITOR"] == "vi" and seen["env"]["HOME"] == str(desk.folder)
            desk.seen.unlink()
        assert served.poll() is None  # it ran before, and goes on
    finally:
        served.terminate()
        served.communicate()


def test_launch_starts_a_gateway_and_stops_it_with_the_agent(desk):
    desk.install("claude")
    elsewhere = desk.folder / "project"
    elsewhere.mkdir()
    done = desk.run("launch", "claude", "--config", "../r2v.yaml", cwd=elsewhere)
    assert done.returncode == 7, done.stderr
    log = desk.folder / "state" / "r2v" / f"{desk.port}.log"
    assert f"for as long as the agent runs; log {log}" in done.stderr and log.exists()
    assert (desk.folder / "r2v-ledger.db").exists() and not list(elsewhere.iterdir())
    key = desk.folder / "state" / "r2v" / f"{desk.port}.key"
    assert key.stat().st_mode & 0o077 == 0 and key.read_text().strip() not in log.read_text()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", desk.port), 1)


def test_when_launch_is_ended_the_agent_and_the_gateway_end_with_it(desk):
    program = desk.folder / "bin" / "claude"
    program.write_text("#!/bin/sh\necho runs\nexec sleep 600\n")
    program.chmod(0o755)
    command = [*R2V, "launch", "claude"]
    with subprocess.Popen(
        command, cwd=desk.folder, env=desk.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as launched:
        assert launched.stdout and launched.stdout.readline() == "runs\n"
        launched.send_signal(signal.SIGINT)  # the agent's to deal with
        launched.send_signal(signal.SIGTERM)
        assert launched.wait(timeout=60) == 128 + signal.SIGTERM
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", desk.port), 1)


def test_what_stands_in_the_way_of_launch_is_one_line(desk):
    desk.install("claude")
    with running(Model("m").app()) as other:
        text = (desk.folder / "r2v.yaml").read_text()
        (desk.folder / "r2v.yaml").write_text(text.replace(str(desk.port), other.rsplit(":", 1)[1]))
        assert (
            desk.run("launch", "claude").stderr == f"r2v: what answers at {other} is not r2v; choose another server.port\n"
        )
    (desk.folder / "r2v.yaml").write_text(text.replace("router: recorded", "router: gone"))
    done = desk.run("launch", "claude")
    assert done.returncode == 1 and "did not start: " in done.stderr and "gone" in done.stderr and "(log: " in done.stderr
    assert desk.run("launch", "emacs").stderr.startswith("r2v: emacs is not known to launch; known: claude, codex")
    assert not desk.seen.exists()


def test_promote_and_rollback_speak_with_the_gateway_that_runs(desk):
    none = desk.run("promote")
    assert (none.returncode, none.stderr) == (
        1, f"r2v: no gateway answers at http://127.0.0.1:{desk.port}; start it with `r2v serve r2v.yaml`\n",
    )  # fmt: skip
    served = desk.serve()
    try:
        refused = desk.run("promote")
        assert refused.returncode == 1 and refused.stderr.startswith("r2v: 0 of 200 comparisons with the teacher")
        forced = desk.run("promote", "--force")
        assert forced.returncode == 0 and forced.stdout.startswith("mode     shadow: 0 of 200 comparisons")
        assert "(forced)\nnext     router recorded has no fit.json" in forced.stdout
        assert desk.run("rollback", "--to", "canary").stderr == "r2v: canary is above shadow: promote to it\n"
        assert desk.run("rollback").stdout.startswith("mode     observe: rolled back from shadow\n")
        other = desk.run("promote", env={**desk.env, "R2V_API_KEY": "wrong"})
        assert other.stderr.endswith("has another key; set R2V_API_KEY to it\n")
    finally:
        served.terminate()
        served.communicate()


def test_the_commands_find_the_port_of_the_control_plane(desk):
    text = (desk.folder / "r2v.yaml").read_text()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        admin = free.getsockname()[1]
    more = f"port: {desk.port}, workers: 2, admin_port: {admin}"
    (desk.folder / "r2v.yaml").write_text(text.replace(f"port: {desk.port}", more))
    program = desk.folder / "bin" / "claude"
    program.write_text("#!/bin/sh\necho $ANTHROPIC_BASE_URL\n")
    program.chmod(0o755)
    served = desk.serve()
    try:
        assert [served.stdout.readline() for _ in range(3)][-1].startswith(
            f"page     http://127.0.0.1:{admin}   (its key: $(cat "
        )
        (desk.folder / "r2v.yaml").write_text(text)  # what runs says where its control plane is
        assert desk.run("promote", "--force").stdout.startswith("mode     shadow: 0 of 200 comparisons")
        assert desk.run("rollback").stdout.startswith("mode     observe: rolled back from shadow\n")
        done = desk.run("launch", "claude")
        assert done.stdout == f"http://127.0.0.1:{desk.port}\n" and f"page     http://127.0.0.1:{admin}/#key=" in done.stderr
    finally:
        served.terminate()
        served.communicate()


def test_what_serve_says_to_try_holds_the_key_when_it_is_pasted(desk):
    served = desk.serve()
    try:
        lines = [served.stdout.readline() for _ in range(4)]
        key = desk.folder / "state" / "r2v" / f"{desk.port}.key"
        assert f"key      $(cat {key})\n" in lines and key.read_text().strip() not in "".join(lines)
        pasted = lines[-1].removeprefix("try").strip().removesuffix("\\").replace("curl", "printf '%s\\n'")
        shell = subprocess.run(["bash", "-c", pasted], capture_output=True, text=True, timeout=30, env=desk.env)
        assert shell.stdout.splitlines()[1:] == ["-H", f"authorization: Bearer {key.read_text().strip()}"]
    finally:
        served.terminate()
        served.communicate()


def test_the_admins_key_opens_the_page_and_changes_the_mode(monkeypatch, tmp_path):
    config = settings("http://x", "http://y", tmp_path / "ledger.db")
    for keys, admin, expected in (("a", "", "a"), ("a,b", "", None), ("a", "c", "c"), ("a,b", " c ,d", "c")):
        monkeypatch.setenv("R2V_API_KEY", keys)
        monkeypatch.setenv("R2V_ADMIN_KEY", admin)
        assert admin_key(config) == expected
    monkeypatch.setenv("R2V_ADMIN_KEY", "")
    monkeypatch.setenv("R2V_API_KEY", "a,b")
    with pytest.raises(SettingsError, match="set R2V_ADMIN_KEY"):
        ask(config, "/v1/mode", config=tmp_path / "r2v.yaml")
