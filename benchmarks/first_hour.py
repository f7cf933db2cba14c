"""What a new user's first commands take: from `pip install` to the first step of a real agent in the ledger.

`python benchmarks/first_hour.py [--agent claude|codex] [--wheel FILE]` builds the wheel and does what README and
docs/gateway.md say, in an environment of its own: a fresh `python3 -m venv`, a home that is empty (so no pip cache), none of
this shell's variables but those by which pip reaches its index, a made-up key, and two scripted models on 127.0.0.1
(tests/model_servers.py) in place of the hosted teacher and the user's own SLM. The agent is a real one, which the user has
already (`tests/agents/install.py .clients`). Not counted: installing the agent, and starting an SLM.

It prints each command with its seconds, the number of commands and the total. Then what a user may go on with, in the same
environment: `r2v check`, a gateway that runs already, `r2v advise` on the ledger, and `r2v advise` and `r2v fit` on 1,000
made-up sessions of two models. Ends with status 1 where a target is missed or a command fails. How long `pip` takes is a
matter of the index that it reads, which is named.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "agents")]

from serving import free_port  # noqa: E402
from test_agents import CLIENTS, NOWHERE, TEST_ADD  # noqa: E402

from model_servers import TASK, Server  # noqa: E402
from servers import running  # noqa: E402
from test_advise import paired  # noqa: E402

MOST_S, MOST_COMMANDS, MOST_LOGS_S = 600, 5, 60
SESSIONS = 1000
UNWANTED = ("torch", "pyarrow")
KEPT = ("PIP_", "SSL_CERT", "REQUESTS_CA", "CURL_CA", "NODE_EXTRA_CA")
"""Beginnings of the variables by which this machine's pip reaches its index."""
AGENTS = {
    "claude": ("claude", "--", "-p", TASK, "--dangerously-skip-permissions"),
    "codex": ("codex", "--", "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", TASK),
}


@dataclass
class User:
    """A home, a project, and the commands typed there."""

    folder: Path
    env: dict[str, str]
    took: list[tuple[str, float]] = field(default_factory=list)

    def types(self, *command: str, env: Mapping[str, str] | None = None, status: int = 0) -> str:
        """A command; what it said, standard output first. Its seconds are noted. Ends the benchmark where it fails."""
        start = time.monotonic()
        done = subprocess.run(
            command, cwd=self.folder / "project", env=self.env | dict(env or {}), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=MOST_S,
        )  # fmt: skip
        self.took.append((shlex.join(command), time.monotonic() - start))
        if done.returncode != status:
            raise SystemExit(f"`{shlex.join(command)}` ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr


class FirstStep(threading.Thread):
    """Notes when the ledger has its first row."""

    def __init__(self, ledger: Path) -> None:
        super().__init__(daemon=True)
        self.ledger, self.start_s, self.seconds = ledger, time.monotonic(), None
        self.ended = threading.Event()

    def run(self) -> None:
        while self.seconds is None and not self.ended.wait(0.05):
            with suppress(sqlite3.Error):
                if rows(self.ledger, "SELECT count(*) FROM steps")[0][0]:
                    self.seconds = time.monotonic() - self.start_s


def rows(ledger: Path, query: str) -> list[tuple]:
    connection = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True, timeout=5)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def new_user(folder: Path, key: str) -> User:
    """Of this shell's environment only what leads to pip's index; the agent reaches nothing but this machine."""
    for name in ("home", "project"):
        (folder / name).mkdir()
    project(folder / "project")
    own = Path(sys.prefix) / "bin"
    path = [str(folder / "venv" / "bin"), str(CLIENTS / "npm/node_modules/.bin")]
    path += [part for part in os.environ["PATH"].split(":") if Path(part) != own]
    env = {name: value for name, value in os.environ.items() if name.startswith(KEPT)}
    config = Path.home() / ".config/pip/pip.conf"
    if config.exists():
        env["PIP_CONFIG_FILE"] = str(config)
    env |= {"HOME": str(folder / "home"), "PATH": ":".join(path), "LANG": "C.UTF-8", "TERM": "dumb", "NO_COLOR": "1"}
    if os.geteuid() == 0:
        env["IS_SANDBOX"] = "1"  # or Claude Code refuses root
    return User(folder, env | {"GIT_CONFIG_GLOBAL": os.devnull, "ANTHROPIC_API_KEY": key})


def project(folder: Path) -> None:
    """A repository whose test fails."""
    (folder / "add.py").write_text("def add(a, b):\n    return a - b\n")
    (folder / "test_add.py").write_text(TEST_ADD)
    author = ("-c", "user.name=x", "-c", "user.email=x@localhost")
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=folder, check=True)


