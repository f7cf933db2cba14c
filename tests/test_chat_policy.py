"""`ChatPolicy` against a real HTTP server that speaks the chat-completions protocol, failures included."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest

from r2v.clients import make_client
from r2v.clients.chat import ChatPolicy, ChatSettings
from r2v.clients.settings import ClientSettings, PriceSettings
from r2v.clients.tokens import Tokens
from r2v.core.agent import Solo
from r2v.core.errors import ModelError, SettingsError
from r2v.core.loop import run_episode
from r2v.core.types import Action, Context, Memory, Usage
from r2v.domains.household.chat_format import HOUSEHOLD, SYSTEM
from r2v.domains.household.env import Household
from r2v.domains.household.expert import HouseholdExpert
from r2v.domains.household.scenes import generate
from r2v.domains.terminal.chat_format import SHELL
from r2v.messages.chat_format import ChatFormat, command_of, messages, script_of
from r2v.runtime.settings import dump, validated

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
    headers: list[dict[str, str]] = field(default_factory=list)
    connections: int = 0
    """Opened so far."""
    open_connections: int = 0
    in_flight: int = 0
    peak: int = 0
    """Most requests in flight at once."""
    changed: threading.Condition = field(default_factory=threading.Condition)

    def count(self, **changes: int) -> None:
        with self.changed:
            for name, change in changes.items():
                setattr(self, name, getattr(self, name) + change)
            self.peak = max(self.peak, self.in_flight)
            self.changed.notify_all()

    def wait_until_closed(self) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.open_connections == 0, timeout=20), "connections stay open"


def completion(text: Any, usage: Any = None, logprobs: Any = None) -> Reply:
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": logprobs}
    answer: dict[str, Any] = {"choices": [choice]}
    return Reply(json.dumps(answer if usage is None else answer | {"usage": usage}))


def busy(status: int) -> Reply:
    return Reply('{"error": "later"}', status, {"Retry-After": "0"})


@contextmanager
def serving(answer: Callable[[dict[str, Any], int], Reply]) -> Iterator[Server]:
    """A server whose reply is a function of the request's body and of its number (0 is the first)."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle(self) -> None:
            server.count(connections=1, open_connections=1)
            super().handle()
            server.count(open_connections=-1)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.bodies)
                server.bodies.append(body)
                server.paths.append(self.path)
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.count(in_flight=1)
            reply = answer(body, number)
            server.count(in_flight=-1)
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
    return ChatPolicy(validated(ChatSettings, settings), name="teacher", chat_format=chat_format)


def propose(policy: ChatPolicy, k: int = 1, seed: int = 7):
    return asyncio.run(policy.propose(CONTEXT, k, seed=seed))


def several(texts: list[str], tops: list[list[float]] | None = None) -> Reply:
    """One answer with a choice a text; `tops`: probabilities of the first token's alternatives, the drawn one first."""
    choices = []
    for i, text in enumerate(texts):
        choice: dict[str, Any] = {"index": i, "message": {"role": "assistant", "content": text}}
        if tops is not None:
            entries = [{"token": str(j), "logprob": math.log(p)} for j, p in enumerate(tops[i])]
            first = {**entries[0], "top_logprobs": entries}
            choice["logprobs"] = {"content": [first, {"token": "x", "logprob": -0.25, "top_logprobs": []}]}
        choices.append(choice)
    return Reply(json.dumps({"choices": choices, "usage": {"prompt_tokens": 100, "completion_tokens": 9}}))


def test_k_candidates_are_one_request_with_log_probabilities():
    tops = [[0.5, 0.25], [0.9, 0.1], [0.25, 0.25]]
    with serving(lambda body, number: several(["look", "go to bed 1", "look"], tops)) as server:
        candidates = propose(chat(server.url, temperature=0.7, top_logprobs=2, price={"input": 2, "output": 10}), k=3)
    (body,) = server.bodies
    assert (body["n"], body["seed"], body["logprobs"], body["top_logprobs"]) == (3, 7, True, 2)
    assert [candidate.action.text for candidate in candidates] == ["look", "go to bed 1", "look"]
    assert [candidate.logp for candidate in candidates] == pytest.approx([math.log(top[0]) - 0.25 for top in tops])
    rest = [-sum(p * math.log(p) for p in (*top, 1 - sum(top)) if p > 1e-9) for top in tops]
    assert [candidate.entropy for candidate in candidates] == pytest.approx(rest)
    assert [candidate.usage for candidate in candidates] == [Usage(1, 100, 9, (200 + 90) / 1e6), Usage(), Usage()]


