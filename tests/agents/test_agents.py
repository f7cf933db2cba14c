"""Real agent programs, as shipped, through a real `r2v serve`: nothing is set but the base URL and the key.

The models are scripted (tests/model_servers.py) and take turns; between them they solve a task in a git repository. Run by
`make clients`, which installs the programs (versions.json). Not part of `make test`.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tap import Tap

from model_servers import TASK, Server
from servers import running

HERE = Path(__file__).parent
CLIENTS = Path(os.environ.get("R2V_CLIENTS", HERE.parents[1] / ".clients")).resolve()
NOWHERE = "http://127.0.0.1:9"
"""The proxy of everything that is not on this machine: updates, telemetry, price lists."""
PATIENCE_S = 240
STEPS = 5
TEST_ADD = """import sys

sys.dont_write_bytecode = True  # add.py changes twice within a second, which Python would not notice

from add import add

assert add(2, 3) == 5, add(2, 3)
print("ok")
"""


@dataclass(frozen=True)
class Agent:
    name: str
    command: tuple[str, ...]
    """TASK, URL and KEY are filled in."""
    env: dict[str, str] = field(default_factory=dict)
    steps: int = STEPS
    streams: bool = True


def python(program: str, *arguments: str) -> tuple[str, ...]:
    return str(CLIENTS / "frameworks/bin/python"), str(HERE / "programs" / program), *arguments, "TASK"


def codex(*arguments: str, provider: bool = True) -> tuple[str, ...]:
    own = 'model_providers.r2v={name="r2v",base_url="URL/v1",env_key="OPENAI_API_KEY",wire_api="responses"}'
    to = ("-c", "model_provider=r2v", "-c", own) if provider else ("-c", 'openai_base_url="URL/v1"')
    free = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
    return "codex", "exec", *free, *to, *arguments, "TASK"


def opencode(model: str, **provider: Any) -> dict[str, str]:
    name = model.split("/")[0]
    options = {"baseURL": "URL/v1", "apiKey": "KEY"}
    settings = {"model": model, "provider": {name: {"options": options, **provider}}}
    quiet = {"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"}
    return {"OPENCODE_CONFIG_CONTENT": json.dumps(settings), **quiet}


def aider(model: str) -> tuple[str, ...]:
    free = ("--yes-always", "--no-check-update", "--analytics-disable", "--no-show-model-warnings")
    test = ("--auto-test", "--test-cmd", "python3 test_add.py")
    return str(CLIENTS / "aider/bin/aider"), "--model", model, *free, *test, "--message", "TASK", "add.py"


def mini(model: str) -> tuple[str, ...]:
    return str(CLIENTS / "frameworks/bin/mini"), "-m", model, "-t", "TASK", "--yolo", "--exit-immediately"


def ai_sdk(provider: str, how: str = "stream") -> tuple[str, ...]:
    return "node", str(CLIENTS / "npm/ai_sdk.mjs"), provider, how, "TASK"


CLAUDE = ("claude", "-p", "TASK", "--dangerously-skip-permissions")
OPENCODE = ("opencode", "run", "TASK")
AS_ROOT = {"IS_SANDBOX": "1"}
MINI = {"MSWEA_CONFIGURED": "true", "MSWEA_COST_TRACKING": "ignore_errors", "MSWEA_SILENT_STARTUP": "1"}
MESSAGES = [
    Agent("claude", CLAUDE, AS_ROOT),
    Agent("claude-model-r2v", CLAUDE, {**AS_ROOT, "ANTHROPIC_MODEL": "r2v"}),
    Agent("opencode-messages", OPENCODE, opencode("anthropic/claude-sonnet-4-5")),
    Agent("qwen-messages", ("qwen", "-p", "TASK", "--yolo", "--auth-type", "anthropic"), {"ANTHROPIC_MODEL": "r2v"}),
    Agent("aider-messages", aider("anthropic/claude-sonnet-4-5"), steps=4),
    Agent("mini-swe-agent-messages", mini("anthropic/claude-sonnet-4-5"), MINI, streams=False),
    Agent("langchain-messages", python("langchain_agent.py", "messages"), streams=False),
    Agent("pydantic-ai-messages", python("pydantic_agent.py", "anthropic:claude-sonnet-4-5")),
    Agent("ai-sdk-anthropic", ai_sdk("anthropic")),
]
RESPONSES = [
    Agent("codex", codex()),
    Agent("codex-model-r2v", codex("-m", "r2v")),
    Agent("codex-base-url", codex(provider=False)),
    Agent("opencode-responses", OPENCODE, opencode("openai/gpt-5.2")),
    Agent("openai-agents-responses", python("openai_agents.py", "responses")),
    Agent("langchain-responses", python("langchain_agent.py", "responses"), streams=False),
    Agent("pydantic-ai-responses", python("pydantic_agent.py", "openai-responses:gpt-5.2"), streams=False),
    Agent("ai-sdk-openai", ai_sdk("openai")),
    Agent("ai-sdk-openai-model-r2v", ai_sdk("openai"), {"MODEL": "r2v"}),
]
CHAT = [
    Agent("opencode-chat", OPENCODE, opencode("r2v/r2v", npm="@ai-sdk/openai-compatible", models={"r2v": {}})),
    Agent("qwen-chat", ("qwen", "-p", "TASK", "--yolo", "--auth-type", "openai"), {"OPENAI_MODEL": "r2v"}),
    Agent("aider-chat", aider("openai/r2v"), steps=4),
    Agent("mini-swe-agent-chat", mini("openai/r2v"), MINI, streams=False),
    Agent("openai-agents-chat", python("openai_agents.py", "chat")),
    Agent("langchain-chat", python("langchain_agent.py", "chat"), streams=False),
    Agent("pydantic-ai-chat", python("pydantic_agent.py", "openai-chat:gpt-5.2"), streams=False),
    Agent("smolagents", python("smol_agent.py"), streams=False),
    Agent("ai-sdk-openai-chat", ai_sdk("openai-chat", "whole"), streams=False),
    Agent("ai-sdk-openai-compatible", ai_sdk("openai-compatible")),
]


def matrix() -> Iterator[Any]:
    """Each agent with a teacher that speaks its protocol and with another one, held and live; `R2V_MATRIX=short`: once."""
    for agents, own, other in (
        (MESSAGES, "anthropic", "openai"),
        (RESPONSES, "openai_responses", "anthropic"),
        (CHAT, "openai", "anthropic"),
    ):
        for agent in agents:
            live = [(own, "early"), (other, "early")] if agent.streams else [(other, "hold")]
            ways = [(own, "hold"), *live]
            for teacher, stream in ways[-1:] if os.environ.get("R2V_MATRIX") == "short" else ways:
                yield pytest.param(agent, teacher, stream, id=f"{agent.name}-{teacher}-{stream}")


@dataclass
class World:
    url: str
    slm: Server
    teacher: Server

    def get(self, path: str) -> Any:
        ask = urllib.request.Request(self.url + path, headers={"authorization": "Bearer key-1"})
        with urllib.request.urlopen(ask, timeout=30) as answer:
            return json.load(answer)

    def sessions(self) -> set[str]:
        return {entry["session"] for entry in self.get("/v1/sessions")["sessions"]}


@pytest.fixture(scope="session")
def worlds(tmp_path_factory) -> Iterator[Any]:
    """A gateway and its two models for each (teacher, stream), started when first wanted."""
    made: dict[tuple[str, str], World] = {}
    with ExitStack() as stack:

        def world(teacher: str, stream: str) -> World:
            if (teacher, stream) not in made:
                made[teacher, stream] = stack.enter_context(gateway(teacher, stream, tmp_path_factory.mktemp("gateway")))
            return made[teacher, stream]

        yield world


@contextmanager
def gateway(teacher: str, stream: str, folder: Path) -> Iterator[World]:
    """`r2v serve`, a process of its own, and its two models."""
    slm = Server("chat", "slm-key", ugly_ids=True)
    protocols = {"anthropic": "messages", "openai": "chat", "openai_responses": "responses"}
    big = Server(protocols[teacher], "teacher-key")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with running(slm.app()) as small_url, running(big.app()) as big_url, (folder / "log").open("w") as log:
        small = {"base_url": f"{small_url}/v1", "model": "small-1", "api_key_env": "SLM_KEY"}
        there = {"base_url": big_url if teacher == "anthropic" else f"{big_url}/v1", "provider": teacher}
        price = {"input": 10, "output": 20, "cached": 1, "cache_write": 12}
        settings = {
            "version": 1,
            "models": {
                "slm": {**small, "price": {"input": 1, "output": 2}},
                "teacher": {**there, "model": "teacher-1", "api_key_env": "TEACHER_KEY", "price": price},
            },
            "route": {"k": 3, "router": "alternate:Alternating", "stream": stream},
            "server": {"port": port},
            "store": {"path": str(folder / "ledger.db"), "redact": False},
        }
        (folder / "r2v.json").write_text(json.dumps(settings))
        keys = {"R2V_API_KEY": "key-1", "SLM_KEY": "slm-key", "TEACHER_KEY": "teacher-key", "PYTHONPATH": str(HERE)}
        command = [str(Path(sys.executable).with_name("r2v")), "serve", str(folder / "r2v.json")]
        env = {**os.environ, **keys}
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=log, text=True) as served:
            try:
                assert served.stdout and any(f":{port}" in line for line in served.stdout), (folder / "log").read_text()
                yield World(f"http://127.0.0.1:{port}", slm, big)
            finally:
                served.terminate()


@pytest.fixture
def repository(tmp_path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "add.py").write_text("def add(a, b):\n    return a - b\n")
    (folder / "test_add.py").write_text(TEST_ADD)
    author = ("-c", "user.name=x", "-c", "user.email=x@localhost")
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def play(agent: Agent, url: str, folder: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """The agent's program, with an environment of nothing but base URL and key."""
    home.mkdir()
    shutil.copy(HERE / "programs/ai_sdk.mjs", CLIENTS / "npm")  # imports are found from where a program lies
    filled = {"TASK": TASK, "URL": url, "KEY": "key-1"}

    def fill(text: str) -> str:
        for name, value in filled.items():
            text = value if text == name else text.replace(f"{name}/v1", f"{value}/v1").replace(f'"{name}"', f'"{value}"')
        return text

    env = {
        "HOME": str(home), "PATH": f"{CLIENTS / 'npm/node_modules/.bin'}:{os.environ['PATH']}", "LANG": "C.UTF-8",
        "TERM": "dumb", "GIT_CONFIG_GLOBAL": os.devnull, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
        "DO_NOT_TRACK": "1",
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), NOWHERE),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it waits for a list of prices from GitHub
        "OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_BASE": f"{url}/v1", "OPENAI_API_KEY": "key-1",
        "CODEX_API_KEY": "key-1", "ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_BASE": url, "ANTHROPIC_API_KEY": "key-1",
        **{name: fill(value) for name, value in agent.env.items()},
    }  # fmt: skip
    command = [fill(part) for part in agent.command]
    return subprocess.run(
        command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S
    )


