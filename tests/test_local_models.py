"""Models with other attention than a Llama's: equal to their own plain forward pass, or refused when they are loaded."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.integrations import sdpa_attention

from r2v.clients.local import attention
from r2v.clients.local.loading import GROUPED_IN_PLACE, load_model
from r2v.clients.local.policy import LocalPolicy
from r2v.clients.local.sampling import entropy_N
from r2v.clients.local.transcript import Encoder
from r2v.core.agent import Solo
from r2v.core.errors import ArtifactError
from r2v.domains.household import DOMAIN
from r2v.domains.household.env import Household
from r2v.domains.household.expert import HouseholdExpert
from r2v.domains.household.scenes import generate
from r2v.evaluation.closed_loop import cases, play
from r2v.learning.models import save_model
from r2v.learning.packing import branch_logp, forward, pack
from r2v.learning.pairs import PreferencePair
from r2v.learning.sequences import Sequences, batches, encode_conversation
from r2v.learning.tokenizer import train_tokenizer
from servers import running
from tiny_models import WINDOW, encoded, naive, tiny

RIGHT = ("llama", "qwen2", "qwen2-sliding", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "gpt-oss", "llama4")
K = 3


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def episodes(small_tasks, small_scenes):
    def make(task, z):
        return Household(generate(task.id, task.family, small_scenes).world()), "none"

    return asyncio.run(play(Solo(HouseholdExpert(), "teacher"), cases(small_tasks[:5], [0]), make, horizon=40))


@pytest.fixture(scope="module")
def tokenizer(episodes):
    return train_tokenizer(
        (text for e in episodes for s in e.steps for text in (e.goal, s.observation.text, s.choice.action.text)),
        pieces=DOMAIN.pieces,
        dropped=DOMAIN.dropped,
    )


def plain(model, tokens):
    """Log-probabilities [L, V] by the model's own forward pass: no cache, its own mask, one text alone."""
    with torch.inference_mode():
        return torch.log_softmax(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0], -1)


def other(context):
    """The same past, but something else is seen now."""
    return replace(context, observations=(*context.observations[:-1], "you see nothing."))


@pytest.mark.parametrize("name", RIGHT)
def test_sampling_equals_the_plain_forward_beyond_the_window(name, tokenizer, episodes):
    """Episodes that grow, wait, come back and part; branches longer than the window; few and many rows in use."""
    model = tiny(name, tokenizer)
    policy = LocalPolicy(model, tokenizer, temperature=1.3, top_p=1.0)
    known = [e.contexts(40) for e in episodes]
    longest = 0

    async def ask(contexts):
        return await asyncio.gather(*(policy.draw(c, K, seed=i) for i, c in enumerate(contexts)))

    for t, live in enumerate([(0, 2), (0, 1, 2, 3), (0, 2, 3, 4), (1, 0, 4), (0, 1, 2, 3, 4), (4,)]):
        contexts = [known[i][t] for i in live] + [other(known[i][t]) for i in live[:2]]
        for context, answer in zip(contexts, asyncio.run(ask(contexts)), strict=True):
            prefix = encoded(context, Encoder(tokenizer))
            for drawn in answer:
                tokens = [tokenizer.get_vocab()[token] for token, _ in drawn.tokens]
                logp = plain(model, prefix + tokens)[len(prefix) - 1 : -1]
                expected = logp[range(len(tokens)), tokens].tolist()
                assert [logp for _, logp in drawn.tokens] == pytest.approx(expected, abs=2e-4)
                assert drawn.candidate.entropy == pytest.approx(
                    float(entropy_N(logp[:1].topk(20).values, len(tokenizer))), abs=1e-4
                )
                longest = max(longest, len(tokens))
    assert longest > WINDOW
    assert len(encoded(known[4][5], Encoder(tokenizer))) > 5 * WINDOW


