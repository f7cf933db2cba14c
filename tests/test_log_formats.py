"""Formats of logs: what an outcome is, plug-ins, and the chat that episodes keep."""

from __future__ import annotations

import gzip
import json
import lzma
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import islice
from pathlib import Path

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from r2v.cli import cli
from r2v.core.errors import ArtifactError, SettingsError
from r2v.core.types import Action, ToolCall
from r2v.gateway.ledger import Ledger
from r2v.logs import BUILT_IN, detection
from r2v.logs.detection import detect
from r2v.logs.files import objects
from r2v.logs.importing import HORIZON, import_logs, log_format
from r2v.logs.intercode import databases
from r2v.logs.mapped import mapped, mapping_of
from r2v.maths.stats import auroc
from r2v.messages.conversation import CLIP_TOTAL, context_of, contexts_of, parse
from r2v.messages.transcript import conversation_of, message_of
from r2v.routers import load_router
from r2v.routers.r2v import R2V
from r2v.runtime import plugins
from r2v.runtime.store import decode, encode, read_episodes, write_episodes
from servers import KEY, Model, gateway, settings
from test_fit_logs import RECORDS
from test_terminal_logs import LOG, TRIAL

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


def call(identity: str, where: str) -> dict:
    return {"id": identity, "type": "function", "function": {"name": "look", "arguments": f'{{"where": "{where}"}}'}}


CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "compare left and right", "name": "ann"},
    {"role": "assistant", "content": "I look at both.", "tool_calls": [call("a", "left"), call("b", "right")]},
    {"role": "tool", "tool_call_id": "b", "content": "blue"},
    {"role": "tool", "tool_call_id": "a", "content": "red"},
    {"role": "assistant", "content": "They differ."},
    {"role": "user", "content": "thanks"},
]


def write(path: Path, **record) -> Path:
    path.write_text(json.dumps({"messages": CHAT, "success": True, "task": "t", **record}))
    return path


# -- messages -----------------------------------------------------------------------------------------------------


def test_an_imported_chat_comes_back_as_it_was_also_from_parquet(tmp_path):
    (episode,), _ = import_logs(write(tmp_path / "log.jsonl", tools=TOOLS), "openai-jsonl")
    write_episodes(tmp_path / "e.parquet", [episode])
    for kept in (episode, *read_episodes(tmp_path / "e.parquet")):
        assert conversation_of(kept) == CHAT and json.loads(kept.tools) == TOOLS
        assert [message.role for message in kept.steps[1].messages] == ["tool", "tool"]
        assert kept.steps[0].choice.reply.content == "I look at both."
        assert kept.steps[0].choice.action.text.count("look") == 2  # the action is the calls alone, as before


def test_parts_that_are_no_text_are_named_and_what_is_absent_stays_absent():
    picture = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": "data:..."}}]
    assert message_of({"role": "user", "content": picture}).content == "what is it?\n[image_url]"
    assert message_of({"role": "assistant", "content": None}).content is None
    assert message_of({"content": ""}).role == "assistant"


def test_equal_calls_are_equal_actions_whatever_their_ids():
    one, other = (Action("look {}", (ToolCall("look", "{}", identity),)) for identity in ("a", "b"))
    assert one == other and hash(one) == hash(other) and one != Action("look {}", (ToolCall("look", "{} "),))


def test_an_episode_without_a_chat_says_so(tmp_path):
    (episode,), _ = import_logs(write(tmp_path / "log.jsonl"), "openai-jsonl")
    step = episode.steps[0]
    bare = replace(episode, steps=(replace(step, choice=replace(step.choice, reply=None)),))
    with pytest.raises(ValueError, match="t step 0 keeps no messages"):
        conversation_of(bare)


def test_episodes_of_before_messages_were_kept_still_load(tmp_path):
    (episode,), _ = import_logs(write(tmp_path / "log.jsonl"), "openai-jsonl")
    old = json.loads(encode(episode))
    del old["tools"], old["closing"]
    for step in old["steps"]:
        del step["messages"], step["choice"]["reply"]
        for tool_call in step["choice"]["action"]["tool_calls"]:
            del tool_call["id"]
    found = decode(json.dumps(old).encode())
    assert [step.choice.action for step in found.steps] == [step.choice.action for step in episode.steps]
    assert (found.tools, found.closing, found.steps[0].messages, found.steps[0].choice.reply) == ("", (), (), None)


REPLIES = [
    {"role": "assistant", "content": "I look.", "tool_calls": [call("a", "left"), call("b", "right")]},
    {"role": "assistant", "content": "They differ."},
]


