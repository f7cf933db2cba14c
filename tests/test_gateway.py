"""The gateway with real models: the clients people use, real HTTP on both sides, faults as they happen."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path

import aiohttp
import httpx
import msgspec
import pytest

from r2v.clients import make_client
from r2v.clients.mock import MockModel, complete
from r2v.core.agent import AgentModels, Routed, StepContext
from r2v.core.errors import ArtifactError
from r2v.core.seeds import derive_seed
from r2v.core.types import Memory
from r2v.gateway.candidates import CandidateSource
from r2v.gateway.ledger import Ledger
from r2v.gateway.routing import GatewayRouter, load_configured
from r2v.logs.importing import log_format
from r2v.messages import conversation as chat
from r2v.studies.evidence import escalation_propensity
from r2v.verifiers.tool_calls import ToolCallVerifier
from servers import KEY, Model, gateway, running, settings

LOOK = {
    "name": "look",
    "description": "look somewhere",
    "parameters": {
        "type": "object",
        "properties": {"where": {"type": "string"}},
        "required": ["where"],
        "additionalProperties": False,
    },
}
TOOLS = [{"type": "function", "function": LOOK}]
ASK = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "look for the red value"}]
AUTH = {"authorization": f"Bearer {KEY}"}


def _is_served(path: Path) -> bool:
    """Whether an earlier gateway of the test still serves from this ledger."""
    try:
        Ledger(path, owner=True).close()
    except ArtifactError:
        return True
    return False


class World:
    """Two made-up models and a gateway before them."""

    def __init__(self, host, tmp_path: Path, **changes) -> None:
        self.stack = ExitStack()
        self.small, self.teacher = Model("small-1", error_rate=0.5), Model("teacher-1")
        self.ledger = next(path for i in count() if not _is_served(path := tmp_path / f"ledger{i or ''}.db"))
        self.config = settings(host(self.small), host(self.teacher), self.ledger, **changes)
        self.url, self.service = self.stack.enter_context(gateway(self.config))
        self.client = self.stack.enter_context(httpx.Client(base_url=self.url, headers=AUTH, timeout=20))

    def post(self, path: str = "/v1/chat/completions", body=None, headers=None, **more) -> httpx.Response:
        body = {"model": "r2v", "messages": ASK, **more} if body is None else body
        return self.client.post(path, json=body, headers=headers)

    def openai(self):
        """OpenAI's client of the gateway; its import takes half a second, which only the process that runs this pays."""
        import openai

        return self.stack.enter_context(openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0))

    def rows(self, what: str = "*") -> list[tuple]:
        with closing(sqlite3.connect(self.ledger)) as db:
            return db.execute(f"SELECT {what} FROM steps ORDER BY time").fetchall()


@pytest.fixture
def make(host, tmp_path):
    worlds = []

    def build(**changes) -> World:
        worlds.append(World(host, tmp_path, **changes))
        return worlds[-1]

    yield build
    for world in worlds:
        world.stack.close()


# -- clients ------------------------------------------------------------------------------------------------------


def test_the_openai_sdk_with_tools_streaming_and_not(make):
    world = make(small__offers_n=True)
    client = world.openai()
    raw = client.chat.completions.with_raw_response.create(model="r2v", messages=ASK, tools=TOOLS)
    whole = raw.parse()
    assert raw.headers["x-r2v-arm"] in ("slm", "teacher") and float(raw.headers["x-r2v-risk"]) >= 0
    assert raw.headers["x-r2v-step"] == "0" and raw.headers["x-r2v-session-id"].startswith("auto-")
    (call,) = whole.choices[0].message.tool_calls
    assert call.function.name == "look" and set(json.loads(call.function.arguments)) == {"where"}
    assert world.small.seen[0]["n"] == 3 and world.small.seen[0]["logprobs"] is True
    assert "logprobs" not in whole.choices[0].model_fields_set or whole.choices[0].logprobs is None
    words, calls, finish, facts = "", {}, None, None
    stream = client.chat.completions.create(
        model="r2v:teacher", messages=ASK, tools=TOOLS, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        for choice in chunk.choices:
            words += choice.delta.content or ""
            for part in choice.delta.tool_calls or []:
                name, text = calls.get(part.index, ("", ""))
                calls[part.index] = (name or part.function.name or "", text + (part.function.arguments or ""))
            finish = choice.finish_reason or finish
        facts = getattr(chunk, "r2v", None) or facts
        usage = chunk.usage
    assert finish == "tool_calls" and calls[0][0] == "look" and json.loads(calls[0][1])
    assert facts["arm"] == "teacher" and facts["reason"] == "forced" and usage.total_tokens > 0
    assert [model.id for model in client.models.list()] == ["r2v", "r2v:slm", "r2v:teacher"]


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_the_anthropic_sdk_in_a_tool_loop_with_either_kind_of_teacher(make, provider):
    import anthropic

    world = make(teacher_provider=provider)
    client = world.stack.enter_context(anthropic.Anthropic(base_url=world.url, api_key=KEY, max_retries=0))
    tools = [{"name": "look", "description": "look", "input_schema": LOOK["parameters"]}]
    messages = [{"role": "user", "content": "look for the red value"}]
    for step in range(4):
        model = "r2v:teacher" if step % 2 else "r2v:slm"
        if step == 2:
            with client.messages.stream(model=model, max_tokens=200, messages=messages, tools=tools) as stream:
                answer = stream.get_final_message()
        else:
            answer = client.messages.create(model=model, max_tokens=200, messages=messages, tools=tools, system="be brief")
        assert answer.usage.input_tokens > 0
        messages.append({"role": "assistant", "content": [block.model_dump() for block in answer.content]})
        uses = [block for block in answer.content if block.type == "tool_use"]
        results = [{"type": "tool_result", "tool_use_id": use.id, "content": "nothing here"} for use in uses]
        messages.append({"role": "user", "content": results or "go on"})
    assert world.small.seen and world.teacher.seen
    assert client.messages.count_tokens(model="r2v", messages=messages).input_tokens > 10
    with (
        anthropic.Anthropic(base_url=world.url, api_key="wrong") as stranger,
        pytest.raises(anthropic.AuthenticationError),
    ):
        stranger.messages.create(model="r2v", max_tokens=9, messages=messages[:1])


def test_the_responses_protocol_through_the_openai_sdk(make):
    from openai import BadRequestError

    world = make()
    client = world.openai()
    tools = [{"type": "function", "name": "look", "parameters": LOOK["parameters"], "strict": False}]
    first = client.responses.create(
        model="r2v:teacher", instructions="be brief", input="look for it", tools=tools, store=False
    )
    (call,) = [item for item in first.output if item.type == "function_call"]
    history = [
        {"role": "user", "content": "look for it"},
        call.model_dump(),
        {"type": "function_call_output", "call_id": call.call_id, "output": "nothing"},
    ]
    done = None
    for event in client.responses.create(model="r2v:slm", input=history, tools=tools, stream=True):
        done = event.response if event.type == "response.completed" else done
    assert done is not None and done.output
    sent = world.small.seen[-1]["messages"]
    assert [m["role"] for m in sent] == ["user", "assistant", "tool"] and sent[2]["tool_call_id"] == call.call_id
    with pytest.raises(BadRequestError, match="whole input"):
        client.responses.create(model="r2v", input="x", previous_response_id="resp_1")


def test_the_frameworks_people_use():
    """mini-swe-agent, LangChain, the OpenAI Agents SDK, litellm (those that are installed)."""
    if importlib.util.find_spec("minisweagent") is None:
        pytest.skip("the extra `clients` is not installed")
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:unraisableexception", "-W", "ignore",
         str(here / "clients_through_gateway.py")],
        capture_output=True, text=True, timeout=300, cwd=here.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


