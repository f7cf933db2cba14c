"""The SLM: tokenizer, cached sampling against plain re-encoding, losses, cloning that resumes to the bit, packing."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest
import torch

from r2v.clients.local.loading import load_model
from r2v.clients.local.policy import LocalPolicy
from r2v.clients.local.sampling import cumulative_NV, draw_NK, entropy_N
from r2v.clients.local.transcript import Encoder, segments
from r2v.core.agent import Noisy, Solo
from r2v.core.errors import ArtifactError, SettingsError, StageError
from r2v.core.types import Action, Context
from r2v.domains.household import DOMAIN
from r2v.domains.household.env import Household
from r2v.domains.household.expert import HouseholdExpert
from r2v.domains.household.noise import random_action
from r2v.domains.household.scenes import generate
from r2v.evaluation.closed_loop import cases, play
from r2v.learning import clone as cloning
from r2v.learning import prefer as preferring
from r2v.learning.clone import clone, descend
from r2v.learning.losses import bc_loss, dpo_loss, jsd_loss
from r2v.learning.models import new_model, save_model
from r2v.learning.pairs import PreferencePair, read_pairs, write_pairs
from r2v.learning.prefer import prefer
from r2v.learning.sequences import batches, encode_episodes
from r2v.learning.settings import CloneSettings, LoraSettings, ModelSettings, PreferSettings
from r2v.learning.tokenizer import train_tokenizer
from r2v.perturbations import family_of
from r2v.perturbations.wrap import Perturbed
from tiny_models import naive

MODEL = ModelSettings(hidden_size=32, layers=2, heads=2, intermediate_size=64)
QUICK = CloneSettings(steps=30, batch_tokens=512, warmup_steps=5, checkpoint_every=10)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def episodes(small_tasks, small_scenes):
    def make(task, z):
        environment = Household(generate(task.id, task.family, small_scenes).world())
        family = family_of(task.id, z)
        if z == 0:
            return environment, family
        return Perturbed(environment, DOMAIN.perturbation(family, 1.0, environment.goal), seed=z, salt=task.id), family

    agent = Noisy(Solo(HouseholdExpert(), "teacher"), 0.2, random_action)
    return asyncio.run(play(agent, cases(small_tasks[:12], [0, 1, 2]), make, horizon=40))


@pytest.fixture(scope="module")
def tokenizer(episodes):
    texts = [
        text
        for e in episodes
        for text, _ in segments(e.goal, [s.observation.text for s in e.steps], [s.choice.action.text for s in e.steps])
    ]
    return train_tokenizer(texts, pieces=DOMAIN.pieces, dropped=DOMAIN.dropped)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A random tiny Llama, saved and loaded as any model."""
    out = tmp_path_factory.mktemp("slm") / "model"
    save_model(new_model(MODEL, tokenizer, seed=1), tokenizer, out)
    return out


def context_of(episode, t):
    observations = tuple(step.observation.text for step in episode.steps)
    return Context(episode.goal, observations[: t + 1], tuple(step.choice.action for step in episode.steps)[:t], 40)


def test_an_entity_is_one_token_and_actions_decode_exactly(episodes, tokenizer):
    assert tokenizer.tokenize("go to cabinet 1")[0] == "go to"
    actions = {step.choice.action.text for e in episodes for step in e.steps}
    assert len(actions) > 50
    for text in actions:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(tokens) == text
        assert len(tokens) <= 4
    assert "nothing happens" in tokenizer.get_vocab()


def test_a_longer_context_extends_its_prefix(episodes):
    e = max(episodes, key=lambda e: len(e.steps))
    texts, actions = [s.observation.text for s in e.steps], [s.choice.action.text for s in e.steps]
    for t in range(1, len(texts)):
        shorter = segments(e.goal, texts[:t], actions[: t - 1])
        assert segments(e.goal, texts, actions)[: len(shorter)] == shorter


def test_cached_tree_sampling_equals_plain_re_encoding(episodes, folder):
    """Interleaved episodes that grow, stop and start: every candidate, log-prob and entropy as without any cache."""
    policy = LocalPolicy.load(folder)
    model, tokenizer = load_model(folder)
    model.eval()
    chosen = sorted(episodes, key=lambda e: len(e.steps))[::6]

    async def step(t):
        live = [(i, e) for i, e in enumerate(chosen) if t < len(e.steps) and not (i == 2 and t == 3)]
        answers = await asyncio.gather(*(policy.propose(context_of(e, t), 5, seed=100 * i + t) for i, e in live))
        return list(zip(live, answers, strict=True))

    compared = 0
    for t in range(12):
        for (i, episode), answer in asyncio.run(step(t)):
            expected = naive(model, tokenizer, context_of(episode, t), 5, 100 * i + t)
            for candidate, (text, logp, entropy) in zip(answer, expected, strict=True):
                assert candidate.action.text == text
                assert candidate.logp == pytest.approx(logp, abs=1e-4)
                assert candidate.entropy == pytest.approx(entropy, abs=1e-5)
                compared += 1
    assert compared > 200