def served(host, tmp_path: Path, *, redact: bool, reward: float = 1.0) -> Path:
    """A session of two steps by a client that sends back what it was answered; its ledger."""
    small, teacher = Model("small-1"), Model("teacher-1")
    small.reply = teacher.reply = lambda body: {
        "id": "x", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{"index": 0, "message": REPLIES[len(body["messages"]) > 2], "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }  # fmt: skip
    ledger = tmp_path / "ledger.db"
    auth = {"authorization": f"Bearer {KEY}", "x-r2v-session-id": "s"}
    config = settings(host(small), host(teacher), ledger, route__k=1, store__redact=redact)
    with gateway(config) as (url, _), httpx.Client(base_url=url, headers=auth, timeout=20) as client:
        messages = CHAT[:2]
        for results in (CHAT[3:5], []):
            done = client.post("/v1/chat/completions", json={"model": "r2v", "messages": messages, "tools": TOOLS})
            assert done.status_code == 200, done.text
            messages = [*messages, done.json()["choices"][0]["message"], *results]
        assert client.post("/v1/outcomes", json={"session_id": "s", "reward": reward}).status_code == 200
    return ledger


def test_a_served_session_comes_back_as_the_client_held_it(host, tmp_path):
    (episode,), _ = import_logs(served(host, tmp_path, redact=False), "ledger")
    assert conversation_of(episode) == [*CHAT[:2], REPLIES[0], *CHAT[3:5], REPLIES[1]]
    assert json.loads(episode.tools) == TOOLS


def test_a_redacted_ledger_keeps_no_messages(host, tmp_path):
    (episode,), _ = import_logs(served(host, tmp_path, redact=True), "ledger")
    assert [step.choice.reply for step in episode.steps] == [None, None] and episode.tools == ""
    assert not any(step.messages for step in episode.steps)
    text = b"".join(path.read_bytes() for path in tmp_path.glob("ledger.db*"))
    assert b"look" not in text and b"differ" not in text and b"compare" not in text and b"brief" not in text


# -- outcomes -----------------------------------------------------------------------------------------------------

BOUND = [
    (0.5, True),
    (0.49, False),
    (True, True),
    (False, False),
    (1, True),
    (0, False),
    ("0.7", True),
    ("0", False),
    ("Yes", True),
    ("failed", False),
]


@pytest.mark.parametrize(("value", "success"), BOUND)
@pytest.mark.parametrize("key", ["success", "reward", "score"])
def test_a_half_is_solved_and_less_is_not(tmp_path, key, value, success):
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps({"messages": CHAT, key: value, "task": "t"}))
    (episode,), _ = import_logs(log, "openai-jsonl")
    assert episode.success is success and episode.final.reward == float(success)


def test_outcomes_of_a_file_have_the_same_bound_and_go_first(tmp_path):
    log, outcomes = tmp_path / "log.jsonl", tmp_path / "outcomes.json"
    names = [f"t{i}" for i in range(len(BOUND))]
    log.write_text("\n".join(json.dumps({"messages": CHAT, "success": True, "task": name}) for name in names))
    outcomes.write_text(json.dumps(dict(zip(names, [value for value, _ in BOUND], strict=True))))
    episodes, _ = import_logs(log, "openai-jsonl", outcomes)
    assert [episode.success for episode in episodes] == [success for _, success in BOUND]


def test_outcomes_by_task_are_of_one_model_and_may_be_words(tmp_path, refused):
    log, outcomes = tmp_path / "log.jsonl", tmp_path / "outcomes.json"
    log.write_text("\n".join(json.dumps({"messages": CHAT, "success": True, "task": "t", "model": m}) for m in "ab"))
    outcomes.write_text('{"resolved_ids": ["t"]}')
    told = "has one outcome of the task 't', which a and b played: give logs of one model"
    assert told in refused("import", log, tmp_path / "out.parquet", "--format", "openai-jsonl", "--outcomes", outcomes)
    outcomes.write_text('{"b/t": "not_resolved", "t": "resolved", "other": null}')
    episodes, _ = import_logs(log, "openai-jsonl", outcomes)
    assert {episode.agent: episode.success for episode in episodes} == {"a": True, "b": False}


@pytest.mark.parametrize(("reward", "success"), [(0.5, True), (0.49, False)])
def test_a_ledgers_outcome_has_the_same_bound_in_its_drift_check_too(host, tmp_path, reward, success):
    ledger = served(host, tmp_path, redact=True, reward=reward)
    (episode,), unknown = import_logs(ledger, "ledger")
    assert (episode.success, episode.final.reward, unknown) == (success, reward, 0)
    opened = Ledger(ledger)
    opened._db.execute("UPDATE steps SET score = 0.3, score_kind = 'risk'")
    steps, sessions = opened.scores_and_failures(10, "risk")
    opened.close()
    assert (steps, sessions) == ([(0.3, float(not success))] * 2, 1)


def test_a_session_without_an_outcome_is_left_out_and_counted(host, tmp_path):
    ledger = served(host, tmp_path, redact=True)
    opened = Ledger(ledger)
    opened._db.execute("DELETE FROM outcomes")
    opened.close()
    assert import_logs(ledger, "ledger") == ([], 1)


def test_the_saved_network_is_the_mean_of_those_that_were_fitted(monkeypatch, tmp_path):
    """ReLU written as GELU, three networks as one: scikit-learn's own logits, also after the folder is read again."""
    from r2v.core.features import FEATURES
    from r2v.learning import tabular
    from r2v.learning.labels import Rows
    from r2v.learning.linear import standardisation

    rng = np.random.default_rng(0)
    names, n = FEATURES[:6], 600
    x, present = rng.normal(size=(n, 6)), rng.random((n, 6)) < 0.9
    y = (rng.random(n) < 1 / (1 + np.exp(-3 * x[:, 0] * x[:, 1]))).astype(float)
    rows = Rows(x, present, y, np.zeros(n, dtype=int), np.arange(n))
    logits = []
    mean, std = standardisation(x, present)
    z = np.where(present, (x - mean) / std, 0.0)
    whole = tabular._network

    def kept(*args):
        (w0, b0), (w1, b1) = layers = whole(*args)
        logits.append((np.maximum(z @ w0 + b0, 0) @ w1 + b1)[:, 0])
        return layers

    monkeypatch.setattr(tabular, "_network", kept)
    model = tabular.fit_risk(rows, rows, names, seed=1)
    R2V(risk=model).save(tmp_path)
    assert np.abs(model.logit(x, present) - np.mean(logits, axis=0)).max() < 1e-3
    assert (load_router(tmp_path).risk.risk(x, present) == model.risk(x, present)).all()
    assert auroc(model.risk(x, present), y) > 0.75  # the product of two features: no linear model could


# -- AgentDojo, InterCode, WorkBench, and what belongs together ---------------------------------------------------------

DOJO = {
    "setting": "gpt-x-tool_filter", "model": "gpt-x", "defense": "tool_filter", "suite": "slack", "user_task": "user_task_3",
    "injection_task": "injection_task_3", "attack": "important_instructions", "success": False, "security_flag": True,
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "greet everybody"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "users", "arguments": {"channel": "g\u00e9n"}}}]},
        {"role": "tool", "content": "", "tool_call_id": "a", "tool_call": {}, "error": "ValueError: no channel"},
        {"role": "assistant", "content": "There is nobody.", "tool_calls": []},
    ],
}  # fmt: skip
SQL = {
    "env": "sql", "model": "gpt-3.5", "setting": "ic_sql_multiturn_gpt-3.5-10_turns_handicap",
    "dataset": "./data/spider/dev_spider.json", "task": 7, "query": "How many cars?", "hardness": "easy", "max_reward": 1.0,
    "success": True,
    "steps": [
        {"action": "SELECT count(*) FROM autos", "reward": 0.0, "valid": False,
         "observation": "Error executing query: Table 'car_1.autos' doesn't exist"},
        {"action": "SELECT count(*) FROM cars", "observation": "[(5,)]", "reward": 1.0, "valid": True},
    ],
}  # fmt: skip
OFFICE = {
    "domain": "email", "model": "gpt-x", "tools_in_prompt": "all", "query": "mail Ann", "template": "mail {name}",
    "calls": [], "success": True, "error": None,
    "steps": [
        {"tool": "email.send", "input": {"to": "ann"}, "thought": "I write.", "observation": "sent"},
        {"tool": None, "input": None, "thought": None, "observation": None},
    ],
}  # fmt: skip
WALK = {
    "task": "pick-Mug/trial_1", "model": "m", "iteration": "D0", "success": False,
    "intro": "You see a shelf 1.\nYour task is to: put a mug in shelf.",
    "steps": [{"thoughts": [], "action": "go to shelf 1", "observation": "On the shelf 1, you see nothing."}],
}  # fmt: skip
MINT = {"task": "gsm8k/1", "model": "m", "teacher": None, "feedback_kind": None, "success": True, "steps": [{"action": "5"}]}
BOOK = {
    "benchmark": "tau-bench airline", "task": 3, "model": "m", "success": True, "user_first": "Hi!",
    "instruction": "You are mia_li_3668. You want to fly.",
    "steps": [{"action": "Where to?", "tool": None, "arguments": None, "observation": "To Seattle.", "from": "user"}],
}  # fmt: skip