# -- decisions ----------------------------------------------------------------------------------------------------


def test_decisions_over_http_are_those_of_the_loop_number_for_number(make):
    """The same requests through `Routed.choose` in this process: same candidates, same risk, same arm."""
    world = make(route__router="entropy", route__threshold=0.7)
    configured = load_configured(world.config.route)
    messages, arms, memory = list(ASK), set(), Memory(seed=derive_seed("x", "episode"))
    for t in range(8):
        over_http = world.post(messages=messages, tools=TOOLS, headers={"x-r2v-session-id": "one"})
        session = f"{world.rows('session')[0][0]}"

        async def here(messages=tuple(messages), t=t, memory=memory, session=session):
            small, teacher = (make_client(world.config.models[m], m) for m in ("slm", "teacher"))
            request = chat.parse(json.dumps({"messages": list(messages), "tools": TOOLS}).encode())
            drafts = (
                CandidateSource(small, request, {}, role="slm"),
                CandidateSource(teacher, request, {}, role="teacher"),
            )
            models = AgentModels(*drafts, ToolCallVerifier(chat.tools_of(request.tools)), world.config.route.k)
            router = GatewayRouter(configured.make(configured.threshold), world.config.route)
            step_context = StepContext(
                models, chat.context_of(request, world.config.route.horizon), seed=derive_seed(session, t)
            )
            choice, memory = await Routed(models, router).choose(step_context, memory)
            await small.close()
            await teacher.close()
            return choice, memory

        choice, memory = asyncio.run(here())
        assert over_http.headers["x-r2v-arm"] == choice.source
        stored = Ledger(world.ledger).steps(session)[t].step.choice
        assert stored.decision == choice.decision and stored.features == choice.features and stored.scores == choice.scores
        arms.add(choice.source)
        message = over_http.json()["choices"][0]["message"]
        messages.append(message)
        for call in message.get("tool_calls") or []:
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": f"nothing in {t}"})
        if not message.get("tool_calls"):
            messages.append({"role": "user", "content": f"go on {t}"})
    assert arms == {"slm", "teacher"}


def test_overrides_shadow_canary_and_the_kill_switch(make):
    world = make(route__router="verifier", route__threshold=0.0)  # would always ask
    assert world.post().headers["x-r2v-reason"] == "risk_above"
    assert world.post(model="r2v:slm").headers["x-r2v-arm"] == "slm"
    assert world.post(headers={"x-r2v-arm": "teacher"}).headers["x-r2v-reason"] == "forced"
    assert world.post(model="r2v@tau=2").headers["x-r2v-arm"] == "slm"
    assert world.post(model="gpt-99").headers["x-r2v-reason"] == "risk_above"  # any name is the router's
    assert world.post(model="teacher-1").headers["x-r2v-reason"] == "risk_above"  # a model's own name forces nothing
    assert world.post("/v1/kill", {"on": True}).json() == {"on": True}
    assert world.post().headers["x-r2v-arm"] == "slm"
    world.post("/v1/kill", {"on": False})
    before = len(world.rows())
    dry = world.post("/v1/decision", {"messages": ASK}).json()
    assert dry["arm"] == "teacher" and len(world.rows()) == before  # decided, not answered


def test_shadow_decides_but_the_teacher_answers(make):
    world = make(route__router="verifier", route__threshold=2.0, route__mode="shadow")
    answer = world.post()
    assert (answer.headers["x-r2v-arm"], answer.headers["x-r2v-reason"]) == ("teacher", "shadow")
    assert world.rows("source, route, candidates, teacher_calls") == [("teacher", "continue", 3, 1)]
    assert len(world.teacher.seen) == 1 and world.rows("score")[0][0] is not None


