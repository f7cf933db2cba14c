"""A small model learns from conversations: imported logs, the gateway's ledger, and what neither can give."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from r2v.cli import cli
from r2v.clients.local.loading import load_model
from r2v.core.errors import ArtifactError, SettingsError, StageError
from r2v.core.types import Action, Choice, Decision, Message, Observation, Step, ToolCall, Usage
from r2v.gateway.ledger import Ledger
from r2v.gateway.redaction import Redactor
from r2v.gateway.rows import Entry
from r2v.learning.clone import clone
from r2v.learning.losses import bc_loss
from r2v.learning.models import save_model
from r2v.learning.pairs import PreferencePair
from r2v.learning.prefer import prefer
from r2v.learning.ranks import joined
from r2v.learning.sequences import encode_chats, encode_conversation
from r2v.learning.settings import CloneSettings, LoraSettings, ModelSettings, PreferSettings
from r2v.logs.importing import import_logs
from r2v.messages.transcript import conversation_of
from test_local_models import CHATML, chat_tokenizer
from tiny_models import tiny

QUICK = CloneSettings(steps=40, learning_rate=1e-2, warmup_steps=4)
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
TEMPLATE = CHATML.replace("[G]", "").replace("[/G]", "")
MARKED = CHATML.replace("[G]", "{% generation %}").replace("[/G]", "{% endgeneration %}")
CALLS = '<call>look {"at": "bed 1"}</call><call>look {"at": "sofa 2"}</call><|im_end|>'


def called(identity: str, where: str) -> dict:
    return {"id": identity, "type": "function", "function": {"name": "look", "arguments": json.dumps({"at": where})}}


def chat(thing: str, seen: str = "a mug") -> list[dict]:
    """Two calls at once, their results the other way round, an answer."""
    return [
        {"role": "user", "content": f"Find the {thing}."},
        {"role": "assistant", "content": None, "tool_calls": [called("a", "bed 1"), called("b", "sofa 2")]},
        {"role": "tool", "tool_call_id": "b", "content": "nothing"},
        {"role": "tool", "tool_call_id": "a", "content": seen},
        {"role": "assistant", "content": f"The {thing} is on bed 1."},
    ]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a small random Qwen2, bytes as tokens, and a chat template with tools."""
    made = chat_tokenizer(TEMPLATE)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "initializer_range": 0.1}
    made.pad_token = made.eos_token
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model(tiny("qwen2", made, **sizes), made, folder)
    return folder


@pytest.fixture
def logs(tmp_path):
    records = [
        {"task": "mug", "success": True, "messages": chat("mug")},
        {"task": "cup", "success": True, "messages": chat("cup")},
        {"task": "pan", "success": False, "messages": chat("pan")},
        {"task": "pot", "messages": chat("pot")},
        {"task": "long", "success": True, "messages": chat("jar", "x" * 1100)},
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({**record, "tools": TOOLS}) + "\n" for record in records))
    return path


def ledger(path, *, redact: bool, things: tuple[str, ...] = ("mug", "cup")):
    """Sessions of two steps, two if nothing else is said, as the gateway writes them."""
    found = Ledger(path)
    decision = Decision("continue", "risk_below", 0.1, "risk", 0.5, 1.0, (), "risk_below")
    for thing in things:
        messages = [
            Message(
                m["role"], m["content"],
                tuple(ToolCall("look", c["function"]["arguments"], c["id"]) for c in m.get("tool_calls", ())),
                m.get("tool_call_id"),
            )
            for m in chat(thing)
        ]  # fmt: skip
        for t, (begin, at) in enumerate(((0, 1), (2, 4))):
            action = Action(messages[at].content or "look", messages[at].tool_calls)
            choice = Choice(action, "teacher" if t else "slm", (), (), None, decision, Usage(1), Usage())
            step = Step(t, 0, Observation("seen", False, None, None, "", ()), choice)
            kept = replace(step, choice=replace(choice, reply=messages[at]), messages=tuple(messages[begin:at]))
            entry = Entry(
                f"{thing}-{t}", thing, t, t + 2.0 * (thing == "cup"), "key", choice.source, "risk_below", "m", 0.1, "risk",
                0.5, 1.0, 0.0, 0.0, 0.0, 10, t, 1, 1.0, "continue", thing, Redactor(b"key").step(step) if redact else kept,
            )  # fmt: skip
            found.write(entry, None if redact or t else json.dumps(TOOLS).encode())
        found.outcome(thing, None, 1.0)
    found.close()
    return path


