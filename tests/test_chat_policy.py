"""`ChatPolicy` against a real HTTP server that speaks the chat-completions protocol, failures included."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from r2v.clients.chat import ChatPolicy, ChatSettings
from r2v.core.agent import Solo
from r2v.core.errors import SettingsError
from r2v.core.loop import run_episode
from r2v.core.types import Action, Context, Memory, Usage
from r2v.domains.household.chat_format import HOUSEHOLD, SYSTEM
from r2v.domains.household.env import Household
from r2v.domains.household.expert import HouseholdExpert
from r2v.domains.household.scenes import generate
from r2v.domains.terminal.chat_format import SHELL
from r2v.messages.chat_format import ChatFormat, command_of, messages, script_of
from r2v.runtime.settings import dump

KEY = "sk-very-secret-123"
CONTEXT = Context("put a mug in shelf.", ("a room", "a drawer"), (Action("go to drawer 1"),), 10)


@dataclass(frozen=True)
class Reply:
    body: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Server:
    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)


def completion(text: Any, usage: Any = None) -> Reply:
    answer: dict[str, Any] = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
    return Reply(json.dumps(answer if usage is None else answer | {"usage": usage}))


def busy(status: int) -> Reply:
    return Reply('{"error": "later"}', status, {"Retry-After": "0"})


@contextmanager
def serving(answer: Callable[[dict[str, Any], int], Reply]) -> Iterator[Server]:
    """A server whose reply is a function of the request's body and of its number (0 is the first)."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.bodies)
                server.bodies.append(body)
                server.paths.append(self.path)
                server.authorizations.append(self.headers["Authorization"])
            reply = answer(body, number)
            data = reply.body.encode()
            self.send_response(reply.status)
            self.send_header("Content-Length", str(len(data)))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server = Server(f"http://127.0.0.1:{http.server_port}/v1")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def chat(url: str, chat_format: ChatFormat = HOUSEHOLD, **settings: Any) -> ChatPolicy:
    settings = {"kind": "chat", "base_url": url, "model": "toy-model", **settings}
    return ChatPolicy(ChatSettings(**settings), name="teacher", chat_format=chat_format)


def propose(policy: ChatPolicy, k: int = 1, seed: int = 7):
    return asyncio.run(policy.propose(CONTEXT, k, seed=seed))


def test_k_candidates_are_k_requests_with_seeds_of_their_own():
    with serving(lambda body, number: completion(f"go to shelf {body['seed']}")) as server:
        candidates = propose(chat(server.url + "/", temperature=0.7, max_tokens=12), k=3)
    assert [candidate.action.text for candidate in candidates] == ["go to shelf 7", "go to shelf 8", "go to shelf 9"]
    assert all(candidate.logp is None and candidate.entropy is None for candidate in candidates)
    assert server.paths == ["/v1/chat/completions"] * 3
    assert sorted(body["seed"] for body in server.bodies) == [7, 8, 9]
    for body in server.bodies:
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("toy-model", 0.7, 12)


def test_a_seed_of_63_bits_is_sent_as_31():
    with serving(lambda body, number: completion("look")) as server:
        propose(chat(server.url), seed=2**63 - 1)
    assert server.bodies[0]["seed"] == 2**31 - 1


def test_messages_carry_goal_observations_and_actions_in_order():
    with serving(lambda body, number: completion("look")) as server:
        propose(chat(server.url))
    system, *rest = server.bodies[0]["messages"]
    assert system["role"] == "system"
    assert "exactly one command" in system["content"]
    assert rest == [
        {"role": "user", "content": "Your task is to: put a mug in shelf.\n\na room"},
        {"role": "assistant", "content": "go to drawer 1"},
        {"role": "user", "content": "a drawer"},
    ]


PRICES = {"usd_per_million_prompt_tokens": 2.0, "usd_per_million_completion_tokens": 10.0}


@pytest.mark.parametrize(
    ("usage", "prices", "expected"),
    [
        ({"prompt_tokens": 1000, "completion_tokens": 50}, PRICES, Usage(1, 1000, 50, 0.0025)),
        ({"prompt_tokens": 1000, "completion_tokens": 50}, {}, Usage(1, 1000, 50, None)),
        ({"prompt_tokens": 1000}, PRICES, Usage(1, 1000, None, None)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, PRICES, Usage(1, 0, 0, 0.0)),
        (None, PRICES, Usage(1, None, None, None)),
    ],
)
def test_usage_is_what_the_server_says_and_none_where_it_is_silent(usage, prices, expected):
    with serving(lambda body, number: completion("look", usage)) as server:
        (candidate,) = propose(chat(server.url, **prices))
    got = candidate.usage
    assert (got.calls, got.prompt_tokens, got.completion_tokens) == (1, expected.prompt_tokens, expected.completion_tokens)
    assert got.usd == (None if expected.usd is None else pytest.approx(expected.usd))