def test_observing_drafts_on_a_share_of_the_steps(make):
    world = make(route__mode="observe", route__observe_share=0.5, route__observe_wait_s=5)
    answers = [world.post(headers={"x-session-id": f"o{i}"}) for i in range(30)]
    assert {(a.headers["x-r2v-arm"], a.headers["x-r2v-reason"]) for a in answers} == {("teacher", "observe")}
    drafted = [candidates for (candidates,) in world.rows("candidates")]
    assert set(drafted) == {0, 3} and 5 < drafted.count(3) < 25 and len(world.teacher.seen) == 30


def test_a_draft_that_is_slow_or_fails_costs_the_observed_agent_nothing(make):
    world = make(route__mode="observe", route__observe_share=1, route__observe_wait_s=0.05)
    world.small.delay = 1.5
    start = time.monotonic()
    assert world.post().headers["x-r2v-arm"] == "teacher"
    assert time.monotonic() - start < 1.4
    world.small.delay, world.small.status = 0.0, [(500, {})]
    assert world.post().headers["x-r2v-reason"] == "observe"
    assert [tuple(row) for row in world.rows("source, score")] == [("teacher", None)] * 2


def test_a_small_model_that_fails_every_draft_is_seen(make, capfd):
    world = make(route__mode="observe", route__observe_share=1.0, small__retries=0)
    world.small.status = [(400, {})]
    assert [world.post().headers["x-r2v-arm"] for _ in range(3)] == ["teacher"] * 3
    assert world.client.get("/v1/stats").json()["models"]["slm"]["calls"] == {"400": 3}
    assert capfd.readouterr().err.count("could not be compared with the teacher's: slm: Refusal: slm: HTTP 400") == 1


def test_paths_that_are_not_served_are_refused_in_the_clients_own_form(make):
    world = make()
    for path, kind in (("/v1/v1/messages", "not_found_error"), ("/v1/embeddings", None)):
        answer = world.post(path)
        error = answer.json()["error"]
        assert answer.status_code == 404 and f"POST {path} is not served here" in error["message"]
        assert kind is None or (error["type"] == kind and "leave it out" in error["message"])
    assert (
        world.client.put("/v1/models").status_code == 405
        and "PUT" in world.client.put("/v1/models").json()["error"]["message"]
    )


def test_a_canary_is_active_for_some_sessions_each_as_a_whole(make):
    world = make(route__router="verifier", route__threshold=0.0, route__mode="canary", route__canary_share=0.5)
    codes = {s: {world.post(headers={"x-session-id": f"s{s}"}).headers["x-r2v-reason"] for _ in range(2)} for s in range(16)}
    assert all(len(of_session) == 1 for of_session in codes.values())
    assert {code for of_session in codes.values() for code in of_session} == {"risk_above", "observe"}


def test_explored_steps_log_the_probability_of_what_was_done(make):
    world = make(route__explore=0.5, route__router="verifier", route__threshold=2.0)  # alone it would never ask
    for i in range(40):
        world.post(headers={"x-session-id": f"e{i}"})
    rows = world.rows("source, propensity, code")
    assert {row[:2] for row in rows} == {("slm", 0.75), ("teacher", 0.25)}
    assert 2 <= sum(arm == "teacher" for arm, _, _ in rows) <= 20
    # `r2v advise` reads from the ledger how likely each step was to be escalated.
    (steps, *_) = zip(*(episode.steps for episode in log_format("ledger").read(world.ledger)), strict=True)
    assert len(steps) == 40 and {escalation_propensity(step) for step in steps} == {0.25}


def test_teacher_steps_can_be_held_together(make):
    world = make(route__hold_steps=3, route__router="entropy", route__threshold=0.7)
    world.small.mock_model = world.small.mock_model.__class__("small-1", error_rate=1.0)
    first = world.post(headers={"x-session-id": "h"})
    world.small.mock_model = world.small.mock_model.__class__("small-1", error_rate=0.0)
    arms = [first.headers["x-r2v-arm"]]
    for i in range(4):
        more = [*ASK, {"role": "user", "content": str(i)}]
        arms.append(world.post(headers={"x-session-id": "h"}, messages=more).headers["x-r2v-arm"])
    assert arms == ["teacher", "teacher", "teacher", "slm", "slm"]


# -- sessions, ledger, budgets ------------------------------------------------------------------------------------


def test_sessions_survive_a_restart_and_belong_to_their_key(make):
    world = make()
    for _ in range(3):
        world.post(headers={"x-r2v-session-id": "mine"})
    shown = world.client.get("/v1/sessions/mine").json()
    assert [step["step"] for step in shown["steps"]] == [0, 1, 2] and shown["goal"] == "look for the red value"
    assert world.client.get("/v1/sessions/mine", headers={"authorization": "Bearer other"}).status_code == 404
    assert world.post("/v1/outcomes", {"session_id": "mine", "reward": 1}).json() == {"ok": True}
    assert world.post("/v1/outcomes", {"session_id": "mine", "reward": 7}).status_code == 400
    assert world.post("/v1/outcomes", {"session_id": "nobody", "reward": 1}).status_code == 400
    world.stack.close()
    again = make()
    assert again.post(headers={"x-r2v-session-id": "mine"}).headers["x-r2v-step"] == "3"
    assert again.post(headers={"x-r2v-session-id": "other"}).headers["x-r2v-step"] == "0"


def test_a_redacted_ledger_holds_no_words_but_all_numbers(make):
    world = make(store__redact=True)
    world.post(tools=TOOLS, messages=[*ASK, {"role": "user", "content": "the password is hunter2"}])
    text = b"".join(path.read_bytes() for path in world.ledger.parent.glob("ledger.db*"))
    assert b"hunter2" not in text and b"red value" not in text
    (entry,) = Ledger(world.ledger).steps(world.rows("session")[0][0])
    assert len(entry.step.choice.scores) == 3 and entry.step.choice.features is not None


