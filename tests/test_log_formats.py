"""Formats of logs: what an outcome is, plug-ins, and the chat that episodes keep."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from r2v.cli import cli
from r2v.core.errors import ArtifactError, SettingsError
from r2v.core.types import Action, ToolCall
from r2v.gateway.ledger import Ledger
from r2v.logs import BUILT_IN
from r2v.logs.importing import import_logs, log_format
from r2v.maths.stats import auroc
from r2v.messages.transcript import conversation_of, message_of
from r2v.routers import load_router
from r2v.routers.r2v import R2V
from r2v.runtime.store import decode, encode, read_episodes, write_episodes
from servers import KEY, Model, gateway, settings

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

BOUND = [(0.5, True), (0.49, False), (True, True), (False, False), (1, True), (0, False), (2.0, True), (-1, False)]


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

FORMAT = Records("own", "my own logs", convert, source)

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
    with pytest.raises(ArtifactError, match=r"log\.txt:1 is not own \(BadRequest"):
        import_logs(log, f"{own}:FORMAT")
    with pytest.raises(SettingsError, match="bare gives chats, so it must name the verifier"):
        import_logs(log, f"{own}:Bare")


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
from r2v.studies.fit_logs import fit_logs
episodes, _ = import_logs(log, "openai-jsonl")
fit_logs(episodes, out / "router", verifier="tool_calls")
hidden.remove("httpx")  # the command line reads the pipeline's settings
from r2v.cli import cli
for command in (["fit", str(log), "--out", str(out / "again")], ["inspect", str(log), "--out", str(out / "page")]):
    cli([*command, "--format", "openai-jsonl"], standalone_mode=False)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, other = (tmp_path / name for name in ("router", "again"))
    for name in ("router.json", "weights.safetensors"):  # the same fit again: nothing but the seed decides
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert (tmp_path / "page/inspect.html").exists()