def test_429_waits_as_long_as_told_and_then_succeeds():
    slow_down = Reply("", 429, {"Retry-After": "0.8"})
    with serving(lambda body, number: slow_down if number == 0 else completion("look")) as server:
        begin = time.monotonic()
        (candidate,) = propose(chat(server.url))
        took = time.monotonic() - begin
    assert candidate.action.text == "look"
    assert len(server.bodies) == 2
    assert took >= 0.8  # its own first wait would be 0.5


def test_500_forever_names_the_url_and_the_tries():
    with serving(lambda body, number: busy(500)) as server, pytest.raises(RuntimeError) as caught:
        propose(chat(server.url, retries=2))
    assert len(server.bodies) == 3
    assert str(caught.value) == f"{server.url}/chat/completions: HTTP 500 (after 3 tries)"


def test_401_is_not_retried():
    with serving(lambda body, number: busy(401)) as server, pytest.raises(RuntimeError, match=r"HTTP 401 \(after 1 tr"):
        propose(chat(server.url, retries=4))
    assert len(server.bodies) == 1


def test_malformed_json_is_a_clear_error():
    with serving(lambda body, number: Reply('{"choices": [')) as server, pytest.raises(RuntimeError) as caught:
        propose(chat(server.url, retries=0))
    assert server.url in str(caught.value)
    assert "not JSON" in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        "[]",
        "null",
        '"hello"',
        '{"choices": []}',
        '{"choices": [{"text": "look"}]}',
        '{"choices": [{"message": null}]}',
        '{"choices": [{"message": {"content": 5}}]}',
        '{"choices": [{"message": {"content": [{"type": "text", "text": "look"}]}}]}',
        '{"choices": [{"message": {"content": "look"}}], "usage": [1]}',
    ],
)
def test_json_that_is_no_completion_is_a_clear_error(body):
    with serving(lambda _, number: Reply(body)) as server, pytest.raises(RuntimeError) as caught:
        propose(chat(server.url))
    assert str(caught.value) == f"{server.url} did not answer with a chat completion"
    assert len(server.bodies) == 1


def test_a_message_without_content_is_an_empty_command():
    with serving(lambda body, number: completion(None)) as server:
        assert propose(chat(server.url))[0].action == Action("")


def test_connection_refused_is_a_clear_error():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused, and nobody else gets the port
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(RuntimeError) as caught:
            propose(chat(url, retries=1))
    assert str(caught.value) == f"{url}/chat/completions: ConnectError (after 2 tries)"


def test_the_key_is_sent_and_shown_nowhere(monkeypatch):
    monkeypatch.setenv("TOY_KEY", KEY)
    with serving(lambda body, number: completion("look") if number == 0 else busy(401)) as server:
        policy = chat(server.url, api_key_env="TOY_KEY")
        propose(policy)
        with pytest.raises(RuntimeError) as caught:
            propose(policy)
    assert server.authorizations == [f"Bearer {KEY}"] * 2
    settings = ChatSettings(kind="chat", base_url=server.url, model="toy-model", api_key_env="TOY_KEY")
    assert "TOY_KEY" in dump(settings)
    for text in (repr(policy), str(policy), repr(caught.value), dump(settings), repr(settings)):
        assert KEY not in text


def test_a_key_that_cannot_be_a_header_is_not_shown_either(monkeypatch):
    monkeypatch.setenv("TOY_KEY", KEY + "\n")
    with serving(lambda body, number: completion("look")) as server, pytest.raises(RuntimeError) as caught:
        propose(chat(server.url, api_key_env="TOY_KEY", retries=0))
    assert KEY not in str(caught.value)
    assert server.bodies == []


def test_without_a_key_no_authorization_is_sent():
    with serving(lambda body, number: completion("look")) as server:
        propose(chat(server.url))
    assert server.authorizations == [None]