def test_a_redacted_ledger_holds_no_words_of_the_models(make):
    """Nor in what was not chosen, nor in the reason, which may repeat what an upstream said."""
    world = make(store__redact=True)
    words = ["the password is hunter1", "the password is hunter2", "the password is hunter2"]
    world.small.reply = lambda body: {"choices": [{"message": {"role": "assistant", "content": text}} for text in words]}
    world.teacher.reply = lambda body: {"choices": [{"message": {"role": "assistant", "content": "hunter3 is"}}]}
    headers = {"x-session-id": "words"}
    assert world.post(model="r2v:slm", headers=headers).json()["choices"][0]["message"]["content"] in words
    assert world.post(model="r2v:teacher", headers=headers).status_code == 200
    world.small.reply, world.small.refuse = None, (403, {"error": {"message": "hunter4 may not enter"}})
    assert world.post(headers=headers).headers["x-r2v-reason"] == "upstream_fallback"
    text = b"".join(path.read_bytes() for path in world.ledger.parent.glob("ledger.db*"))
    assert b"hunter" not in text
    slm, teacher, fallback = (entry.step.choice for entry in Ledger(world.ledger).steps(world.rows("session")[0][0]))
    texts = [candidate.action.text for candidate in slm.candidates]
    assert texts[1] == texts[2] != texts[0] and slm.action.text in texts  # equal actions stay equal
    assert all(text.startswith("hmac:") for text in (*texts, slm.action.text, teacher.action.text))
    assert fallback.decision is not None and fallback.decision.reason == "upstream_fallback"


def test_cache_writes_of_anthropic_are_counted_priced_and_passed_on(make):
    price = {"input": 3, "output": 15, "cached": 0.3, "cache_write": 3.75}
    world = make(teacher_provider="anthropic", teacher__price=price)
    usage = {
        "input_tokens": 100, "cache_read_input_tokens": 1000, "cache_creation_input_tokens": 2000, "output_tokens": 50,
    }  # fmt: skip
    reply = {"id": "m", "type": "message", "content": [{"type": "text", "text": "done"}], "stop_reason": "end_turn"}
    world.teacher.reply = lambda body: {**reply, "usage": usage}
    answer = world.post(model="r2v:teacher")
    usd = (100 * 3 + 1000 * 0.3 + 2000 * 3.75 + 50 * 15) / 1e6
    assert world.rows("teacher_usd, tokens") == [(pytest.approx(usd), 3150)]
    assert float(answer.headers["x-r2v-cost-usd"]) == pytest.approx(usd)
    told = answer.json()["usage"]
    assert (told["prompt_tokens"], told["completion_tokens"], told["prompt_tokens_details"]) == (
        3100, 50, {"cached_tokens": 1000, "cache_creation_tokens": 2000},
    )  # fmt: skip
    body = {"model": "r2v:teacher", "max_tokens": 50, "messages": [{"role": "user", "content": "x"}]}
    assert usage.items() <= world.post("/v1/messages", body).json()["usage"].items()


def test_a_budget_of_money_reserves_the_price_of_cache_writes(make):
    """All of the prompt may be written to the cache: at 1000 USD a million tokens not even one call fits."""
    price = {"input": 3, "output": 15, "cache_write": 1000}
    world = make(route__router="verifier", route__threshold=0.0, teacher__price=price, budget__per_day={"usd": 0.1})
    assert world.post(max_tokens=20).headers["x-r2v-reason"] == "budget_exhausted"
    assert not world.teacher.seen


@pytest.mark.parametrize("action", ["slm", "stop"])
def test_a_budget_of_calls_is_never_exceeded_by_parallel_requests(make, action):
    world = make(
        route__router="verifier", route__threshold=0.0, budget__session={"teacher_calls": 5}, budget__on_exhaustion=action
    )
    world.teacher.delay = 0.1
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: world.post(headers={"x-session-id": "b"}), range(40)))
    assert len(world.teacher.seen) == 5
    late = [answer for answer in answers if answer.headers.get("x-r2v-reason") == "budget_exhausted"]
    assert len(late) == 35
    assert {answer.status_code for answer in late} == ({200} if action == "slm" else {402})


def test_a_budget_of_money_is_never_exceeded(make):
    world = make(
        route__router="verifier", route__threshold=0.0, budget__per_day={"usd": 0.01}, small__max_output_tokens=50,
        teacher__max_output_tokens=50,
    )  # fmt: skip
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda i: world.post(headers={"x-session-id": f"m{i}"}, max_tokens=50), range(40)))
    ((spent,),) = world.rows("SUM(slm_usd + teacher_usd)")
    assert 0 < spent <= 0.01
    assert {"budget_exhausted"} <= {answer.headers.get("x-r2v-reason") for answer in answers}


# -- faults -------------------------------------------------------------------------------------------------------


def test_a_busy_small_model_is_asked_again_when_it_said(make):
    world = make()
    world.small.status = [(429, {"retry-after": "0.4"}), (200, {})]
    start = time.monotonic()
    answer = world.post(model="r2v:slm")
    assert answer.status_code == 200 and time.monotonic() - start >= 0.4
    assert len(world.small.seen) == 2


@pytest.mark.parametrize("fault", ["500", "garbage", "not a completion", "timeout", "refused"])
def test_the_teacher_serves_when_the_small_model_is_down_and_says_so(make, fault):
    changes = {"refused": {"small__base_url": "http://127.0.0.1:9/v1"}, "timeout": {"small__timeout_s": 0.2}}
    world = make(small__retries=0, **changes.get(fault, {}))
    if fault == "500":
        world.small.status = [(500, {})]
    elif fault == "garbage":
        world.small.body = b"<html>oops"
    elif fault == "not a completion":
        world.small.body = b'{"choices": [{"text": "old style"}]}'
    elif fault == "timeout":
        world.small.delay = 5
    answer = world.post(tools=TOOLS)
    assert answer.status_code == 200
    assert (answer.headers["x-r2v-arm"], answer.headers["x-r2v-reason"]) == ("teacher", "upstream_fallback")