def loss_of(folder, talks) -> float:
    """Mean loss of the tokens that the assistant wrote."""
    model, tokenizer = load_model(folder)
    losses = []
    for talk in talks:
        tokens, weights = encode_conversation(talk, TOOLS, tokenizer)
        with torch.inference_mode():
            logits = model(input_ids=torch.from_numpy(tokens)[None]).logits
        losses.append(bc_loss(logits, torch.from_numpy(tokens)[None], torch.from_numpy(weights)[None]).item())
    return float(np.mean(losses))


def answer_of(folder, messages) -> str:
    model, tokenizer = load_model(folder)
    text = tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    out = model.generate(**tokens, max_new_tokens=100, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.decode(out[0, tokens["input_ids"].shape[1] :])


def test_a_model_learns_calls_from_logs_and_the_command_says_what_it_used(base, logs, tmp_path):
    before = loss_of(base, [chat("mug"), chat("cup")])
    out = tmp_path / "out"
    command = ["clone", str(logs), "--format", "openai-jsonl", "--model", str(base), "--out", str(out)]
    done = CliRunner().invoke(cli, [*command, "--steps", "40", "--learning-rate", "1e-2", "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "2 successful episodes learned from, 2 of them conversations" in done.output
    for line in ("1 failed", "1 have no outcome", "1 are longer than the 1024 tokens that the model reads", "vllm serve"):
        assert line in done.output
    report = json.loads((out / "report.json").read_text())
    assert (report["episodes"], report["left_out"], report["unknown_outcome"]) == (2, 1, 1)
    assert loss_of(out / "model", [chat("mug"), chat("cup")]) < before / 4
    assert report["first_loss"] == pytest.approx(before, rel=0.1)
    assert answer_of(out / "model", chat("mug")[:1]) == CALLS


def test_a_killed_command_goes_on_from_its_checkpoint(base, logs, tmp_path):
    def command(out: str, *more: str) -> list[str]:
        return ["clone", str(logs), "--model", str(base), "--out", str(tmp_path / out), "--steps", "210", *more]

    def run(*arguments: str) -> str:
        return CliRunner().invoke(cli, command(*arguments), catch_exceptions=False).output

    killed = [sys.executable, "-c", "from r2v.cli import app; app()", *command("killed")]
    with subprocess.Popen(killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob("killed/partial/*/clone.pt")):
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    assert not (tmp_path / "killed/model").exists()
    shutil.copytree(tmp_path / "killed", tmp_path / "other")
    assert "goes on" in run("killed")
    assert "goes on" not in run("other", "--steps", "1") + run("whole")
    assert not list(tmp_path.glob("*/partial"))
    resumed, whole = (load_model(tmp_path / name / "model")[0].state_dict() for name in ("killed", "whole"))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_a_command_killed_after_its_model_was_saved_ends_with_its_report(base, logs, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    command = ["clone", str(logs), "--model", str(base), "--out", str(tmp_path / "out"), "--steps", "3"]
    with monkeypatch.context() as patch:
        patch.setattr("r2v.cli.logs.write_json", killed)
        assert CliRunner().invoke(cli, command).exit_code
    assert (tmp_path / "out/model").exists() and not (tmp_path / "out/report.json").exists()
    (tmp_path / "out/partial/mine.txt").touch()
    CliRunner().invoke(cli, command, catch_exceptions=False)
    assert json.loads((tmp_path / "out/report.json").read_text())["steps"] == 3
    assert [path.name for path in (tmp_path / "out/partial").iterdir()] == ["mine.txt"]
    assert "exists; remove it" in str(CliRunner().invoke(cli, command).exception)


def test_two_processes_train_the_model_that_one_trains(base, logs, tmp_path):
    """Under `accelerate launch`; without a GPU the processes speak gloo."""

    def command(out: str) -> list[str]:
        some = ["--model", str(base), "--out", str(tmp_path / out), "--steps", "12", "--learning-rate", "1e-3"]
        return ["clone", str(logs), *some]

    one = CliRunner().invoke(cli, command("one"), catch_exceptions=False)
    program = tmp_path / "train.py"
    program.write_text("from r2v.cli import app\napp()\n")
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    clean = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_LOG_LEVEL": "error"}
    two = subprocess.run([*launch, str(program), *command("two")], env=clean, capture_output=True, text=True, timeout=300)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("model     ") == 1  # the first process speaks
    assert two.stdout.splitlines()[0] == one.stdout.splitlines()[0]
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two")]
    assert reports[1]["tokens"] == reports[0]["tokens"]
    assert reports[1]["first_loss"] == pytest.approx(reports[0]["first_loss"], rel=1e-4)
    assert reports[1]["final_loss"] == pytest.approx(reports[0]["final_loss"], rel=1e-4)
    weights, others = (load_model(tmp_path / name / "model")[0].state_dict() for name in ("one", "two"))
    before = load_model(base)[0].state_dict()
    moved = max((weights[key] - before[key]).abs().max() for key in weights)
    apart = max((weights[key] - others[key]).abs().max() for key in weights)
    assert apart < moved / 20


def test_ways_of_launching_that_share_a_model_out_are_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(SettingsError, match="ACCELERATE_USE_FSDP is set"), joined():
        pass


def test_a_model_learns_from_an_unredacted_ledger(base, tmp_path):
    episodes, _ = import_logs(ledger(tmp_path / "ledger.db", redact=False), "ledger")
    assert conversation_of(episodes[0]) == chat("mug")
    report = clone(episodes, ModelSettings(path=str(base)), QUICK, tmp_path / "model")
    assert (report.episodes, report.conversations, report.unusable) == (2, 2, {})
    assert loss_of(tmp_path / "model", [chat("mug")]) < loss_of(base, [chat("mug")]) / 4
    assert answer_of(tmp_path / "model", chat("cup")[:1]) == CALLS


def test_adapters_learn_conversations_and_the_seed_decides_them(base, tmp_path):
    episodes, _ = import_logs(ledger(tmp_path / "ledger.db", redact=False), "ledger")
    settings = ModelSettings(path=str(base), lora=LoraSettings(r=8, alpha=16))
    few = QUICK.but(steps=8)
    losses = [
        clone(episodes, settings, few, tmp_path / name, seed=s).final_loss for name, s in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert losses[0] == losses[1] != losses[2]


def test_a_redacted_ledger_is_refused_with_what_it_takes(base, tmp_path):
    path = ledger(tmp_path / "ledger.db", redact=True)
    episodes, _ = import_logs(path, "ledger")
    with pytest.raises(StageError, match=r"2 keep no messages .*`store\.redact: false`") as error:
        clone(episodes, ModelSettings(path=str(base)), QUICK, tmp_path / "model")
    assert "\n" not in str(error.value) and not (tmp_path / "model").exists()
    kept, _ = import_logs(ledger(tmp_path / "kept.db", redact=False), "ledger")
    two = QUICK.but(steps=2)
    report = clone([*episodes, *kept], ModelSettings(path=str(base)), two, tmp_path / "model")
    assert report.episodes == 2 and list(report.unusable.values()) == [2]


def test_conversations_need_a_model_with_a_chat_template(base, logs, tmp_path):
    episodes, _ = import_logs(logs, "openai-jsonl")
    with pytest.raises(StageError, match="set its folder or hub id as `path`"):
        clone(episodes, ModelSettings(), QUICK, tmp_path / "m")
    model, tokenizer = load_model(base)
    tokenizer.chat_template = None
    save_model(model, tokenizer, tmp_path / "bare")
    with pytest.raises(ArtifactError, match="has no chat template; take an instruct model"):
        clone(episodes, ModelSettings(path=str(tmp_path / "bare")), QUICK, tmp_path / "m")
    with pytest.raises(StageError, match="bare exists"):
        clone(episodes, ModelSettings(path=str(base)), QUICK, tmp_path / "bare")


@pytest.mark.parametrize("template", [TEMPLATE, MARKED])
def test_noise_and_what_an_assistant_said_before_teach_nothing(template, logs):
    (episode, *_), _ = import_logs(logs, "openai-jsonl")
    first, last = episode.steps
    noisy = replace(first, choice=replace(first.choice, source="noise"))
    earlier = replace(first, messages=(Message("user", "Hi."), Message("assistant", "Hello."), *first.messages))
    made = chat_tokenizer(template)
    played = [replace(episode, steps=steps) for steps in ((first, last), (noisy, last), (earlier, last))]
    data, unusable = encode_chats(played, made, 10_000)
    learned = [made.decode(t[w == 1]) for t, w in zip(data.tokens, data.weights, strict=True)]
    final = "The mug is on bed 1.<|im_end|>"
    assert learned == [CALLS + final, final, CALLS + final] and not unusable
    assert "Hello." in made.decode(data.tokens[2])


def test_turns_that_the_template_shows_otherwise_later_are_learned_one_by_one(logs):
    """As Qwen3's does: only the last turn has its place for thinking."""
    (episode, *_), _ = import_logs(logs, "openai-jsonl")
    made = chat_tokenizer(CHATML.replace("[G]", "{% if loop.last %}(t)\n{% endif %}").replace("[/G]", ""))
    first = replace(episode.steps[0], choice=replace(episode.steps[0].choice, source="noise"))
    played = [episode, replace(episode, steps=(first, episode.steps[1]))]
    data, unusable = encode_chats(played, made, 10_000)
    learned = [made.decode(t[w == 1]) for t, w in zip(data.tokens, data.weights, strict=True)]
    last = "(t)\nThe mug is on bed 1.<|im_end|>"
    assert learned == ["(t)\n" + CALLS, last, last] and not unusable
    assert made.decode(data.tokens[1]) == made.decode(data.tokens[2])
    assert encode_chats(played, made, len(data.tokens[1]) - 1)[0].tokens == ()


def test_a_conversation_that_the_template_cannot_show_is_left_out(logs):
    (good, odd, *_), _ = import_logs(logs, "openai-jsonl")
    first = odd.steps[0]
    odd = replace(odd, steps=(replace(first, messages=(Message("developer", "x"), *first.messages)), *odd.steps[1:]))
    data, unusable = encode_chats([odd, good], chat_tokenizer(TEMPLATE), 10_000)
    assert len(data.tokens) == 1
    ((reason, count),) = unusable.items()
    assert "no such role" in reason and count == 1


def test_preference_training_takes_no_conversations(base, logs, tmp_path):
    episodes, _ = import_logs(logs, "openai-jsonl")
    pairs = [PreferencePair(0, 0, "look", "wait")]
    options = {"seed": 0, "progress": lambda *_: None}
    with pytest.raises(StageError, match="no conversations"):
        prefer(base, ModelSettings(), [], episodes, pairs, episodes, PreferSettings(), tmp_path / "m", **options)


def test_lora_without_a_model_to_adapt_is_refused():
    with pytest.raises(ValueError, match="set its folder or hub id as `path`"):
        ModelSettings(lora=LoraSettings())
