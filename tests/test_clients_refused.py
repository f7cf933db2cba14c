"""Servers that refuse `n` or log-probabilities: they are asked again without, and the words name the setting."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Iterator

import pytest

from r2v.clients import make_client
from r2v.clients.base import Draw
from r2v.clients.chat import ChatPolicy, ChatSettings
from r2v.clients.openai import AGAIN_S
from r2v.clients.settings import ClientSettings
from r2v.core.errors import ModelError
from r2v.core.types import Context
from r2v.gateway.check import problems
from r2v.messages.chat_format import ChatFormat, command_of
from r2v.messages.conversation import parse
from r2v.messages.protocol import Reply
from servers import Model
from test_budgets import DAY_SCOPE
from test_gateway import ASK, TOOLS, make  # noqa: F401  (a fixture)

GROQ = {"error": {"message": "'n' : number must be at most 1", "type": "invalid_request_error"}}
GATEWAY = {"error": {"message": "Send separate requests instead.", "code": "unsupported_parameter", "param": "n"}}
FASTAPI = {"detail": [{"type": "extra_forbidden", "loc": ["body", "n"], "msg": "Extra inputs are not permitted"}]}
VLLM = {"object": "error", "message": "\nn must be 1 when using greedy sampling, got 4.", "code": 400, "param": None}
LLAMA = {"error": {"code": 400, "message": "Only one completion choice is allowed", "type": "invalid_request_error"}}
GEMINI = [
    {"error": {"code": 400, "message": "Multiple candidates is not enabled for models/x", "status": "INVALID_ARGUMENT"}}
]
REFUSED_N = [(400, GROQ), (400, GATEWAY), (422, FASTAPI), (400, VLLM), (400, LLAMA), (400, GEMINI)]

GROQ_LOGPROBS = {"error": {"message": "`logprobs` is not supported with this model", "param": "logprobs"}}
OPENAI_LOGPROBS = {"error": {"message": "You are not allowed to request logprobs from this model", "param": None}}
MISTRAL = {
    "object": "error",
    "message": {"detail": [{"loc": ["body", "logprobs"], "msg": "Extra inputs are not permitted"}]},
}
GEMINI_LOGPROBS = [{"error": {"code": 400, "message": "Logprobs is not enabled for models/x"}}]
REFUSED_LOGPROBS = [(400, GROQ_LOGPROBS), (403, OPENAI_LOGPROBS), (422, MISTRAL), (400, GEMINI_LOGPROBS)]
SINGLE, SAYS_SO = [None] * 4, "put `offers_{}: false` into the settings of the model"


def prompt(**more: object) -> object:
    return parse(json.dumps({"messages": ASK, "tools": TOOLS, **more}).encode())


@pytest.fixture
def model() -> Model:
    return Model("m", error_rate=0.5)


@pytest.fixture
def drawn(host, model) -> Iterator[object]:
    """What draws from a client of the model, whose settings let no failure pass unseen."""
    settings = ClientSettings(base_url=f"{host(model)}/v1", model="m", retries=0, breaker_failures=1)
    client = make_client(settings, "small")
    with asyncio.Runner() as runner:

        def draw(request: object, k: int = 4, seed: int | None = 7) -> Draw:
            return runner.run(client.draw(request, k, seed=seed, logprobs=True))

        draw.client, draw.run = client, runner.run
        yield draw
        runner.run(client.close())


def asked(model: Model, field: str = "n") -> list[object]:
    seen, model.seen = [body.get(field) for body in model.seen], []
    return seen


@pytest.mark.parametrize("refusal", REFUSED_N)
def test_a_server_that_refuses_n_is_asked_for_each_candidate(drawn, model, caplog, refusal):
    model.refused_fields["n"] = refusal
    for sent in ([4, *SINGLE], SINGLE):
        assert len(drawn(prompt()).replies) == 4 and drawn.client.available
        assert sorted(body["seed"] for body in model.seen[-4:]) == [7, 8, 9, 10]
        assert asked(model) == sent
    assert [line.message for line in caplog.records] == [
        f"small: the server refuses `n`, so that each candidate is a request of its own; {SAYS_SO.format('n')}"
    ]


@pytest.mark.parametrize("refusal", REFUSED_LOGPROBS)
def test_a_server_that_refuses_log_probabilities_is_asked_without(drawn, model, caplog, refusal):
    model.refused_fields["logprobs"] = refusal
    for sent in ([True, None], [None]):
        found = drawn(prompt())
        assert [reply.likelihood.logp for reply in found.replies] == [None] * 4 and drawn.client.available
        assert asked(model, "logprobs") == sent
    (line,) = caplog.records
    assert SAYS_SO.format("logprobs") in line.message and not any("top_logprobs" in body for body in model.seen)


def test_a_server_that_refuses_both_is_asked_without_either(drawn, model, caplog):
    model.refused_fields |= {"n": REFUSED_N[0], "logprobs": REFUSED_LOGPROBS[0]}
    for sent in ([(4, True), (None, True), *[(None, None)] * 4], [(None, None)] * 4):
        drawn(prompt())
        assert [(body.get("n"), body.get("logprobs")) for body in model.seen] == sent
        model.seen = []
    assert len(caplog.records) == 2


def test_what_a_refusal_repeats_of_the_request_is_not_what_it_refuses(drawn, model):
    """vLLM's errors of a whole request end with it."""
    for refused, other, first, message in (
        ("logprobs", "n", True, "Value error, `logprobs` is off"),
        ("n", "logprobs", 4, "Value error, n must be 1"),
    ):  # fmt: skip
        said = f"[{{'type': 'value_error', 'loc': ('body',), 'msg': '{message}', 'input': {{'logprobs': True, 'n': 4}}}}]"
        model.refused_fields = {refused: (400, {"object": "error", "message": said, "code": 400})}
        drawn.client._refused.clear()
        drawn(prompt())
        assert model.seen[0][refused] == first and all(other in body for body in model.seen[:2])
        assert (other == "n") == (len(model.seen) == 2)
        model.seen = []