def test_heads_that_share_keys_read_them_in_place(tokenizer, episodes, tmp_path, monkeypatch):
    """A copy of them for each head takes most of a step at long contexts; what is drawn does not depend on it."""
    save_model(tiny("llama", tokenizer), tokenizer, tmp_path / "model")
    repeat_kv, copies = sdpa_attention.repeat_kv, []
    monkeypatch.setattr(sdpa_attention, "repeat_kv", lambda *given: copies.append(1) or repeat_kv(*given))

    def drawn(policy):
        return asyncio.run(policy.propose(episodes[0].contexts(40)[2], K, seed=1))

    in_place = drawn(LocalPolicy.load(tmp_path / "model"))
    assert not copies
    policy = LocalPolicy.load(tmp_path / "model")
    monkeypatch.setenv(GROUPED_IN_PLACE, "0")
    assert drawn(policy) == in_place and copies


@pytest.mark.parametrize("name", RIGHT)
def test_packed_log_probs_equal_those_of_one_row_a_branch(name, tokenizer, episodes):
    model, encoder = tiny(name, tokenizer), Encoder(tokenizer)
    pairs = [PreferencePair(0, t, "look", "go to bed 1 " * 9) for t in (0, 1, 3)]
    rows = [pack(e, pairs[:n], encoder) for e, n in zip(episodes, (3, 2, 1), strict=False)]
    with torch.inference_mode():
        packed = branch_logp(forward(model, rows, tokenizer.pad_token_id), rows).tolist()
        for episode, n in zip(episodes, (3, 2, 1), strict=False):
            for pair in pairs[:n]:
                for text in (pair.chosen, pair.rejected):
                    prefix, action = encoded(episode.contexts(40)[pair.t], encoder), encoder(text, action=True)
                    logp = plain(model, prefix + action)[len(prefix) - 1 : -1]
                    assert packed.pop(0) == pytest.approx(logp[range(len(action)), action].sum().item(), abs=1e-3)
    assert not packed


@pytest.mark.parametrize("name", ["mamba2", "qwen3-next", "gpt-neo", "mpt"])
def test_other_layers_are_refused_when_the_model_is_loaded(name, tokenizer, tmp_path):
    save_model(tiny(name, tokenizer), tokenizer, tmp_path / "model")
    with pytest.raises(
        ArtifactError, match=r"serve it with vLLM or llama.cpp and name .* slm: {model: {kind: chat"
    ) as error:
        load_model(tmp_path / "model")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["qwen2-sliding", "gemma2", "gpt-oss"])
def test_what_is_right_is_loaded(name, precision, tokenizer, tmp_path):
    save_model(tiny(name, tokenizer), tokenizer, tmp_path / "model")
    model, _ = load_model(tmp_path / "model", precision=precision)
    assert getattr(model.config, "sliding_window", None) in (None, WINDOW)


def test_a_mask_without_its_window_is_noticed(tokenizer, tmp_path, monkeypatch):
    save_model(tiny("mistral", tokenizer), tokenizer, tmp_path / "model")
    monkeypatch.setattr(attention, "layer_kinds", lambda config: {"full_attention": 0})
    with pytest.raises(ArtifactError, match="standard deviations apart"):
        attention.check_attention(tiny("mistral", tokenizer))


def test_longrope_keeps_to_its_first_length(tokenizer, episodes):
    """There, padding that reaches beyond it turns nothing; beyond it, contexts and pairs are refused."""
    long = max(episodes, key=lambda e: len(e.steps))
    known = long.contexts(40)[-3:]
    size = len(encoded(known[1], Encoder(tokenizer)))
    model = tiny("phi3-longrope", tokenizer, original_max_position_embeddings=size + 16)
    policy, fresh = LocalPolicy(model, tokenizer), next(e for e in episodes if e is not long).contexts(40)[-1]
    asyncio.run(policy.propose(known[0], K, seed=0))

    async def ask(*contexts):
        return await asyncio.gather(*(policy.propose(c, K, seed=1) for c in contexts))

    for context, answer in zip((known[1], fresh), asyncio.run(ask(known[1], fresh)), strict=True):
        expected = naive(model, tokenizer, context, K, 1)
        assert [c.logp for c in answer] == pytest.approx([logp for _, logp, _ in expected], abs=1e-3)
    with pytest.raises(ValueError, match=f"exceeds the model's {size}"):
        asyncio.run(ask(known[2]))
    row = pack(long, [PreferencePair(0, len(long.steps) - 1, "look", "go to bed 1 " * 40)], Encoder(tokenizer))
    with pytest.raises(ArtifactError, match=f"reads texts of at most {size + 16} tokens"):
        forward(model, [row], 0)