def test_the_best_candidate_serves_when_the_teacher_is_down_and_says_so(make):
    world = make(route__router="verifier", route__threshold=0.0, teacher__retries=0)
    world.teacher.status = [(503, {})]
    answer = world.post(tools=TOOLS)
    assert (answer.status_code, answer.headers["x-r2v-arm"]) == (200, "slm")
    assert answer.headers["x-r2v-reason"] == "upstream_fallback"


def test_both_down_is_a_502_with_the_reason_and_the_breaker_opens(make):
    world = make(small__retries=0, teacher__retries=0, small__breaker_failures=2, small__breaker_s=600)
    world.small.status = world.teacher.status = [(500, {})]
    answers = [world.post() for _ in range(4)]
    assert all(a.status_code == 502 and a.headers["x-r2v-reason"] == "upstream_fallback" for a in answers)
    assert len(world.small.seen) == 2  # then it was not called any more
    assert "error" in answers[0].json()


def test_the_breaker_closes_again(make):
    world = make(small__retries=0, small__breaker_failures=1, small__breaker_s=0.1)
    world.small.status = [(500, {}), (200, {})]
    assert world.post(model="r2v:slm").headers["x-r2v-reason"] == "upstream_fallback"
    deadline = time.monotonic() + 20
    while world.post(model="r2v:slm").headers["x-r2v-arm"] != "slm":
        assert time.monotonic() < deadline
    assert len(world.small.seen) == 2


def test_a_request_that_the_model_refuses_is_the_clients_to_mend(make):
    world = make()
    world.small.status, world.teacher.status = [(400, {})], [(400, {})]
    answer = world.post()
    assert answer.status_code == 400 and answer.json()["error"]["message"] == "teacher: HTTP 400"
    assert answer.headers["x-r2v-reason"] == "upstream_refused"
    asked = len(world.teacher.seen)
    answer = world.post(model="r2v:slm")
    assert answer.status_code == 400 and len(world.teacher.seen) == asked, "who insists on a model hears what it says"


@pytest.mark.parametrize("status", [400, 404])
def test_what_the_small_model_refuses_the_teacher_is_asked(make, status):
    world = make()
    world.small.status = [(status, {})]
    answer = world.post()
    assert (answer.status_code, answer.headers["x-r2v-reason"]) == (200, "upstream_fallback")


def test_the_kill_switch_buys_no_answer_where_the_small_model_is_down(make):
    world = make(small__retries=0)
    world.post("/v1/kill", {"on": True})
    world.small.status = [(500, {})]
    assert world.post().status_code == 502 and not world.teacher.seen


def test_where_the_budget_is_spent_observing_decides_nothing(make):
    world = make(route__mode="observe", route__router="verifier", route__threshold=9.0, budget__per_day={"teacher_calls": 1})
    assert [world.post().headers["x-r2v-reason"] for _ in range(3)] == ["observe", "budget_exhausted", "budget_exhausted"]


def test_the_first_step_that_is_answered_is_kept_whole_though_one_before_it_was_refused(make):
    world = make(teacher__retries=0)
    world.teacher.status = [(429, {}), (200, {})]
    told = [*ASK, {"role": "assistant", "content": "so far"}, {"role": "user", "content": "go on"}]
    body = {"model": "r2v:teacher", "messages": told, "tools": TOOLS}
    statuses = [world.post(body=body, headers={"x-r2v-session-id": "s"}).status_code for _ in range(3)]
    assert statuses == [429, 200, 200]
    first, later = world.client.get("/v1/sessions/s").json()["steps"]
    assert first["step"] == 1 and [m["content"] for m in first["words"]["messages"]] == [m["content"] for m in told]
    assert [m["content"] for m in later["words"]["messages"]] == ["go on"]
    with closing(sqlite3.connect(world.ledger)) as db:
        assert json.loads(db.execute("SELECT text FROM tools").fetchall()[0][0]) == TOOLS


def test_a_ledger_is_its_owners(make):
    world = make()
    world.post()
    assert [Path(f"{world.ledger}{end}").stat().st_mode & 0o77 for end in ("", "-wal", "-shm")] == [0, 0, 0]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_of_a_key_is_of_any_case(make, scheme):
    world = make()
    answer = httpx.post(
        f"{world.url}/v1/chat/completions",
        json={"model": "r2v", "messages": ASK},
        headers={"authorization": f"{scheme} {KEY}"},
    )
    assert answer.status_code == 200


def test_without_a_ledger_no_answer_leaves(make):
    world = make()
    world.post()
    world.service.ledger.close()
    answer = world.post()
    assert answer.status_code == 503 and answer.headers["x-r2v-reason"] == "ledger"


def test_a_client_that_goes_away_cancels_what_was_asked_for_it(make):
    world = make()
    world.small.delay = 3
    with pytest.raises(httpx.ReadTimeout):
        world.client.post("/v1/chat/completions", json={"model": "r2v", "messages": ASK}, timeout=0.4)
    deadline = time.monotonic() + 2
    while world.small.started == 0 or world.service.slm.endpoint.in_flight:
        assert time.monotonic() < deadline, "the upstream request goes on"
        time.sleep(0.05)
    assert world.small.finished == 0 and not world.rows()