@pytest.mark.parametrize(("agent", "teacher", "stream"), list(matrix()))
def test_an_agent_solves_its_task(agent, teacher, stream, worlds, repository, tmp_path):
    world = worlds(teacher, stream)
    world.slm.forget(str(repository))
    world.teacher.forget(str(repository))
    before = world.sessions()
    tap = Tap(world.url)
    with running(tap.app()) as url:
        done = play(agent, url, repository, tmp_path / "home")
    new = {session: world.get(f"/v1/sessions/{session}")["steps"] for session in world.sessions() - before}
    problems = list(wrong(agent, world, tap, new))
    if done.returncode:
        problems.append(f"exit status {done.returncode}")
    if subprocess.run([sys.executable, "test_add.py"], cwd=repository, capture_output=True).returncode:
        problems.append("the repository's test still fails")
    if problems:
        pytest.fail("\n".join([*problems, done.stdout[-1500:], done.stderr[-1500:]]), pytrace=False)


def wrong(agent: Agent, world: World, tap: Tap, sessions: dict[str, list[Any]]) -> Iterator[str]:
    """What is not as it should be between agent, gateway and models."""
    for name, server in (("SLM", world.slm), ("teacher", world.teacher)):
        yield from (f"the {name}'s server refused: {message}" for message in server.refused)
    for each in tap.exchanges:
        if each.status >= 400 and each.status != 426:  # 426: no WebSockets here
            yield f"the agent got {each.status} for {each.path}: {each.answer.decode()[:300]}"
    served = [
        {"prompt": s.prompt, "cached": s.cached, "completion": s.completion} for s in world.slm.served + world.teacher.served
    ]
    for each in tap.exchanges:
        if each.status == 200 and each.tells_usage and each.usage() not in served:
            yield f"the agent was told {each.usage()}, which is no answer's usage; the latest were {served[-3:]}"
    long = [steps for steps in sessions.values() if len(steps) > 1]  # a title or a commit message is a session of one step
    if [len(steps) for steps in long] != [agent.steps]:
        yield f"sessions have {[len(steps) for steps in sessions.values()]} steps, one of {agent.steps} is expected"
        return
    if [step["step"] for step in long[0]] != list(range(agent.steps)):
        yield f"steps are numbered {[step['step'] for step in long[0]]}"
    arms = [step["arm"] for step in long[0]]
    if any(a == b for a, b in pairwise(arms)):
        yield f"the models did not take turns: {arms}, {[step['reason'] for step in long[0]]}"