def test_a_stream_is_asked_for_without_what_its_server_refuses(drawn, model, caplog):
    """And drawn answers have their log-probabilities all the same: llama.cpp refuses them in a stream with tools alone."""
    said = {"error": {"code": 400, "message": "logprobs is not supported with tools + stream"}}

    async def streamed() -> list[object]:
        stream = drawn.client.streamed(prompt(), logprobs=True, authors={})
        return [part async for part in stream]

    for sent in ([True, None], [None]):
        model.refused_fields["logprobs"] = 400, said
        assert isinstance(drawn.run(streamed())[-1], Reply) and drawn.client.available
        assert asked(model, "logprobs") == sent
        model.refused_fields.clear()
        assert drawn(prompt()).replies[0].likelihood.logp is not None
        assert asked(model, "logprobs") == [True]
    assert len(caplog.records) == 1


def test_n_is_asked_for_where_only_greedy_answers_cannot_be_several(drawn, model, caplog):
    for temperature, sent in ((0, [4, *SINGLE]), (0.7, [4]), (0.0, SINGLE), (None, [4])):
        model.refused_fields = {"n": (400, VLLM)} if temperature == 0 else {}
        drawn(prompt(**({} if temperature is None else {"temperature": temperature})))
        assert asked(model) == sent
    assert len(caplog.records) == 1


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    found = [1000.0]
    monkeypatch.setattr("r2v.clients.openai.monotonic", lambda: found[0])
    return found


@pytest.mark.parametrize("field", ["n", "logprobs"])
def test_a_server_that_always_refuses_is_asked_in_vain_once_in_a_while(drawn, model, caplog, clock, field):
    model.refused_fields[field] = {"n": REFUSED_N, "logprobs": REFUSED_LOGPROBS}[field][0]
    for _ in range(3):
        for _ in range(4):
            drawn(prompt())
            clock[0] += AGAIN_S / 4 - 1
        assert len([one for one in asked(model, field) if one]) == 1
        clock[0] += 5
    assert len(caplog.records) == 1


def test_of_requests_at_once_one_tries_what_was_refused(drawn, model, clock):
    drawn.client.settings = drawn.client.settings.but(offers_n=False)
    model.refused_fields["logprobs"] = REFUSED_LOGPROBS[0]
    drawn(prompt(), k=1)
    clock[0] += AGAIN_S
    asked(model)
    drawn(prompt())
    assert sorted(map(str, asked(model, "logprobs"))) == ["None"] * 4 + ["True"]


def test_what_was_refused_for_the_sake_of_another_field_comes_back(drawn, model, caplog, clock):
    """The server takes no log-probabilities beside a schema of the answer."""
    for _ in range(2):
        model.refused_fields["logprobs"] = 400, {"error": {"message": "logprobs do not go with `response_format`"}}
        drawn(prompt(response_format={"type": "json_object"}))
        model.refused_fields.clear()
        assert asked(model, "logprobs") == [True, None]
        for waited, sent in ((AGAIN_S - 1, None), (1, True), (0, True)):
            clock[0] += waited
            drawn(prompt())
            assert asked(model, "logprobs") == [sent]
    assert len(caplog.records) == 1


