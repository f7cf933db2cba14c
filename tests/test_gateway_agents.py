"""What agent programs send and need: their own body goes on, nothing is lost in silence, answers are live."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from contextlib import closing

import anthropic
import httpx
import openai
import pytest

from r2v.clients.mock import MockModel
from r2v.clients.tokens import Tokens
from r2v.messages.conversation import context_of, own_words, parse
from servers import KEY, events_of
from test_gateway import ASK, AUTH, LOOK, TOOLS, make  # noqa: F401  (a fixture)

ANTHROPIC_TOOLS = [
    {"name": "look", "description": "look", "input_schema": LOOK["parameters"], "cache_control": {"type": "ephemeral"}},
    {"type": "web_search_20250305", "name": "web_search"},
]
CLAUDE = {
    "model": "claude-opus-5-5", "max_tokens": 500, "stream": True,
    "system": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
    "tools": ANTHROPIC_TOOLS, "thinking": {"type": "adaptive"}, "output_config": {"effort": "medium"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}, "top_k": 5,
    "messages": [
        {"role": "user", "content": [
            {"type": "text", "text": "<system-reminder>\ngit status\n</system-reminder>"},
            {"type": "text", "text": "fix it"}]},
        {"role": "system", "content": "# Environment"},
    ],
}  # fmt: skip
BETAS = {"anthropic-beta": "effort-2025-11-24", "anthropic-version": "2026-10-21"}


def claude(messages=(), **changes) -> dict:
    return {**CLAUDE, "messages": [*CLAUDE["messages"], *messages], **changes}


def turn(identity: str, *before: dict, result: str = "nothing", **more) -> list[dict]:
    """A call of the assistant and its result."""
    use = {"type": "tool_use", "id": identity, "name": "look", "input": {"where": "x"}}
    answered = {"type": "tool_result", "tool_use_id": identity, "content": result, **more}
    return [{"role": "assistant", "content": [*before, use]}, {"role": "user", "content": [answered]}]


def message(*content: dict, stop: str = "end_turn", **usage: int) -> dict:
    counts = {"input_tokens": 11, "output_tokens": 7, **usage}
    head = {"id": "msg_up", "type": "message", "role": "assistant", "model": "teacher-1", "stop_sequence": None}
    return {**head, "content": list(content), "stop_reason": stop, "usage": counts}


THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "signed-by-teacher"}


# -- the client's own body ----------------------------------------------------------------------------------------


def test_a_model_of_the_clients_protocol_gets_the_clients_own_body(make):  # noqa: F811
    world = make(teacher_provider="anthropic")
    body = claude(turn("toolu_1", result="oops", is_error=True))
    answer = world.post("/v1/messages?beta=true", body, {**BETAS, "x-r2v-arm": "teacher"})
    assert answer.status_code == 200 and "x-r2v-dropped" not in answer.headers
    assert world.teacher.seen == [body | {"model": "teacher-1", "stream": True}]
    assert BETAS.items() <= world.teacher.headers[0].items()


def test_a_model_of_another_protocol_gets_what_can_be_said_and_the_rest_is_named(make):  # noqa: F811
    world = make(teacher_provider="anthropic")
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AA=="}}
    result = [{"type": "text", "text": "seen"}, image, pdf]
    body = claude(turn("toolu_1", result=result, is_error=True), stream=False)
    answer = world.post("/v1/messages", body, {"x-r2v-arm": "slm"})
    assert answer.status_code == 200
    named = set(answer.headers["x-r2v-dropped"].split(","))
    assert named == {
        "thinking", "context_management", "top_k", "output_config.effort", "tools.web_search", "document",
    }  # fmt: skip
    sent = world.small.seen[0]
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["look"]
    assert [m["role"] for m in sent["messages"]] == ["system", "user", "user", "assistant", "tool", "user"]
    assert sent["messages"][4]["content"].startswith("[tool error] seen")
    assert [part["type"] for part in sent["messages"][5]["content"]] == ["image_url", "text"]


def test_the_small_model_is_not_asked_for_more_than_its_context_has_room_for(make):  # noqa: F811
    world = make(small__context_tokens=8000)
    answer = world.post("/v1/messages", claude(stream=False, max_tokens=128_000), {"x-r2v-arm": "slm"})
    assert world.small.seen[0]["max_tokens"] == 2000 and "max_tokens over 2000" in answer.headers["x-r2v-dropped"]
    world.post(model="r2v:slm", max_completion_tokens=9000)
    assert world.small.seen[1]["max_tokens"] == 2000
    world.post(model="r2v:teacher", max_tokens=128_000)
    assert world.teacher.seen[0]["max_tokens"] == 128_000


def test_thinking_goes_back_to_its_author_alone(make):  # noqa: F811
    world = make(teacher_provider="anthropic")
    use = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"where": "x"}}
    world.teacher.reply = lambda body: message(THOUGHT, use, stop="tool_use")
    session = {"x-session-id": "s"}
    first = world.post("/v1/messages", claude(stream=False), {**session, "x-r2v-arm": "teacher"}).json()
    assert first["content"] == [THOUGHT, use]
    foreign = {"type": "thinking", "thinking": "I", "signature": "of somebody else"}
    history = [*turn("toolu_1", THOUGHT), *turn("toolu_2", foreign)]
    answer = world.post("/v1/messages", claude(history, stream=False), {**session, "x-r2v-arm": "teacher"})
    assert answer.headers["x-r2v-dropped"] == "thinking of another model"
    sent = world.teacher.seen[-1]["messages"]
    assert sent[2]["content"][0] == THOUGHT and sent[4]["content"] == history[2]["content"][1:]
    world.post("/v1/messages", claude(history, stream=False), {**session, "x-r2v-arm": "slm"})
    assert "hm" not in json.dumps(world.small.seen[-1]["messages"])


def test_a_turn_that_another_model_began_goes_on_without_fixed_thinking(make):  # noqa: F811
    """Anthropic's API refuses `thinking: enabled` where the turn's last answer does not begin with thinking."""
    world = make(teacher_provider="anthropic")
    fixed = {"thinking": {"type": "enabled", "budget_tokens": 100}, "stream": False}
    world.post("/v1/messages", claude(**fixed), {"x-r2v-arm": "teacher"})
    assert "thinking" in world.teacher.seen[-1]
    answer = world.post("/v1/messages", claude(turn("c1"), **fixed), {"x-r2v-arm": "teacher"})
    assert answer.headers["x-r2v-dropped"] == "thinking"
    assert not {"thinking", "context_management"} & world.teacher.seen[-1].keys()


def test_ids_become_what_the_api_takes_each_for_one_call(make):  # noqa: F811
    world = make(teacher_provider="anthropic")
    history = [*turn("functions.look:0"), *turn("functions.look:0"), *turn("fine_1")]
    world.post("/v1/messages", claude(history, stream=False), {"x-r2v-arm": "teacher"})
    blocks = [b for m in world.teacher.seen[0]["messages"][2:] for b in m["content"]]
    uses, results = ([b[key] for b in blocks if key in b] for key in ("id", "tool_use_id"))
    assert uses == results and len(set(uses)) == 3 and uses[2] == "fine_1" and uses[0].replace("_", "").isalnum()
    again = world.post("/v1/messages", claude(history, stream=False), {"x-r2v-arm": "teacher"})
    assert again.status_code == 200 and world.teacher.seen[1] == world.teacher.seen[0]  # or its cache would be lost
    long = [{"id": "x" * 64, "type": "function", "function": {"name": "look", "arguments": "{}"}}]
    chat = [*ASK, {"role": "assistant", "tool_calls": long}, {"role": "tool", "tool_call_id": "x" * 64, "content": "y"}]
    world.post(model="r2v:slm", messages=chat)
    call, result = world.small.seen[-1]["messages"][-2:]
    assert call["tool_calls"][0]["id"] == result["tool_call_id"] and len(result["tool_call_id"]) <= 40


def test_nothing_of_r2v_is_in_a_message(make):  # noqa: F811
    world = make(teacher_provider="anthropic")
    for arm in ("slm", "teacher"):
        said = world.post(model=f"r2v:{arm}", tools=TOOLS).json()["choices"][0]["message"]
        assert said.keys() <= {"role", "content", "tool_calls", "refusal"}


def test_a_schema_is_kept_across_protocols_and_log_probabilities_are_given_where_asked_for(make):  # noqa: F811
    world = make(teacher_provider="anthropic")
    schema = {"type": "object", "properties": {"x": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    answer = world.post(model="r2v:teacher", response_format=form, logprobs=True, seed=1)
    assert world.teacher.seen[0]["output_config"] == {"format": {"type": "json_schema", "schema": schema}}
    assert set(answer.headers["x-r2v-dropped"].split(",")) == {"logprobs", "seed"}
    assert world.post(model="r2v:slm", logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert "logprobs" not in world.post(model="r2v:slm").json()["choices"][0]
    back = world.post("/v1/messages", claude(stream=False, output_config={"format": form | {"schema": schema}}))
    assert back.status_code == 200 and world.small.seen[-1]["response_format"]["json_schema"]["schema"] == schema


# -- streams ------------------------------------------------------------------------------------------------------

ASKED = {
    "/v1/chat/completions": {"model": "r2v", "messages": ASK, "tools": TOOLS, "stream_options": {"include_usage": True}},
    "/v1/messages": {"model": "r2v", "max_tokens": 99, "messages": ASK[1:], "tools": ANTHROPIC_TOOLS},
    "/v1/responses": {"model": "r2v", "input": ASK[1:], "tools": [{"type": "function", **LOOK}]},
}


@pytest.mark.parametrize("provider", ["openai", "anthropic", "openai_responses"])
@pytest.mark.parametrize("path", ASKED)
def test_the_teachers_answer_is_live_in_every_protocol(make, path, provider):  # noqa: F811
    world = make(teacher_provider=provider)
    world.teacher.may_go_on = threading.Event()
    body = {**ASKED[path], "stream": True}
    with httpx.stream("POST", world.url + path, json=body, headers={**AUTH, "x-r2v-arm": "teacher"}, timeout=20) as answer:
        assert answer.headers["x-r2v-arm"] == "teacher" and answer.headers["x-r2v-step"] == "0"
        lines = answer.iter_lines()
        assert next(line for line in lines if "look" in line)  # while the model waits for leave to end
        assert not world.rows("id")
        world.teacher.may_go_on.set()
        rest = [line for line in lines if line.startswith("data: {")]
    facts = [found["r2v"] for line in rest if (found := json.loads(line[6:])).get("r2v")]
    assert facts[-1]["arm"] == "teacher" and facts[-1]["cost-usd"] > 0
    assert world.rows("source, code") == [("teacher", "forced")]


def test_live_events_of_the_clients_protocol_are_the_models_own(make):  # noqa: F811
    world = make(teacher_provider="anthropic")
    answer = message(THOUGHT, {"type": "text", "text": "all done"}, cache_read_input_tokens=3)
    world.teacher.event_of = lambda body: answer
    text = world.post("/v1/messages", claude(), {"x-r2v-arm": "teacher"}).text
    found = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    facts, mended = found[-2].pop("r2v"), {"id": f"msg_{found[0]['message']['id'][4:]}"}
    wanted = [content for _, content in events_of(answer)]
    wanted[0] = {**wanted[0], "message": wanted[0]["message"] | mended}
    assert found == wanted and facts["decision-id"] == mended["id"][4:]


def test_a_live_answer_that_breaks_is_charged_and_ends_with_the_error(make):  # noqa: F811
    world = make(teacher_provider="anthropic", teacher__retries=0)
    world.teacher.cut = 4
    text = world.post("/v1/messages", claude(), {"x-r2v-arm": "teacher"}).text
    assert "ended too soon" in text.splitlines()[-2] and "message_stop" not in text
    with closing(sqlite3.connect(world.ledger)) as db:
        ((usd, why),) = db.execute("SELECT usd, why FROM abandoned").fetchall()
    assert not world.rows("id") and usd > 0 and why == "upstream_fallback"


def test_pings_of_messages_are_events(make):  # noqa: F811
    world = make()
    world.small.delay = 0.7
    text = world.post("/v1/messages", claude(), {"x-r2v-arm": "slm"}).text
    assert text.startswith('event: ping\ndata: {"type":"ping"}') and "message_stop" in text


def test_an_early_step_over_the_threshold_is_escalated_at_the_next(make):  # noqa: F811
    """`hold` would have escalated the first; by then it has been streamed. Both see the same log-probabilities."""
    world = make(route__stream="early", route__router="entropy", route__threshold=0.5, route__k=1)
    session = {"x-session-id": "e"}
    world.small.mock_model = MockModel("small-1", error_rate=1.0)
    first = world.post(stream=True, headers=session)
    assert first.headers["x-r2v-reason"] == "early" and world.small.seen[0]["logprobs"] is True
    world.small.mock_model = MockModel("small-1", error_rate=0.0)
    more = [*ASK, {"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]
    assert world.post(messages=more, stream=True, headers=session).headers["x-r2v-arm"] == "teacher"
    score = world.rows("score")[0][0]
    world.small.mock_model = MockModel("small-1", error_rate=1.0)
    assert float(world.post(headers={"x-session-id": "held"}).headers["x-r2v-risk"]) == pytest.approx(
        score, rel=0.1
    )  # of another draw


# -- usage --------------------------------------------------------------------------------------------------------


def test_usage_is_that_of_the_answer_whatever_else_was_drawn(make):  # noqa: F811
    world = make()
    alone = world.post(model="r2v:teacher").json()["usage"]
    for changes in ({}, {"small__offers_n": False}):
        other = make(**changes, store__path=str(world.ledger.with_name(f"{len(changes)}.db")))
        told = other.post(model="r2v:slm", tools=TOOLS).json()["usage"]
        one = httpx.post(f"{other.config.models['slm'].base_url}/chat/completions", json=other.small.seen[-1] | {"n": 1})
        assert told["prompt_tokens"] == one.json()["usage"]["prompt_tokens"]
        if changes:
            assert told["completion_tokens"] in {_tokens(other, i) for i in range(3)}
        else:
            assert told["completion_tokens"] == 6  # as many as have log-probabilities
        assert told["total_tokens"] == told["prompt_tokens"] + told["completion_tokens"]
    verifier = make(route__router="verifier", route__threshold=0.0, store__path=str(world.ledger.with_name("v.db")))
    assert verifier.post().json()["usage"] == alone  # the drafts before it are in the bill alone
    assert float(verifier.post().headers["x-r2v-cost-usd"]) > verifier.service.teacher.usd(
        Tokens(alone["prompt_tokens"], alone["completion_tokens"])
    )


def _tokens(world, i: int) -> int:
    body = world.small.seen[i]
    answer = httpx.post(f"{world.config.models['slm'].base_url}/chat/completions", json=body).json()
    return answer["usage"]["completion_tokens"]


# -- Responses ----------------------------------------------------------------------------------------------------


def test_responses_may_refer_to_what_was_answered_before(make):  # noqa: F811
    world = make()
    body = {"model": "r2v:slm", "input": "look", "tools": ASKED["/v1/responses"]["tools"]}
    first = world.post("/v1/responses", body).json()
    (call,) = first["output"]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "red"}
    again = world.post("/v1/responses", {**body, "previous_response_id": first["id"], "input": [result]})
    assert again.status_code == 200
    assert [m["role"] for m in world.small.seen[-1]["messages"]] == ["user", "assistant", "tool"]
    third = {"type": "item_reference", "id": call["id"]}
    world.post("/v1/responses", {**body, "input": [{"role": "user", "content": "look"}, third, result]})
    assert world.small.seen[-1]["messages"] == world.small.seen[-2]["messages"]
    stored = {**body, "previous_response_id": first["id"], "input": [result]}
    other = httpx.post(f"{world.url}/v1/responses", json=stored, headers={"authorization": "Bearer other"})
    assert other.status_code == 400 and "not found" in other.json()["error"]["message"]  # another key's
    kept = world.post("/v1/responses", {**body, "store": False, "stream": False}).json()
    lost = world.post("/v1/responses", {**body, "previous_response_id": kept["id"], "input": [result]})
    assert lost.status_code == 400 and KEY not in lost.text


def test_tools_of_every_kind_that_run_at_the_client_come_back_as_they_are(make):  # noqa: F811
    world = make()
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"}
    inner = [{"type": "custom", "name": "exec", "description": "run", "format": grammar}]
    tools = [{"type": "local_shell"}, {"type": "web_search"}, {"type": "function", **LOOK}]
    added = {"type": "additional_tools", "role": "developer", "tools": [{"type": "namespace", "name": "ns", "tools": inner}]}
    calls = [("exec", {"input": "ls"}), ("local_shell", {"command": ["ls"], "workdir": "/x"}), ("look", {"where": "x"})]

    def reply(body: dict) -> dict:
        functions = [{"name": name, "arguments": json.dumps(given)} for name, given in calls]
        made = [{"id": f"c{i}", "type": "function", "function": f} for i, f in enumerate(functions)]
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": "now", "tool_calls": made},
            "finish_reason": "tool_calls",
        }
        return {"id": "x", "choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}

    world.small.reply = reply
    items = [added, {"role": "user", "content": "go"}]
    body = {"model": "r2v:slm", "input": items, "tools": tools, "store": False}
    answer = world.post("/v1/responses", body)
    assert answer.headers["x-r2v-dropped"] == "tools.web_search"
    assert {t["function"]["name"] for t in world.small.seen[0]["tools"]} == {"exec", "local_shell", "look"}
    assert "lark" in next(
        t["function"]["description"] for t in world.small.seen[0]["tools"] if t["function"]["name"] == "exec"
    )
    said, custom, shell, function = answer.json()["output"]
    assert (custom["type"], custom["name"], custom["namespace"], custom["input"]) == ("custom_tool_call", "exec", "ns", "ls")
    assert shell["action"]["command"] == ["ls"] and shell["action"]["working_directory"] == "/x"
    assert (function["type"], json.loads(function["arguments"])) == ("function_call", {"where": "x"})
    outputs = [
        {"type": f"{call['type']}_output", "call_id": call["call_id"], "output": [{"type": "input_text", "text": "ok"}]}
        for call in (custom, shell, function)
    ]
    world.post("/v1/responses", {**body, "input": [*items, said, custom, shell, function, *outputs]})
    _, asked, *results = world.small.seen[-1]["messages"]
    functions = [call["function"] for call in asked["tool_calls"]]
    assert [(f["name"], json.loads(f["arguments"])) for f in functions] == calls
    assert [result["content"] for result in results] == ["ok"] * 3


def test_a_responses_model_gets_the_clients_own_body_and_its_reasoning_back(make):  # noqa: F811
    world = make(teacher_provider="openai_responses")
    items = [{"role": "user", "content": "look"}]
    body = {
        **ASKED["/v1/responses"],
        "input": items,
        "reasoning": {"effort": "low"},
        "include": ["reasoning.encrypted_content"],
    }
    arm = {"x-r2v-arm": "teacher", "x-session-id": "s"}
    with openai.OpenAI(base_url=f"{world.url}/v1", api_key=KEY, max_retries=0, default_headers=arm) as client:
        first = client.responses.create(**body)
        with client.responses.stream(**body) as stream:
            streamed = stream.get_final_response()
    assert [item.type for item in first.output] == ["reasoning", "function_call"]
    assert [item.id for item in streamed.output] == [item.id for item in first.output]
    assert first.usage.input_tokens_details.cached_tokens == 4 and world.teacher.seen[0] == body | {
        "model": "teacher-1",
        "store": False,
    }
    with_id = {"type": "reasoning", "id": "rs_1", "summary": []}  # of a client that counts on the server to keep it
    told = world.post("/v1/responses", {**body, "include": [], "input": [*items, with_id]}, arm)
    assert told.headers["x-r2v-dropped"] == "reasoning" and world.teacher.seen[-1]["include"] == body["include"]
    assert world.teacher.seen[-1]["input"] == items
    result = {"type": "function_call_output", "call_id": "call_up", "output": "red"}
    told = world.post("/v1/responses", {**body, "previous_response_id": first.id, "input": [result]}, arm)
    assert told.json()["output"][1]["content"][0]["text"] == "all done" and "x-r2v-dropped" not in told.headers
    assert world.teacher.seen[-1]["input"] == [*items, *first.model_dump(exclude_unset=True)["output"], result]
    by_slm = world.post("/v1/responses", {**body, "previous_response_id": first.id, "input": [result]}, {"x-r2v-arm": "slm"})
    assert set(by_slm.headers["x-r2v-dropped"].split(",")) == {"reasoning", "include"}


def test_a_chat_or_messages_client_with_a_responses_teacher(make):  # noqa: F811
    world = make(teacher_provider="openai_responses")
    for path in ("/v1/chat/completions", "/v1/messages"):
        assert "call_up" in world.post(path, ASKED[path], {"x-r2v-arm": "teacher"}).text
    orphan = [*ASK, {"role": "tool", "tool_call_id": "nobody", "content": "x"}, {"role": "user", "content": "go on"}]
    assert world.post(model="r2v:teacher", messages=orphan).status_code == 200
    kinds = [item.get("type", item.get("role")) for item in world.teacher.seen[-1]["input"]]
    assert kinds == ["system", "user", "user", "user"]


def test_a_refusal_and_a_forced_call_reach_the_sdks_of_other_protocols(make):  # noqa: F811
    world = make()
    refusal = {"role": "assistant", "content": None, "refusal": "I cannot"}
    call = {"type": "function", "function": {"name": "look", "arguments": {"where": "x"}}}  # as some servers write it

    def answer(message: dict) -> dict:
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 5}}

    slm = {"x-r2v-arm": "slm"}
    world.small.reply = lambda body: answer(refusal)
    with openai.OpenAI(base_url=f"{world.url}/v1", api_key=KEY, max_retries=0, default_headers=slm) as client:
        with client.responses.stream(model="r2v", input="hi") as stream:
            events, made = [one.type for one in stream], stream.get_final_response()
        assert made.output[0].content[0].refusal == "I cannot" and "response.refusal.done" in events
        with client.chat.completions.stream(model="r2v", messages=ASK) as stream:
            assert stream.get_final_completion().choices[0].message.refusal == "I cannot"
    with anthropic.Anthropic(base_url=world.url, api_key=KEY, max_retries=0, default_headers=slm) as client:
        asked = {"model": "r2v", "max_tokens": 99, "messages": ASK[1:], "tools": ANTHROPIC_TOOLS[:1]}
        said = client.messages.create(**asked)
        assert (said.stop_reason, said.content[0].text) == ("refusal", "I cannot")
        world.small.reply = lambda body: answer({"role": "assistant", "content": None, "tool_calls": [call]})
        with client.messages.stream(**asked) as stream:
            said = stream.get_final_message()
    assert (said.stop_reason, said.content[0].input) == ("tool_use", {"where": "x"}) and said.content[0].id


def test_a_body_of_the_wrong_type_is_the_clients_to_mend(make):  # noqa: F811
    world = make(teacher_provider="openai_responses")
    teacher = {"x-r2v-arm": "teacher"}
    for path, more in (("/v1/chat/completions", {"response_format": "json"}), ("/v1/responses", {"include": 5})):
        answer = world.post(path, ASKED[path] | more, teacher)
        assert answer.status_code == 400 and next(iter(more)) in answer.json()["error"]["message"]
    assert not world.teacher.seen and world.service.teacher.available


# -- sessions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/v1/responses", {}, {"session-id": "S-1"}),
        ("/v1/responses", {}, {"thread-id": "S-1"}),
        ("/v1/responses", {"prompt_cache_key": "S-1_0199ad5c2f3e7b10"}, {}),
        ("/v1/messages", {"metadata": {"user_id": json.dumps({"device_id": "d", "session_id": "S-1"})}}, {}),
        ("/v1/messages", {"metadata": {"user_id": "user_1_account__session_S-100000"}}, {}),
        ("/v1/chat/completions", {"metadata": {"session_id": "S-1"}}, {}),
    ],
)
def test_sessions_are_found_where_agents_name_them(make, path, body, headers):  # noqa: F811
    world = make()
    for _ in range(2):
        answer = world.post(path, {**ASKED[path], **body}, headers)
    assert answer.headers["x-r2v-session-id"].startswith("S-1") and answer.headers["x-r2v-step"] == "1"


def test_a_subagent_is_a_session_of_its_own_on_the_same_budget(make):  # noqa: F811
    world = make(route__router="verifier", route__threshold=0.0, budget__session={"teacher_calls": 3})
    named = {"x-claude-code-session-id": "main"}
    told = ({}, {"x-claude-code-agent-id": "a1"}, {"x-claude-code-agent-id": "a b"}, {}, {"x-claude-code-agent-id": "a1"})
    answers = [world.post("/v1/messages", ASKED["/v1/messages"], {**named, **more}) for more in told]
    found = [(answer.headers["x-r2v-session-id"].split("-")[0], answer.headers["x-r2v-step"]) for answer in answers]
    assert found == [("main", "0"), ("main.a1", "0"), ("main.h", "0"), ("main", "1"), ("main.a1", "1")]
    assert [answer.headers["x-r2v-arm"] for answer in answers] == ["teacher"] * 3 + ["slm"] * 2


def test_a_cache_key_of_a_whole_application_is_no_session(make):  # noqa: F811
    world = make()
    path = "/v1/responses"
    answers = [world.post(path, {**ASKED[path], "prompt_cache_key": "my-app-v1", "input": text}) for text in ("one", "two")]
    assert len({answer.headers["x-r2v-session-id"] for answer in answers}) == 2
    assert {answer.headers["x-r2v-step"] for answer in answers} == {"0"}


def test_tokens_of_pictures_are_not_counted_by_their_bytes(make):  # noqa: F811
    world = make()
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo" * 90_000}}
    told = {"model": "r2v", "messages": [{"role": "user", "content": [{"type": "text", "text": "word " * 800}, picture]}]}
    assert 2_600 < world.post("/v1/messages/count_tokens", told).json()["input_tokens"] < 2_800


def test_a_users_name_is_no_session(make):  # noqa: F811
    world = make()
    body = {**ASKED["/v1/messages"], "metadata": {"user_id": "somebody@example.org"}}
    assert world.post("/v1/messages", body).headers["x-r2v-session-id"].startswith("auto-")
    odd = world.post(headers={"x-session-id": "with blanks and é".encode("latin-1")})
    assert odd.status_code == 200 and odd.headers["x-r2v-session-id"].startswith("h-")


def test_the_same_prompt_again_is_a_session_of_its_own(make, tmp_path):  # noqa: F811
    world = make(budget__session={"teacher_calls": 1}, route__router="verifier", route__threshold=0.0)
    goes_on = [*ASK, {"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]
    seen = []
    for _ in range(3):
        for messages in (ASK, goes_on):
            answer = world.post(messages=messages)
            seen.append(tuple(answer.headers[f"x-r2v-{key}"] for key in ("session-id", "step", "arm")))
    names = [name for name, _, _ in seen]
    assert names[0::2] == names[1::2] and len(set(names)) == 3
    assert [rest for _, *rest in seen] == [["0", "teacher"], ["1", "slm"]] * 3
    world.stack.close()
    later = make(budget__session={"teacher_calls": 1}, route__router="verifier", route__threshold=0.0)
    assert later.post(messages=goes_on).headers["x-r2v-session-id"] == names[-1]  # after a restart
    assert later.post(messages=ASK).headers["x-r2v-session-id"] not in names


def test_titles_and_summaries_are_no_steps_of_the_session(make):  # noqa: F811
    world = make()
    session = {"x-session-id": "s"}
    world.post(tools=TOOLS, headers=session)
    world.post(headers=session)  # no tools: a title
    early = [{"role": "system", "content": "You are a title generator."}, ASK[1]]
    assert world.post(messages=early, headers={"x-session-id": "t"}).headers["x-r2v-session-id"] == "t.aside"
    assert world.post(tools=TOOLS, headers=session).headers["x-r2v-step"] == "1"


def test_the_goal_is_the_task_not_what_stands_before_it():
    assert own_words("<environment_context>\n<cwd>/x</cwd>\n</environment_context>") == ""
    assert (
        own_words("<system-reminder>a</system-reminder>\n<system-reminder>b</system-reminder>\n fix <b>it</b>")
        == "fix <b>it</b>"
    )
    assert own_words("# AGENTS.md instructions for /x\n\n<INSTRUCTIONS>\nbe brief\n</INSTRUCTIONS>\n\nfix it") == "fix it"
    assert own_words("<system-reminder>never closed") == "<system-reminder>never closed"
    assert own_words("<html>page</html> fix") == "<html>page</html> fix"
    messages = [
        {"role": "user", "content": "<environment_context>x</environment_context>"},
        {"role": "user", "content": "fix it"},
    ]
    assert context_of(parse(json.dumps({"messages": messages}).encode()), 50).goal == "fix it"
    start = time.perf_counter()
    own_words("<system-reminder>x</system-reminder>" * 100_000)
    assert time.perf_counter() - start < 5  # linear: a second even on a busy machine


# -- errors and what clients look for -----------------------------------------------------------------------------


def test_limits_of_rates_are_passed_on_and_open_no_breaker(make):  # noqa: F811
    world = make(small__breaker_failures=2, teacher__breaker_failures=2)
    world.small.status = world.teacher.status = [(429, {"retry-after": "40"})]
    start = time.monotonic()
    for path in ASKED:
        answer = world.post(path, ASKED[path])
        assert answer.status_code == 429 and answer.headers["retry-after"] == "40"
        assert "rate_limit_error" in answer.text
    assert time.monotonic() - start < 10  # nobody waits so long
    world.small.status, world.teacher.status = [], []
    assert world.post().status_code == 200 and world.service.teacher.available


def test_who_insists_on_the_teacher_is_not_answered_by_the_small_model(make):  # noqa: F811
    world = make()
    world.teacher.status = [(503, {})]
    answer = world.post(model="r2v:teacher")
    assert answer.status_code == 502 and not world.small.seen


def test_models_web_sockets_origins_and_ids_of_requests(make):  # noqa: F811
    world = make(server__cors_origins=("http://page.example",))
    assert httpx.get(f"{world.url}/v1/models/claude-opus-5-5", headers=AUTH).json()["type"] == "model"
    assert httpx.get(f"{world.url}/v1/responses", headers=AUTH).status_code == 426
    asks = {"origin": "http://page.example", "access-control-request-method": "POST"}
    allowed = httpx.options(f"{world.url}/v1/messages", headers=asks).headers
    assert allowed["access-control-allow-origin"] == "http://page.example"
    stranger = httpx.options(f"{world.url}/v1/messages", headers={**asks, "origin": "http://evil.example"})
    assert "access-control-allow-origin" not in stranger.headers
    answer = httpx.post(f"{world.url}/v1/messages", json={}, headers={"origin": "http://page.example"})
    assert answer.headers["access-control-allow-origin"] == "http://page.example"
    ids = [world.post().headers["request-id"], httpx.post(f"{world.url}/v1/messages", json={}).headers["request-id"]]
    assert all(i.startswith("req_") for i in ids) and len(set(ids)) == 2
    only = make(server__accepted_models=("claude-*",), store__path=str(world.ledger.with_name("other.db")))
    assert only.post(model="gpt-99").status_code == 400 and only.post(model="claude-x").status_code == 200


@pytest.mark.parametrize(
    ("status", "kind"), [(401, "authentication_error"), (404, "not_found_error"), (400, "invalid_request_error")]
)
def test_errors_are_of_the_types_of_their_protocol(make, status, kind):  # noqa: F811
    world = make()
    world.small.refuse = world.teacher.refuse = (status, {"error": {"message": "no"}})
    if status == 401:
        answer = httpx.post(f"{world.url}/v1/messages", json=ASKED["/v1/messages"], headers={"x-api-key": "wrong"})
    else:
        answer = world.post("/v1/messages", ASKED["/v1/messages"])
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