def test_one_history_goes_on_in_several_ways(episodes, folder):
    """Children of one row, asked together or later, in any number: as without any cache."""
    policy = LocalPolicy.load(folder)
    model, tokenizer = load_model(folder)
    model.eval()
    base = context_of(max(episodes, key=lambda e: len(e.steps)), 3)

    def child(context, word):
        return Context(context.goal, (*context.observations, f"you see a {word}"), (*context.actions, Action("look")), 40)

    async def ask(contexts):
        return await asyncio.gather(*(policy.propose(c, 3, seed=i) for i, c in enumerate(contexts)))

    ways = [child(base, f"bed {i}") for i in range(4)]
    deeper = [child(ways[0], "mug 1"), child(ways[0], "mug 2"), child(ways[2], "mug 1"), child(base, "sofa 1"), ways[1]]
    for contexts in ([base], [*ways, ways[3]], deeper, deeper[::-1]):
        for i, (context, answer) in enumerate(zip(contexts, asyncio.run(ask(contexts)), strict=True)):
            expected = naive(model, tokenizer, context, 3, i)
            assert [c.action.text for c in answer] == [text for text, _, _ in expected]
            assert [c.logp for c in answer] == pytest.approx([logp for _, logp, _ in expected], abs=1e-4)


def test_a_context_beyond_the_model_is_an_error(folder):
    policy = LocalPolicy.load(folder)
    long = Context("go.", ("you see a bed 1 " * 5000,), (), 40)
    with pytest.raises(ValueError, match="exceeds"):
        asyncio.run(policy.propose(long, 2, seed=1))
    short = Context("go.", ("you see a bed 1",), (), 40)
    assert len(asyncio.run(policy.propose(short, 2, seed=1))) == 2


def test_entropy_spreads_the_rest_over_the_vocabulary():
    uniform = torch.full((1, 100), -math.log(100))
    assert float(entropy_N(uniform[:, :20], 100)[0]) == pytest.approx(math.log(100), rel=1e-5)
    sure = torch.log_softmax(torch.tensor([[100.0] + [0.0] * 99]), -1)
    assert float(entropy_N(sure.topk(20).values, 100)[0]) == pytest.approx(0.0, abs=1e-3)


def test_draws_follow_the_nucleus():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    u = torch.linspace(0, 0.9999, 20_000, dtype=torch.float64)
    drawn = draw_NK(cumulative_NV(logits, 1.0, 0.9), u[None])[0]
    share = torch.bincount(drawn, minlength=4) / len(u)
    assert share.tolist() == pytest.approx([0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0.0], abs=1e-3)


def test_losses_of_hand_computed_cases():
    logits = torch.log(torch.tensor([[[0.7, 0.3], [0.4, 0.6], [0.5, 0.5]]]))
    tokens, weights = torch.tensor([[0, 1, 0]]), torch.tensor([[1.0, 1.0, 0.5]])
    assert bc_loss(logits, tokens, weights).item() == pytest.approx(-(math.log(0.3) + 0.5 * math.log(0.4)) / 1.5, rel=1e-5)
    one = torch.ones(1)
    expected = -math.log(1 / (1 + math.exp(-0.1 * ((-1 + 2) - (-3 + 2)))))
    assert dpo_loss(-1 * one, -3 * one, -2 * one, -2 * one, beta=0.1).item() == pytest.approx(expected, rel=1e-5)
    p, q = np.array([0.8, 0.2]), np.array([0.3, 0.7])
    m = (p + q) / 2
    jsd = 0.5 * (p * np.log(p / m)).sum() + 0.5 * (q * np.log(q / m)).sum()
    a, b = (2 * torch.log(torch.tensor(x))[None].float() for x in (p, q))
    assert jsd_loss(a, b).item() == pytest.approx(jsd, rel=1e-4)
    assert jsd_loss(a, a).item() == pytest.approx(0.0, abs=1e-6)


def test_noise_carries_no_loss_and_observations_a_little(episodes, tokenizer):
    noisy = next(e for e in episodes if any(s.choice.source == "noise" for s in e.steps))
    (weights,) = encode_episodes([noisy], tokenizer, 0.3).weights
    actions = [(s.choice.source, len(Encoder(tokenizer)(s.choice.action.text, action=True))) for s in noisy.steps]
    assert (weights == 1.0).sum() == sum(n for source, n in actions if source == "teacher")
    assert (weights == 0.0).sum() == 1 + sum(n for source, n in actions if source == "noise")
    assert set(np.unique(weights)) == {0.0, np.float32(0.3), 1.0}