def test_what_clients_want_themselves_says_nothing_of_what_is_added(drawn, model):
    """The server takes log-probabilities, but not of so many alternatives."""
    model.refused_fields["top_logprobs"] = 400, {"error": {"message": "top_logprobs: at most 0"}}
    drawn(prompt())
    for _ in range(2):
        drawn(prompt(logprobs=True))
        asked(model)
        drawn(prompt())
        assert asked(model, "logprobs") == [None]


@pytest.mark.parametrize("field", ["n", "logprobs"])
def test_what_does_not_help_is_not_remembered_and_ends(drawn, model, caplog, field):
    """The tool that the request offers has a parameter of that name, and a schema that the server does not take."""
    model.refuse = 400, {"error": {"message": f"Invalid schema for function 'look': '{field}' is no type"}}
    for _ in range(2):
        with pytest.raises(ModelError, match="HTTP 400") as caught:
            drawn(prompt())
        assert caught.value.clients_fault and not caught.value.paid and drawn.client.available
        assert asked(model, field) == [4 if field == "n" else True, None]
    assert not caplog.records
    model.refuse = None
    drawn(prompt())
    assert asked(model) == [4]


def test_another_refusal_is_one_request_and_travels_between_processes(drawn, model):
    model.refuse = 422, {"error": {"message": "`tools` is not a list, and nothing else", "param": "tools"}}
    with pytest.raises(ModelError, match="because of `tools`") as caught:
        drawn(prompt())
    assert asked(model) == [4]
    received = pickle.loads(pickle.dumps(caught.value))
    assert str(received) == str(caught.value) and (received.http, received.clients_fault) == (422, True)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_that_a_client_wants_are_refused_to_it(make, stream):  # noqa: F811
    world = make(route__mode="active")
    world.teacher.refused_fields["logprobs"] = REFUSED_LOGPROBS[0]
    answer = world.post(model="r2v:teacher", logprobs=True, top_logprobs=2, stream=stream)
    assert answer.status_code == 400 and "because of `logprobs`" in answer.text and len(world.teacher.seen) == 1


@pytest.mark.parametrize("stream", ["hold", "early"])
def test_a_refused_try_is_not_charged_and_what_is_reserved_covers_single_requests(make, stream):  # noqa: F811
    body = {"model": "r2v:slm", "messages": ASK, "max_tokens": 50, "stream": stream == "early"}
    answers = 1 if stream == "early" else 3
    tokens, _ = make().service.slm.bound(parse(json.dumps(body).encode()), answers)
    world = make(route__stream=stream, budget__per_day={"tokens": tokens}, small__retries=0, small__breaker_failures=1)
    world.small.says, world.small.refused_fields = "look", {"n": REFUSED_N[0], "logprobs": REFUSED_LOGPROBS[0]}
    answer = world.post(body=body)
    assert answer.status_code == 200 and "error" not in answer.text and world.service.slm.available
    refused = sum(bool({"n", "logprobs"} & sent.keys()) for sent in world.small.seen)
    assert (refused, len(world.small.seen)) == ((1, 2) if stream == "early" else (2, 5))
    assert world.service.ledger.accounts.charged(DAY_SCOPE).tokens == answers * 18  # as the server counts


def test_recorded_questions_are_the_same(host, model, tmp_path):
    model.refused_fields |= {"n": REFUSED_N[0], "logprobs": REFUSED_LOGPROBS[0]}
    settings = ChatSettings(
        kind="chat", base_url=f"{host(model)}/v1", model="m", temperature=0.7, retries=0, cassette=str(tmp_path / "tape")
    )
    context, chat_format = Context("goal", ("seen",), (), horizon=3), ChatFormat("Act.", command_of)

    def propose(**changes: object) -> object:
        policy = ChatPolicy(settings.but(**changes), name="slm", chat_format=chat_format)
        return asyncio.run(policy.propose(context, 3, seed=7))

    first = propose()
    assert len(first) == 3 and len(model.seen) > 3
    model.refused_fields, model.seen = {}, []
    assert propose() == propose(offers_n=False, offers_logprobs=False) == first and not model.seen


def test_check_says_what_the_slm_refuses(make, caplog):  # noqa: F811
    world = make(small__offers_logprobs=False)
    world.small.refused_fields["n"] = REFUSED_N[0]
    assert problems(world.config, lambda line: None) == []
    (line,) = caplog.records
    assert line.message.startswith("slm: the server refuses `n`") and SAYS_SO.format("n") in line.message
    assert asked(world.small) == [2, None, None] and len(world.teacher.seen) == 1