def test_a_slow_decision_keeps_the_stream_alive_and_then_tells_all(make):
    world = make(server__keep_alive_s=0.05)
    world.small.delay = 0.3
    body = {"model": "r2v:slm", "messages": ASK, "stream": True}
    with world.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert lines[0].startswith(": ") and lines[-1] == "data: [DONE]"
    last = json.loads(lines[-2].removeprefix("data: "))
    assert last["r2v"]["arm"] == "slm" and last["choices"][0]["finish_reason"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_pings_amid_an_answer_repeat_nothing_of_it(make, path):
    world = make(server__keep_alive_s=0.02)
    world.teacher.pace = 0.1
    body = {"model": "r2v:teacher", "messages": ASK[1:], "max_tokens": 99, "stream": True}
    with world.client.stream("POST", path, json=body) as answer:
        lines = list(answer.iter_lines())
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    if path == "/v1/messages":
        said = "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta")
    else:
        said = "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
    assert said == "Done after 0 steps." and any(line in ("event: ping", ": r2v is deciding") for line in lines)


def test_early_streaming_passes_the_first_draft_through_as_it_comes(make):
    world = make(route__stream="early", route__router="verifier", route__threshold=0.9)
    world.small.may_go_on, lines = threading.Event(), []
    body = {"model": "r2v", "messages": ASK, "tools": TOOLS, "stream": True}
    with world.client.stream("POST", "/v1/chat/completions", json=body, headers={"x-session-id": "e"}) as answer:
        for line in answer.iter_lines():
            lines += [line] if line else []
            if len(lines) == 4:  # while the model is not done
                world.small.may_go_on.set()
    assert answer.headers["x-r2v-reason"] == "early"
    last = json.loads(lines[-2].removeprefix("data: "))
    assert last["r2v"]["arm"] == "slm" and last["choices"][0]["finish_reason"] == "tool_calls"
    assert world.rows("code, candidates, source") == [("early", 1, "slm")]
    assert world.rows("slm_usd")[0][0] > 0
    assert world.small.seen[0]["stream"] is True and "n" not in world.small.seen[0]
    client = world.openai()
    calls = ""
    for chunk in client.chat.completions.create(model="r2v", messages=ASK, tools=TOOLS, stream=True):
        for part in chunk.choices[0].delta.tool_calls or []:
            calls += part.function.arguments or ""
    assert json.loads(calls)


def test_early_streaming_in_anthropics_protocol(make):
    import anthropic

    world = make(route__stream="early", route__router="verifier", route__threshold=0.9)
    world.small.mock_model = MockModel("small-1")
    tools = [{"name": "look", "description": "look", "input_schema": LOOK["parameters"]}]
    with anthropic.Anthropic(base_url=world.url, api_key=KEY, max_retries=0) as client:
        ask = {"model": "r2v", "max_tokens": 200, "messages": [{"role": "user", "content": "look for the red value"}]}
        with client.messages.stream(**ask, tools=tools) as stream:
            called = stream.get_final_message()
        with client.messages.stream(**ask) as stream:
            said = stream.get_final_message()
    assert world.rows("code") == [("early",), ("early",)]
    (use,) = called.content
    assert (use.type, use.name, set(use.input), called.stop_reason) == ("tool_use", "look", {"where"}, "tool_use")
    assert said.content[0].text == "Done after 0 steps." and said.stop_reason == "end_turn" and said.usage.output_tokens > 0


def test_early_streaming_stops_when_the_last_step_was_risky(make):
    world = make(route__stream="early", route__router="verifier", route__threshold=0.0)
    body = {"model": "r2v", "messages": ASK, "stream": True}
    first, second = (world.post(body=body, headers={"x-session-id": "e"}) for _ in range(2))
    assert first.headers["x-r2v-reason"] == "early"  # nothing was known
    assert second.headers["x-r2v-arm"] == "teacher"  # its draft was at or above the threshold: the next one is held
    quiet = make(route__stream="auto")
    assert quiet.post(body=body, headers={"x-session-id": "q"}).headers["x-r2v-reason"] != "early"


@pytest.mark.parametrize(("provider", "path"), [("openai", "/v1/chat/completions"), ("anthropic", "/v1/messages")])
def test_where_a_stream_ends_before_its_first_word_another_model_answers(make, provider, path):
    more = {} if provider == "openai" else {"teacher_provider": "anthropic"}
    world = make(route__router="verifier", route__threshold=0.0, teacher__retries=0, teacher__breaker_failures=None, **more)
    world.teacher.cut = 1
    body = {"model": "r2v", "messages": [{"role": "user", "content": "look"}], "max_tokens": 99, "stream": True}
    answer = world.post(path, body)
    assert answer.status_code == 200 and answer.headers["x-r2v-reason"] == "upstream_fallback", answer.text
    assert "error" not in answer.text and world.rows("source") == [("slm",)]


def test_an_early_stream_that_breaks_says_so_and_of_one_that_never_began_the_teacher_answers(make):
    world = make(route__stream="early", route__router="verifier", route__threshold=0.9)
    body = {"model": "r2v", "messages": ASK, "tools": TOOLS, "stream": True}
    world.small.cut = 3
    text = world.post(body=body, headers={"x-session-id": "a"}).text
    assert "ended too soon" in text and text.strip().endswith("data: [DONE]")
    world.small.status = [(500, {})]
    answer = world.post(body=body, headers={"x-session-id": "b"})
    assert answer.status_code == 200 and world.rows("source, code") == [("teacher", "upstream_fallback")]


def test_a_broken_slow_stream_ends_with_the_error(make):
    world = make(small__retries=0, teacher__retries=0, server__keep_alive_s=0.05)
    world.small.delay, world.small.status, world.teacher.status = 0.2, [(500, {})], [(500, {})]
    text = world.post(stream=True).text
    assert '"code":"upstream_fallback"' in text and text.strip().endswith("data: [DONE]")


