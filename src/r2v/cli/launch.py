"""Agent programs, as shipped, with the gateway as their model; and what the command line asks of a gateway that runs."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

import msgspec

from r2v.core.errors import SettingsError

if TYPE_CHECKING:
    from r2v.gateway.settings import GatewaySettings

START_S = 60.0
"""A gateway that does not answer after so long has not started."""


@dataclass(frozen=True)
class Agent:
    """How a program gets the gateway's address and key, which $URL and $KEY stand for."""

    program: str
    install: str
    env: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    """Before the user's own."""


_OPENAI = {"OPENAI_BASE_URL": "$URL/v1", "OPENAI_API_BASE": "$URL/v1", "OPENAI_API_KEY": "$KEY"}
_CODEX = 'model_providers.r2v={name="r2v",base_url="$URL/v1",env_key="R2V_API_KEY",wire_api="responses"}'
_OPENCODE = {
    "model": "r2v/r2v", "small_model": "r2v/r2v",
    "provider": {
        "r2v": {
            "npm": "@ai-sdk/openai-compatible", "models": {"r2v": {}}, "options": {"baseURL": "$URL/v1", "apiKey": "$KEY"},
        }
    },
}  # fmt: skip
AGENTS: Mapping[str, Agent] = {
    "claude": Agent(
        "claude", "npm install -g @anthropic-ai/claude-code",
        # Not as ANTHROPIC_API_KEY: for that one it asks before it uses it.
        {"ANTHROPIC_BASE_URL": "$URL", "ANTHROPIC_AUTH_TOKEN": "$KEY"},
    ),
    "codex": Agent(
        "codex", "npm install -g @openai/codex", {"R2V_API_KEY": "$KEY"}, ("-c", "model_provider=r2v", "-c", _CODEX)
    ),
    "opencode": Agent("opencode", "npm install -g opencode-ai", {"OPENCODE_CONFIG_CONTENT": json.dumps(_OPENCODE)}),
    "qwen": Agent(
        "qwen", "npm install -g @qwen-code/qwen-code", {**_OPENAI, "OPENAI_MODEL": "r2v"}, ("--auth-type", "openai")
    ),
    "aider": Agent("aider", "uv tool install aider-chat", _OPENAI, ("--model", "openai/r2v")),
    "mini-swe-agent": Agent(
        "mini", "uv tool install mini-swe-agent",
        {**_OPENAI, "MSWEA_CONFIGURED": "true", "MSWEA_COST_TRACKING": "ignore_errors"}, ("-m", "openai/r2v"),
    ),
}  # fmt: skip
_THEIRS = ("R2V_", "ANTHROPIC_", "OPENAI_", "CLAUDE_CODE_OAUTH", "CLAUDE_CODE_USE_", "OPENCODE_CONFIG")
"""Beginnings of the variables that are the gateway's own, and by which an agent would find another model or key."""


def launch(
    agent: Agent, arguments: Sequence[str], settings: GatewaySettings, config: Path, tell: Callable[[str], None]
) -> int:
    """Run an agent until it ends; starts the gateway for it where none answers.

    Args:
        agent: of `AGENTS`.
        arguments: its own.
        settings, config: of the gateway, and the file that they stand in.
        tell: called with lines for the user: where the gateway and its page are.

    Returns:
        The agent's exit status.

    Raises:
        SettingsError: the program is not installed, or the gateway does not start or has another key.
    """
    program = shutil.which(agent.program)
    if program is None:
        raise SettingsError(f"{agent.program} is not on PATH; {agent.install}")
    key = inbound_key(settings)
    with _gateway(settings, config, tell) as url:
        tell(f"page     {page(control_address(settings), admin_key(settings) or 'ADMIN-KEY')}")
        command = [program, *(_filled(part, url, key) for part in agent.arguments), *arguments]
        started: list[subprocess.Popen[bytes]] = []
        ended: list[int] = []

        def end(number: int, *_: object) -> None:
            ended.append(number)
            for running in started:
                running.terminate()

        # Ctrl-C is the agent's to deal with; when we are to end, it ends first.
        signal.signal(signal.SIGINT, lambda *_: None)
        for ending in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):  # Windows has no SIGHUP
            signal.signal(ending, end)
        started.append(subprocess.Popen(command, env=environment(agent, settings, os.environ, url, key)))
        if ended:  # before it was noted as started
            started[0].terminate()
        # Not one long wait: a signal that comes just before it would only be handled after it.
        while (status := started[0].poll()) is None:
            time.sleep(0.05)
    return status if status >= 0 else 128 - status


def environment(agent: Agent, settings: GatewaySettings, ours: Mapping[str, str], url: str, key: str) -> dict[str, str]:
    """Ours without the keys of the models and other ways to models, but with those of the gateway, past any proxy."""
    named = set(_variables(msgspec.to_builtins(settings)))
    if settings.store.url is not None or settings.store.url_env is not None:
        named.add("PGPASSWORD")
    if settings.telemetry is not None:
        named |= {name for name in ours if name.startswith("OTEL_EXPORTER_OTLP") and name.endswith("HEADERS")}
    hidden = {ours[name] for name in named if ours.get(name)}
    kept = {k: v for k, v in ours.items() if not k.startswith(_THEIRS) and k not in named and v not in hidden}
    direct = {name: ",".join(filter(None, (kept.get(name), urlsplit(url).hostname))) for name in ("NO_PROXY", "no_proxy")}
    return kept | direct | {name: _filled(value, url, key) for name, value in agent.env.items()}


