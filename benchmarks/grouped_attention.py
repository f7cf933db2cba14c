"""A local SLM whose query heads share keys: its steps with the keys read in place, and with a copy of them for each head.

    python benchmarks/grouped_attention.py [--episodes 40] [--steps 2] [--words 1500]

A Llama of SmolLM2-135M's shape (nine heads, three of keys) with random weights proposes three candidates at the steps of
expert episodes of the household whose goals are made long. Both ways are timed in turn; step 0 reads the goal.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from slm_on_gpu import HORIZON, expert_episodes
from transformers import LlamaConfig, LlamaForCausalLM

from r2v.clients.local.loading import GROUPED_IN_PLACE
from r2v.clients.local.policy import LocalPolicy
from r2v.core.types import Candidate, Episode
from r2v.domains.household import DOMAIN
from r2v.learning.models import save_model
from r2v.learning.tokenizer import train_tokenizer

WAYS = {"in place": "1", "copied": "0"}


def save_random(episodes: list[Episode], folder: Path) -> None:
    texts = [text for e in episodes for c in e.contexts(HORIZON) for text in (e.goal, *c.observations)]
    tokenizer = train_tokenizer(texts, pieces=DOMAIN.pieces, dropped=DOMAIN.dropped)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    save_model(LlamaForCausalLM(config), tokenizer, folder)


async def play(policies: dict[str, LocalPolicy], episodes: list[Episode], steps: int, words: int) -> None:
    story = " ".join(text for e in episodes for c in e.contexts(HORIZON) for text in c.observations).split()[:words]
    contexts = [[replace(c, goal=f"{c.goal} {' '.join(story)}") for c in episode.contexts(HORIZON)] for episode in episodes]
    for t in range(steps):
        live = [i for i, known in enumerate(contexts) if t < len(known)]
        drawn: dict[str, list[tuple[Candidate, ...]]] = {}
        seconds = {}
        for way, policy in policies.items():
            os.environ[GROUPED_IN_PLACE] = WAYS[way]
            start = time.perf_counter()
            drawn[way] = await asyncio.gather(*(policy.propose(contexts[i][t], 3, seed=1000 * i + t) for i in live))
            seconds[way] = time.perf_counter() - start
        tokens = np.mean([one.usage.prompt_tokens for candidates in drawn["copied"] for one in candidates])
        print(
            f"step {t}, {len(live)} episodes, {tokens:.0f} tokens of context: copied {seconds['copied']:.2f} s, in place "
            f"{seconds['in place']:.2f} s, {seconds['copied'] / seconds['in place']:.2f} times as fast; "
            f"{'the same' if drawn['copied'] == drawn['in place'] else 'OTHER'} candidates"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--words", type=int, default=1500, help="of the goal")
    options = parser.parse_args()
    torch.set_num_threads(1)
    episodes = expert_episodes(options.episodes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        save_random(episodes, folder)
        policies = {way: LocalPolicy.load(folder) for way in WAYS}
        asyncio.run(play(policies, episodes, options.steps, options.words))


if __name__ == "__main__":
    main()