def test_batches_keep_their_budget_and_their_order(episodes, tokenizer):
    data = encode_episodes(episodes, tokenizer, 0.3)
    first, again = (batches(data, 700, 0, seed=5) for _ in range(2))
    for _ in range(20):
        (tokens, weights), (tokens2, _) = next(first), next(again)
        assert torch.equal(tokens, tokens2)
        assert tokens.shape[0] == 1 or tokens.numel() <= 700
        assert ((tokens == 0) <= (weights == 0)).all()


class KilledError(Exception):
    pass


def test_a_killed_clone_ends_with_the_same_weights(episodes, tmp_path):
    def train(name, stop_at=None):
        (tmp_path / name).mkdir(exist_ok=True)

        def progress(step, total, note=""):
            if step == stop_at:
                raise KilledError

        return clone(
            episodes, MODEL, QUICK, tmp_path / name / "model", checkpoints=tmp_path / name, seed=3, progress=progress
        )

    whole = train("whole")
    with pytest.raises(KilledError):
        train("killed", stop_at=20)
    assert not (tmp_path / "killed" / "model").exists()
    resumed = train("killed")
    assert resumed == whole
    a, b = (load_model(tmp_path / name / "model")[0].state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert whole.final_loss < 5.0
    assert train("killed", stop_at=20) == whole  # killed after the model was saved: nothing is trained again
    with pytest.raises(StageError, match="exists; remove it"):
        clone(episodes, MODEL, QUICK, tmp_path / "whole" / "model", checkpoints=tmp_path / "others")


def test_cloning_from_a_folder_with_lora(episodes, folder, tmp_path):
    settings = ModelSettings(path=str(folder), lora=LoraSettings(r=4, alpha=8, dropout=0.0))
    report = clone(episodes, settings, QUICK, tmp_path / "model", checkpoints=tmp_path, seed=3, progress=lambda *_: None)
    assert report.episodes > 0
    before, after = load_model(folder)[0].state_dict(), load_model(tmp_path / "model")[0].state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_nothing_to_learn_from_is_an_error(episodes, tmp_path):
    failed = [e for e in episodes if not e.success]
    with pytest.raises(StageError, match="no episode"):
        clone(failed, MODEL, QUICK, tmp_path / "m", checkpoints=tmp_path, seed=0, progress=lambda *_: None)


def test_half_precision_trains_whole_weights_and_plays_almost_the_same(episodes, folder, tmp_path):
    settings = ModelSettings(path=str(folder), precision="bfloat16")
    report = clone(episodes, settings, QUICK, tmp_path / "model", checkpoints=tmp_path, seed=3, progress=lambda *_: None)
    assert math.isfinite(report.final_loss)
    assert all(w.dtype == torch.float32 for w in load_model(tmp_path / "model")[0].parameters())
    whole, half = (LocalPolicy.load(tmp_path / "model", precision=p) for p in ("float32", "bfloat16"))
    contexts = [context_of(e, t) for e in episodes[:4] for t in (0, 2)]
    a, b = ([asyncio.run(policy.propose(c, 3, seed=5)) for c in contexts] for policy in (whole, half))
    assert [x.entropy for x, *_ in b] == pytest.approx([x.entropy for x, *_ in a], abs=0.1)
    assert [x.entropy for x, *_ in b] != [x.entropy for x, *_ in a]


@pytest.fixture
def elsewhere(monkeypatch):
    """A device that is not the CPU, on any machine: `meta` tensors hold no numbers, but most operations refuse to mix them
    with the CPU's. Where numbers are wanted, they are zeros.
    """

    def instead(read):
        return lambda tensor: read(torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor)

    for name in ("tolist", "item", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, instead(getattr(torch.Tensor, name)))
    return torch.device("meta")


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_playing_forgets_nothing_on_the_cpu(episodes, tokenizer, elsewhere, precision):
    policy = LocalPolicy(new_model(MODEL, tokenizer, seed=0).to(elsewhere, precision), tokenizer)

    async def play_on():
        for t in (0, 1, 2):
            await asyncio.gather(*(policy.propose(context_of(e, t), 3, seed=i) for i, e in enumerate(episodes[:6])))

    asyncio.run(play_on())


def test_training_forgets_nothing_on_the_cpu(episodes, tokenizer, elsewhere, monkeypatch, tmp_path):
    adam = torch.optim.AdamW
    for module in (cloning, preferring):
        monkeypatch.setattr(
            module, "load_model", lambda *_, **__: (new_model(MODEL, tokenizer, seed=0).to(elsewhere), tokenizer)
        )
        monkeypatch.setattr(module, "save_model", lambda *_: None)
    monkeypatch.setattr(cloning, "chosen_device", lambda name: elsewhere)
    monkeypatch.setattr(torch.optim, "AdamW", lambda *given, fused, **options: adam(*given, **options))
    settings, quiet = ModelSettings(path="x", lora=LoraSettings(r=4)), lambda *_: None
    two = CloneSettings(steps=2)
    assert clone(episodes, settings, two, tmp_path / "m", checkpoints=tmp_path, seed=0, progress=quiet).steps == 2
    pairs = [PreferencePair(i, 1, "look", "inventory") for i in range(8)]
    few = PreferSettings()
    prefer(tmp_path, settings, episodes, episodes, pairs, episodes, few, tmp_path / "m", seed=1, progress=quiet)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_one_line(folder):
    with pytest.raises(SettingsError, match="0 GPUs"):
        load_model(folder, device="cuda")
    assert LocalPolicy.load(folder, device="auto")


def test_a_missing_model_is_one_line(tmp_path):
    with pytest.raises(ArtifactError) as error:
        load_model(tmp_path / "nothing")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_preference_training_moves_towards_the_chosen(episodes, folder, tmp_path, precision):
    pairs = [PreferencePair(i, 1, "look", "inventory") for i in range(8)]
    settings = PreferSettings(epochs=4, learning_rate=3e-3)
    model = ModelSettings(precision=precision)
    report = prefer(
        folder, model, episodes, episodes, pairs, episodes, settings, tmp_path / "model", seed=1, progress=lambda *_: None
    )
    assert report.dpo_last < report.dpo_first
    assert report.accuracy_last == 1.0
    assert report.pairs == report.trajectories == 8
    assert load_model(tmp_path / "model")
    with pytest.raises(StageError, match="no preference pair"):
        prefer(folder, model, episodes, episodes, [], episodes, settings, tmp_path / "m", seed=1, progress=lambda *_: None)


def test_preference_training_with_lora_trains_adapters_alone(episodes, folder, tmp_path, monkeypatch):
    """Of the weights only low-rank changes come out, and nothing else had a gradient or a place in the optimiser."""
    trained = set()

    def recorded(loss, model, optimizer, schedule):
        descend(loss, model, optimizer, schedule)
        trained.update(name for name, p in model.named_parameters() if p.grad is not None)
        assert len(optimizer.param_groups[0]["params"]) == len(trained)

    monkeypatch.setattr(preferring, "descend", recorded)
    pairs = [PreferencePair(i, 1, "look", "inventory") for i in range(8)]
    settings = ModelSettings(path=str(folder), lora=LoraSettings(r=2, alpha=4, dropout=0.0))
    fast, out = PreferSettings(epochs=4, learning_rate=3e-2), tmp_path / "model"
    report = prefer(folder, settings, episodes, episodes, pairs, episodes, fast, out, seed=1, progress=lambda *_: None)
    assert report.dpo_first == pytest.approx(math.log(2), abs=1e-5)
    assert report.dpo_last < report.dpo_first
    assert trained
    assert all("lora_" in name for name in trained)
    before, after = load_model(folder)[0].state_dict(), load_model(out)[0].state_dict()
    assert before.keys() == after.keys()
    assert not (out / "adapter_config.json").exists()
    changes = {key: after[key] - before[key] for key in before}
    changed = {key for key, change in changes.items() if change.any()}
    assert changed == {key for key in before if "proj" in key}
    assert all(torch.linalg.matrix_rank(changes[key], atol=1e-5) <= 2 for key in changed)


def test_pairs_come_back(tmp_path):
    pairs = [PreferencePair(0, 1, "a", "b")]
    write_pairs(tmp_path / "p.json", pairs)
    assert read_pairs(tmp_path / "p.json") == pairs
    (tmp_path / "p.json").write_text('[{"episode": 1}]')
    with pytest.raises(ArtifactError, match="malformed pair"):
        read_pairs(tmp_path / "p.json")


def test_a_seed_is_an_answer(episodes, folder):
    policy = LocalPolicy.load(folder)
    context = context_of(episodes[0], 0)
    first, same, other = (asyncio.run(policy.propose(context, 5, seed=s)) for s in (1, 1, 2))
    assert [c.action for c in first] == [c.action for c in same] != [c.action for c in other]
    assert all(isinstance(c.action, Action) for c in first)