def lines(path: Path, *records: dict) -> Path:
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def test_an_attacked_episode_of_agentdojo_is_a_cell_of_its_own(tmp_path):
    clean = {**DOJO, "attack": None, "injection_task": None, "success": True}
    lost = {**DOJO, "user_task": "user_task_4", "messages": []}
    (attacked, other, empty), unknown = import_logs(lines(tmp_path / "d.jsonl", DOJO, clean, lost), "agentdojo")
    assert unknown == 0
    assert (attacked.task.id, attacked.task.family) == ("slack/user_task_3", "slack/user_task_3")
    assert (attacked.agent, attacked.success) == ("gpt-x-tool_filter", False)
    assert (attacked.perturbation, other.perturbation) == ("important_instructions", "none")
    first, second = attacked.steps
    assert first.choice.action.tool_calls == (ToolCall("users", '{"channel": "g\u00e9n"}'),)
    assert second.observation.text == "ValueError: no channel"  # the agent read the error, its content is empty
    assert (empty.success, empty.steps, empty.goal) == (False, (), "")


def test_an_agent_of_intercode_reads_a_reward_only_where_it_was_shown_one(tmp_path):
    asked = "react_10_turns"
    react = {**SQL, "setting": f"ic_sql_{asked}", "steps": [{**step, "reward": 0} for step in SQL["steps"]]}
    ended = {
        **react,
        "task": 8,
        "success": False,
        "steps": [SQL["steps"][1]] * 10 + [{**SQL["steps"][1], "action": "submit"}],
    }
    refusal = {"action": "blocked", "observation": None, "reward": 0, "valid": None}
    blocked = {**SQL, "task": 9, "success": False, "steps": [SQL["steps"][0], refusal]}
    never = {**SQL, "setting": "ic_sql_plan_solve", "dataset": None, "task": None, "query": None, "steps": []}
    episodes, unknown = import_logs(lines(tmp_path / "i.jsonl", SQL, react, ended, blocked, never), "intercode")
    assert unknown == 1
    shown, hidden, forced, refused = episodes
    assert shown.task.id == hidden.task.id == "sql/dev_spider/7"
    assert [episode.agent for episode in (shown, hidden)] == [
        "gpt-3.5 multiturn 10 turns handicap",
        "gpt-3.5 react 10 turns",
    ]
    error = "Error executing query: Table 'car_1.autos' doesn't exist"
    assert [step.observation.text for step in shown.steps] == ["How many cars?", f"{error}\nReward: 0.0"]
    assert [step.observation.text for step in hidden.steps] == ["How many cars?", error]
    assert shown.final.text == hidden.final.text == "[(5,)]"  # the last reward is the outcome: nobody read it
    assert len(forced.steps) == 10 and forced.steps[-1].choice.action.text != "submit"
    assert len(refused.steps) == 1 and refused.final.text == error


@pytest.mark.parametrize(
    ("setting", "model", "agent"),
    [
        ("ic_bash_react_10_turns_fs_2", "gpt-3.5", "gpt-3.5 react 10 turns"),
        ("ic_bash_multiturn_chat-bison-001_10_turns_fs_1", "chat-bison-001", "chat-bison-001 multiturn 10 turns"),
        ("ic_bash_plan_solve_fs_1", "gpt-3.5", "gpt-3.5 plan solve"),
        ("ic_bash_multiturn_gpt-4_7_turns", "gpt-3.5", "gpt-3.5 multiturn gpt-4 7 turns"),
    ],
)
def test_who_acted_in_intercode_is_the_model_and_how_it_was_asked(tmp_path, setting, model, agent):
    record = {**SQL, "env": "bash", "dataset": "./data/nl2bash/nl2bash_fs_2.json", "setting": setting, "model": model}
    (episode,), _ = import_logs(lines(tmp_path / "i.jsonl", record), "intercode")
    assert (episode.task.id, episode.task.family, episode.agent) == ("bash/nl2bash_fs_2/7", "bash/nl2bash_fs_2/7", agent)


def test_the_data_base_of_a_sql_task_shows_in_what_its_agents_saw():
    def saw(task: int, *pairs: tuple[str, str]) -> dict:
        return {
            **SQL,
            "task": task,
            "steps": [{"action": a, "observation": o, "reward": 0, "valid": True} for a, o in pairs],
        }

    tables = "[('cars',), (b'Makers',)]"
    records = [
        saw(1, ("SELECT 1 FROM x", "Error: Table 'car_1.x' doesn't exist"), ("show tables;", tables)),
        saw(2, ("execute[SHOW TABLES]", tables)),
        saw(3, ("SELECT a FROM makers JOIN cars", "[(1,)]")),
        saw(4, ("SELECT a FROM elsewhere", "[(1,)]")),
        saw(5, ("SELECT 1", "[(1,)]")),
        {"env": "sql", "task": 6},
    ]
    assert databases(records) == {1: "car_1", 2: "car_1", 3: "car_1"}


def test_a_step_of_workbench_is_a_call_and_what_was_not_read_is_left_out(tmp_path):
    broken = {**OFFICE, "query": "mail Bob", "steps": None, "error": "Context window exceeded", "success": False}
    (episode, lost), _ = import_logs(lines(tmp_path / "w.jsonl", OFFICE, broken), "workbench")
    assert (episode.task.id, episode.task.family, episode.agent) == ("email/mail Ann", "mail {name}", "gpt-x all")
    first, second = episode.steps
    assert first.choice.action.tool_calls == (ToolCall("email.send", '{"to": "ann"}'),)
    assert (first.choice.reply.content, second.observation.text, episode.goal) == ("I write.", "sent", "mail Ann")
    assert second.choice.action.text == "" and not second.choice.action.tool_calls
    assert (lost.success, lost.steps, lost.final.text) == (False, (), "mail Bob")