def test_the_entropy_spreads_what_is_left_out_over_the_vocabulary():
    with serving(lambda body, number: several(["look"] * 2, [[0.5, 0.25]] * 2)) as server:
        first, _ = propose(chat(server.url, vocabulary=102), k=2)
    assert first.entropy == pytest.approx(-(0.5 * math.log(0.5) + 0.25 * math.log(0.25) + 0.25 * math.log(0.25 / 100)))


@pytest.mark.parametrize("offers_n", [True, False])
def test_servers_without_n_get_a_request_for_each_candidate_with_a_seed_of_its_own(offers_n):
    with serving(lambda body, number: completion(f"go to shelf {body['seed']}", {"prompt_tokens": 5})) as server:
        policy = chat(server.url + "/", temperature=0.7, max_tokens=12, offers_n=offers_n, offers_logprobs=False)
        candidates = propose(policy, k=3)
    assert [candidate.action.text for candidate in candidates] == ["go to shelf 7", "go to shelf 8", "go to shelf 9"]
    assert all(candidate.logp is None and candidate.entropy is None for candidate in candidates)
    assert server.paths == ["/v1/chat/completions"] * 3
    assert sorted(body["seed"] for body in server.bodies) == [7, 8, 9]
    assert [body.get("n") for body in server.bodies] == [3 if offers_n else None, None, None]
    for body in server.bodies:
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("toy-model", 0.7, 12)
        assert "logprobs" not in body
    assert [candidate.usage for candidate in candidates] == [Usage(1, 15, None, None), Usage(), Usage()]


def test_a_greedy_teacher_is_one_plain_request():
    with serving(lambda body, number: completion("look")) as server:
        propose(chat(server.url))
    assert set(server.bodies[0]) == {"model", "messages", "temperature", "max_tokens"}


def test_at_most_so_many_requests_and_connections_however_many_calls():
    together = threading.Barrier(4, timeout=20)  # passes four at once: with fewer in flight nothing would be answered

    def answer(body: dict[str, Any], number: int) -> Reply:
        together.wait()
        return completion("look")

    async def all_at_once(policy: ChatPolicy) -> None:
        await asyncio.gather(*(policy.propose(CONTEXT, 5, seed=i) for i in range(12)))

    with serving(answer) as server:
        asyncio.run(all_at_once(chat(server.url, concurrency=4, offers_n=False, temperature=1.0)))
    assert (len(server.bodies), server.connections, server.peak) == (60, 4, 4)


def test_connections_close_with_their_loop_and_a_policy_serves_the_next_one():
    with serving(lambda body, number: completion("look")) as server:
        policy = chat(server.url)
        for _ in range(3):
            assert propose(policy)[0].action == Action("look")
            server.wait_until_closed()
        gc.collect()  # what was left open would warn here, and warnings are errors
    assert server.connections == 3


def test_connections_of_a_policy_that_is_dropped_close_while_the_loop_runs():
    async def use(url: str) -> None:
        for _ in range(3):
            await chat(url).propose(CONTEXT, 1, seed=7)
        gc.collect()
        await asyncio.to_thread(server.wait_until_closed)

    with serving(lambda body, number: completion("look")) as server:
        asyncio.run(use(server.url))


def test_an_anthropic_model_as_a_policy(monkeypatch):
    monkeypatch.setenv("TOY_KEY", KEY)
    usage = {"input_tokens": 10, "output_tokens": 4}
    reply = {"type": "message", "content": [{"type": "text", "text": "look"}], "stop_reason": "end_turn", "usage": usage}
    with serving(lambda body, number: Reply(json.dumps(reply))) as server:
        url = server.url.removesuffix("/v1")
        candidates = propose(chat(url, provider="anthropic", api_key_env="TOY_KEY", temperature=0.5), k=2)
    assert server.paths == ["/v1/messages"] * 2 and server.headers[0]["x-api-key"] == KEY
    first = server.bodies[0]
    assert first["max_tokens"] == 64 and first["temperature"] == 0.5 and "exactly one command" in first["system"][0]["text"]
    assert [message["role"] for message in first["messages"]] == ["user", "assistant", "user"]
    assert [candidate.action.text for candidate in candidates] == ["look", "look"]
    assert candidates[0].usage == Usage(1, 20, 8, None) and candidates[0].logp is None


FULL = {"input": 3.0, "output": 15.0, "cached": 0.3, "cache_write": 3.75}