def test_a_killed_server_has_every_answered_step_in_its_ledger(tmp_path):
    small, teacher = Model("small-1", error_rate=0.5), Model("teacher-1")
    with running(small.app()) as a, running(teacher.app()) as b:
        config = tmp_path / "gateway.yaml"
        config.write_text(msgspec.json.encode(settings(a, b, tmp_path / "ledger.db")).decode())
        process = subprocess.Popen(
            [sys.executable, "-c", "from r2v.cli import app; app()", "serve", str(config), "--port", "0"],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "R2V_API_KEY": KEY},
        )  # fmt: skip
        url = process.stdout.readline().split()[1]
        answered, stop = [], threading.Event()

        def load(worker: int) -> None:
            with httpx.Client(headers=AUTH, timeout=5) as client:
                while not stop.is_set():
                    try:
                        body = {"model": "r2v", "messages": ASK, "tools": TOOLS}
                        answer = client.post(f"{url}/v1/chat/completions", json=body, headers={"x-session-id": f"w{worker}"})
                    except httpx.HTTPError:
                        return
                    answered.append(answer.headers["x-r2v-decision-id"])

        with ThreadPoolExecutor(8) as pool:
            for worker in range(8):
                pool.submit(load, worker)
            deadline = time.monotonic() + 60
            while len(answered) <= 50:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
            stop.set()
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as db:
        written = {row[0] for row in db.execute("SELECT id FROM steps")}
    assert set(answered) <= written


# -- safety -------------------------------------------------------------------------------------------------------


def test_keys_are_needed_and_go_nowhere(make, monkeypatch):
    monkeypatch.setenv("SMALL_KEY", "secret-of-small\n")
    world = make(small__api_key_env="SMALL_KEY")
    stranger = world.stack.enter_context(httpx.Client(base_url=world.url))
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}x"}):
        for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses"):
            assert stranger.post(path, json={"messages": ASK}, headers=headers).status_code == 401
        assert stranger.get("/metrics", headers=headers).status_code == 401
    answer = world.post(headers={"x-private": "p", "cookie": "c=1"})
    sent = world.small.headers[-1]
    assert sent["authorization"] == "Bearer secret-of-small"
    assert "x-private" not in sent and "cookie" not in sent and KEY not in json.dumps(sent)
    told = answer.text + str(answer.headers) + world.client.get("/v1/stats").text
    assert "secret-of-small" not in told


def test_bodies_have_a_limit_and_strange_ones_are_refused_politely(make):
    world = make(server__max_body_bytes=100_000)
    assert world.post(messages=[{"role": "user", "content": "x" * 200_000}]).status_code == 413
    bad = [
        b"", b"[]", b"{", b'{"messages": []}', b'{"messages": [1]}', b'{"messages": [{"role": "boss"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "n": 5}', b'{"messages": "x"}', b"[" * 50_000,
        b'{"messages": [{"role": "user", "content": "x"}], "tools": [7]}', b"\xff\xfe",
        b'{"messages": [{"role": "assistant", "tool_calls": [7]}]}', b'{"messages": [{"role": "user"}], "model": 7}',
    ]  # fmt: skip
    for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/decision"):
        for body in bad:
            answer = world.client.post(path, content=body)
            told = (path, body[:80], answer.status_code, answer.text)
            assert answer.status_code < 500, told
            if path in ("/v1/chat/completions", "/v1/decision"):
                assert answer.status_code >= 400, told  # the other protocols have no `n`
            assert ("error" in answer.json()) == (answer.status_code >= 400), told


def test_health_ready_metrics_and_page(make):
    world = make()
    world.post()
    with httpx.Client(base_url=world.url) as stranger:
        assert stranger.get("/health").json() == {"status": "ok"}
        assert stranger.get("/ready").json()["ready"] is True
        page = stranger.get("/")
    metrics = world.client.get("/metrics").text
    assert 'r2v_upstream_attempts_total{code="200",model="slm"} 1' in metrics and "r2v_requests_total" in metrics
    assert "r2v gateway" in page.text and "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text.replace("http://www.w3.org/2000/svg", "")  # it loads nothing from elsewhere


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_page_shows_sessions_in_a_browser_and_no_markup_of_models(make):
    world = make(route__router="verifier", route__threshold=0.0, route__mode="shadow")
    hostile = [{"role": "user", "content": "<img src=x onerror=document.title='owned'>"}]
    world.post(messages=hostile, headers={"x-session-id": "s-1"}, tools=TOOLS)
    world.post("/v1/outcomes", {"session_id": "s-1", "reward": 0})
    world.post(messages=ASK, headers={"x-session-id": "s-2"})

    def shown(key: str) -> str:
        done = subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--dump-dom",
             f"{world.url}/#key={key}"], capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return done.stdout

    page = shown(KEY)
    assert "s-1" in page and "owned" not in page.split("</title>")[0]
    assert "&lt;img src=x" in page and "<img" not in page
    assert '<li aria-current="step">shadow</li>' in page
    assert "router verifier has no fit.json" in page and "Promote to canary all the same" in page
    assert f"Settings {world.client.get('/v1/stats').json()['reloads']['settings']} and router verifier in use since" in page
    assert ">1 of 1<" in page and "of 1 sessions with an outcome failed" in page  # beside what was saved
    locked = shown("wrong")
    assert "s-1" not in locked and "the key is wrong" in locked