def test_one_user_is_one_group_under_every_name_of_a_benchmark_and_a_task_is_never_in_two(tmp_path):
    call = {
        "action": None,
        "tool": "get_user",
        "arguments": '{"user_id": "mia_li_3668"}',
        "observation": "{}",
        "from": "tool",
    }
    other = {**BOOK, "benchmark": "tau2-bench airline", "task": 9, "instruction": None, "steps": [*BOOK["steps"], call]}
    unseen = {**BOOK, "instruction": None}
    episodes, _ = import_logs(lines(tmp_path / "t.jsonl", unseen, BOOK, other), "tau-bench")
    assert [episode.task.family for episode in episodes] == ["mia_li_3668"] * 3
    (alone,), _ = import_logs(lines(tmp_path / "u.jsonl", unseen), "tau-bench")
    assert alone.task.family == alone.task.id == "tau-bench airline/3"
    (walked,), _ = import_logs(lines(tmp_path / "k.jsonl", WALK), "knowagent-alfworld")
    assert walked.task.family == "pick-Mug"


@pytest.mark.parametrize(("name", "record"), [("agentdojo", DOJO), ("intercode", SQL), ("workbench", OFFICE)])
def test_records_that_lack_something_are_one_line_that_names_the_place(tmp_path, name, record):
    for key in ("success", "query", "suite", "steps", "messages"):
        lacking = {k: v for k, v in record.items() if k != key}
        log = lines(tmp_path / "log.jsonl", record, lacking)
        if key == "success":
            assert import_logs(log, name)[1] == 1
        elif key in record:
            with pytest.raises(ArtifactError, match=rf"log\.jsonl:2 is not {name} \(it lacks the key '{key}'\)$"):
                import_logs(log, name)


def test_what_is_without_an_outcome_is_kept_on_demand(tmp_path):
    log = lines(tmp_path / "log.jsonl", {"messages": CHAT, "task": "t"}, {"messages": CHAT, "task": "u", "success": True})
    (only,), unknown = import_logs(log, "openai-jsonl")
    episodes, again = import_logs(log, "openai-jsonl", keep_unknown=True)
    assert (only.task.id, unknown, again) == ("u", 1, 1)
    assert [(e.task.id, e.success, e.final.success, e.final.reward) for e in episodes] == [
        ("t", None, None, None), ("u", True, True, 1.0)
    ]  # fmt: skip
    write_episodes(tmp_path / "e.parquet", episodes)
    assert import_logs(tmp_path / "e.parquet", "ledger", keep_unknown=True) == (episodes, 1)
    assert import_logs(tmp_path / "e.parquet", "ledger") == (episodes[1:], 1)


def test_contexts_of_all_steps_are_those_of_each_step_alone():
    """Also where a late text makes the whole long: what is kept of the early ones at early steps does not change."""
    messages = [{"role": "system", "content": "s"}]
    for t in range(6):
        long = "x" * (CLIP_TOTAL if t == 3 else 900)
        messages += [{"role": "assistant", "content": f"a{t}"}, {"role": "user", "content": long}, *CHAT[:1], *CHAT[2:4]]
    request = parse(json.dumps({"messages": messages}).encode())
    replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    alone = [context_of(replace(request, messages=request.messages[:at]), HORIZON) for at in replies]
    assert contexts_of(request, HORIZON) == [*alone, context_of(request, HORIZON)]
    assert alone[0].goal == "" and alone[-1].goal


def test_lines_are_read_one_by_one_from_every_kind_of_file(tmp_path):
    text = '{"a": 1}\n\n{"a": "\u2028"}\n{oops\n{}\n'
    (tmp_path / "a.jsonl").write_text(text)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as packed:
        packed.write(text)
    with lzma.open(tmp_path / "a.jsonl.xz", "wt") as packed:
        packed.write(text)
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.xz"):
        read = objects(tmp_path / name)
        assert next(read) == (f"{tmp_path / name}:1", {"a": 1})  # the bad line is not reached
        assert next(read) == (f"{tmp_path / name}:3", {"a": "\u2028"})
        with pytest.raises(ArtifactError, match=rf"{name}:4 is not JSON"):
            next(read)
    with gzip.open(tmp_path / "whole.jsonl.gz", "wt") as packed:
        packed.write('{"a": 1}\n' * 9)
    (tmp_path / "cut.jsonl.gz").write_bytes((tmp_path / "whole.jsonl.gz").read_bytes()[:-12])
    with pytest.raises(ArtifactError, match=r"cut\.jsonl\.gz cannot be read"):
        list(objects(tmp_path / "cut.jsonl.gz"))


# -- what is wrong in a file ------------------------------------------------------------------------------------------

GOOD = {"messages": CHAT, "task": "t", "success": True}
BLOCKS = [
    {"role": "user", "content": "look"},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "look", "input": {"where": "left"}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "blue"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "It is blue."}]},
]