def _variables(settings: Any) -> Iterator[str]:
    """The environment variables that settings name, wherever they stand in them."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            if isinstance(value, str) and key.endswith("_env"):
                yield value
            yield from _variables(value)
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _variables(value)


def _filled(text: str, url: str, key: str) -> str:
    return text.replace("$URL", url).replace("$KEY", key)


def page(url: str, key: str) -> str:
    """The link that opens the page: what stands after # is never sent."""
    return f"{url}/#key={key}"


def address(settings: GatewaySettings) -> str:
    """Where the gateway of these settings is reached from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.server.host, settings.server.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.server.port}"


def control_address(settings: GatewaySettings) -> str:
    """Where the control plane of the gateway that runs is reached: the gateway itself says so."""
    url = address(settings)
    try:
        with _open(Request(f"{url}/health"), 5) as answer:
            return str(json.load(answer).get("admin_url", url))
    except (OSError, ValueError, AttributeError):
        return url


def inbound_key(settings: GatewaySettings) -> str:
    """The key that clients send: the first in the settings' environment variable; where none is set, one that is made once
    for this port, kept for the user alone, and put there.
    """
    server = settings.server
    if given := os.environ.get(server.key_env, "").split(",")[0].strip():
        return given
    path = _made_key(settings)
    if not path.exists():
        path.touch(0o600)
        path.write_text(f"r2v-{secrets.token_urlsafe(24)}\n")
    os.environ[server.key_env] = path.read_text().strip()
    return os.environ[server.key_env]


def admin_key(settings: GatewaySettings) -> str | None:
    """The key that opens the page and changes the mode: the admin's, or the clients' where they have only one; None where
    neither is set.
    """
    server = settings.server
    admin, keys = (
        [key.strip() for key in os.environ.get(name, "").split(",") if key.strip()]
        for name in (server.admin_key_env, server.key_env)
    )
    return next(iter(admin), None) or (inbound_key(settings) if len(keys) <= 1 else None)


def key_in_shell(settings: GatewaySettings) -> str:
    """What a shell makes the key of: the environment variable, or the file of a key that was made for the port."""
    path, name = _made_key(settings), settings.server.key_env
    made = path.exists() and path.read_text().strip() == os.environ.get(name)
    return f"$(cat {path})" if made else f"${name}"


def _made_key(settings: GatewaySettings) -> Path:
    return state(f"{settings.server.port}.key")


def state(name: str) -> Path:
    """A file of what outlasts a command."""
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "r2v"
    folder.mkdir(0o700, parents=True, exist_ok=True)
    return folder / name


@contextmanager
def _gateway(settings: GatewaySettings, config: Path, tell: Callable[[str], None]) -> Iterator[str]:
    """The gateway's URL: of the one that runs, or of one that is started, and stopped at the end."""
    url = address(settings)
    if _answers(url):
        ask(settings, "/v1/mode", config=config)
        tell(f"gateway  {url}, which runs already")
        yield url
        return
    log = state(f"{settings.server.port}.log")
    command = [sys.executable, "-c", "from r2v.cli import app; app()", "serve", config.name]
    # Its folder is the settings' one, so that what they name is found from wherever the agent works; a session of its own,
    # so that Ctrl-C in the agent is not meant for it.
    with log.open("w") as out, subprocess.Popen(
        command, cwd=config.resolve().parent, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
        start_new_session=True,
    ) as served:  # fmt: skip
        try:
            deadline = time.monotonic() + START_S
            while not _answers(url):
                if served.poll() is not None or time.monotonic() > deadline:
                    last = (log.read_text().strip().splitlines() or ["it said nothing"])[-1]
                    raise SettingsError(f"the gateway did not start: {last.removeprefix('r2v: ')} (log: {log})")
                time.sleep(0.05)
            tell(f"gateway  {url}, for as long as the agent runs; log {log}")
            yield url
        finally:
            served.terminate()


def _answers(url: str) -> bool:
    """Whether a gateway does. Raises SettingsError where something else is on the port."""
    try:
        with _open(Request(f"{url}/ready"), 5) as answer:
            found = json.load(answer)
    except HTTPError as error:  # 503: no model answers it
        found = {"ready": False} if error.code == 503 else None
    except URLError:
        return False
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or "ready" not in found:
        raise SettingsError(f"what answers at {url} is not r2v; choose another server.port")
    return True


def ask(settings: GatewaySettings, path: str, body: Mapping[str, Any] | None = None, *, config: Path) -> Any:
    """What the running gateway of these settings answers. Raises SettingsError where it refuses, or does not run."""
    url, key = control_address(settings), admin_key(settings)
    if key is None:
        raise SettingsError(
            f"of several keys none is the admin's; set {settings.server.admin_key_env} as it is for the gateway"
        )
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    try:
        with _open(Request(url + path, None if body is None else json.dumps(body).encode(), headers), 30) as answer:
            return json.load(answer)
    except HTTPError as error:
        if error.code == 401:
            raise SettingsError(f"the gateway at {url} has another key; set {settings.server.key_env} to it") from None
        if error.code == 403:
            raise SettingsError(f"that takes an admin's key; set {settings.server.admin_key_env} to it") from None
        raise SettingsError(json.load(error)["error"]["message"]) from None
    except OSError:
        raise SettingsError(f"no gateway answers at {url}; start it with `r2v serve {config}`") from None


def _open(request: Request, timeout_s: float) -> Any:
    return build_opener(ProxyHandler({})).open(request, timeout=timeout_s)  # a proxy is not for this machine
