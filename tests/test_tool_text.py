"""Tool calls that a model wrote as text: what is one and what only looks like it, in pieces, and through the gateway."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import ExitStack, closing
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from r2v.clients.openai import OpenAIClient
from r2v.clients.settings import ClientSettings
from r2v.clients.tool_text import HeldStream, OfferedTools, with_calls
from r2v.gateway.ledger import Ledger
from r2v.messages.conversation import Request, parse
from r2v.messages.openai_chat import StreamAccumulator, chunk_of
from r2v.messages.protocol import Piece, Reply
from r2v.messages.tool_text import LONGEST, OPENINGS, SMALL, VALUES, ToolText
from servers import KEY, Model, gateway, running
from servers import settings as gateway_settings

LOOK = {
    "type": "object", "properties": {"where": {"type": "string"}, "times": {"type": "integer"}}, "required": ["where"],
    "additionalProperties": False,
}  # fmt: skip
OPEN: dict[str, Any] = {"type": "object", "properties": {"any": {}}}
TOOLS = [
    {"type": "function", "function": {"name": "look", "description": "look somewhere", "parameters": LOOK}},
    {"type": "function", "function": {"name": "run", "parameters": OPEN}},
]
SCHEMAS = {"look": LOOK, "run": OPEN}
CALL = '{"name": "look", "arguments": {"where": "here"}}'
OTHER = '{"name": "run", "arguments": {"any": [1, "}"]}}'
HERE, THERE = ("look", {"where": "here"}), ("run", {"any": [1, "}"]})


def asked(**fields: Any) -> Request:
    body = {"messages": [{"role": "user", "content": "look"}], "tools": TOOLS, **fields}
    return parse(json.dumps(body).encode())


def answer(text: str, **fields: Any) -> Reply:
    """A model's answer as the client gives it."""
    offered = OfferedTools.of(asked(**fields))
    reply = Reply({"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}, {}, "chat")
    return reply if offered is None else with_calls(reply, offered)


def calls_in(reply: Reply) -> list[tuple[str, Any]]:
    functions = [call["function"] for call in reply.choice["message"].get("tool_calls") or []]
    return [(function["name"], json.loads(function["arguments"])) for function in functions]


# -- what is a call -----------------------------------------------------------------------------------------------

FORMS = {
    "json fence": (f"```json\n{CALL}\n```", [HERE]),
    "fence on one line": (f"```json {CALL} ```", [HERE]),
    "fence without a language": (f"```\n{CALL}\n```\n", [HERE]),
    "lines as on Windows": (f"```python\r\n```\r\n{CALL}\r\n```json\r\n{OTHER}\r\n```\r\n", [HERE, THERE]),
    "fence of tildes": (f"~~~ JSON\n{CALL}\n~~~", [HERE]),
    "indented fence": (f"  ```json\n  {CALL}\n  ```", [HERE]),
    "fence that is not closed": (f"```json\n{CALL}\n", [HERE]),
    "ticks in a string": ('```json\n{"name": "look", "arguments": {"where": "```"}}\n```', [("look", {"where": "```"})]),
    "bare": (CALL, [HERE]),
    "bare on several lines": (json.dumps(json.loads(CALL), indent=2), [HERE]),
    "bare, one after the other": (f"{CALL}\n{OTHER}", [HERE, THERE]),
    "list": (f"[{CALL},\n{OTHER}]", [HERE, THERE]),
    "parameters": ('{"name": "look", "parameters": {"where": "here"}}', [HERE]),
    "args": ('{"tool": "look", "args": {"where": "here"}}', [HERE]),
    "function": ('{"function": "look", "parameters": {"where": "here"}}', [HERE]),
    "tool_name": ('{"tool_name": "look", "arguments": {"where": "here"}}', [HERE]),
    "arguments first": ('{"arguments": {"where": "here"}, "name": "look"}', [HERE]),
    "arguments as text": ('{"name": "look", "arguments": "{\\"where\\": \\"here\\"}"}', [HERE]),
    "as OpenAI has it": (f'{{"id": "1", "type": "function", "function": {CALL}}}', [HERE]),
    "tool_calls": (f'{{"tool_calls": [{CALL}, {{"type": "function", "function": {OTHER}}}]}}', [HERE, THERE]),
    "Hermes": (f"<tool_call>\n{CALL}\n</tool_call>", [HERE]),
    "Hermes, several": (f"<tool_call>{CALL}</tool_call>\n<tool_call>{OTHER}</tool_call>", [HERE, THERE]),
    "Hermes, not closed": (f"<tool_call>\n{CALL}", [HERE]),
    "Qwen's braces": (f"{{{CALL}}}", [HERE]),
    "Qwen's braces in tags": (f"<tool_call>{{{CALL}}}</tool_call>", [HERE]),
    "Hermes amid a line": (f"I look. <tool_call>{CALL}</tool_call>", [HERE]),
    "Llama": (f"<|python_tag|>{CALL.replace('arguments', 'parameters')}", [HERE]),
    "Llama, several": (f"<|python_tag|>{CALL}; {OTHER}", [HERE, THERE]),
    "Llama's function": ('<function=look>{"where": "here"}</function>', [HERE]),
    "Mistral": (f"[TOOL_CALLS] [{CALL}, {OTHER}]", [HERE, THERE]),
    "Mistral, newer": ('[TOOL_CALLS]look[ARGS]{"where": "here"}[TOOL_CALLS]run[ARGS]{}', [HERE, ("run", {})]),
    "Mistral, with an id": ('[TOOL_CALLS]look[CALL_ID]a1b2[ARGS]{"where": "here"}', [HERE]),
    "after a thought": (f"<think>{OTHER}</think>\n{CALL}", [HERE]),
    "two forms": (f"```json\n{CALL}\n```\n<tool_call>{OTHER}</tool_call>", [HERE, THERE]),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_way_of_writing_a_call_is_read(form):
    text, expected = FORMS[form]
    found = answer(text)
    assert calls_in(found) == expected
    assert found.choice["finish_reason"] == "tool_calls" and found.parsed_calls == len(expected)


def test_words_around_a_call_stay():
    found = answer(f"I look first.\n\n```json\n{CALL}\n```\n")
    assert calls_in(found) == [HERE] and found.choice["message"]["content"] == "I look first.\n\n\n"
    found = answer(f"I look first: <tool_call>{CALL}</tool_call> and run: <tool_call>{OTHER}</tool_call> That is all.")
    assert calls_in(found) == [HERE, THERE]
    assert found.choice["message"]["content"] == "I look first:  and run:  That is all."
    assert answer(f"\n {CALL}\n").choice["message"]["content"] is None


def test_ids_are_the_same_for_the_same_answer_and_differ_between_calls_and_steps():
    def ids(reply: Reply) -> list[str]:
        return [call["id"] for call in reply.choice["message"]["tool_calls"]]

    twice = answer(f"{CALL}\n{CALL}")
    assert ids(twice) == ids(answer(f"```json\n[{CALL}, {CALL}]\n```")) and len(set(ids(twice))) == 2
    later = answer(CALL, messages=[{"role": "user", "content": "look"}] * 3)
    assert not set(ids(later)) & set(ids(twice)) and all(len(one) <= 40 for one in ids(later))


# -- what is none -------------------------------------------------------------------------------------------------

NO_CALLS = {
    "words": "I look here.",
    "nothing": "",
    "unknown tool": CALL.replace("look", "watch"),
    "unknown tool in a fence": f"```json\n{CALL.replace('look', 'watch')}\n```",
    "arguments that do not fit": '{"name": "look", "arguments": {"where": 3}}',
    "an argument too many": '{"name": "look", "arguments": {"where": "here", "when": "now"}}',
    "an argument missing": '<tool_call>{"name": "look", "arguments": {}}</tool_call>',
    "arguments that are no object": '{"name": "run", "arguments": [1]}',
    "braces that are not closed": "{" + CALL,
    "braces around data": f"{{{CALL}, 1}}",
    "arguments twice": '{"name": "look", "arguments": {"where": "here"}, "parameters": {"where": "here"}}',
    "no arguments": '{"name": "run"}',
    "a key that occurs twice": '{"name": "look", "arguments": {"where": 1, "where": "here"}}',
    "one of two does not fit": f'{CALL}\n{{"name": "look", "arguments": {{}}}}',
    "one of two is unknown": f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL.replace('look', 'watch')}</tool_call>",
    "the second is cut off": f"{CALL}\n{OTHER[:-3]}",
    "the second is no JSON": f"<tool_call>{CALL}</tool_call><tool_call>{{look}}</tool_call>",
    "cut off": f"```json\n{CALL[:-2]}",
    "within a sentence": f"You may write {CALL} to look.",
    "the beginning of a sentence": f"{CALL} is how one looks.",
    "a longer explanation": f"One can look like this:\n\n```json\n{CALL}\n```\n\nReplace `here` with the place.",
    "an explanation without a fence": f"{CALL}\nThis call looks here.",
    "two steps of a plan": f"First:\n```json\n{CALL}\n```\nThen:\n```json\n{OTHER}\n```",
    "code after it": f"{CALL}\n```python\nlook()\n```",
    "as code in a sentence": f"Write `{CALL}` for it.",
    "a fence of Python": f"```python\n{CALL}\n```",
    "a fence around a fence": f"````markdown\n```json\n{CALL}\n```\n````",
    "a plain fence around a fence": f"````\n```json\n{CALL}\n```\n````",
    "JSON that is data": '```json\n{"where": "here"}\n```',
    "data with a name": '```json\n{"name": "look", "version": "1.0"}\n```',
    "a call inside of data": f'{{"example": {CALL}}}',
    "a call in a list of data": f'[{CALL}, {{"where": "here"}}]',
    "a fence of a call and words": f"```json\n{CALL}\nlooks here\n```",
    "the definition of a tool": json.dumps({"name": "run", "description": "run it", "parameters": OPEN}),
    "its schema as arguments": json.dumps({"name": "run", "parameters": OPEN}),
    "a tag that is only named": "The tag `<tool_call>` begins a call, [TOOL_CALLS] too, and <function= as well.",
    "a thought": f"<think>\n{CALL}\n</think>\nDone.",
    "a thought that the template began": f"{CALL}\n</think>\nDone.",
    "Python after a Llama's tag": '<|python_tag|>look.call(where="here")',
    "no number": '{"name": "run", "arguments": {"any": NaN}}',
}


@pytest.mark.parametrize("near", NO_CALLS)
def test_what_only_looks_like_a_call_stays_as_it_is(near):
    text = NO_CALLS[near]
    found = answer(text)
    assert found.choice == {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    assert found.parsed_calls == 0


def test_nothing_is_read_without_tools_or_where_the_client_wants_no_call():
    assert calls_in(answer(CALL)) == [HERE]
    for fields in ({"tools": None}, {"tools": []}, {"tool_choice": "none"}):
        assert not calls_in(answer(CALL, **fields)), fields
    one = {"type": "function", "function": {"name": "run"}}
    assert not calls_in(answer(CALL, tool_choice=one)) and calls_in(answer(OTHER, tool_choice=one)) == [THERE]
    assert not calls_in(answer(f"{CALL}\n{OTHER}", parallel_tool_calls=False))
    assert calls_in(answer(CALL, parallel_tool_calls=False)) == [HERE]


def test_an_answer_with_calls_of_its_own_is_untouched():
    call = {"id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    reply = Reply({"message": {"content": CALL, "tool_calls": [call]}, "finish_reason": "tool_calls"}, {}, "chat")
    offered = OfferedTools.of(asked())
    assert offered is not None and with_calls(reply, offered) is reply


def test_a_tool_whose_schema_is_none_is_not_called():
    tools = [{"type": "function", "function": {"name": "run", "parameters": {"type": "nonsense"}}}]
    assert not calls_in(answer('{"name": "run", "arguments": {}}', tools=tools))


# -- hostile texts --------------------------------------------------------------------------------------------------


class Counted(ToolText):
    """Counts its work."""

    steps = held = 0
    """Places that were looked at, and characters that were looked at again because more had come."""

    def _read(self, *, final: bool) -> None:
        self.held += len(self._text)
        super()._read(final=final)

    def _step(self, final: bool) -> bool:
        self.steps += 1
        return super()._step(final)


HOSTILE = {
    "brackets": "[" * 150_000,
    "objects that begin": '{"name":' * 18_000,
    "lines that begin": '{"name":\n' * 18_000,
    "tags": "<tool_call>" * 15_000,
    "fences": "```\n" * 40_000,
    "open fences": "```json\n" * 20_000,
    "escaped quotes": '{"name": "' + '\\"' * 90_000,
    "deep": '{"name": "run", "arguments": ' + '{"any":' * 20_000 + "1" + "}" * 20_001,
    "many values": '{"name": "run", "arguments": {"any": [' + "1," * (VALUES + 1) + "1]}}",
    "space": "<tool_call>" + " " * 180_000,
    "many calls": f"{OTHER}\n" * 40,
    "long": f"{CALL}\n" + "x" * LONGEST,
    "ticks": "`" * 180_000,
    "digits": '{"name": "run", "arguments": {"any": ' + "9" * 1000 + "}}",
    "half a character": '{"name": "run", "arguments": {"any": "\\ud800"}}',
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("size", [None, 7])
def test_hostile_texts_are_words_and_take_no_more_work_than_their_length_allows(kind, size):
    text = HOSTILE[kind]
    found = Counted(lambda name, arguments: True)
    for i in range(0, len(text), size or len(text)):
        found.add(text[i : i + (size or len(text))])
    found.end()
    assert not found.calls and found.clear == found.length == len(text)
    assert found.steps <= 2 * OPENINGS + 2 * len(text) / (size or len(text)) + 10
    assert found.held <= SMALL * len(text)


# -- any text -------------------------------------------------------------------------------------------------------

PARTS = st.sampled_from([
    CALL, OTHER, CALL[:20], CALL[20:], "{" + CALL, "```", "```json", "```python", "````", "~~~", "\n", "name",
    CALL.replace("look", "watch"),
    "\n\n", " ", "words", "<tool_call>", "</tool_call>", "<|python_tag|>", "<function=look>", "</function>", "[TOOL_CALLS]",
    "look[ARGS]", '{"where": "here"}', "{", "}", "[", "]", ",", ";", '"', "<think>", "</think>", "<", "é", '{"name"', "`",
])  # fmt: skip
TEXTS = st.lists(PARTS, max_size=14).map("".join) | st.text(max_size=60)


@settings(max_examples=600, deadline=None)
@given(TEXTS)
def test_no_call_is_let_through_that_does_not_fit_and_a_text_without_calls_is_unchanged(text):
    found = answer(text)
    for name, arguments in calls_in(found):
        assert Draft202012Validator(SCHEMAS[name]).is_valid(arguments)
    if not found.parsed_calls:
        assert found.choice["message"]["content"] == text and found.choice["finish_reason"] == "stop"


@settings(max_examples=600, deadline=None)
@given(TEXTS, st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_a_stream_says_the_same_however_it_is_cut(text, sizes):
    whole, streamed = answer(text), StreamAccumulator()
    offered = OfferedTools.of(asked())
    assert offered is not None
    held, at = HeldStream(offered), 0
    passed = []
    for i in range(len(text)):
        if at < len(text):
            part, at = text[at : at + sizes[i % len(sizes)]], at + sizes[i % len(sizes)]
            passed += held.add(Piece(chunk_of({"content": part}), chunk_of({"content": part})))
    passed += held.add(Piece(chunk_of({}, "stop"), chunk_of({}, "stop")))
    reply = Reply({"message": {"role": "assistant", "content": text or None}, "finish_reason": "stop"}, {}, "chat")
    *pieces, last = [*passed, *held.end(reply)]
    for piece in pieces:
        assert isinstance(piece, Piece) and piece.chunk is not None
        streamed.add(piece.chunk)
    assert isinstance(last, Reply) and last.parsed_calls == whole.parsed_calls
    assert streamed.choice["finish_reason"] == last.choice["finish_reason"] == whole.choice["finish_reason"]
    for key in ("content", "tool_calls"):
        said = whole.choice["message"].get(key) or None
        assert (streamed.choice["message"].get(key) or None) == said == (last.choice["message"].get(key) or None), key


@pytest.mark.parametrize("text", [
    "I look here, and say so.", "Some words.\nThen a list:\n- one\n- two", "```python\nprint({})\n```\nand words",
    '```json\n{"where": "here"}\n```', "a < b and [1] and {x}", "1. [link](there)\n2. {y}", "see <b>this</b>",
])  # fmt: skip
def test_words_that_cannot_be_a_call_are_passed_on_as_they_come(text):
    found, waiting = ToolText(lambda name, arguments: True), []
    for character in text:
        found.add(character)
        waiting.append(found.length - found.clear)
    assert max(waiting) <= len('```json\n{"where"')  # what opens JSON, up to its first key
    assert waiting[-1] <= 1 or text.endswith("```")


# -- through a server -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["auto", "off"])
def test_a_client_reads_the_calls_of_all_candidates_or_of_none(option):
    model = Model("small-1")
    model.says = f"```json\n{CALL}\n```"
    with running(model.app()) as url:
        client = OpenAIClient(ClientSettings(base_url=f"{url}/v1", model="small-1", parse_tools=option), "small")

        async def ask() -> list[Reply]:
            draw = await client.draw(asked(), 3)
            streamed = [part async for part in client.streamed(asked(), logprobs=False, authors={})]
            await client.close()
            return [*draw.replies, streamed[-1]]  # type: ignore[list-item]

        replies = asyncio.run(ask())
    assert len(replies) == 4
    for reply in replies:
        assert calls_in(reply) == ([HERE] if option == "auto" else [])
        assert reply.choice["finish_reason"] == ("tool_calls" if option == "auto" else "stop")


class World:
    """A gateway before a teacher that writes its calls as text, over one provider's protocol."""

    def __init__(self, stack: ExitStack, host: Any, folder: Any, provider: str = "openai", **changes: Any) -> None:
        self.small, self.teacher = Model("small-1"), Model("teacher-1")
        self.ledger = folder / "ledger.db"
        config = gateway_settings(host(self.small), host(self.teacher), self.ledger, teacher_provider=provider, **changes)
        self.url, _ = stack.enter_context(gateway(config))
        self.http = stack.enter_context(
            httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {KEY}"}, timeout=20)
        )

    def steps(self) -> list[Any]:
        with closing(Ledger(self.ledger)) as ledger:
            return [step for session in ledger.sessions(10) for step in ledger.steps(session["session"])]


@pytest.fixture
def make(host, tmp_path):
    with ExitStack() as stack:
        yield lambda *args, **changes: World(stack, host, tmp_path, *args, **changes)


def ask_chat(world: World, stream: bool) -> tuple[str | None, list[tuple[str, Any]], str]:
    import openai

    tools: Any = TOOLS
    with openai.OpenAI(base_url=f"{world.url}/v1", api_key=KEY, max_retries=0) as client:
        ask: Any = {"model": "r2v:teacher", "messages": [{"role": "user", "content": "look"}], "tools": tools}
        if stream:
            found = StreamAccumulator()
            for chunk in client.chat.completions.create(**ask, stream=True):
                found.add(chunk.to_dict())
            choice = found.choice
        else:
            choice = client.chat.completions.create(**ask).choices[0].to_dict()
    functions = [call["function"] for call in choice["message"].get("tool_calls") or []]
    calls = [(function["name"], json.loads(function["arguments"])) for function in functions]
    return choice["message"].get("content"), calls, choice["finish_reason"]


def ask_messages(world: World, stream: bool) -> tuple[str | None, list[tuple[str, Any]], str]:
    import anthropic

    tools: Any = [{"name": name, "input_schema": schema} for name, schema in SCHEMAS.items()]
    ask: Any = {"model": "r2v:teacher", "max_tokens": 100, "messages": [{"role": "user", "content": "look"}], "tools": tools}
    with anthropic.Anthropic(base_url=world.url, api_key=KEY, max_retries=0) as client:
        if stream:
            with client.messages.stream(**ask) as events:
                message = events.get_final_message()
        else:
            message = client.messages.create(**ask)
    texts = [block.text for block in message.content if block.type == "text"]
    assert "" not in texts  # which the API would refuse when it comes back
    calls = [(block.name, block.input) for block in message.content if block.type == "tool_use"]
    return "".join(texts) or None, calls, message.stop_reason or ""


def ask_responses(world: World, stream: bool) -> tuple[str | None, list[tuple[str, Any]], str]:
    import openai

    tools: Any = [{"type": "function", "name": name, "parameters": schema} for name, schema in SCHEMAS.items()]
    ask: Any = {"model": "r2v:teacher", "input": "look", "tools": tools}
    with openai.OpenAI(base_url=f"{world.url}/v1", api_key=KEY, max_retries=0) as client:
        if stream:
            numbers, items = [], []
            with client.responses.stream(**ask) as events:
                for event in events:
                    numbers.append(event.sequence_number)
                    if event.type == "response.output_item.done":
                        items.append((event.output_index, event.item.id))
                response = events.get_final_response()
            assert numbers == list(range(len(numbers)))
            assert items == [(i, item.id) for i, item in enumerate(response.output)]
        else:
            response = client.responses.create(**ask)
    calls = [(item.name, json.loads(item.arguments)) for item in response.output if item.type == "function_call"]
    return response.output_text or None, calls, str(response.status)


PROTOCOLS = {
    "chat": (ask_chat, "tool_calls", "stop"),
    "messages": (ask_messages, "tool_use", "end_turn"),
    "responses": (ask_responses, "completed", "completed"),
}


@pytest.mark.parametrize("provider", ["openai", "anthropic", "openai_responses"])
@pytest.mark.parametrize("stream", [False, True])
def test_every_client_gets_the_calls_of_every_provider(make, provider, stream):
    world = make(provider)
    for words, text in ((None, f"```json\n{CALL}\n```"), ("I look here first.\n", f"I look here first.\n{CALL}")):
        world.teacher.says = text
        for name, (ask, called, _) in PROTOCOLS.items():
            assert ask(world, stream) == (words, [HERE], called), (name, text)
    for text in ("All is done.", f"```json\n{CALL.replace('look', 'watch')}\n```"):
        world.teacher.says = text
        for name, (ask, _, said) in PROTOCOLS.items():
            assert ask(world, stream) == (text, [], said), (name, text)


def test_parsed_calls_are_counted_and_in_the_ledger(make):
    world = make("openai", route__router="verifier", route__threshold=0.9)
    world.small.says = f"I look.\n{CALL}"
    body = {"model": "r2v", "messages": [{"role": "user", "content": "look"}], "tools": TOOLS}
    parsed = world.http.post("/v1/chat/completions", json=body, headers={"x-session-id": "a"})
    assert parsed.headers["x-r2v-parsed-calls"] == "1" and parsed.headers["x-r2v-arm"] == "slm"
    world.small.says = "Nothing to do."
    plain = world.http.post("/v1/chat/completions", json=body, headers={"x-session-id": "b"})
    assert "x-r2v-parsed-calls" not in plain.headers
    found = {step.session.split("/")[-1]: step.step.choice for step in world.steps()}
    assert found["a"].parsed_calls == 1 and found["b"].parsed_calls == 0
    assert [call.name for call in found["a"].reply.tool_calls] == ["look"]
    metrics = world.http.get("/metrics").text
    assert 'r2v_parsed_answers_total{model="slm"} 3.0' in metrics
    shown = world.http.get("/v1/sessions/a").json()["steps"][0]
    assert shown["parsed_calls"] == 1


def test_words_of_a_stream_come_before_its_model_is_done(make):
    world = make("openai")
    world.teacher.may_go_on, lines = threading.Event(), []
    world.teacher.says = f"I look here first, as asked.\n{CALL}"
    body = {"model": "r2v:teacher", "messages": [{"role": "user", "content": "look"}], "tools": TOOLS, "stream": True}
    with world.http.stream("POST", "/v1/chat/completions", json=body) as events:
        for line in events.iter_lines():
            lines += [line] if line else []
            if "as asked" in "".join(json.loads(one[6:])["choices"][0]["delta"].get("content") or "" for one in lines[:12]):
                world.teacher.may_go_on.set()
    assert world.teacher.may_go_on.is_set() and lines[-1] == "data: [DONE]"
    assert "tool_calls" in lines[-3]