def test_an_anthropic_record_after_the_first_ones_is_not_read_as_openais(tmp_path):
    plain = {**GOOD, "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
    log = lines(tmp_path / "log.jsonl", *[plain] * 5, {**GOOD, "messages": BLOCKS})
    assert detect(log) == "openai-jsonl"
    with pytest.raises(
        ArtifactError, match=r"log\.jsonl:6 is not openai-jsonl \(it has blocks of the type tool_.*anthropic"
    ):
        import_logs(log, "openai-jsonl")
    with pytest.raises(ArtifactError, match=r"log\.jsonl:6 is not mapped .*blocks of the type"):
        import_logs(log, mapped(mapping_of(["task=task", "success=success", "messages=messages"])))
    episodes, _ = import_logs(log, "anthropic-jsonl")
    assert len(episodes[-1].steps) == 2 and episodes[-1].steps[0].choice.action.tool_calls[0].name == "look"
    lines(log, {**GOOD, "messages": BLOCKS}, GOOD)
    with pytest.raises(ArtifactError, match=r"log\.jsonl:2 is not anthropic-jsonl \(it has tool calls as OpenAI"):
        import_logs(log, detect(log))


def test_each_file_of_a_folder_is_looked_at(tmp_path):
    lines(tmp_path / "a.jsonl", {**GOOD, "messages": CHAT[1:2]})
    (tmp_path / "README.txt").write_text("what this is")
    (tmp_path / "aa.jsonl").touch()  # begun, and nothing logged yet
    assert detect(tmp_path) == "openai-jsonl"
    lines(tmp_path / "b.jsonl", {**GOOD, "messages": BLOCKS})
    assert detect(tmp_path) == "anthropic-jsonl"
    lines(tmp_path / "c.jsonl", DOJO)
    with pytest.raises(ArtifactError, match=r"of several formats \(.*c\.jsonl: agentdojo, .*b\.jsonl: anthropic-jsonl, "):
        detect(tmp_path)
    (tmp_path / "c.jsonl").unlink()
    (tmp_path / "config.json").write_text('{"seed": 1}')
    with pytest.raises(
        ArtifactError, match=r"config\.json:1 is in no format that is known; a record has the keys seed;.*take"
    ):
        detect(tmp_path)
    for name in "ab":
        (tmp_path / f"{name}.jsonl").unlink()
    (tmp_path / "d.log").write_text(LOG)
    assert detect(tmp_path) == "terminal-log"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "2", "-1", "100", '"nan"', '"perhaps"', "9" * 400])
@pytest.mark.parametrize("key", ["success", "reward"])
def test_what_is_no_outcome_is_an_error_that_names_the_line(tmp_path, key, value):
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps(GOOD) + "\n" + json.dumps({"messages": CHAT, key: "VALUE"}).replace('"VALUE"', value))
    with pytest.raises(ArtifactError, match=r"log\.jsonl:2 is not openai-jsonl \(its outcome is .*a number from 0 to 1"):
        import_logs(log, "openai-jsonl")


def test_sessions_without_steps_are_told(tmp_path):
    log = lines(tmp_path / "log.jsonl", GOOD, {**GOOD, "messages": CHAT[:2]})
    done = CliRunner().invoke(cli, ["import", str(log), str(tmp_path / "e.parquet")])
    assert "no steps 1 session without a message of the assistant" in done.output and "2 episodes, " in done.output


def test_a_last_line_that_is_cut_off_is_left_out_and_told_once(tmp_path, caplog):
    log = tmp_path / "log.jsonl"
    whole = json.dumps({**GOOD, "task": "\u00e9"}, ensure_ascii=False).encode()
    for cut in (whole[:40], whole[: whole.index(b"\xc3") + 1], b"{oops\n\n"):
        log.write_bytes(whole + b"\n" + cut)
        caplog.clear()
        episodes, _ = import_logs(log, detect(log))
        (record,) = caplog.records
        assert len(episodes) == 1 and record.getMessage().startswith(
            f"1 record left out: the last line, {log}:2 is not JSON"
        )
    for text in (whole + b"\n{oops\n" + whole, b"{oops"):
        log.write_bytes(text)
        with pytest.raises(ArtifactError, match=r"log\.jsonl:[12] is not JSON"):
            import_logs(log, "openai-jsonl")


ONE = json.dumps(GOOD)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.jsonl", f"{ONE}\n{ONE}".encode("utf-16"), r"a\.jsonl:1 cannot be read: it is not in UTF-8; convert"),
        ("a.jsonl", f"{ONE}\n".encode() + '{"a": "\u00e9"}\n'.encode("latin-1"), r"a\.jsonl:2 cannot be read: it is not in"),
        ("a.jsonl.bz2", b"BZh9", r"only \.gz and \.xz are unpacked"),
        ("a.zst", b"x", r"only \.gz and \.xz are unpacked"),
        ("a.tar.gz", b"x", r"only \.gz and \.xz are unpacked, and no archives"),
        ("a.txt", f"{ONE}\n{ONE}\n".encode(), r"a\.txt holds JSON lines; give it a name that ends in \.jsonl"),
        ("a", f"{ONE}\n{ONE}\n".encode(), "a holds JSON lines"),
        ("a.jsonl", f'{ONE}\n{{"n": {"9" * 9999}}}'.encode(), r":2 is not JSON \(an integer of thousands of digits\)"),
        ("a.jsonl", f"{ONE}\n[]".encode(), r"a\.jsonl:2 is in no format that is known; a record is an array, no object"),
        ("a.jsonl", f"{ONE}\nnull".encode(), r"a\.jsonl:2 is in no format that is known; a record is null, no object"),
        ("a.jsonl", json.dumps({**GOOD, "messages": []}).encode(), "`messages` is empty; name it"),
        ("a.jsonl", json.dumps({**GOOD, "messages": "hello"}).encode(), "`messages` is a string, no array"),
        ("a.jsonl", json.dumps({**GOOD, "messages": [*CHAT, {}]}).encode(), "its message 8 has no `role`"),
        ("a.jsonl", json.dumps({**GOOD, "messages": [*CHAT, 1]}).encode(), "its message 8 is a number, no object"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read_say_what_to_do(tmp_path, name, content, what):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=what):
        detect(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[]", "it is an array"), ("null", "it is null"), ("{}", "it lacks the key 'messages'"),
        (ONE.replace('"tool"', '"human"', 1), r"messages\[3\]\.role: the role must be one of system, .*, not 'human'"),
        (ONE.replace('"thanks"', "7"), r"messages\[6\]\.content: Expected"),
        (ONE.replace("thanks", "\\ud800"), "half a character"),
    ],
)  # fmt: skip
def test_records_that_are_wrong_are_told_in_plain_words(tmp_path, text, what):
    (tmp_path / "log.jsonl").write_text(f"{ONE}\n{text}\n{ONE}")
    with pytest.raises(ArtifactError, match=rf"log\.jsonl:2 is not openai-jsonl \({what}"):
        import_logs(tmp_path / "log.jsonl", "openai-jsonl")


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    (tmp_path / "log.jsonl").write_bytes(b"\xef\xbb\xbf" + ONE.encode())
    assert len(import_logs(tmp_path / "log.jsonl", detect(tmp_path / "log.jsonl"))[0]) == 1


# -- detection ----------------------------------------------------------------------------------------------------------