CHATML = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}<|im_start|>assistant\n[G]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>{% endfor %}"
    "<|im_end|>[/G]\n"
    "{% elif m.role in ('system', 'user', 'tool') %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "bed 1"}'}}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is the mug, assistant?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "A mug <3 é 1.", "tool_call_id": "1", "name": "look"},
    {"role": "assistant", "content": "  On bed 1 é."},
    {"role": "user", "content": "Thanks."},
    {"role": "assistant", "content": "Bye."},
]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
TURNS = '<call>look {"at": "bed 1"}</call><|im_end|>', "  On bed 1 é.<|im_end|>", "Bye.<|im_end|>"


def chat_tokenizer(template):
    """Bytes as tokens, and two marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    made = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|im_end|>", clean_up_tokenization_spaces=False)
    made.chat_template = template
    return made


@pytest.mark.parametrize("marks", [("", ""), ("{% generation %}", "{% endgeneration %}")])
def test_the_loss_of_a_conversation_is_on_the_assistants_turns_alone(marks):
    made = chat_tokenizer(CHATML.replace("[G]", marks[0]).replace("[/G]", marks[1]))
    tokens, weights = encode_conversation(TALK, TOOLS, made)
    assert made.decode(tokens) == made.apply_chat_template(TALK_SHOWN, tools=TOOLS, tokenize=False)
    assert set(weights) == {0.0, 1.0}
    edges = np.flatnonzero(np.diff(weights, prepend=0.0, append=0.0)).reshape(-1, 2)
    assert tuple(made.decode(tokens[a:b]) for a, b in edges) == TURNS
    (batch, weights_BL) = next(batches(Sequences((tokens,), (weights,)), 64, 0, seed=0))
    assert made.decode(batch[0][weights_BL[0] == 1]) == "".join(TURNS)


TALK_SHOWN = [{**m, "content": m["content"] or ""} for m in TALK]
TALK_SHOWN[2] = {**TALK_SHOWN[2], "tool_calls": [{**CALL, "function": {"name": "look", "arguments": {"at": "bed 1"}}}]}


@pytest.mark.parametrize(
    ("template", "messages", "line"),
    [
        (None, TALK, "no chat template; take an instruct model"),
        (CHATML, [{"role": "judge", "content": "x"}], "no such role"),
        (CHATML.replace("[G]", "{% if loop.last %}Well: {% endif %}"), TALK, "turn 2 otherwise once more turns follow"),
    ],
)
def test_a_conversation_that_a_template_cannot_show_is_one_line(template, messages, line):
    made = chat_tokenizer(template and template.replace("[G]", "").replace("[/G]", ""))
    with pytest.raises(ArtifactError, match=line) as error:
        encode_conversation(messages, None, made)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "asked"), [("nobody/no-such-model", 1), ("runs/quickstart/3-clone/model", 0)])
def test_a_model_that_is_not_there_is_one_line_after_one_question(tmp_path, name, asked):
    paths = []

    async def nothing(request):
        paths.append(request.url.path)
        return Response(status_code=503)

    with running(Starlette(routes=[Route("/{path:path}", nothing, methods=["GET", "HEAD"])])) as hub:
        env = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", "from r2v.cli import app; app()", "serve-model", name, "--port", "0"]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"r2v: {name} is no folder, and the Hugging Face hub does not give it (")
    assert sum(name in path for path in paths) == asked