def solved(user: User) -> None:
    done = subprocess.run([sys.executable, "test_add.py"], cwd=user.folder / "project", capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the agent ended well, but the project's test fails: {done.stderr}")


def show(title: str, took: Sequence[tuple[str, float]], hidden: str) -> None:
    print(f"\n{title}")
    for command, seconds in took:
        print(f"  {seconds:7.1f} s  {command.replace(hidden, '~')}")


def first_commands(user: User, wheel: Path, agent: str, slm: str, teacher: str) -> tuple[float, int]:
    """What stands in README: (seconds, commands), the time to the first routed step among what it prints."""
    yaml, ledger = user.folder / "project/r2v.yaml", user.folder / "project/r2v-ledger.db"
    user.types("python3", "-m", "venv", str(user.folder / "venv"))
    user.types("pip", "install", f"{wheel}[serve]")
    installed = user.types("pip", "list", "--format=freeze")
    user.took.pop()
    names = [line.split("==")[0] for line in installed.splitlines() if "==" in line]
    if brought := [name for name in names if name in UNWANTED or name.startswith("nvidia")]:
        raise SystemExit(f"r2v[serve] brought {brought}")
    user.types("r2v", "init", "--slm-url", f"{slm}/v1")
    # In place of the hosted teacher, and of a port that somebody else may use here.
    text = yaml.read_text().replace("https://api.anthropic.com", teacher).replace("8321", str(free_port()))
    yaml.write_text(text)
    user.took.append(("export ANTHROPIC_API_KEY=...", 0.0))
    offline = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), NOWHERE)
    first = FirstStep(ledger)
    first.start()
    try:
        said = user.types("r2v", "launch", *AGENTS[agent], env=offline)
    finally:
        first.ended.set()
        first.join()
    solved(user)
    if first.seconds is None or "/#key=r2v-" not in said:
        raise SystemExit(f"no step in the ledger, or no link to the page:\n{said}")
    show("The first commands", user.took, str(user.folder))
    total, launched = sum(seconds for _, seconds in user.took), user.took[-1][1]
    steps = rows(ledger, "SELECT source, code, count(*) FROM steps GROUP BY source, code")
    drafted = rows(ledger, "SELECT count(alike) FROM steps")[0][0]
    print(f"  {len(names)} packages; steps in the ledger: {steps}; the SLM was compared on {drafted}")
    after = total - launched + first.seconds
    print(f"  first routed step {first.seconds:.1f} s after `r2v launch`, {after:.1f} s after the first command")
    print(f"  {len(user.took)} commands, {total:.1f} s (at most {MOST_COMMANDS}, {MOST_S} s)")
    return total, len(user.took)


def more_commands(user: User, agent: str) -> None:
    """`r2v check`, a gateway of its own, and what the ledger advises."""
    user.took.clear()
    user.types("r2v", "check", "r2v.yaml")
    start, served = time.monotonic(), subprocess.Popen(
        ["r2v", "serve", "r2v.yaml"], cwd=user.folder / "project", env=user.env, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    try:
        assert served.stdout and served.stdout.readline().startswith("gateway"), "`r2v serve` does not start"
        user.took.append(("r2v serve r2v.yaml   (until it listens)", time.monotonic() - start))
        (user.folder / "project/add.py").write_text("def add(a, b):\n    return a - b\n")
        said = user.types("r2v", "launch", *AGENTS[agent])
        solved(user)
        if "which runs already" not in said:
            raise SystemExit(f"launch did not find the gateway that runs:\n{said}")
    finally:
        served.terminate()
        served.communicate()
    told = user.types("r2v", "advise", "r2v-ledger.db", "--out", "first")
    show("Going on", user.took, str(user.folder))
    steps, compared = rows(user.folder / "project/r2v-ledger.db", "SELECT count(*), count(alike) FROM steps")[0]
    print(f"  {steps} steps in the ledger, the SLM was compared on {compared}")
    print("  advise says: " + told.splitlines()[0])


def logs(user: User) -> float:
    """`r2v advise` and `r2v fit` on made-up sessions: the seconds of the slower one."""
    user.took.clear()
    paired(user.folder / "project/log.jsonl", SESSIONS // 2)
    told = user.types("r2v", "advise", "log.jsonl", "--out", "advice")
    user.types("r2v", "fit", "log.jsonl", "--out", "router")
    yaml = user.folder / "project/r2v.yaml"
    settings = yaml.read_text()
    for old, new in (("router: recorded", "router: router"), ("mode: observe", "mode: shadow"), ("  k: 4", "  #")):
        assert old in settings, old  # as fit's last line says
        settings = settings.replace(old, new)
    yaml.write_text(settings)
    user.types("r2v", "check", "r2v.yaml")
    found = [name for name in UNWANTED if list((user.folder / "venv").glob(f"lib/python3*/site-packages/{name}"))]
    if found:
        raise SystemExit(f"{found} is there")
    title = f"{SESSIONS:,} made-up sessions of two models, r2v[serve] alone (at most {MOST_LOGS_S} s each)"
    show(title, user.took, str(user.folder))
    print("  advise says: " + told.splitlines()[0])
    return max(seconds for _, seconds in user.took[:2])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agent", choices=list(AGENTS), default="claude")
    parser.add_argument("--wheel", type=Path, help="Instead of building one.")
    given = parser.parse_args()
    if not shutil.which(given.agent, path=str(CLIENTS / "npm/node_modules/.bin")):
        raise SystemExit(f"{given.agent} is not in {CLIENTS}; run tests/agents/install.py {CLIENTS}")
    with tempfile.TemporaryDirectory(prefix="r2v-first-hour-", ignore_cleanup_errors=True) as temporary:
        folder, wheel = Path(temporary), given.wheel
        if wheel is None:
            build = [sys.executable, "-m", "uv", "-q", "build", "--wheel", "--out-dir", temporary]
            subprocess.run([*build, str(ROOT)], check=True)
            (wheel,) = folder.glob("*.whl")
        slm, teacher = Server("chat", ""), Server("messages", "made-up-key")
        for server in (slm, teacher):
            server.forget(str(folder / "project"))
        with running(slm.app()) as slm_url, running(teacher.app()) as teacher_url:
            user = new_user(folder, "made-up-key")
            index = subprocess.run(["pip", "config", "list"], env=user.env, capture_output=True, text=True)
            print(f"{given.agent}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
            print(f"pip's settings: {'; '.join(index.stdout.split())}")
            total, commands = first_commands(user, wheel.resolve(), given.agent, slm_url, teacher_url)
            more_commands(user, given.agent)
            slower = logs(user)
        if refused := slm.refused + teacher.refused:
            print(f"the models' servers refused: {refused}")
            return 1
    return int(total > MOST_S or commands > MOST_COMMANDS or slower > MOST_LOGS_S)


if __name__ == "__main__":
    sys.exit(main())