FAILURE = {
    "question": "how many rooms?", "question_ID": "q", "is_correct": False, "mistake_step": "1", "mistake_agent": "B",
    "history": [{"role": "user", "name": name, "content": f"{name} counts"} for name in "AB"], "ground_truth": "7",
}  # fmt: skip
FOUND = {
    **RECORDS,
    "terminal-log": ("a.log", LOG),
    "terminalbench": ("t.jsonl", json.dumps(TRIAL)),
    "knowagent-alfworld": ("k.jsonl", json.dumps(WALK)),
    "mint": ("m.jsonl", json.dumps(MINT)),
    "agentdojo": ("d.jsonl", json.dumps(DOJO)),
    "intercode": ("i.jsonl", json.dumps(SQL)),
    "workbench": ("w.jsonl", json.dumps(OFFICE)),
    "who-and-when": ("1.json", json.dumps(FAILURE)),
}


@pytest.mark.parametrize("kind", [name for name in BUILT_IN if name not in ("ledger", "episodes")])
def test_every_format_is_found_by_looking_in_a_file_and_in_a_folder(tmp_path, kind):
    name, text = FOUND[kind]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).write_text(text)
    assert detect(tmp_path / "folder" / name) == detect(tmp_path / "folder") == kind
    if kind != "terminal-log":
        record = json.loads(text)
        record = record[0] if isinstance(record, list) else record
        others = [log_format(other) for other in BUILT_IN if other not in ("ledger", "episodes", kind)]
        assert not any(other.recognises(record) for other in others)  # whatever their order


def test_variants_of_formats_are_found_too(host, tmp_path):
    for number, (kind, record) in enumerate([
        ("tau-bench", BOOK),
        ("tau-bench", {"simulations": [{"task_id": "t", "reward_info": {"reward": 1.0}, "messages": CHAT}]}),
        ("mini-swe-agent", {"messages": CHAT, "info": {}}),
        ("openai-jsonl", {"messages": CHAT, "task": "t", "info": {"reward": 1}}),
        ("openai-jsonl", {"messages": CHAT, "tools": TOOLS}),
        ("anthropic-jsonl", {"messages": [{"role": "user", "content": "x"}], "tools": [{"name": "a", "input_schema": {}}]}),
    ]):  # fmt: skip
        (tmp_path / f"{number}.json").write_text(json.dumps(record))
        assert detect(tmp_path / f"{number}.json") == kind
    (tmp_path / "two.jsonl").write_text(RECORDS["anthropic-jsonl"][1] + "\n" + json.dumps({"messages": CHAT[1:2]}))
    assert detect(tmp_path / "two.jsonl") == "anthropic-jsonl"
    (episode,), _ = import_logs(write(tmp_path / "log.jsonl"), "openai-jsonl")
    write_episodes(tmp_path / "e.parquet", [episode])
    assert detect(tmp_path / "e.parquet") == "episodes"
    assert detect(served(host, tmp_path, redact=True)) == "ledger"
    assert detect(Path("yoonholee/terminalbench-trajectories@train[:5]")) == "terminalbench"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"id": 1, "rows": 2}', r"in no format that is known; a record has the keys id, rows; .*--map task="),
        ("[1]", "a record is a number, no object"),
        ('{"messages": 3}', "has the keys messages; `messages` is a number, no array"),
        ("\n", "holds no records"),
        ('{"steps": [1], "messages": [{"role": 1}, 2]}', "in no format"),
        (json.dumps(SQL) + "\n" + json.dumps(DOJO), r"of several formats \(agentdojo, intercode\)"),
        ("{oops", r"log\.jsonl:1 is not JSON"),
    ],
)
def test_what_is_in_no_format_is_one_line_that_says_what_was_seen(tmp_path, text, what):
    (tmp_path / "log.jsonl").write_text(text if text != "[1]" else "1")
    with pytest.raises(ArtifactError, match=what) as told:
        detect(tmp_path / "log.jsonl")
    assert "\n" not in str(told.value)


def test_a_path_without_logs_is_told(tmp_path):
    with pytest.raises(ArtifactError, match=r"none\.jsonl does not exist"):
        detect(tmp_path / "none.jsonl")
    with pytest.raises(ArtifactError, match=r"holds no \.json or"):
        detect(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"\xff\xfe")
    with pytest.raises(ArtifactError, match=r"x\.parquet is no Parquet file"):
        detect(tmp_path / "x.parquet")
    (tmp_path / "run" / "1-collect").mkdir(parents=True)
    (tmp_path / "run" / "settings.yaml").touch()
    with pytest.raises(ArtifactError, match=r"run is a run; give .*/run/6-rollout/router\.parquet"):
        detect(tmp_path / "run")


# -- a mapping ----------------------------------------------------------------------------------------------------------

OWN_CHAT = {"id": {"n": 4}, "result": {"status": "Passed"}, "chats": [CHAT], "fns": TOOLS, "by": "me", "team": 7}
OWN_STEPS = {
    "case": "c1", "verdict": "not_resolved", "ask": "find it", "engine": "e-1",
    "trace": [
        {"say": "I look.", "call": {"fn": "look", "args": {"where": "left"}}, "got": "blue"},
        {"say": "It is blue."},
    ],
}  # fmt: skip
CHAT_MAP = ["task=id.n", "success=result.status", "messages=chats.0", "tools=fns", "model=by", "group=team"]
STEPS_MAP = [
    "task=case", "success=verdict", "goal=ask", "steps=trace", "action=say", "observation=got", "tool=call.fn",
    "arguments=call.args", "model=engine",
]  # fmt: skip


def test_a_mapping_reads_chats_and_steps(tmp_path):
    log = lines(tmp_path / "c.jsonl", OWN_CHAT)
    (chat,), _ = import_logs(log, mapped(mapping_of(CHAT_MAP)))
    assert (chat.task.id, chat.task.family, chat.agent, chat.success) == ("4", "7", "me", True)
    assert conversation_of(chat) == CHAT and json.loads(chat.tools) == TOOLS
    (steps,), _ = import_logs(lines(tmp_path / "s.jsonl", OWN_STEPS), mapped(mapping_of(STEPS_MAP)))
    assert (steps.task.id, steps.agent, steps.success, steps.goal) == ("c1", "e-1", False, "find it")
    first, second = steps.steps
    assert first.choice.action.tool_calls == (ToolCall("look", '{"where": "left"}'),)
    assert (second.observation.text, second.choice.action.text) == ("blue", "It is blue.")


@pytest.mark.parametrize(
    ("value", "success"),
    [(True, True), (0.5, True), (0.4, False), (0, False), ("PASSED", True), (" failed ", False), ("Resolved", True),
     ("unresolved", False), (None, None)],
)  # fmt: skip
def test_outcomes_in_other_words(tmp_path, value, success):
    log = lines(tmp_path / "c.jsonl", {**OWN_CHAT, "result": {"status": value}})
    (episode,), unknown = import_logs(log, mapped(mapping_of(CHAT_MAP)), keep_unknown=True)
    assert episode.success is success and unknown == (success is None)