@pytest.mark.parametrize(
    ("left_out", "usd"),
    [
        ((), 100 * 3.0 + 1000 * 0.3 + 2000 * 3.75 + 50 * 15.0),
        (("cache_write",), 100 * 3.0 + 1000 * 0.3 + 2000 * 3.0 + 50 * 15.0),
        (("cached",), 100 * 3.0 + 1000 * 3.0 + 2000 * 3.75 + 50 * 15.0),
    ],
)
def test_cached_and_cache_write_tokens_have_prices_of_their_own(left_out, usd):
    usage = {
        "input_tokens": 100, "cache_read_input_tokens": 1000, "cache_creation_input_tokens": 2000, "output_tokens": 50,
    }  # fmt: skip
    reply = {"type": "message", "content": [{"type": "text", "text": "look"}], "usage": usage}
    price = {key: value for key, value in FULL.items() if key not in left_out}
    with serving(lambda body, number: Reply(json.dumps(reply))) as server:
        (candidate,) = propose(chat(server.url.removesuffix("/v1"), provider="anthropic", price=price))
    assert candidate.usage == Usage(1, 3100, 50, pytest.approx(usd / 1e6))


@pytest.mark.parametrize("name", ["cache_creation_tokens", "cache_write_tokens"])  # LiteLLM's, OpenRouter's
def test_cache_writes_of_openai_style_servers_have_their_price(name):
    usage = {"prompt_tokens": 3100, "completion_tokens": 50, "prompt_tokens_details": {"cached_tokens": 1000, name: 2000}}
    assert Tokens.of(usage) == Tokens(3100, 50, 1000, 2000)
    assert Tokens.of({**usage, "prompt_tokens_details": {name: -1}}).cache_written == 0


def test_a_provider_may_be_anybodys_class(monkeypatch, tmp_path):
    (tmp_path / "my_client.py").write_text(
        "from r2v.clients.openai import OpenAIClient\n\n\nclass Client(OpenAIClient):\n    path = '/mine'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with serving(lambda body, number: completion("look")) as server:
        propose(chat(server.url, provider="my_client:Client"))
    assert server.paths == ["/v1/mine"]
    with pytest.raises(SettingsError, match=r"no client is called antropic; did you mean anthropic\?"):
        chat("http://127.0.0.1:1/v1", provider="antropic")


def test_a_seed_of_63_bits_is_sent_as_31():
    with serving(lambda body, number: completion("look")) as server:
        propose(chat(server.url, temperature=0.7), seed=2**63 - 1)
    assert server.bodies[0]["seed"] == 2**31 - 1


def test_a_server_is_waited_for_by_the_speed_that_it_showed():
    """First for as long as a slow one may need for so many tokens, then for some times as long as a token took."""

    def answer(body: dict[str, Any], number: int) -> Reply:
        time.sleep(1.0 if number == 1 or body["max_tokens"] == 64 else 0.0)
        return completion("look", {"prompt_tokens": 5, "completion_tokens": 100})

    limits = {"timeout_s": 0.2, "total_s": 0.2, "retries": 0}
    with serving(answer) as server:
        assert propose(chat(server.url, max_tokens=64, **limits))[0].action.text == "look"
    with serving(answer) as server:
        policy = chat(server.url, max_tokens=1, **limits)  # 100 tokens at once, then none
        propose(policy)
        with pytest.raises(ModelError, match="no answer in time"):
            propose(policy)


def test_a_model_without_a_system_role_reads_its_instructions_in_the_first_message():
    with serving(lambda body, number: completion("look")) as server:
        propose(chat(server.url, system_role=False))
        propose(chat(server.url))
    without, usual = (body["messages"] for body in server.bodies)
    assert without[0] == {"role": "user", "content": f"{SYSTEM}\n\n{usual[1]['content']}"} and without[1:] == usual[2:]


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


# The keys of r2v 0.1.
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


def test_settings_of_runs_of_before_load():
    """What r2v 0.1 wrote beside its runs; a price of which one part is unknown is unknown."""
    both, one, none = (
        validated(ChatSettings, 
            {
                "kind": "chat", "base_url": "http://x/v1", "model": "m", "api_key_env": None, "temperature": 0.0,
                "max_tokens": 64, "timeout_s": 60.0, "retries": 4, "usd_per_million_prompt_tokens": prompt,
                "usd_per_million_completion_tokens": completion, "concurrency": 16,
            }
        )
        for prompt, completion in ((2.0, 10.0), (2.0, None), (None, None))
    )  # fmt: skip
    assert both.price == PriceSettings(input=2.0, output=10.0) and one.price is None and none.price is None
    assert validated(ChatSettings, msgspec.to_builtins(both)) == both


def test_429_waits_as_long_as_the_server_says_and_then_succeeds():
    slow_down = Reply("", 429, {"Retry-After": "0.8"})
    with serving(lambda body, number: slow_down if number == 0 else completion("look")) as server:
        begin = time.monotonic()
        (candidate,) = propose(chat(server.url))
        took = time.monotonic() - begin
    assert candidate.action.text == "look"
    assert len(server.bodies) == 2
    assert took >= 0.8  # its own first wait would be 0.5


def test_500_forever_names_the_url_and_the_tries():
    with serving(lambda body, number: busy(500)) as server, pytest.raises(ModelError) as caught:
        propose(chat(server.url, retries=2))
    assert len(server.bodies) == 3
    assert str(caught.value) == f"teacher at {server.url}: HTTP 500 after 3 tries"


def test_401_is_not_retried_and_the_servers_words_are_not_passed_on():
    with serving(lambda body, number: busy(401)) as server, pytest.raises(ModelError, match=r"HTTP 401$"):
        propose(chat(server.url, retries=4))
    assert len(server.bodies) == 1


def test_malformed_json_is_a_clear_error():
    with serving(lambda body, number: Reply('{"choices": [')) as server, pytest.raises(ModelError) as caught:
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
        '{"choices": [{"message": {"content": "look"}}], "usage": [1]}',
    ],
)
def test_json_that_is_no_completion_is_a_clear_error(body):
    with serving(lambda _, number: Reply(body)) as server, pytest.raises(ModelError) as caught:
        propose(chat(server.url))
    assert str(caught.value) == f"teacher at {server.url} answered with something that is not a completion"
    assert len(server.bodies) == 1