@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_key_variable_is_a_settings_error(monkeypatch, value):
    monkeypatch.delenv("TOY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("TOY_KEY", value)
    with pytest.raises(SettingsError, match="environment variable TOY_KEY is not set"):
        chat("http://127.0.0.1:1/v1", api_key_env="TOY_KEY")


@pytest.mark.parametrize(
    ("reply", "command"),
    [
        ("go to shelf 1", "go to shelf 1"),
        ("  go to shelf 1.\n", "go to shelf 1"),
        ("> go to shelf 1", "go to shelf 1"),
        ("`go to shelf 1`", "go to shelf 1"),
        ('"go to shelf 1"', "go to shelf 1"),
        ('"go to shelf 1."', "go to shelf 1"),
        ('"go to shelf 1".', "go to shelf 1"),
        ("```\ngo to shelf 1\n```", "go to shelf 1"),
        ("```text\ngo to shelf 1\n```\n", "go to shelf 1"),
        ("```go to shelf 1```", "go to shelf 1"),
        ("Action: go to shelf 1", "go to shelf 1"),
        ("> Action: go to shelf 1", "go to shelf 1"),
        ("ACTION: > 'take mug 1 from shelf 1'", "take mug 1 from shelf 1"),
        ("Action: open fridge 1\nThen I will look inside.", "open fridge 1"),
        ("I should look around first.\n\nlook", "look"),
        ("", ""),
        (" \n\t\n", ""),
        ("```\n```", ""),
        ("Action:", ""),
    ],
)
def test_the_command_in_a_reply(reply, command):
    assert command_of(reply) == command


def read_back(chat_messages: list[dict[str, str]]) -> Context:
    """What a model behind the server can know: the context, from the messages alone."""
    first, *rest = [message["content"] for message in chat_messages if message["role"] == "user"]
    goal, observation = first.removeprefix("Your task is to: ").split("\n\n", 1)
    actions = tuple(Action(message["content"]) for message in chat_messages if message["role"] == "assistant")
    return Context(goal, (observation, *rest), actions, 40)


def test_messages_lose_nothing_of_the_context():
    context = read_back(messages(CONTEXT, SYSTEM))
    assert (context.goal, context.observations, context.actions) == (CONTEXT.goal, CONTEXT.observations, CONTEXT.actions)


def play(policy, task, scenes):
    environment = Household(generate(task.id, task.family, scenes).world())
    agent = Solo(policy, "teacher")
    return asyncio.run(run_episode(environment, agent, task, seed=0, perturbation="none", horizon=40, memory=Memory()))


def test_a_whole_episode_is_the_one_of_the_model_behind_the_server(small_tasks, small_scenes):
    def expert(body: dict[str, Any], number: int) -> Reply:
        (candidate,) = asyncio.run(HouseholdExpert().propose(read_back(body["messages"]), 1, seed=0))
        usage = {"prompt_tokens": 10 * len(body["messages"]), "completion_tokens": 5}
        return completion(f"Action: {candidate.action.text}.", usage)

    with serving(expert) as server:
        episode = play(chat(server.url, **PRICES), small_tasks[0], small_scenes)
    local = play(HouseholdExpert(), small_tasks[0], small_scenes)
    assert episode.success is True
    assert episode.stop == "done"
    assert [step.choice.action for step in episode.steps] == [step.choice.action for step in local.steps]
    assert len(server.bodies) == len(episode.steps) > 1
    for t, step in enumerate(episode.steps):
        prompt = 10 * (2 + 2 * t)
        assert step.choice.teacher == Usage(1, prompt, 5, (2.0 * prompt + 10.0 * 5) / 1e6)


def test_a_server_that_breaks_is_a_recorded_failure_of_the_episode(small_tasks, small_scenes):
    with serving(lambda body, number: completion("look") if number < 2 else busy(503)) as server:
        episode = play(chat(server.url, retries=1), small_tasks[0], small_scenes)
    assert (episode.stop, episode.success, len(episode.steps)) == ("error", None, 2)
    assert episode.failure is not None
    assert (episode.failure.boundary, episode.failure.kind) == ("teacher", "RuntimeError")
    assert episode.failure.message == f"{server.url}/chat/completions: HTTP 503 (after 2 tries)"


@pytest.mark.parametrize(
    ("reply", "script"),
    [
        ("ls -la", "ls -la"),
        ("$ ls -la\n", "ls -la"),
        ("I look.\n```bash\ncd src\nmake\n```\nand then\n```\nls\n```", "cd src\nmake"),
        ("```\ncat > a.py <<'E'\nif x:\n    y()\nE\n```", "cat > a.py <<'E'\nif x:\n    y()\nE"),
        ("So:\n```sh\nls\ncat a", "ls\ncat a"),  # cut off by max_tokens
        ("`submit`", "submit"),
        ("submit", "submit"),
        ("", ""),
    ],
)
def test_scripts_are_read_from_replies(reply, script):
    assert script_of(reply) == script


def test_in_a_shell_the_model_is_told_so_and_may_answer_with_scripts():
    with serving(lambda body, number: completion("```bash\ncd src\nmake\n```")) as server:
        (candidate,) = propose(chat(server.url, SHELL))
    assert candidate.action.text == "cd src\nmake"
    assert "bash" in server.bodies[0]["messages"][0]["content"]