@pytest.mark.parametrize(
    ("pairs", "what"),
    [
        (["task"], "--map task: write KEY=PATH"),
        (["task=a", "task=b"], "--map task is given twice"),
        (["tasks=a"], "--map has no key tasks; there are task, success"),
        (["task=a", "success=b"], "either messages=PATH"),
        (["task=a", "messages=b"], "--map success=PATH is missing: records with messages"),
        (["task=a", "success=b", "steps=c", "goal=d"], "--map action=PATH is missing"),
        (["task=a", "success=b", "messages=c", "goal=d"], "--map goal does not go with messages"),
    ],
)
def test_a_mapping_that_is_none_is_one_line(pairs, what):
    with pytest.raises(SettingsError, match=what):
        mapped(mapping_of(pairs))


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"result": {"state": "x"}}, r"nothing at result\.status: no status; there are state\)"),
        ({"result": {"status": "so so"}}, "its outcome is 'so so'"),
        ({"chats": []}, r"nothing at chats\.0: no 0"),
        ({"chats": [3]}, "is not mapped"),
    ],
)
def test_a_record_that_the_mapping_does_not_fit_is_named(tmp_path, changed, what):
    log = lines(tmp_path / "c.jsonl", OWN_CHAT, {**OWN_CHAT, **changed})
    with pytest.raises(ArtifactError, match=rf"c\.jsonl:2 is not mapped .*{what}" if "mapped" not in what else what) as told:
        import_logs(log, mapped(mapping_of(CHAT_MAP)))
    assert "\n" not in str(told.value)


def test_only_the_last_step_may_have_led_to_nothing(tmp_path):
    log = lines(tmp_path / "s.jsonl", {**OWN_STEPS, "trace": [{"say": "x"}, OWN_STEPS["trace"][1]]})
    with pytest.raises(ArtifactError, match="nothing at got"):
        import_logs(log, mapped(mapping_of(STEPS_MAP)))


def test_the_commands_find_the_format_and_take_a_mapping(tmp_path):
    out = tmp_path / "e.parquet"

    def told(*arguments: str):
        return CliRunner().invoke(cli, ["import", *arguments])

    done = told(str(lines(tmp_path / "d.jsonl", DOJO)), str(out))
    assert done.exit_code == 0 and "format   agentdojo" in done.output, done.output
    assert [episode.agent for episode in read_episodes(out)] == ["gpt-x-tool_filter"]
    own_log = lines(tmp_path / "c.jsonl", OWN_CHAT)
    done = told(str(own_log), str(out), *(part for pair in CHAT_MAP for part in ("--map", pair)))
    assert done.exit_code == 0 and [episode.agent for episode in read_episodes(out)] == ["me"]
    for arguments in ([], ["--map", "tasks=x"], ["--map", "task=x", "--format", "mint"]):
        assert told(str(own_log), str(out), *arguments).exit_code != 0


# -- the real data ------------------------------------------------------------------------------------------------------

REAL = {
    "agentdojo": "agentdojo/episodes", "intercode": "intercode/episodes", "workbench": "workbench/episodes",
    "tau-bench": "tau_bench/episodes", "knowagent-alfworld": "knowagent_alfworld/episodes", "mint": "mint/dev_episodes",
}  # fmt: skip


def real(folder: Path, kind: str) -> Path:
    path = folder / "trajectories" / f"{REAL[kind]}.jsonl.xz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


@pytest.mark.parametrize("kind", REAL)
def test_real_logs_are_found(shared_data, kind):
    assert detect(real(shared_data, kind)) == kind


def test_real_cells_of_agentdojo_are_those_of_every_agent(shared_data):
    episodes, unknown = import_logs(real(shared_data, "agentdojo"), "agentdojo")
    assert (len(episodes), unknown, len({episode.task.id for episode in episodes})) == (2464, 0, 77)
    assert Counter(e.perturbation for e in episodes) == {"none": 1309, "important_instructions": 1155}
    agents = Counter((e.agent, e.perturbation) for e in episodes)
    assert {count for (_, name), count in agents.items() if name == "none"} == {77}
    assert max(Counter((e.task.id, e.perturbation, e.agent) for e in episodes).values()) == 1


def test_real_episodes_of_workbench_are_ten_queries_a_template(shared_data):
    episodes, unknown = import_logs(real(shared_data, "workbench"), "workbench")
    assert (len(episodes), unknown, len({e.agent for e in episodes})) == (3840, 0, 8)
    tasks = defaultdict(set)
    for episode in episodes:
        tasks[episode.task.family].add(episode.task.id)
    assert {len(ids) for ids in tasks.values()} == {10} and len(tasks) == 48


def test_real_data_bases_of_intercode_are_those_of_spider(shared_data, tmp_path):
    path = real(shared_data, "intercode")
    found = databases(raw for _, raw in objects(path))
    assert len(found) >= 845 and len(set(found.values())) == 20
    with lzma.open(path, "rt") as file:
        (tmp_path / "some.jsonl").write_text("".join(islice(file, 2000)))
    episodes, _ = import_logs(tmp_path / "some.jsonl", "intercode")
    for episode in episodes:
        rewards = ["\nReward: 1" in step.observation.text for step in episode.steps]
        assert not any(rewards)  # a reward of 1 ends an episode: an agent never reads it
        assert "multiturn" in episode.agent or not any("Reward:" in step.observation.text for step in episode.steps)


def test_real_users_of_tau_bench_are_groups(shared_data):
    episodes, _ = import_logs(real(shared_data, "tau-bench"), "tau-bench")
    benchmarks = defaultdict(set)
    for episode in episodes:
        benchmarks[episode.task.family].add(episode.task.id.split("/")[0])
    assert len(benchmarks) < 90 and sum(len(names) > 1 for names in benchmarks.values()) >= 80
    families = defaultdict(set)
    for episode in episodes:
        families[episode.task.id].add(episode.task.family)
    assert {len(of_task) for of_task in families.values()} == {1}


# -- plug-ins -----------------------------------------------------------------------------------------------------