def test_a_content_in_parts_is_read():
    with serving(lambda body, number: completion([{"type": "text", "text": "look"}])) as server:
        assert propose(chat(server.url))[0].action == Action("look")


def test_a_message_without_content_is_an_empty_command():
    with serving(lambda body, number: completion(None)) as server:
        assert propose(chat(server.url))[0].action == Action("")


def test_connection_refused_is_a_clear_error():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused, and nobody else gets the port
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(ModelError) as caught:
            propose(chat(url, retries=1))
    assert str(caught.value) == f"teacher at {url}: connection failed (ClientConnectorError) after 2 tries"


def test_a_server_is_asked_whether_it_answers():
    with serving(lambda body, number: completion("look")) as server:
        asyncio.run(make_client(ClientSettings(base_url=server.url, model="m"), "small").probe())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(ModelError, match=f"small at {url} does not answer: connection failed"):
            asyncio.run(make_client(ClientSettings(base_url=url, model="m"), "small").probe())


def test_the_key_is_sent_and_shown_nowhere(monkeypatch):
    monkeypatch.setenv("TOY_KEY", KEY)
    with serving(lambda body, number: completion("look") if number == 0 else busy(401)) as server:
        policy = chat(server.url, api_key_env="TOY_KEY")
        propose(policy)
        with pytest.raises(ModelError) as caught:
            propose(policy)
    assert [headers["authorization"] for headers in server.headers] == [f"Bearer {KEY}"] * 2
    settings = ChatSettings(kind="chat", base_url=server.url, model="toy-model", api_key_env="TOY_KEY")
    assert "TOY_KEY" in dump(settings)
    for text in (repr(policy), str(policy), repr(caught.value), dump(settings), repr(settings)):
        assert KEY not in text


def test_a_key_that_cannot_be_a_header_is_not_shown_either(monkeypatch):
    monkeypatch.setenv("TOY_KEY", f"{KEY}\n{KEY}")
    with pytest.raises(SettingsError, match="TOY_KEY holds characters") as caught:
        chat("http://127.0.0.1:1/v1", api_key_env="TOY_KEY")
    assert KEY not in str(caught.value)


def test_without_a_key_no_authorization_is_sent():
    with serving(lambda body, number: completion("look")) as server:
        propose(chat(server.url))
    assert "authorization" not in server.headers[0]


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


def test_an_opening_stands_before_the_system_text_and_the_task_alone_is_the_user_s():
    system, user, *rest = messages(CONTEXT, SYSTEM, opening=True)
    assert system == {"role": "system", "content": f"{CONTEXT.observations[0]}\n\n{SYSTEM}"}
    assert user == {"role": "user", "content": f"Your task is to: {CONTEXT.goal}"}
    assert rest == messages(CONTEXT, SYSTEM)[2:]
    (first, *_) = messages(CONTEXT, SYSTEM, system_role=False, opening=True)
    assert first == {"role": "user", "content": f"{system['content']}\n\n{user['content']}"}


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
    assert (episode.failure.boundary, episode.failure.kind) == ("teacher", "ModelError")
    assert episode.failure.message == f"teacher at {server.url}: HTTP 503 after 2 tries"


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