PLAY = """(async () => {
  const until = async (what) => { while (!what()) await new Promise((go) => setTimeout(go, 20)); };
  const $ = (id) => document.getElementById(id), rows = () => [...document.querySelectorAll("#sessions tr")], said = [];
  window.confirm = (question) => { said.push(question); return true; };
  await until(() => rows().length === 2);
  const address = location.href;
  $("failed").value = "1"; $("filters").dispatchEvent(new Event("input"));
  await until(() => rows().length === 1);
  rows()[0].focus(); rows()[0].dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
  await until(() => $("steps").children.length === 1);
  const words = $("steps").textContent, width = document.documentElement.scrollWidth;
  $("promote").click(); await until(() => document.querySelector("[aria-current]").textContent === "canary");
  $("rollback").click(); await until(() => document.querySelector("[aria-current]").textContent === "observe");
  return JSON.stringify({ address, words, width, said });
})()"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_page_is_used_on_a_phone_with_the_keyboard(make, tmp_path):
    world = make(route__mode="shadow")
    for session, reward in (("won", 1), ("lost", 0)):
        world.post(headers={"x-session-id": session}, tools=TOOLS)
        world.post("/v1/outcomes", {"session_id": session, "reward": reward})
    played = json.loads(asyncio.run(in_browser(f"{world.url}/#key={KEY}", PLAY, tmp_path, width=390)))
    assert played["address"] == f"{world.url}/"  # the key is not in the address bar
    assert "look for the red value" in played["words"] and "draft 3, score" in played["words"]
    assert played["width"] <= 390
    asked, back = played["said"]
    assert asked.startswith("The evidence does not suffice: router rules has no fit.json") and "Roll back" in back
    mode = httpx.get(f"{world.url}/v1/mode", headers=AUTH).json()
    assert (mode["mode"], mode["reason"]) == ("observe", "rolled back from canary")


async def in_browser(url: str, script: str, folder: Path, *, width: int) -> str:
    """What a script of the page returns, in a window of this width."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    command += [f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as browser:
        try:
            assert browser.stderr is not None
            address = next(line.split()[-1] for line in browser.stderr if "DevTools listening on" in line)
            async with aiohttp.ClientSession() as http, http.ws_connect(address, max_msg_size=0) as socket:

                async def call(method: str, session: str | None = None, **params) -> dict:
                    of_page = {} if session is None else {"sessionId": session}
                    await socket.send_json({"id": 1, "method": method, "params": params, **of_page})
                    while True:
                        told = await socket.receive_json(timeout=60)
                        if told.get("id") == 1:
                            return told["result"]

                tab = (await call("Target.createTarget", url="about:blank"))["targetId"]
                page = (await call("Target.attachToTarget", targetId=tab, flatten=True))["sessionId"]
                size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
                await call("Emulation.setDeviceMetricsOverride", page, **size)
                await call("Page.navigate", page, url=url)
                done = await call("Runtime.evaluate", page, expression=script, awaitPromise=True)
                return done["result"]["value"]
        finally:
            browser.terminate()


def test_a_server_that_does_not_know_n_is_asked_in_parallel(make):
    world = make()
    world.small.knows_n = False
    world.post(model="r2v:slm")
    assert len(world.small.seen) == 3 and len({body["seed"] for body in world.small.seen}) == 3
    assert world.rows("candidates") == [(3,)]


def mutated(value, draw: random.Random, depth: int = 0):
    """The value with something replaced, dropped or repeated."""
    strange = [
        None,
        True,
        -1,
        1e308,
        "",
        "\x00\ud83d\ude00<script>",
        [],
        {},
        [[]],
        {"type": "text"},
        "x" * 300,
        float(2**63),
    ]
    if draw.random() < 0.12:
        return draw.choice(strange)
    if isinstance(value, dict):
        kept = {k: mutated(v, draw, depth + 1) for k, v in value.items() if draw.random() > 0.04}
        return {**kept, "metadata": draw.choice(strange)} if depth == 0 and draw.random() < 0.1 else kept
    if isinstance(value, list):
        found = [mutated(v, draw, depth + 1) for v in value if draw.random() > 0.04]
        return found * 2 if draw.random() < 0.05 else found
    return value


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/outcomes"])
def test_fuzzed_requests_never_break_it(make, path):
    """`R2V_FUZZ=10000 pytest -k fuzzed` for the long run."""
    world = make()
    for model in (world.small, world.teacher):  # a model that takes everything: what breaks is ours
        model.reply = lambda body: complete(MockModel("m"), {"messages": ASK, "n": body.get("n")})
    schema = LOOK["parameters"]
    called = {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"where": "x"}'}}
    valid = {
        "/v1/chat/completions": {
            "model": "r2v", "tools": TOOLS, "tool_choice": "auto", "max_tokens": 20, "stream": False,
            "messages": [*ASK, {"role": "assistant", "content": None, "tool_calls": [called]},
                         {"role": "tool", "tool_call_id": "a", "content": "ok"},
                         {"role": "user", "content": [{"type": "text", "text": "go on"}]}],
        },
        "/v1/messages": {
            "model": "r2v", "max_tokens": 20, "system": "s", "stop_sequences": ["x"], "stream": True,
            "tools": [{"name": "look", "input_schema": schema}], "tool_choice": {"type": "auto"},
            "messages": [{"role": "user", "content": "a"},
                         {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "look", "input": {}}]},
                         {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "ok"}]}],
        },
        "/v1/responses": {
            "model": "r2v", "instructions": "s", "tools": [{"type": "function", "name": "look", "parameters": schema}],
            "text": {"format": {"type": "json_schema", "name": "x", "schema": {}}}, "max_output_tokens": 20,
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                      {"type": "function_call", "call_id": "a", "name": "look", "arguments": "{}"},
                      {"type": "function_call_output", "call_id": "a", "output": "ok"}],
        },
        "/v1/outcomes": {"session_id": "x", "reward": 1, "step": 0},
    }[path]  # fmt: skip
    draw, seen = random.Random(path), set()
    for i in range(int(os.environ.get("R2V_FUZZ", "300"))):
        body = mutated(valid, draw)
        answer = world.client.post(path, content=json.dumps(body))
        seen.add(answer.status_code)
        assert answer.status_code < 500, (i, body, answer.text)
        assert "Traceback" not in answer.text and KEY not in answer.text
    assert 400 in seen and (200 in seen or path == "/v1/outcomes")