OWN = """
import json
from r2v.logs.records import Recorded, Records

def convert(raw, where):
    messages = [{"role": role, "content": text} for role, text in raw["turns"]]
    return Recorded(raw["name"], raw["ok"], {"messages": messages}, "own")

def source(path):
    for n, line in enumerate(path.read_text().splitlines(), 1):
        yield f"{path}:{n}", json.loads(line)

FORMAT = Records("own", "my own logs", convert, source, recognises=lambda raw: "turns" in raw)

class Bare:
    name, description, verifier = "bare", "chats without a verifier", None
    def read(self, path):
        yield Recorded("t", True, {"messages": [{"role": "assistant", "content": "y"}]}, "m")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_logs_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_logs_of_mine"
    sys.modules.pop("own_logs_of_mine", None)


def test_a_format_of_another_package_is_read_like_a_built_in_one(own, tmp_path):
    log = tmp_path / "log.txt"
    log.write_text(json.dumps({"name": "t1", "ok": True, "turns": [["user", "do it"], ["assistant", "done"]]}))
    done = CliRunner().invoke(
        cli, ["import", str(log), str(tmp_path / "e.parquet"), "--format", f"{own}:FORMAT"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    (episode,) = read_episodes(tmp_path / "e.parquet")
    assert (episode.task.id, episode.agent, len(episode.steps)) == ("t1", "own", 1)
    log.write_text('{"name": "t1", "ok": true, "turns": [["nobody", "x"]]}')
    with pytest.raises(
        ArtifactError, match=r"log\.txt:1 is not own \(messages\[0\]\.role: the role must be one of system, "
    ):
        import_logs(log, f"{own}:FORMAT")
    with pytest.raises(SettingsError, match="bare gives chats, so it must name the verifier"):
        import_logs(log, f"{own}:Bare")


def test_a_format_of_an_installed_package_is_found_before_the_built_in_ones(own, tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "installed", lambda group: {"own": f"{own}:FORMAT", "bare": f"{own}:Bare"})
    detection._recognisers.cache_clear()
    try:
        assert detect(lines(tmp_path / "log.jsonl", {"turns": [], "messages": CHAT})) == "own"
        assert detect(lines(tmp_path / "chat.jsonl", {"messages": CHAT})) == "openai-jsonl"
    finally:
        detection._recognisers.cache_clear()


def test_a_format_that_does_not_import_is_left_out_with_a_warning(tmp_path, monkeypatch, caplog, refused):
    (tmp_path / "log.jsonl").write_text(ONE)
    (tmp_path / "broken_on_import.py").write_text("raise RuntimeError('oh')")
    about = tmp_path / "broken_pack-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-pack\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[r2v.log_formats]\nbroken = broken_on_import:FORMAT\nlacking = needs_what_is_not_there:FORMAT\n"
    )
    (tmp_path / "needs_what_is_not_there.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    for cached in (detection._recognisers, plugins.installed):
        cached.cache_clear()
    try:
        assert detect(tmp_path / "log.jsonl") == "openai-jsonl"
        first, second = [record.getMessage() for record in caplog.records]
        named = "broken (entry point r2v.log_formats of the package broken-pack: broken_on_import:FORMAT) cannot be loaded"
        assert first.startswith(f"left out: {named}: it broke: RuntimeError: oh (") and "needs not_there_at_all" in second
        assert f"{named}: it broke: RuntimeError: oh (" in refused("check", "broken")
        assert "cannot be loaded: it needs not_there_at_all" in refused("check", "lacking")
    finally:
        for cached in (detection._recognisers, plugins.installed):
            cached.cache_clear()


def test_a_view_that_the_logs_cannot_have_is_one_line(refused, tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps({"messages": CHAT, "task": "t", "success": True}))
    r2v = ("inspect", tmp_path / "log.jsonl", "--format", "openai-jsonl", "--out", tmp_path / "out")
    assert "needs several candidates a step; these logs have one" in refused(*r2v, "--view", "pseudo_entropy")


def test_an_unknown_format_is_one_line_with_the_nearest(tmp_path):
    with pytest.raises(SettingsError, match="did you mean tau-bench"):
        import_logs(write(tmp_path / "log.jsonl"), "tau-bnch")


def test_every_built_in_format_has_its_own_name_and_a_line_about_it():
    for name in BUILT_IN:
        found = log_format(name)
        assert found.name == name and found.description and "\n" not in found.description
    help_text = CliRunner().invoke(cli, ["fit", "--help"], env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"}).output
    assert all(name in help_text for name in BUILT_IN)


def test_a_ledger_has_its_own_outcomes(host, tmp_path):
    outcomes = tmp_path / "o.json"
    outcomes.write_text("{}")
    with pytest.raises(SettingsError, match="hold their own outcomes"):
        import_logs(served(host, tmp_path, redact=True), "ledger", outcomes)
    with pytest.raises(ArtifactError, match=r"nothing\.db does not exist"):
        import_logs(tmp_path / "nothing.db", "ledger")
    with pytest.raises(ArtifactError, match=r"log\.jsonl is not a ledger .*; other logs are read without --format ledger$"):
        import_logs(write(tmp_path / "log.jsonl"), "ledger")
    assert not (tmp_path / "nothing.db").exists()


def test_fitting_and_inspecting_need_no_torch_and_no_web_server(tmp_path):
    """In a process where these cannot be imported at all."""
    from test_fit_logs import synthetic

    synthetic(tmp_path / "log.jsonl", 60)
    code = f"""
import sys
from pathlib import Path
hidden = ["torch", "transformers", "tokenizers", "starlette", "uvicorn", "aiohttp", "httpx"]
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
log, out = Path({str(tmp_path / "log.jsonl")!r}), Path({str(tmp_path)!r})
from r2v.logs.importing import import_logs
from r2v.studies.advise import advise
from r2v.studies.costs import Costs
from r2v.studies.fit_logs import fit_logs
episodes, _ = import_logs(log, "openai-jsonl")
fit_logs(advise(episodes, Costs()), out / "router", verifier="tool_calls", unproven=True)
hidden.remove("httpx")  # the command line reads the pipeline's settings
from r2v.cli import cli
fit = ["fit", str(log), "--out", str(out / "again"), "--unproven"]
for command in (fit, ["inspect", str(log), "--out", str(out / "page")]):
    cli([*command, "--format", "openai-jsonl"], standalone_mode=False)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, other = (tmp_path / name for name in ("router", "again"))
    for name in ("router.json", "weights.safetensors"):  # the same fit again: nothing but the seed decides
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert (tmp_path / "page/inspect.html").exists()
